"""Chain: several mitigations of one layer, one after the other."""

from collections.abc import Sequence
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn

from mitigations.mitigation import Mitigation


class Chain(nn.Module):
    """One layer's fitted mitigations in their order."""

    def __init__(self, maps: Sequence[Mitigation] = ()) -> None:
        super().__init__()
        self.maps = nn.ModuleList(maps)

    def transform(self, grid: Float[Tensor, "b c h w"], first: int | None = None) -> Float[Tensor, "b c h w"]:
        """The grids behind all of the mitigations, or behind the ``first`` so many."""
        for each in self.maps[:first]:
            grid = cast(Mitigation, each).transform(grid)
        return grid

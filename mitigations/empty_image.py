"""EmptyImage: a control that subtracts what the network makes of an empty picture."""

from jaxtyping import Float
from torch import Tensor

from mitigations.mitigation import Mitigation
from mitigations.resize import minus
from mitigations.sums import TokenSums
from mitigations.views import View
from tokens import expect


class EmptyImage(Mitigation):
    """x − (e_p − ē) with e the mean grid of a mid-grey picture over draws of noise, and ē its mean over positions.

    What is left of a picture without content is written by padding, weights and noise; ē goes back in because it is what the
    network says of grey, and no place. No photographer's layout goes. Like all that is measured off the data, e may differ from
    what the same position carries in photographs.

    Args:
        draws: grey pictures to average over, each with the noise of another fit image; with shared noise all are one.

    Raises:
        InputError: ``draws`` below 1.
    """

    fit_views = (View(empty=True),)
    code: Float[Tensor, "c h w"]

    def __init__(self, draws: int = 16) -> None:
        super().__init__("code")
        expect.at_least("draws", draws, 1)
        self.fit_images = draws
        self._sums: TokenSums | None = None

    def update(self, *grids: Float[Tensor, "b c h w"]) -> None:
        self._sums = self._sums or TokenSums()
        self._sums.update(grids[0])

    def finish(self) -> None:
        sums, self._sums = self._sums or TokenSums(), None
        means = sums.means()
        self.code = (means - means.mean(0)).T.unflatten(1, sums.total.shape[1:]).float().contiguous()
        self.seen.fill_(sums.images)

    def transform(self, grid: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        self.check(grid, self.code)
        return minus(grid, self.code)

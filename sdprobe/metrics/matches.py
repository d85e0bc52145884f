"""Matches: the target token matched with every keypoint, with and without groups of tokens, and the groups it is in."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from sdprobe.tokens.keys import GROUPS, MASKED


class Matches(Metric):
    """Matches of one layer, under several conditions (``test``, ``zero_shot``, ``shuffled_labels``).

    Args:
        side: tokens per side of the layer's grid.
        conditions: their names.
        rows: number of keypoints.
    """

    full_state_update = False
    cell: Tensor
    pixel: Tensor
    refined: Tensor
    without: Tensor
    without_random: Tensor
    source_in: Tensor
    target_in: Tensor
    landed_in: Tensor
    comparable: Tensor
    share: Tensor

    def __init__(self, side: int, conditions: Sequence[str], rows: int) -> None:
        super().__init__(compute_with_cache=False)
        self.side, self.conditions = side, tuple(conditions)
        missing = {
            "cell": (len(conditions), rows), "pixel": (rows, 2),
            "source_in": (len(GROUPS), rows), "target_in": (len(GROUPS), rows),
            "without": (len(conditions), len(MASKED), rows), "without_random": (len(conditions), len(MASKED), rows),
            "landed_in": (len(conditions), len(GROUPS), rows), "comparable": (len(MASKED), rows),
        }  # fmt: skip
        for name, shape in missing.items():
            self.add_state(name, torch.full(shape, -1, dtype=torch.int32), dist_reduce_fx="max")
        self.add_state("refined", torch.full((len(conditions), rows, 2), -1.0), dist_reduce_fx="max")
        self.add_state("share", torch.full((len(GROUPS), rows), -1.0, dtype=torch.float64), dist_reduce_fx="max")

    def update(
        self,
        row: Int[Tensor, " n"],
        cell: Mapping[str, Int[Tensor, " n"]],
        without: Mapping[str, Mapping[str, Int[Tensor, " n"]]],
        without_random: Mapping[str, Mapping[str, Int[Tensor, " n"]]],
        true_cell: Int[Tensor, " n"],
        source_masks: Mapping[str, Bool[Tensor, " n"]],
        target_masks: Mapping[str, Bool[Tensor, "h w"]],
        random_masks: Mapping[str, Bool[Tensor, " p"]],
    ) -> None:
        """Add the keypoints of one target picture. Cells are row-major. ``cell`` is by condition, ``without`` also by masked
        group.

        A group and its random mask are comparable if both have equally many tokens, neither is the whole grid, and neither
        contains the true token. If the true token is masked, a correct match becomes impossible, whatever the group does.
        """
        masks = torch.stack([target_masks[group].flatten() for group in GROUPS])
        cells = torch.stack([cell[condition] for condition in self.conditions])
        self.cell[:, row] = cells.int()
        self.source_in[:, row] = torch.stack([source_masks[group] for group in GROUPS]).int()
        self.target_in[:, row] = masks[:, true_cell].int()
        self.landed_in[:, :, row] = masks[:, cells].transpose(0, 1).int()
        self.share[:, row] = masks.double().mean(1, keepdim=True)
        for g, group in enumerate(MASKED):
            mask, random = target_masks[group].flatten(), random_masks[group]
            alike = (mask.sum() == random.sum()) & ~mask.all()
            self.comparable[g, row] = (alike & ~(mask | random)[true_cell]).int()
            for w, condition in enumerate(self.conditions):
                self.without[w, g, row] = without[condition][group].int()
                self.without_random[w, g, row] = without_random[condition][group].int()

    def put_pixels(self, row: Int[Tensor, " n"], pixel: Int[Tensor, "n 2"]) -> None:
        """Store matched pixels (x, y) of the original pictures, for protocols that enlarge grids."""
        self.pixel[row] = pixel.int()

    def put_refined(self, row: Int[Tensor, " n"], points: Mapping[str, Float[Tensor, "n 2"]]) -> None:
        """Store matched points (x, y) between tokens, by condition. The centre of a token is its index + ½."""
        for w, condition in enumerate(self.conditions):
            self.refined[w, row] = points[condition].float()

    def positions(self, cell: Int[Tensor, "*n"]) -> Int[Tensor, "*n 2"]:
        """(row, col) of row-major cells."""
        return torch.stack([cell // self.side, cell % self.side], dim=-1).long()

    def compute(self) -> dict[str, Tensor]:
        """The states by name, of all keypoints; −1 if a keypoint has not been seen."""
        return {name: getattr(self, name) for name in self.metric_state}

    def columns(self) -> dict[str, np.ndarray]:
        """``<condition>/cell``, ``<condition>/without_<group>``, …, ``source_in_<group>``, …: (n,) each."""
        columns: dict[str, Tensor] = {}
        for w, condition in enumerate(self.conditions):
            columns[f"{condition}/cell"] = self.cell[w]
            columns |= {f"{condition}/refined_{axis}": self.refined[w, :, k] for k, axis in enumerate("xy")}
            for g, group in enumerate(MASKED):
                columns[f"{condition}/without_{group}"] = self.without[w, g]
                columns[f"{condition}/without_random_{group}"] = self.without_random[w, g]
            for g, group in enumerate(GROUPS):
                columns[f"{condition}/landed_in_{group}"] = self.landed_in[w, g] > 0
        for g, group in enumerate(GROUPS):
            columns[f"source_in_{group}"] = self.source_in[g] > 0
            columns[f"share_{group}"] = self.share[g]
            columns[f"target_in_{group}"] = self.target_in[g] > 0
        return {name: column.cpu().numpy() for name, column in columns.items()}


def offset_table(
    predicted: Float[Tensor, "n 2"], source: Float[Tensor, "n 2"], wrong: Bool[Tensor, " n"], size: int, cells: int = 33
) -> tuple[Float[Tensor, "k k"], Float[Tensor, "k k"]]:
    """Histograms of the offset predicted − source point: all predictions, and wrong ones. Each axis is −1 to 1 sides in
    ``cells``.

    The first axis is y. The middle cell is no offset.
    """
    bins = (((predicted - source) / size + 1) / 2 * cells).floor().long().clamp(0, cells - 1)
    index = bins[:, 1] * cells + bins[:, 0]
    empty = torch.zeros(cells * cells, dtype=torch.float64, device=index.device)
    counts = empty.index_add(0, index, torch.ones_like(index, dtype=torch.float64))
    return counts.view(cells, cells), empty.index_add(0, index, wrong.double()).view(cells, cells)

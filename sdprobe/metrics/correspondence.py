"""Matches → all reported numbers of correspondence: shares from 0 to 1, with intervals over pictures."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sdprobe.metrics.gains import over_seeds
from sdprobe.metrics.intervals import FEWEST, mean_interval, share_interval, with_ends
from sdprobe.metrics.match_costs import attraction, copies, group_strata, location_strata, masked_cells, near_source
from sdprobe.metrics.matches import Matches, offset_table
from sdprobe.metrics.pair_means import PairMeans
from sdprobe.metrics.pck import (
    ALPHAS,
    PROTOCOLS,
    REFINED,
    Distances,
    distances,
    input_distances,
    pixel_distances,
    point_distances,
    random_correct,
)
from sdprobe.tokens.batch import Keypoints
from sdprobe.tokens.geometry import centres
from sdprobe.tokens.keys import GROUPS, MASKED, Key
from sdprobe.utilities.errors import InputError

ALPHA = 0.10  # of all numbers except the PCK of each protocol
MAIN = f"pck_ours_point_{ALPHA:.2f}"

Columns = dict[str, tuple[Tensor, Tensor]]  # key → values, and whether they count, per keypoint
Units = dict[str, np.ndarray]  # key → pseudo-values by picture, see sdprobe.metrics.intervals
BY_GROUP = ("attraction", "harm", "harm_random")
DIFFERENCES = ("copy_excess", *BY_GROUP)  # metrics that are differences, not shares


class Correspondence:
    """The reported numbers of the matches of one set of keypoints.

    Args:
        points: all keypoints, on one device.
        seed: of the swaps of position copies.
    """

    def __init__(self, points: Keypoints, seed: int = 0) -> None:
        self.points, self.seed = points, seed
        self.pairs = PairMeans(points)
        self.all_points = torch.ones_like(points.pair, dtype=torch.bool)

    def pck(
        self, matches: Matches, condition: str, protocols: tuple[str, ...] = tuple(PROTOCOLS), units: Units | None = None
    ) -> dict[str, float]:
        """``pck_<protocol>_<average>_<alpha>/all``. ``units`` receives the pseudo-values of every key."""
        numbers: dict[str, float] = {}
        state = matches.compute()
        for protocol in protocols:
            away = self._away(protocol, state, matches, matches.conditions.index(condition))
            if away:
                numbers |= self._counted(protocol, away, units)
        return numbers

    def _away(self, protocol: str, state: dict[str, Tensor], matches: Matches, w: int) -> Distances | None:
        """Distances of the matches that the protocol reads; None where they were not computed."""
        if protocol == "dift":
            return None if (state["pixel"] < 0).any() else pixel_distances(self.points, state["pixel"])
        if not protocol.endswith(REFINED):
            return distances(protocol, self.points, matches.positions(state["cell"][w]), matches.side)
        point = state["refined"][w].double() * self.points.size / matches.side
        return None if (point < 0).any() else input_distances(protocol, self.points, point)

    def costs(self, matches: Matches, condition: str, units: Units | None = None) -> dict[str, float]:
        """PCK by stratum, position copies, attraction and harm; keys ``<metric>/<group>``. ``units`` receives pseudo-values."""
        state, w = matches.compute(), matches.conditions.index(condition)
        right = self.correct(matches, condition)
        wrong, predicted = ~right, self._predicted(matches, condition)
        own, expected, counted = copies(self.points, predicted, wrong, ALPHA, self.seed)
        strata = [*location_strata(self.points), *group_strata(state, w)]
        columns: Columns = {f"{MAIN}/{name}": (right, members) for name, members in strata}
        columns |= {
            "copy_share/all": (own, counted),
            "copy_share_expected/all": (expected, counted),
            "copy_excess/all": (own - expected, counted),
        }
        columns |= {f"attraction/{group}": (attraction(state, w, group), wrong) for group in MASKED}
        for group in MASKED:
            for name, random in (("harm", False), ("harm_random", True)):
                cell = matches.positions(masked_cells(state, w, group, random))
                masked = distances("ours", self.points, cell, matches.side).correct(ALPHA)
                columns[f"{name}/{group}"] = (masked.double() - right.double(), state["comparable"][MASKED.index(group)] > 0)
        present = {group for g, group in enumerate(GROUPS) if (state["share"][g] > 0).any()}
        absent = {name for name in columns if (key := Key.parse(name)).metric in BY_GROUP and key.where not in present}
        return self.averaged("point", {name: column for name, column in columns.items() if name not in absent}, units)

    def correct(self, matches: Matches, condition: str) -> Bool[Tensor, " n"]:
        """Which matches are correct, by the protocol ``ours`` at ALPHA."""
        cell = matches.compute()["cell"][matches.conditions.index(condition)]
        if (cell < 0).any():
            raise InputError(
                f"Expected every keypoint to be matched, but {int((cell < 0).sum())} of {len(cell)} were not. "
                "Test all batches: remove trainer.limit_test_batches."
            )
        return distances("ours", self.points, matches.positions(cell), matches.side).correct(ALPHA)

    def gain(self, right: Shaped[Tensor, " n"], other: Shaped[Tensor, " n"]) -> dict[str, float]:
        """``pck_ours_point_0.10/<stratum>`` of one matching minus another, paired by keypoint: all, and by location."""
        return self.averaged("point", self._by_location(right.double() - other.double()), differences=True)

    def gain_over_seeds(self, right: Shaped[Tensor, " n"], others: list[Shaped[Tensor, " n"]]) -> dict[str, float]:
        """The gain over the mean of several random networks' matches, with an interval over networks and pictures."""
        tables: dict[str, list[np.ndarray]] = {}
        for other in others:
            units: Units = {}
            self.averaged("point", self._by_location(right.double() - other.double()), units, differences=True)
            for key, values in units.items():
                tables.setdefault(key, []).append(values)
        return over_seeds({key: np.stack(values) for key, values in tables.items()})

    def baselines(self) -> dict[str, dict[str, float]]:
        """``same_position``: the source point itself. ``random_point``: expectation of a uniform point of the picture."""
        same: dict[str, float] = {}
        for protocol in (name for name in PROTOCOLS if not name.endswith(REFINED)):
            same |= self._counted(protocol, self._unmoved(protocol))
        same |= self.averaged("point", self._by_location(self.same_position()))
        chance: dict[str, float] = {}
        for protocol, image in (("ours", False), ("ours_img", True)):
            expected = {
                f"pck_{protocol}_point_{a:.2f}/all": (random_correct(self.points, a, image), self.all_points) for a in ALPHAS
            }
            chance |= self.averaged("point", expected)
        return {"same_position": same, "random_point": chance}

    def same_position(self) -> Bool[Tensor, " n"]:
        """Whether the source point itself would be a correct match, by the protocol ``ours`` at ALPHA."""
        return point_distances(self.points, self.points.source_input).correct(ALPHA)

    def verdicts(self, matches: Matches, condition: str) -> tuple[Float[Tensor, "n 2"], Int[Tensor, " n"]]:
        """Matched points in the network's input, and a code.

        1 is correct, 2 is wrong and within the threshold of the source point, 0 is otherwise wrong.
        """
        predicted, right = self._predicted(matches, condition), self.correct(matches, condition)
        copied = near_source(self.points, predicted, ~right, ALPHA)
        return predicted, right.long() + 2 * copied.long()

    def offsets(self, matches: Matches, condition: str) -> tuple[Tensor, Tensor]:
        """Matches and wrong matches over the offset predicted − source, see :func:`offset_table`."""
        wrong = ~self.correct(matches, condition)
        return offset_table(self._predicted(matches, condition), self.points.source_input, wrong, self.points.size)

    def averaged(
        self, average: str, columns: Columns, units: Units | None = None, differences: bool = False
    ) -> dict[str, float]:
        """Means with ``/ci_low``, ``/ci_high`` (from 6 pictures on) and ``/n`` (keypoints). ``units`` receives pseudo-values by
        picture.

        Columns without keypoints are left out. ``differences`` says that all columns are differences; otherwise those of
        DIFFERENCES are. There is no interval if fewer than 6 pictures have a keypoint whose result changes (by masking, or
        between the two matchings), or, for attraction, one whose match lies on the group.
        """
        columns = {key: column for key, column in columns.items() if column[1].any()}
        if not columns:
            return {}
        value = torch.stack([value.double() for value, _ in columns.values()], 1)
        counted = torch.stack([where.double() for _, where in columns.values()], 1)
        means = self.pairs.means(average, value, counted)
        values = self.pairs.pseudovalues(average, value, counted)
        shares, others = share_interval(values), mean_interval(values)
        changed = self.pairs.touched(torch.where(counted > 0, torch.stack([_event(key, columns) for key in columns], 1), 0))
        rare = [
            i for i, key in enumerate(columns) if (differences or Key.parse(key).metric in BY_GROUP) and changed[i] < FEWEST
        ]
        numbers: dict[str, float] = {}
        for i, key in enumerate(columns):
            low, high = others if differences or Key.parse(key).metric in DIFFERENCES else shares
            ends = (low[i], high[i]) if i not in rare else (np.nan, np.nan)
            numbers |= with_ends(key, means[i].item(), *ends) | {f"{key}/n": int(counted[:, i].sum())}
        if units is not None:
            units |= {key: values[:, i] for i, key in enumerate(columns)}
        return numbers

    def _predicted(self, matches: Matches, condition: str) -> Float[Tensor, "n 2"]:
        """Matched points (x, y) in the network's input: centres of tokens."""
        cell = matches.positions(matches.compute()["cell"][matches.conditions.index(condition)])
        return centres(cell, self.points.size / matches.side).double()

    def _by_location(self, value: Shaped[Tensor, " n"]) -> Columns:
        """One value, by location of the keypoint."""
        return {f"{MAIN}/{name}": (value, members) for name, members in location_strata(self.points)}

    def _unmoved(self, protocol: str) -> Distances:
        """Distances of the source points themselves. For dift, of the pixel that contains the point."""
        if protocol != "dift":
            return input_distances(protocol, self.points, self.points.source_input)
        original = (self.points.source_input - self.points.target_offset) / self.points.target_scale
        return pixel_distances(self.points, original.floor().long())

    def _counted(self, protocol: str, away: Distances, units: Units | None = None) -> dict[str, float]:
        numbers: dict[str, float] = {}
        for average in PROTOCOLS[protocol]:
            keys = {f"pck_{protocol}_{average}_{alpha:.2f}/all": (away.correct(alpha), self.all_points) for alpha in ALPHAS}
            numbers |= self.averaged(average, keys, units)
        return numbers


def _event(key: str, columns: Columns) -> Bool[Tensor, " n"]:
    """Keypoints that count as an event: a match on the group for attraction, else a value that is not 0."""
    value = columns[key][0]
    return value > 0 if Key.parse(key).metric == "attraction" else value != 0

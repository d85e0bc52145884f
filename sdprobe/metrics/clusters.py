"""ClusterMetric: a metric per token group whose sampled units are photographs."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sdprobe.metrics.gains import paired_gains
from sdprobe.metrics.intervals import FEWEST, effective_units, with_ends
from sdprobe.metrics.sums import SumMetric
from sdprobe.tokens.keys import ENDS, Key


def column_means(values: Float[np.ndarray, "n *k"]) -> Float[np.ndarray, "*k"]:
    """Mean over the units that have a value; NaN where none has one."""
    with np.errstate(invalid="ignore"):
        return np.apply_along_axis(lambda column: np.nansum(column) / np.isfinite(column).sum(), 0, values)


class ClusterMetric(SumMetric):
    """Sums per photograph and token group. Every kind of value gets an interval over photographs from them.

    Tokens are not stored, so memory does not grow with their number.

    Args:
        groups: names of the token groups whose masks ``update`` receives; ``all`` is always included.
        photos: number of photographs; photo indices are below it.
        shapes: sums besides ``count`` (tokens) that are stored per photograph and group, and their further axes.
    """

    kinds: ClassVar[tuple[str, ...]]  # names of the values
    count: Tensor

    def __init__(self, groups: Sequence[str], photos: int, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.groups = ("all", *groups)
        self.add_sums(count=(photos, len(self.groups)))
        self.add_sums(**{name: (photos, len(self.groups), *shape) for name, shape in shapes.items()})

    def _add(self, photo: Int[Tensor, " n"], masks: dict[str, Bool[Tensor, " n"]], **values: Float[Tensor, "n ..."]) -> None:
        """Add values of tokens to the sums of their photographs and groups."""
        values = {"count": torch.ones_like(photo, dtype=torch.float64), **values}
        for i, group in enumerate(self.groups):
            members = slice(None) if group == "all" else masks[group]
            for name, value in values.items():
                getattr(self, name)[:, i].index_add_(0, photo[members], value[members])

    @abstractmethod
    def _pseudovalues(self) -> Float[np.ndarray, "photos groups kinds"]:
        """Pseudo-values of every group and kind; NaN for photographs without any."""

    @abstractmethod
    def _intervals(self, values: Float[np.ndarray, "photos groups kinds"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """From the pseudo-values: the values and both ends of their intervals, (groups, kinds) each."""

    def pseudovalues(self) -> dict[str, Float[np.ndarray, " photos"]]:
        """``<kind>/<group>`` → contribution of every photograph, see :mod:`~.intervals`. Groups without a value have no key.

        All processes must call this together.
        """
        with self.sync_context(should_sync=self.sync_on_compute):
            values = self._pseudovalues()
        return {key: values[:, group, kind] for key, (group, kind) in self._present(values).items()}

    def compute(self) -> dict[str, float]:
        """``<kind>/<group>`` with ``/ci_low``, ``/ci_high`` and ``/n`` (tokens); groups without a value have no key."""
        values, count = self._pseudovalues(), self.count.sum(0).tolist()
        means, lows, highs = self._intervals(values)
        report: dict[str, float] = {}
        for key, index in self._present(values).items():
            report |= with_ends(key, means[index], lows[index], highs[index]) | {f"{key}/n": int(count[index[0]])}
        return report

    def gain(self, other: "ClusterMetric") -> dict[str, float]:
        """``<kind>/<group>`` minus that of another metric on the same tokens, see :func:`paired_gains`.

        A group has no gain unless both metrics hold the same number of its tokens for every photograph. Below 6 effective
        photographs (few hold most of the tokens) a gain has no interval. All processes must call this together.
        """
        with self.sync_context(should_sync=self.sync_on_compute), other.sync_context(should_sync=other.sync_on_compute):
            alike = [group for i, group in enumerate(self.groups) if self.count[:, i].equal(other.count[:, i])]
            effective = dict(zip(self.groups, effective_units(self.count.cpu().numpy()), strict=True))
        own = {key: value for key, value in self.pseudovalues().items() if Key.parse(key).where in alike}
        gains = paired_gains(own, other.pseudovalues())
        few = [group for group, units in effective.items() if units + 1e-9 < FEWEST]
        unsure = {name for name in gains if (key := Key.parse(name)).statistic in ENDS and key.where in few}
        return {name: value for name, value in gains.items() if name not in unsure}

    def _present(self, values: Float[np.ndarray, "photos groups kinds"]) -> dict[str, tuple[int, int]]:
        """``<kind>/<group>`` → indices of group and kind, if any photograph has a value."""
        present = np.isfinite(values).any(0)
        return {
            f"{kind}/{group}": (i, k)
            for i, group in enumerate(self.groups)
            for k, kind in enumerate(self.kinds)
            if present[i, k]
        }

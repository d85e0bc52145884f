"""Result: what a measurement without a trainer found, under the keys of ``metrics.json``, with its baselines."""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from sdprobe.metrics.correspondence import MAIN as MAIN_PCK
from sdprobe.metrics.intervals import FEWEST, FEWEST_SEEDS
from sdprobe.tokens.keys import COLUMNS, CONDITIONS, ENDS, GROUPS, Key, long_form
from sdprobe.utilities import expect
from sdprobe.utilities.errors import InputError


class Number(NamedTuple):
    """A number and the ends of its 95 % interval, which are None if there are too few units for one.

    >>> str(Number(0.566, 0.539, 0.593)), str(Number(0.5))
    ('0.566 [0.539, 0.593]', '0.500')
    """

    value: float
    ci_low: float | None = None
    ci_high: float | None = None

    def __str__(self) -> str:
        ends = "" if self.ci_low is None or self.ci_high is None else f" [{self.ci_low:.3f}, {self.ci_high:.3f}]"
        return f"{self.value:.3f}{ends}"


class Kind(NamedTuple):
    """A measurement: what its main number is called, and where its baselines stand."""

    label: str
    chance: tuple[str, str] | None = None  # condition, and layer where it is not the measured one
    control: tuple[str, str] | None = None
    others: tuple[str, ...] = ()  # metrics that are shown beside the main one


BASELINE = "baseline"  # in place of a layer, of what does not depend on it
KINDS = {
    "position": Kind("position accuracy in 8 bins", ("chance", ""), ("shuffled_labels", "")),
    "correspondence": Kind("PCK@0.10", ("random_point", BASELINE), ("same_position", BASELINE)),
    "statistics": Kind("", others=("credibility", "r_pos", "r_cor", "r_norm")),
}
METRICS = {"position": "binned_accuracy", "correspondence": MAIN_PCK, "statistics": "credibility"}
NAMES = {
    "chance": "chance", "shuffled_labels": "shuffled labels", "random_point": "random point", "same_position": "same position",
    "random_weights": "random weights",
}  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What was measured at one or several layers, see :func:`sdprobe.position`, :func:`sdprobe.statistics` and
    :func:`sdprobe.match`.

    ``print(result)`` shows the main number of every layer beside its baselines. ``result["mid"]`` is the result of one layer,
    and only such a result has a ``value``. A baseline that was not measured is None.

    Attributes:
        kind: ``position``, ``statistics`` or ``correspondence``.
        metric: name of the main number, such as ``binned_accuracy``.
        layers: names of the measured layers.
        numbers: every number, under its key in ``metrics.json`` (:mod:`sdprobe.tokens.keys`).
        pseudovalues: key → contribution of every unit, see :mod:`sdprobe.metrics.intervals`.
        n: number of units that intervals are over.
        units: what they are: test photographs, images in 20 groups, or pictures.
        split: part → indices of its images, as they were used. Empty for pairs.
        notes: what was not measured, a sentence each.
        hits: of pairs: layer → which keypoints were matched correctly.
        networks: number of networks with random weights.
        settings: the shapes of the grids, and what else a baseline must have in common.
    """

    kind: str
    metric: str
    layers: tuple[str, ...]
    numbers: Mapping[str, float]
    pseudovalues: Mapping[str, np.ndarray]
    n: int
    units: str
    split: Mapping[str, Sequence[int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    hits: Mapping[str, Tensor] = field(default_factory=dict)
    networks: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, layer: str) -> "Result":
        """The result of one layer, with the baselines that do not depend on the layer."""
        if layer not in self.layers:
            raise InputError(f"Expected a measured layer, {', '.join(self.layers)}, but got '{layer}'. Use one of these.")

        def own(values: Mapping[str, Any]) -> dict[str, Any]:
            return {text: value for text, value in values.items() if Key.parse(text).layer in (layer, BASELINE)}

        numbers, units = own(self.numbers), own(self.pseudovalues)
        common = {**self.settings, "shapes": {layer: self.settings["shapes"][layer]}}
        return replace(self, layers=(layer,), numbers=numbers, pseudovalues=units, settings=common)

    def __iter__(self) -> Iterator[str]:
        """Names of the layers."""
        return iter(self.layers)

    def __len__(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def value(self) -> float:
        """The main number of the only layer."""
        return self._main.value

    @property
    def ci_low(self) -> float | None:
        """Lower end of its 95 % interval; None if there are too few units."""
        return self._main.ci_low

    @property
    def ci_high(self) -> float | None:
        """Upper end of its 95 % interval; None if there are too few units."""
        return self._main.ci_high

    @property
    def chance(self) -> float | None:
        """The main number of a blind guess, or of a random point. Statistics have none."""
        found = self._baseline(self._layer, KINDS[self.kind].chance)
        return None if found is None else found.value

    @property
    def control(self) -> Number | None:
        """The same number of the control: heads trained on shuffled labels, or the source's position. Statistics have none."""
        return self._baseline(self._layer, KINDS[self.kind].control)

    @property
    def null(self) -> Number | None:
        """The mean over networks with random weights; None if their grids were not given."""
        return self._baseline(self._layer, ("random_weights", ""))

    def number(self, metric: str = "", where: str = "all", condition: str = "test", layer: str = "") -> Number | None:
        """Any number, with its interval.

        Args:
            metric: such as ``cell_accuracy`` or ``r_pos``; the main one by default.
            where: a token group (``corner``, ``border``, ``interior``, ``high_norm``) or a stratum.
            condition: ``test``, or a baseline such as ``random_weights``.
            layer: may be left out if there is only one.

        Returns:
            the number, or None if it was not measured for this layer and condition.

        Raises:
            InputError: a name that no number of the result has, nor any baseline or main number.
        """
        if layer and layer not in (*self.layers, BASELINE):
            raise InputError(f"Expected layer to be one of {', '.join(self.layers)}, but got '{layer}'. Correct it.")
        key = str(Key(condition, layer or self._layer, metric or self.metric, where))
        if key not in self.numbers:
            known = [Key.parse(text) for text in self.numbers]
            main = (self.metric, METRICS[self.kind], *KINDS[self.kind].others)
            expect.one_of("metric", metric or self.metric, sorted({each.metric for each in known} | {*main}))
            expect.one_of("where", where, sorted({each.where for each in known} | {*GROUPS, "all"}))
            expect.one_of("condition", condition, CONDITIONS)
            return None
        low, high = (self.numbers.get(f"{key}/{end}") for end in ENDS)
        return Number(self.numbers[key], low, high)

    def to_pandas(self) -> Any:
        """Every number in long form.

        Returns:
            a ``pandas.DataFrame`` with a row per number: condition, layer, timestep, mitigation, metric, group, value, low and
            high (ends of the interval), n (tokens, keypoints or units), seeds (random networks).
        """
        import pandas

        return pandas.DataFrame(long_form(self.numbers), columns=list(COLUMNS))

    def plot(self, metric: str = "", axis: Any = None) -> Any:
        """Draw a number of every layer with its interval, and its baselines.

        Args:
            metric: the main one by default.
            axis: ``matplotlib`` axes to draw on; by default those of a new figure.

        Returns:
            the axes.

        Raises:
            InputError: a number that no layer has.
        """
        from matplotlib import pyplot

        measured = [each.metric for each in map(Key.parse, self.numbers) if (each.condition, each.where) == ("test", "all")]
        expect.one_of("metric", metric or self.metric, [*dict.fromkeys([*measured, self.metric])])
        if axis is None:
            width = min(12.0, 3.5 + 0.45 * len(self.layers))
            _, axis = pyplot.subplots(figsize=(width, 3), layout="constrained")
        kind, places = KINDS[self.kind], np.arange(len(self.layers))
        curves = {metric or self.metric: ("test", "")}
        curves |= {NAMES[where[0]]: where for where in (kind.control, ("random_weights", "")) if where}
        shift = 0.16 * (np.arange(len(curves)) - (len(curves) - 1) / 2)
        for (name, where), beside, marker in zip(curves.items(), shift, "osD", strict=False):
            found = {place: self._baseline(layer, where, metric) for place, layer in enumerate(self.layers)}
            drawn = {place: number for place, number in found.items() if number is not None}
            if drawn:
                at = np.array([*drawn]) + beside
                value = np.array([number.value for number in drawn.values()])
                ends = [[number.value if end is None else end for end in number[1:]] for number in drawn.values()]
                axis.errorbar(at, value, abs(np.array(ends).T - value), fmt=marker, capsize=3, label=name)
        levels = {place: self._baseline(layer, kind.chance, metric) for place, layer in enumerate(self.layers)}
        known = {place: level.value for place, level in levels.items() if level is not None}
        if kind.chance and known:
            at = np.array([*known])
            axis.hlines([*known.values()], at - 0.4, at + 0.4, "grey", "dotted", label=NAMES[kind.chance[0]])
        axis.set_xticks(places, self.layers, rotation=90 if len(self.layers) > 6 else 0)
        axis.set_ylabel(metric or self.metric)
        axis.legend(fontsize=8)
        return axis

    def _repr_html_(self) -> str:
        """The same table and sentences for a notebook."""
        head, *rows = self._table
        lines = [f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>"]
        lines += [f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
        notes = "".join(f"<div>{html.escape(note)}</div>" for note in self._sentences)
        return f"<table>{''.join(lines)}</table>{notes}"

    def __repr__(self) -> str:
        """A table of the layers, and what was not measured."""
        rows = self._table
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *self._sentences])

    @property
    def _table(self) -> list[list[str]]:
        """Headings, and a row per layer."""
        kind = KINDS[self.kind]
        own = {kind.label: self.metric} if kind.label else {name: name for name in kind.others}
        columns = [(name, metric, ("test", "")) for name, metric in own.items()]
        baselines = (kind.chance, kind.control, ("random_weights", ""))
        columns += [(NAMES[where[0]], self.metric, where) for where in baselines if where]
        rows = [["layer", *(name for name, _, _ in columns)]]
        for layer in self.layers:
            cells = [self._baseline(layer, where, metric) for _, metric, where in columns]
            rows.append([layer, *("not measured" if cell is None else str(cell) for cell in cells)])
        return rows

    @property
    def _sentences(self) -> list[str]:
        """What intervals are over, and what was not measured."""
        over = f"95 % intervals over {self.n} {self.units}."
        if self.n < FEWEST:
            over = f"No intervals: {self.n} {self.units}, and {FEWEST} are needed."
        elif bare := [layer for layer in self.layers if (found := self.number(layer=layer)) and found.ci_low is None]:
            over += f" None at {', '.join(bare)}: a few of them hold most tokens, or too few hold any."
        return [over, *self.notes, *self._on_networks]

    @property
    def _layer(self) -> str:
        if len(self.layers) != 1:
            raise InputError(
                f"Expected one layer, but the result has {', '.join(self.layers)}. Choose one: result['{self.layers[0]}']."
            )
        return self.layers[0]

    @property
    def _on_networks(self) -> tuple[str, ...]:
        """What the random-weights baseline lacks."""
        if not self.networks:
            return ("Random weights: not measured. Pass random_weights=, measured on the network before any training.",)
        return () if self.networks >= FEWEST_SEEDS else (f"Random weights: an interval needs {FEWEST_SEEDS} networks.",)

    @property
    def _main(self) -> Number:
        return self.number() or Number(float("nan"))

    def _baseline(self, layer: str, where: tuple[str, str] | None, metric: str = "") -> Number | None:
        """The number of a condition, at its own layer or else at this one."""
        return None if where is None else self.number(metric, condition=where[0], layer=where[1] or layer)

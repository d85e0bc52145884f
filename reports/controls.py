"""``experiment=controls``: what every source of position contributes, as a table, a waterfall figure and a CSV."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table
from scipy import stats

from reports.control_groups import control_groups
from reports.run import Run

RESAMPLES = 2000
SEEDS = ("random_0", "random_1", "random_2")
# name → what it is, (cell, view) minus the mean of (cell, view)
CONTRASTS: dict[str, tuple[str, tuple[str, str], tuple[tuple[str, str], ...]]] = {
    "learned": ("trained − random weights", ("trained", "test"), tuple((seed, "test") for seed in SEEDS)),
    "order of weights": ("trained − shuffled entries", ("trained", "test"), (("shuffled", "test"),)),
    "architecture": (
        "zeros − circular, random weights, periodic texture",
        ("random_periodic", "test"),
        (("random_circular", "test"),),
    ),
    "zeros over replicate": ("trained − replicate", ("trained", "test"), (("replicate", "test"),)),
    "zeros over reflect": ("trained − reflect", ("trained", "test"), (("reflect", "test"),)),
    "zeros over circular": ("trained − circular", ("trained", "test"), (("circular", "test"),)),
    "noise": ("own − another shared tensor", ("shared", "test"), (("shared", "other_noise"),)),
    "noise, timestep 261": ("own − another shared tensor", ("shared_261", "test"), (("shared_261", "other_noise"),)),
    "noise, in place": ("shared − rolled", ("shared", "test"), (("rolled", "test"),)),
    "noise at all": ("trained − without noise", ("trained", "test"), (("noiseless", "test"),)),
    "content": ("natural − flip-balanced", ("trained", "test"), (("flipped", "test"),)),
    "framing": ("natural − random crops", ("trained", "test"), (("crops", "test"),)),
    "natural images": ("natural − 1/f texture", ("trained", "test"), (("texture", "test"),)),
    "border of texture": ("1/f texture, windows − periodic", ("texture", "test"), (("periodic", "test"),)),
    "VAE": ("periodic texture − texture drawn as latents", ("periodic", "test"), (("no_vae", "test"),)),
    "VAE sample": ("mode − sample", ("trained", "test"), (("vae_sample", "test"),)),
    "VAE input": ("[−1, 1] − [0, 1]", ("trained", "test"), (("vae_unit", "test"),)),
}
CAPTION = (
    "Position accuracy in 8 bins per axis; ±: half of the 95 % interval over photographs, paired where two cells were tested "
    "on the same ones (else independent); means over random weights include the spread over seeds. A: flip attribution, 1 is "
    "the network's position, −1 the photographers'; – where there is no position to attribute."
)


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval, and whether it compares the same photographs."""

    value: float
    low: float
    high: float
    paired: bool = True

    @property
    def half(self) -> float:
        """Half of the interval."""
        return (self.high - self.low) / 2


def layers_of(runs: dict[str, Run]) -> list[str]:
    """Layers that every cell has, in execution order."""
    every = list(runs.values())
    return [layer for layer in every[0].layers if all(layer in run.layers for run in every)] if every else []


def accuracy(run: Run, layer: str, view: str = "test") -> Estimate | None:
    """Binned accuracy of one view with the interval that the run reported."""
    value, low, high = (run.value(view, layer, "binned_accuracy", end=end) for end in ("", "ci_low", "ci_high"))
    return None if value is None or low is None or high is None else Estimate(value, low, high)


def mean_accuracy(runs: dict[str, Run], layer: str, sides: Sequence[tuple[str, str]]) -> Estimate | None:
    """Mean binned accuracy over cells."""
    return _estimate(runs, layer, sides, ())


def contrast(runs: dict[str, Run], name: str, layer: str) -> Estimate | None:
    """One of CONTRASTS; None where a cell is missing."""
    _, upper, lower = CONTRASTS[name]
    return difference(runs, layer, (upper,), lower)


def difference(
    runs: dict[str, Run], layer: str, upper: Sequence[tuple[str, str]], lower: Sequence[tuple[str, str]]
) -> Estimate | None:
    """Mean over ``upper`` minus mean over ``lower``, resampling photographs: the same where both have the same ones."""
    return _estimate(runs, layer, upper, lower)


def _estimate(
    runs: dict[str, Run], layer: str, upper: Sequence[tuple[str, str]], lower: Sequence[tuple[str, str]]
) -> Estimate | None:
    sides = [(runs.get(cell), view) for cell, view in (*upper, *lower)]
    if not all(run and view in run.maps["views"].tolist() and f"{layer}/photo_right" in run.maps for run, view in sides):
        return None
    known = [(run, view) for run, view in sides if run]
    photos = [run.maps["photos"].tolist() for run, _ in known]
    paired = all(names == photos[0] for names in photos)
    values = [_values(run, layer, view, 0 if paired else k >= len(upper)) for k, (run, view) in enumerate(known)]
    ups, downs = values[: len(upper)], values[len(upper) :]
    draws = np.mean(ups, axis=0) - (np.mean(downs, axis=0) if downs else 0)
    spread = sum(_seed_variance(side) for side in (ups, downs))
    low, high = np.quantile(draws[1:], [0.025, 0.975])
    value = float(draws[0])
    return Estimate(value, value - float(np.hypot(value - low, spread)), value + float(np.hypot(high - value, spread)), paired)


def _values(run: Run, layer: str, view: str, seed: int) -> np.ndarray:
    """Accuracy over all photographs, then over 2000 resamples of them."""
    index = run.maps["views"].tolist().index(view)
    right, count = (run.maps[f"{layer}/photo_{name}"][index] for name in ("right", "count"))
    units = len(right)
    drawn = np.random.default_rng(int(seed)).multinomial(units, np.full(units, 1 / units), size=RESAMPLES)
    weights = np.concatenate([np.ones((1, units)), drawn])
    return np.asarray((weights @ right) / (weights @ count))


def _seed_variance(side: list[np.ndarray]) -> float:
    """Half of the t-interval of a mean over cells that differ by their seed; 0 for one cell."""
    if len(side) < 2:
        return 0.0
    return float(stats.t.ppf(0.975, len(side) - 1) * np.std([values[0] for values in side], ddof=1) / len(side) ** 0.5)


def controls_table(title: str, known: dict[str, Run]) -> Table:
    """Accuracy and flip attribution of every cell of a group, then the contrasts, for every layer."""
    layers = layers_of(known)
    table = Table(
        title=f"Where position comes from: {title}",
        caption=CAPTION,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    table.add_column("cell", no_wrap=True)
    for layer in layers:
        for header in (layer, "±", "A "):
            table.add_column(header, no_wrap=True, justify="right")
    first = next(iter(known.values()))
    table.add_row("chance", *(_part(first.value("chance", layer, "binned_accuracy")) for layer in layers), style="dim")
    for cell, run in known.items():
        for view in run.maps["views"].tolist():
            if view != "rotated":  # A says it
                name = cell if view == "test" else f"  {view.replace('_', ' ')}"
                table.add_row(name, *(part for layer in layers for part in _cell(run, layer, view)))
    table.add_section()
    for name, (what, *_) in CONTRASTS.items():
        found = [contrast(known, name, layer) for layer in layers]
        if any(found):
            parts = [part for each in found for part in ((_signed(each), _number(each.half), "") if each else ("–", "", ""))]
            table.add_row(f"{name}: {what}", *parts)
    return table


def _part(value: float | None) -> str:
    return _number(value)


def _cell(run: Run, layer: str, view: str) -> tuple[str, str, str]:
    found = accuracy(run, layer, view)
    attribution = _number(run.value("test", layer, "flip_attribution")) if view == "test" else ""
    return (_number(found.value), _number(found.half), attribution) if found else ("–", "", "")


def _signed(estimate: Estimate) -> str:
    text = _number(estimate.value)
    return text if text.startswith("-") else f"+{text}"


def _number(value: float | None, digits: int = 3) -> str:
    """Without the leading zero; a dash where nothing was measured."""
    return "–" if value is None else re.sub(r"^(-?)0\.", r"\1.", f"{value:.{digits}f}")


def controls_tables(runs: Sequence[Run]) -> list[Table]:
    """:func:`controls_table` of every group; nothing where no run is a cell."""
    return [controls_table(title, known) for title, known in control_groups(runs).items()]


def write_controls(groups: Mapping[str, dict[str, Run]], path: Path) -> None:
    """Cells and contrasts as CSV: group, model, seed, kind, name, layer, value, ci_low, ci_high, chance, paired."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        names = ("group", "model", "seed", "kind", "name", "layer", "value", "ci_low", "ci_high", "chance", "paired")
        writer.writerow(names)
        for title, known in groups.items():
            meta = next(iter(known.values())).meta
            writer.writerows([title, meta["model"], meta.get("seed"), *row] for row in _csv_rows(known))


def _csv_rows(known: dict[str, Run]) -> list[list[object]]:
    rows: list[list[object]] = []
    for layer in layers_of(known):
        for cell, run in known.items():
            level = run.value("chance", layer, "binned_accuracy")
            for view in run.maps["views"].tolist():
                found = accuracy(run, layer, view)
                rows.append([view, cell, layer, found and found.value, found and found.low, found and found.high, level, ""])
            for metric in ("flip_attribution", "flip_surviving"):
                numbers = [run.value("test", layer, metric, end=end) for end in ("", "ci_low", "ci_high")]
                rows += [[metric, cell, layer, *numbers, "", ""]] if numbers[0] is not None else []
        for name in CONTRASTS:
            if each := contrast(known, name, layer):
                rows.append(["contrast", name, layer, each.value, each.low, each.high, 0, each.paired])
    return rows

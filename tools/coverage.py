"""Simulated coverage of intervals and level of tests, compared with nominal levels, at the n of printed numbers.

``python -m tools.coverage`` prints the table of docs/methods.md; tests run the same simulations with fewer data sets.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from scipy import special, stats

from sdprobe.metrics.credibility import RISKS, corner_risk, credibility, credibility_report, larger_risk, with_clipped
from sdprobe.metrics.flip_attribution import FlipAttribution
from sdprobe.metrics.folds import Estimate, leave_one_out
from sdprobe.metrics.gains import paired_gains, surely_worse
from sdprobe.metrics.high_norm import HighNormTokens
from sdprobe.metrics.intervals import (
    independent_interval,
    jackknife_pseudovalues,
    mean_interval,
    positive_interval,
    ratio_pseudovalues,
    share_interval,
    two_way_interval,
)
from sdprobe.metrics.layer_tokens import LayerTokens
from sdprobe.metrics.pair_means import PairMeans
from sdprobe.metrics.position_variance import PositionVariance
from sdprobe.metrics.sign_flips import adjusted_p
from sdprobe.reports.validation import CredibilityCell, validation
from sdprobe.tokens.batch import Keypoints

FOLDS = 20
Generator = np.random.Generator
Simulation = Callable[[Generator, int], bool]  # (generator, n) → whether the interval contained the truth, or the test rejected


@dataclass(frozen=True)
class Level:
    """One interval or test, in its worst scenario.

    Attributes:
        what: name in the table.
        nominal: coverage of an interval, or level of a test.
        sizes: n at which it is simulated.
        worlds: scenario → simulation.
        unit: unit of n.
    """

    what: str
    nominal: float
    sizes: tuple[int, ...]
    worlds: dict[str, Simulation]
    unit: str = "photographs"

    def simulated(self, n: int, repeats: int, seed: int = 0) -> dict[str, float]:
        """Scenario → share of data sets in which the interval contained the truth, or the test rejected."""
        return {
            name: float(np.mean([world(np.random.default_rng([seed, n, k]), n) for k in range(repeats)]))
            for name, world in self.worlds.items()
        }


def held(ends: tuple[np.ndarray | float, np.ndarray | float], truth: float) -> bool:
    """Whether an interval exists and contains the truth."""
    return bool(ends[0] <= truth <= ends[1])


# --- Shares, errors and differences over photographs -----------------------------------------------------------------


def share(truth: float, alike: float, tokens: int = 64) -> Simulation:
    """Accuracy over photographs, beta-binomial; ``alike`` is the correlation of tokens of one photograph."""

    def world(generator: Generator, n: int) -> bool:
        shape = 1 / alike - 1
        right = generator.binomial(tokens, generator.beta(truth * shape, (1 - truth) * shape, n)).astype(float)
        return held(share_interval(ratio_pseudovalues(right, np.full(n, float(tokens)))), truth)

    return world


def error(shape: float) -> Simulation:
    """RMSE over photographs with gamma-distributed squared errors; shape 1 is exponential."""

    def world(generator: Generator, n: int) -> bool:
        squares = generator.gamma(shape, 1 / shape, n)
        root = np.sqrt(squares.mean())
        return held(positive_interval(root + (squares - squares.mean()) / (2 * root)), 1.0)

    return world


def explained(generator: Generator, n: int) -> bool:
    """R² over photographs that differ in variance and in the share of it that is predicted."""
    spread = generator.gamma(4, 0.25, n)
    residual = spread * generator.beta(4, 4, n)
    return held(positive_interval(ratio_pseudovalues(residual, spread)), 0.5)


def difference(kind: str) -> Simulation:
    """Paired differences: normal, skewed, or 0 in most photographs; ``rare`` ones have one sign and a mean of .005."""

    def world(generator: Generator, n: int) -> bool:
        values = generator.normal(size=n)
        if kind == "skewed":
            values = generator.gamma(4, 0.25, n) - 1
        if kind == "sparse":
            values = values * (generator.random(n) < 0.5)
        if kind == "rare":
            values = generator.gamma(4, 0.025, n) * (generator.random(n) < 0.05)
        found = paired_gains({"k": values}, {"k": np.zeros(n)})
        truth = 0.005 if kind == "rare" else 0.0
        return "k/ci_low" not in found or held((found["k/ci_low"], found["k/ci_high"]), truth)

    return world


def kept(kind: str, candidates: int) -> Simulation:
    """Whether the truly best of equally good candidates is among those that cannot be told from the one that looks best."""

    def world(generator: Generator, n: int) -> bool:
        shared, values = generator.normal(size=(n, 1)), generator.normal(size=(n, candidates))
        if kind == "skewed":
            values[:, 0] = generator.exponential(size=n) - 1
        if kind == "shares":
            values, shared = generator.binomial(64, np.clip(0.9 + 0.05 * shared, 0, 1), (n, candidates)) / 64, np.zeros((n, 1))
        values = values + shared
        return not surely_worse(values[:, 0], values[:, values.mean(0).argmax()], candidates - 1)

    return world


def unpaired(generator: Generator, n: int) -> bool:
    """Two sets of photographs of different size and spread."""
    return held(independent_interval(generator.normal(0, 1, n), generator.normal(0, 2, 2 * n)), 0.0)


# --- Edits inside the network, and windows ---------------------------------------------------------------------------


def lognormal(generator: Generator, n: int, tail: float) -> np.ndarray:
    """Positive numbers with mean 1, whose logarithms have the standard deviation ``tail``."""
    return np.exp(tail * generator.normal(size=n) - tail**2 / 2)


def quotient(part: np.ndarray, whole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The interval of a share of the ceiling and of ρ: Σ part / Σ whole, where the terms of both may be negative."""
    without = (part.sum() - part) / (whole.sum() - whole)
    return mean_interval(jackknife_pseudovalues(part.sum() / whole.sum(), without))


def loss_change(truth: float, tail: float) -> Simulation:
    """Change of the loss of photographs that differ in loss (log-normal, .5), in effect (log-normal, ``tail``) and in noise."""

    def world(generator: Generator, n: int) -> bool:
        plain = lognormal(generator, n, 0.5)
        change = plain * (truth * lognormal(generator, n, tail) + 0.1 * generator.normal(size=n))
        return held(mean_interval(ratio_pseudovalues(change, plain)), truth)

    return world


def displacement(tail: float) -> Simulation:
    """Displacement of the output, log-normal over photographs, in shares of outputs of different size (gamma 4)."""

    def world(generator: Generator, n: int) -> bool:
        size = generator.gamma(4, 0.25, n)
        return held(positive_interval(ratio_pseudovalues(0.1 * size * lognormal(generator, n, tail), size)), 0.1)

    return world


def ceiling_share(spread: float, truth: float, skewed: bool = False) -> Simulation:
    """Share of a ceiling whose effects have this standard deviation over photographs, and the mean 1.

    Only data sets count whose ceiling has an interval above 0: others are drawn again.
    """

    def world(generator: Generator, n: int) -> bool:
        while True:
            most = generator.gamma(spread**-2, spread**2, n) if skewed else generator.normal(1, spread, n)
            part = truth * most + 0.2 * spread * generator.normal(size=n)
            if mean_interval(ratio_pseudovalues(most, 10 * lognormal(generator, n, 0.3)))[0] > 0:
                return held(quotient(part, most), truth)

    return world


def rebuilt(accuracy: float, truth: float, alike: float = 0.1, tokens: int = 64) -> Simulation:
    """ρ of heads with this accuracy without an edit; photographs that are easy without it tend to be easy with it.

    Only data sets count whose accuracy is above chance by its interval: others are drawn again.
    """
    null, shape = 0.125, 1 / alike - 1
    rates = np.array([[null + truth * (accuracy - null)], [accuracy]])

    def world(generator: Generator, n: int) -> bool:
        while True:
            ease = 0.7**0.5 * generator.normal(size=n) + 0.3**0.5 * generator.normal(size=(2, n))
            right = special.betaincinv(rates * shape, (1 - rates) * shape, special.ndtr(ease))
            edited, plain = generator.binomial(tokens, right) / tokens
            if share_interval(plain)[0] > null:
                return held(quotient(edited - null, plain - null), truth)

    return world


def equivariance(unmoved: float, tail: float) -> Simulation:
    """1 − share; windows of photographs that differ in variance (gamma 4), and in the share of it that does not move."""

    def world(generator: Generator, n: int) -> bool:
        spread = generator.gamma(4, 0.25, n)
        return held(positive_interval(ratio_pseudovalues(unmoved * spread * lognormal(generator, n, tail), spread)), unmoved)

    return world


def signal_to_noise(tail: float) -> Simulation:
    """PSNR, whose interval is that of the error in squared ranges, transformed; ranges and errors differ (gamma 4)."""

    def world(generator: Generator, n: int) -> bool:
        ranges, spread = generator.gamma(4, 0.25, (2, n))
        return held(positive_interval(ratio_pseudovalues(spread * lognormal(generator, n, tail), 100 * ranges)), 0.01)

    return world


# --- Random networks × photographs -----------------------------------------------------------------------------------


def networks(seeds: int, by_seed: float, by_photo: float, rest: float) -> Simulation:
    """Random effects of networks, photographs and their interaction with these standard deviations."""

    def world(generator: Generator, n: int) -> bool:
        table = by_seed * generator.normal(size=(seeds, 1)) + by_photo * generator.normal(size=(1, n))
        return held(two_way_interval(table + rest * generator.normal(size=(seeds, n))), 0.0)

    return world


# --- Pairs that share pictures ---------------------------------------------------------------------------------------


@cache
def keypoints(pictures: int, categories: int) -> tuple[Keypoints, PairMeans]:
    """One keypoint for each ordered pair of pictures of a category."""
    rows = [(c, a, b) for c in range(categories) for a in range(pictures) for b in range(pictures) if a != b]
    category, source, target = (torch.tensor(column) for column in zip(*rows, strict=True))
    empty, point = torch.zeros(len(rows), 2, dtype=torch.float64), torch.zeros(len(rows), 4, dtype=torch.float64)
    number = torch.arange(len(rows))
    points = Keypoints(
        pair=number, category=category, source=category * pictures + source, target=category * pictures + target,
        source_slot=number, target_slot=number, source_point=empty, target_point=empty, target_box=point, target_size=empty,
        source_scale=empty, source_offset=empty, target_scale=empty, target_offset=empty, size=1,
    )  # fmt: skip
    return points, PairMeans(points)


def pair_differences(generator: Generator, points: Keypoints, kind: str) -> torch.Tensor:
    """Differences of pairs: independent, by target picture, by both pictures equally, or by both pictures separately."""
    pictures = int(torch.maximum(points.source, points.target).max()) + 1
    effects = generator.normal(size=(2, pictures))
    own = generator.normal(size=len(points))
    by_target, by_source = effects[0][points.target.numpy()], effects[0][points.source.numpy()]
    kinds = {
        "independent pairs": own,
        "target pictures": by_target + 0.5 * own,
        "both pictures equally": by_target + by_source + 0.5 * own,
        "both pictures separately": by_target + effects[1][points.source.numpy()] + 0.5 * own,
    }
    return torch.from_numpy(kinds[kind])[:, None]


PAIRS = ("independent pairs", "target pictures", "both pictures equally", "both pictures separately")
CATEGORIES = {6: 1, 8: 2, 12: 3, 88: 8}


def pictures_interval(kind: str, average: str) -> Simulation:
    """A mean over pairs."""

    def world(generator: Generator, n: int) -> bool:
        points, means = keypoints(n // CATEGORIES[n], CATEGORIES[n])
        values = pair_differences(generator, points, kind)
        return held(mean_interval(means.pseudovalues(average, values, torch.ones_like(values))[:, 0]), 0.0)

    return world


def matches_interval(truth: float) -> Simulation:
    """PCK of pairs whose pictures differ in difficulty, ten keypoints a pair."""

    def world(generator: Generator, n: int) -> bool:
        points, means = keypoints(n // CATEGORIES[n], CATEGORIES[n])
        ease = generator.normal(0, 0.5, int(points.target.max()) + 1)
        offset = ease[points.source.numpy()] + ease[points.target.numpy()]
        # probit model: the mean over normal offsets of variance 0.5 equals the share
        rate = stats.norm.cdf(stats.norm.ppf(truth) * 1.5**0.5 + offset)
        share = torch.from_numpy(generator.binomial(10, rate) / 10)[:, None]
        low, high = share_interval(means.pseudovalues("point", share, torch.ones_like(share)))
        return bool(low[0] <= truth <= high[0])

    return world


def pictures_test(kind: str) -> Simulation:
    """The sign-flip test of a mean over pairs."""

    def world(generator: Generator, n: int) -> bool:
        points, means = keypoints(n // CATEGORIES[n], CATEGORIES[n])
        values = pair_differences(generator, points, kind)
        units = means.pseudovalues("point", values, torch.ones_like(values))
        return bool(adjusted_p(units)[0] < 0.05)

    return world


# --- Statistics over groups of images --------------------------------------------------------------------------------


def means_of(values: np.ndarray) -> Estimate:
    """Mean over images, and the means with one fold left out."""
    fold = torch.arange(len(values)) * FOLDS // len(values)
    total, number = (
        torch.zeros(FOLDS, dtype=torch.float64).index_add(0, fold, torch.from_numpy(part))
        for part in (values, np.ones(len(values)))
    )
    return values.mean() + torch.zeros((), dtype=torch.float64), leave_one_out(total) / leave_one_out(number)


def corners(truth: float) -> Callable[[Generator, int], Estimate]:
    """Two kinds of corner risk; the true values are ``truth`` and 0."""

    def draw(generator: Generator, n: int) -> Estimate:
        kinds = []
        for excess in (truth, 0.0):
            outer = means_of(generator.normal(0.1, 0.15, n))
            inner = means_of(generator.normal(0.1 + 0.9 * excess, 0.15, n))
            kinds.append((corner_risk(inner[0], outer[0]), corner_risk(inner[1], outer[1])))
        return larger_risk(*kinds)

    return draw


def corner_interval(truth: float) -> Simulation:
    """r_cor, the larger of two kinds of corner risk."""

    def world(generator: Generator, n: int) -> bool:
        found = with_clipped("r_cor", *corners(truth)(generator, n))
        return held((found["r_cor/ci_low"], found["r_cor/ci_high"]), truth)

    return world


def variance_of(generator: Generator, n: int, strength: float) -> Estimate:
    """V_pos of tokens with a position code of variance ``strength``² and unit noise, minus its true value."""
    channels, side = 6, 4
    code = strength * generator.normal(size=(1, channels, side, side))
    grid = torch.from_numpy(generator.normal(size=(n, channels, side, side)) + code).float()
    metric = PositionVariance(channels, side, side, n, normalise=False)
    metric.update(LayerTokens.of(grid, {}))
    value, without = metric.estimate()
    planted = (code[0] - code[0].mean((1, 2), keepdims=True)) ** 2
    truth = planted.sum() / (side**2 - 1)
    return value - truth / (truth + channels) + 0.0, without - truth / (truth + channels)


def variance_interval(strength: float) -> Simulation:
    """V_pos; its planted value is subtracted, so the truth is 0."""

    def world(generator: Generator, n: int) -> bool:
        value, without = variance_of(generator, n, strength)
        return held(mean_interval(jackknife_pseudovalues(value.item(), without.numpy())), 0.0)

    return world


def credibility_interval(corner: float, position: float) -> Simulation:
    """Cred of three risks; the corner risk may be 0 or negative."""

    def world(generator: Generator, n: int) -> bool:
        risks = dict(
            zip(
                RISKS,
                (
                    means_of(generator.normal(position, 0.1, n)),
                    means_of(generator.normal(corner, 0.1, n)),
                    means_of(generator.normal(0.05, 0.02, n)),
                ),
                strict=True,
            )
        )
        found = credibility_report(risks, n)
        truth = credibility(*(torch.tensor(risk, dtype=torch.float64) for risk in (position, corner, 0.05))).item()
        return held((found["credibility/all/ci_low"], found["credibility/all/ci_high"]), truth)

    return world


def detections(share: float, metric: str) -> Simulation:
    """Share of tokens, or of images, with detections; too few groups of images with detections give no interval."""

    def world(generator: Generator, n: int) -> bool:
        some = generator.random(n) < share
        count = torch.from_numpy((1 + generator.binomial(63, 0.1, n)) * some)
        found = HighNormTokens(n)
        mask = (torch.arange(64).expand(n, -1) < count[:, None]).view(n, 8, 8)
        found.update(LayerTokens.of(torch.ones(n, 1, 8, 8), {"high_norm": mask}))
        values, key = found.compute(), f"{metric}/all"
        truth = share * ((1 + 6.3) / 64 if metric == "high_norm_share" else 1)
        return f"{key}/ci_low" not in values or held((values[f"{key}/ci_low"], values[f"{key}/ci_high"]), truth)

    return world


def flips(generator: Generator, n: int) -> bool:
    """Flip attribution of photographs with different accuracies; the truth is .9."""
    metric = FlipAttribution(8, 8, n)
    effect = generator.normal(0.4, 0.1, n)  # accuracy above the rate of the mirrored coordinate
    rates = np.array([[0.1 + effect, np.full(n, 0.1)], [0.1 + 0.9 * effect + generator.normal(0, 0.03, n), np.full(n, 0.1)]])
    nowhere = torch.zeros(0, 2, dtype=torch.long)
    metric.update(nowhere, nowhere, nowhere[:, 0], rotated=False)  # sums replace tokens
    metric.right += torch.from_numpy(64 * rates).permute(2, 0, 1)
    metric.count += 64
    found = metric.compute()
    return held((found["flip_attribution/all/ci_low"], found["flip_attribution/all/ci_high"]), 0.9)


def ranks(models: int) -> Simulation:
    """ρ of an unrelated risk and harm, over ``models`` networks of n layers at three timesteps."""

    def world(generator: Generator, n: int) -> bool:
        cells = []
        for model in range(models):
            risk, harm = (generator.normal(size=(n, 1)) + 0.6 * generator.normal(size=(n, 3)) for _ in range(2))
            cells += [
                CredibilityCell(
                    str(model), t, str(k), risk[k, t], 0, 0, 0, harm[k, t], 0, generator.normal(), k, generator.random()
                )
                for k in range(n)
                for t in range(3)
            ]
        found = validation([replace(cell, raw=0.5 + 0.1 * cell.raw) for cell in cells], "credibility", "gain").risk
        return held((found.ci_low, found.ci_high), 0.0)

    return world


# --- Tests of many columns -------------------------------------------------------------------------------------------


def family(columns: int, alike: float, effect: float = 0.0, skewed: bool = False) -> Simulation:
    """Whether any of ``columns`` true null hypotheses gets a star; with an effect, whether the first column gets one."""

    def world(generator: Generator, n: int) -> bool:
        values = alike**0.5 * generator.normal(size=(n, 1)) + (1 - alike) ** 0.5 * generator.normal(size=(n, columns))
        if skewed:
            values = stats.gamma(4).ppf(stats.norm.cdf(values)) / 4 - 1
        values[:, 0] += effect
        stars = adjusted_p(values, seed=int(generator.integers(2**31))) < 0.05
        return bool(stars[0] if effect else stars.any())

    return world


LEVELS = (
    Level(
        "accuracy, PCK, δ < 1.25", 0.95, (6, 8, 16, 32),
        {f"true share {truth}, correlation {alike}": share(truth, alike)
         for truth, alike in ((0.57, 0.02), (0.9, 0.1), (0.9, 0.3), (0.98, 0.05), (0.98, 0.3), (0.03, 0.3))},
    ),
    Level("RMSE, relative error", 0.95, (6, 8, 32), {f"gamma {shape}": error(shape) for shape in (1.0, 2.0, 4.0)}),
    Level("R² of content and coordinates", 0.95, (8, 32), {"gamma 4": explained}),
    Level("paired gain", 0.95, (6, 8, 32), {kind: difference(kind) for kind in ("normal", "skewed", "sparse", "rare")}),
    Level(
        "the best of several layers is not called worse", 0.95, (6, 8, 16, 32, 88),
        {f"{kind}, {k} candidates": kept(kind, k) for kind in ("normal", "skewed", "shares") for k in (2, 3, 11, 40)},
    ),
    Level("change of the prediction loss", 0.95, (12, 32, 64), {f"Δ {d}": loss_change(d, 0.5) for d in (0.0, 0.2, 3.0)}),
    Level("displacement of the prediction", 0.95, (12, 32, 64), {"log-normal .5": displacement(0.5)}),
    Level(
        "share of the ceiling, where it has one", 0.95, (12, 32, 64),
        {f"sd {sd}": ceiling_share(sd, 0.2, sd == 1.0) for sd in (0.5, 1.0, 2.0)},
    ),
    Level(
        "re-emergence ρ, where it has one", 0.95, (12, 32, 64),
        {f"accuracy {a}, ρ {rho}": rebuilt(a, rho) for a, rho in ((0.57, 0.0), (0.9, 0.5), (0.9, 1.0), (0.2, 0.5))},
    ),
    Level(
        "shift equivariance", 0.95, (12, 32, 64),
        {f"unmoved {u}, {t}": equivariance(u, t) for u, t in ((0.5, 0.3), (0.01, 0.5))},
    ),
    Level("PSNR of shift equivariance", 0.95, (12, 32, 64), {"log-normal .3": signal_to_noise(0.3)}),
    Level("contrast between different photographs", 0.95, (6, 8, 32), {"different spread": unpaired}),
    *(
        Level(
            f"random weights and gains over them, {seeds} seeds", 0.95, (8, 32),
            {f"sd {a} × {b}, rest {c}": networks(seeds, a, b, c)
             for a, b, c in ((0.04, 0.07, 0.03), (0.04, 0.02, 0.02), (0.0, 0.07, 0.03), (0.01, 0.07, 0.07), (0.1, 0.05, 0.02))},
        )
        for seeds in (3, 5, 10)
    ),
    *(
        Level(
            f"means over pairs, {name}", 0.95, (6, 8, 12, 88),
            {kind: pictures_interval(kind, average) for kind in PAIRS}, "pictures",
        )
        for average, name in (("point", "by keypoint"), ("macro", "by category"))
    ),
    Level("PCK", 0.95, (6, 8, 12, 88), {f"true share {s}": matches_interval(s) for s in (0.03, 0.3)}, "pictures"),
    Level("corner risk", 0.95, (40, 96), {f"r_cor {truth}": corner_interval(truth) for truth in (0.0, 0.05, 0.3)}, "images"),
    Level("V_pos", 0.95, (40, 96), {f"code {s}": variance_interval(s) for s in (0.0, 0.3, 1.0)}, "images"),
    Level(
        "credibility", 0.95, (40, 96),
        {f"r_cor {corner}": credibility_interval(corner, 0.1) for corner in (-0.1, 0.0, 0.02, 0.3)}, "images",
    ),
    *(
        Level(name, 0.95, (40, 96), {f"in {s:.0%} of images": detections(s, key) for s in (0.1, 0.3, 0.8, 0.98)}, "images")
        for name, key in (("share of high-norm tokens", "high_norm_share"), ("share of images with them", "high_norm_images"))
    ),
    Level("flip attribution", 0.95, (8, 32), {"normal": flips}),
    Level("ρ of the credibility validation, one model", 0.95, (10, 40), {"unrelated": ranks(1)}, "layers"),
    Level("ρ of the credibility validation, three models", 0.95, (10,), {"unrelated": ranks(3)}, "layers"),
    Level("any star, 23 mitigations", 0.05, (6, 8, 10, 16, 32), {"correlation .5": family(23, 0.5), "none": family(23, 0.0)}),
    Level("any star, 57 comparisons", 0.05, (32,), {"correlation .5": family(57, 0.5)}),
    Level("star of a mean over pairs", 0.05, (6, 8, 12, 88), {kind: pictures_test(kind) for kind in PAIRS}, "pictures"),
)  # fmt: skip
HEAVY = Level(
    "change and displacement of the prediction, few photographs with most of it (log-normal 1)", 0.95, (12, 32, 64),
    {"Δ .2": loss_change(0.2, 1.0), "Δ 3": loss_change(3.0, 1.0), "displacement": displacement(1.0)},
)  # fmt: skip
POWER = Level("power at 1.5 sd, 23 mitigations", 1.0, (6, 8, 10, 16), {"correlation .5": family(23, 0.5, effect=1.5)})
SKEWED = Level(
    "any star, skewed differences (gamma 4, not exchangeable)",
    0.05,
    (8, 16, 32),
    {"correlation .5": family(23, 0.5, skewed=True)},
)


def table(repeats: int = 1000) -> str:
    """Markdown table: nominal level and simulated level in the worst scenario, for every interval and test and each n."""
    lines = ["| interval or test | nominal | n | simulated, worst scenario |", "|---|---|---|---|"]
    for level in (*LEVELS, HEAVY, SKEWED, POWER):
        found = {n: level.simulated(n, repeats) for n in level.sizes}
        worst = min if level.nominal > 0.5 else max
        shown = [f"{worst(worlds.values()):.3f}".removeprefix("0") for worlds in found.values()]
        nominal = "–" if level is POWER else f"{level.nominal:.2f}".removeprefix("0")
        sizes = ", ".join(str(n) for n in level.sizes)
        lines.append(f"| {level.what} | {nominal} | {sizes} {level.unit} | {', '.join(shown)} |")
    return "\n".join(
        [*lines, "", f"{repeats:,} simulated data sets per scenario and n. A data set without an interval counts as covered."]
    )


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)  # small tensors
    sys.stdout.write(table() + "\n")


if __name__ == "__main__":
    main()

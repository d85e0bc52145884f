"""What people import: position, statistics and correspondence of activation grids of any origin, without a trainer.

Splits, token draws, estimators and metrics are those of ``python train.py``, and so are their random numbers, which are keyed
by names, layers and seeds. With a run's grids, names and seed the numbers are those of its ``metrics.json``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdprobe.estimators import correspondence, layer_statistics
from sdprobe.estimators.grids import ImageGrids, chosen, texts
from sdprobe.estimators.matching import cosines
from sdprobe.estimators.points import keypoints, matches_of
from sdprobe.estimators.position import PositionScores, PositionTask
from sdprobe.estimators.results import METRICS, Result
from sdprobe.estimators.training import PositionTraining
from sdprobe.metrics.correspondence import Correspondence
from sdprobe.metrics.folds import FOLDS, PER_FOLD
from sdprobe.metrics.group_similarity import require_side
from sdprobe.metrics.intervals import present_units
from sdprobe.metrics.matches import Matches
from sdprobe.metrics.networks import Network, merged, renamed
from sdprobe.tokens.keys import label_of
from sdprobe.tokens.mixing import flattened
from sdprobe.tokens.splits import MINIMUM, split_by_photo
from sdprobe.utilities import expect, settings
from sdprobe.utilities.errors import InputError

LEAST = PER_FOLD * FOLDS  # images that statistics measure
Grids = Tensor | np.ndarray | Mapping[str, Any]  # (B, C, h, w), or layer → (B, C, h, w)


def split(photographs: int | Sequence[str], seed: int = 0, protocol: str = "default") -> dict[str, list[int]]:
    """Which images fit mitigations, train probes, validate and test them, as :func:`position` and :func:`statistics` take them.

    Args:
        photographs: name of the photograph of every image, or the number of images if each shows its own. All images of a
            photograph are in one part.
        seed: seed of the split.
        protocol: ``default`` (40 % fit, 32 % train, 8 % val, 20 % test) or ``loos2025`` (the first 80 % train, others
            test).

    Returns:
        ``fit``, ``train``, ``val`` and ``test`` → indices of images.

    Raises:
        InputError: fewer than 10 photographs, or an unknown protocol.

    Example:
        >>> import sdprobe
        >>> {part: len(indices) for part, indices in sdprobe.split(160).items()}
        {'fit': 64, 'train': 51, 'val': 13, 'test': 32}
    """
    expect.one_of("protocol", protocol, ("default", "loos2025"))
    if hasattr(photographs, "__len__"):
        names = texts("photographs", photographs, len(photographs), [])
    else:
        names = [*map(str, range(expect.as_count("photographs", photographs, 0, 10**7)))]
    if len(set(names)) < MINIMUM:
        raise InputError(
            f"Expected at least {MINIMUM} photographs to split, but got {len(set(names))}. Give more images, or choose the "
            "images yourself with train= and test= (fit= and test= for statistics)."
        )
    _check("datamodule", splits=protocol)
    return split_by_photo(names, protocol, seed)


@torch.no_grad()
def position(
    grids: Grids,
    *,
    names: Sequence[str] | None = None,
    photographs: Sequence[str] | None = None,
    seed: int = 0,
    splits: str = "default",
    train: Sequence[int] | None = None,
    test: Sequence[int] | None = None,
    val: Sequence[int] | None = None,
    head: str = "classification",
    solver: str = "closed_form",
    sampling: str = "stratified",
    random_weights: Any = None,
    batch_size: int = 8,
) -> Result:
    """How well a linear map predicts the row and column of a token from its activation.

    Linear heads are trained on some photographs and tested on every token of others. The same heads trained on shuffled labels
    are the control.

    Args:
        grids: activations (B, C, h, w) of one layer, or layer → activations, as ``FrozenSD.activations`` returns them. Any
            network's will do; h and w are at least 2. ``{"mid": grid, "mid__repaired": other}`` also measures the gain of a
            mitigation, paired by photograph.
        names: name of every image, which keys the drawn tokens. The default is the number of the image.
        photographs: name of the photograph that each image shows; crops of one photograph share it. The default is ``names``.
        seed: seed of splits, drawn tokens and controls.
        splits: ``default`` or ``loos2025``, see :func:`split`. Images of ``fit`` are not used.
        train: indices of the training images, in place of ``splits``; then ``test``, too.
        test: indices of the tested images. They must show other photographs than those of ``train``.
        val: indices of validation images, which end the training with Adam; only with ``train``.
        head: ``classification`` (of rows and of columns) or ``regression`` (of two coordinates).
        solver: ``closed_form`` (linear discriminants or ridge regression, in one pass) or ``adam`` (steps until the validation
            loss no longer falls), as with ``probe.solver=``.
        sampling: training tokens: ``stratified`` (64 per image and layer) or ``all``.
        random_weights: grids of the same images through the network with random weights, or a list of such grids, one per seed;
            results of this function are taken, too. None for no such baseline.
        batch_size: images per step of the test; it may change the rounding of sums.

    Returns:
        a :class:`~sdprobe.estimators.results.Result` whose ``value`` is the accuracy in 8 bins per axis (``binned_accuracy``).
        It also has ``axis_accuracy`` and ``cell_accuracy``, and all three for every token group.

    Raises:
        InputError: grids of another rank, with NaN, or of less than 2 × 2 tokens; fewer than 10 photographs; names that do not
            match the images; an option out of range.

    Example:
        >>> import torch, sdprobe
        >>> grids = torch.randn(60, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> grids[:, 0] += 2 * torch.arange(8)  # one channel tells the column
        >>> result = sdprobe.position(grids)
        >>> result.n, result.chance, result.ci_low > result.control.ci_high
        (12, 0.125, True)
    """
    _check("probe=position", head=head, solver=solver)
    _check("datamodule", sampling=sampling, splits=splits)
    seed, batch_size = expect.as_count("seed", seed, *settings.SEEDS), expect.as_count("batch_size", batch_size, 1, 10**6)
    images = ImageGrids.of("grids", grids, names, photographs)
    parts = chosen(images, {"train": train, "test": test}, {"val": val})
    if not parts:
        parts = split(images.photographs, seed, splits)
    for name in ("train", "val"):
        _check_apart(images, parts, name, "test")
    _check_apart(images, parts, "train", "val")
    common = {"head": head, "solver": solver, "sampling": sampling, "seed": seed, "images": parts, "shapes": images.shapes}

    def measured(images: ImageGrids) -> Result:
        tasks = {layer: PositionTask(layer, shape, head == "regression", seed) for layer, shape in images.shapes.items()}
        training = PositionTraining(tasks, images, sampling, seed)
        validated = training.fit(parts["train"], parts.get("val", []), solver)
        scores = PositionScores(tasks, len(images.photos)).to(images.device)
        for batch in map(flattened, images.batches(parts["test"], batch_size)):
            for layer, tokens in batch.tokens.items():
                outputs = training.heads[layer](tokens)
                scores.update(layer, outputs, batch.positions[layer], batch.masks[layer], batch.photo[layer])
        numbers, units = scores.compute()
        tested = len({images.photographs[i] for i in parts["test"]})
        return Result(
            kind="position", metric=METRICS["position"], layers=tuple(tasks), numbers=validated | numbers,
            pseudovalues=present_units(units), n=tested, units="test photographs", split=parts, settings=common,
        )  # fmt: skip

    own = measured(images)
    return _beside(own, _networks(own, random_weights, lambda given: measured(images.like("random_weights", given))))


@torch.no_grad()
def statistics(
    grids: Grids,
    *,
    cropped: Grids | None = None,
    other_noise: Grids | None = None,
    other_timestep: Grids | None = None,
    names: Sequence[str] | None = None,
    photographs: Sequence[str] | None = None,
    seed: int = 0,
    splits: str = "default",
    fit: Sequence[int] | None = None,
    test: Sequence[int] | None = None,
    repeats: int = 16,
    random_weights: Any = None,
    batch_size: int = 8,
) -> Result:
    """How anomalous corner, border and high-norm tokens are, and how much of the activations depends on position.

    The mean token comes from the images of ``fit``, all numbers from the others. ``cropped`` tells whether corners resemble
    each other because of where they are, or because of what they show. Corner risk and credibility need it.

    Args:
        grids: activations (B, C, h, w) of one layer, or layer → activations; h and w are at least 4. See :func:`position`.
        cropped: grids of the same images with a margin cut off on every side *before* the network. It must be a whole number of
            tokens; 64 pixels are one token of Stable Diffusion's coarsest grid.
        other_noise: grids of the same images with another noise tensor.
        other_timestep: grids of the same images at another noise level.
        names: name of every image; the default is its number.
        photographs: name of the photograph that each image shows. The default is ``names``.
        seed: seed of splits and of the tokens drawn for rank correlations.
        splits: ``default`` (40 % of the photographs fit, the others are measured) or ``loos2025``, see :func:`split`.
        fit: indices of the images that give the mean token, in place of ``splits``; then ``test``, too.
        test: indices of the measured images, at least 40, in the order of their groups for intervals.
        repeats: images of ``other_noise`` and ``other_timestep`` that are compared, the first ones of the measured images.
        random_weights: results of this function on the network with random weights, one or a list with one per seed. Without
            ``cropped``, ``other_noise`` and ``other_timestep`` it may be grids.
        batch_size: images per step; it may change the rounding of sums.

    Returns:
        a :class:`~sdprobe.estimators.results.Result` whose ``value`` is the credibility, from 0 to 1, or without
        ``cropped`` the position risk ``r_pos``. It has all numbers of ``probe=statistics`` except the comparison with the VAE's
        variance and with hand labels.

    Raises:
        InputError: grids of another rank, with NaN, or of less than 4 × 4 tokens; fewer than 40 images to measure; views that
            do not match ``grids``; names that do not match the images; an option out of range.

    Example:
        >>> import torch, sdprobe
        >>> grids = torch.randn(70, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> result = sdprobe.statistics(grids + torch.linspace(0, 2, 8))  # the mean of a token depends on its column
        >>> result.metric, result.n, 0.2 < result.value < 0.4
        ('r_pos', 42, True)
    """
    _check("datamodule", splits=splits)
    seed, batch_size = expect.as_count("seed", seed, *settings.SEEDS), expect.as_count("batch_size", batch_size, 1, 10**6)
    repeats = expect.as_count("repeats", repeats, 0, 10**6)
    views = {"cropped": cropped, "other_noise": other_noise, "other_timestep": other_timestep}
    images = ImageGrids.of("grids", grids, names, photographs)
    parts = chosen(images, {"fit": fit, "test": test})
    if not parts:
        found = split(images.photographs, seed, splits)
        parts = {"fit": found["fit"] or found["train"], "test": [*found["train"], *found["val"], *found["test"]]}
    tested = parts["test"]
    if len(tested) < LEAST:
        raise InputError(
            f"Expected grids of enough images to measure {LEAST}, but got {len(images)} images, of which {len(tested)} are "
            f"measured, since others give the mean token. Give about {-(-LEAST * len(images) // max(len(tested), 1))} images."
        )
    _check_apart(images, parts, "fit", "test")
    for _, height, width in images.shapes.values():
        require_side(height, width)
    shown = {name: images.like(name, given, resized=name == "cropped") for name, given in views.items() if given is not None}
    margins = _margins(images, shown["cropped"]) if "cropped" in shown else dict.fromkeys(images.shapes)
    common = {"views": [*shown], "repeats": repeats, "seed": seed, "images": parts, "shapes": images.shapes}
    notes: tuple[str, ...] = () if "cropped" in shown else ("Corner risk and credibility: not measured. Pass cropped=.",)
    photographs_measured = len({images.photographs[i] for i in tested})
    if photographs_measured < FOLDS:
        notes += (f"Intervals are too narrow: the images show {photographs_measured} photographs, fewer than {FOLDS} groups.",)

    def measured(images: ImageGrids) -> Result:
        measures = layer_statistics.measured(images, shown, margins, parts["fit"], tested, repeats, seed, batch_size)
        numbers, units = layer_statistics.reported(measures)
        metric = METRICS["statistics"] if "cropped" in shown else "r_pos"
        return Result(
            kind="statistics", metric=metric, layers=tuple(measures), numbers=numbers, pseudovalues=present_units(units),
            n=len(tested), units=f"images in {FOLDS} groups", split=parts, notes=notes, settings=common,
        )  # fmt: skip

    def random(given: Any) -> Result:
        if shown:
            raise InputError(
                f"Expected random_weights to be results of sdprobe.statistics, since {' and '.join(shown)} was given, but got "
                f"{type(given).__name__}. Call it for every random network with its own views, and pass what it returns."
            )
        return measured(images.like("random_weights", given))

    own = measured(images)
    return _beside(own, _networks(own, random_weights, random))


@torch.no_grad()
def match(
    grids_a: Grids,
    grids_b: Grids,
    points_a: Any,
    points_b: Any,
    *,
    size: int,
    boxes_b: Any = None,
    pictures_a: Sequence[Any] | None = None,
    pictures_b: Sequence[Any] | None = None,
    categories: Sequence[str] | None = None,
    seed: int = 0,
    enlarged: bool = True,
    random_weights: Any = None,
) -> Result:
    """How often the token of picture b that is most similar to the one under a point of picture a lies at the same part.

    Tokens are compared by cosine, without training, as with ``probe=correspondence probe.head=none``. The P pairs are those of
    ``grids_a[k]`` and ``grids_b[k]``.

    Args:
        grids_a: activations (P, C, h, w) of the source pictures, with h = w, or layer → activations.
        grids_b: activations of the target pictures, of the same layers and shapes.
        points_a: for each pair, points (x, y) in pixels of picture a: an array (K, 2), or (P, K, 2) for all.
        points_b: the corresponding points in picture b.
        size: side of the pictures in pixels, as the network got them.
        boxes_b: (P, 4), (x0, y0, x1, y1) of the object in picture b, in pixels. A match is correct within 0.10 of the longer
            side of this box. None takes the whole picture.
        pictures_a: number or name of every source picture; equal ones are one picture. Intervals are over pictures. The default
            is that all are different.
        pictures_b: number or name of every target picture.
        categories: of every pair; the default is one for all.
        seed: of random masks and resampling.
        enlarged: also match on grids enlarged to the size of the picture, as DIFT does, which takes longer.
        random_weights: (``grids_a``, ``grids_b``) of the network with random weights, or a list of such pairs, one per seed;
            results of this function are taken, too. None for no such baseline.

    Returns:
        a :class:`~sdprobe.estimators.results.Result` whose ``value`` is PCK@0.10 (``pck_ours_point_0.10``), the share of
        correct points. Its ``chance`` is that of a random point, its ``control`` that of the source's own position. It has the
        numbers of ``probe=correspondence``.

    Raises:
        InputError: grids of another rank, with NaN, or not square; points outside the pictures, or of another number than their
            partners; names, boxes or categories that do not match the pairs; fewer than 2 points.

    Example:
        >>> import torch, sdprobe
        >>> grids = torch.randn(12, 8, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> points = 64 * torch.rand(12, 5, 2, generator=torch.Generator().manual_seed(1))
        >>> sdprobe.match(grids, grids, points, points, size=64).value  # every picture beside itself
        1.0
    """
    size, seed = expect.as_count("size", size, 1, expect.LARGEST), expect.as_count("seed", seed, *settings.SEEDS)
    sources, targets = ImageGrids.of("grids_a", grids_a), ImageGrids.of("grids_b", grids_b)
    targets.check_like(sources, "grids_b", "grids_a")
    for layer, (_, height, width) in sources.shapes.items():
        if height != width:
            raise InputError(f"Expected grids_a to be square, but got {height}×{width} at {layer}. Use square pictures.")
    points = keypoints(len(sources), points_a, points_b, size, boxes_b, pictures_a, pictures_b, categories).to(sources.device)

    pixels = torch.cat([points.source_point, points.target_point, points.target_box], 1).tolist()
    common = {"points": pixels, "size": size, "seed": seed, "shapes": sources.shapes}
    reports = Correspondence(points, seed)

    def measured(sources: ImageGrids, targets: ImageGrids) -> Result:
        measures = {layer: Matches(h, ("test",), len(points)).to(sources.device) for layer, (_, h, _) in sources.shapes.items()}
        for batch in matches_of(sources, targets, points):
            for layer, matches in measures.items():
                similarity = cosines(batch.source[layer], batch.target[layer])
                correspondence.add(matches, layer, batch, {"test": similarity}, points, seed)
                if enlarged and not label_of(layer):  # variants are evaluated by one protocol
                    correspondence.add_pixels(matches, layer, batch, points)
        numbers, units = correspondence.reported(reports, measures, "test")
        hits = {layer: reports.correct(matches, "test") for layer, matches in measures.items()}
        pictures = len(torch.cat([points.source, points.target]).unique())
        notes = () if boxes_b is not None else ("Distances are shares of the picture's side, since boxes_b was not given.",)
        return Result(
            kind="correspondence", metric=METRICS["correspondence"], layers=tuple(measures), numbers=numbers,
            pseudovalues=units, n=pictures, units="pictures", notes=notes, hits=hits, settings=common,
        )  # fmt: skip

    def random(given: Any) -> Result:
        if not isinstance(given, tuple) or len(given) != 2:
            raise InputError(
                "Expected random_weights to be (grids_a, grids_b) or a list of such pairs, but got "
                f"{type(given).__name__}. Put both into parentheses."
            )
        return measured(sources.like("random_weights", given[0]), targets.like("random_weights", given[1]))

    own = measured(sources, targets)
    networks = _networks(own, random_weights, random)
    gains = correspondence.over_networks(reports, own.hits, [network.hits for network in networks]) if networks else {}
    return _beside(own, networks, gains)


def _check(section: str, **values: Any) -> None:
    """Check arguments by the rules of settings of the same names."""
    for name, value in values.items():
        settings.rules(section)[name](name, value)


def _check_apart(images: ImageGrids, parts: Mapping[str, Sequence[int]], one: str, other: str) -> None:
    """Raises InputError if two parts have a photograph in common."""
    both = set.intersection(*({images.photographs[i] for i in parts.get(part, [])} for part in (one, other)))
    if both:
        raise InputError(
            f"Expected {other} to show other photographs than {one}, but {len(both)} are in both, such as {min(both)}. "
            "Leave them out of one."
        )


def _margins(images: ImageGrids, cropped: ImageGrids) -> dict[str, int | None]:
    """Layer → tokens that were cut off on every side."""
    margins: dict[str, int | None] = {}
    for layer, (_, *sides) in images.shapes.items():
        lost = [side - other for side, other in zip(sides, cropped.shapes[layer][1:], strict=True)]
        if lost[0] != lost[1] or lost[0] < 2 or lost[0] % 2:
            raise InputError(
                f"Expected cropped to lack the same number of tokens on every side, but layer {layer} has "
                "{}×{} instead of {}×{}. Crop the images by a whole number of tokens; 64 pixels are one of "
                "Stable Diffusion's coarsest.".format(*cropped.shapes[layer][1:], *sides)
            )
        require_side(*cropped.shapes[layer][1:])
        margins[layer] = lost[0] // 2
    return margins


def _networks(own: Result, given: Any, measure: Callable[[Any], Result]) -> list[Result]:
    """Results of the networks with random weights; those that are grids are measured."""
    several = given if isinstance(given, list) else [] if given is None else [given]
    results = [each if isinstance(each, Result) else measure(each) for each in several]
    for other in results:
        sizes = [{layer: len(hits) for layer, hits in each.hits.items()} for each in (own, other)]
        unlike = [name for name, value in own.settings.items() if other.settings.get(name) != value]
        if (other.kind, other.layers, other.n) != (own.kind, own.layers, own.n) or (sizes[0] != sizes[1] and not unlike):
            raise InputError(
                f"Expected random_weights to be measured as the network is ({own.kind} at {', '.join(own.layers)}, {own.n} "
                f"{own.units}), but got {other.kind} at {', '.join(other.layers)}, {other.n} {other.units}. Use the same "
                "images, names and layers."
            )
        if unlike:
            raise InputError(
                f"Expected random_weights to be measured with the same {' and '.join(unlike)} as the network, but got others. "
                "Repeat the call with the grids of the random network alone."
            )
    return results


def _beside(own: Result, networks: Sequence[Result], gains: Mapping[str, float] | None = None) -> Result:
    """The result with the random-weights baseline."""
    found = [Network(renamed(each.numbers), renamed(each.pseudovalues)) for each in networks]
    return replace(own, numbers={**own.numbers, **merged(found), **(gains or {})}, networks=len(networks))

"""Fitted mitigations on disk: tensors in ``mitigation.safetensors``, settings and provenance in ``mitigation.json``.

Weights are read from safetensors only. Classes are looked up by name among those of this package.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdprobe.mitigations.base import Chain, Configured, Extraction, Map, Mitigation
from sdprobe.mitigations.channel_discard import ChannelDiscard
from sdprobe.mitigations.controls import EmptyImage, PcaDrop, RandomRank, ShuffledPosition
from sdprobe.mitigations.extractions import Canvas, PaddingSwap, ShiftFlipNoise
from sdprobe.mitigations.leace import Leace
from sdprobe.mitigations.outlier_tokens import OutlierTokens
from sdprobe.mitigations.position_mean import PositionMean
from sdprobe.mitigations.shift_anova import ShiftAnova
from sdprobe.mitigations.standardize import Standardize
from sdprobe.utilities.errors import InputError, Unfit
from sdprobe.utilities.fits import check_bound, find_fit, intact, read_fit, write_fit
from sdprobe.utilities.signatures import declared, fits, spoken

NAME = "mitigation"
# what a record may name; no other class is ever made from a file
KINDS: dict[str, type[Mitigation | Extraction]] = {
    kind.__name__: kind
    for kind in (
        Canvas, ChannelDiscard, EmptyImage, Leace, OutlierTokens, PaddingSwap, PcaDrop, PositionMean, RandomRank, ShiftAnova,
        ShiftFlipNoise, ShuffledPosition, Standardize,
    )
}  # fmt: skip


def save(folder: str | Path, fitted: Mapping[str, Chain | Map], extraction: Extraction | None = None, **fitted_on: Any) -> None:
    """Write fitted mitigations of one or several layers into a folder. All layers must have the same mitigations.

    Args:
        folder: created if it does not exist.
        fitted: layer → map, or chain of maps.
        extraction: how the network was shown images before the chains, if it was shown them differently.
        **fitted_on: what a later use must agree with (see :func:`load`), such as ``timestep=50, **sd.describe()``; and
            ``images``, digests of the fit images. JSON-serialisable.

    Example:
        >>> import tempfile, torch
        >>> from sdprobe import mitigations
        >>> fitted = mitigations.PcaDrop().fit([torch.randn(4, 8, 4, 4)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mitigations.save(folder, {"mid": fitted}, timestep=50)
        ...     chains = mitigations.load(folder, timestep=50)
        >>> chains["mid"].transform(torch.randn(1, 8, 4, 4)).shape
        torch.Size([1, 8, 4, 4])
    """
    chains = {
        layer: mitigation.maps if isinstance(mitigation, Chain) else (mitigation,) for layer, mitigation in fitted.items()
    }
    state = {
        f"{layer}/maps.{number}.{name}": tensor
        for layer, maps in chains.items()
        for number, fit in enumerate(maps)
        for name, tensor in ({"seen": torch.tensor(fit.seen)} | dict(fit.fitted)).items()
    }
    record = {
        "mitigations": named([extraction, *(fit.settings for fit in next(iter(chains.values())))]),
        "layers": {layer: [fit.describe() for fit in maps] for layer, maps in chains.items()},
        "fitted_on": fitted_on,
    }
    write_fit(Path(folder), NAME, state, record)


def named(steps: Sequence[Configured | None]) -> list[dict[str, Any]]:
    """Name and options of every step; None is left out."""
    return [{"name": type(step).__name__, "options": step.options} for step in steps if step]


def load(folder: str | Path, **expected: Any) -> dict[str, Chain]:
    """Read fitted mitigations.

    Args:
        folder: where :func:`save` wrote, or a run folder.
        **expected: what your grids come from, such as ``timestep=50, **sd.describe()``. Each name that the file records, too,
            must have the same value there. Device, precision and model path are not compared.

    Returns:
        layer → fitted chain, whose ``transform`` maps grids (B, C, h, w) of that layer.

    Raises:
        InputError: no saved mitigation, a damaged one, or one that was fitted on something else.

    Example:
        >>> import tempfile, torch
        >>> from sdprobe import mitigations
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mitigations.save(folder, {"mid": mitigations.Standardize().fit([torch.randn(4, 8, 4, 4)])})
        ...     print(list(mitigations.load(folder)))
        ['mid']
    """
    return read(folder, expected)[1]


def read(folder: str | Path, expected: dict[str, Any]) -> tuple[Extraction | None, dict[str, Chain], dict[str, Any]]:
    """Extraction, layer → chain, and what they were fitted on. Raises InputError as :func:`load` does."""
    path = find_fit(folder, NAME, "Give the folder of a run that fitted a mitigation.")
    with intact(NAME, path):
        record, state = read_fit(path, NAME)
        if unknown := [entry["name"] for entry in record["mitigations"] if entry["name"] not in KINDS]:
            raise Unfit(f"no mitigation is called {unknown[0]}")
        steps = [_made(entry["name"], entry["options"]) for entry in record["mitigations"]]
        fitted_on, layers = dict(record["fitted_on"]), list(record["layers"])
    check_bound(NAME, path, fitted_on, expected)
    extraction = next((step for step in steps if isinstance(step, Extraction)), None)
    mitigations = [step for step in steps if isinstance(step, Mitigation)]
    try:
        chains = {layer: _chain(layer, mitigations, state) for layer in layers}
        if state:
            raise KeyError(min(state))
    except KeyError as error:
        raise InputError(
            f"Expected {path / NAME}.safetensors to fit its record, but only one of them has {error}. Fit it again."
        ) from error
    return extraction, chains, fitted_on


def _made(name: str, options: Mapping[str, Any]) -> Mitigation | Extraction:
    """A mitigation of these options; raises Unfit if one is of another type than its argument."""
    for option, hint in declared(KINDS[name]).items():
        if option in options and not fits(options[option], hint):
            raise Unfit(f"{option} of {name} is not {spoken(hint)}")
    return KINDS[name](**options)


def _chain(layer: str, mitigations: Sequence[Mitigation], state: dict[str, Tensor]) -> Chain:
    """The chain of a layer, whose tensors are taken out of ``state``; raises KeyError where one is missing."""
    maps = []
    for number, mitigation in enumerate(mitigations):
        seen, *fitted = (state.pop(f"{layer}/maps.{number}.{name}") for name in ("seen", *mitigation.fitted))
        if seen.numel() != 1 or not 0 <= float(seen) < 2**53:
            raise KeyError(f"{layer}/maps.{number}.seen that is a number of images")
        maps.append(Map(mitigation, int(seen), dict(zip(mitigation.fitted, fitted, strict=True))))
        if not _is_usable(maps[-1]):
            raise KeyError(f"{layer}/maps.{number} that can be applied")
    return Chain(tuple(maps))


def _is_usable(fitted: Map) -> bool:
    """Whether tensors of a file have the shapes of such a map: it is tried on an empty grid."""
    try:
        channels = 1 if fitted.settings.fit_images == 0 else len(fitted.fitted[fitted.settings.fitted[0]])
        mapped = fitted.transform(torch.zeros(1, channels, 4, 4))
        described = [value for value in fitted.describe().values() if isinstance(value, int | float)]
    except (InputError, RuntimeError, LookupError, TypeError, ValueError):  # torch has no kind of its own for shapes
        return False
    return bool(mapped.isfinite().all()) and all(map(math.isfinite, described))


class Saved(Configured):
    """``mitigation=saved``: use what an earlier run fitted, without fitting again.

    In your own code, call :func:`load` instead.

    Args:
        folder: a run folder, or the folder that holds ``mitigation.safetensors``.

    Example:
        >>> from sdprobe.mitigations import Saved
        >>> Saved("outputs/2026-01-31/12-00-00-000000").folder
        'outputs/2026-01-31/12-00-00-000000'
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

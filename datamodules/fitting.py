"""Fitting mitigations: one pass over the fit images for all that look at them alike; a fit that is known is read. Step 6."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from datamodules.stream import ActivationStream
from datamodules.ways import Way, grids_of
from mitigations.mitigation import Mitigation
from mitigations.views import View
from tokens.batch import GridBatch
from tokens.errors import InputError
from tokens.io import DamagedFile, read_tensors, write_tensors

# of fits, for given images and weights: the network's pass and what is fitted to it; raise it when a fitted map changes
VERSION = 1


def digest(text: str) -> str:
    """Short digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fit_or_recall(ways: Sequence[Way], stream: ActivationStream, fit: Sequence[int], fitted_on: dict[str, Any]) -> None:
    """Fit every chain, or read the same fit from the cache.

    Args:
        ways: with unfitted chains.
        stream: raw activations.
        fit: indices of the fit images.
        fitted_on: what the fit depends on besides the mitigations and the layers.
    """
    options = [(way.label, [(type(s).__name__, s.options) for s in (way.extraction, *way.templates) if s]) for way in ways]
    backbone = f"{stream.backbone.describe()} {stream.backbone.encoder.key(stream.seed)}"
    key = digest(f"{fitted_on} {options} {list(stream.layers)} {stream.seed} {backbone} {VERSION}")
    file = stream.store.cache.root / "mitigations" / f"{key}.safetensors"
    device = stream.backbone.device
    with suppress(OSError, DamagedFile, RuntimeError, KeyError):
        _recall(ways, read_tensors(file)[0], device)
        return
    for depth in range(max(len(way.templates) for way in ways)):
        _round(ways, depth, stream, fit)
    _remember(ways, file)


def _remember(ways: Sequence[Way], file: Path) -> None:
    """A cache that cannot be written costs a fit next time, nothing else."""
    state = {
        f"{way.label}/{layer}/{name}": value
        for way in ways
        for layer, chain in way.chains.items()
        for name, value in chain.state_dict().items()
    }
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(file, state)


def _recall(ways: Sequence[Way], state: dict[str, torch.Tensor], device: torch.device) -> None:
    for way in ways:
        for layer, chain in way.chains.items():
            start = f"{way.label}/{layer}/"
            chain.load_state_dict({key.removeprefix(start): v for key, v in state.items() if key.startswith(start)})
            chain.to(device)


def _round(ways: Sequence[Way], depth: int, stream: ActivationStream, fit: Sequence[int]) -> None:
    """Fit the mitigation number ``depth`` of every chain; those that are shown the same views share the passes."""
    groups: dict[tuple[str | None, tuple[View, ...]], list[Way]] = defaultdict(list)
    for way in ways:
        step = way.templates[depth] if depth < len(way.templates) else None
        if isinstance(step, Mitigation) and step.fit_images != 0:
            groups[way.label if way.extraction else None, step.fit_views].append(way)
    for (own, views), members in groups.items():
        if own is not None and views != (View(),):
            raise InputError(
                f"Expected {type(members[0].templates[depth]).__name__} not to stand behind "
                f"{type(members[0].extraction).__name__}, since it is fitted on passes of its own. Leave one of them out."
            )
        wanted = [_wanted(way, depth, fit) for way in members]
        for start in track(range(0, max(wanted), stream.batch_size), "fitting mitigations", transient=True):
            indices = fit[start : min(start + stream.batch_size, max(wanted))]
            streams = [stream.viewed(view) for view in views]
            shown = [grids_of(members[0].extraction, each, indices) for each in streams]
            for way, count in zip(members, wanted, strict=True):
                _update(way, depth, shown, count - start)
        for way in members:
            for chain in way.chains.values():
                chain.maps[depth].finish()  # type: ignore[operator]


def _wanted(way: Way, depth: int, fit: Sequence[int]) -> int:
    step = way.templates[depth]
    limit = step.fit_images if isinstance(step, Mitigation) else 0
    return len(fit) if limit is None else min(limit, len(fit))


def _update(way: Way, depth: int, shown: Sequence[GridBatch], images: int) -> None:
    """Give the first so many images of a batch to the fits of a chain, behind what is already fitted."""
    if images > 0:
        for layer, chain in way.chains.items():
            grids = [chain.transform(batch.grids[layer][:images], depth) for batch in shown]
            chain.maps[depth].update(*grids)  # type: ignore[operator]

"""Mitigations between the stream and whoever reads it: fitted once, on fit images only, then applied to every grid. Step 6."""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.fitting import digest, fit_or_recall
from datamodules.stream import ActivationStream
from datamodules.ways import Way, grids_of
from mitigations.chain import Chain
from mitigations.configured import Configured
from mitigations.mitigation import Mitigation
from mitigations.saved import check_layers, read, save
from mitigations.views import View
from tokens.batch import GridBatch
from tokens.errors import InputError
from tokens.keys import base_of, is_label

log = logging.getLogger(__name__)
# of FrozenSD.describe(): what a mitigation is bound to
BOUND = ("unet_hash", "vae_hash", "text_hash", "schedule_hash", "noise", "vae_input", "posterior", "scaled_again", "padding")
# digests of the code that draws scenes and textures: they stood where VERSION 1 stands now in the names of a fit's pictures
EARLIER = ("ce2e52d1616d286d", "da5bda511a79")


class Mitigations:
    """What a data module is asked to do about position, corners and norms.

    Args:
        settings: label → mitigation, in order.
        compare: give every layer a variant per mitigation (``mid__leace``) beside the layer itself; otherwise all of them
            apply one after the other, in the layers' own place.

    Raises:
        InputError: an order that makes no sense, comparing nothing, a label that keys cannot hold.
    """

    def __init__(self, settings: Mapping[str, Configured] | None = None, compare: bool = False) -> None:
        steps = dict(settings or {})
        if compare and not steps:
            raise InputError("Expected mitigations to compare, but got none. Use mitigation=[standardize,position_mean].")
        if compare and (taken := [label for label in steps if not is_label(label)]):
            raise InputError(
                f"Expected labels of compared mitigations to have no '/' and not to look like a timestep, but got '{taken[0]}'."
                " Rename it."
            )
        self.compare = compare
        if compare:
            self.ways = [Way("", []), *(Way(label, [step]) for label, step in steps.items())]
        else:
            self.ways = [Way("", list(steps.values()))]

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.compare and not self.ways[0].templates and self.ways[0].extraction is None

    @property
    def fits(self) -> bool:
        """Whether fit images are needed."""
        return any(way.fits() for way in self.ways)

    def shapes(self, shapes: dict[str, tuple[int, int, int]]) -> dict[str, tuple[int, int, int]]:
        """Shapes of the layers and, where variants are compared, of every variant."""
        return {way.name(layer): shape for layer, shape in shapes.items() for way in self.ways}

    def prepare(self, stream: ActivationStream, used: Sequence[int], fit: Sequence[int]) -> None:
        """Encode what passes of other views will need; ``fit`` images as the fits are shown them."""
        size = stream.store.images.size
        for way in self.ways:
            if way.extraction:
                for view in way.extraction.views(size):
                    stream.viewed(view).prepare([*used, *(fit if way.fits() else [])])
            for step in way.templates:
                if isinstance(step, Mitigation):
                    for view in set(step.fit_views) - {View()}:
                        stream.viewed(view).prepare(fit[: step.fit_images])

    def fit(self, stream: ActivationStream, fit: Sequence[int], test: Sequence[int]) -> None:
        """Fit everything on the images ``fit``, one pass for all that look at plain images; or read what was fitted before.

        Raises:
            InputError: nothing to fit on, fit images that are tested, a saved state of something else.
        """
        if self.idle or any(way.chains for way in self.ways):
            return
        if self.fits and not fit:
            raise InputError(
                "Expected images to fit a mitigation on, but this protocol has none. Use protocol=default, or "
                "mitigation=saved mitigation.saved.folder=RUN."
            )
        images = stream.store.images
        fitted_on = _circumstances(stream) | {"images": [digest(_picture(images.content_key(i))) for i in fit]}
        tested = {digest(name) for i in test for name in _names(images.content_key(i))}
        for way in self.ways:
            if way.saved:
                _read(way, stream, tested)
            else:
                _begin(way, stream, fitted_on)
        if self.fits:
            _check_apart([images.photo(i) for i in fit], [images.photo(i) for i in test])
            content = digest("".join(images.content_key(i) for i in fit))
            fit_or_recall([way for way in self.ways if not way.saved], stream, fit, fitted_on | {"content": content})
            log.info("Fitted mitigations on %d images.", len(fit))

    def through(self, stream: ActivationStream) -> "ActivationStream | MitigatedStream":
        """The stream behind the mitigations."""
        return stream if self.idle else MitigatedStream(self, stream)

    def save(self, folder: Path) -> None:
        """Write what is fitted, with what it was fitted on."""
        for way in self.ways:
            if any(chain.maps for chain in way.chains.values()):
                save(folder / "mitigation" / way.label, way.chains, way.extraction, **way.fitted_on)

    def describe(self, size: int) -> dict[str, Any]:
        """Label → what :meth:`Way.describe` says of a chain."""
        return {} if self.idle else {way.label or "none": way.describe(size) for way in self.ways}


class MitigatedStream:
    """An :class:`ActivationStream` behind fitted mitigations: the same calls, other grids.

    Token groups are those of the grids before anything is fitted to them.
    """

    def __init__(self, mitigations: Mitigations, stream: ActivationStream) -> None:
        self.mitigations, self.stream = mitigations, stream
        self.photos, self.labels, self.store = stream.photos, stream.labels, stream.store

    @property
    def batch_size(self) -> int:
        """Images per U-Net pass; the stream may halve it."""
        return self.stream.batch_size

    def __call__(self, indices: Sequence[int]) -> Iterator[GridBatch]:
        """Batches of at most ``batch_size`` images, in order."""
        start = 0
        while start < len(indices):
            chunk = indices[start : start + self.stream.batch_size]
            yield self._batch(chunk)
            start += len(chunk)

    def _batch(self, indices: Sequence[int]) -> GridBatch:
        grids, masks, shown = {}, {}, {}
        known: dict[View, GridBatch] = {}
        for way in self.mitigations.ways:
            source = way.label if way.extraction else ""
            if source not in shown:
                shown[source] = grids_of(way.extraction, self.stream, indices, known)
            for layer, grid in shown[source].grids.items():
                grids[way.name(layer)] = way.chains[layer].transform(grid)
                masks[way.name(layer)] = shown[source].masks[layer]
        batch = next(iter(shown.values()))
        order = sorted(grids, key=lambda name: self.stream.layers.index(base_of(name)))
        return GridBatch({n: grids[n] for n in order}, {n: masks[n] for n in order}, batch.image, batch.photo)


def _begin(way: Way, stream: ActivationStream, fitted_on: dict[str, Any]) -> None:
    """Unfitted maps for every layer."""
    for step in way.templates:
        if isinstance(step, Mitigation):
            step.size = stream.store.images.size
    way.fitted_on = fitted_on
    way.chains = {layer: Chain([copy.deepcopy(step) for step in way.templates]) for layer in stream.layers}  # type: ignore[misc]


def _read(way: Way, stream: ActivationStream, tested: set[str]) -> None:
    """Saved maps for every layer; ``tested`` are digests of the pictures that they must not have been fitted on."""
    if len(way.templates) > 1 or way.extraction:
        raise InputError("Expected mitigation=saved alone, but got it in a list. Fit the others anew instead.")
    folder, expected = way.templates[0].options["folder"], _circumstances(stream)
    way.extraction, chains, way.fitted_on = read(folder, expected)
    if lacking := sorted({*expected, "images"} - set(way.fitted_on)):
        raise InputError(
            f"Expected the mitigation in {folder} to say what it was fitted on, but it does not name {', '.join(lacking)}. "
            "Save it by a run, or use it in your own code."
        )
    check_layers(list(chains), stream.layers, folder)
    if both := tested & set(way.fitted_on["images"]):
        raise InputError(
            f"Expected images that the mitigation in {folder} was not fitted on, but {len(both)} of the tested ones are among "
            "its fit images. Test on others."
        )
    way.chains = {layer: chains[layer].to(stream.backbone.device) for layer in stream.layers}


def _picture(key: str) -> str:
    """What of an item's content key says which picture it shows, at any size and in any crop."""
    parts = key.split(":")
    return ":".join(parts[: {"file": 2, "scenes": 4}.get(parts[0], len(parts))])


def _names(key: str) -> set[str]:
    """Names of the picture an item shows: today's, and those that mitigations saved before there were VERSIONs may hold."""
    name = _picture(key)
    return {name, *(f"{name}:".replace(":1:", f":{code}:", 1).removesuffix(":") for code in EARLIER)}


def _check_apart(fit: Sequence[str], test: Sequence[str]) -> None:
    """Raises InputError where a photograph is fitted on and tested."""
    both = set(fit) & set(test)
    if both:
        raise InputError(
            f"Expected mitigations to be fitted on images that are not tested, but {len(both)} photographs are in both, "
            f"such as {min(both)}. Use protocol=default."
        )


def _circumstances(stream: ActivationStream) -> dict[str, Any]:
    """What a mitigation is bound to besides its layer."""
    described = stream.backbone.describe()
    found = {key: described[key] for key in BOUND if key in described}
    vae = stream.backbone.encoder.vae.config
    found |= {"timestep": stream.timestep, "prompt": stream.prompt, "size": stream.store.images.size}
    found |= {"vae_scale": f"{vae.scaling_factor}, {vae.shift_factor}"}
    return found | ({"noise_seed": stream.seed} if described["noise"] in ("shared", "rolled") else {})

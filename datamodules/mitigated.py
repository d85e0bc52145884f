"""Mitigations of a stream: fitted once, on fit images only, then applied to every grid.

Data path step 6. One pass over the fit images fits all mitigations that need the same views. Stored fits are loaded.
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from datamodules.stream import ActivationStream
from datamodules.variants import Variant, extract
from sdprobe.backbones.unet import Edit
from sdprobe.mitigations.base import Chain, Configured, Extraction
from sdprobe.mitigations.energy import random_energy
from sdprobe.mitigations.saved import named, read, save
from sdprobe.tokens.batch import GridBatch, joined
from sdprobe.tokens.keys import cells, energy_control, is_label, place_of, unmitigated
from sdprobe.tokens.views import View
from sdprobe.utilities import progress
from sdprobe.utilities.distributed import Processes
from sdprobe.utilities.errors import InputError

log = logging.getLogger(__name__)
# entries of FrozenSD.describe() that have to be equal where a fitted mitigation is used
BOUND = (
    "unet_hash", "vae_hash", "text_hash", "schedule_hash", "noise", "vae_input", "posterior", "scaled_again", "padding",
    "position",
)  # fmt: skip
# digests of the code that draws scenes and textures: mitigations saved by older versions have them in place of VERSION 1
EARLIER = ("ce2e52d1616d286d", "da5bda511a79")
# of fits, for given images and weights; raise it when a fitted map changes
VERSION = 1


class Mitigations:
    """The mitigations of a data module.

    Args:
        settings: label → mitigation, in order.
        compare: give every layer a variant per mitigation (``mid__leace``) beside the layer itself. Otherwise all of them are
            applied one after the other, and replace the layer.
        inside: the layer that they are fitted on and applied to while the network runs; empty to apply them to every layer
            after it is read.
        controls: where variants are compared, also give every variant with maps its control of equal energy, see
            :func:`~sdprobe.mitigations.energy.random_energy`. All images share its directions, as they share a map.
        seed: of these directions.

    Raises:
        InputError: an impossible order, ``compare`` or ``inside`` without mitigations, a label that keys cannot contain, a
            mitigation that is no map and cannot be applied inside.
    """

    def __init__(
        self,
        settings: Mapping[str, Configured] | None = None,
        compare: bool = False,
        inside: str = "",
        controls: bool = False,
        seed: int = 0,
    ) -> None:
        steps, self.inside = dict(settings or {}), inside
        if inside:
            _check_maps(steps)
        if compare and not steps:
            raise InputError("Expected mitigations to compare, but got none. Use mitigation=[standardize,position_mean].")
        if compare and (taken := [label for label in steps if not is_label(label)]):
            raise InputError(
                "Expected labels of compared mitigations to have no '/', not to look like a timestep and not to end with "
                f"'__random_energy', but got '{taken[0]}'. Rename it."
            )
        self.steps, self.controls, self.seed = steps, compare and controls, seed
        if compare:
            self.variants = [Variant("", []), *(Variant(label, [step]) for label, step in steps.items())]
        else:
            self.variants = [Variant("", list(steps.values()))]

    @property
    def is_identity(self) -> bool:
        """Whether there are no mitigations."""
        return not self.steps

    @property
    def needs_fit(self) -> bool:
        """Whether any mitigation needs fit images."""
        return any(variant.needs_fit() for variant in self.variants)

    def shapes(self, shapes: dict[str, tuple[int, int, int]]) -> dict[str, tuple[int, int, int]]:
        """Return name → (C, h, w) of the layers and, where variants are compared, of variants and controls."""
        return {
            name: shape for layer, shape in shapes.items() for variant in self.variants for name in self.names(variant, layer)
        }

    def names(self, variant: Variant, layer: str) -> list[str]:
        """Return the names of a variant of a layer and, where it has one, of its control."""
        name = variant.name(layer)
        return [name, energy_control(name)] if self.controls and (variant.mitigations or variant.saved) else [name]

    def prepare(self, stream: ActivationStream, used: Sequence[int], fit: Sequence[int]) -> None:
        """Encode the images in the views that mitigations need: ``used`` for extractions, ``fit`` for fits."""
        size = stream.store.images.size
        for variant in self.variants:
            if variant.extraction:
                for view in variant.extraction.passes(size):
                    stream.viewed(view).prepare([*used, *(fit if variant.needs_fit() else [])])
            for mitigation in variant.mitigations:
                for view in (view for view in dict.fromkeys(mitigation.fit_views) if view != View()):
                    stream.viewed(view).prepare(fit[: mitigation.fit_images])

    def _fitted_at(self, stream: ActivationStream) -> ActivationStream:
        """The activations that the mitigations are fitted on."""
        return stream.viewed(View(), [self.inside]) if self.inside else stream

    def fit(self, stream: ActivationStream, fit: Sequence[int], test: Sequence[int]) -> None:
        """Fit all mitigations on the images ``fit``, or load their fits.

        Raises:
            InputError: no images to fit on, fit images that are tested, a saved mitigation of other settings.
        """
        if self.is_identity or any(variant.fitted for variant in self.variants):
            return
        if self.needs_fit and not fit:
            raise InputError(
                "Expected images to fit a mitigation on, but this protocol has none. Use protocol=default, or "
                "mitigation=saved mitigation.saved.folder=RUN."
            )
        stream, images = self._fitted_at(stream), stream.store.images
        fitted_on = provenance(stream) | {"images": [digest(_picture(images.content_key(i))) for i in fit]}
        tested = {digest(name) for i in test for name in _names(images.content_key(i))}
        for variant in self.variants:
            if variant.saved:
                _read(variant, variant.saved.folder, stream, tested)
            else:
                variant.fitted_on = fitted_on
        if self.needs_fit and (both := {images.photo(i) for i in fit} & {images.photo(i) for i in test}):
            raise InputError(
                f"Expected mitigations to be fitted on images that are not tested, but {len(both)} photographs are in both, "
                f"such as {min(both)}. Use protocol=default."
            )
        with progress.step("fit mitigations", "image") if self.needs_fit else nullcontext() as step:
            fit_or_load([variant for variant in self.variants if not variant.saved], stream, fit)
            if step is not None and not step.done:
                step.note = "all in the cache"

    def wrap(self, stream: ActivationStream) -> "ActivationStream | MitigatedStream":
        """Return the stream with the mitigations applied."""
        return stream if self.is_identity else MitigatedStream(self, stream)

    def save(self, folder: Path) -> None:
        """Write the fitted maps below ``folder``, with the settings and images that they were fitted on."""
        for variant in self.variants:
            if any(chain.maps for chain in variant.fitted.values()):
                save(folder / "mitigation" / variant.label, variant.fitted, variant.extraction, **variant.fitted_on)

    def named(self) -> dict[str, Any]:
        """Return label → names and options of the extraction, and of the maps that are applied to activations."""
        maps = {v.label: [fit.settings for fit in next(iter(v.fitted.values()), Chain()).maps] for v in self.variants}
        return {v.label: {"extraction": named([v.extraction]), "maps": named(maps[v.label])} for v in self.variants}

    def describe(self, size: int) -> dict[str, Any]:
        """Return label → description of its chain, see :meth:`~datamodules.variants.Variant.describe`."""
        return {} if self.is_identity else {variant.label or "none": variant.describe(size) for variant in self.variants}


class MitigatedStream:
    """An :class:`~datamodules.stream.ActivationStream` with fitted mitigations applied to its grids, or inside the network.

    Token groups are those of the grids before the fitted maps. Inside the network, every variant takes a pass of its own.
    """

    def __init__(self, mitigations: Mitigations, stream: ActivationStream) -> None:
        self.mitigations, self.stream = mitigations, stream
        self.photos, self.labels, self.store = stream.photos, stream.labels, stream.store

    @property
    def batch_size(self) -> int:
        """Images per pass of the U-Net; halved once if device memory runs out."""
        return self.stream.batch_size

    @property
    def step(self) -> int:
        """Images that all processes together compute at once."""
        return self.stream.step

    def __call__(self, indices: Sequence[int]) -> Iterator[GridBatch]:
        """Batches of at most ``step`` images, in order."""
        start = 0
        while start < len(indices):
            chunk = indices[start : start + self.step]
            yield self._batch(chunk)
            start += len(chunk)

    def _batch(self, indices: Sequence[int]) -> GridBatch:
        grids: dict[str, Tensor] = {}
        masks: dict[str, dict[str, Tensor]] = {}
        shown: dict[str, GridBatch] = {}
        known: dict[View, GridBatch] = {}
        for variant in self.mitigations.variants:
            source = variant.label if variant.extraction else ""
            if source not in shown:
                shown[source] = extract(variant.extraction, self.stream, indices, known)
            grids |= self._mitigated(variant, shown[source], indices)
            for layer, mask in shown[source].masks.items():
                masks |= dict.fromkeys(self.mitigations.names(variant, layer), mask)
        batch = next(iter(shown.values()))
        order = sorted(grids, key=lambda name: self.stream.reads.names.index(unmitigated(name)))
        return GridBatch({n: grids[n] for n in order}, {n: masks[n] for n in order}, batch.image, batch.photo)

    def _mitigated(self, variant: Variant, shown: GridBatch, indices: Sequence[int]) -> dict[str, Tensor]:
        """The grids of a variant and of its control by name, given the grids before the fitted maps."""
        found: dict[str, Tensor] = {}
        if self.mitigations.inside and (variant.mitigations or variant.saved):
            for number, edits in enumerate(self._edits(variant)):
                grids = joined(list(self.stream.edited(edits)(indices))).grids
                found |= {self.mitigations.names(variant, layer)[number]: grid for layer, grid in grids.items()}
            return found
        for layer, grid in shown.grids.items():
            name, *control = self.mitigations.names(variant, layer)
            found[name] = grid if self.mitigations.inside else variant.fitted[layer].transform(grid)
            found |= {other: self._random(grid, found[name], layer) for other in control}
        return found

    def _edits(self, variant: Variant) -> Iterator[list[dict[str, Edit]]]:
        """Edits inside the network by noise level: those of a variant, then those of its control."""
        names = cells([self.mitigations.inside], self.stream.reads.timesteps)
        yield [{layer: variant.fitted[name].transform} for name, (layer, _) in names.items()]
        if len(self.mitigations.names(variant, self.mitigations.inside)) > 1:

            def control(name: str) -> Edit:
                return lambda grid: self._random(grid, variant.fitted[name].transform(grid), name)

            yield [{layer: control(name)} for name, (layer, _) in names.items()]

    def _random(self, grid: Tensor, mitigated: Tensor, layer: str) -> Tensor:
        return random_energy(grid, mitigated, self.mitigations.seed, layer, [0] * len(grid))


def _check_maps(steps: Mapping[str, Configured]) -> None:
    """Raises InputError unless there are mitigations, and all of them map grids."""
    if not steps:
        raise InputError(
            "Expected mitigations to apply inside the network, but got none. Use mitigation=position_mean with "
            "datamodule.inside=true."
        )
    if views := [label for label, step in steps.items() if isinstance(step, Extraction)]:
        raise InputError(
            f"Expected mitigations that map activations with datamodule.inside=true, but {views[0]} changes how the network "
            "is shown an image. Leave it or datamodule.inside out."
        )


def _read(variant: Variant, folder: str, stream: ActivationStream, tested: set[str]) -> None:
    """Load saved maps of every layer; ``tested`` are digests of the pictures that they must not have been fitted on."""
    expected = provenance(stream)
    variant.extraction, chains, variant.fitted_on = read(folder, expected)
    if lacking := sorted({*expected, "images"} - set(variant.fitted_on)):
        raise InputError(
            f"Expected the mitigation in {folder} to record what it was fitted on, but got no {', '.join(lacking)}. "
            "Save it by a run, or use it in your own code."
        )
    fitted = {place_of(name, variant.fitted_on["timestep"]): chain for name, chain in chains.items()}
    places = {name: place_of(name, stream.reads.timestep) for name in stream.reads.names}
    if absent := [name for name, place in places.items() if place not in fitted]:
        raise InputError(
            f"Expected the mitigation in {folder} to be used at {', '.join(chains)}, which it was fitted at, but got "
            f"{', '.join(absent)}. Fit it anew for other layers."
        )
    if both := tested & set(variant.fitted_on["images"]):
        raise InputError(
            f"Expected images that the mitigation in {folder} was not fitted on, but {len(both)} of the tested ones are among "
            "its fit images. Test on others."
        )
    variant.fitted = {name: fitted[place].to(stream.backbone.device) for name, place in places.items()}


def _picture(key: str) -> str:
    """The part of an item's content key that names its picture, whatever its size and crop."""
    parts = key.split(":")
    return ":".join(parts[: {"file": 2, "scenes": 4}.get(parts[0], len(parts))])


def _names(key: str) -> set[str]:
    """Names of an item's picture: the current one, and those that older versions may have saved with a mitigation."""
    name = _picture(key)
    return {name, *(f"{name}:".replace(":1:", f":{code}:", 1).removesuffix(":") for code in EARLIER)}


def provenance(stream: ActivationStream) -> dict[str, Any]:
    """The settings that have to be equal where a fitted mitigation or head is used, besides its layer."""
    described = stream.backbone.describe()
    result = {key: described[key] for key in BOUND if key in described}
    vae = stream.backbone.encoder.vae.config
    result |= {"timestep": stream.reads.timestep, "prompt": stream.reads.prompt, "size": stream.store.images.size}
    result |= {"vae_scale": f"{vae.scaling_factor}, {vae.get('shift_factor')}"}
    return result | ({"noise_seed": stream.reads.seed} if described["noise"] in ("shared", "rolled") else {})


def digest(text: str) -> str:
    """Short digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fit_or_load(variants: Sequence[Variant], stream: ActivationStream, fit: Sequence[int]) -> None:
    """Fit the chains of these variants, or load them from the cache.

    Args:
        variants: variants without chains, whose ``fitted_on`` is set.
        stream: activations without mitigations.
        fit: indices of the fit images.
    """
    folders = {variant: stream.store.cache.root / "mitigations" / _key(variant, stream, fit) for variant in variants}
    gather = Processes.current().all_gather  # a fit that one process lacks is repeated by all
    missing = [variant for variant, folder in folders.items() if not all(gather(_load(variant, stream, folder)))]
    for variant in missing:
        variant.fitted = dict.fromkeys(stream.reads.names, Chain())
    for depth in range(max((len(variant.mitigations) for variant in missing), default=0)):
        _round([variant for variant in missing if depth < len(variant.mitigations)], depth, stream, fit)
    for variant in missing:
        if variant.needs_fit():
            with suppress(OSError):  # without a writable cache the next run fits again
                bound = variant.fitted_on | {"entry": folders[variant].name}
                save(folders[variant], variant.fitted, variant.extraction, **bound)


def _key(variant: Variant, stream: ActivationStream, fit: Sequence[int]) -> str:
    """Digest of everything that a fit depends on."""
    steps = named([variant.extraction, *variant.mitigations])
    content = digest("".join(stream.store.images.content_key(i) for i in fit))
    backbone = f"{stream.backbone.describe()} {stream.backbone.encoder.key(stream.reads.seed)}"
    return digest(f"{variant.fitted_on} {content} {steps} {list(stream.reads.names)} {stream.reads.seed} {backbone} {VERSION}")


def _load(variant: Variant, stream: ActivationStream, folder: Path) -> bool:
    """Load the chains from the cache; False if they are missing or damaged."""
    with suppress(InputError, OSError):
        extraction, chains, fitted_on = read(folder, {})
        stored = named([extraction, *(fit.settings for chain in chains.values() for fit in chain.maps)])
        wanted = named([variant.extraction, *variant.mitigations * len(stream.reads.names)])
        bound = variant.fitted_on | {"entry": folder.name}
        if (list(chains), stored, fitted_on) == (list(stream.reads.names), wanted, bound):
            variant.fitted = {layer: chain.to(stream.backbone.device) for layer, chain in chains.items()}
    return bool(variant.fitted)


def _round(variants: Sequence[Variant], depth: int, stream: ActivationStream, fit: Sequence[int]) -> None:
    """Fit mitigation number ``depth`` of every chain; mitigations that need the same views share the passes."""
    size = stream.batch_size
    groups: dict[tuple[str | None, tuple[View, ...]], list[Variant]] = defaultdict(list)
    for variant in variants:
        groups[variant.label if variant.extraction else None, variant.mitigations[depth].fit_views].append(variant)
    for (own, views), members in groups.items():
        if own is not None and views != (View(),):
            raise InputError(
                f"Expected {type(members[0].mitigations[depth]).__name__} to be used without "
                f"{type(members[0].extraction).__name__}, since it is fitted on other views, but got both. Leave one out."
            )
        steps = [variant.mitigations[depth] for variant in members]
        wanted = [len(fit) if step.fit_images is None else min(step.fit_images, len(fit)) for step in steps]
        fitters = [{layer: step.fitter(stream.store.images.size) for layer in stream.reads.names} for step in steps]
        with progress.step("fit mitigations", "image") as bar:
            bar.begin(total=max(wanted))
            starts = range(0, max(wanted), stream.step)
            for start in starts:
                indices = fit[start : min(start + starts.step, max(wanted))]
                shown = [extract(members[0].extraction, stream.viewed(view), indices) for view in views]
                for first in range(0, len(indices), size):  # sums are over batches of one size for any number of processes
                    for variant, count, fits in zip(members, wanted, fitters, strict=True):
                        number = min(size, count - start - first)
                        for layer, chain in variant.fitted.items() if number > 0 else ():
                            grids = [batch.grids[layer][first : first + number] for batch in shown]
                            fits[layer].update(*map(chain.transform, grids))
                bar.advance(len(indices))
        for variant, fits in zip(members, fitters, strict=True):
            for layer, chain in variant.fitted.items():
                try:
                    variant.fitted[layer] = Chain((*chain.maps, fits[layer].finish()))
                except InputError as error:
                    raise InputError(f"{error} The layer is {layer}.") from error

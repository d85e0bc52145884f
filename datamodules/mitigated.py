"""Mitigations between the stream and whoever reads it: fitted once, on fit images only, then applied to every grid. Step 6."""

import copy
import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from anomalies.groups import token_groups
from datamodules.stream import ActivationStream
from mitigations.chain import Chain
from mitigations.configured import Configured
from mitigations.mitigation import Extraction, Mitigation
from mitigations.saved import Saved, check_layers, read, save
from mitigations.views import View
from tokens.batch import GridBatch, joined
from tokens.errors import InputError
from tokens.variants import base_of, variant

log = logging.getLogger(__name__)
CODE = ("mitigations", "anomalies", "backbones", "tokens")  # what a fit depends on besides its images
# of FrozenSD.describe(): what a mitigation is bound to
BOUND = ("unet_hash", "vae_hash", "text_hash", "schedule_hash", "noise", "vae_input", "posterior", "scaled_again", "padding")


class _Way:
    """One chain of mitigations at every layer; ``label`` is empty where it stands in the layers' own place."""

    def __init__(self, label: str, steps: Sequence[Configured]) -> None:
        self.label = label
        self.extraction = steps[0] if steps and isinstance(steps[0], Extraction) else None
        self.templates = list(steps[1:] if self.extraction else steps)
        self.chains: dict[str, Chain] = {}
        for step in self.templates:
            if isinstance(step, Extraction):
                raise InputError(
                    f"Expected {type(step).__name__} to come first, since it changes the pass that others work on, but got "
                    f"{' then '.join(type(each).__name__ for each in steps)}. Put it first, and only one of its kind."
                )
            if not isinstance(step, Mitigation | Saved):
                raise InputError(f"Expected mitigations, but got {type(step).__name__}. Choose one of configs/mitigation.")

    def name(self, layer: str) -> str:
        return variant(layer, self.label) if self.label else layer

    def fits(self) -> bool:
        """Whether anything of it needs fit images."""
        return any(isinstance(step, Mitigation) and step.fit_images != 0 for step in self.templates)


class Mitigations:
    """What a data module is asked to do about position, corners and norms.

    Args:
        settings: label → mitigation, in order.
        compare: give every layer a variant per mitigation (``mid__leace``) beside the layer itself; otherwise all of them
            apply one after the other, in the layers' own place.

    Raises:
        InputError: an order that makes no sense, comparing nothing.
    """

    def __init__(self, settings: Mapping[str, Configured] | None = None, compare: bool = False) -> None:
        steps = dict(settings or {})
        if compare and not steps:
            raise InputError("Expected mitigations to compare, but got none. Use mitigation=[standardize,position_mean].")
        self.compare = compare
        if compare:
            self.ways = [_Way("", []), *(_Way(label, [step]) for label, step in steps.items())]
        else:
            self.ways = [_Way("", list(steps.values()))]
        self.fitted_on: dict[str, Any] = {}

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
        self.fitted_on = _circumstances(stream) | {"images": [_digest(images.content_key(i)) for i in fit]}
        tested = {_digest(images.content_key(i)) for i in test}
        for way in self.ways:
            self._begin(way, stream, tested)
        if self.fits:
            _check_apart([images.photo(i) for i in fit], [images.photo(i) for i in test])
            self._fit_or_recall(stream, fit)
            log.info("Fitted mitigations on %d images.", len(fit))

    def through(self, stream: ActivationStream) -> "ActivationStream | MitigatedStream":
        """The stream behind the mitigations."""
        return stream if self.idle else MitigatedStream(self, stream)

    def save(self, folder: Path) -> None:
        """Write what is fitted, with what it was fitted on."""
        for way in self.ways:
            if any(chain.maps for chain in way.chains.values()):
                save(folder / "mitigation" / way.label, way.chains, way.extraction, self.fitted_on)

    def describe(self, size: int) -> dict[str, Any]:
        """Label → passes per image, in passes of the plain image, and what the fits say of themselves, by layer."""
        found: dict[str, Any] = {}
        for way in self.ways:
            if not self.idle:
                views = way.extraction.views(size) if way.extraction else (View(),)
                passes = sum(((size + 2 * view.margin) / size) ** 2 for view in views)
                fits = {layer: [each.describe() for each in chain.maps] for layer, chain in way.chains.items()}  # type: ignore[operator]
                names = [type(step).__name__ for step in ([way.extraction] if way.extraction else []) + way.templates]
                found[way.label or "none"] = {"steps": names, "passes": passes, "fits": fits}
        return found

    def _begin(self, way: _Way, stream: ActivationStream, tested: set[str]) -> None:
        """Unfitted maps for every layer, or saved ones."""
        if any(isinstance(step, Saved) for step in way.templates):
            if len(way.templates) > 1 or way.extraction:
                raise InputError("Expected mitigation=saved alone, but got it in a list. Fit the others anew instead.")
            [step] = way.templates
            way.extraction, chains, fitted_on = read(step.options["folder"], _circumstances(stream))
            check_layers(list(chains), stream.layers, step.options["folder"])
            if tested & set(fitted_on["images"]):
                raise InputError(
                    f"Expected images that the mitigation in {step.options['folder']} was not fitted on, but "
                    f"{len(tested & set(fitted_on['images']))} of the tested ones are among its fit images. Test on others."
                )
            way.chains = {layer: chains[layer].to(stream.backbone.device) for layer in stream.layers}
            self.fitted_on = fitted_on
        else:
            way.chains = {layer: Chain([copy.deepcopy(step) for step in way.templates]) for layer in stream.layers}  # type: ignore[misc]

    def _fit_or_recall(self, stream: ActivationStream, fit: Sequence[int]) -> None:
        """Fit, or read the same fit from the cache."""
        options = [
            (way.label, [(type(s).__name__, s.options) for s in (way.extraction, *way.templates) if s]) for way in self.ways
        ]
        key = _digest(f"{self.fitted_on} {options} {list(stream.layers)} {stream.seed} {stream.backbone.describe()} {_code()}")
        file = stream.store.cache.root / "mitigations" / f"{key}.safetensors"
        device = stream.backbone.device
        with suppress(OSError, SafetensorError, RuntimeError, KeyError):
            self._recall(load_file(file, device=str(device)), device)
            return
        for depth in range(max(len(way.templates) for way in self.ways)):
            self._round(depth, stream, fit)
        file.parent.mkdir(parents=True, exist_ok=True)
        state = {
            f"{way.label}/{layer}/{name}": value.cpu().contiguous()
            for way in self.ways
            for layer, chain in way.chains.items()
            for name, value in chain.state_dict().items()
        }
        part = file.with_suffix(f".{torch.randint(2**31, ()).item()}.part")
        save_file(state, part)
        part.rename(file)

    def _recall(self, state: dict[str, torch.Tensor], device: torch.device) -> None:
        for way in self.ways:
            for layer, chain in way.chains.items():
                start = f"{way.label}/{layer}/"
                chain.load_state_dict({key.removeprefix(start): v for key, v in state.items() if key.startswith(start)})
                chain.to(device)

    def _round(self, depth: int, stream: ActivationStream, fit: Sequence[int]) -> None:
        """Fit the mitigation number ``depth`` of every chain; those that are shown the same views share the passes."""
        groups: dict[tuple[Any, ...], list[_Way]] = defaultdict(list)
        for way in self.ways:
            if depth < len(way.templates) and way.templates[depth].fit_images != 0:
                own = way.label if way.extraction else None
                groups[own, way.templates[depth].fit_views].append(way)
        for (own, views), ways in groups.items():
            if own is not None and views != (View(),):
                raise InputError(
                    f"Expected {type(ways[0].templates[depth]).__name__} not to stand behind "
                    f"{type(ways[0].extraction).__name__}, since it is fitted on passes of its own. Leave one of them out."
                )
            wanted = [_wanted(way, depth, fit) for way in ways]
            for start in track(range(0, max(wanted), stream.batch_size), "fitting mitigations", transient=True):
                indices = fit[start : min(start + stream.batch_size, max(wanted))]
                shown = [
                    _grids(ways[0].extraction, stream.viewed(view) if view != View() else stream, indices) for view in views
                ]
                for way, count in zip(ways, wanted, strict=True):
                    _update(way, depth, shown, count - start)
            for way in ways:
                for chain in way.chains.values():
                    chain.maps[depth].finish()  # type: ignore[operator]


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
        for way in self.mitigations.ways:
            source = way.label if way.extraction else ""
            if source not in shown:
                shown[source] = _grids(way.extraction, self.stream, indices)
            for layer, grid in shown[source].grids.items():
                grids[way.name(layer)] = way.chains[layer].transform(grid)
                masks[way.name(layer)] = shown[source].masks[layer]
        batch = next(iter(shown.values()))
        order = sorted(grids, key=lambda name: self.stream.layers.index(base_of(name)))
        return GridBatch({n: grids[n] for n in order}, {n: masks[n] for n in order}, batch.image, batch.photo)


def _wanted(way: _Way, depth: int, fit: Sequence[int]) -> int:
    step = way.templates[depth]
    limit = step.fit_images if isinstance(step, Mitigation) else 0
    return len(fit) if limit is None else min(limit, len(fit))


def _update(way: _Way, depth: int, shown: Sequence[GridBatch], images: int) -> None:
    """Give the first so many images of a batch to the fits of a chain, behind what is already fitted."""
    if images > 0:
        for layer, chain in way.chains.items():
            grids = [chain.transform(batch.grids[layer][:images], depth) for batch in shown]
            chain.maps[depth].update(*grids)  # type: ignore[operator]


def _grids(extraction: Extraction | None, stream: ActivationStream, indices: Sequence[int]) -> GridBatch:
    """Grids of these images, the passes of an extraction merged, with the token groups of what came out."""
    if extraction is None:
        return joined(list(stream(indices)))
    size = stream.store.images.size
    passes = [joined(list(stream.viewed(view)(indices))) for view in extraction.views(size)]
    grids = {layer: extraction.merge([each.grids[layer] for each in passes], size) for layer in stream.layers}
    masks = {layer: token_groups(grid) for layer, grid in grids.items()}
    return GridBatch(grids, masks, passes[0].image, passes[0].photo)


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
    found |= {"timestep": stream.timestep, "prompt": stream.prompt, "size": stream.store.images.size}
    return found | ({"noise_seed": stream.seed} if described["noise"] in ("shared", "rolled") else {})


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _code() -> str:
    """Digest of the code that a fit depends on."""
    root = Path(__file__).parent.parent
    files = sorted(path for package in CODE for path in (root / package).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()

"""RoleDataModule: images → predictions of the network and grids of later layers, without and with edits inside the network.

Data path steps 1 to 6. Edits are those of :meth:`sdprobe.backbones.unet.FrozenUNet.forward`. All edits of an image share latent
and noise.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import torch
from jaxtyping import Int
from torch import Tensor

from datamodules.base import StreamDataModule, StreamOptions
from datamodules.images.source import ImageSource
from datamodules.loaders import Loader
from datamodules.stream import exchanged
from datamodules.variants import Variant
from sdprobe.backbones import FrozenSD
from sdprobe.backbones.layers import INPUTS
from sdprobe.backbones.padding import convolutions
from sdprobe.backbones.unet import OUTPUT, Edit
from sdprobe.mitigations import PaddingSwap, PositionMean, ShuffledPosition
from sdprobe.mitigations.base import Configured, Extraction, Mitigation
from sdprobe.mitigations.energy import random_energy
from sdprobe.tokens.batch import EditedBatch
from sdprobe.tokens.geometry import spatial_mean
from sdprobe.tokens.keys import base_of, cells, chained, unmitigated, variant
from sdprobe.tokens.splits import split_by_photo
from sdprobe.utilities import settings
from sdprobe.utilities.distributed import Processes
from sdprobe.utilities.errors import InputError

SHUFFLED = "shuffled_position"
KINDS = ("grids", "predictions")
Run = Callable[..., dict[str, Tensor]]
FOLLOWED = ("test", "random_energy", "ceiling")  # whose later layers are read


@dataclass(frozen=True)
class Change:
    """An edit of one layer at one noise level.

    Args:
        condition: ``test``, or the control that it is.
        name: the layer with its noise level and mitigation.
        function: grid (B, C, h, w) → grid; None if ``swap`` is the edit.
        swap: padding of the layer's convolutions, which changes the grid in place of a function; of a control, the change whose
            energy it has.
    """

    condition: str
    name: str
    function: Callable[[Tensor], Tensor] | None = None
    swap: PaddingSwap | None = None

    @property
    def layer(self) -> str:
        """The edited layer."""
        return base_of(self.name)


class RoleDataModule(StreamDataModule):
    """Streams what the network predicts for test images while one layer is edited, beside what it predicts without the edit.

    The edits of every layer are: each mitigation alone; from two on, all of them in turn; with ``padding_swap.where``, another
    padding of a block. The controls are: for each edit, as much energy removed along random directions (``random_energy``); the
    mean map of positions in a random order (``shuffled_position``); and the grid replaced by its spatial mean (``ceiling``).
    In every batch, a pass that edits nothing has to give the prediction of the network bit for bit.

    The batches are :class:`~sdprobe.tokens.batch.EditedBatch`. Test images give predictions. With ``reemergence`` training and
    test images also give the grids of later layers.

    Args:
        images: an image source.
        backbone: a frozen checkpoint.
        block: layers to edit, see :class:`~datamodules.base.StreamDataModule`.
        splits: ``default`` or ``loos2025``, see :func:`~sdprobe.tokens.splits.split_by_photo`.
        reemergence: also stream later layers, of training and of test images.
        later: the layers to read for it; of each edit those after the edited layer.
        **options: settings of every data module, see :class:`~datamodules.base.StreamOptions`, except ``compare``.

    Raises:
        InputError: an input of the network as a layer, a mitigation without a map, a padding swap of a layer that is not read
            or has no convolution, images without noise, no later layer.

    Example:
        >>> from datamodules.images.texture import Constants
        >>> from sdprobe import FrozenSD
        >>> from sdprobe.mitigations import PositionMean, Standardize
        >>> edits = {"position_mean": PositionMean(), "standardize": Standardize()}
        >>> images, sd = Constants(size=128, limit=20), FrozenSD.from_pretrained("tiny")
        >>> RoleDataModule(images, sd, block="mid", mitigation=edits).layers
        ('mid', 'mid__position_mean', 'mid__standardize', 'mid__position_mean__standardize')
    """

    kind = "role"

    def __init__(
        self,
        images: ImageSource,
        backbone: FrozenSD,
        block: str | Sequence[str] = "stages",
        splits: str = "default",
        reemergence: bool = False,
        later: str | Sequence[str] = "stages",
        **options: Unpack[StreamOptions],
    ) -> None:
        settings.check("datamodule", splits=splits)
        if options.get("inside"):
            raise InputError(
                "Expected probe=role without datamodule.inside, since it edits inside the network itself, but got "
                "inside=True. Leave it out."
            )
        steps = dict(options.get("mitigation") or {})
        self.swaps = {label: step for label, step in steps.items() if isinstance(step, PaddingSwap)}
        fitted = {label: step for label, step in steps.items() if label not in self.swaps}
        _check_maps(fitted)
        options |= {"mitigation": {SHUFFLED: _shuffled(fitted)} | fitted, "compare": True}
        super().__init__(images, backbone, block, **options)
        if backbone.noise.mode == "none":
            raise InputError(
                "Expected noise to predict, but got backbone.noise=none. Use independent, as the checkpoint was trained."
            )
        layers = self.base_stream.reads.layers
        if inputs := [layer for layer in layers if layer in INPUTS]:
            raise InputError(
                f"Expected block to name layers that the network computes, but got its input {inputs[0]}. Leave it out."
            )
        self._check_swaps(layers)
        chain = {label: step for label, step in fitted.items() if isinstance(step, Mitigation)}
        self.edits = list(fitted)
        if len(chain) > 1:
            self.edits.append(chained(chain))
            self.mitigations.variants.append(Variant(self.edits[-1], list(chain.values())))
        self.shapes = {name: self.shapes[unmitigated(name)] for name in self._names()}
        photo = [images.photo(index) for index in range(len(images))]
        split = split_by_photo(photo, splits, self.seed)
        self.split = {name: split[name] for name in ("fit", *["train"] * reemergence, "test")}
        order = list(backbone.unet.table)
        self.later: dict[str, tuple[int, int, int]] = {}
        if reemergence:
            first = min(map(order.index, layers))
            read = [name for name in backbone.unet.resolve(later) if name in order and order.index(name) > first]
            if not read:
                raise InputError(
                    f"Expected datamodule.later to name layers after {order[first]}, but got {later}. Name a later one."
                )
            self.later = backbone.shapes(images.size, read)

    @property
    def fit_images(self) -> list[int]:
        """Indices of the images that edits are fitted on."""
        return self.split["fit"]

    def train_dataloader(self) -> "Loader[EditedBatch] | list[Any]":
        """Return grids of later layers of the training images; empty without re-emergence."""
        return self._loader("train", predicts=False) if self.later else []

    def test_dataloader(self) -> Loader[EditedBatch]:
        """Return predictions, and grids of later layers, of the test images."""
        return self._loader(self.tested, predicts=True)

    def describe(self) -> dict[str, Any]:
        """Return the description of :class:`~datamodules.base.StreamDataModule`, the prediction's target, and the edits."""
        labels = [*self.edits, *self.swaps]
        return super().describe() | {"prediction": self.backbone.noise.prediction, "edits": labels, "later": list(self.later)}

    def changes(self, timestep: int) -> list[Change]:
        """Edits and controls of all layers at a noise level, once the mitigations are fitted.

        Args:
            timestep: one of the noise levels.

        Returns:
            the changes, layer by layer, each edit before its control.
        """
        chains = {each.label: each.fitted for each in self.mitigations.variants}
        found: list[Change] = []
        for name, (layer, level) in cells(self.base_stream.reads.layers, self.base_stream.reads.timesteps).items():
            if level != timestep:
                continue
            found.append(Change("ceiling", name, spatial_mean))
            found.append(Change(SHUFFLED, name, chains[SHUFFLED][name].transform))
            for label in self.edits:
                edited = variant(name, label)
                edit = chains[label][name].transform
                found.append(Change("test", edited, edit))
                found.append(Change("random_energy", edited, partial(self._random, layer=layer, edit=edit)))
            swaps = [(variant(name, label), swap) for label, swap in self.swaps.items() if swap.where == layer]
            found += [Change(kind, edited, swap=swap) for edited, swap in swaps for kind in ("test", "random_energy")]
        return found

    def _random(self, grid: Tensor, layer: str, edit: Callable[[Tensor], Tensor]) -> Tensor:
        return random_energy(grid, edit(grid), self.seed, layer, [0] * len(grid))

    def _names(self) -> Iterator[str]:
        """Names of layers and edits, as keys have them."""
        for name, (layer, _) in cells(self.base_stream.reads.layers, self.base_stream.reads.timesteps).items():
            yield name
            yield from (variant(name, label) for label in self.edits)
            yield from (variant(name, label) for label, swap in self.swaps.items() if swap.where == layer)

    def _check_swaps(self, layers: Sequence[str]) -> None:
        for label, swap in self.swaps.items():
            if swap.where is None or swap.where not in layers:
                raise InputError(
                    f"Expected mitigation.{label}.where to be a layer of block= ({', '.join(layers)}), but got {swap.where}. "
                    "Name a block such as up_1, and read it."
                )
            if not any(any(convolutions(module)) for module in self.backbone.u_net().modules_of(swap.where)):
                raise InputError(
                    f"Expected a layer with convolutions that pad, but {swap.where} of mitigation.{label}.where has none. "
                    "Name its block."
                )

    def _loader(self, split: str, predicts: bool) -> Loader[EditedBatch]:
        indices = self.split[split]
        batches = -(-len(indices) // self.base_stream.batch_size)
        return Loader(lambda: self._batches(indices, predicts), batches * len(self._parts(predicts)))

    def _batches(self, indices: Sequence[int], predicts: bool) -> Iterator[EditedBatch]:
        """All passes of all images. Each process computes other images, and gets the batches of all processes."""
        processes, size, parts = Processes.current(), self.base_stream.batch_size, self._parts(predicts)
        for start in range(0, len(indices), size * processes.count):
            firsts = range(start, min(start + size * processes.count, len(indices)), size)
            chunks = [indices[first : first + size] for first in firsts]
            own = self._passes(chunks[processes.rank], predicts) if processes.rank < len(chunks) else None
            for condition, name in parts:
                found = exchanged(None if own is None else next(own), self.backbone.device)
                for chunk, tensors in zip(chunks, found, strict=True):
                    grids, predictions = ({key: tensors[of, key] for of, key in tensors if of == kind} for kind in KINDS)
                    yield EditedBatch(condition, name, grids, predictions, self._photos(chunk))

    def _parts(self, predicts: bool) -> list[tuple[str, str]]:
        """(condition, name) of the batches that a few images give, in order; the pass without an edit comes first."""
        parts: list[tuple[str, str]] = []
        timesteps = self.base_stream.reads.timesteps
        for level in timesteps:
            parts += [("", variant("", timestep=level if len(timesteps) > 1 else None))] if self.later else []
            parts += [(change.condition, change.name) for change in self.changes(level) if self._reads(change, predicts)]
        return parts

    def _passes(self, indices: Sequence[int], predicts: bool) -> Iterator[dict[tuple[str, str], Tensor]]:
        """Grids and predictions of a few images, by kind and name, for each of :meth:`_parts`."""
        stream, network = self.base_stream, self.backbone
        latents, ids = torch.stack([stream.store[index] for index in indices]), [self.images.name(index) for index in indices]
        deepest = [*self.later, *[OUTPUT] * predicts]
        for level in stream.reads.timesteps:
            run = partial(network.grids, latents, ids, timestep=level, seed=stream.reads.seed, prompt=stream.reads.prompt)
            outputs: dict[str, Any] = {}
            plain = run(layers=list(dict.fromkeys(deepest)), outputs=outputs)
            self._check_path(run, plain, outputs)
            target = {"target": network.target(latents, ids, level, stream.reads.seed)} if predicts else {}
            if self.later:
                yield {("grids", name): plain[name] for name in self.later}
            for change in self.changes(level):
                if reads := self._reads(change, predicts):
                    grids = self._run(change, partial(run, layers=reads), outputs)
                    shown = {"edited": grids[OUTPUT], "plain": plain[OUTPUT]} | target if predicts else {}
                    later = {("grids", name): grids[name] for name in self._later(change)}
                    yield later | {("predictions", name): value.float() for name, value in shown.items()}

    def _check_path(self, run: Run, plain: dict[str, Tensor], outputs: dict[str, Any]) -> None:
        """Raises InputError unless a pass that edits all layers, but changes none, gives equal grids."""
        unchanged: dict[str, Edit] = dict.fromkeys(self.base_stream.reads.layers, lambda grid: grid)
        again = run(layers=list(plain), edits=unchanged, outputs=outputs)
        if different := [name for name in plain if not torch.equal(plain[name], again[name])]:
            raise InputError(
                f"Expected the network to give the same {different[0]} twice, but it differs. The device does not compute "
                "reproducibly, so edits cannot be compared. Use device=cpu, or backbone.precision=fp32."
            )

    def _run(self, change: Change, run: Run, outputs: dict[str, Any]) -> dict[str, Tensor]:
        function = change.function
        if change.swap is not None:
            with self.backbone.padded(change.swap.mode, change.swap.where):
                swapped = run() if change.condition == "test" else run(layers=[change.layer])
            if change.condition == "test":
                return swapped
            function = partial(self._random, layer=change.layer, edit=lambda _: swapped[change.layer])
        assert function is not None
        return run(edits={change.layer: function}, outputs=outputs)

    def _reads(self, change: Change, predicts: bool) -> list[str]:
        """Layers that are read during an edit."""
        return list(dict.fromkeys([*self._later(change), *[OUTPUT] * predicts]))

    def _later(self, change: Change) -> list[str]:
        """The layers after an edit in which position is looked for."""
        order = list(self.backbone.unet.table)
        followed = change.condition in FOLLOWED
        return [name for name in self.later if followed and order.index(name) > order.index(change.layer)]

    def _photos(self, indices: Sequence[int]) -> Int[Tensor, " b"]:
        photo = [self.base_stream.photos[self.images.photo(index)] for index in indices]
        return torch.tensor(photo, device=self.backbone.device)


def _check_maps(steps: Mapping[str, Configured]) -> None:
    for label, step in steps.items():
        if isinstance(step, Extraction):
            raise InputError(
                f"Expected mitigations with a fitted map, to apply inside the network, but got {label}, which changes how the "
                "network is shown an image. Use position_mean, leace, or padding_swap with mitigation.padding_swap.where=up_1."
            )


def _shuffled(steps: Mapping[str, Configured]) -> ShuffledPosition:
    """The mean map at shuffled positions, with the settings of the first :class:`PositionMean` among the edits."""
    code = next((step for step in steps.values() if type(step) is PositionMean), PositionMean())
    return ShuffledPosition(**{name: code.options[name] for name in ("basis", "gamma", "cosines", "ridge")})

"""Data modules whose tokens have a target to regress: the depth, or the clean latent, of a token's cell.

Data path steps 1 to 7.
"""

import hashlib
import logging
import time
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from datamodules.activations import ActivationDataModule
from datamodules.images.source import ImageSource
from sdprobe.tokens.batch import GridBatch, TokenBatch
from sdprobe.utilities import progress
from sdprobe.utilities.errors import InputError

log = logging.getLogger(__name__)


class TargetDataModule(ActivationDataModule):
    """An :class:`~datamodules.activations.ActivationDataModule` whose batches have ``targets``, V numbers per token.

    Args:
        images: an image source.
        backbone: a frozen checkpoint.
        block: layers to read.
        splits: ``default`` or ``loos2025``.
        sampling: ``stratified`` or ``all``.
        token_batch: tokens per layer and training step.
        mixing_images: images that are mixed with one another.
        activation_budget: GiB of tokens that stay on the device between epochs.
        labels: file of hand-labelled high-norm tokens, or None.
        labels_side: tokens per side of the labelled grid.
        **options: settings of every data module, see :class:`~datamodules.base.StreamOptions`.
    """

    reading: ClassVar[str]  # name of the step that reads the targets

    @cached_property
    def _tables(self) -> dict[int, Float[Tensor, "rows _side _side _v"]]:
        """Side of a grid → targets of every token of the images in use."""
        return {}

    @property
    def target_channels(self) -> int:
        """Number V of targets of every token."""
        return 1

    @property
    def _sides(self) -> set[int]:
        return {height for _, height, _ in self.shapes.values()}

    def training_targets(self, layer: str) -> Float[Tensor, "images h w v"]:
        """Return the targets (images, h, w, V) of every token of the training images; NaN where there is none."""
        table = self._tables[self.shapes[layer][1]]
        return table[self._rows[self.split["train"]].to(table.device)]

    def prepare_data(self) -> None:
        """Encode the images that the latent cache lacks, and read the targets of all images in use.

        Raises:
            InputError: a picture or its target cannot be read, or the targets cannot be used.
        """
        if self._prepared:
            return
        super().prepare_data()
        started = time.perf_counter()
        self._rows = torch.full((len(self.images),), -1)  # images that are not in use have no row
        self._rows[self.used] = torch.arange(len(self.used))
        self._read()
        self.seconds[self.kind] = time.perf_counter() - started

    def steps(self, trains: bool) -> list[str]:
        """Return the names of the steps: those of activations, and the reading of targets."""
        encode, *others = super().steps(trains)
        return [encode, self.reading, *others]

    def release(self) -> None:
        """Free the memory of the device: the network, the kept tokens and the targets."""
        super().release()
        self._tables.clear()

    def _read(self) -> None:
        """Fill the tables."""
        raise NotImplementedError

    def _drawn(self, batch: GridBatch) -> list[TokenBatch]:
        return list(map(self._with_targets, super()._drawn(batch)))

    def _flattened(self, batch: GridBatch) -> TokenBatch:
        return self._with_targets(super()._flattened(batch))

    def _with_targets(self, batch: TokenBatch) -> TokenBatch:
        targets = {}
        for layer, image in batch.image.items():
            side, positions = self.shapes[layer][1], batch.positions[layer]
            self._rows = self._rows.to(image.device)
            table = self._tables[side] = self._tables[side].to(image.device)
            targets[layer] = table[self._rows[image], positions[:, 0], positions[:, 1]]
        return replace(batch, targets=targets)


@runtime_checkable
class DepthSource(ImageSource, Protocol):
    """An image source with the depth of every pixel."""

    def depth(self, index: int) -> Float[Tensor, "size size"]:
        """Return the depth of every pixel, positive, in one unit for all items; 0, NaN and infinity mean that it is missing."""

    def depth_key(self, index: int) -> str:
        """Return a text that identifies the depth of an item, as ``content_key`` does for its pixels."""


class DepthDataModule(TargetDataModule):
    """An :class:`~datamodules.activations.ActivationDataModule` whose batches have the depth of every token as target.

    A token's target, (N, 1) float32, is the mean depth over the pixels of its cell that have one; NaN where none has. Its unit
    is that of the images: metres for ``images=nyu``, scene units for ``images=scene_depth``.

    Args:
        images: an image source with depth, see :class:`DepthSource`.
        backbone: a frozen checkpoint.
        block: layers to read.
        splits: ``default`` or ``loos2025``.
        sampling: ``stratified`` or ``all``.
        token_batch: tokens per layer and training step.
        mixing_images: images that are mixed with one another.
        activation_budget: GiB of tokens that stay on the device between epochs.
        labels: file of hand-labelled high-norm tokens, or None.
        labels_side: tokens per side of the labelled grid.
        **options: settings of every data module, see :class:`~datamodules.base.StreamOptions`.

    Raises:
        InputError: as :class:`~datamodules.activations.ActivationDataModule`; in :meth:`prepare_data`, images without depth, a
            depth file that cannot be decoded, or a split without any depth.

    Example:
        >>> import tempfile
        >>> from datamodules.images.scenes import SceneDepth
        >>> from sdprobe import FrozenSD
        >>> cache = tempfile.TemporaryDirectory()
        >>> sd = FrozenSD.from_pretrained("tiny")
        >>> data = DepthDataModule(SceneDepth(size=64, limit=10), sd, block="up_1", cache_dir=cache.name)
        >>> data.prepare_data()
        >>> tuple(data.training_targets("up_1").shape)  # images, h, w, V
        (3, 4, 4, 1)
    """

    kind, reading = "depth", "read depth"

    @cached_property
    def source(self) -> DepthSource:
        """The image source. Raises InputError if it has no depth."""
        if not isinstance(self.images, DepthSource):
            raise InputError(
                f"Expected images with depth, images=scene_depth or images=nyu, but got {type(self.images).__name__}. "
                "Choose one of these."
            )
        return self.images

    def describe(self) -> dict[str, Any]:
        """Return the description of :class:`~datamodules.activations.ActivationDataModule`, with depth in its fingerprints."""
        described = super().describe()
        for name, indices in {"dataset_fingerprint": self.used, "test_fingerprint": self.split["test"]}.items():
            digest = hashlib.sha256(described[name].encode())
            for index in indices:
                digest.update(f"\x1e{self.source.depth_key(index)}".encode())
            described[name] = digest.hexdigest()
        return described

    def _encode(self) -> None:
        _ = self.source  # refuses images without depth before any is encoded
        super()._encode()

    def _read(self) -> None:
        """Read the depth; with ``on_error=skip``, images whose depth cannot be decoded are left out of their split."""
        for side in self._sides:
            self._tables[side] = torch.full((len(self.used), side, side, 1), torch.nan)
        failed: list[int] = []
        for row, index in enumerate(progress.track(self.used, "read depth", "image")):
            try:
                depth = self.source.depth(index)
            except InputError:
                if self.source.on_error == "raise":
                    raise
                failed.append(index)
                continue
            for side, table in self._tables.items():
                table[row] = depth_means(depth, side)[..., None]
        if failed:
            names = [self.source.name(index) for index in failed]
            self.store.skipped = [*self.store.skipped, *names]
            log.warning("Skipped %d images whose depth cannot be decoded: %s", len(failed), ", ".join(names))
        finest = self._tables[max(self._tables)]
        for name in ("train", "val", "test"):
            if self.split[name] and not finest[self._rows[self.split[name]]].isfinite().any():
                raise InputError(
                    f"Expected depth for the {name} split, but none of its images has any. Check the image source."
                )
            self.split[name] = [index for index in self.split[name] if index not in failed]


def depth_means(depth: Float[Tensor, "size size"], side: int) -> Float[Tensor, "{side} {side}"]:
    """Mean depth in each of side × side equal cells, float32, over the pixels that have one; NaN in cells without any.

    >>> depth_means(torch.tensor([[2.0, 4.0], [0.0, 6.0]]), 1).tolist()
    [[4.0]]
    """
    known = depth.isfinite() & (depth > 0)
    pixels = len(depth) // side
    values, counts = (
        part.double().unflatten(1, (side, pixels)).unflatten(0, (side, pixels)).sum((1, 3))
        for part in (torch.where(known, depth, 0), known)
    )
    return (values / counts).float()


class ContentDataModule(TargetDataModule):
    """An :class:`~datamodules.activations.ActivationDataModule` whose batches have the content of every token as target.

    A token's content, (N, V) float32, is the mean of the image's clean latent over the token's cell; V is the number of its
    channels, 4 in Stable Diffusion. It does not depend on the noise or the mitigations that the tokens went through.

    Args:
        images: an image source.
        backbone: a frozen checkpoint.
        block: layers to read.
        splits: ``default`` or ``loos2025``.
        sampling: ``stratified`` or ``all``.
        token_batch: tokens per layer and training step.
        mixing_images: images that are mixed with one another.
        activation_budget: GiB of tokens that stay on the device between epochs.
        labels: file of hand-labelled high-norm tokens, or None.
        labels_side: tokens per side of the labelled grid.
        **options: settings of every data module, see :class:`~datamodules.base.StreamOptions`.

    Raises:
        InputError: as :class:`~datamodules.activations.ActivationDataModule`; in :meth:`prepare_data`, training images that are
            all equal.

    Example:
        >>> from datamodules.images.texture import LatentTextures
        >>> from sdprobe import FrozenSD
        >>> data = ContentDataModule(LatentTextures(size=128, limit=20), FrozenSD.from_pretrained("tiny"), block="up_1")
        >>> data.prepare_data()
        >>> tuple(data.training_targets("up_1").shape)  # images, h, w, V
        (6, 8, 8, 4)
    """

    kind, reading = "content", "read latents"

    @property
    def target_channels(self) -> int:
        """Channels of the latents."""
        return int(self.backbone.encoder.vae.config.latent_channels)

    def _read(self) -> None:
        means_by_side: dict[int, list[Tensor]] = {side: [] for side in self._sides}
        for index in progress.track(self.used, "read latents", "image"):
            latent = self.store[index]
            for side, means in means_by_side.items():
                means.append(latent_means(latent, side))
        self._tables.update({side: torch.stack(means_by_side.pop(side)) for side in self._sides})
        if not any((content - content.mean(0)).any() for content in map(self.training_targets, self.shapes)):
            raise InputError(
                f"Expected training images that differ, but got only equal ones ({len(self.split['train'])}). Use more images."
            )


def latent_means(latent: Float[Tensor, "v h w"], side: int) -> Float[Tensor, "{side} {side} v"]:
    """Mean of a latent in each of side × side equal cells, float32.

    >>> latent_means(torch.tensor([[[2.0, 4.0], [0.0, 6.0]]]), 1).tolist()
    [[[3.0]]]
    """
    return adaptive_avg_pool2d(latent.float(), side).permute(1, 2, 0).contiguous()

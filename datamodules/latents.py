"""LatentStore and LatentCache: every image is encoded once, on its first use, and read from disk afterwards.

Data path step 2. There is one safetensors file per latent. Its name is a digest of everything the latent depends on (image
content, encoder weights, range, posterior, dtype, size); ``sdprobe/utilities/tensor_cache.py`` keeps them.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.images.source import DrawnImages, ImageSource, Item, LatentSource
from datamodules.images.views import Viewed, shown
from sdprobe.backbones.latents import LatentEncoder, warn_if_unusual
from sdprobe.tokens.views import View
from sdprobe.utilities import progress
from sdprobe.utilities.distributed import Processes
from sdprobe.utilities.errors import InputError, Unfit
from sdprobe.utilities.tensor_cache import TensorCache

log = logging.getLogger(__name__)
# a picture is nearly blank if no channel's standard deviation over pixels, which are in [0, 1], reaches this
FAINT = 0.02
BLANK = "blank"  # text in the cache entry of such a picture
_named: set[str] = set()  # digests of the nearly blank files that were named


class LatentCache(TensorCache):
    """Latents on disk below ``root``."""

    def __init__(self, root: str | Path) -> None:
        super().__init__(root, "latents")

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise Unfit unless there is a latent (C, h, w)."""
        latent = tensors.get("latent")
        if latent is None or latent.ndim != 3 or not latent.is_floating_point():
            raise Unfit("no latent")

    def get(self, *key: str) -> Float[Tensor, "c h w"] | None:
        """Return the latent stored under ``key``, or None. A damaged entry is removed and counts as missing."""
        found = self.read(*key)
        return found[0]["latent"] if found else None

    def put(self, latent: Float[Tensor, "c h w"], *key: str, **texts: str) -> None:
        """Store a latent with texts. Raises InputError if the disk is full or the folder cannot be written to."""
        self.write({"latent": latent}, *key, **texts)


class LatentStore:
    """Item index → latent. The latents of a :class:`LatentSource` are passed on: nothing is encoded or stored.

    Args:
        images: source of pixels or latents.
        encoder: encodes the images that the cache lacks.
        cache: stores latents.
        seed: seed of posterior samples.
        batch_size: images per encoder pass.
        num_workers: worker processes that decode images.
    """

    def __init__(
        self, images: ImageSource, encoder: LatentEncoder, cache: LatentCache, seed: int, batch_size: int, num_workers: int
    ) -> None:
        self.images = images
        self.encoder = encoder
        self.cache = cache
        self.seed = seed
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.skipped: list[str] = []
        self._blank: set[int] = set()
        self.encoded = 0

    def __getitem__(self, index: int) -> Float[Tensor, "c h w"]:
        if isinstance(self.images, LatentSource):
            return self.images.latent(index)
        latent = self.cache.get(*self._key(index))
        if latent is None:  # damaged or deleted after prepare()
            [latent] = self._encode({index: self.images[index]})
        return latent

    def prepare(self, indices: Sequence[int]) -> list[int]:
        """Encode the images that the cache lacks.

        Several processes call this together: each encodes a shard, and all return when every latent is stored.

        Returns:
            The indices that have a latent: all of them, unless the source's ``on_error`` is ``skip``.

        Raises:
            InputError: in every process, if an item cannot be decoded and the source's ``on_error`` is ``raise``.
        """
        processes = Processes.current()
        own = [] if isinstance(self.images, LatentSource) else processes.shard(indices)
        lacking: set[int] = set()
        for index in own:
            entry = self.cache.read(*self._key(index))
            if entry is None:
                lacking.add(index)
            elif BLANK in entry[1]:
                self._blank.add(index)
        wanted = set().union(*processes.all_gather(lacking))
        # whole batches are distributed, since the encoder's rounding may depend on the images in a batch
        ordered = [index for index in indices if index in wanted]
        batches = [ordered[start : start + self.batch_size] for start in range(0, len(ordered), self.batch_size)]
        failed: set[int] = set()
        error = None
        try:
            failed = self._encode_all([i for batch in processes.shard(batches) for i in batch])
        except InputError as caught:
            error = caught
        outcomes = processes.all_gather((failed, self._blank, str(error) if error else None))
        if error or any(message for *_, message in outcomes):
            raise error or InputError(next(message for *_, message in outcomes if message))
        failed = {index for indices, *_ in outcomes for index in indices}
        self._name_blank(sorted({index for _, blank, _ in outcomes for index in blank}))
        if failed:
            self.skipped = [self.images.name(index) for index in sorted(failed)]
            log.warning("Skipped %d images that cannot be decoded: %s", len(failed), ", ".join(self.skipped))
        usable = [index for index in indices if index not in failed]
        if usable and not isinstance(self.images, Viewed):  # views show pictures that were checked already, and may be grey
            warn_if_unusual(torch.stack([self[index] for index in usable[:16]]))
        return usable

    def viewed(self, view: View) -> "LatentStore":
        """Return the store of the same images in another view; this store if the view changes no picture."""
        if view.shows == View():
            return self
        images = shown(self.images, view)
        return LatentStore(images, self.encoder, self.cache, self.seed, self.batch_size, self.num_workers)

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Return the hex digest of the content of these items, in order."""
        digest = hashlib.sha256()
        for index in indices:
            digest.update(f"{self.images.name(index)}\x1f{self.images.content_key(index)}\x1e".encode())
        return digest.hexdigest()

    def _name_blank(self, blank: Sequence[int]) -> None:
        """Warn of nearly blank pictures, once per process: other views and networks see the same pictures."""
        files = {index: ":".join(self.images.content_key(index).split(":")[:2]) for index in blank}
        new = [index for index, file in files.items() if file not in _named]
        _named.update(files.values())
        if new:
            named = ", ".join(self.images.name(index) for index in new[:3]) + (", ..." if len(new) > 3 else "")
            log.warning("%d of the pictures are nearly blank: %s. Remove those that are not meant to be.", len(new), named)

    def _encode_all(self, indices: list[int]) -> set[int]:
        """Encode items and return those that could not be decoded."""
        loader = DataLoader(_Attempts(self.images, indices), self.batch_size, num_workers=self.num_workers, collate_fn=_as_list)
        failed: set[int] = set()
        if not indices:
            return failed
        with progress.step("encode images", "image") as step:
            step.begin(total=len(indices))
            for batch in loader:
                items = dict(batch)
                for index in [index for index, item in items.items() if isinstance(item, InputError)]:
                    if self.images.on_error == "raise":
                        raise items[index]
                    failed.add(index)
                    del items[index]
                self._encode(items)
                step.advance(len(batch))
        return failed

    def _encode(self, items: dict[int, Item]) -> list[Tensor]:
        if not items:
            return []
        latents = self._latents(list(items.values()))
        # rendered pictures and views may be blank on purpose
        photographs = not isinstance(self.images, DrawnImages | Viewed)
        blank = {index for index, item in items.items() if photographs and item["image"].std((1, 2)).max() < FAINT}
        for index, latent in zip(items, latents, strict=True):
            self.cache.put(latent, *self._key(index), **({BLANK: "yes"} if index in blank else {}))
        self._blank |= blank
        self.encoded += len(latents)
        return latents

    def _latents(self, items: list[Item]) -> list[Tensor]:
        """Latents of a batch; it is halved if device memory runs out."""
        try:
            images = torch.stack([item["image"] for item in items])
            return list(self.encoder(images, [item["id"] for item in items], self.seed).cpu())
        except torch.OutOfMemoryError as error:
            if len(items) == 1:
                raise InputError(
                    "Expected one image to fit in device memory for encoding, but it does not. "
                    "Lower images.size, or use device=cpu."
                ) from error
        half = len(items) // 2
        log.warning("Out of device memory: encoding %d images at a time; numbers stay the same.", half)
        return self._latents(items[:half]) + self._latents(items[half:])

    def _key(self, index: int) -> tuple[str, ...]:
        # posterior samples are keyed by the item's id, so a latent depends on it too
        sampled = self.images.name(index) if self.encoder.posterior == "sample" else ""
        return self.images.content_key(index), self.encoder.key(self.seed), sampled


class _Attempts(Dataset[tuple[int, Item | InputError]]):
    """Items, or the errors that decoding them raised: an exception of a worker process would lose its type."""

    def __init__(self, images: ImageSource, indices: Sequence[int]) -> None:
        self.images = images
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[int, Item | InputError]:
        index = self.indices[position]
        try:
            return index, self.images[index]
        except InputError as error:
            return index, error


def _as_list(batch: list[tuple[int, Item | InputError]]) -> list[tuple[int, Item | InputError]]:
    return batch

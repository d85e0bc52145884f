"""LatentStore: the latents of an image source, each encoded on its first use and read from the cache ever after.

Data path step 2.
"""

import hashlib
import logging
from collections.abc import Sequence

import torch
from jaxtyping import Float
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from backbones.latents import LatentEncoder, warn_if_unusual
from datamodules.cache import LatentCache
from datamodules.images.given import LatentSource
from datamodules.images.source import ImageSource, Item
from datamodules.images.viewed import Viewed
from mitigations.views import View
from tokens.errors import InputError
from tokens.processes import Processes

log = logging.getLogger(__name__)


class LatentStore:
    """Item index → latent. A source that gives latents itself is passed through: nothing is encoded or kept.

    Args:
        images: where pixels, or latents, come from.
        encoder: runs on misses only.
        cache: where latents stay.
        seed: of posterior samples.
        batch_size: images per encoder pass.
        num_workers: processes that decode images.
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
        self.encoded = 0

    def __getitem__(self, index: int) -> Float[Tensor, "c h w"]:
        if isinstance(self.images, LatentSource):
            return self.images.latent(index)
        latent = self.cache.get(*self._key(index))
        if latent is None:  # damaged or deleted since prepare()
            [latent] = self._encode({index: self.images[index]})
        return latent

    def prepare(self, indices: Sequence[int], processes: Processes = Processes()) -> list[int]:  # noqa: B008  # frozen
        """Encode what the cache lacks; returns the indices that have a latent (all, unless ``on_error`` is ``skip``).

        Several processes encode a share each, and return when all latents are there.

        Raises:
            InputError: in every process, where an item cannot be decoded and the source's ``on_error`` is ``raise``.
        """
        own = [] if isinstance(self.images, LatentSource) else processes.share(indices)
        lacking = [index for index in own if self.cache.get(*self._key(index)) is None]
        failed: set[int] = set()
        error = None
        try:
            failed = self._encode_all(lacking, shown=processes.rank == 0)
        except InputError as caught:
            error = caught
        outcomes = processes.gathered((failed, str(error) if error else None))
        if error or any(said for _, said in outcomes):
            raise error or InputError(next(said for _, said in outcomes if said))
        failed = {index for indices, _ in outcomes for index in indices}
        if failed:
            self.skipped = [self.images.name(index) for index in sorted(failed)]
            log.warning("Skipped %d images that cannot be decoded: %s", len(failed), ", ".join(self.skipped))
        usable = [index for index in indices if index not in failed]
        if usable and not isinstance(self.images, Viewed):  # a view of pictures that were looked at may be grey
            warn_if_unusual(torch.stack([self[index] for index in usable[:16]]))
        return usable

    def viewed(self, view: View) -> "LatentStore":
        """The latents of the same images shown as ``view`` says; this store where that changes no picture."""
        if view.shows == View():
            return self
        return LatentStore(Viewed(self.images, view), self.encoder, self.cache, self.seed, self.batch_size, self.num_workers)

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Digest of the content of these items, in order."""
        digest = hashlib.sha256()
        for index in indices:
            digest.update(f"{self.images.name(index)}\x1f{self.images.content_key(index)}\x1e".encode())
        return digest.hexdigest()

    def _encode_all(self, indices: list[int], shown: bool = True) -> set[int]:
        """Encode items and return those that could not be decoded."""
        loader = DataLoader(_Attempts(self.images, indices), self.batch_size, num_workers=self.num_workers, collate_fn=_as_list)
        failed = set()
        for batch in track(loader, "encoding images", total=len(loader), disable=not (indices and shown)):
            items = dict(batch)
            for index in [index for index, item in items.items() if isinstance(item, InputError)]:
                if self.images.on_error == "raise":
                    raise items[index]
                failed.add(index)
                del items[index]
            self._encode(items)
        return failed

    def _encode(self, items: dict[int, Item]) -> list[Tensor]:
        if not items:
            return []
        latents = self._latents(list(items.values()))
        for index, latent in zip(items, latents, strict=True):
            self.cache.put(latent, *self._key(index))
        self.encoded += len(latents)
        return latents

    def _latents(self, items: list[Item]) -> list[Tensor]:
        """Latents of a batch; in halves where device memory runs out."""
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
    """Items, or the error that decoding them raised: a worker's exception would lose its type on the way back."""

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

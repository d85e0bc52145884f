"""LatentCache: every image is encoded once, ever. Data path step 2.

One safetensors file per latent, named by a digest of everything the latent depends on (image content, encoder weights,
range, posterior, dtype, size, the VERSIONs of the code). Files appear by atomic rename, so a killed process leaves no half
entry and two processes may share a folder; each file carries a checksum, so damage is noticed and the entry rebuilt.
"""

import errno
import hashlib
import logging
import os
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from tokens.errors import InputError
from tokens.io import DamagedFile, read_tensors, write_tensors

log = logging.getLogger(__name__)


class LatentCache:
    """Latents on disk below ``root``. ``hits``, ``misses`` and ``damaged`` count look-ups."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        self.hits = self.misses = self.damaged = 0

    def get(self, *key: str) -> Float[Tensor, "c h w"] | None:
        """The latent stored under ``key``; None where there is none. A damaged entry is removed and counts as none."""
        path = self._path(key)
        try:
            latent: Tensor = read_tensors(path)[0]["latent"]
        except (FileNotFoundError, NotADirectoryError, PermissionError):  # older versions wrote for their user only
            self.misses += 1
            return None
        except (DamagedFile, KeyError) as error:
            log.warning("Cache entry %s is damaged (%s); it is rebuilt.", path, error.args[-1])
            path.unlink(missing_ok=True)
            self.damaged += 1
            self.misses += 1
            return None
        self.hits += 1
        return latent

    def put(self, latent: Float[Tensor, "c h w"], *key: str) -> None:
        """Store a latent. Raises InputError when the disk is full or the folder cannot be written."""
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(path, {"latent": latent})
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
                raise
            raise InputError(
                f"Expected to store latents in {self.root}, but got '{os.strerror(error.errno)}'. "
                "Free some space, or point cache_dir at another folder."
            ) from error

    def _path(self, key: tuple[str, ...]) -> Path:
        name = hashlib.blake2b("\x1f".join(key).encode(), digest_size=20).hexdigest()
        return self.root / "latents" / name[:2] / f"{name[2:]}.safetensors"

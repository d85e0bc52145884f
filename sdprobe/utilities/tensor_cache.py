"""Tensors on disk, one safetensors file per key.

The name of a file is a digest of its key. Files appear by atomic rename, so a killed process leaves no incomplete entry, and
several processes may share a folder. Each file has a checksum; a damaged entry is removed and computed again.
"""

import errno
import hashlib
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from sdprobe.utilities.errors import InputError, Unfit
from sdprobe.utilities.io import DamagedFile, read_tensors, reason, write_tensors

log = logging.getLogger(__name__)
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)


class TensorCache:
    """Entries below ``root``/``kind``. ``hits``, ``misses`` and ``damaged`` count the look-ups.

    Args:
        root: the cache folder.
        kind: what the entries are, the name of their folder in ``root``.
    """

    def __init__(self, root: str | Path, kind: str) -> None:
        self.root = Path(root).expanduser()
        self.kind = kind
        self.hits = self.misses = self.damaged = 0

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise Unfit if the tensors of a file are no entry of this cache."""

    def read(self, *key: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Return the tensors and texts stored under ``key``, or None. A damaged entry is removed and counts as missing."""
        path = self._path(key)
        try:
            tensors, texts = read_tensors(path)
            if texts.get("entry", path.stem) != path.stem:  # older versions did not write it
                raise Unfit("the entry of another key")
            self.check(tensors)
        except (FileNotFoundError, NotADirectoryError, PermissionError):  # older versions gave other users no access
            self.misses += 1
            return None
        except (DamagedFile, Unfit) as error:
            log.warning("Cache entry %s is damaged (%s); it is rebuilt.", path, reason(error))
            with suppress(OSError):  # a folder in its place
                path.unlink(missing_ok=True)
            self.damaged += 1
            self.misses += 1
            return None
        self.hits += 1
        return tensors, texts

    def write(self, tensors: Mapping[str, Tensor], *key: str, **texts: str) -> None:
        """Store tensors and texts. Raises InputError if the disk is full or the folder cannot be written to."""
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(path, tensors, **(texts | {"entry": path.stem}))
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            raise InputError(
                f"Expected {self.root} to be a folder that {self.kind} can be written to, but got "
                f"'{os.strerror(error.errno)}'. Free some space, or set cache_dir to another folder."
            ) from error

    def _path(self, key: tuple[str, ...]) -> Path:
        name = hashlib.blake2b("\x1f".join(key).encode(), digest_size=20).hexdigest()
        return self.root / self.kind / name[:2] / f"{name[2:]}.safetensors"

"""Files: written completely or not at all, and read with their checksum if they have one.

A file appears by a rename in its folder, so that other processes see either the old or the new content. What a killed process
leaves behind is hidden, ends in ``.tmp``, and is never read. Permissions follow the umask.
"""

import csv
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from sdprobe.utilities.errors import InputError

if TYPE_CHECKING:  # reports do not import torch
    from matplotlib.figure import Figure
    from torch import Tensor


class DamagedFile(InputError):
    """Path and reason: the content of a file is not what was written."""

    def __str__(self) -> str:
        path, reason = self.args
        return f"Expected {path} to be intact, but got '{reason}' while reading it. Delete it, and repeat what wrote it."


@contextmanager
def parsing(path: Path) -> Iterator[None]:
    """A block that parses the content of a file. Any exception in it becomes :class:`DamagedFile`."""
    try:
        yield
    except Exception as error:
        raise DamagedFile(path, str(error) or type(error).__name__) from error


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that replaces ``path`` at the end of the block. If the block raises, ``path`` does not change."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:  # files of tempfile are readable by their owner only
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_file(path: Path, content: str | bytes) -> None:
    """Write a text, as UTF-8, or bytes."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_rows(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as CSV."""
    text = StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_file(path, text.getvalue())


def write_figure(path: Path, figure: "Figure", dpi: int = 130) -> None:
    """Write a figure in the format of the file extension; the same figure gives the same bytes as PNG and PDF."""
    kind = path.suffix[1:].lower()
    with replacing(path) as file:
        figure.savefig(file, format=kind, dpi=dpi, metadata={"CreationDate": None} if kind == "pdf" else None)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DamagedFile: it is no JSON, or no object.
    """
    content = path.read_bytes()
    with parsing(path):
        return {**json.loads(content)}


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name as ``.npz``, whose format has checksums."""
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its stub confuses the arrays with an option


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file by name.

    Raises:
        DamagedFile: its content is not what was written.
    """
    content = BytesIO(path.read_bytes())
    with parsing(path), np.load(content, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], **texts: str) -> str:
    """Write tensors and texts by name as safetensors, with checksums. Returns the checksum of the tensors."""
    from safetensors.torch import save

    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    sums = _checksums(stored, texts)
    write_file(path, save(stored, texts | sums))
    return sums["digest"]


def read_tensors(path: Path, unchecked: bool = False) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """Tensors, on the CPU, and texts by name. The texts include ``digest``, the checksum of the tensors.

    Args:
        unchecked: also read a file without checksum.

    Raises:
        DamagedFile: its content is not what was written.
    """
    from safetensors.torch import load

    content = path.read_bytes()
    with parsing(path):
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        texts: dict[str, str] = header.get("__metadata__", {})
        sums = _checksums(tensors, texts)
        # latents of older versions have no checksum of their header
        if sums | texts != texts | sums or not (unchecked or "digest" in texts):
            raise ValueError("checksum mismatch")
    return tensors, texts


def _checksums(tensors: Mapping[str, "Tensor"], texts: Mapping[str, str]) -> dict[str, str]:
    """``digest`` of the tensors' bytes; ``header`` of their names, types and shapes, and of the other texts."""
    import torch

    digest, header = blake2b(digest_size=16), blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
        header.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
    header.update(repr(sorted(item for item in texts.items() if item[0] not in ("digest", "header"))).encode())
    return {"digest": digest.hexdigest(), "header": header.hexdigest()}

"""Files: written completely or not at all, and read with their checksum if they have one.

A file appears by a rename in its folder, so that other processes see either the old or the new content. What a killed process
leaves behind is hidden, ends in ``.tmp``, and is never read. Permissions follow the umask.

JSON has its checksum at ``meta.checksum``, YAML in its first line, safetensors in the header, ``.npz`` and checkpoints of
PyTorch in the archive's comment. Older versions wrote none into JSON, YAML and archives, whose members have their own.
"""

import csv
import errno
import json
import lzma
import os
import secrets
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from io import BytesIO, StringIO
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import yaml
from safetensors import SafetensorError

from sdprobe.utilities.errors import InputError, Unfit
from sdprobe.utilities.foreign import shown, special

if TYPE_CHECKING:  # reports do not import torch
    from matplotlib.figure import Figure
    from torch import Tensor

_HEADING = "# checksum: "
# the length of a ZIP archive's comment, its last field: none, and a checksum
_NO_COMMENT, _COMMENT = b"\0\0", b"\x20\0"


LARGEST_YAML = 2**18  # bytes of a configuration: that of a run has a twentieth of it
LARGEST = 2**31  # bytes of the arrays in a file: a small compressed file can hold far more than memory does


class DamagedFile(InputError):
    """Path and reason: the content of a file is not what was written."""

    def message(self) -> str:
        """Return the message with path and reason."""
        path, reason = self.args
        return f"Expected {path} to be intact, but got '{reason}' while reading it. Delete it, and repeat what wrote it."


# what values of another kind, names that are missing and deep nesting raise where content is parsed
FORM: tuple[type[Exception], ...] = (ValueError, LookupError, TypeError, ArithmeticError, RecursionError, MemoryError)
_CUT = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError)
_ARCHIVE: tuple[type[Exception], ...] = (*_CUT, OSError, RuntimeError, SyntaxError)
_REASONS: dict[type[Exception] | tuple[type[Exception], ...], str] = {
    json.JSONDecodeError: "no JSON", UnicodeError: "no UTF-8", yaml.YAMLError: "no YAML", RecursionError: "nested too deeply",
    MemoryError: "more than memory holds", _CUT: "no whole archive", SafetensorError: "no safetensors",
}  # fmt: skip


@contextmanager
def parsing(path: Path, *kinds: type[Exception]) -> Iterator[None]:
    """A block that parses the content of a file, whose exceptions of :data:`FORM` become :class:`DamagedFile`.

    Args:
        path: of the file.
        kinds: exceptions of the library that parses, which become this, too.
    """
    try:
        yield
    except (*FORM, *kinds) as error:
        raise DamagedFile(path, reason(error)) from error


def reason(error: Exception, otherwise: str = "another form") -> str:
    """Why content cannot be used, for a message: parsers describe it in their own terms, which are left out."""
    if isinstance(error, DamagedFile):
        return str(error.args[1])
    if isinstance(error, Unfit | InputError):
        return str(error)
    return next((text for kinds, text in _REASONS.items() if isinstance(error, kinds)), otherwise)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that replaces ``path`` at the end of the block. If the block raises, ``path`` does not change."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:  # files of tempfile are readable by their owner only
            yield file
            file.flush()
            os.fsync(file.fileno())  # or a machine that fails may keep the name without the content
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_file(path: Path, content: str | bytes) -> str:
    """Write a text, as UTF-8, or bytes. Returns their checksum."""
    content = content.encode() if isinstance(content, str) else content
    with replacing(path) as file:
        file.write(content)
    return checksum(content)


def read_file(path: Path, expected: str | None = None, largest: int | None = None) -> bytes:
    """The content of a file.

    Args:
        path: of the file.
        expected: its checksum, if that is known.
        largest: bytes that it may have.

    Raises:
        FileNotFoundError: there is no file.
        PermissionError: it may not be read.
        DamagedFile: its content is not what was written, or something else is in its place.
    """
    if strange := special(path):
        raise DamagedFile(path, strange)
    try:
        if largest is not None and path.stat().st_size > largest:
            raise DamagedFile(path, f"more than {largest:,} bytes")
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        raise
    except MemoryError as error:
        raise DamagedFile(path, "more bytes than memory has") from error
    except OSError as error:
        raise DamagedFile(path, error.strerror) from error
    if expected is not None and checksum(content) != expected:
        raise DamagedFile(path, "checksum mismatch")
    return content


def checksum(content: bytes) -> str:
    """BLAKE2b with 16 bytes, in hexadecimal."""
    return blake2b(content, digest_size=16).hexdigest()


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


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object with its checksum in ``meta``. NaN is refused because JSON has none."""
    meta = {**content.get("meta", {}), "checksum": _json_checksum(content)}
    write_file(path, json.dumps({**content, "meta": meta}, indent=1, allow_nan=False))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Its ``meta`` has no checksum if it was not written by :func:`write_json`.

    Raises:
        DamagedFile: it is no JSON, or no object, or not what was written.
    """
    content = read_file(path)
    with parsing(path):
        read: dict[str, Any] = json.loads(content)
        if not isinstance(read, dict):
            raise Unfit("no object")
        meta = read.get("meta")
        if isinstance(meta, dict) and "checksum" in meta and meta["checksum"] != _json_checksum(read):
            raise Unfit("checksum mismatch")
        return read


def _json_checksum(content: Mapping[str, Any]) -> str:
    """Of what JSON means, whatever its form, without the checksum itself."""
    meta = {key: value for key, value in content.get("meta", {}).items() if key != "checksum"}
    return checksum(json.dumps({**content, "meta": meta}, sort_keys=True).encode())


def write_yaml(path: Path, text: str) -> None:
    """Write YAML without comments, and its checksum as a comment in the first line."""
    write_file(path, f"{_HEADING}{checksum(text.encode())}\n{text}")


def read_yaml(path: Path, largest: int = LARGEST_YAML) -> Any:
    """The content of YAML that :func:`write_yaml` wrote, or an older version, which wrote no comment.

    Raises:
        DamagedFile: it is larger, no YAML as :func:`parsed_yaml` takes it, or not what was written.
    """
    content = read_file(path, largest=largest)
    with parsing(path, yaml.YAMLError):
        heading, _, text = content.decode().partition("\n")
        if not content or (heading.startswith("#") and heading != f"{_HEADING}{checksum(text.encode())}"):
            raise Unfit("checksum mismatch")
        return parsed_yaml(content.decode())


class _Plain(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Objects, lists, texts, dates, and numbers of at most so many digits."""

    DIGITS = 20

    def integer(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > self.DIGITS:
            raise Unfit(f"an integer of more than {self.DIGITS} digits")
        return int(self.construct_yaml_int(node))


_Plain.add_constructor("tag:yaml.org,2002:int", _Plain.integer)


def parsed_yaml(text: str) -> Any:
    """The content of YAML from others, without aliases: with a few of them a small text stands for more than memory holds.

    Raises:
        yaml.YAMLError: it is no YAML.
        ValueError: it has an alias, or a number that is none.
    """
    if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_Plain)):
        raise Unfit("aliases")
    return yaml.load(text, Loader=_Plain)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Write arrays by name as ``.npz``. Returns the checksum of the file."""
    content = BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]  # its stub confuses the arrays with an option
    return write_file(path, _sealed(content.getvalue()))


def read_arrays(path: Path, *, expected: str | None = None, unchecked: bool = False, ending: str = "") -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file by name.

    Args:
        expected: checksum of the file, if that is known.
        unchecked: also read a file of an older version, which has checksums of its arrays only.
        ending: read arrays whose names end so.

    Raises:
        DamagedFile: its content is not what was written.
    """
    content = read_file(path, expected)
    with parsing(path, *_ARCHIVE):
        _check_seal(content, unchecked)
        with zipfile.ZipFile(BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
                raise Unfit(f"arrays of more than {LARGEST:,} bytes")
        with np.load(BytesIO(content), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files if name.endswith(ending)}
            if foreign := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
                raise Unfit(f"{shown(foreign[0])} is no array")
            return arrays


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a PyTorch checkpoint."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    content = BytesIO()
    torch.save(dict(state), content)
    write_file(path, _sealed(content.getvalue()))


def read_state(path: Path) -> dict[str, Any]:
    """A PyTorch checkpoint, on the CPU, also one of an older version. No code in it is run.

    Raises:
        DamagedFile: its content is not what was written.
    """
    import torch

    content = read_file(path)
    with parsing(path, *_ARCHIVE, UnpicklingError, AttributeError, AssertionError):
        _check_seal(content, unchecked=True)
        with zipfile.ZipFile(BytesIO(content)) as members:
            if members.testzip() is not None:  # torch does not compare the checksums of members
                raise Unfit("checksum mismatch")
        try:
            return {**torch.load(BytesIO(content), map_location="cpu", weights_only=True)}
        except UnpicklingError as error:  # its own message explains how to run the code
            raise Unfit("more than tensors, numbers and texts") from error


def _sealed(archive: bytes) -> bytes:
    """A ZIP archive (``.npz`` and PyTorch's checkpoints are some) with the checksum of everything before as its comment."""
    start = archive[: -len(_NO_COMMENT)]
    return start + _COMMENT + checksum(start).encode()


def _check_seal(archive: bytes, unchecked: bool) -> None:
    """Raise Unfit if the archive is not what was sealed, or, unless ``unchecked``, was not sealed."""
    start, comment = archive[:-32], archive[-32:]
    if start.endswith(_COMMENT):
        if checksum(start[: -len(_COMMENT)]).encode() != comment:
            raise Unfit("checksum mismatch")
    elif not (unchecked and archive.endswith(_NO_COMMENT)):
        raise Unfit("checksum mismatch")


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

    content = read_file(path)
    with parsing(path, SafetensorError):
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        texts: dict[str, str] = header.get("__metadata__", {})
        sums = _checksums(tensors, texts)
        # latents of older versions have no checksum of their header
        if sums | texts != texts | sums or not (unchecked or "digest" in texts):
            raise Unfit("checksum mismatch")
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

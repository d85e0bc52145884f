"""Fits on disk: tensors in ``NAME.safetensors``, and ``NAME.json``, which says what they are and what they were fitted on."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import DamagedFile, read_json, read_tensors, write_json, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
UNBOUND = {"device", "precision", "model"}  # where a fit ran, not what it is


def write_fit(folder: Path, name: str, tensors: Mapping[str, "Tensor"], record: dict[str, Any]) -> None:
    """Write tensors and their record into a folder, which is created if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = write_tensors(folder / f"{name}.safetensors", tensors)
    write_json(folder / f"{name}.json", {"digest": digest, **record})


def find_fit(folder: str | Path, name: str, remedy: str) -> Path:
    """The folder of a fit: the given one, or its subfolder of that name. Raises InputError if neither has both files."""
    files = f"{name}.json", f"{name}.safetensors"
    path = Path(folder)
    path = path if (path / files[0]).is_file() else path / name
    if not all((path / file).is_file() for file in files):
        others = sorted(str(record_file.parent) for record_file in path.glob(f"*/{files[0]}"))
        remedy = f"Use one of {', '.join(others)}." if others else remedy
        raise InputError(f"Expected {folder} to hold {' and '.join(files)}, but it does not. {remedy}")
    return path


def read_fit(path: Path, name: str) -> tuple[dict[str, Any], dict[str, "Tensor"]]:
    """Record and tensors. Raises DamagedFile if one is damaged, or if they are of two fits, as after an interruption."""
    record, (tensors, stored) = read_json(path / f"{name}.json"), read_tensors(path / f"{name}.safetensors", unchecked=True)
    if record.get("digest") != stored.get("digest"):  # older versions wrote neither
        raise DamagedFile(path, f"{name}.json of another fit than {name}.safetensors")
    if "digest" in stored and stored.keys() - {
        "digest",
        "header",
    }:  # the name of a checksum is damaged, so nothing was compared
        raise DamagedFile(path, "checksum mismatch")
    if "checksum" not in record.get("meta", {}):
        log.warning("The %s in %s has no checksum, because an older version wrote it.", name, path)
    return record, tensors


@contextmanager
def intact(what: str, path: Path) -> Iterator[None]:
    """Raises InputError if the block cannot read a fit; ``what`` is its noun in the sentence."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        raise InputError(f"Expected an intact {what} in {path}, but got '{error.args[-1]}'. Fit it again.") from error


def check_bound(what: str, path: Path, fitted_on: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises InputError if a name that both have differs; device, precision and model path are not compared.

    Of a fit at several timesteps, ``expected`` may have some of them.
    """
    for key in sorted(expected.keys() & fitted_on.keys() - UNBOUND):
        if not (_levels(expected[key]) <= _levels(fitted_on[key]) if key == "timestep" else expected[key] == fitted_on[key]):
            was, is_now = (_shown(key, values) for values in (fitted_on, expected))
            raise InputError(
                f"Expected the {what} in {path} to be used with {key} {was}, which it was fitted on, but got {is_now}. Fit it "
                "anew for other layers, models, timesteps and protocols."
            )


def _levels(timestep: Any) -> set[Any]:
    """One timestep, or a list of several."""
    return set(timestep) if isinstance(timestep, list | tuple) else {timestep}


def _shown(key: str, values: Mapping[str, Any]) -> str:
    """A value; a digest is shortened, and told apart by model and precision."""
    if not key.endswith("_hash"):
        return str(values[key])
    named = ", ".join(str(values[name]) for name in ("model", "precision") if name in values)
    return f"{str(values[key])[:12]}…{f' ({named})' if named else ''}"

"""Model cards: files of a checkpoint are compared with the SHA-256 digests in its card.

The front matter of ``README.md`` lists them as ``sha256: {file: digest}``.
"""

import hashlib
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, metadata_load, metadata_save

from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import parsing

NAME = "README.md"
LISTED = (".safetensors", ".json", ".txt")
REMEDY = "Restore it (for a demo model: git checkout -- assets), or correct the card if you changed the file."


def check_card(folder: Path) -> None:
    """Compare every file that the card of a folder lists with its digest. A folder without such a list passes.

    Raises:
        InputError: a listed file is missing or has other content.
    """
    card = folder / NAME
    if not card.is_file():
        return
    for name, expected in listed(card).items():
        file = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"Expected {card} to list files of its folder, but got '{name}'. {REMEDY}")
        if not file.is_file():
            raise InputError(f"Expected {folder} to hold {name}, which its card lists, but there is none. {REMEDY}")
        actual = digest(file)
        if actual != expected:
            raise InputError(
                f"Expected {file} to have the SHA-256 {expected[:12]}… of its card, but got {actual[:12]}… "
                f"({file.stat().st_size:,} bytes): it is truncated or altered. {REMEDY}"
            )


def listed(card: Path) -> dict[str, str]:
    """File → digest, as the front matter of the card lists them; empty without such a list."""
    with parsing(card, yaml.YAMLError, AttributeError):
        entries = dict(ModelCard.load(card, ignore_metadata_errors=True).data.to_dict().get("sha256") or {})
    return {str(name): str(value) for name, value in entries.items()}


def list_files(folder: Path) -> None:
    """Write the digests of weights and configurations into the card of a folder. The rest of the card does not change."""
    files = sorted(path for path in folder.glob("**/*") if path.suffix in LISTED and path.is_file())
    card = folder / NAME
    front = (metadata_load(card) or {}) if card.is_file() else {}
    metadata_save(card, front | {"sha256": {path.relative_to(folder).as_posix(): digest(path) for path in files}})


def digest(file: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

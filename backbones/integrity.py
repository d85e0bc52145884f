"""Weight files against the SHA-256 digests that a model card lists: `sha256: {file: digest}` in its front matter."""

import hashlib
from pathlib import Path

from huggingface_hub import ModelCard

from tokens.errors import InputError


def check_card(folder: Path) -> None:
    """Compare every file that `folder`/README.md lists with its digest; a folder without such a list passes.

    Raises:
        InputError: a listed file is missing or has other bytes.
    """
    card = folder / "README.md"
    if not card.is_file():
        return
    for name, expected in listed(card).items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"Expected {folder} to hold {name}, which its card lists, but there is none. {REMEDY}")
        found = digest(file)
        if found != expected:
            raise InputError(
                f"Expected {file} to have the SHA-256 {expected[:12]}… of its card, but got {found[:12]}… "
                f"({file.stat().st_size:,} bytes): it is truncated or altered. {REMEDY}"
            )


REMEDY = "Restore it (for the demo model: git checkout -- assets/demo), or correct the card if you changed the weights."


def listed(card: Path) -> dict[str, str]:
    """File → digest as the card's front matter lists them; empty where it has no such list."""
    entries = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict().get("sha256") or {}
    return {str(name): str(value) for name, value in entries.items()}


def digest(file: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

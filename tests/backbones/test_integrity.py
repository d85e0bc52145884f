"""Weight files are held against the digests of their card."""

from pathlib import Path

import pytest
import yaml

from sdprobe.backbones.loading import check_card, digest, listed
from sdprobe.utilities.errors import InputError

NAME = "unet/weights.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "unet").mkdir()
    (tmp_path / NAME).write_bytes(b"0123456789" * 100)
    front = {"license": "mit", "sha256": {NAME: digest(tmp_path / NAME)}}
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(front)}---\n\n# Card\n")
    return tmp_path


def test_intact_weights_pass(folder: Path) -> None:
    check_card(folder)
    assert listed(folder / "README.md") == {NAME: digest(folder / NAME)}


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / NAME).unlink()
    with pytest.raises(InputError, match=f"to hold {NAME}, which its card lists, but there is none"):
        check_card(folder)


def test_truncated_weights_are_refused(folder: Path) -> None:
    (folder / NAME).write_bytes((folder / NAME).read_bytes()[:-1])
    with pytest.raises(InputError, match=r"999 bytes.: it is truncated or altered"):
        check_card(folder)


def test_one_altered_byte_is_refused(folder: Path) -> None:
    changed = bytearray((folder / NAME).read_bytes())
    changed[17] ^= 1
    (folder / NAME).write_bytes(bytes(changed))
    with pytest.raises(InputError, match="SHA-256"):
        check_card(folder)


@pytest.mark.parametrize("text", ["# A card without front matter\n", "---\nlicense: mit\n---\n# Card\n"])
def test_cards_without_digests_pass(folder: Path, text: str) -> None:
    (folder / "README.md").write_text(text)
    (folder / NAME).write_bytes(b"")
    check_card(folder)


def test_folders_without_a_card_pass(tmp_path: Path) -> None:
    check_card(tmp_path)

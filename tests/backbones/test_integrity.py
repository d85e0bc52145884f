"""Weight files are held against the digests of their card."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from sdprobe.backbones.cards import check_card, digest, listed
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.unlink(), f"to hold {NAME}, which its card lists, but there is none"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "999 bytes.: it is truncated or altered"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"x"), r"SHA-256 .*1,000 bytes"),
    ],
)
def test_missing_truncated_and_altered_weights_are_refused(
    folder: Path, change: Callable[[Path], object], message: str
) -> None:
    change(folder / NAME)
    with pytest.raises(InputError, match=message):
        check_card(folder)


@pytest.mark.parametrize("text", ["# A card without front matter\n", "---\nlicense: mit\n---\n# Card\n"])
def test_cards_without_digests_pass(folder: Path, text: str) -> None:
    (folder / "README.md").write_text(text)
    (folder / NAME).write_bytes(b"")
    check_card(folder)


def test_folders_without_a_card_pass(tmp_path: Path) -> None:
    check_card(tmp_path)

"""The export's command: the same bytes every time, nothing overwritten, nothing half-written."""

from pathlib import Path

import pytest

from sdprobe.scenes import spair_export
from sdprobe.scenes.__main__ import main
from sdprobe.scenes.spair_export import export
from sdprobe.utilities.errors import InputError


def contents(tree: Path) -> dict[str, bytes]:
    return {path.relative_to(tree).as_posix(): path.read_bytes() for path in tree.rglob("*") if path.is_file()}


def test_the_command_writes_the_same_bytes_every_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()  # an empty folder is welcome
        options = ["--images-per-category", "6", "--pairs-per-category", "1", "--size", "64", "--seed", "2"]
        main(["--export-spair", str(tmp_path / name), *options])
    first = contents(tmp_path / "a")
    assert first == contents(tmp_path / "b")
    counts = [first[f"Layout/large/{split}.txt"].count(b"\n") for split in ("trn", "val", "test")]
    assert 12 < sum(counts) <= 24 and max(counts) <= 8, "at most one pair of each category in each split"
    assert "48 images and {} trn, {} val, {} test pairs".format(*counts) in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_the_command_refuses_what_is_not_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    target = tmp_path / "taken"
    if kind == "folder":
        target.mkdir()
    kept = target / "note.txt" if kind == "folder" else target
    kept.write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        main(["--export-spair", str(target), "--images-per-category", "6", "--size", "64"])
    assert stopped.value.code == 1
    message = capsys.readouterr().err
    assert message.startswith(f"Expected '{target}' to be a new or empty folder, but got ") and message.count("\n") == 1
    assert kept.read_text() == "mine" and len(list(tmp_path.rglob("*"))) == (2 if kind == "folder" else 1)


def test_an_interrupted_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(spair_export, "annotation", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "tree", images_per_category=6, size=64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images_per_category": 5}, "Expected images-per-category to be at least 6, but got 5"),
        ({"pairs_per_category": 0}, "Expected pairs-per-category to be at least 1, but got 0"),
        ({"size": 100}, "Expected size to be a positive multiple of 64, but got 100"),
        ({"size": 0}, "Expected size to be a positive multiple of 64, but got 0"),
        ({"seed": -1}, "Expected seed to be at least 0, but got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        export(tmp_path / "tree", **arguments)
    assert list(tmp_path.iterdir()) == []

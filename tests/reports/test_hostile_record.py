"""A stranger's metrics.json: its numbers and names are text wherever they are shown, and never a traceback."""

import contextlib
import io
import json
import math
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sdprobe.reports.__main__ import main
from sdprobe.reports.collection import damage, read_runs, summarise
from sdprobe.reports.dispatch import draw, show
from sdprobe.reports.recorded import KINDS
from sdprobe.reports.run import Run
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import DamagedFile
from tests.reports.fabricated import fabricated, printed

VALUES: list[Any] = [
    None,
    "word",
    "",
    [],
    [1],
    [None],
    {},
    {"test": "word"},
    {"a": {"steps": 1}},
    True,
    10**400,
    2**60,
    -1,
    1.5,
]
TEXTS = {
    "style": "[red]x", "unbalanced style": "[/bold]", "link": "[link=file:///x]x[/link]", "action": "[@click=quit]x[/]",
    "formula": "$\\frac{$", "formula with a style": "$[red]$", "escape": "a\x1b[2J\x1b]0;evil\x07b", "newline": "a\nb",
    "bell": "\x07", "C1": "\x9b2J", "right to left": "\u202egnp", "surrogate": "\ud800", "null": "a\0b",
    "long": "x" * 10_000,
    "path": "../../../evil", "absolute path": "/tmp/evil", "format": "%s{0}{model}%n", "emoji": ":bomb:", "label": "_nolegend_",
    "HTML": "<script>alert(1)</script>", "table": "a | b |", "empty": " ",
}  # fmt: skip
NAMED = ("model", "weights", "probe", "control", "dataset_fingerprint")


def stored(folder: Path, run: Run, **meta: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(run.metrics | {"meta": run.meta | meta}))
    return folder


def drawn(folder: Path, run: Run) -> Path:
    np.savez(stored(folder, run) / "maps.npz", **run.maps)  # type: ignore[arg-type]  # its stub takes a table for its option
    return folder


def called(text: str, kind: str = "position", **meta: Any) -> Run:
    """A run with a layer and a mitigation of this name."""
    run, layer = fabricated(kind, **meta), text.replace("/", "_")
    metrics = {key.replace("/mid/", f"/{layer}/").replace("/up_1/", f"/mid__{layer}/"): run.metrics[key] for key in run.metrics}
    names = {"mid": layer, "up_1": f"mid__{layer}"}
    layers = [names.get(name, name) for name in run.layers]
    of_layers = {part: dict(zip(layers, run.meta[part].values(), strict=True)) for part in ("published_names", "shapes")}
    maps = {key.replace("mid/", f"{layer}/").replace("up_1/", f"mid__{layer}/"): array for key, array in run.maps.items()}
    return Run(metrics, run.meta | of_layers | {"layers": layers}, maps)


def is_harmless(text: str) -> bool:
    return all(character.isprintable() or character in "\n\u200b" for character in text)


@pytest.mark.parametrize("name", KINDS)
def test_a_wrong_value_is_told_and_a_fitting_one_shown(name: str, tmp_path: Path) -> None:
    made = fabricated("position", layers=("mid",))
    for value in VALUES:
        folder = stored(tmp_path / "run", made, **{name: value})
        if reason := damage(folder):
            with pytest.raises(DamagedFile, match=rf"meta\.{name} |meta\.\w+ lacks|infinity"):
                Run.read(folder)
            assert reason.startswith("metrics.json") and read_runs(tmp_path) == ([], {folder: reason})
        elif value is not None:
            run = Run.read(folder, maps=False)
            assert printed(lambda console, run=run: show(run, console))


CONTENT = {
    "deep nesting": b'{"meta": ' + b"[" * 100_000,
    "deep meta": b'{"meta": {"layers": ["mid"], "a": ' + b"[" * 900 + b"]" * 900 + b"}}",
    "list": b"[1, 2]",
    "text": b'"x"',
    "no meta": b'{"test/mid/rmse/all": 1}',
    "meta that is a list": b'{"meta": []}',
    "word for a number": b'{"test/mid/rmse/all": "1", "meta": {}}',
    "flag for a number": b'{"test/mid/rmse/all": true, "meta": {}}',
    "list for a number": b'{"test/mid/rmse/all": [1], "meta": {}}',
    "NaN": b'{"test/mid/rmse/all": NaN, "meta": {}}',
    "infinity": b'{"test/mid/rmse/all": 1e999, "meta": {}}',
    "long integer": b'{"test/mid/rmse/all": ' + b"9" * 4000 + b', "meta": {}}',
    "longest integer": b'{"test/mid/rmse/all": ' + b"9" * 100_000 + b', "meta": {}}',
    "key of another form": b'{"os.system": 1, "meta": {"layers": ["mid"]}}',
    "key that is a path": b'{"../../etc/passwd": 1, "meta": {}}',
    "no UTF-8": b'{"meta": {"model": "\xff"}}',
    "UTF-16": '{"meta": {}}'.encode("utf-16"),
    "null bytes": bytes(1000),
    "empty": b"",
    "two values": b"{}{}",
    "pickle": b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x94.",
    "YAML": b"!!python/object/apply:os.system [x]",
}


@pytest.mark.parametrize("name", CONTENT)
def test_what_is_no_record_is_told(name: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_bytes(CONTENT[name])
    assert damage(tmp_path / "run").startswith("metrics.json")
    for folder in (tmp_path, tmp_path / "run"):
        with pytest.raises(SystemExit) as caught:
            main([str(folder)])
        assert caught.value.code == 1 and is_harmless(capsys.readouterr().err)
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "metrics.json"]


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_shown_as_text(name: str, tmp_path: Path) -> None:
    run = called(TEXTS[name], **dict.fromkeys(NAMED, TEXTS[name]))
    found = Run.read(stored(tmp_path / "run", run), maps=False)
    shown = printed(lambda console: show(found, console)), printed(lambda console: summarise([found], tmp_path, None, console))
    assert all(map(is_harmless, shown)) and "\x1b" not in colours(found)


def colours(run: Run) -> str:
    """Escapes of the terminal that a table of names has; those that rich itself writes are of another console."""
    console = Console(color_system=None, force_terminal=False, width=200, record=True)
    with console.capture() as capture:
        for text in (run.setting, *run.layers):
            console.print(text)
    return capture.get()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["position", "statistics", "correspondence", "depth", "content", "study"])
def test_the_command_shows_and_draws_every_text(kind: str, tmp_path: Path, capsys) -> None:
    """Of every report, into the folder and nowhere else, and over links without following them."""
    (tmp_path / "note.txt").write_text("mine")
    for number, name in enumerate(("unbalanced style", "formula", "formula with a style", "escape", "path")):
        text, outer = TEXTS[name], tmp_path / str(number)
        outer.mkdir()
        folder = drawn(outer / "run", called(text, kind, model=text, control=text))
        for name in {path.name for path in draw(Run.read(folder), folder)}:
            (folder / name).unlink()
            (folder / name).symlink_to(tmp_path / "note.txt")
        for name in ("runs.csv", "runs.md", "layers_position.png"):
            (outer / name).symlink_to(tmp_path / "note.txt")
        for place in (folder, outer):
            main([str(place)])
        assert is_harmless(capsys.readouterr().out)
    assert (tmp_path / "note.txt").read_text() == "mine"
    assert not Path("/tmp/evil").exists() and not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("name", ["escape", "newline", "right to left", "surrogate", "style", "formula"])
def test_names_of_folders_are_shown_as_text(name: str, tmp_path: Path, capsys) -> None:
    """Of a run, and of one that failed; lists, tables and the files that they are written to."""
    outer = tmp_path / "runs"
    (outer / f"a{TEXTS[name]}").mkdir(parents=True)
    stored(outer / f"a{TEXTS[name]}", fabricated("position", layers=("mid",)))
    (outer / f"b{TEXTS[name]}").mkdir()
    (outer / f"b{TEXTS[name]}" / "error.txt").write_bytes(b"no \x1b[2J[red]\x9bpictures\nTraceback")
    for words in ([str(outer)], ["ls", str(outer)], ["best", "rmse", str(outer)], ["show", str(outer / f"b{TEXTS[name]}")]):
        with contextlib.suppress(SystemExit):
            main(words)
    said = capsys.readouterr()
    assert is_harmless(said.out) and is_harmless(said.err) and "pictures" in said.out
    assert all(is_harmless(path.read_text()) for path in outer.glob("*.txt"))


def test_a_giant_file_is_not_read(tmp_path: Path, capsys) -> None:
    """A file may claim far more bytes than the disk has."""
    for name in ("error.txt", "metrics.json", ".hydra/config.yaml", ".hydra/overrides.yaml"):
        file = tmp_path / name.replace("/", "_") / name
        file.parent.mkdir(parents=True)
        (tmp_path / name.replace("/", "_") / "config_hash").touch()
        with file.open("wb") as stream:
            stream.truncate(2**43)
    for words in ([str(tmp_path)], ["ls", str(tmp_path)], ["ls", str(tmp_path), "probe=position"]):
        with contextlib.suppress(SystemExit):
            main(words)
    said = capsys.readouterr()
    assert "error.txt is empty" not in said.out and "Traceback" not in said.err


def test_numbers_stay_what_they_are(tmp_path: Path) -> None:
    run = fabricated("position")
    again = Run.read(stored(tmp_path, run))
    assert again.metrics == run.metrics and again.meta == run.meta
    assert all(math.isfinite(value) for value in again.metrics.values())


@pytest.mark.parametrize(
    "content", [{}, {"mid/accuracy": "x"}, {"mid/accuracy": 1}, {"mid/accuracy": [1, 2]}, {"mid/cols": [[]]}]
)
def test_arrays_that_do_not_fit_the_numbers_are_told(content: dict[str, Any], tmp_path: Path, capsys) -> None:
    run = fabricated("position", layers=("mid",))
    folder = drawn(tmp_path / "run", Run(run.metrics, run.meta, {name: np.array(value) for name, value in content.items()}))
    assert re.fullmatch(r"(Expected .* to (fit each other|be intact).*)?", ended(folder))


def ended(folder: Path) -> str:
    """What the command ends with; nothing where it shows what there is."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        main([str(folder)])
    return said.getvalue().strip()


@pytest.mark.parametrize("member", ["objects", "bomb", "path"])
def test_arrays_of_a_stranger_are_arrays(member: str, tmp_path: Path) -> None:
    """No pickle is opened, nothing larger than 2 GiB is unpacked, and no member is written anywhere."""
    folder = drawn(tmp_path / "run", fabricated("position"))
    if member == "objects":
        np.savez(folder / "maps.npz", a=np.array([print], dtype=object))
    elif member == "path":
        np.savez(folder / "maps.npz", **{"../../evil": np.zeros(2)})  # type: ignore[arg-type]  # as above
    else:
        bomb(folder / "maps.npz")
    if member == "path":
        assert Run.read(folder).maps["../../evil"].shape == (2,)
    else:
        with pytest.raises(InputError, match=r"maps\.npz"):
            Run.read(folder)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["maps.npz", "metrics.json", "run"]


def bomb(file: Path) -> None:
    """An archive that claims 4 GiB."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(1000))
    content = bytearray(file.read_bytes())
    for mark, offset in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        place = content.index(mark) + offset
        content[place : place + 4] = struct.pack("<I", 2**32 - 2)
    file.write_bytes(content)

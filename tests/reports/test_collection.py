"""Many runs together: which are read, which are named with the reason, which files appear, what the command says."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdprobe.reports.__main__ import main
from sdprobe.reports.collection import filtered, read_runs, summarise
from sdprobe.reports.run import Run
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.locks import NO_LOCK
from tests.reports.fabricated import KINDS, behind, configured, fabricated, stored

META = {"complete": True, "layers": ["mid"], "model": "sd", "weights": "stored", "timestep": 50, "images": {"test": 7}}
DAMAGED = {
    "bare": ("{}", "metrics.json is unreadable (it lacks meta)"),
    "counts": (META | {"images": {"test": "many"}}, "metrics.json is unreadable (meta.images is not integers by name)"),
    "cut": ('{"a": 1', "metrics.json is unreadable (no JSON)"),
    "deep": ('{"a":' * 9999 + "1" + "}" * 9999, "metrics.json is unreadable (nested too deeply)"),
    "incomplete": (META | {"complete": False}, f"is incomplete; {NO_LOCK}"),
    "infinite": ('{"test/mid/rmse/all": Infinity}', "metrics.json is unreadable (test/mid/rmse/all is no number)"),
    "layers": (META | {"layers": [1]}, "metrics.json is unreadable (meta.layers is not a list of texts)"),
    "list": ("[]", "metrics.json is unreadable (no object)"),
    "meta": ('{"meta": 3}', "metrics.json is unreadable (it lacks meta)"),
    "nan": ('{"test/mid/rmse/all": NaN}', "metrics.json is unreadable (test/mid/rmse/all is no number)"),
    "nested": ('{"test/mid/rmse": {"all": 1}}', "metrics.json is unreadable (test/mid/rmse is no number)"),
    "odd": ('{"test/mid/rmse": 1}', "metrics.json has keys that this version does not know"),
    "poor": ('{"meta": {"complete": true}}', "metrics.json is not that of a run: it lacks meta.layers"),
    "words": (META | {"timestep": "fifty"}, "metrics.json is unreadable (meta.timestep is not an integer or several)"),
}  # fmt: skip


def write(folder: Path, content: str | dict[str, object]) -> Path:
    """A run folder with this metrics.json, or with this meta."""
    folder.mkdir(parents=True)
    meta = content if isinstance(content, dict) else META
    numbers = {} if isinstance(content, dict) or "meta" in content else None
    whole = json.dumps({"meta": meta}) if isinstance(content, dict) else content
    if numbers is None and content.startswith('{"test'):
        whole = f'{content[:-1]}, "meta": {json.dumps(META)}}}'
    (folder / "metrics.json").write_text(whole)
    return folder


@pytest.mark.parametrize("name", DAMAGED)
def test_a_foreign_result_is_named_with_what_is_wrong(name: str, tmp_path: Path) -> None:
    content, reason = DAMAGED[name]
    write(tmp_path / name, content)
    assert read_runs(tmp_path) == ([], {tmp_path / name: reason})


def test_runs_are_read_in_order_and_others_are_named(tmp_path: Path) -> None:
    for name, meta in {"10": {}, "2": {}, "3": {}, "maps": {"control": "trained"}}.items():
        write(tmp_path / name, META | meta)
    for name in ("3", "maps"):  # only contrasts of controls need maps
        (tmp_path / name / "maps.npz").write_bytes(b"PK\x03\x04 cut off")
    (write(tmp_path / "failed", META) / "error.txt").write_text("Expected a, but got b.\n\nTraceback")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "config_hash").write_text("x")
    runs, skipped = read_runs(tmp_path)
    assert [run.folder.name for run in runs] == ["2", "3", "10"]
    assert {path.name: reason for path, reason in skipped.items()} == {
        "failed": "Expected a, but got b.",
        "killed": f"has no result; {NO_LOCK}",
        "maps": "maps.npz is unreadable (checksum mismatch)",
    }


def test_a_run_that_only_began_is_named(tmp_path: Path) -> None:
    (tmp_path / "begun" / ".hydra").mkdir(parents=True)
    (tmp_path / "begun" / ".hydra" / "overrides.yaml").write_text("- seed=1\n")
    assert read_runs(tmp_path) == ([], {tmp_path / "begun": f"has no result; {NO_LOCK}"})


def test_an_enormous_result_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdprobe.reports.collection.LARGEST", 10)
    write(tmp_path / "huge", META)
    assert read_runs(tmp_path)[1] == {tmp_path / "huge": "metrics.json is too large: 0 MiB"}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder with a run of every kind, one that compares mitigations, and one that failed."""
    for kind in KINDS:
        splits = "loos2025" if kind == "study" else "default"
        stored(fabricated(kind, seed=0, image_size=512), configured(tmp_path / kind, splits=splits))
    stored(behind("position", "leace", layers=["mid", "up_1"], seed=0, image_size=512), configured(tmp_path / "compared"))
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "error.txt").write_text("Expected [red]x, but got y.")
    return tmp_path


def test_the_command_prints_the_tables_and_writes_every_file(
    mixed: Path, snapshot: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(mixed)])
    *printed, last = capsys.readouterr().out.splitlines()
    text = (mixed / "report.txt").read_text()
    snapshot("runs_mixed", text.partition("Mitigations of")[0])
    assert [line.rstrip() for line in printed[: text.count("\n")]] == text.splitlines(), "printed and written"
    paths = list(map(Path, printed[text.count("\n") :]))
    assert last == f"Open first: {mixed / 'layers_position.png'}" and all(path.is_file() for path in paths)
    tasks = ("statistics", "correspondence", "depth", "content", "equivariance")
    figures = {f"layers_{task}" for task in ("position", *tasks)} | {f"position_against_{task}" for task in tasks}
    figures |= {"selected_layers", "layers_position_scenes_160_images_splits_loos2025"}
    assert {path.stem for path in paths if path.suffix == ".png"} == figures
    for name in figures:
        with Image.open(mixed / f"{name}.png") as picture:
            assert max(picture.size) <= 2000 and np.asarray(picture.convert("L")).std() > 5, name
    with (mixed / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for run in read_runs(mixed)[0]:
        own = [row for row in rows if row["run"] == run.folder.as_posix()]
        assert [row["layer"] for row in own] == run.bases
        for row in own:
            assert float(row["value"]) == run.value("test", row["layer"], row["metric"]), "unrounded"


def test_figures_may_be_pdf(mixed: Path) -> None:
    main([str(mixed), "--where", "probe=depth", "--format", "pdf"])
    assert (mixed / "layers_depth.pdf").read_bytes().startswith(b"%PDF") and not (mixed / "layers_depth.png").exists()


def test_filters_keep_runs_and_failed_runs_of_a_setting(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        stored(fabricated("position", ["mid"], seed=seed), configured(tmp_path / name, seed=seed))
        configured(tmp_path / f"failed_{name}", seed=seed)
        (tmp_path / f"failed_{name}" / "error.txt").write_text("no")
    kept, left = filtered(*read_runs(tmp_path), ["seed=1"])
    assert [run.folder.name for run in kept] == ["b"] and [path.name for path in left] == ["failed_b"]
    with pytest.raises(InputError, match="Expected a setting that one of these runs has, but got 'sed'"):
        filtered(*read_runs(tmp_path), ["sed=1"])


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ({}, "Expected a run folder or a folder that contains runs, but '{}' has no run. Correct the path.\n"),
        ({"a": "{}"},
         "Expected runs with a result, but the one run in '{}' has none. a: metrics.json is unreadable (it lacks meta)\n"),
        ({"a": "[]", "b": "[]"},
         "Expected runs with a result, but none of the 2 runs in '{}' has one. "
         "a: metrics.json is unreadable (no object)\n"),
    ],
)  # fmt: skip
def test_a_folder_without_results_is_one_sentence(
    contents: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in contents.items():
        write(tmp_path / name, content)
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path)])
    assert stopped.value.code == 1 and capsys.readouterr().err == said.format(tmp_path)
    assert not (tmp_path / "report.txt").exists()


def test_names_with_markup_and_formulas_are_text(tmp_path: Path) -> None:
    model, root = "$\\frac{$ [bold]net", "/data/$x$ [red]photos"
    for name, meta in {"[blue]one": {"model": model}, "two": {"model": "[/] other"}}.items():
        run = fabricated("position", seed=0, image_size=512, **meta)
        stored(run, configured(tmp_path / name, images="folder", images__root=root))
    summarise(read_runs(tmp_path)[0], tmp_path)
    text = (tmp_path / "report.txt").read_text()
    assert all(name in text for name in ("[blue]one", "$\\frac{$ [ bold]net", "$x$ [red]photos", " other"))


def test_runs_without_known_settings_or_numbers_are_in_the_table(tmp_path: Path) -> None:
    strange = Run({}, META | {"probe": "strange"}, {})
    for name in ("a", "b"):
        stored(strange, tmp_path / name)
    summarise(read_runs(tmp_path)[0], tmp_path)
    text = (tmp_path / "report.txt").read_text()
    assert "No main number" in text and text.count("probe=strange: sd, timestep 50") == 2

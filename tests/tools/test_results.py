"""``make results``: steps are measured once, documents are rewritten block by block, and changes are printed."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdprobe.utilities.errors import InputError
from tools import explorer, published, steps
from tools.documents import changes, names, rewritten
from tools.plan import Plan
from tools.results import regenerate
from tools.steps import ROOT, Step, state_of, train
from tools.wording import Estimate, Measured, effect, half_width

COUNT = "from pathlib import Path; p = Path('FOLDER/count'); p.write_text(p.read_text() + 'x' if p.exists() else 'x')"
DOCUMENT = "# Title\n\nProse .9.\n\n<!-- results:accuracy -->\nold .5\nkept\n<!-- /results -->\n\nMore.\n"


def counted(name: str = "one", code: str = COUNT, **options: Any) -> Step:
    return Step(name, (("-c", code),), **options)


def picture(folder: Path) -> Path:
    Image.fromarray(np.full((4, 4, 3), len((folder / "count").read_text()), np.uint8)).save(folder / "figure.png")
    return folder / "figure.png"


def plan(*given: Step) -> Plan:
    return Plan(
        steps=given or (counted(),),
        blocks={"accuracy": (("one",), lambda folder: f"new {(folder / 'count').read_text()}\nkept")},
        figures={"figure.png": ("one", picture)},
        documents=("README.md",),
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text(DOCUMENT)
    return tmp_path


def test_a_finished_step_is_skipped_and_nothing_changes_then(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert regenerate(plan(), root, root / "work") == 0
    told = capsys.readouterr().out
    assert "README.md, accuracy:\n  -old .5\n  +new x\nfigure.png: pixels changed" in told and "kept" not in told
    assert (root / "README.md").read_text() == DOCUMENT.replace("old .5", "new x")
    assert regenerate(plan(), root, root / "work") == 0
    assert "one: finished already\nNothing changed." in capsys.readouterr().out


def test_it_runs_anew_once_its_command_or_the_code_changes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regenerate(plan(), root, root / "work")
    regenerate(plan(counted(code=COUNT.replace("'x'", "'y'"))), root, root / "work")
    assert "new y" in (root / "README.md").read_text()  # in an empty folder: not xy
    monkeypatch.setattr(steps, "source_digest", lambda: "other code")
    (root / "work/one/left").touch()
    regenerate(plan(counted(code=COUNT.replace("'x'", "'y'"))), root, root / "work")
    assert not (root / "work/one/left").exists()


def test_settings_and_named_sources_count_as_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one, two = (state_of(train("a", "probe=position", f"timestep={timestep}")) for timestep in (50, 51))
    monkeypatch.setattr(steps, "_settings", lambda command: "as if a default had changed")
    assert len({one, two, state_of(train("a", "probe=position", "timestep=50"))}) == 3
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    (tmp_path / "code.py").write_text("1")
    before = state_of(counted(sources=("*.py",)))
    (tmp_path / "code.py").write_text("2")
    assert state_of(counted(sources=("*.py",))) != before


def test_every_named_source_is_a_file() -> None:
    patterns = {pattern for step in published.PLAN.steps for pattern in (*step.sources, *steps.RUN)}
    assert patterns and not [pattern for pattern in patterns if not list(ROOT.glob(pattern))]


def test_a_step_that_was_cut_off_goes_on_at_the_command_that_did_not_end(root: Path) -> None:
    fails = "import sys; from pathlib import Path; sys.exit(0 if Path('FOLDER/go').exists() else 3)"
    step = Step("one", (("-c", COUNT), ("-c", fails)))
    with pytest.raises(InputError, match="Expected step one to end with 0, but got 3"):
        regenerate(plan(step), root, root / "work")
    (root / "work/one/go").touch()
    assert regenerate(plan(step), root, root / "work") == 0
    assert "new x\n" in (root / "README.md").read_text()  # the first command did not run again


def test_a_command_starts_into_an_empty_folder(root: Path) -> None:
    counts = "import os, sys; sys.exit(len(os.listdir('FOLDER')))"  # a run refuses a folder with files that no run wrote
    assert regenerate(plan(Step("one", (("-c", counts), ("-c", COUNT)))), root, root / "work") == 0


def test_ctrl_c_in_a_step_leaves_it_unfinished_and_the_others_finished(root: Path) -> None:
    interrupted = counted("two", "import sys; sys.exit(130)")
    with pytest.raises(KeyboardInterrupt):
        regenerate(plan(counted(), interrupted), root, root / "work")
    assert [json.loads((root / f"work/{name}.json").read_text())["finished"] for name in ("one", "two")] == [1, 0]


def test_a_training_run_with_a_checkpoint_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(steps, "_run", lambda words, capture, name: ran.append(words))
    folder, step = tmp_path / "a", train("a", "probe=position")
    steps.perform(step, folder, "state")
    folder.with_name("a.json").write_text(json.dumps({"state": "state", "finished": 0}))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/last.ckpt").touch()
    steps.perform(step, folder, "state")
    steps.perform(step, folder, "another state")
    assert [words[1] for words in ran] == ["probe=position", f"resume={folder}", "probe=position"]
    assert ran[0][-1] == f"hydra.run.dir={folder}"


def test_check_writes_nothing_and_says_whether_anything_would_change(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert regenerate(plan(), root, root / "work", check=True) == 1  # not measured
    assert "Not measured by this code, so not compared: one." in capsys.readouterr().out
    regenerate(plan(), root, root / "work")
    assert regenerate(plan(), root, root / "work", check=True) == 0
    (root / "README.md").write_text(DOCUMENT)
    assert regenerate(plan(), root, root / "work", check=True) == 1
    assert (root / "README.md").read_text() == DOCUMENT


def test_groups_run_when_asked_for(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = plan(counted(), counted("slow", group="bench"))
    regenerate(given, root, root / "work", only=["bench"])
    assert (root / "work/slow").exists() and not (root / "work/one").exists()
    assert (root / "README.md").read_text() == DOCUMENT
    regenerate(given, root, root / "work", show=True)
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[-2:]] == [["one", "to"], ["slow", "finished"]]
    with pytest.raises(InputError, match=r"Expected --only to be one of bench, one, slow, but got 'two'"):
        regenerate(given, root, root / "work", only=["two"])


def test_what_a_command_prints_can_be_captured(root: Path) -> None:
    regenerate(plan(counted(), counted("table", "print('| a |')", capture=True)), root, root / "work")
    assert (root / "work/table/output.md").read_text() == "| a |\n"


def test_unknown_unused_and_unclosed_blocks_are_told_in_a_sentence(root: Path) -> None:
    (root / "README.md").write_text(DOCUMENT.replace(":accuracy", ":acuracy"))
    with pytest.raises(InputError, match=r"Expected the blocks of README\.md to be among accuracy, but got 'acuracy'\."):
        regenerate(plan(), root, root / "work")
    (root / "README.md").write_text("nothing")
    with pytest.raises(InputError, match=r"Expected a block results:accuracy in README\.md, but got none"):
        regenerate(plan(), root, root / "work")
    with pytest.raises(InputError, match="Close each block before the next"):
        names("<!-- results:a -->\nx\n<!-- results:b -->\ny\n<!-- /results -->")


def test_a_missing_key_leaves_its_block_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def renderer(folder: Path) -> str:
        (folder / "metrics.json").write_text('{"a": 1, "meta": {}}')
        return str(Measured.read(folder).number("b"))

    given = plan()
    assert regenerate(Plan(given.steps, {"accuracy": (("one",), renderer)}, {}, given.documents), root, root / "work") == 1
    assert (root / "README.md").read_text() == DOCUMENT
    assert "accuracy: Expected" in (told := capsys.readouterr().out) and "to have 'b', but it does not" in told


def test_blocks_are_rewritten_alone() -> None:
    text = DOCUMENT + "<!-- results:b -->\n| a \\1 |\n<!-- /results -->\n"
    after = rewritten(text, {"b": "| \\2 |"})
    assert after == text.replace("\\1", "\\2").replace("| a ", "| ")
    assert changes("a.md", text, after) == ["a.md, b:", "  -| a \\1 |", "  +| \\2 |"]
    assert rewritten(after, {"b": "| \\2 |"}) == after


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.001, -0.019, 0.02), "no change (+.001 [−.019, +.020], n = 8)"),
        (Estimate(0.001, -0.021, 0.01), "inconclusive (+.001 [−.021, +.010], n = 8)"),
        (Estimate(-0.1, -0.2, -0.03), "lower (−.100 [−.200, −.030], n = 8)"),
        (Estimate(0.0), "inconclusive (+.000, n = 8, no interval because fewer than 6 differ)"),
    ],
)
def test_no_change_needs_a_small_interval(estimate: Estimate, text: str) -> None:
    assert effect(estimate, "8") == text


def test_random_weights_have_an_interval_from_three_seeds_on() -> None:
    key = "random_weights/mid/binned_accuracy/all"
    values = {key: 0.67, f"{key}/ci_low": 0.6, f"{key}/ci_high": 0.7}
    run = {seeds: Measured(Path(), values | {f"{key}/seeds": seeds}, {"twins": 9}) for seeds in (1, 2, 3)}
    texts = [run[seeds].random("mid/binned_accuracy/all") for seeds in (1, 2, 3)]
    assert texts == [".67 (one seed)", ".67 (2 seeds)", ".67 [.60, .70]"]
    assert Measured(Path(), values, {"twins": 1}).random("mid/binned_accuracy/all") == ".67 (one seed)"  # older runs
    assert half_width(Estimate(0.5, 0.4, 0.6), "8 scenes") == ".500 ± .100 (n = 8 scenes)"


def test_cells_of_the_mitigations_tables_are_found() -> None:
    rows = ["| mitigation | PCK all |", "| --- | --- |", "| leace | .2 [.1, .3] −.3 [−.4, −.2]* |", "", "Each value."]
    text = "\n".join(["## Mitigations of mid: demo, timestep 50", "", *rows])
    tables = published.layer_tables(text)
    assert published.bare(published.cell(tables, "mid", "leace", "PCK all")) == ".2*"
    with pytest.raises(InputError, match="'depth RMSE' of leace at mid"):
        published.cell(tables, "mid", "leace", "depth RMSE")


def test_what_is_taken_from_the_tables_of_mitigations_is_what_they_hold() -> None:
    root = Path(__file__).parents[2]
    tables = (root / "docs/mitigations.md").read_text()
    assert published.extract_table(tables) in (root / "docs/results.md").read_text()
    assert published.repair_sentence(tables) in (root / "README.md").read_text()


def test_the_front_page_repeats_the_results() -> None:
    """Its summary has the cells of the tables of docs/results.md."""
    root = Path(__file__).parents[2]
    summary = (root / "README.md").read_text().split("results:summary")[1]
    results = (root / "docs/results.md").read_text()
    for name, cells in (("position", (1, 3, 5)), ("correspondence", (2, 3, 4))):
        row = results.split(f"results:{name} ")[1].splitlines()[3].split(" | ")
        assert all(row[index].strip(" |") in summary for index in cells)


def test_the_card_has_the_ceilings_of_every_stage_and_the_middle_is_used() -> None:
    card = (Path(__file__).parents[2] / "assets/demo/README.md").read_text()
    tables = card.split("results:card_ceilings -->")[1].split("<!--")[0].split(" scenes:")
    for table in tables[1:]:
        rows = dict(re.findall(r"^\| (\w+) \| (.*) \|$", table, re.M))
        assert set(rows) == set(published.STAGES) - {"conv_in"}
        lows = {stage: [float(low) for low in re.findall(r"\[(\S+),", row)] for stage, row in rows.items()}
        assert min(map(min, lows.values())) > 0 and min(max(lows[stage]) for stage in ("mid", "up_0", "up_1")) > 3
    assert [text.split()[-1] for text in tables[:2]] == ["192", "48"]  # the defaults of python -m tools.demo.ceilings


def test_every_published_block_and_figure_has_its_steps() -> None:
    known = {step.name for step in published.PLAN.steps}
    assert {name for needed, _ in published.PLAN.blocks.values() for name in needed} <= known
    root = Path(__file__).parents[2]
    found = [name for document in published.PLAN.documents for name in names((root / document).read_text())]
    assert sorted(found) == sorted(published.PLAN.blocks)
    assert {step for step, _ in published.PLAN.figures.values()} <= known
    assert all((root / figure).is_file() for figure in published.PLAN.figures)


def test_no_published_figure_is_without_a_step() -> None:
    root = Path(__file__).parents[2]
    pictures = {f"docs/{path.name}" for path in (root / "docs").iterdir() if path.suffix in (".png", ".jpg")}
    by_hand = {f"docs/{name}.png" for name in explorer.PICTURES}  # python -m tools.explorer, which needs a browser
    assert pictures - by_hand <= set(published.PLAN.figures)

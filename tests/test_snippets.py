"""Every command and every code block of the documents runs, as it is printed.

A shell types each command, with programs of the same names that write down what they were called with: so quotes, globs and
comments mean here what they mean to a reader. The default suite checks those words, runs the Python blocks whole and the
README's training commands in miniature; with ``-m slow`` those of all documents, and whole, too, with ``make demo``.
"""

import argparse
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from sdprobe.backbones.__main__ import main as layers
from sdprobe.reports.run import Run
from sdprobe.runs import configuration
from sdprobe.runs.arguments import as_overrides
from sdprobe.utilities.errors import InputError

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
CARDS = ("assets/demo/README.md", "assets/demo_dit/README.md")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", *CARDS, *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
PROGRAMS = ("python", "make", "wandb", "pytest", "pre-commit")
NO_CODE = {"text", "math", "mermaid", "yaml"}
PLACEHOLDERS = {
    "DIR": "folder", "FOLDER": "folder", "RUN": "folder", "RUN_FOLDER": "folder", "PHOTOS": "folder", "FILE": "picture.png",
    "NAME": "demo", "ROW": "12", "COL": "17", "…": "0",
}  # fmt: skip
OVERRIDE = re.compile(r"[+~]?[\w.]+=\S+")
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.S | re.M)

SMALL = ["backbone=tiny", "images.size=128", "images.limit=12", "trainer.max_epochs=1", "logger=none", "twins=0", "device=cpu"]
# statistics want 40 measured images and layers of at least 4×4 tokens; the study, 6×6; pairs, six scenes of each category
SHALLOW = "block=[conv_in,down_0_res_0]"
SMALLER = {
    "probe=statistics": [SHALLOW, "images.limit=70", "datamodule.margin=16", "datamodule.repeats=2"],
    "probe=correspondence": ["images.limit=48", "probe.min_steps=10"],
    "probe=equivariance": ["images.limit=70"],  # 40 measured images
    "probe=role": ["images.limit=80"],  # 30 fit images for the additive basis of 16×16 tokens
    "choose=[layer,timestep]": ["block=[up_1,up_2]"],  # of one chance level
    "backbone=sd15": ["backbone=tiny"],
    "block=all": ["protocol.solver=closed_form"],
    "experiment=loos2025": [SHALLOW, "probe.solver=closed_form"],
    "experiment=mitigations": ["block=mid"],  # four fit images are enough for a basis of a 2×2 grid
    "experiment=controls": ["images.limit=12"],
}


class Snippet(NamedTuple):
    """Code of a document."""

    document: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}: {self.text.splitlines()[0].split('#')[0].strip()}"


def blocks(document: str, text: str) -> list[Snippet]:
    """Fenced blocks."""
    return [Snippet(document, language, content) for _, language, content in FENCE.findall(text)]


def spans(document: str, text: str) -> list[Snippet]:
    """Commands inside sentences, and lists of overrides, which continue ``python train.py``."""
    found = []
    for span in re.findall(r"`([^`]+)`", FENCE.sub("", text)):
        line = " ".join(span.split())
        words = line.removeprefix("-m ").split()
        if re.match(r"(python|make|wandb|\.venv/bin/\w+) ", line):
            found.append(Snippet(document, "sh", line))
        elif (
            len(words) > 1 and all(map(OVERRIDE.fullmatch, words)) and not line.startswith("start=")
        ):  # tools.demo.train's option
            found.append(Snippet(document, "sh", f"python train.py {line}"))
    return found


TEXTS = {document: (ROOT / document).read_text() for document in DOCUMENTS}
BLOCKS = [block for document, text in TEXTS.items() for block in blocks(document, text)]
LINES = [
    Snippet(block.document, "sh", line)
    for block in BLOCKS
    if block.language == "sh"
    for line in block.text.splitlines()
    if line and not line.startswith(("#", "source "))
]
SPANS = [span for document, text in TEXTS.items() for span in spans(document, text)]
COMMANDS = {snippet.text.split(" #")[0].strip(): snippet for snippet in (*SPANS, *LINES)}.values()  # each once
# tests/test_saved_heads.py runs the one that needs a run
PYTHON = [block for block in BLOCKS if block.language == "python" and "RUN_FOLDER" not in block.text]
# run whole or in miniature; help runs nothing, a sweep takes an hour, and neither SPair-71k nor another run is at hand
TRAINED = [line for line in LINES if "train.py" in line.text and not re.search(r"--help| -m |images=spair|_run=RUN", line.text)]
MINIATURES = [  # each once
    line if line.document == "README.md" else pytest.param(line, marks=pytest.mark.slow)
    for line in {" ".join(shlex.split(line.text, comments=True)[2:]): line for line in reversed(TRAINED)}.values()
]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A checkout to run things in: the project's files as links, an environment in .venv, and nothing else."""
    folder = tmp_path / "checkout"
    (folder / ".venv").mkdir(parents=True)
    for path in ROOT.iterdir():
        if not (path.name.startswith(".") or path.name in ("outputs", "multirun", "wandb")):
            (folder / path.name).symlink_to(path)
    for path in Path(sys.prefix).iterdir():
        if path.name != "installed":
            (folder / ".venv" / path.name).symlink_to(path)
    (folder / ".venv" / "installed").touch()
    return folder


def typed(line: str, folder: Path) -> list[str]:
    """The words that a shell makes of a line, the program first."""
    shim = '#!/bin/sh\nprintf "%s\\0" "$0" "$@" > words\n'
    (folder / ".venv/bin").mkdir(parents=True)
    for name in PROGRAMS:
        (folder / ".venv/bin" / name).write_text(shim)
        (folder / ".venv/bin" / name).chmod(0o755)
    environment = {"PATH": f"{folder / '.venv/bin'}:/usr/bin:/bin"}
    subprocess.run(["bash", "-c", line], cwd=folder, env=environment, check=True, timeout=60)
    if not (folder / "words").exists():
        raise ValueError(f"nothing here runs '{line}'")
    program, *words = (folder / "words").read_text().split("\0")[:-1]
    return [Path(program).name, *words]


def filled(words: Sequence[str]) -> list[str]:
    """Placeholders replaced; a word in capitals that is none is an error."""
    result = []
    for word in words:
        if unknown := set(re.findall(r"\b[A-Z]{2}[A-Z_]*\b", word)) - {*PLACEHOLDERS, "PYTHON"}:
            raise ValueError(f"{word} has no meaning: {unknown}")
        result.append(re.sub(rf"\b({'|'.join(PLACEHOLDERS)})\b|…", lambda match: PLACEHOLDERS[match[0]], word))
    return result


def accepts(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -m module arguments``: the module exists and its parser takes the arguments. A bare name is a mention."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"there is no module {module}"
    if not arguments:
        return
    runnable = importlib.import_module(f"{module}.__main__" if spec.submodule_search_locations else module)
    if hasattr(runnable, "configured"):  # arguments are key=value
        runnable.configured(arguments)
        return
    parsed: list[argparse.Namespace] = []

    def only(parse: Any) -> Any:
        def parse_only(self: argparse.ArgumentParser, *given: Any, **named: Any) -> None:
            parsed.append(parse(self, *given, **named))
            raise KeyboardInterrupt  # nothing else of the module runs

        return parse_only

    with monkeypatch.context() as patch:
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, only(getattr(argparse.ArgumentParser, name)))
        with pytest.raises(KeyboardInterrupt):
            runnable.main(arguments)
    assert parsed


def check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """That a command, as the shell splits it, would be taken by its program."""
    program, *arguments = words
    match [program, *arguments]:
        case ["python", "train.py", *overrides]:
            configuration.check(as_overrides(filled(overrides)))
        case ["python", "-m", module, *rest]:
            accepts(module, filled(rest), monkeypatch)
        case ["make", *targets]:
            answer = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True)
            assert answer.returncode == 0, answer.stderr
        case ["wandb", name, *_]:
            from wandb.cli.cli import cli as wandb

            assert name in wandb.commands
        case ["pytest" | "pre-commit", *_]:
            assert (BIN / program).is_file()
        case _:
            raise ValueError(f"nothing here runs '{' '.join(words)}'")


def test_every_document_is_read_and_every_block_says_what_it_is() -> None:
    assert {block.document for block in BLOCKS} >= {"README.md", "CONTRIBUTING.md", *CARDS, "docs/architecture.md"}
    for document, text in TEXTS.items():
        assert len(re.findall(r"^ *```", text, re.M)) == 2 * len(blocks(document, text)), f"{document}: an unclosed block"
    for block in BLOCKS:
        assert block.language in {"python", "sh", *NO_CODE}, f"nothing runs the block '{block}' in '{block.language}'"
        if block.language in NO_CODE:
            assert not re.search(r"^ *(\$ |python |make |import |from \w+ import )", block.text, re.M), f"{block} is code"


def test_the_readme_has_commands_of_every_kind() -> None:
    kinds = {" ".join(line.text.split()[:2]) for line in LINES if line.document == "README.md"}
    assert {"make demo", "make test", "python train.py", "python -m"} <= kinds


@pytest.mark.parametrize("snippet", COMMANDS, ids=str)
def test_commands_are_understood_as_a_shell_splits_them(
    snippet: Snippet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(typed(snippet.text, tmp_path), monkeypatch)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("python train.py probe=positon", InputError), ("python train.py resume=SOMEWHERE", ValueError), ("ls .", ValueError),
        ("python -m sdprobe.nothing", AssertionError), ("make nothing", AssertionError), ("wandb nothing", AssertionError),
        ("python -m sdprobe.reports similarity --picture FILE", SystemExit), ("python -m sdprobe.reports", None),
    ],
)  # fmt: skip
def test_wrong_commands_are_found(line: str, error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(error) if error else nullcontext():  # a bare module is a mention
        check(typed(line, tmp_path), monkeypatch)


def test_blocks_and_spans_are_found() -> None:
    text = "Run `python train.py\nblock=mid` or `probe=depth block=all`.\n\n- A\n\n  ```python\n  1 / 0\n  ```\n\n```\nx\n```\n"
    assert [span.text for span in spans("a.md", text)] == ["python train.py block=mid", "python train.py probe=depth block=all"]
    assert [(block.language, block.text) for block in blocks("a.md", text)] == [("python", "  1 / 0\n"), ("", "x\n")]


# what a block calls → what it prints
PRINTED = {
    "DiffusionPipeline.from_pretrained(DEMO)": "95 % intervals over 6 test photographs.",
    "photographs=photographs": "95 % intervals over 6 test photographs.",
    "statistics(whole": "95 % intervals over 42 images in 20 groups.",
    "match(grid[a]": "95 % intervals over 24 pictures.",
    "PositionMean(": "torch.Size([2, 128, 4, 4])",
    "random_pipeline(": "torch.Size([2, 2, 64, 8, 8])",
    "sd.predict(": "torch.Size([8, 64, 8, 8]) tensor(",
    "sdprobe.explore(": "",
    "DiTTransformer2DModel(": "95 % intervals over 12 test photographs.",
}


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_blocks_run(
    block: Snippet, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace)
    exec(compile(block.text, block.document, "exec"), {"__name__": "__main__"})
    assert len(block.text.splitlines()) <= 10
    printed = capsys.readouterr().out
    if block.document in CARDS:
        with Image.open("bird.png") as picture:
            assert picture.size == (256, 256) and np.asarray(picture).std() > 5
    else:
        [expected] = [text for call, text in PRINTED.items() if call in block.text]
        assert expected in printed


def photographs(folder: Path) -> Path:
    """A folder DIR with pictures of noise."""
    (folder / "DIR").mkdir(exist_ok=True)
    for number in range(70):
        pixels = np.random.default_rng(number).integers(0, 256, (80, 100, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "DIR" / f"{number}.png")
    return folder / "DIR"


@pytest.mark.parametrize("snippet", MINIATURES, ids=str)
def test_train_commands_run_in_miniature(snippet: Snippet, launch: Callable[..., Run], tmp_path: Path) -> None:
    words = as_overrides(shlex.split(snippet.text, comments=True)[2:])
    overrides = [re.sub("DIR|PHOTOS", str(photographs(tmp_path)), word) for word in words]
    smaller = [change for text, changes in SMALLER.items() if text in overrides for change in changes]
    tracker = ["logger=wandb"] * any(word.startswith("logger.") for word in overrides)  # which SMALL leaves out
    assert launch(*tracker, *overrides, *smaller, figures=True).meta["complete"]


def run_as_printed(line: str, folder: Path) -> str:
    """A line in bash, in an activated environment, without network; what it wrote."""
    environment = {
        "PATH": f"{folder / '.venv/bin'}:/usr/bin:/bin", "HOME": str(folder), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline",
    }  # fmt: skip
    answer = subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.mark.parametrize("snippet", [line for line in LINES if "--help" in line.text], ids=str)
def test_help_is_given(snippet: Snippet, workspace: Path) -> None:
    assert re.search(r"^ timestep +50 ", run_as_printed(snippet.text, workspace), re.M)


@pytest.mark.parametrize("snippet", [line for line in LINES if "sdprobe.backbones" in line.text], ids=str)
def test_layers_are_listed(snippet: Snippet, capsys: pytest.CaptureFixture[str]) -> None:
    layers(shlex.split(snippet.text, comments=True)[3:])
    assert "up_1_attn_2" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("snippet", [*TRAINED, *(line for line in LINES if line.text.startswith("make demo"))], ids=str)
def test_train_commands_run_as_printed(snippet: Snippet, workspace: Path) -> None:
    photographs(workspace)
    run_as_printed(snippet.text, workspace)
    assert list(workspace.glob("outputs/*/*/metrics.json")) or list(workspace.glob("multirun/*/*/*/metrics.json"))


@pytest.mark.slow
@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_blocks_run_alone(block: Snippet, workspace: Path) -> None:
    """In a process of their own: nothing that the tests imported or set helps them."""
    (workspace / "snippet.py").write_text(block.text)
    run_as_printed("python snippet.py", workspace)


@pytest.mark.parametrize(("line", "printed"), [("make demo", "train.py probe=position block=mid"), ("make test", "-m pytest")])
def test_make_runs_what_the_readme_says(line: str, printed: str) -> None:
    assert any(snippet.text.split("#")[0].strip() == line for snippet in LINES)
    assert printed in subprocess.run([*line.split(), "-n"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

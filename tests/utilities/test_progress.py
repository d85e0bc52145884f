"""Progress: steps have numbers, only a terminal sees bars, and a step leaves one line."""

import logging
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sdprobe.utilities import progress

ROOT = Path(__file__).parents[2]
# a run of three steps, the last of which has parts; a message arrives while a bar is drawn
RUN = """
import logging, sys, time
from sdprobe.runs.console import Marked, Stderr
from sdprobe.utilities import progress
handler = Stderr()
handler.setFormatter(Marked("%(message)s"))
logging.basicConfig(level=logging.INFO, handlers=[handler])
with progress.plan(["encode images", "train heads", "random weights (seed 1)"]):
    with progress.step("encode images", "image") as step:
        step.begin(total=2)
        step.advance(2)
        logging.warning("the disk is nearly full")
    with progress.step("train heads", "step") as step:
        step.begin()
        step._noted -= 1
        assert step.due() == sys.stderr.isatty() and not step.due()
        step.detail("loss mid 1.234, loss up_1 0.123, 3 of 6 heads at their plateau")
        step.advance()
        time.sleep(0.15)
    with progress.step("random weights (seed 1)"):
        for index in progress.track(range(3), "extract activations", "image"):
            time.sleep(0.06)
"""


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def own(lines: pytest.LogCaptureFixture) -> list[str]:
    """Without lines of threads that another test left."""
    return [record.message for record in lines.records if record.name.startswith("sdprobe")]


def without_durations(text: str) -> list[str]:
    return [re.sub(r" \([\d.]+ s\)$", "", line) for line in text.splitlines()]


def in_a_terminal(columns: int) -> list[str]:
    """Everything that the run above writes to a terminal, frame by frame."""
    screen, terminal = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", RUN], stderr=terminal, stdout=terminal, env=environment)
    os.close(terminal)
    printed = b""
    while True:
        try:
            printed += os.read(screen, 65536)
        except OSError:  # the process has ended
            break
    os.close(screen)
    assert process.wait() == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", printed.decode())
    return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


def test_steps_are_numbered_and_leave_a_line_each(lines: pytest.LogCaptureFixture) -> None:
    with progress.plan(["encode images", "test"]):
        with progress.step("encode images", "image") as step:
            for _ in progress.track(range(3), "encode images", "image"):
                pass
            assert step.done == 3, "parts count for the whole"
        with progress.step("test") as step:
            step.note = "all in the cache"
    assert without_durations("\n".join(own(lines))) == [
        "Steps: 1 encode images, 2 test.", "1 of 2: encode images, 3 images", "2 of 2: test, all in the cache",
    ]  # fmt: skip


def test_a_step_that_fails_leaves_no_line(lines: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ZeroDivisionError), progress.plan(["test"]), progress.step("test"):
        raise ZeroDivisionError
    assert own(lines) == ["Steps: 1 test."]
    with progress.step("test") as step:
        assert step.label == "test", "the plan of the failed run is forgotten"


@pytest.mark.parametrize("options", [{"lines": False}, {"shown": False}])
def test_jobs_of_a_sweep_and_other_processes_leave_no_lines(lines: pytest.LogCaptureFixture, options: dict[str, bool]) -> None:
    with progress.plan(["test"], **options), progress.step("test"):
        pass
    assert not own(lines)


def test_a_pipe_gets_a_line_per_step_and_no_frames() -> None:
    answer = subprocess.run([sys.executable, "-c", RUN], cwd=ROOT, capture_output=True, text=True, check=True)
    assert without_durations(answer.stderr) == [
        "Steps: 1 encode images, 2 train heads, 3 random weights (seed 1).",
        "Warning: the disk is nearly full",
        "1 of 3: encode images, 2 images",
        "2 of 3: train heads, 1 step",
        "3 of 3: random weights (seed 1)",
    ]


@pytest.mark.parametrize("columns", [80, 200])
def test_a_terminal_sees_bars_of_one_line_with_their_number(columns: int) -> None:
    printed = in_a_terminal(columns)
    assert max(map(len, printed)) <= columns
    assert "Warning: the disk is nearly full" in printed
    bars = [line for line in printed if "━" in line or "…" in line]
    assert any(line.startswith("1 of 3: encode images, 2/2 images") for line in bars)
    [training] = {line.partition(" ━")[0] for line in bars if "loss" in line and "1 step" in line}
    assert training.startswith("2 of 3: train heads, 1 step, loss mid 1.234, loss up_1 0.123")
    assert "plateau" in training or columns == 80, "what does not fit is cut at the end"
    assert any(line.startswith("3 of 3: random weights (seed 1): extract activations, 1/3 images") for line in bars)

"""Ctrl-C in the real command: one sentence at any moment, no traceback, exit code 130."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdprobe.reports.run import Run

ROOT = Path(__file__).parents[2]
SMALL = [
    "block=up_0", "backbone=tiny", "images.size=128", "logger=none", "device=cpu", "probe.min_steps=100000", "twins=0",
]  # fmt: skip


def interrupted(*arguments: str, when: str | Path) -> str:
    """What the command prints to standard error when it is interrupted after a line with ``when``, or once a file exists."""
    process = subprocess.Popen(
        [sys.executable, "train.py", *SMALL, *arguments], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stderr is not None
    printed, deadline = b"", time.monotonic() + 120
    while not (when.exists() if isinstance(when, Path) else when.encode() in printed):
        assert process.poll() is None and time.monotonic() < deadline, printed
        if select.select([process.stderr], [], [], 0.01)[0]:
            printed += os.read(process.stderr.fileno(), 65536)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in printed + rest
    return (printed + rest).decode().splitlines()[-1]


def test_while_libraries_are_imported(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    sentence = interrupted(f"hydra.run.dir={folder}", when="Probe position")
    assert sentence == "Interrupted before the run began; nothing was started."
    assert not folder.exists()


@pytest.mark.slow
def test_while_images_are_encoded(tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    options = ["images.limit=400", f"hydra.run.dir={folder}", f"cache_dir={tmp_path / 'cache'}"]
    sentence = interrupted(*options, when=tmp_path / "cache" / "latents")
    assert sentence == f"Interrupted; continue with: python train.py 'resume={folder}' cache_dir={tmp_path / 'cache'}"
    assert Run.read(folder).meta["complete"] is False


@pytest.mark.slow
def test_in_a_sweep_between_jobs_or_in_one(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    options = ["images.limit=12", "trainer.max_epochs=1", f"hydra.sweep.dir={folder}", f"cache_dir={tmp_path / 'cache'}"]
    sentence = interrupted("-m", "seed=0,1", *options, when="Job 1 of 2")
    assert sentence == f"Interrupted; the same command with hydra.sweep.dir={folder} continues the sweep."
    assert Run.read(folder / "0").meta["complete"]

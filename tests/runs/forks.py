"""The command in a forked process, which has everything imported already: a second per run, and it can be killed."""

import gc
import json
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT
ROOT = Path(__file__).parents[2]


def begin(arguments: Sequence[str], log: Path, program: str = "train.py") -> int:
    """Start ``python train.py`` with these arguments; what it prints is added to a file. Returns the number of the process."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
        sys.argv = [program, *arguments]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if program.endswith(".py"):
            runpy.run_path(str(ROOT / program), run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def prepare(patch: Any) -> None:
    """Import what a run imports, once, and leave out what costs time: long epochs, figures, and versions of packages."""
    import datamodules.activations
    import datamodules.pairs
    import probes.correspondence
    import probes.position  # noqa: F401
    import sdprobe.runs.run
    import sdprobe.runs.tracking
    from sdprobe.runs import record

    for module in (datamodules.activations, datamodules.pairs):
        patch.setattr(module, "STEPS_PER_EPOCH", 4)
    patch.setattr(sdprobe.runs.run, "draw", lambda *_: [])
    patch.setattr(record, "_version", {name: record._version(name) for name in record.PACKAGES}.get)
    gc.collect()
    gc.freeze()


def ended(process: int) -> int:
    """Wait for a process. Returns its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def command(*arguments: str, log: Path, program: str = "train.py") -> tuple[int, str]:
    """Exit code of the command and what it printed."""
    log.unlink(missing_ok=True)
    code = ended(begin(arguments, log, program))
    return code, log.read_text()


def killed(*arguments: str, log: Path, since: str, after: float) -> bool:
    """Start the command and kill it so many seconds after it printed a text. Returns whether it still ran."""
    log.unlink(missing_ok=True)
    process = begin(arguments, log)
    while not (log.exists() and since in log.read_text()) and os.waitid(os.P_PID, process, ENDED) is None:
        time.sleep(0.01)
    time.sleep(after)
    os.kill(process, signal.SIGKILL)
    return ended(process) == -signal.SIGKILL


def numbers(folder: Path) -> dict[str, Any]:
    """The numbers of a complete run."""
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    assert metrics.pop("meta")["complete"]
    return metrics

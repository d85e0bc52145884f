"""A folder belongs to one process: the others are refused, whatever the moment, and a killed process keeps nothing."""

import json
import multiprocessing
import os
import signal
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sdprobe.utilities import locks
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.locks import FolderInUse, locked, state

FORK = multiprocessing.get_context("fork")


def holding(folder: Path, begun: Any, end: Any) -> None:
    with locked(folder):
        begun.set()
        end.wait()


def test_the_lock_is_held_within_the_block_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert state(folder)[0] is None
    with locked(folder):
        assert state(folder)[0] is True
    assert state(folder)[0] is None and not folder.exists() and folder.parent.exists()
    with locked(folder):
        (folder / "metrics.json").touch()
    assert [path.name for path in folder.iterdir()] == ["metrics.json"], "a folder with results stays, without the lock"


def test_another_process_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    begun, end = FORK.Event(), FORK.Event()
    process = FORK.Process(target=holding, args=(tmp_path / "run", begun, end))
    process.start()
    begun.wait()
    before = (tmp_path / "run" / ".lock").read_bytes()
    assert json.loads(before)["pid"] == process.pid
    with pytest.raises(FolderInUse, match=rf"to be free, but process {process.pid} on \S+, begun 20\S+ \S+ uses it\. Wait"):
        locks.acquire(tmp_path / "run")
    assert state(tmp_path / "run")[0] is True and (tmp_path / "run" / ".lock").read_bytes() == before
    with locked(tmp_path / "other"):  # another folder is free
        end.set()
        process.join()
    with locked(tmp_path / "run"):
        pass


def test_a_killed_process_keeps_nothing_even_if_its_worker_lives_on(tmp_path: Path) -> None:
    begun, (waits, ends) = FORK.Event(), os.pipe()

    def parent() -> None:
        with locked(tmp_path):
            FORK.Process(target=os.read, args=(waits, 1)).start()
            begun.set()
            os.read(waits, 1)

    process = FORK.Process(target=parent)
    process.start()
    begun.wait()
    assert state(tmp_path)[0] is True
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert state(tmp_path)[0] is False and (tmp_path / ".lock").exists()
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_bytes())["pid"] == os.getpid()
    os.write(ends, b"1")


def competing(folder: Path, until: float, inside: Any, counts: Any, number: int) -> None:
    while time.monotonic() < until:
        with suppress(FolderInUse), locked(folder):
            assert not inside.value, "two processes hold one lock"
            inside.value = 1
            (folder / "file").write_text("")
            (folder / "file").unlink()
            inside.value = 0
            counts[number] += 1


def test_of_many_processes_one_holds_the_lock_while_folders_come_and_go(tmp_path: Path) -> None:
    inside, counts = FORK.Value("i", 0), FORK.Array("i", 4)
    arguments = [(tmp_path / "run", time.monotonic() + 1, inside, counts, number) for number in range(4)]
    processes = [FORK.Process(target=competing, args=each) for each in arguments]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        state(tmp_path / "run")  # asking disturbs nobody
    assert [process.exitcode for process in processes] == [0] * 4
    assert sum(counts) > 50 and not (tmp_path / "run").exists()


def test_a_lock_that_is_no_file_of_its_own_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "note.txt"
    victim.write_text("keep")
    for number, plant in enumerate(
        (Path.mkdir, lambda path: path.symlink_to(victim), lambda path: path.hardlink_to(victim), os.mkfifo)
    ):
        (tmp_path / str(number)).mkdir()
        plant(tmp_path / str(number) / ".lock")
        with pytest.raises(InputError, match=r"\.lock to be a file.* Delete it\."):
            locks.acquire(tmp_path / str(number))
        assert state(tmp_path / str(number))[0] is None
    assert victim.read_text() == "keep"


def test_a_file_system_without_locks_costs_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    with locked(tmp_path):
        assert state(tmp_path)[0] is None
    assert not list(tmp_path.iterdir()) if tmp_path.exists() else True


def test_permissions_of_the_lock_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with locked(tmp_path):
            assert stat.S_IMODE((tmp_path / ".lock").stat().st_mode) == 0o640
    finally:
        os.umask(before)

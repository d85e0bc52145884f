"""A folder belongs to one process at a time: that of a run, or of a sweep. Importing this takes no time.

The lock is ``flock`` on the file ``.lock`` in the folder, which says who holds it. The operating system takes the lock away
when the process ends, however it ends. A killed process leaves a file without a lock, which the next process takes over.
"""

import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sdprobe.utilities.errors import InputError
from sdprobe.utilities.foreign import shown

NAME = ".lock"
PATIENCE = 0.2  # seconds until a start is refused, because state() holds a lock for a moment
LARGEST = 4096  # bytes of a lock that are read
NO_LOCK = "it has no lock: it failed, was stopped, or is run by an older version"
_held: dict[Path, int] = {}  # file → its descriptor


class FolderInUse(InputError):
    """Another process holds the lock of a folder."""


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold the lock of a folder, which is created if it does not exist. Afterwards the folder is removed if it is empty.

    Where the file system has no locks, nothing is held.

    Args:
        folder: of a run or of a sweep.

    Raises:
        FolderInUse: another process holds it. Nothing in the folder has changed.
        OSError: the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent, locked(f"{parent}/run"):
        ...     print(state(f"{parent}/run")[0])
        True
    """
    acquire(folder)
    try:
        yield
    finally:
        release(folder)


def state(folder: str | Path) -> tuple[bool | None, str]:
    """Whether a process holds the lock of a folder, and what is known about it, in words.

    Args:
        folder: of a run or of a sweep.

    Returns:
        True: a process holds it. False: its process ended on this computer without releasing it. None: there is no lock, or it
        cannot be seen from here.
    """
    try:
        file = os.open(Path(folder) / NAME, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None, NO_LOCK
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return None, NO_LOCK
        host, holder = _holder(os.read(file, LARGEST))
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True, holder or "another process"
    except OSError:  # no locks on this file system
        return None, NO_LOCK
    finally:
        os.close(file)
    if not host:
        return None, NO_LOCK
    if host == shown(socket.gethostname()):
        return False, f"{holder}, ended without a result"
    return None, f"{holder}; the lock of another computer cannot be seen from here"


def acquire(folder: str | Path) -> None:
    """Take the lock of a folder, as :func:`locked` does, until :func:`release` or the end of the process."""
    path = Path(folder) / NAME
    deadline, late = time.monotonic() + PATIENCE, False
    while (file := _lock(path, late)) is None:
        if late:
            runs, holder = state(folder)
            user = holder if runs else "another process"
            raise FolderInUse(f"Expected {folder} to be free, but {user} uses it. Wait until it ends, or use another folder.")
        time.sleep(PATIENCE / 20)
        late = time.monotonic() > deadline
    os.ftruncate(file, 0)
    os.write(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}).encode())
    _held[path.resolve()] = file


def release(folder: str | Path) -> None:
    """Release the lock of a folder, if this process holds it, and remove the folder if it is empty."""
    path = (Path(folder) / NAME).resolve()
    file = _held.pop(path, None)
    if file is not None:
        with suppress(OSError):
            path.unlink()  # while the lock is held, so that it is no one else's
            path.parent.rmdir()  # fails if it is not empty
        os.close(file)


def release_all() -> None:
    """Release every lock of this process, the last one first. Ctrl-C may call this at any time."""
    for path in reversed(list(_held)):
        release(path.parent)


def _lock(path: Path, last: bool) -> int | None:
    """A descriptor of the locked file; None if another process holds it, or removes file or folder meanwhile."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if path.is_symlink() or path.is_dir():
            raise InputError(f"Expected {path} to be a file, but got a link or a folder. Delete it.") from None
        if last or not isinstance(error, FileNotFoundError | FileExistsError):
            raise
        return None
    status = os.fstat(file)
    if status.st_nlink > 1 or not stat.S_ISREG(status.st_mode):
        os.close(file)
        raise InputError(f"Expected {path} to be a file of its own, but got a link or a device. Delete it.")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    except OSError:  # no locks on this file system
        pass
    with suppress(FileNotFoundError):
        if os.path.samestat(status, os.lstat(path)):
            return file
    os.close(file)
    return None


def _holder(content: bytes) -> tuple[str, str]:
    """(computer, which process since when) as a lock says, fit to be shown; empty texts if it says nothing yet."""
    try:
        holder = json.loads(content)
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(float(holder["started"])))
        host = shown(holder["host"])
        return host, f"process {int(holder['pid'])} on {host}, begun {began}"
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return "", ""


def _forget() -> None:
    """Close the locks in a forked process, because a worker must not keep them after its parent was killed."""
    for file in _held.values():
        os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_forget)

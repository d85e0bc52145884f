"""Repositories on the Hugging Face hub: files come from the cache, or are downloaded with one line and a bar."""

import glob
import logging
import signal
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_cached_repo_tree, get_token, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.errors import RevisionResolutionError as NotCached
from huggingface_hub.hf_api import RepoFile

from sdprobe.utilities import progress
from sdprobe.utilities.errors import InputError

log = logging.getLogger(__name__)


def size(count: int) -> str:
    """
    >>> size(812), size(43_210), size(2_130_000_000)
    ('812 bytes', '43.2 kB', '2.1 GB')
    """
    for exponent, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**exponent:
            return f"{count / 10**exponent:.1f} {unit}"
    return f"{count} bytes"


@dataclass(frozen=True)
class Repository:
    """A repository at one commit. What the cache holds is used without a request.

    Args:
        name: ``owner/name``.
        revision: branch, tag or commit; None is the default branch. A branch or tag that was asked for before keeps its commit.
        kind: ``model`` or ``dataset``.
        group: group of settings that names the repository, for messages.
        include: patterns of the files that are needed, for the command in messages.
        use: overrides that take a folder DIR instead, for messages.
        licence: to be said before a download; empty for none.
    """

    name: str
    revision: str | None
    kind: str
    group: str
    include: tuple[str, ...]
    use: str
    licence: str = ""

    def __post_init__(self) -> None:
        for library in ("huggingface_hub", "datasets"):
            if logging.getLogger().handlers:  # a log is configured; their own handlers would repeat their warnings
                logging.getLogger(library).handlers.clear()

    @cached_property
    def commit(self) -> str:
        """The commit of the revision.

        Raises:
            InputError: the hub refuses, or cannot be reached.
        """
        known = partial(HfApi().resolve_revision, self.name, repo_type=self.kind, revision=self.revision)
        with self.reaching():
            with suppress(NotCached):
                return known(local_files_only=True).resolved
            return known().resolved

    @cached_property
    def files(self) -> dict[str, int]:
        """Path → bytes of every file; of those in the cache, if an older client left no list there and the hub does not answer.

        Raises:
            InputError: the hub refuses, or cannot be reached.
        """
        try:
            return self._tree
        except InputError:
            with suppress(LocalEntryNotFoundError):
                folder = Path(snapshot_download(self.name, repo_type=self.kind, revision=self.commit, local_files_only=True))
                return {
                    path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()
                }
            raise

    @cached_property
    def _tree(self) -> dict[str, int]:
        with self.reaching():
            with suppress(CachedRepoTreeNotFoundError):
                known = get_cached_repo_tree(self.name, repo_type=self.kind, revision=self.commit)
                return {file.path: file.size for file in known}
            tree = HfApi().list_repo_tree(self.name, recursive=True, repo_type=self.kind, revision=self.commit)
            return {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}

    def fetch(self, names: Collection[str]) -> Path:
        """The folder of the commit in the cache, with these files in it.

        Files that it lacks are downloaded. A lost connection is taken up where it broke; after an interruption complete files
        are kept.

        Raises:
            InputError: the hub refuses, or cannot be reached.
        """
        cached = {name: self.cached(name) for name in names}
        missing = [name for name, path in cached.items() if path is None]
        for name, path in cached.items():
            if not missing and path is not None:
                return path.parents[name.count("/")]
        with self.reaching():
            if constants.is_offline_mode():
                raise OfflineModeIsEnabled(self.name)
        total = sum(self._tree[name] for name in missing)
        files = progress.counted(len(missing), "file")
        licence = f" (licence: {self.licence})" * bool(self.licence)
        self.announce(f"{files}, {size(total)}, to {constants.HF_HUB_CACHE}{licence}")
        with self.reaching(), _interruptible(), self.downloading(total) as step, ThreadPoolExecutor(1) as pool:
            stop = threading.Event()
            bar: Any = partial(_Bar, step, stop)  # is called like tqdm
            patterns = [glob.escape(name) for name in names]
            options = {"repo_type": self.kind, "revision": self.commit, "allow_patterns": patterns, "tqdm_class": bar}
            job = pool.submit(partial(snapshot_download, self.name, **options))
            try:
                return Path(job.result())
            except BaseException:
                stop.set()  # after Ctrl-C the client would wait until open files are complete
                raise

    def cached(self, name: str) -> Path | None:
        """The file in the cache, if it is there."""
        found = try_to_load_from_cache(self.name, name, revision=self.commit, repo_type=self.kind)
        return Path(found) if isinstance(found, str) else None

    def announce(self, text: str) -> None:
        """One line before something is downloaded."""
        log.info("Downloading %s: %s", self.name, text)

    @contextmanager
    def downloading(self, total: int) -> Iterator[progress.Step]:
        """A step that counts megabytes."""
        with progress.step(f"download {self.name}", "MB") as step:
            step.note = size(total)
            step.begin(total=max(1, total // 10**6))
            yield step

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """A block that asks the hub. What it refuses becomes an InputError with one sentence each."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # the hub's clients raise dozens of types, and wrap them in each other
            chain, current = [error], error.__cause__ or error.__context__
            while isinstance(current, Exception):
                chain.append(current)
                current = current.__cause__ or current.__context__
            # a disk that is full is no fault of the hub
            if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
                raise
            raise InputError(self._refusal(chain)) from error

    def _refusal(self, chain: list[Exception]) -> str:
        page = f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"
        if any(isinstance(error, GatedRepoError) for error in chain):
            login = " as the user that you are logged in as" if get_token() else ", then log in with `hf auth login`"
            return (
                f"Expected {self.name} to be open to you, but its licence has to be accepted first. Accept it at {page}{login}."
            )
        if any(isinstance(error, RevisionNotFoundError) for error in chain):
            return (
                f"Expected {self.group}.revision to be a branch, tag or commit of {self.name}, but got '{self.revision}', "
                f"which it does not have. {self._revisions()}"
            )
        if any(isinstance(error, RepositoryNotFoundError | HFValidationError) for error in chain):
            return (
                f"Expected {self.group}.path to be a {self.kind} repository on the Hugging Face hub, but got '{self.name}', "
                "which does not exist there or is private. Correct the name, or log in with `hf auth login`."
            )
        elsewhere = f"On a machine with network access run `{self.command()}`, copy DIR here and use {self.use}."
        if any(isinstance(error, OfflineModeIsEnabled) for error in chain):
            return (
                f"Expected the cache {constants.HF_HUB_CACHE} to hold {self.name}{self._at()}, because HF_HUB_OFFLINE is set, "
                f"but files are missing. Unset HF_HUB_OFFLINE to download them. {elsewhere}"
            )
        answers = [error.response.status_code for error in chain if isinstance(error, HfHubHTTPError)]
        if answers:
            return (
                f"Expected to download {self.name}{self._at()} from {constants.ENDPOINT}, but it answered with HTTP "
                f"{answers[0]}. Try again later."
            )
        reason = (str(chain[-1]).strip() or type(chain[-1]).__name__).splitlines()[0].rstrip(".")
        return (
            f"Expected to download {self.name}{self._at()} from {constants.ENDPOINT}, but it cannot be reached "
            f"({reason}). Try again. {elsewhere}"
        )

    def command(self) -> str:
        """The command that downloads the needed files to DIR."""
        kind = "" if self.kind == "model" else f" --repo-type {self.kind}"
        revision = f" --revision {self.revision}" if self.revision else ""
        patterns = "".join(f' --include "{pattern}"' for pattern in self.include)
        return f"hf download {self.name}{kind}{revision}{patterns} --local-dir DIR"

    def _at(self) -> str:
        return f"@{self.revision}" if self.revision else ""

    def _revisions(self) -> str:
        with suppress(Exception):  # only to be helpful
            refs = HfApi().list_repo_refs(self.name, repo_type=self.kind)
            return f"Use one of {', '.join(ref.name for ref in [*refs.branches, *refs.tags])}."
        return "Correct it."


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt in the block, also where it would end the process and leave half a file in the cache."""
    previous = signal.getsignal(signal.SIGINT)
    if not callable(previous) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


class _Bar:
    """What the hub's client takes for a bar of tqdm. Bytes are counted by the step at work; the client has two bars of them."""

    lock = threading.Lock()

    def __init__(
        self, step: progress.Step, stop: threading.Event, *_: object, unit: str = "it", total: float | None = None, **__: object
    ) -> None:
        self.step, self.stop, self.unit, self.total, self.n = step, stop, unit, total, 0
        self.format_dict: dict[str, Any] = {}

    def update(self, count: float | None = 1) -> None:
        if self.stop.is_set():
            raise InterruptedError("Ctrl-C")
        with self.lock:
            self.n += int(count or 0)
            if self.unit == "B" and (more := self.n // 10**6 - self.step.done) > 0:
                self.step.advance(more)

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def refresh(self, *_: object, **__: object) -> None:
        pass

    set_description = set_description_str = set_postfix_str = refresh

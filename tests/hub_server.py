"""A hub on the loopback address: model and data set repositories in the layout of the Hugging Face hub's HTTP API.

Served: ``/api/{models,datasets}/ID[/revision/REV]``, ``…/tree/REV``, ``…/paths-info/REV``, ``…/refs``, and
``[datasets/]ID/resolve/REV/FILE`` with ``X-Repo-Commit``, ``ETag`` and, for files of Git LFS, a redirect to another host with
``X-Linked-Size`` and ``X-Linked-ETag``. Ranges, gated repositories and the hub's error codes are as there.
"""

import hashlib
import json
import os
import signal
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LFS = (".safetensors", ".bin", ".parquet", ".png", ".ckpt")


@dataclass
class Repository:
    """Files of one commit by path, and how the hub answers for them."""

    files: dict[str, bytes]
    refs: tuple[str, ...]
    gated: bool
    commit: str = ""
    etags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.etags = {path: hashlib.sha256(content).hexdigest() for path, content in self.files.items()}
        self.commit = hashlib.sha1(repr(sorted(self.etags.items())).encode()).hexdigest()

    def entry(self, path: str) -> dict[str, object]:
        """A file as ``/tree`` lists it."""
        size, oid = len(self.files[path]), self.etags[path]
        lfs = {"lfs": {"oid": oid, "size": size, "pointerSize": 134}} if path.endswith(LFS) else {}
        return {"type": "file", "path": path, "size": size, "oid": oid[:40], **lfs}


class Hub:
    """The server, and what was asked of it.

    ``requests`` lists ``(method, path)``; ``sent`` counts the bytes of each file that were sent. ``cut`` breaks the connection
    once after so many bytes of a file.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[tuple[str, str]] = []
        self.sent: Counter[str] = Counter()
        self.cut: dict[str, int] = {}
        self.broken: set[str] = set()
        self.interrupts = ""  # the file at which the user presses Ctrl-C
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_Answers,), {"hub": self}))
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Stop to listen."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def add(
        self,
        name: str,
        content: Path | dict[str, bytes],
        kind: str = "models",
        refs: tuple[str, ...] = ("main",),
        gated: bool = False,
    ) -> Repository:
        """Publish a folder, or files by path."""
        if isinstance(content, Path):
            content = {file.relative_to(content).as_posix(): file.read_bytes() for file in content.rglob("*") if file.is_file()}
        self.repositories[f"{kind}/{name}"] = Repository(content, refs, gated)
        return self.repositories[f"{kind}/{name}"]

    def forget(self) -> None:
        """Forget what was asked for."""
        self.requests.clear()
        self.ranges.clear()
        self.sent.clear()

    def fetched(self) -> set[str]:
        """Files of which bytes were sent."""
        return set(self.sent)


class _Answers(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, url.path))
        if parts[0] == "api":
            self.api(parts[1], "/".join(parts[2:4]), parts[4:])
        elif parts[0] == "cdn":
            self.content(self.hub.repositories["/".join(parts[1:4])], "/".join(parts[4:]))
        else:
            kind = parts.pop(0) if parts[0] == "datasets" else "models"
            self.resolve(kind, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def repository(self, kind: str, name: str, revision: str) -> Repository | None:
        """The repository at a revision; otherwise the error is sent."""
        found = self.hub.repositories.get(f"{kind}/{name}")
        if f"{kind}/{name}" in self.hub.broken:
            self.error(503, "", "Service Unavailable")
        elif found is None:
            self.error(401, "RepoNotFound", "Repository not found")
        elif revision not in (*found.refs, found.commit):
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return found
        return None

    def api(self, kind: str, name: str, rest: list[str]) -> None:
        what, revision = (*rest, "main") if rest in (["refs"], ["auth-check"]) else (*rest, "revision", "main")[:2]
        repository = self.repository(kind, name, revision)
        if repository is None:
            return
        if what == "auth-check":
            if not self.forbidden(repository, name):
                self.json({})
        elif what == "refs":
            branches = [{"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": repository.commit} for ref in repository.refs]
            self.json({"branches": branches, "tags": [], "converts": []})
        elif what == "revision":
            self.json({"id": name, "sha": repository.commit, "private": False, "gated": "auto" if repository.gated else False,
                       "tags": [], "siblings": [{"rfilename": path} for path in sorted(repository.files)]})  # fmt: skip
        elif what == "tree":
            self.tree(repository, "/".join(rest[2:]))
        else:
            asked = json.loads(self.body)["paths"] if self.body[:1] == b"{" else parse_qs(self.body.decode())["paths"]
            self.json([entry for path in asked for entry in self.listed(repository, path)])

    def tree(self, repository: Repository, folder: str) -> None:
        below = [path for path in sorted(repository.files) if not folder or path.startswith(f"{folder}/")]
        if folder and not below:
            self.error(404, "EntryNotFound", "Entry not found")
            return
        entries = [repository.entry(path) for path in below]
        depth = len(folder.split("/")) if folder else 0
        folders = {"/".join(path.split("/")[:end]) for path in below for end in range(depth + 1, path.count("/") + 1)}
        entries += [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
        if parse_qs(urlsplit(self.path).query).get("recursive", ["False"])[0].lower() != "true":
            entries = [entry for entry in entries if str(entry["path"]).count("/") == depth]
        self.json(entries)

    def listed(self, repository: Repository, path: str) -> list[dict[str, object]]:
        if path in repository.files:
            return [repository.entry(path)]
        if any(name.startswith(f"{path}/") for name in repository.files):
            return [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0}]
        return []

    def forbidden(self, repository: Repository, name: str) -> bool:
        """Whether the repository is gated; then the error is sent."""
        if repository.gated:
            known = bool(self.headers.get("Authorization"))
            self.error(403 if known else 401, "GatedRepo", f"Access to {name} is restricted")
        return repository.gated

    def resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        repository = self.repository(kind, name, revision)
        if repository is None:
            return
        if path not in repository.files:
            self.error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": repository.commit})
        elif self.forbidden(repository, name):
            return
        elif path.endswith(LFS):
            self.send_response(302)
            self.head(
                {
                    "X-Repo-Commit": repository.commit,
                    "X-Linked-Size": str(len(repository.files[path])),
                    "X-Linked-ETag": f'"{repository.etags[path]}"',
                    "Location": f"http://localhost:{self.hub.port}/cdn/{kind}/{name}/{path}",  # storage is another host
                    "Content-Length": "0",
                }
            )
        else:
            self.content(repository, path, {"X-Repo-Commit": repository.commit})

    def content(self, repository: Repository, path: str, headers: dict[str, str] | None = None) -> None:
        content = whole = repository.files[path]
        asked = self.headers.get("Range")
        headers = {"ETag": f'"{repository.etags[path]}"', "Accept-Ranges": "bytes", **(headers or {})}
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            start = int(first) if first else len(whole) - int(last)
            end = min(int(last), len(whole) - 1) if first and last else len(whole) - 1
            content = whole[start : end + 1]
            headers["Content-Range"] = f"bytes {start}-{end}/{len(whole)}"
            self.hub.ranges.append((path, asked))
        self.send_response(206 if asked else 200)
        self.head({"Content-Length": str(len(content)), **headers})
        if self.command == "HEAD":
            return
        if path in self.hub.cut:
            content = content[: self.hub.cut.pop(path)]
            self.close_connection = True
        if path == self.hub.interrupts:
            self.interrupted(path, content)
            return
        self.hub.sent[path] += len(content)
        self.wfile.write(content)

    def interrupted(self, path: str, content: bytes, piece: int = 2**16) -> None:
        """The user presses Ctrl-C after the first MiB, and the rest comes slowly as long as somebody wants it."""
        for start in range(0, len(content), piece):
            if start == 2**20:
                os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.01 if start > 2**20 else 0)
            try:
                self.wfile.write(content[start : start + piece])
            except OSError:
                return
            self.hub.sent[path] += piece

    def json(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.head({"Content-Type": "application/json", "Content-Length": str(len(content))})
        self.wfile.write(content)

    def error(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        codes = {"X-Error-Code": code} if code else {}
        self.head({**codes, "X-Error-Message": message, "Content-Length": "0", **(headers or {})})

    def head(self, headers: dict[str, str]) -> None:
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

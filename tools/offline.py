"""Offline runs of wandb, read back from their files by wandb's own reader, ``wandb leet inspect``."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Offline:
    """What one part of an offline run holds: a run that was resumed has several."""

    folder: Path
    records: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> "Offline":
        """From ``…/wandb/offline-run-…``."""
        command = [sys.executable, "-m", "wandb", "leet", "inspect", str(folder), "--json"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        return cls(folder, [json.loads(line) for line in answer.stdout.splitlines()])

    def of(self, kind: str) -> Iterator[dict[str, Any]]:
        """The records of a kind."""
        return (record[kind] for record in self.records if record["type"] == kind)

    @property
    def run(self) -> dict[str, Any]:
        """Name, group, tags and id."""
        return next(self.of("run"))

    @property
    def config(self) -> dict[str, Any]:
        """As it was when the run began."""
        found: dict[str, Any] = self.run["config"]["update"]
        return found

    @property
    def history(self) -> list[dict[str, Any]]:
        """Every row that was logged."""
        return [record["item"] for record in self.of("history")]

    @property
    def layers(self) -> list[dict[str, Any]]:
        """The rows over layers, by what stands behind ``layers/``."""
        rows = [row for row in self.history if "layers/depth" in row]
        return [{name.removeprefix("layers/"): value for name, value in row.items()} for row in rows]

    @property
    def summary(self) -> dict[str, Any]:
        """What a table of runs shows, a dictionary where keys are nested."""
        found: dict[str, Any] = {}
        for record in self.of("summary"):
            for name, value in record.get("update", {}).items():
                top, _, rest = name.partition(".")
                found[top] = {**found.get(top, {}), rest: value} if rest else value
        return found

    @property
    def table(self) -> list[dict[str, Any]]:
        """The long table."""
        stored = json.loads((self.folder / "files" / self.summary["results"]["path"]).read_text())
        return [dict(zip(stored["columns"], row, strict=True)) for row in stored["data"]]


def parts(folder: Path) -> list[Path]:
    """The parts of the offline run in a run folder, in the order they were written."""
    return sorted((folder / "wandb").glob("offline-run-*"))

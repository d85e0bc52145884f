"""Who may import whom. Probes and data modules meet in tokens, and nowhere else."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "tokens": set(),
    "backbones": {"tokens"},
    "anomalies": {"tokens"},
    "mitigations": {"tokens", "anomalies"},
    "metrics": {"tokens"},
    "probes": {"tokens", "metrics"},
    "datamodules": {"tokens", "backbones", "anomalies", "mitigations"},
    "reports": {"tokens", "backbones", "datamodules", "metrics"},  # backbones and datamodules: similarity.py alone
    "demo": {"tokens", "backbones", "datamodules"},
    "runs": {"tokens", "backbones", "metrics"},  # backbones only to quieten libraries before lightning imports them
    "tools": {"tokens", "metrics", "probes", "reports", "runs", "demo"},  # nobody imports it
}


def imported(file: Path) -> set[str]:
    tree = ast.parse(file.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 0}
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_what_they_may(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        siblings = imported(file) & set(ALLOWED) - {package}
        assert siblings <= ALLOWED[package], f"{file.relative_to(ROOT)} imports {siblings - ALLOWED[package]}"


def test_reports_read_run_folders_and_only_the_similarity_sheet_runs_a_network() -> None:
    for file in set((ROOT / "reports").rglob("*.py")) - {ROOT / "reports" / "similarity.py"}:
        assert imported(file) & set(ALLOWED) <= {"reports", "metrics", "tokens"}, file
        assert not re.search(r"^ *from tokens(?!\.(io|errors|keys) import| import expect)", file.read_text(), re.M), file


def test_tokens_import_torch_only() -> None:
    for file in set((ROOT / "tokens").rglob("*.py")) - {ROOT / "tokens" / "io.py"}:
        known = {"torch", "jaxtyping", "tokens", "dataclasses", "functools", "typing", "hashlib", "collections"}
        assert imported(file) <= known, file


def test_the_entry_point_stays_short() -> None:
    assert len((ROOT / "train.py").read_text().splitlines()) <= 100


def test_nobody_prints_evaluates_or_moves_to_cuda_by_hand() -> None:
    for file in [ROOT / "train.py", *(path for package in ALLOWED for path in (ROOT / package).rglob("*.py"))]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", None)
                assert name not in ("eval", "exec", "print"), f"{file}:{node.lineno}"
                assert not (getattr(node.func, "attr", "") == "cuda" and not node.args), f"{file}:{node.lineno}"

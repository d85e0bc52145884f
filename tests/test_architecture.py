"""Allowed imports between packages: five levels, imports only of lower levels, and no import cycles."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# a package may import packages of lower levels, and the exceptions in BESIDE
LEVELS = {
    "sdprobe.utilities": 1, "sdprobe.tokens": 1,
    "sdprobe.metrics": 2, "sdprobe.estimators": 2, "sdprobe.scenes": 2, "sdprobe.backbones": 2, "sdprobe.mitigations": 2,
    "probes": 3, "datamodules": 3, "sdprobe.reports": 3, "sdprobe.api": 3,
    "sdprobe.runs": 4, "sdprobe.notebook": 4, "sdprobe.untrained": 4,
    "tools": 5, "hydra_plugins": 5,
}  # fmt: skip
BESIDE = {
    ("sdprobe.tokens", "sdprobe.utilities"),
    ("sdprobe.estimators", "sdprobe.metrics"),
    ("sdprobe.estimators", "sdprobe.mitigations"),
}
# packages of lower levels that a package must not import
NEVER = {
    "probes": {"sdprobe.backbones", "sdprobe.scenes", "sdprobe.mitigations"},  # probes read tokens, wherever they are from
    "datamodules": {"sdprobe.metrics", "sdprobe.estimators"},
    "sdprobe.api": {"sdprobe.backbones", "sdprobe.scenes", "sdprobe.mitigations"},
    "sdprobe.runs": {"probes", "datamodules", "sdprobe.mitigations", "sdprobe.estimators", "sdprobe.scenes"},  # through Hydra
}


def modules(package: str) -> dict[str, Path]:
    """Dotted name → file of every module of a package."""
    path = ROOT / package.replace(".", "/")
    files = [path.with_suffix(".py")] if path.with_suffix(".py").is_file() else path.rglob("*.py")
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


MODULES = {name: file for package in LEVELS for name, file in modules(package).items()}


def package_of(name: str) -> str | None:
    """The package of a dotted name."""
    return next((package for package in LEVELS if f"{name}.".startswith(f"{package}.")), None)


def imported(file: Path, everywhere: bool = True) -> set[str]:
    """Modules that a file imports, by dotted name; ``everywhere`` counts imports within functions, too."""
    tree = ast.parse(file.read_text())
    nodes = list(ast.walk(tree)) if everywhere else tree.body
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} has a relative import"
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("package", LEVELS)
def test_packages_import_lower_levels_only(package: str) -> None:
    for file in modules(package).values():
        for name in imported(file):
            other = package_of(name)
            if other in (None, package):
                continue
            assert LEVELS[other] < LEVELS[package] or (package, other) in BESIDE, f"{file.relative_to(ROOT)} imports {name}"
            assert other not in NEVER.get(package, ()), f"{file.relative_to(ROOT)} imports {name}"


def test_nobody_imports_the_command_the_tests_or_the_top_of_the_package() -> None:
    for name, file in MODULES.items():
        for found in imported(file):
            top = found.split(".")[0]
            assert top not in ("train", "tests"), f"{name} imports {found}"
            assert top != "tools" or name.startswith("tools"), f"{name} imports {found}"


def test_there_are_no_import_cycles() -> None:
    edges = {name: {other for other in imported(file, everywhere=False) if other in MODULES} for name, file in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import cycle: {' → '.join((*trail[trail.index(name) :], name))}"
        if name not in done:
            for other in edges[name] - {name}:
                visit(other, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_reports_read_run_folders_and_only_the_similarity_sheet_runs_a_network() -> None:
    packages = {name: set(map(package_of, imported(file))) for name, file in modules("sdprobe.reports").items()}
    networks = {name for name, found in packages.items() if "sdprobe.backbones" in found}
    assert networks == {"sdprobe.reports.similarity"}


def test_the_python_functions_import_neither_a_trainer_nor_a_checkpoint_library() -> None:
    waiting, seen, others = ["sdprobe.api"], set(), set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        found = imported(MODULES[name], everywhere=False)
        waiting += sorted({other for other in found if other in MODULES} - seen)
        others |= {other.split(".")[0] for other in found}
    assert {"torch", "torchmetrics"} <= others
    assert not others & {"lightning", "hydra", "omegaconf", "wandb", "diffusers", "transformers", "datasets", "probes"}


def test_tokens_import_torch_only() -> None:
    known = {"torch", "jaxtyping", "sdprobe", "dataclasses", "typing", "hashlib", "collections", "functools", "math"}
    for file in modules("sdprobe.tokens").values():
        assert {name.split(".")[0] for name in imported(file)} <= known, file


def test_the_entry_point_stays_short() -> None:
    assert len((ROOT / "train.py").read_text().splitlines()) <= 40


def test_nobody_prints_evaluates_or_moves_to_cuda_by_hand() -> None:
    for file in [ROOT / "train.py", *MODULES.values()]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", None)
                assert name not in ("eval", "exec", "print"), f"{file}:{node.lineno}"
                assert not (getattr(node.func, "attr", "") == "cuda" and not node.args), f"{file}:{node.lineno}"


def test_probes_ask_their_data_not_the_trainer() -> None:
    for name, file in modules("probes").items():
        assert "datamodule" not in {getattr(node, "attr", "") for node in ast.walk(ast.parse(file.read_text()))}, name

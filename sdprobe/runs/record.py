"""metrics.json: everything a run measured, and what is needed to repeat it. One flat object at the root of a run folder.

Keys are ``<condition>/<layer>/<metric>/<group>``, with ``/ci_low``, ``/ci_high``, ``/n`` and ``/seeds`` appended for further
numbers; ``meta`` holds the rest. predictions.parquet holds the predictions of a probe, one per row, with the truth.
"""

import hashlib
import json
import logging
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sdprobe.reports.dispatch import FILES
from sdprobe.reports.run import Run
from sdprobe.utilities.io import DamagedFile, write_file, write_json, write_yaml
from sdprobe.utilities.settings import target_name

log = logging.getLogger(__name__)
ROOT = Path(__file__).parents[2]
# version of the layout of metrics.json. 2: intervals from pseudo-values, no p-values of single numbers, /seeds
SCHEMA = 2
# version of the numbers; increase it when one changes for the same settings, images and weights, or with another VERSION
VERSION = 2
FITS = ("mitigation/**/mitigation.*", "heads/heads.*")  # files of what a run fitted
PACKAGES = ("torch", "lightning", "torchmetrics", "diffusers", "transformers", "numpy", "hydra-core", "sdprobe")
# folders whose code can change a number
LIBRARY = (
    "sdprobe/utilities", "sdprobe/tokens", "sdprobe/metrics", "sdprobe/estimators", "sdprobe/scenes", "sdprobe/backbones",
    "sdprobe/mitigations", "datamodules", "probes",
)  # fmt: skip
# settings of devices and speed, which do not change what is measured
DEVICES = ("devices", "strategy", "use_distributed_sampler")
# noise_level is replaced by the timesteps that it stands for
IGNORED_IN_HASH = (
    "run_dir", "resume", "logger", "cache_dir", "activation_budget", "twins", "control", "report", "noise_level",
)  # fmt: skip
CACHES = ("prompt_cache", "cache_dir")  # settings of the backbone that change no number
# axes of curves in reports, and what reports average over
AXES = ("block", "timestep", "seed")
CHOICE = ("choose", "position_run", "position_bound")  # they add numbers, and change none
OUTPUT_FILES = (*FILES, "error.txt")


def write_metrics(folder: Path, metrics: dict[str, float], meta: dict[str, Any]) -> Path:
    """Write ``metrics.json``. NaN is refused because JSON has none."""
    path = folder / "metrics.json"
    write_json(path, {**dict(sorted(metrics.items())), "meta": meta})
    return path


def complete(folder: Path) -> Run | None:
    """The complete run of a folder, without its maps; None if it is not complete, or if one of its files is damaged."""
    try:
        run = Run.read(folder, maps=False)
        if run.meta.get("complete"):
            run.check()
            return run
    except DamagedFile as error:
        log.warning("%s is damaged (%s). The run is measured again.", *error.args)
    except FileNotFoundError:
        pass
    return None


def clear(folder: Path, resumed: bool) -> None:
    """Remove the output files of an earlier run from this folder, by name. A resumed run keeps its checkpoints.

    Otherwise old results would remain if the new run fails, and old checkpoints could be taken for those of the new run.
    """
    names = ["metrics.json", "maps.npz", "pseudovalues.npz", "tokens.npz", "predictions.parquet", *FITS, *OUTPUT_FILES]
    if not resumed:
        names += ["checkpoints/last.ckpt", "random_weights_*/checkpoints/last.ckpt"]
    for path in [path for name in names for path in folder.glob(name)]:
        path.unlink()


def write_command(folder: Path, cfg: DictConfig) -> None:
    """Write ``.hydra/`` like Hydra: the configuration, that of Hydra, and the overrides, from which a run is resumed."""
    hydra = HydraConfig.get()
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    written = {"config": cfg, "hydra": OmegaConf.create({"hydra": hydra}), "overrides": hydra.overrides.task}
    for name, node in written.items():
        write_yaml(folder / ".hydra" / f"{name}.yaml", OmegaConf.to_yaml(node))


def config_hash(cfg: DictConfig) -> str:
    """Digest of every setting that can change a number."""
    return digest(result_settings(cfg))


def settings_hash(cfg: DictConfig) -> str:
    """Digest of the same settings without layers, timestep and seed: equal for runs that are points of one curve."""
    return digest({name: value for name, value in result_settings(cfg).items() if name not in (*AXES, *CHOICE)})


def result_settings(cfg: DictConfig) -> dict[str, Any]:
    """The settings that can change a number, independent of where the configured code is.

    Interpolations stay unresolved: what they refer to is included itself, or cannot change a number.
    """
    settings = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(settings, dict)
    # a setting that is null changes nothing, so that a new one leaves the hashes of older runs as they are
    result = {str(key): value for key, value in settings.items() if key not in IGNORED_IN_HASH and value is not None}
    if not result.get("datamodule", {}).get("inside", True):
        del result["datamodule"]["inside"]  # runs of older versions did not have it
    for name, default in {"position": "stored", "text": "encoded"}.items():  # nor these
        if result.get("backbone", {}).get(name) == default:
            del result["backbone"][name]
    for name in CACHES:
        result.get("backbone", {}).pop(name, None)
    for name in ("callbacks", *DEVICES):
        result["trainer"].pop(name, None)
    # a list, because their order matters and digests sort dictionaries
    result["mitigation"] = list(result["mitigation"].items())
    return {name: _without_modules(value) for name, value in result.items()}


def _without_modules(node: Any) -> Any:
    """Settings with stable names as ``_target_``."""
    if isinstance(node, list | tuple):
        return [_without_modules(value) for value in node]
    if isinstance(node, dict):
        return {key: target_name(value) if key == "_target_" else _without_modules(value) for key, value in node.items()}
    return node


def digest(content: object) -> str:
    """Short digest of a JSON-serialisable object."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def source_digest() -> str:
    """Digest of the code behind the numbers, recorded for information. Caches depend on :data:`VERSION` instead."""
    result = hashlib.sha256()
    for path in sorted(path for package in LIBRARY for path in (ROOT / package).rglob("*.py")):
        result.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return result.hexdigest()[:16]


def provenance(cfg: DictConfig) -> dict[str, Any]:
    """Command, configuration, code, packages and machine of this process."""
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "command": shlex.join(["python", *_arguments()]),
        "source": source_digest(),
        "twins": cfg.twins,
        "config_hash": config_hash(cfg),
        "settings_hash": settings_hash(cfg),
        "git_commit": _git_commit(),
        "packages": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "hardware": _hardware(),
        "seed": cfg.seed,
        "image_size": OmegaConf.select(cfg, "images.size"),
        "control": cfg.get("control"),
    }


def _arguments() -> list[str]:
    """Command-line arguments; for a job of a sweep, those that would start it alone."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return sys.argv
    return ["train.py", *HydraConfig.get().overrides.task, "hydra.mode=RUN"]


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Commit of this checkout, with ``+`` if files differ from it; None outside a checkout."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"],
            cwd=ROOT, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


@runtime_checkable
class Predicts(Protocol):
    """A probe whose predictions are stored, and compared one by one with those of random-weights networks."""

    def predictions(self) -> dict[str, np.ndarray]: ...

    def compare(self, networks: Sequence[dict[str, np.ndarray]]) -> dict[str, float]: ...


def write_predictions(path: Path, columns: dict[str, np.ndarray]) -> str:
    """Write columns of equal length. Returns the checksum of the file."""
    return write_file(path, packed(columns))


def packed(columns: dict[str, np.ndarray]) -> bytes:
    """Columns of equal length as Parquet, with checksums."""
    content = BytesIO()
    pq.write_table(pa.table(columns), content, compression="zstd", write_page_checksum=True)
    return content.getvalue()


def unpacked(content: bytes) -> dict[str, np.ndarray]:
    """The columns in Parquet, by name."""
    table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
    return {name: table[name].to_numpy() for name in table.column_names}

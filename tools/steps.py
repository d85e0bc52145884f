"""Measurements, each with its own folder. A finished one is skipped as long as commands, settings and code are unchanged."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from sdprobe.runs.groups import CONFIGS
from sdprobe.runs.record import ROOT, config_hash, digest, source_digest
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import read_json, write_file

RUN = ("sdprobe/runs/*.py", "train.py")  # sources of every step that calls train.py
OUTPUT = "output.md"  # captured output of a command


@dataclass(frozen=True)
class Step:
    """Commands that fill one folder.

    Attributes:
        name: name of the step and of its folder.
        commands: arguments of ``python``; ``FOLDER`` is replaced by the folder.
        group: a step with a group runs only if the step or the group is requested.
        capture: store the output of the last command as ``output.md``.
        sources: globs of further files that influence the result, in addition to those of ``source_digest``.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    group: str = ""
    capture: bool = False
    sources: tuple[str, ...] = ()


def train(name: str, *overrides: str) -> Step:
    """A single run of ``train.py`` into the step's folder."""
    return Step(name, (("train.py", *overrides, "logger=none", "hydra.run.dir=FOLDER"),))


def sweep(name: str, *overrides: str) -> Step:
    """A sweep of ``train.py`` into the step's folder; finished jobs are skipped when it is started again."""
    return Step(name, (("train.py", *overrides, "logger=none", "hydra.sweep.dir=FOLDER"),))


def state_of(step: Step) -> str:
    """Digest of everything that influences a step: commands, composed settings, code, demo weights."""
    trained = RUN if any(command[0] == "train.py" for command in step.commands) else ()
    files = {path for pattern in (*step.sources, *trained, "assets/*/*/*.safetensors") for path in ROOT.glob(pattern)}
    contents = {str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}
    settings = [_settings(command) for command in step.commands if command[0] == "train.py"]
    return digest([step.commands, settings, source_digest(), contents])


def _settings(command: tuple[str, ...]) -> list[object]:
    """Hash of the settings that a command composes, and the values of its sweep."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", overrides=list(command[1:]), return_hydra_config=True)
    swept = OmegaConf.to_container(cfg.hydra.sweeper.get("params") or OmegaConf.create())
    settings = {key: value for key, value in OmegaConf.to_container(cfg, resolve=False).items() if key != "hydra"}  # type: ignore[union-attr]
    return [config_hash(DictConfig(settings)), swept, cfg.twins]


def is_finished(step: Step, folder: Path, state: str) -> bool:
    """Whether the folder has the complete result of this step, measured with this code."""
    return _read(folder) == {"state": state, "finished": len(step.commands)}


def perform(step: Step, folder: Path, state: str) -> None:
    """Run the remaining commands of a step. An unfinished step is resumed; a step in another state starts again.

    Raises:
        InputError: a command failed.
        KeyboardInterrupt: Ctrl-C, after the running command has ended.
    """
    if _read(folder).get("state") != state:
        shutil.rmtree(folder, ignore_errors=True)
        recorded(folder).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for number, command in enumerate(step.commands):
        if number < int(_read(folder).get("finished", 0)):
            continue
        write_file(recorded(folder), json.dumps({"state": state, "finished": number}))
        words = [word.replace("FOLDER", str(folder)) for word in command]
        if (folder / "checkpoints" / "last.ckpt").is_file():
            words = ["train.py", f"resume={folder}"]
        output = _run(words, step.capture and number == len(step.commands) - 1, step.name)
        if output is not None:
            write_file(folder / OUTPUT, output)
        write_file(recorded(folder), json.dumps({"state": state, "finished": number + 1}))


def _run(words: list[str], capture: bool, name: str) -> str | None:
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, text=True, stdout=subprocess.PIPE if capture else None)
    try:
        output, _ = process.communicate()
    except KeyboardInterrupt:  # the command received Ctrl-C, too, and needs time to write its results
        process.wait()
        raise
    if process.returncode == 130:
        raise KeyboardInterrupt
    if process.returncode:
        raise InputError(
            f"Expected step {name} to end with 0, but got {process.returncode}. Its output is above. Start again to resume."
        )
    return output


def recorded(folder: Path) -> Path:
    """File beside the folder, since no run starts into one that holds files: {"state": digest, "finished": commands}."""
    return folder.with_name(f"{folder.name}.json")


def _read(folder: Path) -> dict[str, Any]:
    return read_json(recorded(folder)) if folder.is_dir() and recorded(folder).is_file() else {}

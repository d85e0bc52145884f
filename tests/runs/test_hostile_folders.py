"""A run folder that a stranger wrote: continuing it runs none of his code, reads no secret and writes nowhere else."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from sdprobe.reports.__main__ import main as reports
from sdprobe.reports.similarity import defaults_of
from sdprobe.runs import cli, configuration, folders
from sdprobe.runs.arguments import as_overrides
from sdprobe.runs.groups import CONFIGS
from sdprobe.runs.run import run
from sdprobe.utilities.errors import InputError

LOAD = "{_target_: torch.serialization.load, f: EVIL.pt, weights_only: false}"
SMALL: list[str] = []  # of the fixture that configures
FREE = ["probe=position", "backbone=tiny", "images.limit=16"]  # what an honest run was started with

# each would run code, read a secret, follow another configuration, write elsewhere, or ask for what no run can store
HOSTILE = {
    # code
    "value that is an object": f"backbone.revision={LOAD}",
    "object in a list": f"block=[mid,{LOAD}]",
    "object in a list in a list": f"block=[[{LOAD}]]",
    "object in an object": f"backbone.revision={{a: {LOAD}}}",
    "numpy": "backbone.revision={_target_: numpy.load, file: EVIL.npy, allow_pickle: true}",
    "pandas": "prompt={_target_: pandas.read_pickle, filepath_or_buffer: EVIL.pkl}",
    "hub": "seed={_target_: torch.hub.load, repo_or_dir: ., source: local, model: evil}",
    "write by numpy": "seed={_target_: numpy.save, file: ../x.npy, arr: 0}",
    "target of a group": "backbone._target_=os.system",
    "target, quoted": "'probe'._target_=os.system",
    "target of the trainer": "trainer._target_=torch.hub.load",
    "target of the logger": "logger._target_=torch.serialization.load",
    "arguments of a target": "backbone._args_=[EVIL.pt]",
    "partial": "trainer._partial_=false",
    "added target": "+backbone.evil._target_=os.system",
    "forced target": "++images._target_=torch.hub.load",
    "added mitigation": f"+mitigation.x={LOAD}",
    "forced mitigation": f"++mitigation={{x: {LOAD}}}",
    "mitigations": f"mitigation={{x: {LOAD}}}",
    "callbacks": f"trainer.callbacks=[{LOAD}]",
    "a callback more": f"+trainer.callbacks.2={LOAD}",
    "target of a callback": "trainer.callbacks.0._target_=torch.hub.load",
    "strategy": f"trainer.strategy={LOAD}",
    "profiler": f"+trainer.profiler={LOAD}",
    "text that is an object": "backbone.revision=json_str({_target_: os.system})",
    # Hydra itself
    "Hydra's callbacks": f"hydra.callbacks={{x: {LOAD}}}",
    "a callback of Hydra": "+hydra.callbacks.x._target_=torch.serialization.load",
    "search path": "hydra.searchpath=[file:///EVIL]",
    "launcher": "hydra/launcher=submitit_local",
    "launcher's target": "hydra.launcher._target_=torch.serialization.load",
    "logging": "hydra.job_logging.handlers.file.filename=/tmp/x",
    "log name": "hydra.job.name=../../x",
    "output folder": "hydra.output_subdir=../../x",
    "run folder of Hydra": "hydra.run.dir=../OTHER",
    "sweep": "hydra.mode=MULTIRUN",
    "working folder": "hydra.job.chdir=true",
    "environment": "hydra.job.env_set.LD_PRELOAD=EVIL.so",
    "package of a group": "logger@hydra.job=csv",
    "package, added": "+backbone@backbone.revision=local",
    "package, moved": "images@probe:backbone=folder",
    "group with a slash": "/hydra/launcher=ray",
    # configurations
    "configuration elsewhere": "experiment=../../EVIL",
    "configuration at an absolute path": "experiment=/EVIL",
    "configuration by address": "experiment=file:///EVIL",
    "configuration of a package": "experiment=pkg://EVIL/x",
    "configuration in a list": "mitigation=[leace,../../EVIL]",
    "hidden configuration": "backbone=_base",
    "unknown configuration": "experiment=evil",
    "deleted group": "~logger",
    "deleted callbacks": "~trainer.callbacks",
    "deleted setting": "~backbone.padding",
    # options of the command
    "option": "--config-dir=/EVIL",
    "short option": "-cdEVIL",
    "option with a value": "--config-path=/EVIL",
    "another configuration": "--config-name=../EVIL",
    "sweep by an option": "--multirun",
    "experimental option": "--experimental-rerun=EVIL.pickle",
    # values that Hydra computes
    "environment variable": "prompt=${oc.env:HOME}",
    "environment variable, quoted": "prompt='${oc.env:HOME}'",
    "environment variable, escaped": r"prompt=$\{oc.env:HOME\}",
    "environment variable in a list": "block=[mid,'${oc.env:HOME}']",
    "decoded": "seed=${oc.decode:'${oc.env:HOME}'}",
    "other setting": "images=${trainer.callbacks}",
    "setting of Hydra": "prompt=${hydra.runtime.cwd}",
    "several values": "seed=1,2",
    "choice": "seed=choice(1,2)",
    "range": "seed=range(0,1000000000)",
    "glob": "block=glob(*)",
    "interval": "seed=interval(0,1)",
    # places to write
    "cache": "cache_dir=../OTHER",
    "cache, absolute": "cache_dir=/OTHER",
    "cache of the home folder": "cache_dir=~/x",
    "cache of the data": "datamodule.cache_dir=/OTHER",
    "checkpoints": "trainer.callbacks.0.dirpath=/OTHER",
    "name of the checkpoint": "trainer.callbacks.0.filename=../../x",
    "log of the trainer": "trainer.default_root_dir=/OTHER",
    "folder of the logger": "logger=tensorboard logger.folder=/OTHER",
    "folder of the CSV": "logger=csv logger.save_dir=/OTHER",
    "name of the CSV": "logger=csv logger.name=../../x",
    "version of the CSV": "logger=csv logger.version=/OTHER",
    "folder of wandb": "logger.folder=../OTHER",
    # no override
    "no override": "rm -rf",
    "empty": "",
    "newline": "prompt='a\nb'\nseed=1",
    "escape": "prompt=\x1b[2J",
    "null byte": "prompt=a\0b",
}


def run_folder(tmp_path: Path, overrides: object, name: str = "run") -> Path:
    folder = tmp_path / name
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(overrides)))
    return folder


def resumed(folder: Path, *others: str) -> list[str]:
    words = cli.expanded(as_overrides([f"resume={folder}", *others]))
    configuration.check(words)
    return words


@pytest.mark.parametrize("name", HOSTILE)
def test_no_override_of_a_folder_does_more_than_set_and_choose(name: str, tmp_path: Path) -> None:
    """Refused before Hydra starts, in one sentence without control characters, which says what an honest user does."""
    parts = HOSTILE[name].split(" ") if HOSTILE[name].startswith("logger=") else [HOSTILE[name]]
    folder = run_folder(tmp_path, [*FREE, *parts])
    with pytest.raises(InputError, match=r"start the run anew with python train\.py|Add .+ to the command") as caught:
        resumed(folder)
    assert str(caught.value).isprintable()


HONEST = [
    "probe=correspondence", "backbone=local", "backbone.path='/data/it\\'s, here (1)'", "block=[mid,up_1]", "block=up_*",
    "mitigation=[leace,standardize]", "mitigation.leace.columns=additive", "mitigation=saved", "mitigation.saved.folder=runs/a",
    "experiment=mitigations", "experiment=null", "control=reflect", "sweep=layers", "trainer=ddp", "trainer.devices=2",
    "trainer.max_epochs=3", "logger=csv", "logger.name='a · b'", "logger.tags=[a,b]", "prompt='a {category}, $5: 100 %'",
    "seed=7", "probe.learning_rate=1e-3", "images=folder", "images.root='/photos'", "images.limit=null",
    "backbone.revision=null", "datamodule.labels=null", "timestep=261", "cache_dir=.cache", "activation_budget=0.5",
    "trainer.enable_model_summary=true",
]  # fmt: skip


@pytest.mark.parametrize("text", [f"block=[{'a,' * 20_000}a]", f"{'a' * 5000}=1", f"prompt={'[' * 2000}"])
def test_an_override_that_would_take_minutes_to_parse_is_refused(text: str, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(InputError, match="is no override"):
        resumed(run_folder(tmp_path, [*FREE, text]))
    assert time.monotonic() - started < 5


def aliases(levels: int = 30) -> bytes:
    """A mapping that stands for ten to the power of so many."""
    lines = [
        "  a0: &a0 {}",
        *(f"  a{n}: &a{n} {{{', '.join(f'k{i}: *a{n - 1}' for i in range(10))}}}" for n in range(1, levels)),
    ]
    return "\n".join(["images:", *lines]).encode()


CONFIGURATIONS = {
    "aliases": aliases(), "alias of itself": b"images: &a {b: *a}", "long number": b"seed: 0x" + b"f" * 100_000,
    "sexagesimal": b"seed: 1" + b":59" * 20_000, "deep": b"images: " + b"{a: " * 3000 + b"1" + b"}" * 3000,
    "large": b"prompt: " + b"x" * 10_000_000, "list": b"- 1", "no UTF-8": b"\xff", "many": b"images:\n" + b"  a: 1\n" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_of_a_stranger_is_read_in_no_time(name: str, tmp_path: Path) -> None:
    folder = run_folder(tmp_path, FREE)
    for file in ("config.yaml", "hydra.yaml"):
        (folder / ".hydra" / file).write_bytes(CONFIGURATIONS[name])
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(10)
    try:
        with contextlib.suppress(InputError):
            cli.expanded([f"resume={folder}"])
        with pytest.raises(InputError):
            defaults_of(folder)
        for words in (["ls", str(tmp_path), "probe=position"], ["show", str(folder)]):
            with contextlib.suppress(SystemExit):
                reports(words)
    finally:
        signal.alarm(0)


def test_what_a_run_stores_is_taken_back_as_it_is(tmp_path: Path) -> None:
    assert folders.resumed_overrides(run_folder(tmp_path, HONEST)) == HONEST


def test_several_mitigations_of_one_class_are_taken_back(tmp_path: Path) -> None:
    cfg = configuration.composed(resumed(run_folder(tmp_path, [*FREE, "experiment=mitigations"])))
    assert [mitigation._target_ for mitigation in cfg.mitigation.values()].count("sdprobe.mitigations.PositionMean") == 5


def test_a_run_is_continued_in_the_folder_that_is_given(tmp_path: Path) -> None:
    """Neither where it was before, which a moved folder still names, nor where a stranger wants it."""
    folder = run_folder(tmp_path, [*FREE, "run_dir=/OTHER", "resume=/OTHER"])
    assert resumed(folder) == [*FREE, f"resume='{folder}'", f"hydra.run.dir='{folder}'", "hydra.mode=RUN"]


def test_a_cache_elsewhere_is_typed_again(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, [*FREE, "cache_dir=/data/cache"])
    assert "cache_dir='/mine'" in (taken := resumed(folder, "cache_dir=/mine")) and "cache_dir=/data/cache" not in taken
    inside = f"cache_dir={tmp_path / 'other' / 'cache'}"
    assert inside in resumed(run_folder(tmp_path, [*FREE, inside], "other"))


RECORDS = {
    "object of Python": b"!!python/object/apply:os.system [touch x]",
    "module": b"- !!python/module:os",
    "mapping": b"{_target_: os.system}",
    "mapping in a list": b"- {_target_: os.system}",
    "text": b"seed=1",
    "numbers": b"[1, 2]",
    "null": b"",
    "deep nesting": b"[" * 5_000,
    "deep nesting in an override": b"- seed=" + b"[" * 2_000,
    "aliases": b"a: &a [x]\nb: &b [*a, *a, *a, *a]\nc: [*b, *b, *b]",
    "large": b"- seed=1\n" * 100_000,
    "bytes": bytes(range(256)),
    "truncated": b"- 'seed=1",
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_that_is_no_list_of_overrides_is_told(name: str, tmp_path: Path) -> None:
    folder = run_folder(tmp_path, [])
    (folder / ".hydra" / "overrides.yaml").write_bytes(RECORDS[name])
    with pytest.raises(InputError, match=r"Expected \S*overrides.yaml") as caught:
        resumed(folder)
    assert len(str(caught.value)) < 10_000


LINKS = ("wandb", "checkpoints", "checkpoints/last.ckpt", "train.log", ".hydra", ".hydra/config.yaml", "metrics.json", "csv",
         "mitigation", "mitigation/mitigation.json", "random_weights_0", "figure.png", "a/b/c")  # fmt: skip


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("existing", [True, False])
def test_nothing_is_written_through_a_link(name: str, existing: bool, tmp_path: Path) -> None:
    """Not by a run that is continued, nor by one that is started into the folder."""
    outside, folder = tmp_path / "outside", run_folder(tmp_path, FREE)
    if existing:
        shutil.copytree(folder / ".hydra", outside) if name == ".hydra" else outside.write_text("note")
        shutil.rmtree(folder / ".hydra") if name == ".hydra" else None
    elif name.startswith(".hydra"):
        return
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(os.path.relpath(outside, (folder / name).parent))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="link"):
        cli.expanded([f"resume={folder}"])
    with pytest.raises(InputError, match="link"):
        folders.check_place(folder)
    assert sorted(tmp_path.rglob("*")) == before


PLANTED: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": lambda path: plant_socket(path),
    "hard link": lambda path: path.hardlink_to(outside(path)),
    "link to a pipe": lambda path: (os.mkfifo(outside(path).with_name("pipe")), path.symlink_to(path.parents[4] / "pipe")),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link in a circle": lambda path: (path.symlink_to("y"), path.with_name("y").symlink_to(path.name)),
    "deep folders": lambda path: plant_deep(path),
}  # fmt: skip


def outside(path: Path) -> Path:
    path.parents[4].joinpath("note.txt").write_text("mine")
    return path.parents[4] / "note.txt"


def plant_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # an address of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def plant_deep(path: Path) -> None:
    here = os.getcwd()
    path.mkdir()
    os.chdir(path)
    try:
        for _ in range(1500):
            os.mkdir("a")
            os.chdir("a")
    finally:
        os.chdir(here)


WRITTEN = ("train.log", "metrics.json", ".hydra/config.yaml", ".hydra/overrides.yaml", "checkpoints/last.ckpt", "wandb/x",
           "mitigation/a/mitigation.json", "config_hash", "error.txt", "run_id", "maps.npz")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "place"),
    [*((name, "train.log") for name in PLANTED), *((name, place) for name in ("pipe", "hard link") for place in WRITTEN[1:])],
)
def test_what_is_no_file_of_the_folder_is_neither_waited_for_nor_written(name: str, place: str, tmp_path: Path) -> None:
    """By a run that is continued or started there, by the list of runs, nor by a report."""
    inner = tmp_path / "a" / "b" / "c"
    inner.mkdir(parents=True)
    folder = run_folder(inner, FREE)
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    PLANTED[name](path)
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(5)
    try:
        with pytest.raises(InputError):
            cli.expanded([f"resume={folder}"])
        with pytest.raises(InputError):
            folders.check_place(folder)
        for words in (["ls", str(folder), "probe=x"], ["ls", str(folder)], ["show", str(folder)], [str(folder)], [str(inner)]):
            with contextlib.suppress(SystemExit):
                reports(words)
    finally:
        signal.alarm(0)
    note = tmp_path / "note.txt"
    assert not note.exists() or note.read_text() == "mine"
    if name == "deep folders":
        subprocess.run(["rm", "-r", str(path)], check=True)  # deeper than Python's own rmtree goes


def test_links_of_wandb_within_the_folder_stay(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, FREE)
    (folder / "wandb" / "offline-run-1").mkdir(parents=True)
    (folder / "wandb" / "latest-run").symlink_to("offline-run-1")
    assert resumed(folder)


def test_a_folder_of_something_else_is_not_cleared(tmp_path: Path, configure) -> None:
    """Whichever setting names it; a run's own folder, an empty one and one with a log only are taken."""
    other = tmp_path / "run"
    (other / "mitigation" / "x").mkdir(parents=True)
    (other / "mitigation" / "x" / "mitigation.json").write_text("mine")
    (other / "maps.npz").write_text("mine")
    for setting in ("hydra.run.dir", "run_dir"):
        with pytest.raises(InputError, match=r"'maps\.npz'"):
            configuration.check_folders(configuration.composed([*FREE, f"{setting}={other}"]))
    with pytest.raises(InputError, match=r"'maps\.npz'"):  # an argument of the command that a launcher starts
        run(configure(*FREE, "images.size=128"))
    assert {path.read_text() for path in other.rglob("*") if path.is_file()} == {"mine"}
    for content in ((), ("train.log",), (".hydra/overrides.yaml", "maps.npz"), ("config_hash", "checkpoints/x")):
        taken = tmp_path / f"taken{len(content)}{len(str(content))}"
        for name in content:
            (taken / name).parent.mkdir(parents=True, exist_ok=True)
            (taken / name).touch()
        folders.check_place(taken)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["value that is an object", "callbacks", "search path", "option", "output folder", "log name"])
def test_the_command_refuses_before_anything_starts(name: str, tmp_path: Path) -> None:
    """As a user would: exit code 1, one sentence, no file."""
    torch.save(Pickled(tmp_path / "ran"), tmp_path / "EVIL.pt")
    folder = run_folder(tmp_path, [*FREE, HOSTILE[name].replace("EVIL", f"{tmp_path}/EVIL")])
    before = sorted(tmp_path.rglob("*"))
    command = [sys.executable, str(CONFIGS.parent / "train.py"), f"resume={folder}"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1 and ended.stderr.startswith("Expected ") and ended.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


class Pickled:
    """Pickles as the opening of a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return open, (str(self.file), "w")

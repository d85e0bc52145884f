"""Shapes and types in signatures are checked while tests run, and nowhere else; how tests run the command in-process."""

import gc
import logging
import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hypothesis import settings
from jaxtyping import install_import_hook
from omegaconf import DictConfig, open_dict

import tests.typechecker  # noqa: F401  # the hook looks it up by name
from tests.hub_server import Hub

settings.register_profile("steady", deadline=None)  # a busy machine is no failure
settings.load_profile("steady")
os.environ["OMP_NUM_THREADS"] = "1"  # the networks are tiny: more threads only wait for each other
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

# threads of a wandb service that a test has killed log later, into the records of another test
logging.getLogger("wandb.sdk.lib.asyncio_manager").setLevel(logging.CRITICAL)
ROOT = Path(__file__).parent.parent
# scenes are left out: numpy's ArrayLike, which they are drawn with, refuses plain tuples at run time
SUBPACKAGES = ("tokens", "utilities", "backbones", "mitigations", "metrics", "estimators")
PACKAGES = [*(f"sdprobe.{name}" for name in SUBPACKAGES), "datamodules", "probes"]
install_import_hook(PACKAGES, "tests.typechecker.check")


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collections, each of which would take half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def saved_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny pipeline by the name of its family, with its transformer in shards; read only."""
    from tests.backbones.tiny_transformers import pipeline  # loads the libraries of all families

    @cache
    def made(name: str) -> Path:
        folder = tmp_path_factory.mktemp("pipelines") / name
        pipeline(name).save_pretrained(folder, max_shard_size="300KB")
        assert list((folder / "transformer").glob("*.index.json"))
        return folder

    return made


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests of a file share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least 10 steps an epoch, where users get 100, as tests/datamodules has it."""
    for module in ("activations", "pairs"):
        monkeypatch.setattr(f"datamodules.{module}.STEPS_PER_EPOCH", 10)


@pytest.fixture
def configure(
    request: pytest.FixtureRequest, tmp_path: Path, module_cache: Path, quick: None
) -> Iterator[Callable[..., DictConfig]]:
    """A configuration as the command line would give it, with the overrides ``SMALL`` of the file that asks."""

    def make(*overrides: str, folder: str = "run", small: bool = True) -> DictConfig:
        given = [*(request.module.SMALL if small else []), f"cache_dir={module_cache}", *overrides]
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            cfg = compose("train", overrides=given, return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.job.num = 0  # an experiment is a sweep, of which this is the first job
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        cfg.run_dir = str(tmp_path / folder)
        return cfg

    yield make
    HydraConfig.instance().cfg = None


@pytest.fixture
def launch(configure: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A run of the command in this process, into ``tmp_path``/run; figures are drawn on request."""
    from sdprobe.runs import checks
    from sdprobe.runs.cli import user_errors
    from sdprobe.runs.run import run
    from sdprobe.tokens.keys import CONDITIONS, Key

    def go(*overrides: str, figures: bool = False, **options: Any) -> Any:
        with user_errors(), monkeypatch.context() as patch:
            if not figures:
                patch.setattr("sdprobe.runs.run.draw", lambda finished, folder, form: [])
            cfg = configure(*overrides, **options)
            checks.fill_size(cfg)
            checks.fill_timestep(cfg)
            finished = run(cfg)
        for text in finished.metrics if finished else ():
            key = Key.parse(text)
            assert str(key) == text and key.layer and key.condition in CONDITIONS, text
        return finished

    return go


@pytest.fixture
def interrupt(launch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """What a run into ``tmp_path``/cut leaves that ends by Ctrl-C, where a callback raises it."""
    from sdprobe.reports.run import Run
    from sdprobe.runs import run as runner

    def go(callback: Any, *overrides: str) -> Any:
        build = runner.Measurement

        def measurement(*arguments: Any, **named: Any) -> Any:
            built = build(*arguments, **named)
            built.trainer.callbacks.append(callback)
            return built

        previous = signal.getsignal(signal.SIGINT)
        with monkeypatch.context() as patch:
            patch.setattr(runner, "Measurement", measurement)
            with pytest.raises(SystemExit) as caught:
                launch(*overrides, folder="cut")
        signal.signal(signal.SIGINT, previous)  # Lightning ignores further Ctrl-C while it ends
        assert caught.value.code == 130
        part = Run.read(tmp_path / "cut")
        assert part.meta["complete"] is False and not any(key.startswith("test/") for key in part.metrics)
        return part

    return go


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub on the loopback address, a user who is not logged in, and an empty cache."""
    from huggingface_hub import constants

    served = Hub()
    home = tmp_path / "hf"
    monkeypatch.setenv("HF_ENDPOINT", served.url)  # for commands
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    yield served
    served.close()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str, str]]:
    """``train.py`` as the main program, in this process: exit code or message, and what it writes to both streams."""

    def call(*arguments: str) -> tuple[Any, str, str]:
        quiet = ["hydra.job_logging.root=null", "hydra.hydra_logging.root=null"]  # logging stays pytest's
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments, *quiet])
        monkeypatch.setattr("sdprobe.runs.interrupts.begin", lambda: None)  # Ctrl-C stays pytest's, too
        code: Any = 0
        try:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        if isinstance(code, str):  # Python prints the text of SystemExit and exits with 1
            return 1, out, f"{err}{code}\n"
        return code, out, err

    return call

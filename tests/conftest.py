"""Shapes and types in signatures are checked while tests run, and nowhere else; how tests run the command in-process."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hypothesis import settings
from jaxtyping import install_import_hook
from omegaconf import DictConfig, open_dict

import tests.typechecker  # noqa: F401  # the hook looks it up by name

settings.register_profile("steady", deadline=None)  # a busy machine is no failure
settings.load_profile("steady")
torch.set_num_threads(1)  # the networks are tiny: more threads only wait for each other
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

ROOT = Path(__file__).parent.parent
# scenes are left out: numpy's ArrayLike, which they are drawn with, refuses plain tuples at run time
ROOMS = ("tokens", "utilities", "backbones", "mitigations", "metrics", "estimators")
PACKAGES = [*(f"sdprobe.{room}" for room in ROOMS), "datamodules", "probes"]
install_import_hook(PACKAGES, "tests.typechecker.check")


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests of a file share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def configure(request: pytest.FixtureRequest, tmp_path: Path, module_cache: Path) -> Callable[..., DictConfig]:
    """A configuration as the command line would give it, with the overrides ``SMALL`` of the file that asks."""

    def make(*overrides: str, folder: str = "run", small: bool = True) -> DictConfig:
        given = [*(request.module.SMALL if small else []), f"cache_dir={module_cache}", *overrides]
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            cfg = compose("train", overrides=given, return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        cfg.run_dir = str(tmp_path / folder)
        return cfg

    return make


@pytest.fixture
def launch(configure: Callable[..., DictConfig]) -> Callable[..., Any]:
    """A run of the command in this process, into ``tmp_path``/run."""
    from sdprobe.runs.cli import user_errors
    from sdprobe.runs.run import run
    from sdprobe.tokens.keys import CONDITIONS, Key

    def go(*overrides: str, **options: Any) -> Any:
        with user_errors():
            finished = run(configure(*overrides, **options))
        for text in finished.metrics if finished else ():
            key = Key.parse(text)
            assert str(key) == text and key.layer and key.condition in CONDITIONS, text
        return finished

    return go

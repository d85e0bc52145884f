"""Every setting of every choice with values that make no sense: each is refused with a sentence, or the run is built."""

import math
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException, ValidationError
from PIL import Image

from sdprobe.backbones import FrozenSD
from sdprobe.runs import checks, cli, configuration
from sdprobe.utilities.errors import InputError

CONFIGS = Path(__file__).parents[2] / "configs"
VALUES: tuple[Any, ...] = (
    None, "wrong", -1, math.nan, {"a": 1}, "", True, 1.5, 10**12, 1e30, math.inf, [], [1, 2], "/proc/x", "x" * 5000, "a\x00b",
)  # fmt: skip
FEW = 5  # of them, of as many types as possible, are tried by default
SECONDS = 10  # of one value: more is a hang


def files(group: str, *without: str) -> list[str]:
    return [f"{group}={file.stem}" for file in sorted((CONFIGS / group).glob("[!_]*.yaml")) if file.stem not in without]


LOCAL = files("images", "folder", "hub", "nyu", "pf_pascal", "pf_willow", "spair", "scene_pairs", "scene_depth")
BASES = [
    "", *files("probe"), *LOCAL, "images=folder", *files("mitigation", "none", "saved"), "trainer=ddp", "logger=csv",
    "logger=none", "protocol=loos2025",
]  # fmt: skip


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(12):
        Image.effect_noise((80, 70), 50 + number).save(folder / f"{number}.png")
    return folder


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The network is loaded once; a value that takes longer than :data:`SECONDS` fails the test."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError("a value hangs")

    real, networks = FrozenSD.from_pretrained, {}

    def loaded(**settings: Any) -> FrozenSD:
        plain = settings == default
        if plain and networks:
            return networks["tiny"]
        network = real(**settings)
        if plain:
            networks["tiny"] = network
        return network

    default = OmegaConf.to_container(base("").backbone, resolve=True)
    default = {key: value for key, value in default.items() if not str(key).startswith("_")}  # type: ignore[union-attr]
    monkeypatch.setattr(FrozenSD, "from_pretrained", loaded)
    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@cache
def base(choice: str, root: str = "") -> DictConfig:
    words = ["backbone=tiny", *filter(None, [choice]), *([f"images.root={root}"] if root else [])]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", overrides=words, return_hydra_config=True)


def leaves(node: dict[Any, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of settings; those of Hydra's instantiation are no settings."""
    for name, value in node.items():
        if not str(name).startswith("_"):
            yield f"{prefix}{name}"
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{name}.")


def settings(choice: str, root: str, whole: bool = True) -> list[str]:
    """The settings that a choice is about; all of the default. Without ``whole`` those that the default has, too, are left out
    where they belong to another group."""
    cfg = OmegaConf.to_container(base(choice, root), resolve=False)
    names = [name for name in leaves(cfg) if not name.startswith("hydra")]  # type: ignore[arg-type]
    group = choice.partition("=")[0]
    own = {"": "", "probe": ("probe", "datamodule", "images")}.get(group, group)
    names = [name for name in names if name.startswith(own)]
    if not whole:
        names = [name for name in names if name.startswith(group) or OmegaConf.select(base(""), name) is None]
    groups = {folder.name for folder in CONFIGS.iterdir()} - {"control"}
    return [name for name in names if name not in groups and name not in ("run_dir", "resume")]


def build(cfg: DictConfig) -> None:
    """What a command does before it measures: the checks, then the constructors of data and probe."""
    configuration.check_settings(cfg)
    configuration.check_given(cfg)
    checks.check_types(cfg)
    data = instantiate(cfg.datamodule)
    instantiate(cfg.probe)(shapes=data.shapes, photos=data.photos, data=data)


@pytest.mark.parametrize("values", [VALUES[:FEW], pytest.param(VALUES[FEW:], marks=pytest.mark.slow)], ids=["few", "others"])
@pytest.mark.parametrize("choice", BASES, ids=lambda choice: choice or "default")
def test_a_value_that_makes_no_sense_is_refused_or_built(
    choice: str, values: tuple[Any, ...], photographs: Path, tmp_path: Path
) -> None:
    root = str(photographs) if choice == "images=folder" else ""
    failed = []
    for name in settings(choice, root, whole=False):
        for value in values:
            signal.alarm(SECONDS)
            cfg = base(choice, root).copy()
            HydraConfig.instance().cfg = cfg  # for ${hydra:...}
            try:
                with open_dict(cfg):
                    OmegaConf.set_readonly(cfg.hydra, False)
                    cfg.hydra.runtime.output_dir = str(tmp_path)
                    OmegaConf.update(cfg, name, value, merge=False)
                with cli.user_errors():
                    configuration.check_kind(cfg, base(choice, root), name)
                    build(cfg)
            except (InputError, cli.UserError) as error:
                if len(str(error).splitlines()) != 1:
                    failed.append(f"{name}={value!r:.40}: {error}")
            except (ValidationError, OmegaConfBaseException):
                pass  # Hydra refuses it where it composes
            except Exception as error:
                failed.append(f"{name}={value!r:.40}: {type(error).__name__}: {' '.join(str(error).split())[:150]}")
            signal.alarm(0)
    assert not failed, "\n".join(failed)


SPELT = (
    "null",
    "",
    "wrong",
    "true",
    "-1",
    "1.5",
    "1e30",
    "nan",
    "inf",
    "[]",
    "[1,2]",
    "{a:1}",
    "/proc/x",
    "4294967296",
    "a=b",
    "'",
)


@pytest.mark.slow
@pytest.mark.parametrize("choice", BASES, ids=lambda choice: choice or "default")
def test_the_command_line_refuses_in_a_sentence_or_composes(choice: str, photographs: Path) -> None:
    root = f"images.root={photographs}" if choice == "images=folder" else ""
    failed = []
    names = [*settings(choice, str(photographs) if root else ""), *(folder.name for folder in CONFIGS.iterdir() if not choice)]
    for name in names:
        for value in SPELT:
            signal.alarm(SECONDS)
            words = ["backbone=tiny", *filter(None, [choice, root]), f"{name}={value}"]
            try:
                cli.prepare(words)
            except InputError as error:
                if len(str(error).splitlines()) != 1:
                    failed.append(f"{words}: {error}")
            except Exception as error:
                failed.append(f"{words}: {type(error).__name__}: {error}")
            signal.alarm(0)
    assert not failed, "\n".join(failed)


@pytest.mark.slow
def test_a_sample_of_commands_ends_with_a_sentence_or_a_run(photographs: Path, tmp_path: Path) -> None:
    draw, ended = random.Random(0), Counter[str]()
    choices = [choice for choice in BASES if choice not in ("images=folder", "trainer=ddp") and settings(choice, "")]
    small = ["backbone=tiny", "images.size=64", "trainer.max_epochs=1"]
    for number in range(40):
        choice = draw.choice(choices)
        place = tmp_path / str(number)
        word = f"{draw.choice(settings(choice, ''))}={draw.choice(SPELT)}"
        words = [*filter(None, [choice]), *small, word, f"hydra.run.dir={place}"]
        done = subprocess.run(
            [sys.executable, "train.py", *words], cwd=CONFIGS.parent, capture_output=True, text=True, timeout=900
        )
        assert "Traceback" not in done.stderr and "HYDRA_FULL_ERROR" not in done.stderr, (words, done.stderr)
        assert done.returncode == 0 or not place.exists() or (place / "error.txt").exists(), words
        ended["run" if done.returncode == 0 else "sentence"] += 1
        sys.stdout.write(f"{word:.60} {done.returncode} {(done.stderr.strip().splitlines() or [''])[-1]:.150}\n")
    sys.stdout.write(f"{dict(ended)}\n")

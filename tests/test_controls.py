"""Cells of experiment=controls as a user runs them, in miniature, and what they say of an untrained network."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sdprobe.reports.controls import contrast
from sdprobe.reports.grouping import control_groups
from sdprobe.reports.run import Run
from sdprobe.runs import checks, configuration
from sdprobe.runs.record import config_hash
from sdprobe.utilities.errors import InputError

ROOT = Path(__file__).parent.parent
SMALL = [
    "experiment=controls",
    "backbone=tiny",
    "images.size=128",
    "images.limit=48",
    "block=mid",
    "logger=none",
    "device=cpu",
]


def test_without_a_border_an_untrained_network_knows_nothing_and_zero_padding_tells_it(launch: Callable[..., Run]) -> None:
    periodic, circular = (launch(f"control=random_{cell}", folder=cell) for cell in ("periodic", "circular"))
    assert circular.meta["padding"] == "circular" and circular.meta["weights"] == periodic.meta["weights"] == "random-1"
    # the deepest grid: a finer one of so few tokens shows the parity that upsampling leaves
    assert circular.value("test", "mid", "binned_accuracy") == pytest.approx(0.5, abs=0.15)
    assert periodic.value("test", "mid", "binned_accuracy") > 0.9  # type: ignore[operator]
    [cells] = control_groups([periodic, circular]).values()
    architecture = contrast(cells, "architecture", "mid")
    assert architecture and architecture.paired and architecture.low > 0.2
    assert "test/mid/flip_attribution/all" in periodic.metrics


def test_wrapped_images_take_the_size_and_limit_of_any_other(launch: Callable[..., Run]) -> None:
    run = launch("control=flipped", "images.limit=40", "backbone.noise=shared")
    assert run.meta["images"]["test"] == 8 and run.meta["photographs"]["test"] == 2
    assert run.meta["control"] == "flipped" and run.meta["shapes"]["mid"][1:] == [2, 2]
    assert {"rotated/mid/binned_accuracy/all", "other_noise/mid/binned_accuracy/all"} <= run.metrics.keys()


def test_the_sweep_visits_every_cell_there_is() -> None:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        composed = compose("train", overrides=["experiment=controls"], return_hydra_config=True)
    cfg = OmegaConf.to_container(composed.hydra, resolve=False)
    assert str(cfg["mode"]).endswith("MULTIRUN")  # type: ignore[index, call-overload]
    named = cfg["sweeper"]["params"]["control"].replace(" ", "").split(",")  # type: ignore[index, call-overload]
    assert sorted(named) == sorted(path.stem for path in (ROOT / "configs" / "control").glob("*.yaml"))
    configuration.check(["experiment=controls"])


def test_the_name_of_a_cell_changes_no_number() -> None:
    hashes = []
    for overrides in ((), ("control=trained",), ("control=circular",)):
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            hashes.append(config_hash(compose("train", overrides=list(overrides))))
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_cell_with_images_of_its_own_refuses_others(tmp_path: Path) -> None:
    for cell in ("texture", "periodic", "constant", "no_vae", "flipped", "crops", "random_periodic", "random_circular"):
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            cfg = compose("train", overrides=[f"control={cell}", "images=folder", f"images.root={tmp_path}"])
        with pytest.raises(InputError, match=r"images=FolderImages to have a setting '\w+', but it has none"):
            checks.check_types(cfg)

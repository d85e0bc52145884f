"""Command line and record of one run."""

import copy
import json
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from sdprobe.reports.run import Run
from sdprobe.runs import checks, cli, configuration
from sdprobe.runs.groups import CONFIGS
from sdprobe.runs.measurement import Bound
from sdprobe.runs.record import (
    CACHES,
    DEVICES,
    IGNORED_IN_HASH,
    LIBRARY,
    ROOT,
    VERSION,
    clear,
    config_hash,
    result_settings,
    settings_hash,
    target_name,
    write_metrics,
)
from sdprobe.utilities.errors import InputError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["blok=mid"], "got 'blok'. The nearest is 'block'."),
        (["images.sise=64"], "got 'images.sise'. The nearest is 'images.size'."),
        (["prob=position"], "got 'prob'. The nearest is 'probe'."),
        (["backbone=flux_pro"], "but got 'flux_pro'. The nearest is 'flux_"),
        (["backbone=flux_dev", "block=mid"], "Expected block to be a layer of FluxTransformer2DModel, such as patch, block_12"),
        (
            ["images=fodler"],
            "images to be one of constant, crops, flipped, folder, hub, nyu, pf_pascal, pf_willow, scene_depth, scene_pairs, "
            "scenes, spair, texture, texture_latents, but got 'fodler'. The nearest is 'folder'.",
        ),
        (
            ["backbone=sd1"],
            "backbone to be one of demo, demo_dit, dit_xl, flux_dev, flux_schnell, local, lumina2, pixart_alpha, pixart_sigma, "
            "sana, sd14, sd15, sd21, sd3, sd35_large, sd35_medium, sd_turbo, sdxl, sdxl_turbo, tiny, but got 'sd1'",
        ),
        (
            ["probe=positon"],
            "probe to be one of content, controls, correspondence, depth, equivariance, explore, position, role, statistics, "
            "study, but got 'positon'",
        ),
        (["trainer.devices=2"], "Expected trainer.devices with trainer=ddp"),
        (["logger=tensorbord"], "logger to be one of csv, none, tensorboard, wandb"),
        (["sweep=timestep"], "sweep to be one of layers, models, stages, timesteps, but got 'timestep'"),
        (["block"], "overrides of the form key=value, but got 'block'"),
        (["block=[mid"], "Quote globs and lists"),
        (["-m", "blok=mid,up_0"], "got 'blok'"),
        (["-m", "backbone=tiny,dem"], "but got 'dem'. The nearest is 'demo'."),
        (["-m", "timestep=10,1000"], "Expected timestep to be from 0 to 999, but got 1000."),
        (["-m", "timestep=[10,50],[50,10]"], "Write timestep=[10,50]."),
        (["sweep=timesteps", "noise_level=.2"], "Leave noise_level out, or the sweep=, control= or experiment= of timestep."),
    ],
)
def test_misspelt_overrides_get_the_nearest_name(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        configuration.check(arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["probe=position", "block=mid"], ["block=[mid,up_1]"], ["block='up_*'"], ["block=up_*"], ["-m", "block=mid,up_1"],
        ["protocol=loos2025"], ["images=folder", "images.root=x", "images.on_error=skip"], ["--cfg", "job"], ["--help"],
        ["backbone=local", "backbone.path=/somewhere"], ["timestep=range(0,100,50)", "-m"], ["hydra.run.dir=x"],
        ["sweep=models"], ["-m", "sweep=layers", "seed=0,1"], ["-m", "control='random_0',trained", "seed=1,0"],
    ],
)  # fmt: skip
def test_good_commands_pass(arguments: list[str]) -> None:
    configuration.check(arguments)


def test_resume_brings_back_the_overrides_of_the_run(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- block=mid\n- seed=3\n- resume=elsewhere\n")
    assert cli.expanded([f"resume={tmp_path}"]) == [
        "block=mid",
        "seed=3",
        f"resume='{tmp_path}'",
        f"hydra.run.dir='{tmp_path}'",
        "hydra.mode=RUN",
    ]
    assert cli.expanded(["block=mid"]) == ["block=mid"]


def test_resume_stands_alone_and_wants_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"to be a run folder with \.hydra/overrides"):
        cli.expanded([f"resume={tmp_path}"])
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- block=mid\n- seed=3\n- run_dir=elsewhere\n")
    new = r"Start a new run for others: python train\.py 'block=\[mid,up_1\]' seed=3 choose=layer$"
    with pytest.raises(InputError, match=rf"alone, but got block=\[mid,up_1\] choose=layer, too\. .* {new}"):
        cli.expanded([f"resume={tmp_path}", "block=[mid,up_1]", "choose=layer"])


def hash_of(*overrides: str, hashed: Callable[[DictConfig], str] = config_hash) -> str:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hashed(compose("train", overrides=list(overrides)))


def test_the_config_hash_follows_what_changes_numbers() -> None:
    assert hash_of() == hash_of("cache_dir=/elsewhere", "activation_budget=0", "logger=none", "twins=3")
    changed = [
        hash_of(o)
        for o in ("seed=1", "block=up_1", "timestep=1", "protocol=loos2025", "backbone.weights=random", "images.limit=96")
    ]
    assert len({hash_of(), *changed}) == 7


@cache
def composed() -> dict[str, Any]:
    overrides = ["mitigation=[standardize,leace]", "trainer=ddp", "images=crops", "logger=csv"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        settings = OmegaConf.to_container(compose("train", overrides=overrides), resolve=False)
    assert isinstance(settings, dict)
    return settings  # type: ignore[return-value]


def flat(node: Any, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], Any]:
    """Path → value of nested settings."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return {key: value for name, inner in pairs for key, value in flat(inner, (*path, name)).items()} or {path: node}


def with_targets(change: Callable[[str], str], chosen: Sequence[tuple[Any, ...]]) -> DictConfig:
    settings = copy.deepcopy(composed())
    for path in chosen:
        node: Any = settings
        for key in path[:-1]:
            node = node[key]
        node["_target_"] = change(node["_target_"])
    return DictConfig(settings)


def test_hashes_do_not_see_where_code_lies_but_what_it_is_called() -> None:
    targets = [path for path in flat(composed()) if path[-1] == "_target_"]
    assert len(targets) > 8
    moved = with_targets(lambda target: f"sdprobe.inner.{target.partition('.')[2]}", targets)
    assert moved.images.images._target_ == "sdprobe.inner.images.scenes.Scenes"
    for hashed in (config_hash, settings_hash):
        assert hashed(moved) == hashed(DictConfig(composed()))
    renamed = [path for path in targets if path[0] != "logger" and "callbacks" not in path and "strategy" not in path]
    hashes = {config_hash(with_targets(lambda target: f"{target}Else", [path])) for path in renamed}
    assert len({config_hash(moved), *hashes}) == 1 + len(renamed) > 6


# newer settings do not count with their defaults, so that older runs keep their hash
DEFAULTS = ((("datamodule", "inside"), False), (("backbone", "position"), "stored"), (("backbone", "text"), "encoded"))


def test_every_setting_but_those_of_the_machine_counts() -> None:
    kept = result_settings(DictConfig(composed()))
    expected = {
        path: target_name(value) if path[-1] == "_target_" else value
        for path, value in flat(composed()).items()
        if path[0] not in IGNORED_IN_HASH
        and not (len(path) == 1 and value is None)
        and (path, value) not in DEFAULTS
        and not (path[0] == "backbone" and path[1] in CACHES)
        and not (path[0] == "trainer" and path[1] in ("callbacks", *DEVICES))
    }
    assert flat(kept | {"mitigation": dict(kept["mitigation"])}) == expected
    assert ("probe", "min_steps") in expected and ("images", "images", "_target_") in expected


def test_the_order_of_mitigations_is_a_setting() -> None:
    chain = composed()["mitigation"]
    assert list(chain) == ["standardize", "leace"]
    other = composed() | {"mitigation": dict(reversed(chain.items()))}
    assert config_hash(DictConfig(other)) != config_hash(DictConfig(composed()))


def test_the_digest_of_the_code_covers_every_class_that_is_configured() -> None:
    counts = {name: len(list((ROOT / name).rglob("*.py"))) for name in LIBRARY}
    assert all(counts.values()), f"LIBRARY of sdprobe/runs/record.py names folders without code: {counts}"
    settings = flat({name: composed()[name] for name in ("backbone", "images", "datamodule", "probe", "mitigation")})
    packages = {value.split(".")[0] for path, value in settings.items() if path[-1] == "_target_"}
    assert packages <= {name.split("/")[0] for name in LIBRARY}


def test_training_is_continued_by_the_version_that_began_it() -> None:
    guard, checkpoint = Bound("a"), {}
    with pytest.raises(InputError, match="but got one of version 1"):
        guard.on_load_checkpoint(None, None, checkpoint)  # as they were before there were versions
    guard.on_save_checkpoint(None, None, checkpoint)
    guard.on_load_checkpoint(None, None, checkpoint)
    with pytest.raises(InputError, match=f"of version {VERSION} of the numbers to continue, but got one of version 7. Start"):
        guard.on_load_checkpoint(None, None, {"numbers_version": 7})
    with pytest.raises(InputError, match="of this run to continue, but got one of a run with other settings"):
        Bound("b").on_load_checkpoint(None, None, checkpoint)


def test_points_of_a_curve_have_the_same_settings_hash() -> None:
    points = (), ("seed=1", "timestep=1"), ("block=[mid,up_1]", "twins=0")
    assert len({hash_of(*overrides, hashed=settings_hash) for overrides in points}) == 1
    assert hash_of("images.limit=96", hashed=settings_hash) != hash_of(hashed=settings_hash)


def test_metrics_are_written_at_once_or_not_at_all(tmp_path: Path) -> None:
    write_metrics(tmp_path, {"b": 1.0, "a": 2.0}, {"complete": True})
    assert list(json.loads((tmp_path / "metrics.json").read_text())) == ["a", "b", "meta"]
    assert Run.read(tmp_path).meta.items() >= {"complete": True}.items()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_metrics(tmp_path, {"a": math.nan}, {})
    assert Run.read(tmp_path).metrics == {"a": 2.0, "b": 1.0}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("timestep=abc", "Expected timestep to be an integer or a list of integers, but got 'abc'"),
        ("timestep=50.5", "Expected timestep to be an integer or a list of integers, but got 50.5"),
        ("seed=true", "Expected seed to be an integer, but got True"),
        ("probe=statistics probe.token=[a,1]", "Expected probe.token to be a list of integers, but got ['a', 1]"),
        ("block=5", "Expected block to be text or a list of names, but got 5"),
        ("block=null", "Expected block to be text or a list of names, but got None"),
        ("images.limit=abc", "Expected images.limit to be an integer, but got 'abc'"),
        ("images.size=128.0", "Expected images.size to be an integer, but got 128.0"),
        ("twins=abc", "Expected twins to be an integer of at least 0, but got 'abc'"),
        ("twins=-1", "Expected twins to be an integer of at least 0, but got -1"),
        ("trainer.max_epochs=0", "Expected trainer.max_epochs to be an integer of at least 1, but got 0"),
        ("probe.learning_rate=abc", "Expected probe.learning_rate to be a number, but got 'abc'"),
        ("datamodule.batch_size=2.5", "Expected datamodule.batch_size to be an integer, but got 2.5"),
        ("device=null", "Expected device to be text, but got None"),
        ("backbone.scale_again=maybe", "Expected backbone.scale_again to be true or false, but got 'maybe'"),
        ("activation_budget=abc", "Expected activation_budget to be a number, but got 'abc'"),
    ],
)
def test_values_of_the_wrong_type_are_refused(override: str, message: str) -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", overrides=override.split())
    with pytest.raises(InputError) as caught:
        checks.check_types(cfg)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "override", ["images.limit=3", "activation_budget=0", "block=[mid,up_1]", "images=hub", "backbone=local"]
)
def test_values_of_the_right_type_pass(override: str) -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        checks.check_types(compose("train", overrides=[override]))


def test_clearing_takes_only_what_a_run_leaves(tmp_path: Path) -> None:
    left = [
        "metrics.json",
        "maps.npz",
        "accuracy_over_grid.png",
        "checkpoints/last.ckpt",
        "random_weights_0/checkpoints/last.ckpt",
    ]
    own = ["holiday.png", "checkpoints/mine.ckpt", "notes.txt"]
    for name in (*left, *own):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    clear(tmp_path, resumed=True)
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()
    assert not (tmp_path / "metrics.json").exists()
    clear(tmp_path, resumed=False)
    assert not any((tmp_path / name).exists() for name in left)
    assert all((tmp_path / name).exists() for name in own)

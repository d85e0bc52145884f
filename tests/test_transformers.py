"""Diffusion transformers by the command: tiny folders of every family in the real layout, by every probe."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdprobe.reports.run import Run
from tests.backbones.tiny_transformers import FAMILIES

SMALL = [
    "backbone=local", "images.limit=16", "logger=none", "device=cpu", "twins=0", "protocol.solver=closed_form", "block=stages",
    "backbone.precision=fp32",
]  # fmt: skip
SIDE = {"sana": 256}  # pixels; others have 128
POSITIONED = tuple(family for family in FAMILIES if family != "sana")


@pytest.fixture
def measure(launch: Callable[..., Run], saved_pipeline: Callable[[str], Path]) -> Callable[..., Run]:
    """A run of a family."""

    def go(family: str, *overrides: str, **options: Any) -> Run:
        return launch(f"backbone.path={saved_pipeline(family)}", f"images.size={SIDE.get(family, 128)}", *overrides, **options)

    return go


PROBES = {
    "position": (["block=all"], "binned_accuracy"),
    "statistics": (["images.limit=72", "images.size=256", "block=all"], "credibility"),
    "correspondence": (["images=scene_pairs", "images.limit=48", "protocol.matching=none"], "pck"),
    "depth": (["images=scene_depth", "images.limit=30"], "abs_rel"),
    "content": (["images.limit=48"], "content_r2"),
    "equivariance": (["images=texture", "images.limit=70"], "equivariance"),
    "controls": (["images=flipped", "images.limit=48"], "binned_accuracy"),
    "explore": ([], ""),
    "study": (["images.limit=72", "images.size=256"], "binned_accuracy"),
}


@pytest.mark.slow
@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_probe_measures_every_family(measure: Callable[..., Run], family: str, probe: str) -> None:
    overrides, metric = PROBES[probe]
    run = measure(family, f"probe={probe}", *overrides)
    assert run.meta["complete"] and run.meta["position"] == "stored"
    named = [key for key in run.metrics if key.startswith("test/block_3/") and metric in key]
    assert named or not metric, sorted(run.metrics)[:40]
    assert probe != "controls" or "rotated/block_3/binned_accuracy/all" in run.metrics


MEASURED = {
    "position": (["block=all", "images=scenes", "images.limit=16"], "binned_accuracy"),
    "statistics": (["images=scenes", "images.limit=72"], "credibility"),
    "correspondence": (["images=scene_pairs", "images.limit=48", "protocol.matching=none"], "pck"),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, "pixart_sigma"])
def test_commands_measure_a_saved_pipeline(
    family: str, saved_pipeline: Callable[[str], Path], command: Callable[..., tuple[Any, str, str]], tmp_path: Path
) -> None:
    """``train.py`` itself, with the layers that it chooses where none are named."""
    side = max(SIDE.get(family, 128), 256)
    shared = [word for word in SMALL if not word.startswith(("block=", "images."))] + [
        f"backbone.path={saved_pipeline(family)}", f"images.size={side}", f"cache_dir={tmp_path}",
        "backbone.prompt_cache=" + str(family != "dit").lower(),
    ]  # fmt: skip
    for probe, (own, metric) in MEASURED.items():
        code, _, err = command(*shared, f"probe={probe}", *own, f"hydra.run.dir={tmp_path / probe}")
        assert code in (None, 0), err
        run = Run.read(tmp_path / probe)
        named = [key for key in run.metrics if key.startswith("test/block_3/") and metric in key]
        assert run.meta["complete"] and named, sorted(run.metrics)[:40]
        assert ("block_1" in run.layers) == (probe == "position" or "block=stages" in err), run.layers


@pytest.mark.slow
def test_the_experiment_on_mitigations_leaves_out_what_has_no_meaning(
    saved_pipeline: Callable[[str], Path], command: Callable[..., tuple[Any, str, str]], tmp_path: Path
) -> None:
    code, _, err = command(
        "experiment=mitigations", "probe=position", "backbone=local", f"backbone.path={saved_pipeline('sd3')}", "device=cpu",
        "block=block_2", "images=scenes", "images.size=128", "images.limit=64", "backbone.precision=fp32", "logger=none",
        f"cache_dir={tmp_path}", f"hydra.sweep.dir={tmp_path / 'sweep'}",
    )  # fmt: skip
    assert code in (None, 0) and "Left out: padding_swap. SD3Transformer2DModel has no convolutions that pad." in err, err
    run = Run.read(tmp_path / "sweep" / "0")
    measured = {key.split("/")[1] for key in run.metrics if key.startswith("test/block_2__")}
    assert {"block_2__leace", "block_2__canvas", "block_2__shift_flip_noise", "block_2__empty_image"} <= measured
    assert not any("padding_swap" in name for name in measured)


# ---- thin checks of the default suite ----------------------------------------------------------------------------------------


def test_levels_weights_and_position_of_one_run(measure: Callable[..., Run]) -> None:
    """Several σ in one run, random twins, permuted positions: all are recorded, and move the numbers that they should."""
    run = measure("sd3", "noise_level=[.1,.5]", "twins=1", "backbone.position=zero", "block=[patch,block_3]")
    assert run.meta["timestep"] == [100, 500] and run.meta["noise_level"] == [0.1, 0.5]
    assert run.meta["position"] == "zero" and run.meta["text"] == "encoded" and run.meta["padding"] == "zeros"
    assert {"test/block_3__t500/binned_accuracy/all", "random_weights/patch__t100/binned_accuracy/all"} <= run.metrics.keys()
    assert run.meta["published_names"]["block_3__t100"] == "transformer_blocks[3]"


@pytest.mark.slow
@pytest.mark.parametrize("family", POSITIONED)
def test_position_embeddings_are_what_an_untrained_network_reads(measure: Callable[..., Run], family: str) -> None:
    """Periodic textures and random weights: the embedding that is added is read, and nothing without it."""
    own = ["images=texture", "images.limit=60", "probe=controls", "backbone.weights=random", "block=[patch,block_3]"]
    stored, zero = (measure(family, *own, f"backbone.position={mode}", folder=mode) for mode in ("stored", "zero"))
    both = [run.value("test", "block_3", "binned_accuracy") for run in (stored, zero)]
    assert both[0] is not None and both[1] is not None
    if family in ("pixart", "sd3", "dit"):
        assert both[0] > both[1] + 0.1, both
    assert stored.meta["config_hash"] != zero.meta["config_hash"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["permuted", "shifted"])
@pytest.mark.parametrize("family", ["dit", "flux", "lumina2"])
def test_other_positions_are_measured(measure: Callable[..., Run], family: str, mode: str) -> None:
    assert measure(family, f"backbone.position={mode}").meta["position"] == mode


@pytest.mark.slow
@pytest.mark.parametrize(
    "mitigations",
    [
        "mitigation=[position_mean,standardize,leace,outlier_tokens,channel_discard,pca_drop,random_rank]",
        "mitigation=[shift_anova,empty_image]", "mitigation=canvas", "mitigation=shift_flip_noise",
    ],
)  # fmt: skip
@pytest.mark.parametrize("family", ["dit", "flux", "sana"])
def test_mitigations_are_applied(measure: Callable[..., Run], family: str, mitigations: str) -> None:
    run = measure(family, mitigations, "datamodule.compare=true", "images.limit=40")
    assert any(key.startswith("test/block_3__") for key in run.metrics)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_have_the_names_of_the_family(measure: Callable[..., Run], family: str) -> None:
    run = measure(family, "block=[block_2_norm,patch,latent,noisy_latent,block_0]")
    assert run.layers == ["latent", "noisy_latent", "patch", "block_0", "block_2_norm"]


@pytest.mark.slow
def test_padding_of_sana_and_prompts_of_dit(measure: Callable[..., Run]) -> None:
    assert measure("sana", "backbone.padding=circular").meta["padding"] == "circular"
    assert measure("dit", "prompt='7'").meta["complete"]
    assert measure("sd3", "backbone.text=none", folder="none").meta["text_hash"] == "none"

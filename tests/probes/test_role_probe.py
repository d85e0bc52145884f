"""RoleProbe and its data, on the tiny network: edits, controls, keys, what is not read, and where position comes back."""

from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.images.scenes import Scenes
from datamodules.images.texture import Textures
from datamodules.role import RoleDataModule
from probes import RoleProbe
from sdprobe.backbones import FrozenSD
from sdprobe.backbones.random_pipeline import random_pipeline
from sdprobe.mitigations import Canvas, PaddingSwap, PositionMean, ShiftFlipNoise, Standardize
from sdprobe.mitigations.energy import random_energy
from sdprobe.tokens.batch import EditedBatch
from sdprobe.tokens.geometry import spatial_mean
from sdprobe.utilities.errors import InputError

SIZE, IMAGES = 64, 40
EDITS = {"position_mean": PositionMean(), "standardize": Standardize()}


@pytest.fixture(scope="module")
def sd() -> FrozenSD:
    return FrozenSD.from_pretrained("tiny", precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def measured(data: RoleDataModule) -> RoleProbe:
    """The probe after what a Trainer calls."""
    data.prepare_data()
    data.setup("fit")
    probe = RoleProbe(data.shapes, data.photos, data)
    for number, batch in enumerate(data.train_dataloader()):
        probe.training_step(batch, number)
    probe.on_test_start()
    for number, batch in enumerate(data.test_dataloader()):
        probe.test_step(batch, number)
    probe.collect()
    return probe


@pytest.fixture(scope="module")
def whole(sd: FrozenSD, cache: str) -> tuple[RoleDataModule, RoleProbe]:
    """Two edits and a padding swap at two layers and two noise levels, with re-emergence."""
    data = RoleDataModule(
        Scenes(SIZE, IMAGES), sd, ["mid", "up_1"], reemergence=True, later=["up_0", "up_2"], timestep=[50, 600],
        mitigation=EDITS | {"padding_swap": PaddingSwap("circular", where="up_1")}, cache_dir=cache,
    )  # fmt: skip
    return data, measured(data)


def test_every_edit_has_its_numbers_and_controls(whole: tuple[RoleDataModule, RoleProbe]) -> None:
    data, probe = whole
    labels = ["position_mean", "standardize", "position_mean__standardize"]
    names = [f"{layer}__t{t}__{label}" for layer in ("mid", "up_1") for t in (50, 600) for label in labels]
    names += [f"up_1__t{t}__padding_swap" for t in (50, 600)]
    cells = [f"{layer}__t{t}" for layer in ("mid", "up_1") for t in (50, 600)]
    assert set(data.layers) == {*names, *cells}
    for condition, layers in {"test": names, "random_energy": names, "ceiling": cells, "shuffled_position": cells}.items():
        for layer in layers:
            for where in ("all", "corner", "border", "interior", "band_4", "band_8"):
                assert f"{condition}/{layer}/loss_change/{where}/ci_low" in probe.results
            assert f"{condition}/{layer}/displacement/all/n" in probe.results
            if condition != "shuffled_position":
                assert f"{condition}/{layer}/binned_accuracy/up_2" in probe.results
    assert "test/mid__t50__position_mean/binned_accuracy/up_0" in probe.results
    assert "test/up_1__t50__position_mean/binned_accuracy/up_0" not in probe.results, "it comes before up_1"
    assert probe.results["chance/up_2__t600/binned_accuracy/all"] == 1 / 8
    assert set(probe.pseudovalues()) <= set(probe.results)
    assert len(data.test_dataloader()) == sum(1 for _ in data.test_dataloader())


def test_predictions_are_those_of_edits_made_by_hand(whole: tuple[RoleDataModule, RoleProbe], sd: FrozenSD) -> None:
    data, _ = whole
    chains = {each.label: each.fitted for each in data.mitigations.variants}
    batches = {(batch.condition, batch.layer): batch for batch in list(data.test_dataloader())[: len(data._parts(True))]}
    indices = data.split["test"][: data.base_stream.batch_size]
    latents, ids = torch.stack([data.store[i] for i in indices]), [data.images.name(i) for i in indices]
    chain = chains["position_mean__standardize"]["mid__t600"].transform

    def predicted(edit: Any) -> Tensor:
        return sd.grids(latents, ids, ["conv_out"], 600, 0, "", edits={"mid": edit})["conv_out"]

    expected = {
        ("test", "mid__t600__position_mean__standardize"): chain,
        ("random_energy", "mid__t600__position_mean__standardize"): lambda grid: random_energy(
            grid, chain(grid), 0, "mid", [0] * len(grid)
        ),
        ("ceiling", "mid__t600"): spatial_mean,
        ("shuffled_position", "mid__t600"): chains["shuffled_position"]["mid__t600"].transform,
    }
    for key, edit in expected.items():
        assert torch.equal(batches[key].predictions["edited"], predicted(edit)), key
    plain = sd.grids(latents, ids, ["conv_out", "up_2"], 600, 0, "")
    assert torch.equal(batches["", "__t600"].grids["up_2"], plain["up_2"])
    assert torch.equal(batches["ceiling", "mid__t600"].predictions["plain"], plain["conv_out"])
    with sd.padded("circular", "up_1"):
        swapped = sd.grids(latents, ids, ["conv_out"], 600, 0, "")["conv_out"]
    assert torch.equal(batches["test", "up_1__t600__padding_swap"].predictions["edited"], swapped)
    assert not torch.equal(swapped, plain["conv_out"])
    assert torch.equal(sd.grids(latents, ids, ["conv_out"], 600, 0, "")["conv_out"], plain["conv_out"]), "the padding is back"


def test_what_no_later_layer_reads_costs_nothing(cache: str) -> None:
    pipe = random_pipeline("tiny")
    first, hidden = pipe.unet.up_blocks[0].resnets[0], pipe.unet.mid_block.resnets[-1].out_channels
    with torch.no_grad():
        first.conv1.weight[:, :hidden] = 0
        first.conv_shortcut.weight[:, :hidden] = 0
    data = RoleDataModule(
        Scenes(SIZE, 30), FrozenSD.from_pipeline(pipe), ["down_0", "mid"], mitigation={"p": PositionMean()}, cache_dir=cache
    )
    found = measured(data).results
    for name in ("test/mid__p", "random_energy/mid__p", "ceiling/mid", "shuffled_position/mid"):
        assert abs(found[f"{name}/loss_change/all"]) < 1e-6 and found[f"{name}/displacement/all"] < 1e-6, name
    assert found["ceiling/down_0/displacement/all"] > 1e-4
    assert "test/mid__p/ceiling_share/all" not in found


@pytest.mark.parametrize(("padding", "above"), [("zeros", True), ("circular", False)])
def test_position_comes_back_from_padding_and_from_nothing_else(padding: str, above: bool, cache: str) -> None:
    sd = FrozenSD.from_pretrained("tiny", precision="fp32", device="cpu", padding=padding, noise="shared")
    data = RoleDataModule(Textures(SIZE, IMAGES), sd, "conv_in", reemergence=True, later="up_1", timestep=600, cache_dir=cache)
    found = measured(data).results
    low, null = found["ceiling/conv_in/binned_accuracy/up_1/ci_low"], found["chance/up_1/binned_accuracy/all"]
    assert (low > null) is above


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": ["latent", "mid"]}, "block to name layers that the network computes, but got its input latent"),
        ({"mitigation": {"canvas": Canvas()}}, "with a fitted map, to apply inside the network, but got canvas, which changes"),
        ({"mitigation": {"views": ShiftFlipNoise()}}, "but got views, which changes how the network is shown an image"),
        ({"mitigation": {"swap": PaddingSwap()}}, r"mitigation.swap.where to be a layer of block= \(mid\), but got None"),
        ({"mitigation": {"swap": PaddingSwap(where="up_1")}}, r"swap.where to be a layer of block= \(mid\), but got up_1"),
        (
            {"block": "mid_attn_0", "mitigation": {"swap": PaddingSwap(where="mid_attn_0")}},
            "Expected a layer with convolutions that pad, but mid_attn_0 of mitigation.swap.where has none",
        ),
        ({"reemergence": True, "later": "down_0"}, "datamodule.later to name layers after mid, but got down_0"),
    ],
)
def test_unusable_settings_are_refused_before_anything_is_computed(options: dict[str, Any], message: str, sd: FrozenSD) -> None:
    before = dict(sd.passes)
    with pytest.raises(InputError, match=message):
        RoleDataModule(Scenes(SIZE, 20), sd, **{"block": "mid", **options})
    assert sd.passes == before


def test_images_without_noise_have_nothing_to_predict() -> None:
    quiet = FrozenSD.from_pretrained("tiny", device="cpu", noise="none")
    with pytest.raises(InputError, match=r"Expected noise to predict, but got backbone\.noise=none"):
        RoleDataModule(Scenes(SIZE, 20), quiet, "mid")


def test_a_network_that_is_not_reproducible_is_refused(sd: FrozenSD, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = RoleDataModule(Scenes(SIZE, IMAGES), sd, "mid", cache_dir=cache)
    data.prepare_data()
    data.setup("fit")
    plain = sd.grids
    monkeypatch.setattr(
        sd, "grids", lambda *args, **kwargs: {name: grid + torch.rand(()) for name, grid in plain(*args, **kwargs).items()}
    )
    with pytest.raises(InputError, match="Expected the network to give the same conv_out twice, but it differs"):
        next(iter(data.test_dataloader()))


def test_a_padding_swap_of_a_block_is_for_this_probe_alone() -> None:
    with pytest.raises(InputError, match=r"Expected padding_swap\.where only with probe=role, but got 'up_1'"):
        PaddingSwap(where="up_1").passes(512)


def test_a_resumed_run_that_has_seen_no_training_images_is_refused() -> None:
    later = {"up_1": (8, 8, 8)}
    probe = RoleProbe({"mid": (4, 4, 4)}, 6, type("Data", (), {"kind": "role", "later": later})())
    with pytest.raises(InputError, match="Expected a run of probe=role to begin with its training images"):
        probe.on_test_start()
    probe.test_step(EditedBatch("test", "mid__p", {}, {}, torch.arange(6)), 0)

"""FrozenSD: an activation depends on its image, its name and the arguments, never on the batch it came in."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sdprobe.backbones import FrozenSD
from sdprobe.backbones.weights import weight_hash
from sdprobe.utilities.errors import InputError

LAYERS = ["latent", "noisy_latent", "conv_in", "down_1", "mid", "up_1", "conv_out"]
IDS = list("abcdefgh")


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def grids(sd: FrozenSD, images: Tensor) -> dict[str, Tensor]:
    return sd.activations(images, LAYERS, ids=IDS)


# --- laws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [[0], [7], [7, 6, 5, 4, 3, 2, 1, 0], [2, 5], [4, 4, 1]])
def test_batch_order_and_composition_do_not_change_an_activation(
    order: list[int], sd: FrozenSD, images: Tensor, grids: dict[str, Tensor]
) -> None:
    shuffled = sd.activations(images[order], LAYERS, ids=[IDS[i] for i in order])
    assert list(shuffled) == LAYERS
    for layer in LAYERS:
        close(shuffled[layer], grids[layer][order])


def test_default_ids_come_from_the_pixels(sd: FrozenSD, images: Tensor) -> None:
    together = sd.activations(images[:4], ["noisy_latent", "mid"])
    alone = sd.activations(images[2:3], ["noisy_latent", "mid"])
    close(alone["noisy_latent"][0], together["noisy_latent"][2])
    close(alone["mid"][0], together["mid"][2])
    noise = sd.activations(images[:4], "noisy_latent")["noisy_latent"] - (
        sd.noise.alphas_cumprod[50].sqrt() * sd.activations(images[:4], "latent")["latent"]
    )
    assert torch.corrcoef(noise.flatten(1)).fill_diagonal_(0).abs().max() < 0.25, "different pixels, different noise"


def test_repeating_a_call_repeats_its_result(sd: FrozenSD, images: Tensor) -> None:
    torch.manual_seed(0)
    first = sd.activations(images[:2], "up_1", ids=IDS[:2])["up_1"]
    torch.manual_seed(1)
    assert torch.equal(sd.activations(images[:2], "up_1", ids=IDS[:2])["up_1"], first)


@pytest.mark.parametrize("change", [{"seed": 1}, {"timestep": 261}, {"prompt": "a photo of a cat"}, {"ids": ["y", "z"]}])
def test_every_argument_matters(change: dict[str, object], sd: FrozenSD, images: Tensor) -> None:
    base = {"ids": IDS[:2]}
    a, b = (sd.activations(images[:2], "mid", **options)["mid"] for options in (base, base | change))  # type: ignore[arg-type]
    assert not torch.allclose(a, b, atol=1e-4)


def test_images_matter(grids: dict[str, Tensor], sd: FrozenSD, images: Tensor) -> None:
    others = sd.activations(images.flip(0), ["latent", "mid"], ids=IDS)
    assert not torch.allclose(others["mid"], grids["mid"], atol=1e-3)


def test_with_shared_noise_ids_do_not_matter(saved: Path, images: Tensor) -> None:
    shared = FrozenSD.from_pretrained(str(saved), precision="fp32", device="cpu", noise="shared")
    a, b = (shared.activations(images[:2], "mid", ids=ids)["mid"] for ids in (["a", "b"], ["y", "z"]))
    assert torch.equal(a, b)


def test_inputs_can_be_asked_for_as_controls(sd: FrozenSD, images: Tensor, grids: dict[str, Tensor]) -> None:
    close(grids["latent"], sd.encoder(images, IDS))
    close(grids["noisy_latent"], sd.noise(grids["latent"], 50, IDS))
    assert list(sd.activations(images[:1], ["noisy_latent"])) == ["noisy_latent"]


def test_inputs_alone_need_no_unet_pass(sd: FrozenSD, images: Tensor) -> None:
    before = sd.passes
    sd.activations(images[:3], ["latent", "noisy_latent"])
    assert sd.passes == {"unet": before["unet"], "encoder": before["encoder"] + 3}
    sd.activations(images[:2], "conv_in")
    assert sd.passes == {"unet": before["unet"] + 2, "encoder": before["encoder"] + 5}


def test_grids_from_latents_equal_activations_from_images(sd: FrozenSD, images: Tensor, grids: dict[str, Tensor]) -> None:
    again = sd.grids(sd.encoder(images, IDS), IDS, ("mid", "up_1"), timestep=50, seed=0, prompt="")
    assert all(torch.equal(again[layer], grids[layer]) for layer in ("mid", "up_1"))


# --- interface -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("mid", ["mid"]),
        ("mid_res_1", ["mid"]),
        ("down_?", ["down_0", "down_1", "down_2", "down_3"]),
        (["up_0", "conv_in"], ["conv_in", "up_0"]),
        (("mid", "latent"), ["latent", "mid"]),
    ],
)
def test_layers_takes_what_block_takes(layers: str | list[str], names: list[str], sd: FrozenSD, images: Tensor) -> None:
    assert list(sd.activations(images[:1, :, :64, :64], layers)) == names


@pytest.mark.parametrize(("layers", "count"), [("stages", 11), ("all", 46), ("loos2025", 45)])
def test_layers_takes_the_sets(layers: str, count: int, sd: FrozenSD, images: Tensor) -> None:
    assert len(sd.activations(images[:1, :, :64, :64], layers)) == count


def test_shapes_are_the_real_ones(sd: FrozenSD, grids: dict[str, Tensor]) -> None:
    assert sd.shapes(128, LAYERS) == {layer: tuple(grids[layer].shape[1:]) for layer in LAYERS}
    assert sd.shapes(512, ["latent"]) == {"latent": (4, 64, 64)}


def test_sides_may_differ(sd: FrozenSD, images: Tensor) -> None:
    grid = sd.activations(images[:1, :, :64, :72], "up_3")["up_3"]
    assert grid.shape == (1, 16, 8, 9)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_grids_have_the_device_of_the_backbone_and_float32_or_the_dtype_asked_for(
    precision: str, dtype: torch.dtype, saved: Path, images: Tensor, grids: dict[str, Tensor]
) -> None:
    sd = FrozenSD.from_pretrained(str(saved), precision=precision, device="cpu")
    own = sd.activations(images, "mid", ids=IDS, dtype=dtype)["mid"]
    grid = sd.activations(images, "mid", ids=IDS)["mid"]
    assert own.dtype == sd.dtype == dtype and torch.equal(grid, own.float())
    assert grid.numpy().flags.c_contiguous and grid.device == sd.device == torch.device("cpu")
    error = (grid.float() - grids["mid"]).norm() / grids["mid"].norm()
    assert error < (1e-5 if dtype == torch.float32 else 0.05)


def test_grids_can_train_a_head_and_networks_stay_frozen(sd: FrozenSD, images: Tensor) -> None:
    before = weight_hash(sd.unet.unet), weight_hash(sd.encoder.vae)
    grid = sd.activations(images[:2], "mid")["mid"]
    assert not grid.is_inference() and not grid.requires_grad
    head = nn.Conv2d(64, 2, 1)
    head(grid).sum().backward()
    assert head.weight.grad is not None
    assert (weight_hash(sd.unet.unet), weight_hash(sd.encoder.vae)) == before == (sd.unet_hash, sd.encoder.weights)


def test_describe_tells_backbones_apart(euler_folder: Path) -> None:
    def load(**option: str | bool) -> FrozenSD:
        return FrozenSD.from_pretrained(str(euler_folder), **{"precision": "fp32", "device": "cpu", **option})  # type: ignore[arg-type]

    sd = load()
    described = sd.describe()
    assert described["model"] == str(euler_folder)
    assert described["unet_hash"] == sd.unet_hash and described["vae_hash"] == sd.encoder.weights
    assert (described["precision"], described["device"], described["noise"]) == ("fp32", "cpu", "independent")
    options = {"noise": "shared", "vae_input": "unit", "posterior": "sample", "precision": "bf16", "weights": "random"}
    for name, value in (options | {"scale_again": True}).items():
        assert load(**{name: value}).describe() != described, name


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_wrong_layer_is_refused_before_anything_is_encoded(sd: FrozenSD, images: Tensor) -> None:
    before = sd.passes
    with pytest.raises(InputError, match="nearest name is 'mid'"):
        sd.activations(images, "middle")
    with pytest.raises(InputError, match="timestep to be from 0 to 999, but got 1000"):
        sd.activations(images, "mid", timestep=1000)
    assert sd.passes == before


def test_as_many_ids_as_images_are_needed(sd: FrozenSD, images: Tensor) -> None:
    # one id for three images would give all three the same noise, silently
    with pytest.raises(InputError, match="ids"):
        sd.activations(images[:3], "mid", ids=["a"])


@pytest.fixture
def broken(saved: Path) -> FrozenSD:
    sd = FrozenSD.from_pretrained(str(saved), precision="fp16", device="cpu")
    sd.unet.unet.get_submodule("down_blocks.1.resnets.0.conv1").weight.data[0, 0, 0, 0] = float("inf")
    return sd


def test_activations_that_are_not_finite_are_refused_with_layer_image_and_remedy(broken: FrozenSD, images: Tensor) -> None:
    message = r"layer down_1_res_0 has NaN or Inf for image cat in fp16\. Use backbone\.precision=fp32"
    with pytest.raises(InputError, match=message):
        broken.activations(images[:2, :, :64, :64], ["conv_in", "down_1_res_0", "mid"], ids=["cat", "dog"])
    assert broken.activations(images[:2, :, :64, :64], ["conv_in", "down_0"])["down_0"].isfinite().all()


def test_the_image_at_fault_is_named(sd: FrozenSD) -> None:
    latents = torch.randn(3, 4, 8, 8)
    latents[1, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"layer conv_in has NaN or Inf for image dog in fp32"):
        sd.grids(latents, ["cat", "dog", "cow"], ("conv_in", "mid"), timestep=50, seed=0, prompt="")


def test_large_values_are_not_taken_for_infinite_ones_though_their_sum_is(sd: FrozenSD) -> None:
    latents = torch.full((1, 4, 8, 8), 3e37)
    assert latents.sum() == torch.inf
    grids = sd.grids(latents, ["cat"], ("latent",), timestep=50, seed=0, prompt="")
    assert torch.equal(grids["latent"], latents)


def test_the_remedy_is_not_the_precision_already_in_use(sd: FrozenSD) -> None:
    with pytest.raises(InputError) as refusal:
        sd.grids(torch.full((1, 4, 8, 8), float("nan")), ["cat"], ("mid",), timestep=50, seed=0, prompt="")
    assert "precision=fp32" not in str(refusal.value)

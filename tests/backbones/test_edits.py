"""Edits inside the forward pass: none changes nothing, one acts on all that follows, and kept outputs change no bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from sdprobe.backbones import FrozenSD
from sdprobe.backbones.unet import Conditioning, FrozenUNet
from sdprobe.mitigations import Canvas, PaddingSwap, Standardize
from sdprobe.tokens.geometry import spatial_mean
from sdprobe.utilities.errors import InputError

TIMESTEP = 50
EDITED = ["conv_in", "down_0_res_0", "down_0", "down_1_attn_0_key", "mid_attn_0", "mid", "up_1_attn_1_out", "up_3", "conv_out"]


@pytest.fixture(scope="module")
def frozen(pipeline: StableDiffusionPipeline) -> FrozenUNet:
    return FrozenUNet(pipeline.unet)


@pytest.fixture(scope="module")
def noisy() -> Tensor:
    return torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def conditioning() -> Conditioning:
    return Conditioning(torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(1)))


def halved(grid: Tensor) -> Tensor:
    return grid / 2


def plain_edit(frozen: FrozenUNet, layer: str, noisy: Tensor, conditioning: Conditioning) -> Tensor:
    """The prediction of diffusers' own pass with the output of one module halved."""

    def halve(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        return (output[0] / 2, *output[1:]) if isinstance(output, tuple) else output / 2

    handle = frozen.unet.get_submodule(frozen.table[layer].path).register_forward_hook(halve)
    with torch.no_grad():
        states = conditioning.states.expand(len(noisy), -1, -1)
        sample = frozen.unet(noisy, TIMESTEP, encoder_hidden_states=states).sample
    handle.remove()
    return sample


def test_no_edit_through_the_edit_path_is_bit_equal(frozen: FrozenUNet, noisy: Tensor, conditioning: Conditioning) -> None:
    plain = frozen(noisy, TIMESTEP, conditioning, ["conv_out"])["conv_out"]
    for edits in (None, {}, {layer: lambda grid: grid for layer in frozen.table}):
        assert torch.equal(frozen.predict(noisy, TIMESTEP, conditioning, edits), plain)
    assert not any(module._forward_hooks or "forward" in vars(module) for module in frozen.unet.modules())


@pytest.mark.parametrize("layer", EDITED)
def test_an_edit_is_that_of_a_plain_hook_with_and_without_kept_outputs(
    layer: str, frozen: FrozenUNet, noisy: Tensor, conditioning: Conditioning
) -> None:
    expected = plain_edit(frozen, layer, noisy, conditioning)
    assert torch.equal(frozen.predict(noisy, TIMESTEP, conditioning, {layer: halved}), expected)
    outputs: dict[str, Any] = {}
    plain = frozen.predict(noisy, TIMESTEP, conditioning, outputs=outputs)
    for _ in range(2):  # an edit leaves the kept outputs as they were
        assert torch.equal(frozen.predict(noisy, TIMESTEP, conditioning, {layer: halved}, outputs), expected)
    assert torch.equal(frozen.predict(noisy, TIMESTEP, conditioning, outputs=outputs), plain)
    assert not torch.equal(expected, plain)


def test_layers_before_an_edit_are_unedited_and_the_edited_one_is_read_after_it(
    frozen: FrozenUNet, noisy: Tensor, conditioning: Conditioning
) -> None:
    layers, outputs = ["down_1", "mid", "up_1"], {}
    plain = frozen(noisy, TIMESTEP, conditioning, layers, outputs=outputs)
    for kept in (None, outputs):
        edited = frozen(noisy, TIMESTEP, conditioning, layers, edits={"mid": halved}, outputs=kept)
        assert torch.equal(edited["down_1"], plain["down_1"])
        assert torch.equal(edited["mid"], plain["mid"] / 2)
        assert not torch.equal(edited["up_1"], plain["up_1"])


def test_kept_outputs_stand_in_for_the_modules_before_the_edit(
    frozen: FrozenUNet, noisy: Tensor, conditioning: Conditioning
) -> None:
    outputs: dict[str, Any] = {}
    frozen.predict(noisy, TIMESTEP, conditioning, outputs=outputs)
    ran: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
        for name, module in frozen.unet.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    frozen.predict(noisy, TIMESTEP, conditioning, {"up_0": halved}, outputs)
    for handle in handles:
        handle.remove()
    assert {name.split(".")[0] + name.split(".")[1][:1] for name in ran if "." in name} == {
        "up_blocks1",
        "up_blocks2",
        "up_blocks3",
    }


def test_several_edits_act_together(frozen: FrozenUNet, noisy: Tensor, conditioning: Conditioning) -> None:
    seen: dict[str, Tensor] = {}

    def seeing(name: str) -> Callable[[Tensor], Tensor]:
        return lambda grid: seen.setdefault(name, grid) * 0 + len(seen)

    both = frozen.predict(noisy, TIMESTEP, conditioning, {"mid": seeing("mid"), "up_0": seeing("up_0")})
    assert torch.equal(seen["up_0"], frozen(noisy, TIMESTEP, conditioning, ["up_0"], edits={"mid": torch.ones_like})["up_0"])
    assert torch.equal(both, frozen.predict(noisy, TIMESTEP, conditioning, {"up_0": lambda grid: torch.full_like(grid, 2)}))


def test_a_fused_projection_can_be_edited(pipeline: StableDiffusionPipeline, noisy: Tensor, conditioning: Conditioning) -> None:
    fused = UNet2DConditionModel.from_config(pipeline.unet.config)
    fused.load_state_dict(pipeline.unet.state_dict())
    frozen = FrozenUNet(fused)
    expected = frozen.predict(noisy, TIMESTEP, conditioning, {"mid_attn_0_key": halved})
    fused.fuse_qkv_projections()
    assert torch.allclose(frozen.predict(noisy, TIMESTEP, conditioning, {"mid_attn_0_key": halved}), expected, atol=1e-5)


def test_without_a_source_of_position_all_layers_after_the_mean_are_constant(sd: FrozenSD, images: Tensor) -> None:
    later = ["up_0", "up_1", "up_1_attn_0", "conv_out"]
    latents = torch.ones(2, 4, 16, 16)
    edits = {"conv_in": spatial_mean}
    with sd.padded("circular"):
        grids = sd.grids(latents, ["a", "b"], later, 261, 0, "", edits=edits)
    for grid in grids.values():
        assert (grid - spatial_mean(grid)).abs().max() <= 1e-5 * grid.abs().max()
    assert (sd.grids(latents, ["a", "b"], ["up_1"], 261, 0, "", edits=edits)["up_1"].std((2, 3)) > 1e-3).any(), "zero padding"


# --- bad input -------------------------------------------------------------------------------------------------------


def test_bad_edits_are_one_sentence(frozen: FrozenUNet, noisy: Tensor, conditioning: Conditioning, sd: FrozenSD) -> None:
    def tried(edits: dict[str, Any], layers: list[str]) -> dict[str, Tensor]:
        return frozen(noisy, TIMESTEP, conditioning, layers, edits=edits)

    with pytest.raises(InputError, match="up_1 runs after mid, the deepest"):
        tried({"up_1": halved}, ["down_0", "mid"])
    with pytest.raises(InputError, match="one of 'latent'"):
        tried({"latent": halved}, ["mid"])
    with pytest.raises(InputError, match=r"its own shape \(2, 64, 2, 2\), but got \(2, 64, 1, 2\)"):
        tried({"mid": lambda grid: grid[:, :, :1]}, ["up_0"])
    with pytest.raises(InputError, match="but got NoneType"):
        tried({"mid": lambda grid: None}, ["mid"])
    with pytest.raises(InputError, match="noisy_latent is an input"):
        sd.grids(torch.zeros(1, 4, 16, 16), ["a"], ["noisy_latent"], 50, 0, "", edits={"mid": halved})
    assert not any(module._forward_hooks for module in frozen.unet.modules())


def test_an_edit_that_never_ran_is_refused(
    pipeline: StableDiffusionPipeline, noisy: Tensor, conditioning: Conditioning
) -> None:
    unet = UNet2DConditionModel.from_config(pipeline.unet.config)
    unet.mid_block.attentions[0].forward = lambda hidden, *_args, **_kwargs: (hidden,)  # what is inside does not run
    with pytest.raises(InputError, match="Expected the edit of mid_attn_0_key to take effect, but the module"):
        FrozenUNet(unet).predict(noisy, TIMESTEP, conditioning, {"mid_attn_0_key": halved})


# --- in Python -------------------------------------------------------------------------------------------------------


def test_activations_and_predictions_of_images_with_a_fitted_map(sd: FrozenSD, images: Tensor) -> None:
    plain = sd.activations(images, ["mid", "up_1", "conv_out"], timestep=[50, 261])
    fitted = Standardize().fit(plain["mid"][0])
    edited = sd.activations(images, ["mid", "up_1", "conv_out"], timestep=[50, 261], edits={"mid": fitted})
    assert torch.allclose(edited["mid"][0], fitted.transform(plain["mid"][0]), atol=1e-5)
    assert not torch.allclose(edited["up_1"][1], plain["up_1"][1], rtol=1e-2)
    same = sd.activations(images, ["up_1"], timestep=[50, 261], edits={"mid": lambda grid: grid})
    assert torch.equal(same["up_1"], plain["up_1"])
    for edits, grids in ((None, plain), ({"mid": fitted}, edited)):
        found = sd.predict(images, timestep=261, edits=edits)
        assert torch.equal(found["prediction"], grids["conv_out"][1])
    noisy = sd.activations(images, ["latent", "noisy_latent"], timestep=261)
    alpha = sd.noise.alphas_cumprod[261]
    expected = (noisy["noisy_latent"] - alpha.sqrt() * noisy["latent"]) / (1 - alpha).sqrt()
    assert torch.allclose(found["target"], expected, atol=1e-4), "the tiny network predicts noise"
    mixed = sd.predict([images[0], images[0, :, :64]], timestep=261)
    assert [tuple(each["target"].shape) for each in mixed] == [(1, 4, *(side // 8 for side in shape[-2:])) for shape in
        (images[0].shape, images[0, :, :64].shape)]  # fmt: skip


@pytest.mark.parametrize(
    ("edits", "sentence"),
    [
        (spatial_mean, "Expected edits to be layer → fitted map or function, but got function"),
        ({"mid": Standardize()}, "but got Standardize for mid"),
        ({"mid": 3}, "but got int for mid"),
        ({"latent": spatial_mean}, "one of 'latent'"),
        ({"mid": Canvas()}, "but got Canvas for mid. It changes how the network is shown an image"),
        ({"mid": Standardize}, "but got Standardize for mid. Fit it first"),
        ({"mid": PaddingSwap()}, "but got PaddingSwap for mid. It changes how the network is shown an image"),
        ({"mid": spatial_mean, "mid_block": spatial_mean}, "a second of mid by mid_block"),
        ({"mid": lambda grid: grid / 0}, "Check that the edit of mid returns finite numbers"),
    ],
)
def test_wrong_edits_of_images_are_told(sd: FrozenSD, images: Tensor, edits: Any, sentence: str) -> None:
    for call in (lambda: sd.activations(images, "up_1", edits=edits), lambda: sd.predict(images, edits=edits)):
        with pytest.raises(InputError, match=sentence):
            call()


def test_edits_are_named_as_layers_are(sd: FrozenSD, images: Tensor) -> None:
    read = {name: sd.activations(images, "up_1", edits={name: halved})["up_1"] for name in ("mid", "mid_block", "mid*")}
    assert torch.equal(read["mid"], read["mid_block"]), "a published name"
    everything = dict.fromkeys(sd.unet.resolve("mid*"), halved)
    assert torch.equal(read["mid*"], sd.activations(images, "up_1", edits=everything)["up_1"]), "a glob"

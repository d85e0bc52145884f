"""FrozenUNet returns what diffusers computes, stops early, and leaves the network as it was."""

from collections.abc import Iterable

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from sdprobe.backbones.unet import Conditioning, FrozenUNet
from sdprobe.backbones.weights import weight_hash

TIMESTEP = 50
SOME = ["conv_in", "down_0", "down_1_attn_0", "down_3", "mid_attn_0", "mid", "up_0", "up_1_res_1", "up_1", "up_3", "conv_out"]


@pytest.fixture(scope="module")
def frozen(pipeline: StableDiffusionPipeline) -> FrozenUNet:
    return FrozenUNet(pipeline.unet)


@pytest.fixture(scope="module")
def noisy() -> Tensor:
    return torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def conditioning() -> Conditioning:
    return Conditioning(torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(1)))


def plain_forward(
    unet: UNet2DConditionModel, noisy: Tensor, states: Tensor, paths: Iterable[str], added: dict[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """diffusers' own forward pass to its end, with ordinary hooks; and its result."""
    outputs: dict[str, Tensor] = {}

    def keep(path: str) -> None:
        handles.append(
            unet.get_submodule(path).register_forward_hook(
                lambda _module, _inputs, output: outputs.update({path: output[0] if isinstance(output, tuple) else output})
            )
        )

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for path in paths:
        keep(path)
    with torch.no_grad():
        sample = unet(noisy, TIMESTEP, encoder_hidden_states=states.expand(len(noisy), -1, -1), added_cond_kwargs=added).sample
    for handle in handles:
        handle.remove()
    return outputs, sample


def record_runs(unet: nn.Module) -> tuple[list[str], list[torch.utils.hooks.RemovableHandle]]:
    """Names of modules as they begin to run."""
    begun: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: begun.append(name)) for name, module in unet.named_modules()
    ]
    return begun, handles


# --- equivalence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", SOME)
def test_early_exit_equals_the_full_forward_bit_for_bit(
    layer: str, frozen: FrozenUNet, noisy: Tensor, conditioning: Conditioning
) -> None:
    path = frozen.layers[layer].path
    full, _ = plain_forward(frozen.unet, noisy, conditioning.states, [path])
    early = frozen(noisy, TIMESTEP, conditioning, [layer])
    assert set(early) == {layer}
    assert torch.equal(early[layer], full[path])


def test_one_pass_returns_every_layer_and_the_last_is_the_prediction(
    frozen: FrozenUNet, noisy: Tensor, conditioning: Conditioning
) -> None:
    paths = {name: layer.path for name, layer in frozen.layers.items()}
    full, sample = plain_forward(frozen.unet, noisy, conditioning.states, paths.values())
    grids = frozen(noisy, TIMESTEP, conditioning, list(frozen.layers))
    assert set(grids) == set(paths)
    assert all(torch.equal(grids[name], full[path]) for name, path in paths.items())
    assert torch.equal(grids["conv_out"], sample)


def test_a_stage_is_the_output_of_its_block(frozen: FrozenUNet, noisy: Tensor, conditioning: Conditioning) -> None:
    blocks = {f"{kind}_{i}": f"{kind}_blocks.{i}" for kind in ("down", "up") for i in range(4)} | {"mid": "mid_block"}
    full, _ = plain_forward(frozen.unet, noisy, conditioning.states, blocks.values())
    grids = frozen(noisy, TIMESTEP, conditioning, list(blocks))
    assert all(torch.equal(grids[stage], full[path]) for stage, path in blocks.items())


def test_grids_are_not_overwritten_by_later_layers(frozen: FrozenUNet, noisy: Tensor, conditioning: Conditioning) -> None:
    alone = frozen(noisy, TIMESTEP, conditioning, ["down_0_res_0"])["down_0_res_0"].clone()
    together = frozen(noisy, TIMESTEP, conditioning, ["conv_out", "down_0_res_0"])
    assert torch.equal(together["down_0_res_0"], alone)


def test_timestep_and_conditioning_reach_the_network(frozen: FrozenUNet, noisy: Tensor, conditioning: Conditioning) -> None:
    base = frozen(noisy, TIMESTEP, conditioning, ["mid"])["mid"]
    assert not torch.allclose(frozen(noisy, 500, conditioning, ["mid"])["mid"], base)
    assert not torch.allclose(frozen(noisy, TIMESTEP, Conditioning(-conditioning.states), ["mid"])["mid"], base)


@pytest.mark.parametrize(("height", "width"), [(9, 6), (8, 12)])
def test_an_sdxl_unet_equals_its_plain_forward(height: int, width: int, sdxl_unet: UNet2DConditionModel) -> None:
    frozen = FrozenUNet(sdxl_unet)
    generator = torch.Generator().manual_seed(0)
    noisy, states, pooled = (torch.randn(*s, generator=generator) for s in ((2, 4, height, width), (1, 7, 40), (1, 20)))
    # original size, crop corner, target size; height first
    size = [8.0 * height, 8.0 * width]
    added = {"text_embeds": pooled.expand(2, -1), "time_ids": torch.tensor([[*size, 0, 0, *size]]).expand(2, -1)}
    paths = {name: layer.path for name, layer in frozen.layers.items()}
    full, _ = plain_forward(sdxl_unet, noisy, states, paths.values(), added)
    grids = frozen(noisy, TIMESTEP, Conditioning(states, pooled), list(paths))
    assert all(torch.equal(grids[name], full[path]) for name, path in paths.items())
    assert frozen.shapes((height, width), list(paths)) == {name: tuple(grids[name].shape[1:]) for name in paths}


# --- early exit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [["mid_res_0"], ["down_0"], ["up_0", "down_0"], ["conv_in"], ["up_1_attn_0", "mid"]])
def test_no_module_runs_after_the_deepest_layer(
    layers: list[str], frozen: FrozenUNet, noisy: Tensor, conditioning: Conditioning
) -> None:
    deepest = frozen.layers[max(layers, key=list(frozen.layers).index)].path
    begun, handles = record_runs(frozen.unet)
    plain_forward(frozen.unet, noisy, conditioning.states, [])
    full = list(begun)
    begun.clear()
    frozen(noisy, TIMESTEP, conditioning, layers)
    for handle in handles:
        handle.remove()
    last_inside = max(i for i, name in enumerate(full) if name == deepest or name.startswith(f"{deepest}."))
    assert begun == full[: last_inside + 1], "the same modules as a full pass, up to the deepest layer"
    assert len(begun) < len(full)


def hooks_left(unet: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in unet.modules())


def test_hooks_are_gone_afterwards(frozen: FrozenUNet, noisy: Tensor, conditioning: Conditioning) -> None:
    frozen(noisy, TIMESTEP, conditioning, SOME)
    assert hooks_left(frozen.unet) == 0


def test_hooks_are_gone_after_an_error_and_the_network_still_works(
    frozen: FrozenUNet, noisy: Tensor, conditioning: Conditioning
) -> None:
    before = frozen(noisy, TIMESTEP, conditioning, ["mid"])["mid"]
    with pytest.raises(RuntimeError):
        frozen(noisy, TIMESTEP, Conditioning(torch.zeros(1, 77, 31)), ["mid", "down_0"])
    assert hooks_left(frozen.unet) == 0
    assert torch.equal(frozen(noisy, TIMESTEP, conditioning, ["mid"])["mid"], before)


def test_errors_of_the_network_are_not_taken_for_an_early_exit(
    frozen: FrozenUNet, noisy: Tensor, conditioning: Conditioning
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("a defect")

    handle = frozen.unet.mid_block.register_forward_pre_hook(fail)
    with pytest.raises(KeyError, match="a defect"):
        frozen(noisy, TIMESTEP, conditioning, ["up_0"])
    handle.remove()


# --- shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latent", [(16, 16), (9, 10), (13, 8)])
def test_shapes_are_the_real_ones(latent: tuple[int, int], frozen: FrozenUNet, conditioning: Conditioning) -> None:
    names = list(frozen.layers)
    assert list(frozen.shapes(latent, ["up_1", "conv_in", "mid"])) == ["conv_in", "mid", "up_1"], "in execution order"
    passes = frozen.passes
    promised = frozen.shapes(latent, names)
    assert frozen.passes == passes, "no compute, no pass"
    grids = frozen(torch.randn(1, 4, *latent), TIMESTEP, conditioning, names)
    assert list(promised.items()) == [(name, tuple(grids[name].shape[1:])) for name in names]


# --- frozen ----------------------------------------------------------------------------------------------------------


def test_weights_stay_bit_identical(frozen: FrozenUNet, noisy: Tensor, conditioning: Conditioning) -> None:
    before = weight_hash(frozen.unet)
    grids = frozen(noisy, TIMESTEP, conditioning, SOME)
    for grid in grids.values():
        grid.zero_()  # a grid is no view of a weight
    assert weight_hash(frozen.unet) == before
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_training_mode_is_refused_silently(frozen: FrozenUNet) -> None:
    assert frozen.train() is frozen
    assert not any(module.training for module in frozen.modules())


def test_passes_count_images(frozen: FrozenUNet, noisy: Tensor, conditioning: Conditioning) -> None:
    before = frozen.passes
    frozen(noisy, TIMESTEP, conditioning, ["conv_in"])
    frozen(noisy[:1], TIMESTEP, conditioning, ["conv_in"])
    assert frozen.passes == before + 3

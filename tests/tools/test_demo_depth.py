"""Ceilings find planted live and dead layers, and a cut skip connection is not read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import nn

from sdprobe.backbones.architectures import meta_unet, preset_config
from sdprobe.backbones.embedded import DEMO
from sdprobe.backbones.random_pipeline import SCHEDULE, random_pipeline
from tools.demo import ceilings, depth
from tools.demo.diffusion import scheduler
from tools.demo.train import configured, main

EVERY = {f"up_{stage}": [0, 1, 2] for stage in range(4)}


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(16, 16, 16, 16),  # so that no group of a norm holds channels of a skip connection and others
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
        norm_num_groups=16,
        cross_attention_dim=8,
    )


def output(unet: UNet2DConditionModel) -> torch.Tensor:
    noisy = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return unet(noisy, 500, torch.zeros(1, 2, 8)).sample


def planted() -> StableDiffusionPipeline:
    """A tiny pipeline that predicts part of the noise by a linear map of up_3, and whose first up stage does not read mid."""
    pipe = random_pipeline("tiny")
    unet = pipe.unet
    first = unet.up_blocks[0].resnets[0]
    hidden = unet.mid_block.resnets[-1].out_channels
    with torch.no_grad():
        first.conv1.weight[:, :hidden] = 0
        first.conv_shortcut.weight[:, :hidden] = 0
        # group statistics must not carry the middle block's features, either
        assert hidden % (first.in_channels // first.norm1.num_groups) == 0
        noise = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(2))
        seen: list[torch.Tensor] = []
        handle = unet.conv_out.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        unet(noise, 900, torch.zeros(8, 1, unet.config.cross_attention_dim))
        handle.remove()
        features, goal = (x.movedim(1, -1).flatten(0, 2) for x in (seen[0], noise))
        features = torch.cat([features, torch.ones(len(features), 1)], 1)
        weight = torch.linalg.lstsq(features, goal).solution.T
        unet.conv_out.weight.zero_()
        unet.conv_out.weight[:, :, 1, 1], unet.conv_out.bias[:] = weight[:, :-1], weight[:, -1]
    return pipe


def test_a_planted_dead_layer_has_ceiling_zero_and_a_live_one_does_not() -> None:
    pipe = planted()
    assert ceilings.stages(pipe)[3:6] == ["down_3", "mid", "up_0"]
    found = ceilings.errors(pipe, 128, 8, ["mid", "up_3"], timesteps=(600, 900))
    assert np.allclose(found[:, 1], found[:, 0], rtol=1e-6, atol=0), "nothing reads mid"
    mean, low, high = ceilings.change(found[:, 2], found[:, 0])
    assert (low > 10).all() and (low < mean).all() and (mean < high).all()
    assert (found[1, 2] > 0.8).all(), "without its features the best prediction of unit noise is a constant"


def test_change_is_the_ratio_of_means_with_an_interval_over_pictures() -> None:
    plain = np.array([[1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0, 3.0]])
    mean, low, high = ceilings.change(1.1 * plain, plain)[:, 0]
    assert np.allclose([mean, low, high], 10)
    edited = plain + np.array([1, -1, 1, -1, 1, -1, 1, 0])
    mean, low, high = ceilings.change(edited, plain)[:, 0]
    assert np.isclose(mean, 100 * 1 / 16) and low < 0 < high


def test_the_table_has_a_row_per_layer() -> None:
    changes = np.array([[[1.0, 2.0]], [[0.5, 1.5]], [[1.5, 2.5]]])
    rows = ceilings.table(["mid", "up_0"], changes, [50]).splitlines()
    assert rows[2:] == ["| mid | +1.00 [+0.50, +1.50] |", "| up_0 | +2.00 [+1.50, +2.50] |"]


def test_the_command_prints_losses_and_ceilings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_pipeline("tiny").save_pretrained(tmp_path / "a")
    random_pipeline("tiny", seed=1).save_pretrained(tmp_path / "b")
    options = ["--sizes", "64", "--count", "6", "--layers", "mid"]
    ceilings.main([str(tmp_path / "a"), "--against", str(tmp_path / "b"), *options])
    printed = capsys.readouterr().out
    assert "64 px (latents of 8), loss " in printed and "| mid |" in printed and "loss against" in printed


def test_a_folder_without_a_unet_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ceilings.main([str(tmp_path)])
    assert f"Expected a Stable Diffusion folder in diffusers' format, but {tmp_path} has no unet." in capsys.readouterr().err


def test_training_goes_on_from_a_finished_folder_only(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"Expected start to be a finished folder, but .* has no vae"):
        main([f"start={tmp_path}", f"work={tmp_path}"])


@pytest.mark.skipif(not DEMO.is_dir(), reason="the demo model is still in training")
def test_the_prediction_of_the_demo_model_uses_its_middle() -> None:
    pipe = StableDiffusionPipeline.from_pretrained(DEMO, safety_checker=None, local_files_only=True)
    found = ceilings.errors(pipe, 256, 24, ["mid", "up_0", "up_1", "up_3"], timesteps=(261,))
    _, low, _ = ceilings.change(found[0, 1:], np.broadcast_to(found[0, :1], found[0, 1:].shape))
    assert (low > 1).all() and low[-1] > 50  # percent


def test_a_cut_skip_connection_is_not_read(unet: UNet2DConditionModel) -> None:
    assert not depth.is_cut(unet, EVERY)
    depth.cut(unet, EVERY)
    assert depth.is_cut(unet, EVERY)
    plain = output(unet)
    hooks = [
        block.register_forward_pre_hook(
            lambda module, inputs, kwargs: (
                inputs,
                kwargs | {"res_hidden_states_tuple": tuple(torch.randn_like(x) for x in kwargs["res_hidden_states_tuple"])},
            ),
            with_kwargs=True,
        )
        for block in unet.up_blocks
    ]
    others = output(unet)
    for hook in hooks:
        hook.remove()
    assert torch.equal(others, plain)


def test_skip_connections_have_the_widths_of_the_demo_model() -> None:
    widths = [(block.in_channels, first) for block, first in depth.cut_columns(meta_unet(preset_config("demo")), EVERY)]
    pairs = (
        [(128, 128)] * 3
        + [(128, 128), (128, 128), (128, 64)]
        + [(128, 64), (64, 64), (64, 32)]
        + [(64, 32), (32, 32), (32, 32)]
    )
    assert widths == [(hidden + skip, hidden) for hidden, skip in pairs]


def test_the_recipe_cuts_every_skip_connection_of_the_two_deepest_stages() -> None:
    unet = meta_unet(preset_config("demo"))
    *_, last = configured([]).diffusion.stages
    cut = [block for block, _ in depth.cut_columns(unet, last.cut)]
    deep = [block for stage in unet.up_blocks[:2] for block in stage.resnets]
    assert cut[:6] == deep and len(cut) == 8


def test_an_open_stage_passes_on_its_input(unet: UNet2DConditionModel) -> None:
    skips = {"up_0": [0, 1, 2], "up_2": [0]}
    depth.open_path(unet, skips)
    depth.cut(unet, skips)
    for resnet in unet.up_blocks[0].resnets:
        nn.init.zeros_(resnet.conv2.weight)
        nn.init.zeros_(resnet.conv2.bias)
    ends: list[torch.Tensor] = []
    unet.mid_block.register_forward_hook(lambda module, inputs, output: ends.append(output))
    unet.up_blocks[0].register_forward_hook(lambda module, inputs, output: ends.append(output))
    output(unet)
    upsampled = ends[0].repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert torch.allclose(ends[1], upsampled, atol=1e-5)
    shortcut = unet.up_blocks[2].resnets[0].conv_shortcut.weight[:, :16, 0, 0]
    assert not torch.allclose(shortcut, torch.eye(16)), "a stage that keeps a skip connection does not change"


def test_the_noise_schedule_is_the_demo_models() -> None:
    assert {key: scheduler().config[key] for key in SCHEDULE} == SCHEDULE

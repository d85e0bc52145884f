"""Layer names of every preset: which exist, in which order, how large, and what a user may type for them."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st

from sdprobe.backbones.__main__ import main
from sdprobe.backbones.architectures import meta_unet, preset_config
from sdprobe.backbones.layers import Layer, layer_table, resolve
from sdprobe.backbones.unet import FrozenUNet
from sdprobe.utilities.errors import InputError

# layers in execution order, channels, and the grid's side as a share of the latent's
STABLE_DIFFUSION = [
    ("conv_in down_0_res_0 down_0_attn_0 down_0_res_1 down_0_attn_1", 320, 1),
    ("down_0", 320, 2),
    ("down_1_res_0 down_1_attn_0 down_1_res_1 down_1_attn_1", 640, 2),
    ("down_1", 640, 4),
    ("down_2_res_0 down_2_attn_0 down_2_res_1 down_2_attn_1", 1280, 4),
    ("down_2 down_3_res_0 down_3 mid_res_0 mid_attn_0 mid up_0_res_0 up_0_res_1 up_0_res_2", 1280, 8),
    ("up_0 up_1_res_0 up_1_attn_0 up_1_res_1 up_1_attn_1 up_1_res_2 up_1_attn_2", 1280, 4),
    ("up_1", 1280, 2),
    ("up_2_res_0 up_2_attn_0 up_2_res_1 up_2_attn_1 up_2_res_2 up_2_attn_2", 640, 2),
    ("up_2", 640, 1),
    ("up_3_res_0 up_3_attn_0 up_3_res_1 up_3_attn_1 up_3_res_2 up_3", 320, 1),
    ("conv_out", 4, 1),
]
SDXL = [
    ("conv_in down_0_res_0 down_0_res_1", 320, 1),
    ("down_0", 320, 2),
    ("down_1_res_0 down_1_attn_0 down_1_res_1 down_1_attn_1", 640, 2),
    ("down_1", 640, 4),
    ("down_2_res_0 down_2_attn_0 down_2_res_1 down_2 mid_res_0 mid_attn_0 mid", 1280, 4),
    ("up_0_res_0 up_0_attn_0 up_0_res_1 up_0_attn_1 up_0_res_2 up_0_attn_2", 1280, 4),
    ("up_0", 1280, 2),
    ("up_1_res_0 up_1_attn_0 up_1_res_1 up_1_attn_1 up_1_res_2 up_1_attn_2", 640, 2),
    ("up_1", 640, 1),
    ("up_2_res_0 up_2_res_1 up_2", 320, 1),
    ("conv_out", 4, 1),
]
ALIASES = {
    "down_0": "down_0_downsample",
    "down_1": "down_1_downsample",
    "down_2": "down_2_downsample",
    "down_3": "down_3_res_1",
    "mid": "mid_res_1",
    "up_0": "up_0_upsample",
    "up_1": "up_1_upsample",
    "up_2": "up_2_upsample",
    "up_3": "up_3_attn_2",
    "conv_out": "prediction",
}
SDXL_ALIASES = {
    "down_0": "down_0_downsample",
    "down_1": "down_1_downsample",
    "down_2": "down_2_attn_1",
    "mid": "mid_res_1",
    "up_0": "up_0_upsample",
    "up_1": "up_1_upsample",
    "up_2": "up_2_res_2",
    "conv_out": "prediction",
}
ROOT = Path(__file__).parents[2]
# as the study of Loos & Linhardt (2025) lists them
PUBLISHED_45 = [
    "conv_in",
    *(
        f"down_blocks[{i}].{module}"
        for i in range(3)
        for module in ("resnets[0]", "attentions[0]", "resnets[1]", "attentions[1]", "downsamplers[0]")
    ),
    "down_blocks[3].resnets[0]",
    "down_blocks[3].resnets[1]",
    "mid_block.resnets[0]",
    "mid_block.attentions[0]",
    "mid_block.resnets[1]",
    "up_blocks[0].resnets[0]",
    "up_blocks[0].resnets[1]",
    "up_blocks[0].upsamplers[0]",
    *(
        f"up_blocks[{i}].{module}"
        for i in (1, 2)
        for module in (*(f"{kind}[{j}]" for j in range(3) for kind in ("resnets", "attentions")), "upsamplers[0]")
    ),
    *(f"up_blocks[3].{kind}[{j}]" for j in range(3) for kind in ("resnets", "attentions")),
    "conv_out",
]
STAGES = ("conv_in", "down_0", "down_1", "down_2", "down_3", "mid", "up_0", "up_1", "up_2", "up_3", "conv_out")


@functools.cache
def frozen(model: str) -> FrozenUNet:
    return FrozenUNet(meta_unet(preset_config(model)))


def table(model: str = "tiny") -> dict[str, Layer]:
    return frozen(model).layers


def expected_shapes(groups: list[tuple[str, int, int]], latent: int) -> dict[str, tuple[int, int, int]]:
    return {name: (channels, latent // by, latent // by) for names, channels, by in groups for name in names.split()}


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "pixels", "groups", "count"),
    [
        ("sd15", 512, STABLE_DIFFUSION, 46),
        ("sd21", 512, STABLE_DIFFUSION, 46),
        ("sd21", 768, STABLE_DIFFUSION, 46),
        ("sdxl", 1024, SDXL, 34),
    ],
)
def test_presets_have_exactly_these_layers_grids_and_channels(
    model: str, pixels: int, groups: list[tuple[str, int, int]], count: int
) -> None:
    unet = frozen(model)
    shapes = unet.shapes((pixels // 8, pixels // 8), unet.resolve("all"))
    assert len(shapes) == count
    assert list(shapes.items()) == list(expected_shapes(groups, pixels // 8).items())
    assert all(parameter.is_meta for parameter in unet.parameters()), "no weights are needed"


@pytest.mark.parametrize(
    ("model", "side"), [("sd14", 64), ("sd15", 64), ("sd_turbo", 64), ("sd21", 96), ("sdxl", 128), ("sdxl_turbo", 64)]
)
def test_presets_know_the_size_they_were_made_for(model: str, side: int) -> None:
    assert preset_config(model)["sample_size"] == side


def test_tiny_has_the_layers_and_grids_of_stable_diffusion() -> None:
    shapes = frozen("tiny").shapes((64, 64), tuple(table()))
    assert {name: shape[1:] for name, shape in shapes.items()} == {
        name: shape[1:] for name, shape in expected_shapes(STABLE_DIFFUSION, 64).items()
    }


@pytest.mark.parametrize("model", ["sd15", "sd21", "sdxl", "tiny"])
def test_names_suit_hydra_and_module_dicts_and_are_unique(model: str) -> None:
    names = [name for layer in table(model).values() for name in (layer.name, layer.alias) if name]
    assert all(re.fullmatch("[a-z0-9_]+", name) for name in names)
    assert len(set(names)) == len(names)
    assert len({layer.path for layer in table(model).values()}) == len(table(model))
    assert all(name == layer.name for name, layer in table(model).items())


@pytest.mark.parametrize(("model", "aliases"), [("sd15", ALIASES), ("sdxl", SDXL_ALIASES)])
def test_stage_outputs_answer_to_their_longer_names_too(model: str, aliases: dict[str, str]) -> None:
    assert {name: layer.alias for name, layer in table(model).items() if layer.alias} == aliases


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_a_module_s_path_names_its_layer(model: str) -> None:
    table = layer_table(meta_unet(preset_config(model)))
    for name, layer in table.items():
        assert resolve(layer.path, table) == resolve([layer.published], table) == (name,)
    blocks = {"mid_block": "mid", "up_blocks[1]": "up_1", "down_blocks.0": "down_0"}
    assert [resolve(path, table) for path in blocks] == [(name,) for name in blocks.values()]


def test_published_names_are_those_of_the_study() -> None:
    assert len(PUBLISHED_45) == 45
    layers = table("sd15")
    assert [layers[name].published for name in resolve("loos2025", layers)] == PUBLISHED_45
    assert layers["up_1"].published == "up_blocks[1].upsamplers[0]"
    assert set(layers) - set(resolve("loos2025", layers)) == {"up_0_res_2"}


@pytest.mark.parametrize("kind", ["tiny", "sdxl"])
def test_the_table_lists_layers_as_they_run(
    kind: str, pipeline: StableDiffusionPipeline, sdxl_unet: UNet2DConditionModel
) -> None:
    unet = pipeline.unet if kind == "tiny" else sdxl_unet
    finished: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: finished.append(name)) for name, module in unet.named_modules()
    ]
    added = {"text_embeds": torch.zeros(1, 20), "time_ids": torch.zeros(1, 6)} if kind == "sdxl" else None
    states = torch.zeros(1, 4, unet.config.cross_attention_dim)
    with torch.no_grad():
        unet(torch.zeros(1, 4, 8, 8), 0, encoder_hidden_states=states, added_cond_kwargs=added)
    for handle in handles:
        handle.remove()
    layers = layer_table(unet)
    paths = {layer.path for layer in layers.values()}
    assert [name for name in finished if name in paths] == [layer.path for layer in layers.values()]
    # and nothing that a user may want is left out: every resnet, attention and sampler of a block is a layer
    pattern = r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(resnets|attentions|downsamplers|upsamplers)\.\d+|conv_in|conv_out"
    assert paths == {name for name in finished if re.fullmatch(pattern, name)}


# --- what a user types -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "names"),
    [
        ("mid", ("mid",)),
        ("mid_res_1", ("mid",)),
        ("up_1_upsample", ("up_1",)),
        (["up_1", "conv_in", "mid"], ("conv_in", "mid", "up_1")),
        (("mid", "mid_res_1", "mid"), ("mid",)),
        ("up_?", ("up_0", "up_1", "up_2", "up_3")),
        ("*_downsample", ("down_0", "down_1", "down_2")),
        ("mid*", ("mid_res_0", "mid_attn_0", "mid")),
        (["down_?", "up_1_attn_*"], ("down_0", "down_1", "down_2", "down_3", "up_1_attn_0", "up_1_attn_1", "up_1_attn_2")),
        ("up_3_attn_*", ("up_3_attn_0", "up_3_attn_1", "up_3")),
        ("stages", STAGES),
        (["stages", "mid_attn_0"], (*STAGES[:5], "mid_attn_0", *STAGES[5:])),
        (["mid", "latent", "noisy_latent"], ("latent", "noisy_latent", "mid")),
    ],
)
def test_resolve_understands(block: str | list[str], names: tuple[str, ...]) -> None:
    assert resolve(block, table()) == names


@pytest.mark.parametrize("block", ["all", "*"])
def test_all_is_every_layer(block: str) -> None:
    assert resolve(block, table()) == tuple(table())


def test_a_glob_finds_every_layer_under_a_prefix() -> None:
    assert resolve("up_*", table()) == tuple(name for name in table() if name.startswith("up_"))


@given(st.lists(st.sampled_from([*STAGES, *ALIASES.values(), "up_1_res_0", "down_0_attn_1"]), min_size=1))
@settings(max_examples=60, deadline=None)
def test_resolve_sorts_by_execution_drops_repetitions_and_is_idempotent(block: list[str]) -> None:
    canonical = {alias: name for name, alias in ALIASES.items()}
    names = resolve(block, table())
    assert set(names) == {canonical.get(name, name) for name in block}
    assert list(names) == sorted(set(names), key=list(table()).index)
    assert resolve(names, table()) == names
    assert resolve(reversed(block), table()) == names


@pytest.mark.parametrize(
    ("block", "nearest"),
    [("midd", "mid"), ("Mid", "mid"), ("up1", "up_1"), ("down_0_downsampler", "down_0_downsample"), ("stage", "stages")],
)
def test_a_misspelt_layer_is_answered_with_the_nearest(block: str, nearest: str) -> None:
    with pytest.raises(InputError, match=rf"but got '{block}'\. The nearest name is '{nearest}'"):
        resolve(block, table())


def test_one_wrong_name_in_a_list_is_named() -> None:
    with pytest.raises(InputError, match=r"but got 'upp_1'\. The nearest name is 'up_1'"):
        resolve(["mid", "upp_1"], table())


def test_a_glob_without_match_is_refused() -> None:
    with pytest.raises(InputError, match=r"but got 'zip_\*'"):
        resolve("zip_*", table())


@pytest.mark.parametrize(("model", "block"), [("sdxl", "up_3"), ("sdxl", "up_2_attn_0"), ("sd15", "down_3_downsample")])
def test_a_layer_of_another_backbone_is_said_to_lie_outside(model: str, block: str) -> None:
    answer = rf"got '{block}', which it does not have. Its stages are conv_in, down_0, .*conv_out;"
    with pytest.raises(InputError, match=answer):
        resolve(block, table(model))


@pytest.mark.parametrize("block", [[], ()])
def test_an_empty_list_is_refused(block: list[str]) -> None:
    with pytest.raises(InputError, match=r"at least one layer, but got an empty list\. Use block=mid"):
        resolve(block, table())


def test_an_unknown_preset_lists_the_known() -> None:
    with pytest.raises(InputError, match=r"Expected a preset \(.*sd15.*flux_dev.*\) or a diffusers folder .* but got 'sd99'"):
        preset_config("sd99")


# --- the command -----------------------------------------------------------------------------------------------------


def rows(printed: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    return {row[1]: row for row in cells}


def test_the_command_prints_every_layer(capsys: pytest.CaptureFixture[str]) -> None:
    main(["sd15"])
    printed = capsys.readouterr().out
    assert "sd15 at 512 px: 46 layers" in printed
    assert list(rows(printed)) == list(table("sd15"))
    assert rows(printed)["up_1"] == ["31", "up_1", "up_1_upsample", "up_blocks[1].upsamplers[0]", "32×32", "1280"]


def test_the_command_takes_a_folder_and_a_size(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(saved), "--size", "768"])
    shown = rows(capsys.readouterr().out)
    assert len(shown) == 46
    assert shown["mid"][4:] == ["12×12", "64"]


def test_the_command_answers_an_unknown_preset_with_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sd99"])
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1 and "but got 'sd99'" in printed.err


@pytest.mark.slow
def test_the_command_as_users_type_it_prints_no_warning() -> None:
    command = [sys.executable, "-m", "sdprobe.backbones", "tiny"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(rows(printed.stdout)) == 46
    assert printed.stderr == ""

"""Queries, keys, values and outputs inside attention: what diffusers' modules give, as grids, with an early exit."""

import copy
import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, Transformer2DModel, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from sdprobe.backbones import FrozenSD
from sdprobe.backbones.__main__ import main
from sdprobe.backbones.architectures import meta_unet, preset_config
from sdprobe.backbones.layers import Layer, layer_table, resolve
from sdprobe.backbones.names import PARTS, check_names
from sdprobe.backbones.unet import Conditioning, FrozenUNet
from sdprobe.backbones.weights import random_unet
from sdprobe.reports.tracked import layer_rows
from sdprobe.runs import configuration
from sdprobe.utilities.errors import InputError

SMALL = ["backbone=tiny", "images.size=128", "images.limit=30", "probe.solver=closed_form", "logger=none", "device=cpu"]
# what each name means, in diffusers' own terms
MODULES: dict[str, Callable[[Any], nn.Module]] = {
    "query": lambda block: block.attn1.to_q,
    "key": lambda block: block.attn1.to_k,
    "value": lambda block: block.attn1.to_v,
    "out": lambda block: block.attn1.to_out[0],
    "cross_query": lambda block: block.attn2.to_q,
    "cross_out": lambda block: block.attn2.to_out[0],
    "ff": lambda block: block.ff.net[-1],
}
WORDS = "a token per place of the image, but got '{}': keys and values of cross-attention belong to the words"


@functools.cache
def table(model: str = "sd15") -> dict[str, Layer]:
    return layer_table(meta_unet(preset_config(model)), inside=True)


@functools.cache
def miniature(kind: str) -> UNet2DConditionModel:
    """Stable Diffusion 1.5 projects into and out of attention by convolutions, 2.1 linearly, with heads of equal width."""
    config = preset_config("tiny")
    if kind == "sd21":
        config |= {"use_linear_projection": True, "upcast_attention": True, "attention_head_dim": [2, 4, 8, 8]}
    return random_unet(config, 0, torch.float32).eval()


@pytest.fixture(params=["sd15", "sd21", "sdxl"])
def unet(request: pytest.FixtureRequest, sdxl_unet: UNet2DConditionModel) -> UNet2DConditionModel:
    return sdxl_unet if request.param == "sdxl" else miniature(request.param)


def inputs(unet: UNet2DConditionModel, height: int = 16, width: int = 24) -> tuple[Tensor, Tensor, Tensor | None]:
    """Noisy latents of two images, text states and, for SDXL, a pooled text state."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1, 7, unet.config.cross_attention_dim, generator=generator)
    pooled = torch.randn(1, 20, generator=generator) if unet.config.addition_embed_type else None
    return torch.randn(2, 4, height, width, generator=generator), states, pooled


def plain(unet: UNet2DConditionModel) -> Tensor:
    """diffusers' own pass at timestep 50."""
    noisy, states, pooled = inputs(unet)
    added = None
    if pooled is not None:
        size = [8.0 * side for side in noisy.shape[2:]]
        added = {"text_embeds": pooled.expand(2, -1), "time_ids": torch.tensor([[*size, 0, 0, *size]]).expand(2, -1)}
    with torch.no_grad():
        return unet(noisy, 50, encoder_hidden_states=states.expand(2, -1, -1), added_cond_kwargs=added).sample


def ours(unet: UNet2DConditionModel, *layers: str) -> dict[str, Tensor]:
    noisy, states, pooled = inputs(unet)
    return FrozenUNet(unet)(noisy, 50, Conditioning(states, pooled), layers)


@functools.cache
def by_hand(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """All layers inside attention by plain hooks on the modules of the blocks, token by token; and the prediction."""
    grids: dict[str, Tensor] = {}
    handles = []

    def keep(name: str, module: nn.Module, attention: nn.Module) -> None:
        def hook(_module: nn.Module, _inputs: Any, tokens: Tensor) -> None:
            height, width = sides[attention]
            columns = [torch.stack([tokens[:, row * width + column] for row in range(height)], 2) for column in range(width)]
            grids[name] = torch.stack(columns, 3)

        handles.append(module.register_forward_hook(hook))

    sides: dict[nn.Module, tuple[int, int]] = {}
    for path, attention in unet.named_modules():
        if not isinstance(attention, Transformer2DModel):
            continue
        parts = path.split(".")  # up_blocks.1.attentions.0, or mid_block.attentions.0
        stage = parts[0].removesuffix("_block").removesuffix("_blocks") + (f"_{parts[1]}" if parts[0] != "mid_block" else "")
        handles.append(attention.norm.register_forward_hook(
            lambda _module, _inputs, output, attention=attention: sides.update({attention: tuple(output.shape[2:])})
        ))  # fmt: skip
        for number, block in enumerate(attention.transformer_blocks):
            assert isinstance(block, BasicTransformerBlock)
            for part, module_of in MODULES.items():
                block_name = f"_b{number}" if number else ""
                keep(f"{stage}_attn_{parts[-1]}{block_name}_{part}", module_of(block), attention)
    grids["conv_out"] = plain(unet)
    for handle in handles:
        handle.remove()
    return grids


def begun_by(unet: UNet2DConditionModel, work: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Modules that begin to run and, between them, attention that is computed, in their order."""
    begun: list[str] = []
    compute = torch.nn.functional.scaled_dot_product_attention
    handles = [
        module.register_forward_pre_hook(lambda *_, path=path: begun.append(path)) for path, module in unet.named_modules()
    ]
    with monkeypatch.context() as patch:
        patch.setattr(
            torch.nn.functional, "scaled_dot_product_attention",
            lambda *given, **named: begun.append("attention") or compute(*given, **named),
        )  # fmt: skip
        work()
    for handle in handles:
        handle.remove()
    return begun


# --- equivalence -----------------------------------------------------------------------------------------------------


def test_every_layer_inside_attention_equals_hooks_on_diffusers_modules(unet: UNet2DConditionModel) -> None:
    expected = by_hand(unet)
    names = resolve(["inside", "conv_out"], layer_table(unet, inside=True))
    assert set(names) == set(expected), "no layer is missing, and none is invented"
    grids = ours(unet, *names)
    assert list(grids) == list(names), "in execution order"
    assert all(torch.equal(grids[name], expected[name]) for name in names)
    assert all(grids[name].is_contiguous(memory_format=torch.channels_last) for name in names[:-1]), "no copy"
    assert FrozenUNet(unet).shapes((16, 24), names) == {name: tuple(grids[name].shape[1:]) for name in names}


def test_a_pass_ends_inside_the_block_and_gives_the_same_bits(
    unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = by_hand(unet)
    full = begun_by(unet, lambda: plain(unet), monkeypatch)
    attended = {"query": 0, "key": 0, "value": 0, "out": 1, "cross_query": 1, "cross_out": 2, "ff": 2}
    for part, times in attended.items():
        name = f"{'mid_attn_0_b1' if unet.config.addition_embed_type else 'up_1_attn_1'}_{part}"
        path = layer_table(unet, inside=True)[name].path
        grids: dict[str, Tensor] = {}
        begun = begun_by(unet, lambda name=name, grids=grids: grids.update(ours(unet, name)), monkeypatch)
        after = full.index(path)
        while full[after].startswith(path) or (full[after] == "attention" and part in ("out", "cross_out")):
            after += 1
        assert begun == full[:after], f"{part}: as in a full pass, up to the end of this module"
        block = full.index(re.sub(r"(transformer_blocks\.\d+).*", r"\1", path))
        assert begun[block:].count("attention") == times, part
        assert list(grids) == [name] and torch.equal(grids[name], whole[name]), part


def test_layers_run_in_the_order_of_the_table(unet: UNet2DConditionModel) -> None:
    finished: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, path=path: finished.append(path)) for path, module in unet.named_modules()
    ]
    plain(unet)
    for handle in handles:
        handle.remove()
    paths = [layer.path for layer in layer_table(unet, inside=True).values()]
    assert [path for path in finished if path in set(paths)] == paths


def test_fused_projections_are_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = copy.deepcopy(miniature("sd15"))
    names = [f"up_1_attn_1_{part}" for part in PARTS]
    before = ours(unet, *names)
    unet.fuse_qkv_projections()
    attention = unet.get_submodule("up_blocks.1.attentions.1.transformer_blocks.0.attn1")
    fused: list[Tensor] = []
    handle = attention.to_qkv.register_forward_hook(lambda _module, _inputs, output: fused.append(output))
    grids = ours(unet, *names)
    handle.remove()
    width = fused[0].shape[2] // 3
    for number, part in enumerate(("query", "key", "value")):
        tokens = fused[0][:, :, number * width : (number + 1) * width]
        assert torch.equal(grids[f"up_1_attn_1_{part}"].flatten(2).mT, tokens)
    for name in names:
        torch.testing.assert_close(grids[name], before[name])
    begun = begun_by(unet, lambda: ours(unet, "up_1_attn_1_key"), monkeypatch)
    assert begun[-1].endswith("up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_qkv")
    unet.unfuse_qkv_projections()
    assert all(torch.equal(grid, before[name]) for name, grid in ours(unet, *names).items())


def test_gradients_reach_the_images(sd: FrozenSD, images: Tensor) -> None:
    pixels = images[:1].clone().requires_grad_()
    sd.activations(pixels, "down_1_attn_0_key", with_grad=True, ids=["a"])["down_1_attn_0_key"].square().sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "count", "inside"), [("sd15", 46, 112), ("sd21", 46, 112), ("sdxl", 34, 490), ("tiny", 46, 112)]
)
def test_presets_have_seven_layers_per_transformer_block(model: str, count: int, inside: int) -> None:
    names = resolve("inside", table(model))
    assert (len(names), len(resolve("all", table(model)))) == (inside, count)
    assert len(set(names) & set(resolve("all", table(model)))) == 0
    blocks = {name.rpartition("_")[0].removesuffix("_cross") for name in names}
    assert 7 * len(blocks) == inside and "mid_attn_0" in blocks and ("mid_attn_0_b9" in blocks) == (model == "sdxl")


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_every_name_is_taken_with_and_without_a_network(model: str) -> None:
    for name, layer in table(model).items():
        spellings = [name, layer.path, layer.published, *([layer.alias] if layer.alias else [])]
        spellings += [f"{layer.published}.to_out[0]"] if name.endswith("out") and layer.inside else []
        check_names(spellings)
        assert all(resolve(spelling, table(model)) == (name,) for spelling in spellings)
    assert {name: table("sdxl")[name].alias for name in ("mid_attn_0_key", "mid_attn_0_b3_key")} == {
        "mid_attn_0_key": "mid_attn_0_b0_key", "mid_attn_0_b3_key": None,
    }  # fmt: skip


@pytest.mark.parametrize("block", ["all", "stages", "loos2025", "*", "up_*", "up_1_*", "up_1_attn_*", "up_3_attn_*", "*_out"])
def test_what_is_inside_is_not_meant_by_others(block: str) -> None:
    names = resolve(block, table())
    assert names and not any(table()[name].inside for name in names)
    assert names == resolve(block, layer_table(meta_unet(preset_config("sd15"))))


@pytest.mark.parametrize(
    ("block", "names"),
    [
        ("up_1_attn_1_*", [f"up_1_attn_1_{part}" for part in PARTS]),
        ("up_3_attn_2_[qk]*", ["up_3_attn_2_query", "up_3_attn_2_key"]),
        ("mid_attn_?_cross_*", ["mid_attn_0_cross_query", "mid_attn_0_cross_out"]),
        (["mid", "mid_attn_0_ff"], ["mid_attn_0_ff", "mid"]),
        ("up_1_attn_?_value", [f"up_1_attn_{number}_value" for number in range(3)]),
        ("up_1_attn_1_b0_*", [f"up_1_attn_1_{part}" for part in PARTS]),
    ],
)
def test_globs_that_match_nothing_else_find_it(block: str | list[str], names: list[str]) -> None:
    assert resolve(block, table()) == tuple(names)
    assert set(names) - {"mid"} <= set(resolve("inside", table()))


@pytest.mark.parametrize(
    "block",
    ["up_1_attn_1_cross_key", "mid_attn_0_b3_cross_value", "*_cross_key",
     "up_blocks[1].attentions[1].transformer_blocks[0].attn2.to_k", "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"],
)  # fmt: skip
def test_keys_and_values_of_words_are_refused(block: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve(block, table())
    assert WORDS.format(block) in caught.value.message()
    with pytest.raises(InputError) as same:
        check_names(["mid", block])
    assert same.value.message() == caught.value.message()


def test_the_command_refuses_keys_of_words_before_torch_is_imported() -> None:
    configuration.check(["block=[up_1_attn_1_query,inside,'up_1_attn_1_*']"])
    with pytest.raises(InputError, match="belong to the words"):
        configuration.check(["block=[mid,up_1_attn_1_cross_key]"])


@pytest.mark.parametrize(
    ("block", "answer"),
    [
        ("up_1_attn_1_b1_key", r"which it does not have\. .* `python -m sdprobe\.backbones <backbone> --inside` lists"),
        ("up_0_attn_0_query", "which it does not have"),
        ("up_1_res_1_query", "The nearest name is 'up_1_attn_1_query'"),
        ("up_1_attn_1_querry", r"The nearest name is 'up_1_attn_1_query'; `.* --inside`"),
        ("up_1_attn_9_*", "but got 'up_1_attn_9_"),
        ("insid", "The nearest name is 'inside'; `python -m sdprobe.backbones <backbone>` lists"),
    ],
)
def test_other_names_are_answered_with_the_nearest(block: str, answer: str) -> None:
    with pytest.raises(InputError, match=answer):
        resolve(block, table())


def test_networks_without_attention_or_with_cross_attention_only() -> None:
    config = preset_config("tiny")
    kinds = {"down_block_types": ["DownBlock2D"] * 4, "up_block_types": ["UpBlock2D"] * 4, "mid_block_type": None}
    with pytest.raises(InputError, match=r"got 'inside', which it does not have\. Its stages"):
        resolve("inside", layer_table(meta_unet(config | kinds), inside=True))
    names = resolve("up_*_key", table("tiny"))
    crossing = layer_table(meta_unet(config | {"only_cross_attention": [True, False, False, False]}), inside=True)
    assert set(names) - set(crossing) == {f"up_3_attn_{number}_key" for number in range(3)}, "they belong to words, too"
    assert "up_3_attn_0_query" in crossing


# --- failures --------------------------------------------------------------------------------------------------------


def test_attention_that_does_not_use_its_modules_is_refused() -> None:
    unet = copy.deepcopy(miniature("sd15"))
    attention = unet.get_submodule("up_blocks.1.attentions.1.transformer_blocks.0.attn1")
    attention.set_processor(lambda attn, hidden_states, *_, **__: hidden_states)
    with pytest.raises(InputError, match=r"up_1_attn_1_key to be computed by the module up_blocks.*to_k, but it did not run"):
        ours(unet, "up_1_attn_1_key", "up_1_attn_1_out")
    assert ours(unet, "up_1_attn_1_out")["up_1_attn_1_out"].any(), "others are read"


def test_merged_tokens_are_refused() -> None:
    unet = copy.deepcopy(miniature("sd15"))
    attention = unet.get_submodule("up_blocks.1.attentions.1.transformer_blocks.0.attn1")
    attention.register_forward_pre_hook(lambda _module, inputs: (inputs[0][:, ::2],))
    attention.register_forward_hook(lambda _module, _inputs, output: output.repeat_interleave(2, 1))
    with pytest.raises(InputError, match=r"key to have a token for each of 4×6 places of 2 images, but got \(2, 12\)"):
        ours(unet, "up_1_attn_1_key")
    assert not any(module._forward_hooks for path, module in unet.named_modules() if path.endswith("to_k"))


# --- the command and Python ------------------------------------------------------------------------------------------


def test_the_command_lists_them_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    main(["sd15", "--inside"])
    printed = capsys.readouterr().out
    assert "sd15 at 512 px: 46 layers, 112 inside attention" in printed
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    assert [row[1] for row in rows] == list(table())
    assert [row[0] for row in rows if row[0]] == [str(number) for number in range(46)]
    cells = {row[1]: row for row in rows}
    path = "mid_block.attentions[0].transformer_blocks[0].attn1.to_q"
    assert cells["mid_attn_0_query"] == ["", "mid_attn_0_query", "mid_attn_0_b0_query", path, "8×8", "1280"]
    assert cells["down_1_attn_0_ff"][4:] == ["32×32", "640"]


def test_python_reads_them_by_either_name(sd: FrozenSD, images: Tensor) -> None:
    path = "up_blocks[1].attentions[1].transformer_blocks[0].attn1.to_v"
    grids = sd.activations(images[:2], ["up_1_attn_1_query", path, "latent"])
    assert {name: tuple(grid.shape) for name, grid in grids.items()} == {
        "latent": (2, 4, 16, 16), "up_1_attn_1_query": (2, 64, 4, 4), "up_1_attn_1_value": (2, 64, 4, 4),
    }  # fmt: skip
    assert all(grid.is_contiguous() for grid in grids.values())
    assert sd.shapes(128, "up_1_attn_1_*") == {f"up_1_attn_1_{part}": (64, 4, 4) for part in PARTS}
    assert not any(sd.unet.table[name].inside for name in sd.layers), "as block=all"
    assert sd.published_names(["up_1_attn_1_value"]) == {"up_1_attn_1_value": path}


def test_a_run_reads_them_like_any_layer(launch: Any) -> None:
    layers = ["up_1_attn_1_query", "up_1_attn_1_key", "up_1_attn_1"]
    settings = "mitigation=standardize", "datamodule.compare=true", "twins=0"
    run = launch("probe=position", f"block=[{','.join(layers)}]", *settings)
    assert [layer for layer in run.layers if "__" not in layer] == layers
    for name in (*layers, *(f"{layer}__standardize" for layer in layers)):
        assert 0 < run.metrics[f"test/{name}/binned_accuracy/all"] <= 1
    assert run.meta["published_names"]["up_1_attn_1_key"].endswith("transformer_blocks[0].attn1.to_k")
    network = list(table("tiny"))
    depths = [row["layers/depth"] for row in layer_rows(run, network)]
    outer = [row["layers/depth"] for row in layer_rows(run, list(resolve("all", table("tiny"))))]
    assert depths == sorted(set(depths)) and depths[-1:] == outer, "the place of other layers does not depend on them"


def test_a_pipeline_keeps_its_own_attention(pipeline: StableDiffusionPipeline) -> None:
    pipe = copy.deepcopy(pipeline)
    pipe.fuse_qkv_projections()
    sd = FrozenSD.from_pipeline(pipe)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    grids = sd.activations(image, ["up_1_attn_1_query", "up_1_attn_1_out"])
    before = FrozenSD.from_pipeline(pipeline).activations(image, list(grids))
    for name, grid in grids.items():
        torch.testing.assert_close(grid, before[name])

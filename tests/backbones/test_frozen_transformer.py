"""Networks of diffusion transformers: grids against hooks by hand, position embeddings, names of layers, and refusals."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdprobe
from sdprobe.backbones.families import FAMILIES as TABLE
from sdprobe.backbones.families import Conditions, family_of
from sdprobe.backbones.padding import set_padding
from sdprobe.backbones.positions import places
from sdprobe.backbones.transformer import FrozenTransformer
from sdprobe.backbones.weights import adaln_zero
from sdprobe.utilities.errors import InputError
from tests.backbones.tiny_transformers import FAMILIES, TEXT, network

POSITIONED = [family for family in FAMILIES if family != "sana"]
ADDED = ["pixart", "sd3", "dit"]
TOKENS = 9  # of the text


def frozen(family: str, seed: int = 0, **more: Any) -> FrozenTransformer:
    return FrozenTransformer(network(family, seed, **more))


def latents(frozen: FrozenTransformer, count: int = 2, side: int = 8, seed: int = 0) -> Tensor:
    """White noise with ``side`` tokens per side."""
    cells = side * frozen.patch
    return torch.randn(count, frozen.latent_channels, cells, cells, generator=torch.Generator().manual_seed(seed))


def text(frozen: FrozenTransformer, count: int = 2, lengths: tuple[int, ...] = ()) -> Conditions:
    """Random text, another for every image; ``lengths`` are those of masked texts."""
    draw = torch.Generator().manual_seed(1)
    blank = frozen.without_text(TOKENS)
    if blank.states is None:
        return Conditions(labels=torch.arange(count))
    mask = torch.ones(count, TOKENS, dtype=torch.int64) if blank.mask is not None else None
    if mask is not None:
        for number, length in enumerate(lengths):
            mask[number, length:] = 0
    pooled = None if blank.pooled is None else torch.randn(count, blank.pooled.shape[1], generator=draw)
    return Conditions(torch.randn(count, TOKENS, TEXT, generator=draw), pooled, mask)


# by hand: layer → (path of a module, tokens among its inputs and outputs), for networks of four blocks
Read = Callable[[tuple[Any, ...], Any], Tensor]
OUTPUT: Read = lambda _inputs, output: output  # noqa: E731
IMAGE: Read = lambda _inputs, output: output[1]  # noqa: E731
FIRST: Read = lambda _inputs, output: output[0]  # noqa: E731
BEHIND: Read = lambda _inputs, output: output[:, TOKENS:]  # noqa: E731
FIRST_BEHIND: Read = lambda _inputs, output: output[0][:, TOKENS:]  # noqa: E731
BY_HAND: dict[str, dict[str, tuple[str, Read]]] = {
    "pixart": {
        "patch": ("pos_embed", OUTPUT),
        "block_0": ("transformer_blocks.0", OUTPUT),
        "block_3": ("transformer_blocks.3", OUTPUT),
    },
    "sd3": {
        "patch": ("pos_embed", OUTPUT),
        "block_0_norm": ("transformer_blocks.0.norm1", FIRST),
        "block_0": ("transformer_blocks.0", IMAGE),
        "block_3_norm": ("transformer_blocks.3.norm1", FIRST),
        "block_3": ("transformer_blocks.3", IMAGE),  # here the text is None
    },
    "flux": {
        "patch": ("x_embedder", OUTPUT),
        "block_1_norm": ("transformer_blocks.1.norm1", FIRST),
        "block_1": ("transformer_blocks.1", IMAGE),
        "block_2_norm": ("single_transformer_blocks.0.norm", FIRST_BEHIND),
        "block_3": ("single_transformer_blocks.1", IMAGE),
    },
    "dit": {
        "patch": ("pos_embed", OUTPUT),
        "block_1_norm": ("transformer_blocks.1.norm1", FIRST),
        "block_2": ("transformer_blocks.2", OUTPUT),
    },
    "sana": {
        "patch": ("patch_embed", OUTPUT),
        "block_0": ("transformer_blocks.0", OUTPUT),
        "block_3": ("transformer_blocks.3", OUTPUT),
    },
    "lumina2": {
        "patch": ("x_embedder", OUTPUT),
        "block_0_norm": ("noise_refiner.0.norm1", FIRST),
        "block_0": ("noise_refiner.0", OUTPUT),
        "block_1_norm": ("layers.0.norm1", FIRST_BEHIND),
        "block_3": ("layers.2", BEHIND),
    },
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_grids_equal_hooks_by_hand_bit_for_bit_with_and_without_early_exit(family: str) -> None:
    made = frozen(family)
    given, noisy = text(made), latents(made)
    found: dict[str, Tensor] = {}
    handles = [
        made.network.get_submodule(path).register_forward_hook(
            lambda _module, inputs, output, name=name, read=read: found.__setitem__(name, read(inputs, output))
        )
        for name, (path, read) in BY_HAND[family].items()
    ]
    with torch.no_grad():
        made.network(**made.family.arguments(made.network, noisy, 261, given))
    for handle in handles:
        handle.remove()
    together = made(noisy, 261, given, list(found))
    for name, tokens in found.items():
        expected = tokens.transpose(1, 2).reshape(2, 64, 8, 8)  # rows first
        assert torch.equal(together[name], expected), name
        assert torch.equal(made(noisy, 261, given, [name])[name], expected), name


@pytest.mark.parametrize("family", ["pixart", "sana"])
def test_the_input_of_attention_is_the_normalised_and_modulated_one(family: str) -> None:
    made = frozen(family)
    block = made.network.transformer_blocks[2]
    seen: list[Any] = []
    handle = block.register_forward_pre_hook(lambda _block, inputs, named: seen.append((inputs, named)), with_kwargs=True)
    grids = made(latents(made), 261, text(made), ["block_1", "block_2_norm"])
    handle.remove()
    named = dict(inspect.signature(block.forward).bind(*seen[0][0], **seen[0][1]).arguments)
    shift, scale = (block.scale_shift_table + named["timestep"].view(2, 6, -1))[:, :2].split(1, dim=1)
    expected = torch.nn.functional.layer_norm(named["hidden_states"], (64,), eps=1e-6) * (1 + scale) + shift
    torch.testing.assert_close(grids["block_2_norm"].flatten(2).transpose(1, 2), expected)
    assert torch.equal(grids["block_1"].flatten(2).transpose(1, 2), named["hidden_states"])


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_after_the_deepest_layer_runs(family: str) -> None:
    made = frozen(family)
    ran: list[str] = []
    for name, layer in made.layers.items():
        made.network.get_submodule(layer.path).register_forward_hook(lambda *_, name=name: ran.append(name))
    made(latents(made), 261, text(made), ["block_1", "patch"])
    assert ran[-1] in ("block_0", "block_1") and "block_2" not in ran
    assert made.passes == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_are_those_of_grids_and_need_no_weights(family: str) -> None:
    made = frozen(family)
    with torch.device("meta"):
        empty = frozen(family)
    names = made.resolve(["all", "inside"])
    grids = made(latents(made), 261, text(made), names)
    side = 8 * made.patch
    assert empty.shapes((side, side), names) == {name: tuple(grids[name].shape[1:]) for name in names}
    assert list(made.shapes((side, side), names)) == list(made.table)


@pytest.mark.parametrize("family", ["flux", "lumina2", "pixart"])
def test_tokens_are_in_row_major_order(family: str) -> None:
    made = frozen(family)
    noisy = latents(made, 1)
    with made.positioned("zero"):
        before = made(noisy, 261, made.without_text(TOKENS), ["patch"])["patch"]
        noisy[:, :, 2 * made.patch : 3 * made.patch, 5 * made.patch : 6 * made.patch] += 1  # the token of row 2, column 5
        after = made(noisy, 261, made.without_text(TOKENS), ["patch"])["patch"]
    assert (after != before).any(1)[0].nonzero().tolist() == [[2, 5]]


def test_texts_of_several_lengths_give_the_grids_that_they_give_alone() -> None:
    made = frozen("lumina2")
    given, noisy = text(made, 3, (4, 9, 1)), latents(made, 3)
    together = made(noisy, 261, given, ["block_1_norm", "block_3"])
    assert given.states is not None and given.mask is not None
    for number in range(3):
        one = slice(number, number + 1)
        alone = made(noisy[one], 261, Conditions(given.states[one], None, given.mask[one]), ["block_1_norm", "block_3"])
        for name, grid in alone.items():
            torch.testing.assert_close(together[name][one], grid, rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_latents() -> None:
    made = frozen("flux")
    noisy = latents(made).requires_grad_()
    made(noisy, 261, text(made), ["block_2"], with_grad=True)["block_2"].square().sum().backward()
    assert noisy.grad is not None and noisy.grad.abs().min() > 0


# ---- position embeddings -----------------------------------------------------------------------------------------------------


def moved(grid: Tensor, order: Tensor) -> Tensor:
    """Tokens in another order."""
    return grid.flatten(2)[:, :, order].unflatten(2, grid.shape[2:])


@pytest.mark.parametrize("family", ADDED)
def test_a_planted_embedding_is_read_at_the_planted_strength_and_moves_as_told(family: str) -> None:
    made = frozen(family)
    patch = made.network.get_submodule("pos_embed")
    nn.init.zeros_(patch.proj.weight), nn.init.zeros_(patch.proj.bias)
    side = int(patch.pos_embed.shape[1] ** 0.5)
    planted = torch.randn(64, side, side, generator=torch.Generator().manual_seed(2))
    patch.pos_embed.copy_(planted.flatten(1).T[None])
    edge = (side - 8) // 2  # SD3 crops its table in the middle
    expected = planted[None, :, edge : edge + 8, edge : edge + 8].expand(2, -1, -1, -1)

    def read(mode: str) -> Tensor:
        with made.positioned(mode, seed=3):
            return made(latents(made), 261, text(made), ["patch"])["patch"]

    assert torch.equal(read("stored"), expected)
    assert torch.equal(read("zero"), torch.zeros_like(expected))
    rows, columns = places("permuted", (8, 8), 3).T
    assert torch.equal(read("permuted"), moved(expected, rows * 8 + columns))
    assert torch.equal(read("shifted"), expected.roll((-4, -4), (2, 3)))
    assert torch.equal(read("stored"), expected)


@pytest.mark.parametrize("family", POSITIONED)
def test_permuted_positions_equal_permuted_images(family: str) -> None:
    """A transformer treats tokens as a set: places exchanged among tokens are tokens exchanged among places."""
    made = frozen(family)
    given, noisy = text(made), latents(made)
    rows, columns = places("permuted", (8, 8), 5).T
    order = rows * 8 + columns
    p = made.patch
    cells = noisy.unflatten(3, (8, p)).unflatten(2, (8, p)).permute(0, 1, 3, 5, 2, 4)  # (B, C, p, p, h, w)
    back = torch.argsort(order)
    exchanged = cells.flatten(4)[..., back].unflatten(4, (8, 8)).permute(0, 1, 4, 2, 5, 3).reshape(noisy.shape)
    with made.positioned("permuted", seed=5):
        told = made(noisy, 261, given, ["block_3"])["block_3"]
    done = moved(made(exchanged, 261, given, ["block_3"])["block_3"], order)
    torch.testing.assert_close(told, done, rtol=1e-4, atol=1e-5)
    assert (told - made(noisy, 261, given, ["block_3"])["block_3"]).abs().max() > 1e-3


@pytest.mark.parametrize("family", POSITIONED)
def test_without_position_a_constant_image_gives_constant_grids(family: str) -> None:
    made = frozen(family)
    cell = latents(made, 2, 1)
    with made.positioned("zero"):
        grid = made(cell.repeat(1, 1, 8, 8), 261, text(made), ["block_3"])["block_3"]
    torch.testing.assert_close(grid, grid[:, :, :1, :1].expand_as(grid), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", POSITIONED)
def test_position_is_restored_bit_for_bit_also_after_an_error(family: str) -> None:
    made = frozen(family)
    before = made(latents(made), 261, text(made), ["block_3"])["block_3"]
    with pytest.raises(KeyError), made.positioned("permuted"):
        made(latents(made), 261, text(made), ["block_9"])
    assert made.position == "stored"
    assert torch.equal(made(latents(made), 261, text(made), ["block_3"])["block_3"], before)


def test_rotary_positions_are_relative_to_the_text() -> None:
    """FLUX changes by more than .1 % when only the image's places shift, and by less than 1e-5 when the text's shift alike."""
    made = frozen("flux")
    noisy = latents(made)
    arguments = made.family.arguments(made.network, noisy, 261, text(made))

    def output(**shifted: Tensor) -> Tensor:
        with torch.no_grad():
            return made.network(**(arguments | shifted))[0]

    def change(other: Tensor) -> float:
        return float((other - output()).norm() / output().norm())

    shift = torch.tensor([0.0, 5.0, 3.0])
    image, words = arguments["img_ids"] + shift, arguments["txt_ids"] + shift
    assert change(output(img_ids=image)) > 1e-3
    assert change(output(img_ids=image, txt_ids=words)) < 1e-5


# ---- untrained networks ------------------------------------------------------------------------------------------------------


def accuracy(made: FrozenTransformer, layer: str = "block_3", images: int = 60) -> Any:
    """How well a linear map reads the position of white noise from a layer, with its control."""
    noisy = latents(made, images, seed=11)
    return sdprobe.position({layer: made(noisy, 261, made.without_text(TOKENS), [layer])[layer].contiguous()})


@pytest.mark.parametrize("family", ["pixart", "sd3", "dit"])
def test_an_untrained_network_reads_its_added_embedding_and_nothing_else(family: str) -> None:
    made = frozen(family)
    assert accuracy(made, images=120).value > 0.8
    with made.positioned("zero"):
        result = accuracy(made)
    assert abs(result.value - result.chance) < 0.05


def test_permuted_positions_are_read_where_they_were_put() -> None:
    made = frozen("sd3")
    with made.positioned("permuted", seed=4):
        grid = made(latents(made, 60, seed=11), 261, made.without_text(TOKENS), ["patch"])["patch"]
    rows, columns = places("permuted", (8, 8), 4).T
    given = accuracy(made, "patch").value
    back = sdprobe.position({"patch": moved(grid, torch.argsort(rows * 8 + columns)).contiguous()})
    assert abs(back.value - given) < 0.03 < given - sdprobe.position({"patch": grid.contiguous()}).value


@pytest.mark.parametrize("family", ["flux", "lumina2"])
def test_an_untrained_network_with_rotary_positions_is_at_chance(family: str) -> None:
    result = accuracy(frozen(family))
    assert abs(result.value - result.chance) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("family", "low", "high"),
    [("pixart", 0.95, 1.0), ("sd3", 0.8, 0.95), ("dit", 0.8, 1.0), ("flux", 0.09, 0.16), ("sana", 0.1, 0.2)],
)
def test_positions_of_untrained_networks(family: str, low: float, high: float, seed: int) -> None:
    assert low <= accuracy(frozen(family, seed), images=160).value <= high


@pytest.mark.slow
def test_the_border_of_sana_tells_positions() -> None:
    """Ten networks, each beside itself with circular padding: the interval of the difference is above 0."""
    differences = []
    for seed in range(10):
        made = frozen("sana", seed)
        padded = accuracy(made, images=160).value
        set_padding(made.network, "circular")
        differences.append(padded - accuracy(made, images=160).value)
    gain = torch.tensor(differences)
    half = 2.262 * gain.std() / 10**0.5  # t, 9 degrees of freedom
    assert gain.mean() - half > 0, differences


@pytest.mark.parametrize("family", ["dit", "sd3", "flux"])
def test_blocks_return_their_input_before_training(family: str) -> None:
    more = {"dual_attention_layers": (0,)} if family == "sd3" else {}
    made = frozen(family, **more)
    adaln_zero(made.network)
    grids = made(latents(made), 261, text(made), made.resolve("all"))
    assert all(torch.equal(grid, grids["patch"]) for grid in grids.values())


# ---- names and refusals ------------------------------------------------------------------------------------------------------


def test_names_of_layers() -> None:
    made = frozen("flux")
    assert list(made.layers) == ["patch", "block_0", "block_1", "block_2", "block_3"]
    assert made.resolve("all") == tuple(made.layers) == made.resolve(["block_*", "patch"])
    assert made.resolve("inside") == made.resolve("block_*_norm") == tuple(f"block_{i}_norm" for i in range(4))
    assert made.resolve("stages") == ("block_0", "block_1", "block_2", "block_3")
    assert made.resolve(["single_transformer_blocks[1]", "latent", "transformer_blocks.0"]) == ("latent", "block_0", "block_3")
    assert made.table["block_2"].published == "single_transformer_blocks[0]"
    long = frozen("pixart", num_layers=28)
    assert long.resolve("stages") == ("block_0", "block_7", "block_14", "block_21", "block_27")


@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        ("flux", {"layers": "mid"}, r"Expected block to be a layer of Flux.*, which has patch, .* block_3_norm, .* got 'mid'"),
        ("flux", {"layers": []}, r"Expected block to name at least one layer, .* Use block=block_0"),
        ("flux", {"noisy": torch.randn(1, 4, 16, 16)}, r"Expected latents \(B, 16, H, W\) for Flux.*, but got \(1, 4, "),
        ("sd3", {"noisy": torch.randn(1, 16, 15, 16)}, r"multiples of 2 cells for SD3.*, but got 15×16"),
        ("sd3", {"noisy": torch.randn(1, 16, 64, 16)}, r"Expected at most 24×24 tokens, .* but got 32×8. Use smaller images."),
        ("lumina2", {"noisy": torch.randn(1, 16, 16, 132)}, r"Expected at most 64×64 tokens, .* but got 8×66"),
        ("dit", {"noisy": torch.randn(1, 4, 16, 8)}, r"Expected square latents for DiT.*, but got 16×8"),
        ("dit", {"timestep": 2.5}, r"Expected timestep to be an integer, but got 2.5"),
        ("pixart", {"timestep": 1000}, r"Expected timestep to be from 0 to 999, but got 1000"),
        ("sana", {"timestep": 1001}, r"Expected timestep to be from 0 to 1000, but got 1001. It is 1000 times"),
        ("pixart", {"text": Conditions(torch.randn(1, 4, TEXT))}, r"Expected conditions of PixArt.* to have mask"),
        ("dit", {"text": Conditions(torch.randn(1, 4, TEXT))}, r"Expected conditions of DiT.* to have labels"),
        ("flux", {"text": Conditions(torch.randn(1, 4, 7), torch.randn(1, 12))}, r"text states of 24 channels .* got 7"),
        ("flux", {"text": Conditions(torch.randn(3, 4, TEXT), torch.randn(1, 12))}, r"states of one image or of 1, .* 3"),
    ],
)  # fmt: skip
def test_refusals_name_what_is_possible(family: str, arguments: dict[str, Any], message: str) -> None:
    made = frozen(family)
    given = {"noisy": latents(made, 1), "timestep": 261, "text": made.without_text(TOKENS), "layers": "block_0"} | arguments
    with pytest.raises(InputError, match=message):
        made(given["noisy"], given["timestep"], given["text"], made.resolve(given["layers"]))


def test_networks_of_no_family_and_without_position_are_refused() -> None:
    with pytest.raises(InputError, match=r"Expected a diffusion transformer \(PixArt.*\), but got Linear"):
        FrozenTransformer(nn.Linear(1, 1))
    with pytest.raises(InputError, match=r"also takes a guidance scale \(Sana-Sprint\)"):
        frozen("sana", guidance_embeds=True)
    made = frozen("sana")
    with pytest.raises(InputError, match=r"=stored for Sana.*, but got 'zero'.*circular"), made.positioned("zero"):
        pass
    with pytest.raises(InputError, match=r"Expected position to be one of stored, .* but got 'none'"), made.positioned("none"):
        pass
    with pytest.raises(InputError, match=r"Expected a network with adaLN-Zero, DiT, SD3 or FLUX, but got SanaTransf"):
        adaln_zero(made.network)
    with pytest.raises(InputError, match=r"Expected padding=zeros for PixArt.*, which has no convolutions that pad"):
        set_padding(network("pixart"), "circular")


def test_sana_for_large_images_has_a_table() -> None:
    made = frozen("sana", interpolation_scale=1.0)
    with made.positioned("zero"):
        zero = made(latents(made), 261, text(made), ["patch"])["patch"]
    assert not torch.equal(made(latents(made), 261, text(made), ["patch"])["patch"], zero)


def test_every_family_is_tested() -> None:
    assert {family_of(network(name)) for name in FAMILIES} == set(TABLE)

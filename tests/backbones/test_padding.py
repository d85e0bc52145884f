"""Padding: with circular padding the network cannot infer position, and a swap is undone completely."""

import pytest
import torch
from torch import Tensor, nn

from sdprobe.backbones import FrozenSD
from sdprobe.backbones.padding import set_padding
from sdprobe.backbones.weights import weight_hash
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.settings import PADDINGS

LAYERS = ["latent", "conv_in", "down_1", "mid", "up_0", "up_3"]


@pytest.fixture(scope="module")
def own() -> FrozenSD:
    """A backbone of this file alone, without noise: nothing but the image and the network is left."""
    return FrozenSD.from_pretrained("tiny", precision="fp32", device="cpu", noise="none")


@pytest.fixture(scope="module")
def periodic() -> Tensor:
    """Sums of waves that fit the image a whole number of times."""
    axis = torch.arange(128) / 128 * 2 * torch.pi
    waves = [torch.sin(a * axis[:, None] + b * axis[None] + c) for a, b, c in ((1, 2, 0.3), (3, -1, 1.0), (5, 7, 2.0))]
    return (torch.stack(waves)[None] + 1) / 2


def rolled(image: Tensor, rows: int, cols: int) -> Tensor:
    return image.roll((rows, cols), dims=(-2, -1))


# --- laws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "cols"), [(64, 0), (0, 64), (64, 64)])
def test_a_circular_network_moves_with_its_image(rows: int, cols: int, own: FrozenSD, periodic: Tensor) -> None:
    with own.padded("circular"):
        there, here = own.activations(periodic, LAYERS), own.activations(rolled(periodic, rows, cols), LAYERS)
    for layer, grid in there.items():
        stride = 128 // grid.shape[-1]
        torch.testing.assert_close(here[layer], rolled(grid, rows // stride, cols // stride), rtol=1e-3, atol=1e-4)


def test_every_other_padding_breaks_that(own: FrozenSD, periodic: Tensor) -> None:
    for mode in set(PADDINGS) - {"circular"}:
        with own.padded(mode):
            there, here = (own.activations(image, ["latent", "mid"]) for image in (periodic, rolled(periodic, 64, 64)))
        assert (here["latent"] - rolled(there["latent"], 8, 8)).abs().max() > 0.01, mode
        assert (here["mid"] - rolled(there["mid"], 1, 1)).abs().max() > 0.01, mode


def test_a_constant_image_has_one_token_everywhere_unless_padding_is_zeros(own: FrozenSD) -> None:
    grey = torch.full((1, 3, 128, 128), 0.6)
    spread = {}
    for mode in PADDINGS:
        with own.padded(mode):
            spread[mode] = own.activations(grey, "up_0")["up_0"].flatten(2).std(-1).mean().item()
    assert spread["zeros"] > 0.01 and max(spread[mode] for mode in PADDINGS[1:]) < 1e-4


def test_tokens_of_periodic_texture_have_the_same_mean_everywhere_in_a_circular_network(
    own: FrozenSD, periodic: Tensor
) -> None:
    # all shifts of a texture by whole strides: whatever is left over their mean depends on the place alone
    shifts = torch.cat([rolled(periodic, 64 * a, 64 * b) for a in range(2) for b in range(2)])

    def spread() -> float:
        grid = own.activations(shifts, "mid")["mid"].mean(0)
        return (grid - grid.mean((1, 2), keepdim=True)).norm().item() / grid.norm().item()

    with own.padded("circular"):
        assert spread() < 1e-4
    assert spread() > 1e-2


def test_the_downsampler_of_the_vae_pads_the_same_two_sides(own: FrozenSD) -> None:
    sampler = own.encoder.vae.encoder.down_blocks[0].downsamplers[0]
    grid = torch.randn(1, sampler.channels, 8, 8)
    with own.padded("replicate"), torch.no_grad():
        found = sampler(grid)
    with torch.no_grad():
        beyond = nn.functional.pad(grid, (0, 1, 0, 1), mode="replicate")
        wanted = nn.functional.conv2d(beyond, sampler.conv.weight, sampler.conv.bias, stride=2)
        assert torch.equal(found, wanted)
        assert not torch.allclose(sampler(grid)[..., -1], found[..., -1]) and torch.allclose(
            sampler(grid)[..., 0, 0], found[..., 0, 0]
        )


# --- nothing is left behind ------------------------------------------------------------------------------------------


def test_a_swap_is_undone_bit_for_bit_even_after_an_exception(own: FrozenSD, periodic: Tensor) -> None:
    def state() -> tuple[object, ...]:
        networks = (own.unet.unet, own.encoder.vae)
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for n in networks for m in n.modules()]
        return weight_hash(own.unet.unet), weight_hash(own.encoder.vae), hooks, own.padding, own.encoder.key(0)

    before, grids = state(), own.activations(periodic, LAYERS)

    def interrupted() -> None:
        with own.padded("circular"):
            assert state()[:3] == before[:3] and own.padding == "circular"
            assert not torch.equal(own.activations(periodic, "mid")["mid"], grids["mid"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert state() == before
    again = own.activations(periodic, LAYERS)
    assert all(torch.equal(again[layer], grids[layer]) for layer in LAYERS)


def test_swaps_nest_and_return_to_the_padding_they_found(periodic: Tensor, own: FrozenSD) -> None:
    circular = FrozenSD.from_pretrained("tiny", precision="fp32", device="cpu", noise="none", padding="circular")
    with circular.padded("zeros"):
        assert torch.equal(circular.activations(periodic, "up_0")["up_0"], own.activations(periodic, "up_0")["up_0"])
        with circular.padded("reflect"):
            assert circular.padding == "reflect"
        assert circular.padding == "zeros"
    with own.padded("circular"):
        wanted = own.activations(periodic, "up_0")["up_0"]
    assert torch.equal(circular.activations(periodic, "up_0")["up_0"], wanted)


def test_latents_are_kept_apart_by_padding_and_known_ones_keep_their_key(own: FrozenSD) -> None:
    keys = {}
    for mode in PADDINGS:
        with own.padded(mode):
            keys[mode] = own.encoder.key(0)
            assert own.describe()["padding"] == mode and own.describe()["vae_hash"] == own.encoder.weights
    assert len(set(keys.values())) == 4
    assert keys["zeros"].endswith("-symmetric-mode-fp32") and keys["circular"] == keys["zeros"] + "-circular"


def test_kernels_of_one_pixel_are_left_alone() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 3, padding=1))
    set_padding(network, "reflect")
    assert [layer.padding_mode for layer in network] == ["zeros", "reflect"]


# --- failures --------------------------------------------------------------------------------------------------------


def test_an_unknown_padding_is_refused(own: FrozenSD) -> None:
    with pytest.raises(InputError, match="padding to be one of zeros, replicate, reflect, circular, but got 'mirror'"):
        FrozenSD.from_pretrained("tiny", padding="mirror")
    with pytest.raises(InputError, match="but got 'wrap'"), own.padded("wrap"):
        pass
    assert own.padding == "zeros"


def test_reflection_needs_two_tokens_everywhere(own: FrozenSD, periodic: Tensor) -> None:
    with (
        own.padded("reflect"),
        pytest.raises(InputError, match="image sides of at least 16 pixels for padding=reflect, but got 8×64"),
    ):
        own.activations(periodic[..., :8, :64], "conv_in")
    with (
        own.padded("reflect"),
        pytest.raises(InputError, match="at least 16 latent cells per side for padding=reflect, but got 8×8"),
    ):
        own.activations(periodic[:, :, :64, :64], "mid")


def test_a_repeated_draw_has_other_noise() -> None:
    sd = FrozenSD.from_pretrained("tiny", precision="fp32", device="cpu")
    image = torch.rand(1, 3, 64, 64)
    first, same, other = (sd.activations(image, "mid", ids=["a"], draw=draw)["mid"] for draw in (0, 0, 1))
    assert torch.equal(first, same) and not torch.allclose(first, other, atol=1e-3)

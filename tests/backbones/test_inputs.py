"""What activations takes and returns: every kind of image equals the tensor path bit for bit; shapes, dtype, refusals."""

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from datamodules.images.folder import FolderImages
from sdprobe.backbones import FrozenSD, frozen_sd
from sdprobe.utilities.errors import InputError

LAYERS = ["latent", "mid"]
Array = np.ndarray[Any, Any]


def pixels(side: int, channels: int = 3, seed: int = 0) -> Array:
    """8-bit pixels (side, side + 64, channels)."""
    return np.random.default_rng(seed).integers(0, 256, (side, side + 64, channels), dtype=np.uint8)


def tensor(array: Array) -> Tensor:
    """The reference: RGB pixels as a float tensor (3, H, W)."""
    return torch.from_numpy(array).permute(2, 0, 1) / 255


def saved(array: Array, folder: Path) -> Path:
    file = folder / f"{len(list(folder.iterdir()))}.png"
    Image.fromarray(array).save(file)
    return file


KINDS: dict[str, Callable[[Array, Path], Any]] = {
    "PIL": lambda array, _: Image.fromarray(array),
    "path": lambda array, folder: str(saved(array, folder)),
    "pathlib": saved,
    "numpy 8-bit HWC": lambda array, _: array,
    "numpy 8-bit CHW": lambda array, _: array.transpose(2, 0, 1),
    "numpy float32 HWC": lambda array, _: array.astype(np.float32) / 255,
    "numpy float32 CHW, reversed and back": lambda array, _: (array.astype(np.float32) / 255)[::-1].transpose(2, 0, 1)[:, ::-1],
    "tensor CHW": lambda array, _: tensor(array),
    "tensor 1CHW": lambda array, _: tensor(array)[None],
    "tensor 8-bit CHW": lambda array, _: torch.from_numpy(array).permute(2, 0, 1),
    "tensor 8-bit 1HWC": lambda array, _: torch.from_numpy(array)[None],
}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[layer], b[layer]) and a[layer].is_contiguous() for layer in a)


# --- kinds × sizes × timesteps ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(sd: FrozenSD) -> Callable[[tuple[int, ...], int], list[dict[str, Tensor]]]:
    """Grids of each image by the tensor path: those of one size in one batch, one timestep per call."""

    @cache
    def grids(sides: tuple[int, ...], step: int) -> list[dict[str, Tensor]]:
        found: list[dict[str, Tensor]] = [{} for _ in sides]
        for side in set(sides):
            indices = [i for i, other in enumerate(sides) if other == side]
            together = sd.activations(torch.stack([tensor(pixels(side, seed=i)) for i in indices]), LAYERS, step)
            for place, i in enumerate(indices):
                found[i] = {layer: grid[place : place + 1] for layer, grid in together.items()}
        return found

    return grids


@pytest.mark.parametrize("timestep", [50, [261, 1]], ids=str)
@pytest.mark.parametrize("sides", [(64,), (64, 64), (64, 128, 64)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_equals_the_tensor_path(
    kind: str,
    sides: tuple[int, ...],
    timestep: int | list[int],
    reference: Callable[[tuple[int, ...], int], list[dict[str, Tensor]]],
    sd: FrozenSD,
    tmp_path: Path,
) -> None:
    made = [KINDS[kind](pixels(side, seed=i), tmp_path) for i, side in enumerate(sides)]
    found = sd.activations(made[0] if len(made) == 1 else made, LAYERS, timestep)
    steps = timestep if isinstance(timestep, list) else [timestep]
    for layer in LAYERS:
        expected = [torch.stack([reference(sides, step)[i][layer] for step in steps]) for i in range(len(sides))]
        if not isinstance(timestep, list):
            expected = [grids[0] for grids in expected]
        if len(set(sides)) == 1:
            assert torch.equal(found[layer], torch.cat(expected, int(isinstance(timestep, list))))
        else:
            assert all(torch.equal(one[layer], grids) for one, grids in zip(found, expected, strict=True))
    assert all(grid.is_contiguous() for one in ([found] if isinstance(found, dict) else found) for grid in one.values())


@pytest.mark.parametrize("size", [None, 64])
@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16", "orientation"])
def test_grey_alpha_and_orientation_are_those_of_a_folder(mode: str, size: int | None, sd: FrozenSD, tmp_path: Path) -> None:
    side = 64 if size is None else 90
    array = np.random.default_rng(1).integers(0, 256, (side, side, 4), dtype=np.uint8)
    exif = Image.Exif()
    if mode == "I;16":
        picture = Image.fromarray(array[..., 0].astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(array).convert("RGB" if mode == "orientation" else mode)
    if mode == "orientation":
        exif[0x0112] = 6
    picture.save(tmp_path / "picture.png", exif=exif)
    reference = sd.activations(FolderImages(str(tmp_path), size=64)[0]["image"][None], LAYERS)
    assert equal(sd.activations(tmp_path / "picture.png", LAYERS, size=size), reference)
    with Image.open(tmp_path / "picture.png") as opened:
        assert equal(sd.activations(opened, LAYERS, size=size), reference)
    if mode in ("L", "LA", "RGBA", "I;16"):
        assert equal(sd.activations(np.asarray(picture), LAYERS, size=size), reference)


def test_floats_with_one_channel_are_grey_and_the_last_of_four_is_opacity(sd: FrozenSD) -> None:
    grey = torch.rand(1, 64, 64)
    reference = sd.activations(grey.expand(1, 3, -1, -1), "mid")
    assert equal(sd.activations(grey, "mid"), reference)
    assert equal(sd.activations(grey[0].numpy(), "mid"), reference)
    assert equal(sd.activations(torch.cat([grey, torch.ones(1, 64, 64)]), "mid"), reference)
    transparent = torch.cat([grey.expand(3, -1, -1), torch.zeros(1, 64, 64)])
    assert equal(sd.activations(transparent, "mid"), sd.activations(torch.ones(1, 3, 64, 64), "mid"))


def test_stacks_in_a_list_are_images_of_the_list(sd: FrozenSD, images: Tensor) -> None:
    assert equal(sd.activations([images[:2], images[2]], "mid"), sd.activations(images[:3], "mid"))
    assert equal(sd.activations(images[:2].numpy(), "mid"), sd.activations(images[:2], "mid"))


def test_sizes_are_told_apart_where_a_layer_has_one_grid_for_both(sd: FrozenSD) -> None:
    found = sd.activations([torch.rand(3, 120, 120), torch.rand(3, 128, 128)], "mid")
    assert [tuple(grids["mid"].shape) for grids in found] == [(1, 64, 2, 2)] * 2


# --- prompts, timesteps, draws ---------------------------------------------------------------------------------------


def test_one_prompt_per_image(sd: FrozenSD, images: Tensor) -> None:
    prompts = ["a cat", "", "a dog"]
    found = sd.activations(images[:3], "mid", prompt=prompts)["mid"]
    for i, prompt in enumerate(prompts):
        torch.testing.assert_close(found[i], sd.activations(images[:3], "mid", prompt=prompt)["mid"][i], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found[0], sd.activations(images[:3], "mid")["mid"][0], atol=1e-4)
    assert equal(sd.activations(images[:3], "mid", prompt=["a cat"] * 3), sd.activations(images[:3], "mid", prompt="a cat"))


def test_prompts_stay_with_their_images_of_several_sizes(sd: FrozenSD) -> None:
    images = [torch.rand(3, side, 64) for side in (64, 128, 64)]
    prompts = ["a cat", "a dog", "a cow"]
    found = sd.activations(images, "mid", prompt=prompts, ids=list("abc"))
    for grids, image, prompt, name in zip(found, images, prompts, "abc", strict=True):
        alone = sd.activations(image, "mid", prompt=prompt, ids=[name])["mid"]
        torch.testing.assert_close(grids["mid"], alone, rtol=1e-3, atol=1e-4)


def test_sdxl_takes_one_prompt_per_image(sdxl_folder: Path, images: Tensor) -> None:
    xl = FrozenSD.from_pretrained(str(sdxl_folder), precision="fp32", device="cpu")
    found = xl.activations(images[:2], "mid", prompt=["a cat", ""])["mid"]
    for i, prompt in enumerate(["a cat", ""]):
        alone = xl.activations(images[:2], "mid", prompt=prompt)["mid"][i]
        torch.testing.assert_close(found[i], alone, rtol=1e-3, atol=1e-4)


def test_timesteps_and_draws_lead_in_this_order(sd: FrozenSD, images: Tensor) -> None:
    kept = sd.activations(images[:2], LAYERS, [261, 50], draw=3, draws=2, keep_draws=True)
    for (t, step), d in itertools.product(enumerate([261, 50]), range(2)):
        one = sd.activations(images[:2], LAYERS, step, draw=3 + d)
        assert all(torch.equal(kept[layer][t, d], one[layer]) for layer in LAYERS)
    assert kept["mid"].shape == (2, 2, 2, 64, 2, 2)
    mean = sd.activations(images[:2], LAYERS, [261, 50], draw=3, draws=2)
    assert all(torch.equal(mean[layer], (kept[layer][:, 0] + kept[layer][:, 1]) / 2) for layer in LAYERS)
    assert sd.activations(images[:1], "mid", keep_draws=True)["mid"].shape == (1, 1, 64, 2, 2)
    assert equal(sd.activations(images[:1], "mid", np.arange(1, 3)), sd.activations(images[:1], "mid", range(1, 3)))


def test_draws_are_summed_in_float32(saved: Path, images: Tensor) -> None:
    half = FrozenSD.from_pretrained(str(saved), precision="bf16", device="cpu")
    kept = half.activations(images[:2], "mid", draws=3, keep_draws=True, dtype=torch.float32)["mid"]
    mean = half.activations(images[:2], "mid", draws=3, dtype=torch.bfloat16)["mid"]
    assert torch.equal(mean, ((kept[0] + kept[1] + kept[2]) / 3).bfloat16())


def test_latents_and_prompts_are_encoded_once(sd: FrozenSD, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    encode = sd.prompts.encode
    monkeypatch.setattr(sd.prompts, "encode", lambda prompt: encoded.append(prompt) or encode(prompt))
    before = sd.passes
    sd.activations(images[:3], "mid", [1, 50, 261], prompt=["a sole", "a hen", "a sole"], draws=2)
    assert sd.passes == {"encoder": before["encoder"] + 3, "unet": before["unet"] + 3 * 3 * 2}
    assert encoded == ["a sole", "a hen"]


# --- outputs ---------------------------------------------------------------------------------------------------------


def test_grids_go_to_numpy_and_safetensors(saved: Path, images: Tensor, tmp_path: Path) -> None:
    half = FrozenSD.from_pretrained(str(saved), precision="bf16", device="cpu")
    for grids in (half.activations(images[:2], "stages"), *half.activations([images[0], images[0, :, :64]], "stages", [1, 2])):
        save_file(grids, tmp_path / "grids.safetensors")
        assert equal(load_file(tmp_path / "grids.safetensors"), dict(sorted(grids.items())))
        assert all(grid.numpy().dtype == np.float32 for grid in grids.values())
    assert half.activations(images[:1], "mid", dtype=torch.float64)["mid"].dtype == torch.float64


def test_published_names_are_accepted_and_ours_returned(sd: FrozenSD, images: Tensor) -> None:
    names = ["up_blocks[1].upsamplers[0]", "mid_block", "down_blocks.0.resnets.1"]
    assert list(sd.activations(images[:1], names)) == ["down_0_res_1", "mid", "up_1"]


def test_layers_and_repr_say_what_there_is(sd: FrozenSD) -> None:
    assert list(sd.layers) == list(sd.unet.layers) and sd.layers["up_1"] == (64, 32, 32)
    assert repr(sd) == f"FrozenSD({sd.path!r}: 46 layers, made for 512 px, fp32 on cpu, stored weights)"


def test_batches_by_memory_keep_order_and_show_a_bar(
    sd: FrozenSD, images: Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mixed = [images[0], images[1, :, :64], images[2], images[3], images[4, :, :64]]
    whole, lists = sd.activations(images, LAYERS, [1, 50]), sd.activations(mixed, LAYERS)
    before = sd.passes["unet"]
    # room for three images of 128 pixels: six float32 tensors of eight channels, in a quarter of the memory
    monkeypatch.setattr(frozen_sd, "memory_of", lambda device: 4 * 3 * 6 * 8 * 4 * 128**2)
    seen: list[int] = []
    handle = sd.unet.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    with caplog.at_level("INFO"):
        parts, parted = sd.activations(images, LAYERS, [1, 50]), sd.activations(mixed, LAYERS)
    handle.remove()
    assert seen == [3, 3, 3, 3, 2, 2, 3, 2] and sd.passes["unet"] == before + sum(seen)
    assert "extract activations, 3 batches" in caplog.text
    for a, b in ((parts, whole), *zip(parted, lists, strict=True)):
        for layer in LAYERS:
            assert a[layer].is_contiguous()
            torch.testing.assert_close(a[layer], b[layer], rtol=1e-3, atol=1e-4)


def test_gradients_reach_the_pixels_where_they_are_asked_for(sd: FrozenSD, images: Tensor) -> None:
    leaf = images[:2].clone().requires_grad_()
    plain = sd.activations(leaf, LAYERS)
    assert not any(grid.requires_grad for grid in plain.values())
    traced = sd.activations(leaf, LAYERS, [50, 1], draws=2, with_grad=True)
    traced["mid"].square().sum().backward()
    assert leaf.grad is not None and (leaf.grad.flatten(1).norm(dim=1) > 0).all()
    assert equal(sd.activations(leaf, LAYERS, with_grad=True), plain)
    assert all(parameter.grad is None for parameter in sd.unet.parameters())
    listed = [image.clone().requires_grad_() for image in images[:2]]
    sd.activations(listed, "mid", ids=["a", "b"], with_grad=True)["mid"].sum().backward()
    assert all(image.grad is not None and image.grad.abs().sum() > 0 for image in listed)


def test_the_gradient_is_the_slope(sd: FrozenSD, images: Tensor) -> None:
    leaf, direction = images[:1].clone().requires_grad_(), torch.randn(images[:1].shape)

    def response(x: Tensor) -> Tensor:
        return sd.activations(x, "down_0", ids=["a"], with_grad=True)["down_0"].double().square().mean()

    response(leaf).backward()
    inside = (0.02 + 0.96 * images[:1]).detach()
    leaf = inside.clone().requires_grad_()
    response(leaf).backward()
    assert leaf.grad is not None
    step = 2e-3
    slope = (response(inside + step * direction) - response(inside - step * direction)) / (2 * step)
    torch.testing.assert_close((leaf.grad * direction).sum().double(), slope.detach(), rtol=0.05, atol=1e-3)


# --- failures --------------------------------------------------------------------------------------------------------

RGB = torch.rand(3, 64, 64)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "empty list": ({"images": []}, r"images to hold at least one image, but got none"),
    "empty stack": ({"images": torch.rand(0, 3, 64, 64)}, r"images to hold at least one image"),
    "rank 1": ({"images": torch.rand(64)}, r"images to have the axes .* shape \(64,\)"),
    "rank 5": ({"images": torch.rand(1, 1, 3, 64, 64)}, r"images to have the axes"),
    "channels": ({"images": [RGB, torch.rand(5, 64, 64)]}, r"images\[1\] to have the axes .* \(5, 64, 64\)"),
    "0 to 255": ({"images": RGB[None] * 255}, r"images in the range \[0, 1\].*Divide 8-bit images by 255"),
    "0 to 255 in a list": ({"images": [RGB, RGB * 255]}, r"images\[1\] has values from .*Divide 8-bit images by 255"),
    "negative": ({"images": RGB * 2 - 1}, r"in the range \[0, 1\]"),
    "NaN": ({"images": [RGB, RGB, torch.full((3, 64, 64), torch.nan)]}, r"images\[2\] has NaN"),
    "NaN in a stack": ({"images": torch.stack([RGB, RGB * torch.nan])}, r"images\[1\] has NaN\. Correct it"),
    "0 to 255 in a stack": ({"images": torch.stack([RGB, RGB * 255])}, r"images\[1\] has values from .* to 255"),
    "one text of ids": ({"ids": "a"}, r"ids to be one text per image, 1, but got 'a'"),
    "ids": ({"ids": 5}, r"ids to be one text per image, 1, but got 5"),
    "no prompt": ({"prompt": None}, r"prompt to be one text per image, 1, but got None"),
    "nested timesteps": ({"timestep": torch.tensor([[1, 2]])}, r"timestep to be a finite number, but got \[1, 2\]"),
    "draw": ({"draw": -1}, r"draw to be at least 0, but got -1"),
    "seed": ({"seed": "a"}, r"seed to be an integer, but got 'a'"),
    "dtype": ({"dtype": "float32"}, r"dtype to be a floating-point type of torch, but got 'float32'"),
    "integers as dtype": ({"dtype": torch.int8}, r"dtype to be a floating-point type"),
    "no layers": ({"layers": None}, r"layers to be a name or a list of names, but got None"),
    "integers": ({"images": (RGB * 255).long()}, r"images to be an intact image.*its type is int64, not uint8"),
    "no image": ({"images": [RGB, 7]}, r"images\[1\] to be an intact image.*an object of type int"),
    "a generator": ({"images": iter([RGB])}, r"images to be a PIL image.*Make a list"),
    "side": ({"images": [RGB, RGB[:, :, :60]]}, r"images\[1\] to have sides that are multiples of 8 pixels, but got 64×60"),
    "side of a stack": ({"images": RGB[None, :, :, :60]}, r"multiples of 8 pixels, but got 64×60"),
    "no pixels": ({"images": RGB[:, :0]}, r"images"),
    "missing": ({"images": [RGB, "missing.png"]}, r"images\[1\] \('missing.png'\) to be an intact image"),
    "PostScript": ({"images": [RGB, Path(__file__)]}, r"images\[1\] \('.*test_inputs.py'\) to be an intact image"),
    "size": ({"images": RGB, "size": 65}, r"Expected size to be a positive multiple of 64"),
    "size of floats": ({"images": RGB, "size": 64}, r"for size=64, but images is torch.float32"),
    "prompts": ({"prompt": ["a", "b"]}, r"prompt to be one text per image, but got 2 of type str for 1 images"),
    "prompt": ({"prompt": [3]}, r"prompt to be one text per image, but got 1 of type int"),
    "many ids": ({"ids": ["a", "b"]}, r"ids to be one text per image, but got 2"),
    "no timestep": ({"timestep": []}, r"timestep to be an integer or a list of integers, but got an empty list"),
    "timestep": ({"timestep": [50, 1000]}, r"timestep to be from 0 to 999, but got 1000"),
    "half a timestep": ({"timestep": [50.5]}, r"timestep to be an integer, but got 50.5"),
    "draws": ({"draws": 0}, r"draws to be at least 1"),
    "another family": ({"layers": "transformer_blocks.3"}, r"layers to be a layer.*'transformer_blocks.3'"),
    "another depth": ({"layers": "up_7"}, r"layers to name a layer that this backbone has, but got 'up_7'"),
    "no layer": ({"layers": []}, r"layers to name at least one layer.*Use layers=mid"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_that_names_the_argument(case: str, sd: FrozenSD) -> None:
    arguments, message = BAD[case]
    before = sd.passes
    with pytest.raises(InputError, match=message) as refusal:
        sd.activations(**{"images": RGB, "layers": "mid", **arguments})
    assert "\n" not in str(refusal.value) and sd.passes["unet"] == before["unet"]


def test_numbers_of_numpy_and_torch_are_numbers(sd: FrozenSD) -> None:
    expected = sd.activations(RGB, "mid", seed=3, draw=1, draws=2)["mid"]
    for kind in (np.int64, torch.tensor, float):
        found = sd.activations(RGB, "mid", seed=kind(3), draw=kind(1), draws=kind(2))["mid"]  # type: ignore[arg-type]
        assert torch.equal(found, expected)


@pytest.mark.parametrize("size", [0, 60, -64])
def test_shapes_are_those_of_a_size_that_images_may_have(size: int, sd: FrozenSD) -> None:
    with pytest.raises(InputError, match="Expected size to be"):
        sd.shapes(size, "mid")


def test_a_damaged_file_in_the_middle_is_named_before_anything_is_encoded(sd: FrozenSD, tmp_path: Path) -> None:
    files = [saved(pixels(64, seed=i), tmp_path) for i in range(3)]
    files[1].write_bytes(files[1].read_bytes()[:500])
    before = sd.passes
    with pytest.raises(InputError, match=rf"images\[1\] \('{files[1]}'\) to be an intact image"):
        sd.activations(files, "mid")
    assert sd.passes == before

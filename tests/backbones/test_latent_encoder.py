"""Latents are those of diffusers' VAE; bad images are refused; the key changes with whatever changes a latent."""

import copy
import logging

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor

from sdprobe.backbones.latents import LatentEncoder, warn_if_unusual
from sdprobe.utilities.errors import InputError


@pytest.fixture(scope="module")
def vae(pipeline: StableDiffusionPipeline) -> AutoencoderKL:
    return pipeline.vae


@pytest.fixture(scope="module")
def small(images: Tensor) -> Tensor:
    return images[:4, :, :64, :96]


IDS = ("a", "b", "c", "d")


# --- equivalence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vae_input", "low"), [("symmetric", -1.0), ("unit", 0.0)])
def test_latents_are_the_scaled_mode_of_the_posterior(vae_input: str, low: float, vae: AutoencoderKL, small: Tensor) -> None:
    with torch.no_grad():
        mode = vae.encode(small * (1 - low) + low).latent_dist.mode()
    latents = LatentEncoder(vae, vae_input)(small, IDS)
    assert latents.shape == (4, 4, 8, 12) and latents.dtype == torch.float32
    torch.testing.assert_close(latents, mode * vae.config.scaling_factor, rtol=1e-4, atol=1e-4)


def test_a_shift_factor_is_subtracted_before_scaling(vae: AutoencoderKL, small: Tensor) -> None:
    shifted = copy.deepcopy(vae)
    shifted.register_to_config(shift_factor=0.25)
    expected = LatentEncoder(vae)(small, IDS) - 0.25 * vae.config.scaling_factor
    torch.testing.assert_close(LatentEncoder(shifted)(small, IDS), expected, rtol=1e-4, atol=1e-4)


def test_stated_means_and_deviations_standardise_latents_as_in_diffusers(
    vae: AutoencoderKL, small: Tensor, sdxl_pipeline: StableDiffusionXLPipeline
) -> None:
    vae = copy.deepcopy(vae)
    vae.quant_conv.weight.data[4:], vae.quant_conv.bias.data[4:] = 0, -30  # a sample, which the pipeline takes, is the mode
    plain = LatentEncoder(vae)
    vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.5, 1.0, 2.0, 4.0], scaling_factor=0.5)
    given = LatentEncoder(vae)
    own = StableDiffusionXLImg2ImgPipeline(**{**sdxl_pipeline.components, "vae": vae}, add_watermarker=False)
    expected = own.prepare_latents(small * 2 - 1, None, 4, 1, torch.float32, torch.device("cpu"), add_noise=False)
    torch.testing.assert_close(given(small, IDS), expected, rtol=1e-4, atol=1e-4)
    assert given.key(0).startswith(f"1-{plain.weights[:16]}-") and given.key(0) != plain.key(0)


def test_a_posterior_sample_has_the_posteriors_mean_and_deviation(vae: AutoencoderKL, small: Tensor) -> None:
    vae = copy.deepcopy(vae)
    vae.quant_conv.bias.data[4:] -= 2  # log-variance: tells the deviation, about 0.4, from the variance
    with torch.no_grad():
        posterior = vae.encode(small * 2 - 1).latent_dist
    encoder = LatentEncoder(vae, posterior="sample")
    samples = torch.stack([encoder(small, IDS, seed) for seed in range(12)]) / vae.config.scaling_factor
    noise = (samples - posterior.mean) / posterior.std
    assert abs(noise.mean().item()) < 5 / noise.numel() ** 0.5
    assert noise.std().item() == pytest.approx(1, abs=0.05)


def test_posterior_samples_belong_to_image_and_seed(vae: AutoencoderKL, small: Tensor) -> None:
    encoder = LatentEncoder(vae, posterior="sample")
    base = encoder(small, IDS, seed=0)
    torch.testing.assert_close(encoder(small[[2, 0]], ("c", "a"), seed=0), base[[2, 0]], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(encoder(small, IDS, seed=1), base, atol=1e-3)
    assert not torch.allclose(encoder(small[:1], ("z",), seed=0), base[:1], atol=1e-3)


def test_the_mode_needs_neither_seed_nor_id(vae: AutoencoderKL, small: Tensor) -> None:
    encoder = LatentEncoder(vae)
    assert torch.equal(encoder(small, IDS, seed=0), encoder(small, tuple("wxyz"), seed=7))


def test_batch_size_does_not_change_a_latent(vae: AutoencoderKL, small: Tensor) -> None:
    encoder = LatentEncoder(vae)
    alone = torch.cat([encoder(image[None], (name,)) for image, name in zip(small, IDS, strict=True)])
    torch.testing.assert_close(encoder(small, IDS), alone, rtol=1e-4, atol=1e-4)


def test_passes_count_images(vae: AutoencoderKL, small: Tensor) -> None:
    encoder = LatentEncoder(vae)
    encoder(small, IDS)
    encoder(small[:1], IDS[:1])
    assert encoder.passes == 5


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda x: x * 255, r"from .* to 25\d"),
        (lambda x: x * 2 - 1, r"from -\d.* to"),
        (lambda x: x + 0.5, r"to 1\.\d"),
        (lambda x: x.masked_fill(x > 0.9, float("nan")), "nan"),
        (lambda x: x.masked_fill(x > 0.9, float("inf")), "inf"),
    ],
)
def test_images_outside_the_unit_range_are_refused_by_name(change: object, got: str, vae: AutoencoderKL, small: Tensor) -> None:
    message = rf"Expected images in the range \[0, 1\], but got values .*{got}.* in a, b, c\. Divide 8-bit images by 255"
    with pytest.raises(InputError, match=message):
        LatentEncoder(vae)(change(small), IDS)  # type: ignore[operator]


def test_the_whole_unit_range_is_accepted(vae: AutoencoderKL) -> None:
    ends = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    assert LatentEncoder(vae)(ends, ("black", "white")).isfinite().all()


@pytest.mark.parametrize(("height", "width"), [(60, 64), (64, 60), (65, 65)])
def test_sides_that_the_vae_cannot_divide_are_refused(height: int, width: int, vae: AutoencoderKL) -> None:
    with pytest.raises(InputError, match=f"multiples of 8 pixels, but got {height}×{width}. Crop or resize"):
        LatentEncoder(vae)(torch.rand(1, 3, height, width), ("a",))


# --- warning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "warns"), [(0.1, True), (0.4, True), (0.6, False), (1.0, False), (1.9, False), (5.5, True)])
def test_latents_of_unusual_scale_are_reported(scale: float, warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    latents = scale * torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.WARNING):
        warn_if_unusual(latents)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warns
    if warns:
        assert f"{latents.std():.2f}" in caplog.text and "vae_input" in caplog.text and "scaling_factor" in caplog.text


def test_the_random_vae_gives_latents_of_usual_scale(
    vae: AutoencoderKL, small: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    white_noise = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    warn_if_unusual(LatentEncoder(vae)(white_noise, IDS))
    assert not caplog.records


# --- key of the cache ------------------------------------------------------------------------------------------------


def test_the_key_changes_with_everything_that_changes_a_latent(vae: AutoencoderKL) -> None:
    nudged, rescaled = copy.deepcopy(vae), copy.deepcopy(vae)
    nudged.encoder.conv_in.weight.data.view(-1)[0] += 1e-3
    # it is no weight, yet every latent is multiplied by it
    rescaled.register_to_config(scaling_factor=2 * vae.config.scaling_factor)
    keys = [
        LatentEncoder(vae).key(0),
        LatentEncoder(vae, "unit").key(0),
        LatentEncoder(vae, posterior="sample").key(0),
        LatentEncoder(vae, posterior="sample").key(1),
        LatentEncoder(nudged).key(0),
        LatentEncoder(rescaled).key(0),
        LatentEncoder(copy.deepcopy(vae).bfloat16()).key(0),
    ]
    assert len(set(keys)) == len(keys)


def test_the_key_of_a_mode_has_no_seed_and_equal_weights_share_it(vae: AutoencoderKL) -> None:
    assert LatentEncoder(vae).key(0) == LatentEncoder(vae).key(1) == LatentEncoder(copy.deepcopy(vae)).key(0)

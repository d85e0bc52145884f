"""Noise: the diffusion formula whatever the scheduler class, and an ε that belongs to an image and not to a batch."""

import copy
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdprobe.backbones import FrozenSD
from sdprobe.backbones.noise import NoiseSchedule, alphas_of, prediction_of
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.settings import NOISES

DDIM = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
ALPHAS = DDIM.alphas_cumprod
NAMES = tuple("abcdefgh")


def latents(count: int = 8, side: int = 8) -> Tensor:
    return torch.randn(count, 4, side, side, generator=torch.Generator().manual_seed(0))


def epsilon(schedule: NoiseSchedule, like: Tensor, ids: tuple[str, ...], seed: int = 0, draw: int = 0) -> Tensor:
    """The ε that a schedule adds, read from its output for an empty latent at the noisiest timestep."""
    alpha = schedule.alphas_cumprod[999].item()
    return schedule(torch.zeros_like(like), 999, ids, seed, draw) / (1 - alpha) ** 0.5


# --- formula ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["independent", "shared", "rolled"])
@pytest.mark.parametrize("timestep", [0, 1, 50, 261, 999])
def test_noisy_latents_are_those_of_ddim(mode: str, timestep: int) -> None:
    schedule = NoiseSchedule(ALPHAS, mode)
    noise = epsilon(schedule, latents(), NAMES)
    expected = DDIM.add_noise(latents(), noise, torch.full((8,), timestep))
    torch.testing.assert_close(schedule(latents(), timestep, NAMES), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("timestep", [0, 50, 999])
def test_no_noise_only_shrinks(timestep: int) -> None:
    noisy = NoiseSchedule(ALPHAS, "none")(latents(), timestep, NAMES)
    torch.testing.assert_close(noisy, ALPHAS[timestep].sqrt() * latents())


SCHEDULES = {
    "Stable Diffusion": (ALPHAS, {50: 0.184, 100: 0.256, 261: 0.420}),
    "linear betas": (alphas_of({"_class_name": "DDIMScheduler"}), {50: 0.150, 100: 0.255, 261: 0.504}),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_noise_level_is_the_time_of_a_flow_with_the_same_noise(name: str) -> None:
    """x_flow = (1 − σ) z + σ ε = x_DDPM / (√ᾱ + √(1 − ᾱ)) at every timestep."""
    alphas, known = SCHEDULES[name]
    schedule, clean = NoiseSchedule(alphas), latents(2, 4)
    noise = torch.stack([schedule._noise(clean.shape[1:], image, 0, 0) for image in NAMES[:2]])
    for timestep, sigma in enumerate(schedule.noise_levels.tolist()):
        alpha = alphas[timestep].double()
        flow = schedule(clean, timestep, NAMES[:2]).double() / (alpha.sqrt() + (1 - alpha).sqrt())
        torch.testing.assert_close(flow, (1 - sigma) * clean + sigma * noise, rtol=0, atol=1e-6, check_dtype=False)
    assert {t: round(schedule.noise_levels[t].item(), 3) for t in known} == known
    assert (schedule.noise_levels.diff() > 0).all()


@given(st.lists(st.floats(0.029, 0.935), min_size=1, max_size=4, unique=True))
def test_the_nearest_timestep_has_a_noise_level(levels: list[float]) -> None:
    schedule = NoiseSchedule(ALPHAS)
    known = schedule.noise_levels.tolist()
    expected = [min(range(1000), key=lambda t, level=level: abs(known[t] - level)) for level in levels]
    if len(set(expected)) == len(expected):
        assert list(schedule.nearest(levels)) == expected
    else:
        with pytest.raises(InputError, match="both nearest to timestep"):
            schedule.nearest(levels)
    assert schedule.nearest(known) == tuple(range(1000)) and schedule.nearest(known[261]) == (261,)


@pytest.mark.parametrize("level", [0.01, 0.95, 2, "x"])
def test_a_noise_level_that_no_timestep_has_is_refused(level: object) -> None:
    with pytest.raises(InputError, match="noise_level to be"):
        NoiseSchedule(ALPHAS).nearest(level)


def test_folders_with_an_euler_scheduler_get_the_same_noisy_latents(euler_folder: Path, sd: FrozenSD) -> None:
    euler = FrozenSD.from_pretrained(str(euler_folder), precision="fp32", device="cpu")
    noise = epsilon(sd.noise, latents(), NAMES)
    expected = DDIM.add_noise(latents(), noise, torch.full((8,), 50))
    torch.testing.assert_close(euler.noise(latents(), 50, NAMES), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(euler.noise(latents(), 50, NAMES), sd.noise(latents(), 50, NAMES))


@pytest.mark.parametrize(
    ("config", "timestep", "alpha"),
    [
        # only the class is stated: its own defaults
        ({"_class_name": "LCMScheduler"}, 50, 0.95158),
        ({"_class_name": "HeunDiscreteScheduler"}, 50, 0.94401),
        ({"_class_name": "DDIMScheduler"}, 50, 0.96995),
        # the product of 1 − β
        ({"_class_name": "DDIMScheduler", "trained_betas": [0.5, 0.25, 0.125]}, 2, 0.5 * 0.75 * 0.875),
        ({"_class_name": "PNDMScheduler", "beta_start": 0.1, "beta_end": 0.1, "num_train_timesteps": 20}, 9, 0.9**10),
        ({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}, 999, 0.0),
        ({"_class_name": "EulerDiscreteScheduler", "rescale_betas_zero_snr": True}, 999, 2.0**-24),
        # nothing that concerns sampling alone changes it, nor does a key that the class does not know
        ({"_class_name": "LCMScheduler", "timestep_spacing": "trailing", "prediction_type": "v_prediction"}, 50, 0.95158),
        ({"_class_name": "PNDMScheduler", "steps_offset": 1, "clip_sample": False, "unknown": 3}, 50, 0.96995),
    ],
)
def test_a_schedule_is_the_one_of_the_checkpoints_own_scheduler(config: dict[str, Any], timestep: int, alpha: float) -> None:
    alphas = alphas_of(config)
    assert alphas[timestep].item() == pytest.approx(alpha, abs=1e-5)
    assert torch.equal(alphas, getattr(diffusers, config["_class_name"]).from_config(config).alphas_cumprod)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_min": 0.002},
            "scheduler is EDMDPMSolverMultistepScheduler. Rec",
        ),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "scheduler is FlowMatchEulerDiscreteScheduler. Rec"),
        (
            {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"},
            "UniPCMultistepScheduler with prediction_type=flow_prediction",
        ),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, "with use_flow_sigmas=True. Rectified flow"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "with timestep_type=continuous. Rectified"),
        ({"beta_start": 0.00085}, "to be a scheduler of the installed diffusers, but got None. Use DDIMScheduler, and state"),
        ({"_class_name": "MyScheduler"}, "installed diffusers, but got 'MyScheduler'"),
        ({"_class_name": "UNet2DConditionModel"}, "installed diffusers, but got 'UNet2DConditionModel'"),
        ({"_class_name": ["DDIMScheduler"]}, "installed diffusers, but got .'DDIMScheduler'."),
        (
            {"_class_name": "DDIMScheduler", "beta_schedule": "cosine"},
            "to describe a DDIMScheduler, but got: cosine is not imp",
        ),
        ({"_class_name": "DDIMScheduler", "trained_betas": "x"}, "to describe a DDIMScheduler, but got: "),
        ({"_class_name": "DDIMScheduler", "trained_betas": [0.1, float("nan")]}, "to lie between 0 and 1, but they do not"),
        ({"_class_name": "DDIMScheduler", "beta_start": -0.1}, "to lie between 0 and 1, but they do not"),
    ],
)
def test_a_schedule_that_is_not_made_of_betas_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        alphas_of(config)


def test_the_betas_of_the_folder_are_used(folder: Path, pipeline: StableDiffusionPipeline) -> None:
    other = DDIMScheduler.from_config(pipeline.scheduler.config, beta_end=0.02, beta_schedule="linear")
    other.save_pretrained(folder / "scheduler")
    sd = FrozenSD.from_pretrained(str(folder), precision="fp32", device="cpu")
    torch.testing.assert_close(sd.noise.alphas_cumprod, other.alphas_cumprod)
    assert not torch.allclose(sd.noise.alphas_cumprod, ALPHAS)


@pytest.mark.parametrize("timestep", [1, 261])
def test_scaling_again_multiplies_euler_folders_by_the_root_of_alpha(timestep: int, euler_folder: Path, saved: Path) -> None:
    def noisy(folder: Path, scale_again: bool) -> Tensor:
        sd = FrozenSD.from_pretrained(str(folder), precision="fp32", device="cpu", scale_again=scale_again)
        return sd.noise(latents(), timestep, NAMES)

    plain = noisy(euler_folder, False)
    torch.testing.assert_close(noisy(euler_folder, True), plain * ALPHAS[timestep].sqrt())
    assert torch.equal(noisy(saved, True), plain), "a DDIM folder is not scaled"


def test_noisy_latents_are_fp32_whatever_comes_in() -> None:
    noisy = NoiseSchedule(ALPHAS)(latents().bfloat16(), 50, NAMES)
    assert noisy.dtype == torch.float32


# --- whose noise it is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", NOISES)
@given(chosen=st.lists(st.sampled_from(range(8)), min_size=1, max_size=8), seed=st.integers(0, 5), draw=st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_neither_batch_composition_nor_order_changes_a_noisy_latent(mode: str, chosen: list[int], seed: int, draw: int) -> None:
    schedule = NoiseSchedule(ALPHAS, mode)
    whole = schedule(latents(), 50, NAMES, seed, draw)
    part = schedule(latents()[chosen], 50, tuple(NAMES[i] for i in chosen), seed, draw)
    assert torch.equal(part, whole[chosen])


@pytest.mark.parametrize("mode", ["independent", "shared", "rolled"])
def test_seed_and_draw_change_the_noise(mode: str) -> None:
    schedule = NoiseSchedule(ALPHAS, mode)
    noises = [epsilon(schedule, latents(), NAMES, seed, draw) for seed, draw in ((0, 0), (1, 0), (0, 1))]
    for i in range(3):
        for j in range(i):
            assert (noises[i] - noises[j]).abs().flatten(1).amax(1).min() > 0.5


def test_independent_noise_differs_between_images() -> None:
    noise = epsilon(NoiseSchedule(ALPHAS), latents(), NAMES).flatten(1)
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 5 / 256**0.5


def test_shared_noise_is_the_same_for_every_image() -> None:
    noise = epsilon(NoiseSchedule(ALPHAS, "shared"), latents(), NAMES)
    assert torch.equal(noise, noise[:1].expand_as(noise))


def test_rolled_noise_is_the_shared_tensor_cyclically_shifted_per_image() -> None:
    like = torch.zeros(80, 4, 6, 10)
    names = tuple(map(str, range(80)))
    shared = epsilon(NoiseSchedule(ALPHAS, "shared"), like, names)[0]
    rolled = epsilon(NoiseSchedule(ALPHAS, "rolled"), like, names)
    shifts = {shared.roll((r, c), (1, 2)).numpy().tobytes(): (r, c) for r in range(6) for c in range(10)}
    found = [shifts[noise.numpy().tobytes()] for noise in rolled]
    assert len(set(found)) > 30
    assert {r for r, _ in found} == set(range(6)) and {c for _, c in found} == set(range(10))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 96), (72, 40)])
@pytest.mark.parametrize("mode", ["independent", "shared", "rolled"])
def test_noise_is_white_with_unit_variance_at_any_size(mode: str, height: int, width: int) -> None:
    # enlarged noise, as some published code uses, fails the correlation with neighbours
    like = torch.zeros(1, 4, height, width)
    noise = torch.cat([epsilon(NoiseSchedule(ALPHAS, mode), like, ("a",), seed) for seed in range(16)])
    error = 5 / noise.numel() ** 0.5
    assert abs(noise.mean().item()) < error
    assert noise.square().mean().item() == pytest.approx(1, abs=1.5 * error)
    assert abs((noise[..., 1:] * noise[..., :-1]).mean().item()) < error * 1.02
    assert abs((noise[..., 1:, :] * noise[..., :-1, :]).mean().item()) < error * 1.02
    assert abs((noise[:, 1:] * noise[:, :-1]).mean().item()) < error * 1.2


def test_as_many_ids_as_latents_are_needed() -> None:
    # one id for eight latents would broadcast: eight images with the same noise, silently
    with pytest.raises(InputError, match="ids"):
        NoiseSchedule(ALPHAS)(latents(), 50, ("a",))


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timestep", [-1, 1000, 5000])
def test_a_timestep_out_of_range_is_refused(timestep: int) -> None:
    with pytest.raises(InputError, match=f"Expected timestep to be from 0 to 999, but got {timestep}"):
        NoiseSchedule(ALPHAS)(latents(), timestep, NAMES)


# --- target ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timestep", [50, 900])
def test_targets_are_those_of_the_scheduler(timestep: int) -> None:
    steps = torch.full((8,), timestep)
    noise = epsilon(NoiseSchedule(ALPHAS), latents(), NAMES)
    goals = {"epsilon": noise, "v_prediction": DDIM.get_velocity(latents(), noise, steps), "sample": latents()}
    for kind, goal in goals.items():
        found = NoiseSchedule(ALPHAS, prediction=kind).target(latents(), timestep, NAMES)
        torch.testing.assert_close(found, goal, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="prediction_type of the scheduler to be epsilon, v_prediction, sample, but got 'x'"):
        NoiseSchedule(ALPHAS, prediction="x").target(latents(), timestep, NAMES)


@pytest.mark.parametrize("kind", ["DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler", "DDPMScheduler"])
def test_the_prediction_type_is_that_of_the_scheduler(kind: str) -> None:
    assert prediction_of({"_class_name": kind}) == "epsilon"
    assert prediction_of({"_class_name": kind, "prediction_type": "v_prediction"}) == "v_prediction"


def test_a_checkpoint_keeps_its_prediction_type(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    pipe = copy.copy(pipeline)
    pipe.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type="v_prediction")
    pipe.scheduler.save_pretrained(folder / "scheduler")
    loaded = FrozenSD.from_pretrained(str(folder), precision="fp32", device="cpu")
    assert loaded.noise.prediction == FrozenSD.from_pipeline(pipe).noise.prediction == "v_prediction"
    expected = loaded.noise.target(latents(), 261, NAMES, 3)
    assert torch.equal(loaded.target(latents(), NAMES, 261, 3), expected)

"""NoiseSchedule: latent + timestep + per-image noise → noisy latent. Data path step 3."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import SchedulerMixin
from jaxtyping import Float
from torch import Tensor

from sdprobe.utilities import expect, settings
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.rng import keyed_generator

# settings of schedulers whose networks take no integer timestep with √ᾱ and √(1 − ᾱ)
CONTINUOUS = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "timestep_type": "continuous"}


def alphas_of(config: Mapping[str, Any]) -> Float[Tensor, " t"]:
    """ᾱ_t of a scheduler's configuration, as its own class computes it. What the configuration omits is the class's default.

    Raises:
        InputError: an unknown class, one without such a schedule, or settings that it refuses.
    """
    name = config.get("_class_name")
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise InputError(
            f"Expected _class_name in scheduler_config.json to be a scheduler of the installed diffusers, but got {name!r}. "
            "Use DDIMScheduler, and state num_train_timesteps, beta_start, beta_end and beta_schedule of the training."
        )
    other = [f"{key}={value}" for key, value in CONTINUOUS.items() if config.get(key) == value]
    known = {key: config[key] for key in inspect.signature(kind.__init__).parameters if key in config}  # type: ignore[misc]
    try:
        alphas = getattr(kind(**known), "alphas_cumprod", None)
        usable = alphas is None or bool(((alphas >= 0) & (alphas <= 1)).all())  # false for NaN
    except Exception as error:  # schedulers raise what their arithmetic raises
        raise InputError(f"Expected scheduler_config.json to describe a {name}, but got: {error}. Correct it.") from error
    if alphas is None or other:
        raise InputError(
            "Expected a noise schedule made of betas over integer timesteps, as Stable Diffusion has, but the checkpoint's "
            f"scheduler is {name}{f' with {other[0]}' if other else ''}. Rectified flow and EDM are not supported; use another "
            "checkpoint."
        )
    if not usable:
        raise InputError(
            "Expected the betas in scheduler_config.json to lie between 0 and 1, but they do not. "
            "Correct beta_start, beta_end or trained_betas."
        )
    return alphas.float()


def prediction_of(config: Mapping[str, Any]) -> str:
    """What a network is trained to predict: ``prediction_type`` of its scheduler's configuration, or the class's default."""
    kind = getattr(diffusers, config["_class_name"])
    default = inspect.signature(kind.__init__).parameters.get("prediction_type")
    return str(config.get("prediction_type", default.default if default else "epsilon"))


@dataclass(frozen=True)
class Cut:
    """A window of a larger latent, in cells: its upper left cell, and by how much the larger one is larger.

    With ``larger`` 0 the latent is continued periodically.
    """

    top: int
    left: int
    larger: int


class NoiseSchedule:
    """√ᾱ_t · z + √(1 − ᾱ_t) · ε, with ᾱ from the betas of a checkpoint (:func:`alphas_of`); its scheduler adds no noise itself.

    (In diffusers, ``EulerDiscreteScheduler.add_noise`` does not scale the latent and that of DDIM does. Neither is used.)

    Args:
        alphas_cumprod: ᾱ_t, (T,).
        mode: ``independent`` (ε keyed by seed, image id and draw), ``shared`` (one ε for every image), ``rolled`` (the
            shared ε, cyclically shifted by a random offset per image) or ``none`` (ε = 0: √ᾱ_t · z).
        scale_again: multiply the noisy latent by √ᾱ_t once more, as the library of Loos & Linhardt (2025) does for
            checkpoints with an Euler scheduler.
        prediction: what the network predicts: ``epsilon``, ``v_prediction`` or ``sample``, see :meth:`target`.
    """

    def __init__(
        self,
        alphas_cumprod: Float[Tensor, " t"],
        mode: str = "independent",
        scale_again: bool = False,
        prediction: str = "epsilon",
    ) -> None:
        self.alphas_cumprod, self.prediction = alphas_cumprod, prediction
        settings.check("backbone", noise=mode)
        self.mode = mode
        self.scale_again = scale_again

    def __call__(
        self,
        latents: Float[Tensor, "b c h w"],
        timestep: int,
        ids: Sequence[str],
        seed: int = 0,
        draw: int = 0,
        cut: Cut | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Noisy latents, float32, on the latents' device. ``ids`` name the images; ``draw`` numbers repeated draws of noise.

        With ``cut``, noise is drawn for a larger latent, of which these are windows, and cut like them.
        """
        signal, scale, noise = self._parts(latents, timestep, ids, seed, draw, cut)
        noisy = signal * latents.float() + scale * noise
        return noisy * signal if self.scale_again else noisy

    def target(
        self, latents: Float[Tensor, "b c h w"], timestep: int, ids: Sequence[str], seed: int = 0, draw: int = 0
    ) -> Float[Tensor, "b c h w"]:
        """What the network is trained to predict from the noisy latents of the same arguments, float32.

        It is the noise ε (``epsilon``), the velocity √ᾱ_t · ε − √(1 − ᾱ_t) · z (``v_prediction``; Salimans & Ho 2022) or the
        clean latent z (``sample``).

        Raises:
            InputError: another ``prediction``.
        """
        signal, scale, noise = self._parts(latents, timestep, ids, seed, draw)
        targets = {
            "epsilon": noise,
            "v_prediction": signal * noise - scale * latents.float(),
            "sample": latents.float(),
        }
        if self.prediction not in targets:
            raise InputError(
                f"Expected prediction_type of the scheduler to be {', '.join(targets)}, but got {self.prediction!r}. "
                "Correct it in scheduler_config.json."
            )
        return targets[self.prediction]

    def _parts(
        self, latents: Tensor, timestep: int, ids: Sequence[str], seed: int, draw: int, cut: Cut | None = None
    ) -> tuple[float, float, Float[Tensor, "b c h w"]]:
        """Factors of latent and noise, and ε of every image on the device of its latent."""
        self.check(timestep)
        if len(ids) != len(latents):
            raise InputError(f"Expected one entry of ids per image, but got {len(ids)} ids for {len(latents)} images.")
        noise = torch.stack([self._cut(latents.shape[1:], image, seed, draw, cut) for image in ids])
        return *self.scales(timestep), noise.to(latents.device)

    def scales(self, timestep: int) -> tuple[float, float]:
        """Factors of latent and noise: √ᾱ_t and √(1 − ᾱ_t)."""
        alpha = self.alphas_cumprod[timestep].item()
        return alpha**0.5, (1 - alpha) ** 0.5

    def steps(self, timestep: Any) -> tuple[int, ...]:
        """One timestep, or several, as integers. Raises InputError unless there is one, and each is in [0, T)."""
        steps = list(timestep) if np.iterable(timestep) and not isinstance(timestep, str) else [timestep]
        if not steps:
            raise InputError(
                "Expected timestep to be an integer or a list of integers, but got an empty list. Use timestep=50."
            )
        steps = [getattr(step, "tolist", lambda step=step: step)() for step in steps]  # of arrays and tensors
        for step in steps:
            self.check(step)
        return tuple(map(int, steps))

    @property
    def noise_levels(self) -> Float[Tensor, " t"]:
        """σ of every timestep, float64: the time in (0, 1) at which rectified flow, x = (1 − σ) z + σ ε, has the same
        signal-to-noise ratio. x is then that of this schedule divided by √ᾱ + √(1 − ᾱ)."""
        signal, noise = self.alphas_cumprod.double().sqrt(), (1 - self.alphas_cumprod.double()).sqrt()
        return noise / (signal + noise)

    def nearest(self, noise_level: Any) -> tuple[int, ...]:
        """The timesteps whose :attr:`noise_levels` are nearest to one or several.

        Raises:
            InputError: a level that no timestep has, or two that are nearest to one timestep.
        """
        known = self.noise_levels
        low, high = round(known[0].item(), 3), round(known[-1].item(), 3)
        found: dict[int, float] = {}
        for level in noise_level if np.iterable(noise_level) else [noise_level]:
            expect.between("noise_level", level, low, high, "These are the levels of the checkpoint's schedule.")
            step = int((known - level).abs().argmin())
            if step in found:
                raise InputError(
                    f"Expected noise_level to name different timesteps, but got {found[step]} and {level}, both nearest to "
                    f"timestep {step}. Leave one out."
                )
            found[step] = level
        return tuple(found)

    def check(self, timestep: object) -> None:
        """Raises InputError unless ``timestep`` is an integer in [0, T)."""
        last = len(self.alphas_cumprod) - 1
        expect.between("timestep", timestep, 0, last, "Features are usually read between 1 and 300.")
        expect.integer("timestep", timestep)

    def _cut(self, shape: torch.Size, image: str, seed: int, draw: int, cut: Cut | None) -> Tensor:
        if cut is None:
            return self._noise(shape, image, seed, draw)
        channels, height, width = shape
        larger = self._noise(torch.Size((channels, height + cut.larger, width + cut.larger)), image, seed, draw)
        return larger.roll((-cut.top, -cut.left), (-2, -1))[:, :height, :width]

    def _noise(self, shape: torch.Size, image: str, seed: int, draw: int) -> Tensor:
        if self.mode == "none":
            return torch.zeros(shape)
        if self.mode == "independent":
            return torch.randn(shape, generator=keyed_generator("noise", seed, image, draw))
        shared = torch.randn(shape, generator=keyed_generator("shared noise", seed, draw))
        if self.mode == "shared":
            return shared
        offsets = keyed_generator("roll", seed, image, draw)
        rows, cols = (int(torch.randint(side, (), generator=offsets)) for side in shape[-2:])
        return shared.roll((rows, cols), dims=(-2, -1))


class FlowSchedule(NoiseSchedule):
    """(1 − σ) · z + σ · ε of rectified flow, with σ = timestep / 1000.

    σ is the noise level that the network sees, after any shift by a scheduler, whose settings have no effect here.

    Args:
        mode: as in :class:`NoiseSchedule`.

    Example:
        >>> import torch
        >>> noisy = FlowSchedule("none")(torch.ones(1, 16, 2, 2), 260, ids=["a"])
        >>> round(noisy.mean().item(), 6)
        0.74
    """

    def __init__(self, mode: str = "independent") -> None:
        sigma = torch.arange(1000, dtype=torch.float64) / 1000
        super().__init__(((1 - sigma) ** 2 / ((1 - sigma) ** 2 + sigma**2)).float(), mode)  # of equal signal-to-noise ratio

    def check(self, timestep: object) -> None:
        """Raises InputError unless ``timestep`` is an integer in [0, 1000)."""
        fix = "It is 1000 times the noise level σ."
        expect.between("timestep", timestep, 0, 999, fix)
        expect.integer("timestep", timestep, fix)

    def scales(self, timestep: int) -> tuple[float, float]:
        """Factors of latent and noise: 1 − σ and σ."""
        return 1 - timestep / 1000, timestep / 1000

    @property
    def noise_levels(self) -> Float[Tensor, " t"]:
        """σ of every timestep, float64."""
        return torch.arange(1000, dtype=torch.float64) / 1000

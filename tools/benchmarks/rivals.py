"""``sdhelper`` 1.0.0 (the library of Loos & Linhardt 2025) and sdprobe, on the same weights, images and noise."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from sdprobe.backbones import FrozenSD
from sdprobe.backbones.noise import NoiseSchedule
from sdprobe.utilities.errors import InputError

SEED, TIMESTEP = 42, 50


class Sdhelper:
    """Extraction by the library with its defaults: fp32 on a CPU, every module of the U-Net, results on the CPU."""

    def __init__(self, folder: Path) -> None:
        try:
            from sdhelper import SD
        except ImportError as error:
            raise InputError(
                "Expected sdhelper to be installed, but it is not. Install it with pip install --no-deps sdhelper==1.0.0, "
                "or the extra bench."
            ) from error
        self.library: Any = SD(str(folder), disable_progress_bar=True, local_files_only=True)

    def extract(self, pictures: Sequence[Image], positions: Sequence[str]) -> list[Any]:
        """A representation of every picture, by published layer name."""
        found: list[Any] = self.library.img2repr(list(pictures), list(positions), TIMESTEP, seed=SEED)
        return found


class SdhelperNoise(NoiseSchedule):
    """The noise that ``sdhelper`` draws for a batch of so many images: the same for all, after the posterior's samples."""

    def __init__(self, schedule: NoiseSchedule, batch: int) -> None:
        super().__init__(schedule.alphas_cumprod)
        self.batch = batch

    def _noise(self, shape: torch.Size, image: str, seed: int, draw: int) -> Tensor:
        generator = torch.Generator().manual_seed(SEED)
        torch.randn((self.batch, *shape), generator=generator)
        # its latents are channels-last, which torch fills in another order
        return torch.empty((1, *shape)).to(memory_format=torch.channels_last).normal_(generator=generator)[0]


def ours(folder: Path, batch: int, precision: str = "auto") -> FrozenSD:
    """sdprobe's backbone on a folder, with the inputs of ``sdhelper``: images in [0, 1], its noise."""
    sd = FrozenSD.from_pretrained(str(folder), precision=precision, vae_input="unit")
    sd.noise = SdhelperNoise(sd.noise, batch)
    return sd


def disagreement(one: Tensor, other: Tensor) -> float:
    """Relative distance ‖a − b‖₂ / ‖b‖₂ of two tensors of the same shape; infinite where a value is not finite.

    Raises:
        InputError: shapes differ.
    """
    if one.shape != other.shape:
        raise InputError(f"Expected two results of the same shape, but got {tuple(one.shape)} and {tuple(other.shape)}.")
    one, other = one.double(), other.double()
    distance = float((one - other).norm() / other.norm())
    return distance if distance < torch.inf else torch.inf


def require_equal(grids: dict[str, Tensor], theirs: Sequence[Any], names: dict[str, str], tolerance: float) -> float:
    """The largest disagreement over layers; ``names`` maps our layer → theirs.

    Raises:
        InputError: it exceeds ``tolerance``, so the two compute different things and their speed is not comparable.
    """
    worst = {
        layer: disagreement(grids[layer].cpu(), torch.cat([found[name] for found in theirs])) for layer, name in names.items()
    }
    layer = max(worst, key=lambda key: worst[key])
    if not worst[layer] <= tolerance:
        raise InputError(
            f"Expected equal activations within {tolerance:g}, but layer {layer} differs by {worst[layer]:.3g}. "
            "Find the difference before you compare speed."
        )
    return worst[layer]

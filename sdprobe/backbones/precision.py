"""Choice of device and dtype of a backbone, and the check that its activations are finite."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from sdprobe.utilities import settings
from sdprobe.utilities.errors import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(device: str = "auto") -> torch.device:
    """``auto`` is the first CUDA device, else the CPU. Raises InputError for CUDA where there is none."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings.check("", device=device)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"Expected device={device} to have a CUDA GPU, but torch finds none. Use device=cpu.")
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError(
            f"Expected device={device} to exist, but torch finds {count} GPUs. Use device=cuda:{count - 1} or less."
        )
    return chosen


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """dtype of the frozen networks: ``auto`` takes bf16 where it is fast, else fp16 on a GPU, else fp32.

    bf16 is fast on CPUs with AMX (a Stable Diffusion U-Net runs 4 to 5 times faster) and on GPUs since Ampere.
    """
    if precision != "auto":
        if precision not in DTYPES:
            raise InputError(f"Expected precision to be auto, {', '.join(DTYPES)}, but got '{precision}'. Use auto.")
        return DTYPES[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


def memory_of(device: torch.device) -> int:
    """Bytes of memory that a device has, used or not, so that the same machine gives the same batches."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def name_of(dtype: torch.dtype) -> str:
    """``bf16`` for torch.bfloat16, and so on."""
    return next(name for name, value in DTYPES.items() if value == dtype)


def check_finite(grids: dict[str, Tensor], ids: Sequence[str], dtype: torch.dtype, edited: Sequence[str] = ()) -> None:
    """Raises InputError, naming layer and image, where grids (B, ...) computed in ``dtype`` hold NaN or Inf. Layers in
    ``edited`` were edited inside the network."""
    # a sum is finite only if all its terms are, which takes one pass and one sync; a sum may overflow, so check then
    if torch.stack([grid.sum() for grid in grids.values()]).isfinite().all():
        return
    finite = torch.stack([grid.isfinite().flatten(1).all(1) for grid in grids.values()])  # (layers, B)
    if finite.all():
        return
    layer, image = (~finite).nonzero()[0].tolist()
    remedy = "Use backbone.precision=fp32" + (" (or bf16)" if dtype == torch.float16 else "")
    if dtype == torch.float32:
        remedy = "The weights or the latent of the image are damaged. Load or encode them again"
    if edited:
        other = "" if dtype == torch.float32 else ", or use backbone.precision=fp32"
        remedy = f"Check that the edit of {' and of '.join(edited)} returns finite numbers{other}"
    raise InputError(
        f"Expected finite activations, but layer {list(grids)[layer]} has NaN or Inf for image {ids[image]} in "
        f"{name_of(dtype)}. {remedy}."
    )

"""Peak memory of a run: of the GPU where there is one, else of this process."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

PROCESS = Path("/proc/self")


def forget_peak() -> None:
    """Count from now on: one process may run several jobs of a sweep, one after the other."""
    with suppress(OSError):  # not everywhere, nor for everyone
        (PROCESS / "clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: torch.device) -> int:
    """Bytes, the most since :func:`forget_peak` or the start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (PROCESS / "status").is_file():  # what getrusage tells may be the maximum of the process that began this one
        [line] = [line for line in (PROCESS / "status").read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

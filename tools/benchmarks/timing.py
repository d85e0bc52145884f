"""Timing in turns, so that a change of the machine's speed affects all works."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


@dataclass
class Timed:
    """Seconds of every turn: wall-clock time and processor time."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def in_turns(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Timed]:
    """One untimed turn each, then ``rounds`` timed ones."""
    for work in works.values():
        work()
    timed = {name: Timed() for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            wall, cpu = time.perf_counter(), time.process_time()
            result = work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            timed[name].wall.append(time.perf_counter() - wall)
            timed[name].cpu.append(time.process_time() - cpu)
            del result
    return timed


def times_faster(slow: Timed, fast: Timed) -> tuple[float, float]:
    """Median over turns of the ratios of wall-clock time and of processor time, which other processes hardly affect."""
    wall = statistics.median(a / b for a, b in zip(slow.wall, fast.wall, strict=True))
    return wall, statistics.median(a / b for a, b in zip(slow.cpu, fast.cpu, strict=True))


def matrix_product(side: int = 4096, dtype: torch.dtype = torch.bfloat16) -> Callable[[], torch.Tensor]:
    """A product of two square matrices: 2 · side³ floating-point operations."""
    left, right = torch.randn(2, side, side, dtype=dtype).unbind()
    out = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out)


def operations(work: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products, convolutions and attention of a work."""
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop}  # not counted by FlopCounterMode
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        work()
    return counter.get_total_flops()


def _attention_flop(query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
    """Of two matrix products per head, from the shapes (B, heads, tokens, width)."""
    batch, heads, tokens, width = query
    return 4 * batch * heads * tokens * key[2] * width


def hardware() -> str:
    """Processor, threads and load of this machine, and versions of libraries."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    amx = "AMX, " if torch.cpu._is_amx_tile_supported() else ""
    load = os.getloadavg()[0]
    return f"{model}, {amx}{torch.get_num_threads()} threads, torch {torch.__version__}, load {load:.1f}"

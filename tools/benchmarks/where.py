"""Time of a work by kind of operation."""

from collections import Counter
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

KINDS = {
    "convolution": ("convolution",),
    "attention": ("attention",),
    "linear": ("addmm", "::mm", "bmm", "linear"),
    "normalisation": ("norm",),
    "activation functions": ("silu", "gelu"),
    "copies": ("copy_", "cat", "fill_", "zero_"),
}


def shares(work: Callable[[], object]) -> str:
    """Percentages of self time by kind of operation, largest first."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        work()
    spent: Counter[str] = Counter()
    for event in profiled.key_averages():
        kind = next((kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)), "the rest")
        spent[kind] += event.self_cpu_time_total
    total = spent.total()
    return ", ".join(f"{kind} {100 * value / total:.0f} %" for kind, value in spent.most_common())

"""Time that mitigations add to extraction: ``python -m tools.benchmarks.mitigations``.

Every fitted mitigation transforms the grids of mid, up_0 and up_1. It is timed in turns with the U-Net pass, on a network in
the shape of SD-1.5 with random weights; target: at most 5 % each. Prints Markdown.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from sdprobe.backbones import FrozenSD
from sdprobe.mitigations import (
    ChannelDiscard,
    Leace,
    Map,
    Mitigation,
    OutlierTokens,
    PcaDrop,
    PositionMean,
    RandomRank,
    Standardize,
)
from tools.benchmarks.shaped import write_pipeline
from tools.benchmarks.timing import Timed, hardware, in_turns, times_faster

LAYERS = ("mid", "up_0", "up_1")
KINDS: dict[str, type[Mitigation]] = {
    "standardize": Standardize, "position_mean": PositionMean, "leace": Leace, "outlier_tokens": OutlierTokens,
    "channel_discard": ChannelDiscard, "random_rank": RandomRank, "pca_drop": PcaDrop,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the time of each mitigation relative to a pass."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks.mitigations", description=main.__doc__)
    parser.add_argument("--narrower", type=int, default=1, help="how many times narrower than SD-1.5 the U-Net is")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    out = Console(width=10_000, highlight=False)
    out.print(f"{hardware()}\n\n| mitigation | added to extraction |\n|---|---|", markup=False)
    with tempfile.TemporaryDirectory() as folder:
        sd = FrozenSD.from_pretrained(str(write_pipeline(Path(folder) / "sd", (options.narrower, 4))))
        side = options.size // 8
        noise = torch.randn(options.images, 4, side, side)
        names = [str(number) for number in range(options.images)]

        def extract() -> dict[str, torch.Tensor]:
            return sd.grids(noise, names, LAYERS, 50, 0, "")

        grids = extract()
        fits = {label: {layer: _fitted(kind(), grid) for layer, grid in grids.items()} for label, kind in KINDS.items()}

        def transform(label: str) -> None:
            for layer, grid in grids.items():
                fits[label][layer].transform(grid)

        works = {"extraction": extract} | {label: (lambda label=label: transform(label)) for label in KINDS}
        timed = in_turns(works, options.rounds)
    for label in KINDS:
        out.print(f"| {label} | {_share(timed[label], timed['extraction'])} |", markup=False)


def _fitted(mitigation: Mitigation, grid: torch.Tensor) -> Map:
    """Fitted on as many images as its basis wants: this grid with fresh noise; what it removes does not matter here."""
    batches = (grid.float() + torch.randn_like(grid, dtype=torch.float32) for _ in range(-(-96 // len(grid))))
    return mitigation.fit(batches)


def _share(part: Timed, whole: Timed) -> str:
    wall, cpu = times_faster(part, whole)
    return f"{100 * wall:.2g} % ({100 * cpu:.2g} % of processor time)"


if __name__ == "__main__":
    main()

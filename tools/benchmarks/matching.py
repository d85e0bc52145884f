"""Speed of matching with upsampled similarities instead of upsampled features: ``python -m tools.benchmarks.matching``.

Both methods find, for every keypoint of a category's pairs, the most similar pixel of the target picture on bilinearly
upsampled grids (DIFT's protocol, arXiv 2306.03881). They use the same random activations and are timed in turns. DIFT's code
upsamples the features of both pictures of a pair and normalises all pixels of the target for every keypoint. sdprobe calls
``sdprobe.estimators.matching.upsampled_argmax`` once per target. Token matching (``ours``) is timed as well.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from sdprobe.estimators.matching import best, cosines, upsampled_argmax
from sdprobe.tokens.geometry import Placement, sampled_at

SIZE = 512  # pixels of the network's input


def enlarged_by_keypoint(grids: Tensor, points: Tensor, target: int, pictures: int, side: int) -> Tensor:
    """DIFT's method, pair by pair and keypoint by keypoint; (pictures − 1, k, 2) pixels (x, y)."""
    pixels = []
    for source in (index for index in range(pictures) if index != target):
        one, other = (interpolate(grids[i][None], (side, side), mode="bilinear")[0] for i in (source, target))
        for x, y in points[source].long().tolist():
            vector = normalize(one[:, y, x], dim=0)
            similarity = normalize(other.flatten(1).T, dim=1) @ vector
            index = int(similarity.argmax())
            pixels.append((index % side, index // side))
    return torch.tensor(pixels).view(pictures - 1, -1, 2)


def enlarged_at_once(grids: Tensor, points: Tensor, target: int, pictures: int, side: int) -> Tensor:
    """The same pixels for all keypoints of all pairs with this target."""
    scale = SIZE / side
    placement, stride = Placement((scale, scale), (0.0, 0.0)), SIZE / grids.shape[2]
    sources = [index for index in range(pictures) if index != target]
    tokens = torch.cat([sampled_at(grids[i], (points[i].floor() + 0.5) * scale, stride) for i in sources])
    return upsampled_argmax(tokens, grids[target], placement, side, side, SIZE).view(pictures - 1, -1, 2)


def tokens_at_once(grids: Tensor, points: Tensor, target: int, pictures: int, side: int) -> Tensor:
    """Token matching without masks."""
    stride = side / grids.shape[2]
    cells = [(points[i] / stride).long() for i in range(pictures) if i != target]
    sources = [index for index in range(pictures) if index != target]
    tokens = torch.cat([grids[i][:, cell[:, 1], cell[:, 0]].T for i, cell in zip(sources, cells, strict=True)])
    return best(cosines(tokens, grids[target]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print seconds per keypoint and the ratio of the two."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks.matching", description=main.__doc__)
    parser.add_argument("--channels", type=int, default=1280, help="as up_1 of SD-1.5 has")
    parser.add_argument("--tokens", type=int, default=32, help="side of the grid, as up_1 has at 512 pixels")
    parser.add_argument("--side", type=int, default=400, help="side of the original pictures in pixels")
    parser.add_argument(
        "--pictures", type=int, default=4, help="pictures of the category; all others are matched with each target"
    )
    parser.add_argument("--keypoints", type=int, default=8, help="keypoints of each picture")
    parser.add_argument("--rounds", type=int, default=2, help="target pictures")
    options = parser.parse_args(arguments)
    generator = torch.Generator().manual_seed(0)
    grids = torch.randn(options.pictures, options.channels, options.tokens, options.tokens, generator=generator)
    points = torch.rand(options.pictures, options.keypoints, 2, generator=generator) * options.side
    methods = {
        "enlarged, by keypoint (DIFT)": enlarged_by_keypoint,
        "enlarged, at once": enlarged_at_once,
        "tokens": tokens_at_once,
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    agree = []
    for target in range(options.rounds):
        answers = {}
        for name, method in methods.items():
            started = time.perf_counter()
            answers[name] = method(grids, points, target, options.pictures, options.side)
            seconds[name].append((time.perf_counter() - started) / ((options.pictures - 1) * options.keypoints))
        slow, fast, _ = answers.values()
        agree.append((slow == fast).all(-1).double().mean().item())
    table = Table(
        title=f"{options.channels} × {options.tokens}² activations, pictures of {options.side}² pixels, "
        f"{torch.get_num_threads()} threads; same pixel for {100 * statistics.mean(agree):.1f} % of keypoints",
        title_justify="left",
    )
    for column in ("matching", "ms/keypoint (median)", "times faster"):
        table.add_column(column, justify="left" if column == "matching" else "right")
    for name in methods:
        ratio = statistics.median(a / b for a, b in zip(seconds["enlarged, by keypoint (DIFT)"], seconds[name], strict=True))
        table.add_row(name, f"{1000 * statistics.median(seconds[name]):.2f}", f"{ratio:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()

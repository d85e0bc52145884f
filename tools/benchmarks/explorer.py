"""The explorer's page, made and shown: ``python -m tools.benchmarks.explorer``.

Four rendered images and twelve layers of the demo model, trained, one noise level. It times extraction, keeping tokens and
writing the page. Chromium then opens the file without network, and draws it for tokens along a diagonal.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console

from sdprobe import FrozenSD
from sdprobe.backbones.architectures import DEMO
from sdprobe.reports.explorer import page
from sdprobe.scenes import scene_pictures
from sdprobe.tokens.batch import GridBatch
from sdprobe.tokens.groups import token_groups
from sdprobe.tokens.kept import KeptTokens, Plan
from tools.benchmarks.timing import hardware

LAYERS = ["stages", "up_1_res_0"]  # 11 and one more
FRAMES = 120
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOVER = """
const [frames, done] = arguments, times = [];
for (let i = 0; i < frames; i++) {
  Object.assign(explorer.state, {u: (i + 0.5) / frames, v: (i + 0.5) / frames});
  const start = performance.now();
  explorer.render();
  times.push(performance.now() - start);
}
done(times);
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print seconds, megabytes and milliseconds beside their targets."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks.explorer", description=main.__doc__)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--size", type=int, default=512, help="image side in pixels")
    options = parser.parse_args(arguments)
    out = Console(width=10_000, highlight=False)
    out.print(f"{hardware()}\n\n| work | measured | target |\n|---|---|---|", markup=False)
    pictures = scene_pictures(options.images, size=options.size)
    sd = FrozenSD.from_pretrained(str(DEMO))
    started = time.perf_counter()
    grids = sd.activations(pictures, LAYERS)
    extracted = time.perf_counter()
    content = made(grids, pictures)
    ended = time.perf_counter()
    out.print(f"| extraction of {len(grids)} layers of {options.images} images | {extracted - started:.1f} s | |", markup=False)
    out.print(f"| tokens kept and page made | {ended - extracted:.1f} s | ≤ 10 s |", markup=False)
    out.print(f"| size of the page | {len(content) / 1e6:.1f} MB | ≤ 10 MB |", markup=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "explorer.html"
        path.write_text(content)
        paint, frames = shown(path, Path(folder) / "profile")
    out.print(f"| first paint | {paint:.0f} ms | < 1000 ms |", markup=False)
    out.print(
        f"| a frame while hovering, median and 95 % | {median(frames):.1f} ms, {np.quantile(frames, 0.95):.1f} ms | < 16 ms |",
        markup=False,
    )


def made(grids: dict[str, torch.Tensor], pictures: Sequence[Any]) -> str:
    """The page of these grids."""
    plan = Plan.of({layer: (grid.shape[1], grid.shape[2], grid.shape[3]) for layer, grid in grids.items()}, len(pictures), 10)
    kept = KeptTokens(plan)
    masks = {layer: token_groups(grid) for layer, grid in grids.items()}
    kept.take(GridBatch(grids, masks, torch.arange(len(pictures)), torch.arange(len(pictures))))
    tokens = {name: tensor.numpy() for name, tensor in kept.arrays.items()}
    tokens["names"] = np.array([f"scene {number}" for number in range(len(pictures))])
    tokens["pictures"] = np.stack([np.asarray(picture.resize((256, 256))) for picture in pictures])
    return page(tokens, "demo", timesteps=[50])


def shown(path: Path, profile: Path) -> tuple[float, list[float]]:
    """(milliseconds until the first paint, milliseconds of every frame) in a browser that is used for this alone."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, BROWSERS)))
    for option in ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--window-size=1280,900"):
        options.add_argument(option)
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver") or "chromedriver"))
    try:
        browser.get("about:blank")
        browser.get(path.as_uri())
        browser.execute_async_script("setTimeout(arguments[0], 300)")
        paint = browser.execute_script("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
        browser.execute_async_script(HOVER, 5)  # decodes the tokens
        return float(paint), browser.execute_async_script(HOVER, FRAMES)
    finally:
        browser.quit()


if __name__ == "__main__":
    main()

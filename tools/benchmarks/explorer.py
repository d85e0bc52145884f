"""The explorer's page, made and shown: ``python -m tools.benchmarks.explorer``.

Four rendered images and twelve layers of the demo model, trained, one noise level. It times extraction, keeping tokens and
writing the page. Chromium then opens the file without network, and hovers over tokens along a diagonal, one move per frame.

Other work on the machine makes these times longer. Frames of an empty page show by how much: they are 16.7 ms apart without it.
Processor time depends on it least.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console

from sdprobe import FrozenSD
from sdprobe.backbones.embedded import DEMO
from sdprobe.reports.explorer import page
from sdprobe.scenes import scene_pictures
from sdprobe.tokens.batch import GridBatch
from sdprobe.tokens.groups import token_groups
from sdprobe.tokens.kept import KeptTokens, Plan
from tools.benchmarks.timing import hardware

LAYERS = ["stages", "up_1_res_0"]  # 11 and one more
FRAMES = 120
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# one move per frame → milliseconds of every script and between frames; on a page without explorer only the latter
HOVER = """
const [frames, done] = arguments, scripts = [], gaps = [];
let i = 0, last = null;
function step(now) {
  if (last !== null) gaps.push(now - last);
  last = now;
  if (i === frames) return done([scripts, gaps]);
  const start = performance.now();
  if (window.explorer) {
    Object.assign(explorer.state, {u: (i + 0.5) / frames, v: (i + 0.5) / frames});
    explorer.render();
  }
  scripts.push(performance.now() - start);
  i++;
  requestAnimationFrame(step);
}
requestAnimationFrame(step);
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
        seen = shown(path, Path(folder) / "profile")
    out.print(f"| first paint | {seen.paint:.0f} ms | < 1000 ms |", markup=False)
    for work, times, target in (
        ("script of a frame while hovering", seen.scripts, "< 16 ms"),
        ("between two frames while hovering", seen.gaps, "16.7 ms"),
        ("between two frames of an empty page", seen.empty, ""),
    ):
        text = f"{median(times):.1f} ms, {np.quantile(times, 0.95):.1f} ms"
        out.print(f"| {work}, median and 95 % | {text} | {target} |", markup=False)
    out.print(f"| processor time of the page's main thread per frame | {seen.busy:.1f} ms | |", markup=False)


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


class Seen(NamedTuple):
    """Milliseconds to the first paint, of scripts, between frames, between frames of an empty page, of processor per frame."""

    paint: float
    scripts: list[float]
    gaps: list[float]
    empty: list[float]
    busy: float


def shown(path: Path, profile: Path) -> Seen:
    """How long a page takes in a browser that is used for this alone."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, BROWSERS)))
    for option in ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--window-size=1280,900"):
        options.add_argument(option)
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver") or "chromedriver"))
    try:
        browser.set_script_timeout(120)
        browser.get("about:blank")
        _, empty = browser.execute_async_script(HOVER, FRAMES)
        browser.get(path.as_uri())
        browser.execute_async_script("setTimeout(arguments[0], 300)")
        paint = browser.execute_script("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
        browser.execute_async_script(HOVER, 5)  # decodes the tokens
        browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        before = _busy(browser)
        scripts, gaps = browser.execute_async_script(HOVER, FRAMES)
        return Seen(float(paint), scripts, gaps, empty, 1000 * (_busy(browser) - before) / FRAMES)
    finally:
        browser.quit()


def _busy(browser: Any) -> float:
    """Seconds that the page's main thread has computed."""
    metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return float(next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration"))


if __name__ == "__main__":
    main()

"""The demo model's explorer for the documentation: ``python -m tools.explorer``.

It runs ``probe=explore`` on rendered scenes, and writes ``docs/explorer_demo.html``, two pictures of it, and one of a page
with a planted position code. The pictures need Chromium and selenium (``make test-browser`` installs the latter).
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import sdprobe
from sdprobe.mitigations import PositionMean
from sdprobe.scenes import scene_pictures

ROOT = Path(__file__).parents[1]
COMMAND = (
    "probe=explore", "backbone=demo", "block=[down_1,mid,up_0,up_1]", "images=scene_pairs", "images.limit=240",
    "images.size=512", "mitigation=position_mean", "datamodule.shown=2", "report.megabytes=2.8", "logger=none",
)  # fmt: skip
ADDRESS = "#image=0&second=1&layer=up_1"
PLANTED = "#image=0&second=1&layer=planted&row=3&col=12"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# name → width and height in pixels, pixels per pixel, dark
PICTURES = {
    "explorer": (1180, 820, 1.25, False),
    "explorer_phone": (390, 1000, 1.25, True),
    "explorer_planted": (1180, 560, 1.25, False),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page and its pictures."""
    parser = argparse.ArgumentParser(prog="python -m tools.explorer", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    options = parser.parse_args(arguments)
    page = options.out / "explorer_demo.html"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", *COMMAND, f"hydra.run.dir={folder}/run", f"cache_dir={options.cache.resolve()}"]
        subprocess.run(command, cwd=ROOT, check=True)
        shutil.copyfile(f"{folder}/run/explorer.html", page)
        browser = opened(Path(folder) / "profile")
        try:
            for name, look in PICTURES.items():
                shown = (planted(Path(folder)), *look, PLANTED) if name == "explorer_planted" else (page, *look, ADDRESS)
                taken(browser, *shown).save(options.out / f"{name}.png", optimize=True)
        finally:
            browser.quit()


def planted(folder: Path) -> Path:
    """A page of random tokens with the same waves of row and column in both pictures, beside ``position_mean``."""
    side, channels = 16, 32
    generator = torch.Generator().manual_seed(0)
    place = torch.arange(side) / side * torch.tensor([1, 2, 3, 4])[:, None] * torch.pi  # (4, side)
    waves = torch.cat([place.sin(), place.cos()])
    code = torch.cat([waves[:, :, None].expand(-1, -1, side), waves[:, None].expand(-1, side, -1)])  # (16, side, side)
    grids = torch.randn(400, channels, side, side, generator=generator)
    grids[:, : len(code)] += 3 * code
    fitted = PositionMean().fit(grids[2:])
    pages = [("planted", grids[:2]), ("repaired", fitted.transform(grids[:2]))]
    return sdprobe.explore(dict(pages), scene_pictures(2, size=256)).save(folder / "planted.html")


def opened(profile: Path) -> Any:
    """A browser with an empty profile."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, BROWSERS)))
    for option in ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"):
        options.add_argument(option)
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver") or "chromedriver"))


def taken(browser: Any, page: Path, width: int, height: int, ratio: float, dark: bool, address: str) -> Image.Image:
    """A picture of the page in a window of this size."""
    size = {"width": width, "height": height, "deviceScaleFactor": ratio, "mobile": width < 500}
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get("about:blank")
    browser.get(f"{page.resolve().as_uri()}{address}")
    browser.execute_async_script("setTimeout(arguments[0], 500)")
    with Image.open(BytesIO(browser.get_screenshot_as_png())) as picture:
        return picture.convert("RGB")


if __name__ == "__main__":
    main()

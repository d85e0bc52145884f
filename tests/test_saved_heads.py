"""The heads of a run are loaded by three lines, and give its own test numbers on activations that are computed anew."""

import re
from pathlib import Path

import pytest
import torch

from datamodules.activations import ActivationDataModule
from datamodules.images.scenes import Scenes
from sdprobe import FrozenSD, heads
from sdprobe.runs.record import clear
from sdprobe.utilities.errors import InputError

SMALL = [
    "backbone=tiny", "backbone.precision=fp32", "images.size=128", "images.limit=16", "probe.solver=closed_form", "twins=0",
    "logger=none", "device=cpu",
]  # fmt: skip


def test_images() -> tuple[list[str], torch.Tensor]:
    """Names and pictures of the images that runs with these settings test on."""
    images = Scenes(size=128, limit=16)
    data = ActivationDataModule(images, FrozenSD.from_pretrained("tiny", device="cpu"), "mid", cache_dir="unused")
    items = [images[index] for index in data.split["test"]]
    return [item["id"] for item in items], torch.stack([item["image"] for item in items])


test_images.__test__ = False  # type: ignore[attr-defined]  # pytest takes it for a test


@pytest.mark.parametrize("mitigation", ["mitigation=[pca_drop,standardize]", "datamodule.compare=true mitigation=pca_drop"])
def test_loaded_heads_give_the_numbers_of_their_run(mitigation: str, launch, tmp_path: Path) -> None:
    run = launch("block=[mid,up_0]", *mitigation.split())
    sd = FrozenSD.from_pretrained("tiny", precision="fp32", device="cpu")
    ids, pictures = test_images()
    grids = sd.activations(pictures, layers=["mid", "up_0"], timestep=50, ids=ids)

    loaded = heads.load(tmp_path / "run", timestep=50, size=128, **sd.describe())
    assert list(loaded) == run.layers
    for layer, head in loaded.items():
        grid = grids[layer.partition("__")[0]]
        rows, columns = torch.meshgrid(*map(torch.arange, grid.shape[2:]), indexing="ij")
        right = (head(grid) == torch.stack([rows, columns])).double().mean().item()
        assert right == pytest.approx(run.value("test", layer, "axis_accuracy"), abs=1e-12)
    with pytest.raises(InputError, match=r"to be used with unet_hash \w{12}… \(tiny, fp32\), which it was fitted on, but got"):
        heads.load(tmp_path / "run", **FrozenSD.from_pretrained("tiny", device="cpu", weights="random").describe())
    clear(tmp_path / "run", resumed=True)  # as the next run into this folder does
    with pytest.raises(InputError, match="Give the folder of a finished run whose probe has heads"):
        heads.load(tmp_path / "run")


def test_the_lines_of_the_documentation_load_a_head(launch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usage = (Path(__file__).parents[1] / "docs" / "usage.md").read_text()
    [lines] = [text for text in re.findall(r"^```python\n(.*?)^```", usage, re.S | re.M) if "RUN_FOLDER" in text]
    small = [text for text in SMALL if not text.startswith(("backbone", "device"))]
    launch(*small, "backbone=demo", small=False)
    capsys.readouterr()
    exec(lines.replace("RUN_FOLDER", str(tmp_path / "run")).replace("512", "128"), {})
    assert capsys.readouterr().out == "torch.Size([2, 2, 2, 2])\n"

"""The similarity sheet: cosines of one token in every layer of a picture, and refusals before any network loads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from sdprobe.backbones import FrozenSD
from sdprobe.reports.__main__ import main
from sdprobe.reports.similarity import defaults_of, layers_of, picture, position
from sdprobe.reports.statistics import similarity_sheet
from sdprobe.utilities.errors import InputError

CONFIGS = Path(__file__).parents[2] / "configs"
SIZE, SIDE = 128, 8
LAYERS = ["conv_in", "down_0", "mid"]  # 16, 8 and 2 tokens a side


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "bird.png"
    coarse = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((150, 140), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def sd() -> FrozenSD:
    return FrozenSD.from_pretrained("tiny", precision="fp32", device="cpu")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A folder with the settings that Hydra writes for a run."""
    settings = ["backbone=tiny", "backbone.revision=abc", "backbone.noise=shared", "backbone.precision=fp32", "device=cuda:3"]
    settings += [f"images.size={SIZE}", "timestep=261", "prompt='a red bird'", "seed=7"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", overrides=settings)
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    OmegaConf.save(config, tmp_path / "run" / ".hydra" / "config.yaml")
    return tmp_path / "run"


@pytest.fixture
def sheet(photo: Path) -> Callable[..., None]:
    """The command on the picture; later options win."""

    def draw(*options: object) -> None:
        fixed = ["--image", photo, "--token", "2,5", "--side", SIDE, "--block", "conv_in,mid", "--device", "cpu"]
        network = [] if "--run" in options else ["--backbone", "tiny"]
        main(["similarity", *map(str, [*fixed, *network, *options])])

    return draw


# --- maps ------------------------------------------------------------------------------------------------------------


def test_layers_noise_and_prompt_reach_the_network(sheet: Callable[..., None], tmp_path: Path, monkeypatch) -> None:
    given: list[tuple[Any, ...]] = []
    original = FrozenSD.activations

    def recorded(self: FrozenSD, images: torch.Tensor, *options: Any) -> dict[str, torch.Tensor]:
        given.append(options)
        return original(self, images, *options)

    monkeypatch.setattr(FrozenSD, "activations", recorded)
    sheet("--size", SIZE, "--timestep", 261, "--seed", 3, "--prompt", "a red bird", "--out", tmp_path / "a.png")
    assert given == [(["conv_in", "mid"], 261, 3, "a red bird")]


def test_the_sheet_has_the_picture_with_the_token_and_a_panel_per_layer(photo: Path) -> None:
    maps = {layer: np.full((4, 4), i / 4) for i, layer in enumerate(LAYERS)}
    figure = similarity_sheet(picture(photo, SIZE).permute(1, 2, 0).numpy(), maps, (2, 5), SIDE, "a title")
    marked, *panels = [panel for panel in figure.axes if panel.images]
    assert marked.collections[0].get_offsets().tolist() == [[5.5, 2.5]], "x is the column, y the row"
    assert [panel.get_title() for panel in figure.axes if panel.images] == ["picture", *LAYERS]
    for panel, table in zip(panels, maps.values(), strict=True):
        np.testing.assert_array_equal(panel.images[0].get_array(), table)
    plt.close(figure)


# --- command ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", ["conv_in,mid", "[conv_in,mid]", "[conv_in, mid]", "mid , conv_in", "mid,conv_i*"])
def test_layers_are_listed_as_for_train(sd: FrozenSD, block: str) -> None:
    assert sd.unet.resolve(layers_of(block)) == ("conv_in", "mid")


@pytest.mark.parametrize("block", ["mid", "up_[12]", "stages", "all", "[ud]*_0"])
def test_one_name_stays_whole(sd: FrozenSD, block: str) -> None:
    assert sd.unet.resolve(layers_of(block)) == sd.unet.resolve(block)


def test_the_command_writes_a_sheet(sheet: Callable[..., None], tmp_path: Path) -> None:
    out = tmp_path / "sheet.PNG"
    sheet("--size", SIZE, "--out", out)
    with Image.open(out) as drawn:
        assert np.asarray(drawn.convert("L")).std() > 5, "a blank sheet"
    assert plt.get_fignums() == []


@pytest.mark.slow
def test_a_run_gives_network_and_noise_and_keeps_the_sheet(
    sheet: Callable[..., None], run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def drawn(path: Path) -> np.ndarray:
        with Image.open(path) as opened:
            return np.asarray(opened.convert("RGB"))

    kept = run_folder / "similarity.png"
    kept.write_bytes(b"the figure of the run")
    sheet("--run", run_folder)
    own = run_folder / "similarity_bird_2_5.png"
    assert capsys.readouterr().out == f"{own}\n" and kept.read_bytes() == b"the figure of the run"
    sheet("--run", run_folder, "--token", "2,6")
    assert own.is_file() and (run_folder / "similarity_bird_2_6.png").is_file(), "another token has its own file"
    typed = ["--size", SIZE, "--timestep", 261, "--prompt", "a red bird", "--seed", 7]
    others = {"early": [*typed, "--timestep", 50], "seed": [*typed, "--seed", 8]}
    for name, options in others.items():
        sheet("--run", run_folder, *options, "--out", tmp_path / f"{name}.png")
        assert not np.array_equal(drawn(tmp_path / f"{name}.png"), drawn(own)), f"{name}: what is typed goes first"
    sheet("--run", run_folder, *typed, "--out", tmp_path / "typed.png")
    np.testing.assert_array_equal(drawn(tmp_path / "typed.png"), drawn(own))


def test_a_run_tells_how_its_network_was_made(run_folder: Path) -> None:
    found = defaults_of(run_folder)
    assert (found["timestep"], found["prompt"], found["seed"], found["size"]) == (261, "a red bird", 7, SIZE)
    wanted = {"path": "tiny", "revision": "abc", "noise": "shared", "precision": "fp32", "weights": "stored"}
    assert wanted.items() <= found["backbone"].items()
    assert "device" not in found["backbone"], "this machine may lack the run's"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--token", "8,5"], "Expected --token to be row,col, each from 0 to 7, but got '8,5'."),
        (["--token", "2"], "Expected --token to be row,col, each from 0 to 7, but got '2'."),
        (["--token", "2,5,1"], "Expected --token to be row,col"),
        (["--token", "a,b"], "Expected --token to be row,col"),
        (["--side", "0"], "Expected --side to be at least 1, but got 0. Use the side of the layer"),
        (["--side", "-8"], "Expected --side to be at least 1, but got -8."),
        (
            ["--out", "nowhere/sheet.png"],
            "Expected --out to be in an existing folder, but 'nowhere' does not exist. Create it first.",
        ),
        (["--out", "sheet.xyz"], ".png, .ps"),
        (["--out", "sheet.xyz"], "but got 'sheet.xyz'. Use --out similarity.png."),
        (["--out", "sheet"], "Expected --out to be a file that ends in ."),
        (["--out", "folder.png"], "Expected --out to be a file that ends in ."),
        (["--image", "none.png"], "Expected --image to be a picture, but none.png cannot be read"),
        (["--image", "text.png"], "Expected --image to be a picture, but text.png cannot be read"),
        (["--run", "nowhere"], "Expected --run to be a run folder with .hydra/config.yaml, but 'nowhere' has none. Give the"),
    ],
)
def test_wrong_options_are_refused_before_the_network_loads(
    sheet: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, options: list[str], message: str
) -> None:
    def load(*arguments: object, **settings: object) -> None:
        raise AssertionError("the network loads")

    monkeypatch.setattr(FrozenSD, "from_pretrained", load)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(SystemExit) as left:
        sheet("--size", SIZE, *options)
    said = capsys.readouterr().err
    assert left.value.code == 1 and message in said and said.count("\n") == 1
    with pytest.raises(AssertionError, match="the network loads"):
        sheet("--size", SIZE)


@pytest.mark.parametrize("error", [Image.DecompressionBombError("too many pixels"), SyntaxError("broken chunk")])
def test_whatever_pillow_raises_is_a_sentence(photo: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(path: Path, formats: list[str]) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(InputError, match=rf"picture, but .*bird\.png cannot be read \({error}\)\. Check the path"):
        picture(photo, SIZE)


def test_a_place_is_a_row_and_a_column() -> None:
    assert position("12,17", 32) == (12, 17) and position(" 0, 31 ", 32) == (0, 31)

"""What is cached is found again only while its numbers stay: a golden number per VERSION, and digests without paths of code."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from datamodules import mitigated
from datamodules.images import pairs, texture
from datamodules.images import views as image_views
from datamodules.images.folder import FolderImages
from datamodules.images.pairs import item_of
from datamodules.images.scenes import Scenes
from datamodules.images.texture import Constants, LatentTextures, Textures
from datamodules.images.views import Cropped, FlipBalanced, RandomCrops, Rotated
from sdprobe.backbones import FrozenSD, latents
from sdprobe.backbones.latents import LatentEncoder
from sdprobe.estimators.closed_form import RidgeMoments
from sdprobe.estimators.layer_statistics import LayerStatistics
from sdprobe.estimators.matching import best, cosines
from sdprobe.metrics.layer_tokens import TokenMeans
from sdprobe.metrics.pck import distances
from sdprobe.runs import record
from sdprobe.runs.measurement import Measurement
from sdprobe.scenes import painting
from sdprobe.tokens import views
from sdprobe.tokens.geometry import tokens_at
from sdprobe.tokens.groups import token_groups
from sdprobe.tokens.views import View
from sdprobe.utilities import pictures
from sdprobe.utilities.settings import RESIZES
from tests.displaced import DisplacedScenes
from tests.metrics.test_pck import PLAIN, random_pictures, table
from tests.mitigations.test_every_mitigation import MAKERS, fed
from tests.mitigations.test_every_mitigation import images as planted
from tools.demo import portraits
from tools.demo.captions import caption
from tools.demo.parts import part_map
from tools.demo.portraits import portrait

SMALL = ["backbone=tiny", "images.size=64", "images.limit=12", "logger=none", "device=cpu", "twins=0"]
# version and numbers, frozen together
FROZEN: dict[ModuleType, tuple[int, str]] = {
    pictures: (2, "0.75956 -1.7414 0.49804 -1.2426 0.7577 -1.5364 0.72251 -1.4821"),
    pairs: (2, "0.35923 -1.3523 0.56219 -1.8223 0.5345 -1.6415"),
    texture: (1, "0.49975 -1.1135 0.54104 -1.3645 0.42871 -0.86282 0.89131 -1.8678 0.0 -1.4243"),
    views: (1, "0.49394 0.16359 0.49476 0.54814 0.4983 0.42794 0.48512 0.23313 0.5 0.18394 0.4968 0.67913"),
    image_views: (
        1,
        "0.5 -0.61202 0.5 -0.85126 0.5 -0.77577 0.52824 -0.54749 0.4825 -0.57372 0.5 -0.77577 0.48855 -0.94439",
    ),
    painting: (
        1,
        "0.30516 -0.4175 0.47344 -1.0184 0.30538 -0.72482 0.29535 -0.64121 0.51468 -1.2269 0.5446 -1.0592 0.30954 "
        "-0.79059 0.51138 -1.3464 0.28928 -0.48606 9.1892 -8.7181 9.1603 -12.188",
    ),
    latents: (1, "-0.11605 -1.8635 -0.14396 1.6586"),
    mitigated: (
        1,
        "-0.05766 0.088203 -0.09473 -0.085483 0.014007 -0.58122 -2.9044 -13.962 -6.7418 0.66223 -0.58879 -4.4814 -4.6973 "
        "-4.2326 -3.9025 -2.4081 -0.29079 -0.11406 1.3282 -4.4344 -3.0413",
    ),
    record: (
        2,
        "0.37597 -0.1456 -0.022255 0.55565 0.90063 0.24915 0.47941 0.15386 0.79551 0.78687 0.04706 0.22312 16.222 0.13285 "
        "0.024132 0.13312 0.13297 0.13543",
    ),
    portraits: (1, "0.35595 -0.63476 0.57511 -1.3212 0.44269 -0.8857 0.25391 0.32294 0.0625 0.15701 0.375 -0.23803"),
}
FITTED = (
    "position_mean", "position_mean_scaled", "leace", "standardize", "zscore", "zca", "random_rank", "pca_drop",
    "shuffled_position", "project", "inpaint", "clip", "channel_discard", "empty_image", "shift_anova",
)  # fmt: skip
STATISTICS = (
    "similarity/corner_content", "similarity_centred/border_interior", "content_similarity_across/corner",
    "relative_norm/corner", "norm_icc/all", "position_variance/all", "channel_energy/all", "credibility/all",
    "credibility/all/ci_low",
)  # fmt: skip
GREY = 4e-3  # a level of eight bits, by which resized pictures may differ between releases of Pillow


def numbers(*tensors: Tensor) -> list[float]:
    """Of each tensor its mean, and a sum with random weights, which sees what moves: as large as the root mean square."""
    found = []
    for flat in (tensor.detach().double().flatten() for tensor in tensors):
        weights = torch.randn(len(flat), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        found += [flat.mean().item(), (flat @ weights).item() / len(flat) ** 0.5]
    return found


def same(module: ModuleType, found: list[float], tolerance: float = 1e-3) -> None:
    frozen = [float(number) for number in FROZEN[module][1].split()]
    told = " ".join(f"{value:.5g}" for value in found)
    assert found == pytest.approx(frozen, rel=1e-3, abs=tolerance), (
        f"numbers changed: raise VERSION in {module.__name__} and freeze the new ones: {told}"
    )


@pytest.fixture(scope="module")
def sd() -> FrozenSD:
    return FrozenSD.from_pretrained("tiny", precision="fp32", device="cpu")


def picture(width: int, height: int, channels: int = 3) -> Image.Image:
    """Edges and flat parts in colour."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 6, channels), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)


# --- a golden number per VERSION ---------------------------------------------------------------------------------------


def test_results_are_raised_with_what_they_are_made_of() -> None:
    frozen = {module.__name__: version for module, (version, _) in FROZEN.items()}
    assert {module.__name__: module.VERSION for module in FROZEN} == frozen, (
        "a VERSION was raised: freeze it here, and raise that of sdprobe/runs/record.py with it: stored results depend on it"
    )


def test_files_become_the_same_squares(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(150, 100, 4).save(tmp_path / "a.png", exif=turned)
    Image.fromarray(np.linspace(0, 65535, 90 * 70).reshape(70, 90).astype(np.uint16)).save(tmp_path / "b.png")
    whole, crops = FolderImages(str(tmp_path), 64), FolderImages(str(tmp_path), 64, crops=2)
    same(pictures, numbers(*(item["image"] for item in (whole[0], whole[1], crops[0], crops[1]))), GREY)


def test_pictures_of_pairs_become_the_same_squares(tmp_path: Path) -> None:
    picture(150, 100).save(tmp_path / "a.png")
    same(pairs, numbers(*(item_of(tmp_path / "a.png", 64, resize) for resize in RESIZES)), GREY)


def test_textures_stay() -> None:
    sources = Textures(64, 3), Textures(64, 3, seed=1, periodic=False), Constants(64, 3), Constants(64, 3, grey=True)
    same(texture, numbers(*(images[2]["image"] for images in sources), LatentTextures(64, 3).latent(1)))


def test_views_show_the_same() -> None:
    image = torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(0))
    shown = [View(shift=(3, -5)), View(flip=True), View(margin=4), View(window=(2, 5), larger=8), View(empty=True)]
    same(views, numbers(*(view.show(image) for view in (*shown, View(shift=(-2, 1), flip=True, margin=2)))))


def test_other_ways_to_show_pictures_stay() -> None:
    images = Textures(128, 2)
    shown = [FlipBalanced(images, 128)[k] for k in (1, 2, 3)] + [RandomCrops(images, 128, crops=2)[k] for k in (0, 3)]
    same(image_views, numbers(*(item["image"] for item in (*shown, Rotated(images)[0], Cropped(images, 16)[1]))))


def test_scenes_stay() -> None:
    scenes = Scenes(64, 16)
    shown = [*(scenes[k]["image"] for k in range(8, 16)), DisplacedScenes(64, 1)[1]["image"]]  # every category
    same(painting, numbers(*shown, *(torch.from_numpy(scenes.scene(k).depth) for k in range(2))), GREY)


def test_latents_stay(sd: FrozenSD) -> None:
    images, vae = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), sd.encoder.vae
    encoders = LatentEncoder(vae), LatentEncoder(vae, "unit", "sample")
    same(latents, numbers(*(encoder(images, ["a", "b"], seed=3) for encoder in encoders)))


def test_fits_stay(sd: FrozenSD) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    passed = sd.activations(images, ["down_1_res_0", "mid", "up_1_attn_0"], timestep=50, seed=3, ids=["a", "b"], draw=1)
    fits = [fed(MAKERS[label]()).transform(planted(20)) for label in FITTED]
    same(mitigated, [*numbers(*passed.values()), *(numbers(grid)[1] for grid in fits)])


def test_results_stay(configure: Callable[..., DictConfig]) -> None:
    measurement = Measurement(configure("probe=position", "block=conv_in", "probe.solver=closed_form", "probe.head=regression"))
    measurement.run()
    found = [measurement.results["test/conv_in/r2/all"]]
    generator = torch.Generator().manual_seed(0)
    grids = torch.randn(48, 8, 6, 6, generator=generator) + torch.randn(8, 6, 6, generator=generator)
    statistics = _statistics(grids[:8], grids[8:])
    found += [statistics[key] for key in STATISTICS]
    ridge = RidgeMoments(8, 1, torch.device("cpu"))
    ridge.update(grids.flatten(2).mT.flatten(0, 1), grids[:, :1].sin().flatten(2).mT.flatten(0, 1))
    found += numbers(ridge.solve()[0])
    found += [best(cosines(grids[0].flatten(1).T, grids[1])).double().mean().item()]
    points = table(random_pictures(36, 0), "pad", 256)
    under = tokens_at(points.target_point * points.target_scale + points.target_offset, 16, 16, 16)
    away = [distances(protocol, points, under, 16) for protocol in PLAIN]
    same(record, [*found, *((each.error / each.reference).mean().item() for each in away)], 1e-4)


def _statistics(fit: Tensor, grids: Tensor) -> dict[str, float]:
    means = TokenMeans(8)
    means.update(fit, token_groups(fit)["high_norm"])
    layer = LayerStatistics((8, 6, 6), 1, means, 40, {"noise": 0, "timestep": 0}, seed=0, similar=False)
    layer.whole(grids, token_groups(grids), torch.arange(40), torch.arange(40))
    inner = grids[:, :, 1:-1, 1:-1]
    layer.cropped(inner, token_groups(inner))
    return layer.compute()


def test_training_data_of_the_demo_model_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [portrait(0, k) for k in range(3)]
    sentence = caption(drawn[1], torch.Generator().manual_seed(4))
    assert sentence == "one quadruped facing right with red ear and grey eye on grey gradient", (
        "raise VERSION in tools.demo.portraits"
    )
    monkeypatch.setattr("tools.demo.parts.names", lambda: ("background", "occluder", "fish/body"))  # all of them take a second
    pixels = [torch.from_numpy(np.array(painting.paint(each, 64))) / 255 for each in drawn]
    same(portraits, numbers(*pixels, *(part_map(each, 16).double() for each in drawn)), GREY)

"""StudyProbe: similarities and norms beside the position probe, on both conventions, whichever way the images come."""

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor

from probes import StudyProbe
from sdprobe.tokens.batch import GridBatch
from sdprobe.tokens.geometry import at_grid
from sdprobe.tokens.groups import border_groups, token_groups
from sdprobe.tokens.mixing import all_tokens, flattened
from sdprobe.utilities.errors import InputError
from tests.planted import corner_code, high_norm_patches

IMAGES, CHANNELS = 41, 16  # so many that there are intervals
PARTS = ("corner", "border", "interior")
SIDES = {"down_0": 8, "up_1": 8, "up_2": 16}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(side: int, seed: int, offset: float = 1.0) -> Tensor:
    """Gaussian tokens around a mean of their own, so that cosines are far from 0."""
    made = torch.randn(IMAGES, CHANNELS, side, side, generator=generator(seed))
    return made + offset * torch.randn(CHANNELS, 1, 1, generator=generator(100 + seed))


class Loader:
    """Lightning reads a plain list as several loaders."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class Study(lightning.LightningDataModule):
    """Serves whole grids and crops as the study's data module does: `shown` images on the way, the rest by a loader."""

    kind = "study"

    def __init__(
        self, whole: dict[str, Tensor], crops: dict[str, Tensor], shown: int, batch: int, labels: Tensor | None
    ) -> None:
        super().__init__()
        self.whole, self.crops, self.shown, self.batch, self.labels = whole, crops, shown, batch, labels
        self.shapes = {layer: tuple(grid.shape[1:]) for layer, grid in whole.items()}
        self.all_images = list(range(IMAGES))
        self.train = range(30)

    def grids(self, index: Tensor, source: dict[str, Tensor] | None = None) -> GridBatch:
        grids = {layer: grid[index] for layer, grid in (source or self.whole).items()}
        masks = {layer: token_groups(grid) for layer, grid in grids.items()}
        if self.labels is not None and source is None:
            for layer, grid in grids.items():
                masks[layer]["labelled"] = at_grid(self.labels[index], *grid.shape[2:])
        return GridBatch(grids, masks, index, index)

    def train_dataloader(self) -> Loader:
        for index in self.order[: self.shown].split(self.batch):
            self.trainer.lightning_module.observe(self.grids(index))  # type: ignore[union-attr, operator]
        return Loader(all_tokens(self.grids(torch.tensor(self.train))))

    def test_dataloader(self) -> list[Loader]:
        rest = self.order[self.shown :].split(self.batch) if self.shown < IMAGES else ()
        crops = [
            [self.grids(index, {layer: grid}) for index in torch.arange(IMAGES).split(self.batch)]
            for layer, grid in self.crops.items()
        ]
        tests = [flattened(self.grids(torch.arange(len(self.train), IMAGES)))]
        return [Loader(tests), Loader([self.grids(index) for index in rest]), *map(Loader, crops)]


def study(
    whole: dict[str, Tensor],
    crops: dict[str, Tensor] | None = None,
    shown: int = IMAGES,
    batch: int = 8,
    labels: Tensor | None = None,
    order: Tensor | None = None,
) -> SimpleNamespace:
    """The probe after a run; crops are the middle of the whole unless given, and images come in order."""
    inner = {layer: grid[:, :, 1:-1, 1:-1] for layer, grid in whole.items()}
    data = Study(whole, inner | (crops or {}), shown, batch, labels)
    data.order = torch.arange(IMAGES) if order is None else order
    probe = StudyProbe(data.shapes, IMAGES, data, solver="closed_form")
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(probe, datamodule=data)
    trainer.test(probe, datamodule=data, verbose=False)
    return SimpleNamespace(probe=probe, values=probe.results)


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    return {layer: tokens(side, seed) for seed, (layer, side) in enumerate(SIDES.items())}


@pytest.fixture(scope="module")
def crops() -> dict[str, Tensor]:
    """Something else than the middle of the whole."""
    return {layer: tokens(side - 2, 50 + seed, offset=2.0) for seed, (layer, side) in enumerate(SIDES.items())}


@pytest.fixture(scope="module")
def values(whole: dict[str, Tensor], crops: dict[str, Tensor]) -> dict[str, float]:
    return study(whole, crops).values


def cosine_of_pairs(grid: Tensor, group: str) -> float:
    """Mean over images of the mean cosine of different tokens of a group, pair by pair."""
    mask = border_groups(*grid.shape[2:])[group]
    means = []
    for image in grid.double():
        unit = torch.nn.functional.normalize(image[:, mask], dim=0)
        table = (unit.mT @ unit).numpy()
        means.append(table[~np.eye(len(table), dtype=bool)].mean())
    return float(np.mean(means))


# --- similarities ----------------------------------------------------------------------------------------------------


def test_similarities_are_those_of_all_pairs(
    values: dict[str, float], whole: dict[str, Tensor], crops: dict[str, Tensor]
) -> None:
    for layer in SIDES:
        for group in PARTS:
            inner = whole[layer][:, :, 1:-1, 1:-1]
            found = {name: values[f"test/{layer}/similarity_{name}/{group}"] for name in ("cropped", "reprcropped")}
            assert found["reprcropped"] == pytest.approx(cosine_of_pairs(inner, group), abs=1e-6)
            assert found["cropped"] == pytest.approx(cosine_of_pairs(crops[layer], group), abs=1e-6)
            assert abs(found["cropped"] - found["reprcropped"]) > 0.1, "two different grids"


@pytest.mark.parametrize("layer", SIDES)
@pytest.mark.parametrize("name", ["cropped", "reprcropped"])
def test_the_published_convention_follows_from_the_right_one(values: dict[str, float], layer: str, name: str) -> None:
    """(‖Σt‖² − N) / (N (N − 1)) with N of the uncropped grid, where ‖Σt‖² = c·n (n − 1) + n with n of the cropped one."""
    groups = [{group: int(mask.sum()) for group, mask in border_groups(s, s).items()} for s in (SIDES[layer], SIDES[layer] - 2)]
    for group in PARTS:
        right = values[f"test/{layer}/similarity_{name}/{group}"]
        published = values[f"test/{layer}/similarity_{name}_published/{group}"]
        full, own = groups[0][group], groups[1][group]
        square = right * own * (own - 1) + own
        assert published == pytest.approx((square - full) / (full * (full - 1)), abs=1e-6)
        assert (published == pytest.approx(right, abs=1e-6)) == (group == "corner"), "corner has 4 tokens either way"


def test_every_layer_has_every_key(values: dict[str, float]) -> None:
    kinds = ("similarity_cropped", "similarity_reprcropped", "similarity_cropped_published", "similarity_reprcropped_published")
    for layer in SIDES:
        for key in [f"{kind}/{group}" for kind in kinds for group in PARTS] + [f"relative_norm/{group}" for group in PARTS]:
            low, value, high = (values[f"test/{layer}/{key}{end}"] for end in ("/ci_low", "", "/ci_high"))
            assert low <= value <= high, key
        assert values[f"test/{layer}/similarity_cropped/corner/n"] == IMAGES
        assert values[f"test/{layer}/similarity_reprcropped/corner_border/n"] == IMAGES
        assert 0 <= values[f"test/{layer}/axis_accuracy/all"] <= 1, "position is measured as ever"
        assert f"shuffled_labels/{layer}/axis_accuracy/all" in values
    assert all(math.isfinite(value) for value in values.values())


def test_without_a_border_effect_the_crop_contrast_is_zero(whole: dict[str, Tensor]) -> None:
    values = study(whole).values
    for layer in SIDES:
        for group in PARTS:
            cropped, after = (values[f"test/{layer}/similarity_{name}/{group}"] for name in ("cropped", "reprcropped"))
            assert cropped == pytest.approx(after, abs=1e-9)


def test_corners_that_are_alike_as_corners_show_in_the_cropped_image_alone() -> None:
    clean = torch.randn(IMAGES, 64, 8, 8, generator=generator(1)) / 8
    code, inner_code = (corner_code(64, side, side, 1.0, generator(5)).float() for side in (8, 6))
    values = study({"mid": clean + code}, {"mid": clean[:, :, 1:-1, 1:-1] + inner_code}).values
    assert values["test/mid/similarity_cropped/corner"] == pytest.approx(0.5, abs=0.03)
    assert abs(values["test/mid/similarity_reprcropped/corner"]) < 0.02
    for group in ("border", "interior"):
        contrast = [values[f"test/mid/similarity_{name}/{group}"] for name in ("cropped", "reprcropped")]
        assert contrast[0] - contrast[1] == pytest.approx(0, abs=1e-6)


# --- which way images come -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shown", "batch"), [(0, 8), (17, 8), (IMAGES, 41), (IMAGES, 3)])
def test_images_count_alike_on_the_way_and_afterwards(
    values: dict[str, float], whole: dict[str, Tensor], crops: dict[str, Tensor], shown: int, batch: int
) -> None:
    other = study(whole, crops, shown=shown, batch=batch).values
    assert other == pytest.approx(values, abs=1e-6)


def test_intervals_do_not_depend_on_the_order_in_which_training_shows_images(
    values: dict[str, float], whole: dict[str, Tensor], crops: dict[str, Tensor]
) -> None:
    assert any(key.endswith("ci_high") for key in values)
    shuffled = study(whole, crops, shown=17, order=torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1))).values
    assert shuffled == pytest.approx(values, abs=1e-6)


def test_an_image_too_many_is_noticed(whole: dict[str, Tensor]) -> None:
    run = study({"up_1": whole["up_1"]})
    index = torch.arange(1)
    batch = GridBatch({"up_1": whole["up_1"][:1]}, {"up_1": token_groups(whole["up_1"][:1])}, index, index)
    with pytest.raises(InputError, match=f"{IMAGES}, and at least {IMAGES + 1} arrived"):
        run.probe.observe(batch)


# --- norms at anomalies ----------------------------------------------------------------------------------------------


def at_places(mask: Tensor, height: int, width: int) -> Tensor:
    """Slowly: a token is in if its square on the unit picture overlaps a token of the mask."""
    found = torch.zeros(len(mask), height, width, dtype=torch.bool)
    _, rows, cols = mask.shape
    for image, row, col in mask.nonzero().tolist():
        for i in range(height):
            for j in range(width):
                overlaps = [
                    max(a / m, b / n) < min((a + 1) / m, (b + 1) / n)
                    for a, m, b, n in ((row, rows, i, height), (col, cols, j, width))
                ]
                found[image, i, j] |= all(overlaps)
    return found


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 16), (4, 4), (2, 4), (1, 1), (24, 16)])
def test_a_mask_keeps_its_places_on_finer_and_coarser_grids(height: int, width: int) -> None:
    mask = torch.rand(3, 8, 8, generator=generator(height)) < 0.1
    mask[2] = False
    found = at_grid(mask, height, width)
    assert found.any() and not found[2].any()
    assert torch.equal(found, at_places(mask, height, width))


@pytest.fixture(scope="module")
def anomalous(whole: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """High-norm patches in up_1 only; finer and other layers are half as long again at the same places."""
    changed, mask = high_norm_patches(whole["up_1"], 6.0, 2, generator(3))
    grids = {layer: grid / grid.norm(dim=1, keepdim=True) for layer, grid in whole.items()}
    for layer, factor in {"down_0": 1.5, "up_2": 0.5}.items():
        side = SIDES[layer]
        grids[layer] = grids[layer] * (1 + (factor - 1) * at_grid(mask, side, side).unsqueeze(1))
    return grids | {"up_1": changed}, mask


def expected_norm(factor: float, share: float) -> float:
    """Of places with `factor` times the norm of all others, relative to the image's mean."""
    return factor / (1 + (factor - 1) * share)


def test_norms_are_taken_at_the_places_of_one_layer(anomalous: tuple[dict[str, Tensor], Tensor]) -> None:
    grids, mask = anomalous
    detected = token_groups(grids["up_1"])["high_norm"]
    assert (detected == mask).float().mean() > 0.99
    values, share = study(grids).values, detected.float().mean().item()
    assert values["test/down_0/relative_norm/anomaly"] == pytest.approx(expected_norm(1.5, share), abs=0.03)
    assert values["test/up_2/relative_norm/anomaly"] == pytest.approx(expected_norm(0.5, share), abs=0.03)
    assert values["test/up_1/relative_norm/anomaly"] == values["test/up_1/relative_norm/high_norm"] > 2
    assert values["test/up_1/high_norm_share/all"] == pytest.approx(share)
    assert "test/up_2/relative_norm/high_norm" not in values, "half the norm is no detection"


def test_without_that_layer_or_without_detections_there_is_no_such_group(
    whole: dict[str, Tensor], anomalous: tuple[dict[str, Tensor], Tensor]
) -> None:
    grids, _ = anomalous
    assert not any("anomaly" in key for key in study({"down_0": grids["down_0"]}).values)
    plain = {layer: grid / grid.norm(dim=1, keepdim=True) for layer, grid in whole.items()}  # all norms alike
    values = study({layer: plain[layer] for layer in ("up_1", "down_0")}).values
    assert not any("anomaly" in key for key in values)
    assert values["test/up_1/high_norm_share/all"] == 0


def test_labels_take_the_place_of_detections(anomalous: tuple[dict[str, Tensor], Tensor]) -> None:
    grids, mask = anomalous
    elsewhere = mask.roll(4, dims=2) & ~mask
    values = study(grids, labels=elsewhere).values
    assert values["test/down_0/relative_norm/anomaly"] < 1, "none of these places is long"
    alone = study({"down_0": grids["down_0"]}, labels=mask).values
    share = mask.float().mean().item()
    assert alone["test/down_0/relative_norm/anomaly"] == pytest.approx(expected_norm(1.5, share), abs=0.001), "without up_1 too"


def test_detection_is_scored_against_labels(anomalous: tuple[dict[str, Tensor], Tensor]) -> None:
    grids, mask = anomalous
    found = torch.stack([token_groups(grids["up_1"][i : i + 1])["high_norm"][0] for i in range(IMAGES)])
    values = study({"up_1": grids["up_1"]}, labels=mask).values
    assert values["test/up_1/labels_recall/all"] == pytest.approx((found & mask).sum().item() / mask.sum().item())
    assert values["test/up_1/labels_precision/all"] == pytest.approx((found & mask).sum().item() / found.sum().item())
    assert not any("labels_" in key for key in study({"up_1": grids["up_1"]}).values)


def test_maps_are_those_of_the_position_probe_and_the_norms(whole: dict[str, Tensor]) -> None:
    maps = study(whole).probe.maps()
    names = ("accuracy", "rows", "cols", "norm")
    assert set(maps) == {f"{layer}/{name}" for layer in SIDES for name in names}
    for layer, grid in whole.items():
        np.testing.assert_allclose(maps[f"{layer}/norm"], grid.double().norm(dim=1).mean(0), rtol=1e-5)
        assert maps[f"{layer}/rows"].sum() == 11 * SIDES[layer] ** 2


def test_a_grid_too_small_to_lose_its_ring_is_refused() -> None:
    with pytest.raises(InputError, match="at least 4×4 for statistics of corner, border and interior, but got 3×3"):
        study({"mid": tokens(5, 0)})

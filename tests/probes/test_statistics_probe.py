"""StatisticsProbe under a real Trainer: what was planted is found in value, where it was planted and nowhere else."""

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor

import sdprobe.tokens.groups
from probes import StatisticsProbe
from sdprobe.metrics.group_similarity import corner_mask
from sdprobe.metrics.position_variance import position_share
from sdprobe.tokens.batch import GridBatch
from sdprobe.tokens.groups import token_groups, token_similarity
from sdprobe.utilities.errors import InputError
from tests.planted import corner_code, direction, high_norm_patches, position_code

CHANNELS, SIDE, FIT, IMAGES, REPEATS = 64, 12, 40, 60, 20
SIZE, MARGIN = 96, 8  # pixels: one token of 12
FIRST = 1000  # number of the first measured image in its dataset
NO_DATA = SimpleNamespace(kind="grids")
VIEWS = ("whole", "cropped", "other_noise", "other_timestep")
POSITION = {"position_half": 0.5, "position": 1.0, "position_double": 2.0}  # layer → strength of its code
CORNER, PATCHES, PATCH = 1.0, 2, 4.0  # strength of the corner code; patches an image, and their strength
Layer = dict[str, Tensor]  # view → grids; "fit" for the images that give the mean


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clean(images: int = FIT + IMAGES, seed: int = 0) -> Tensor:
    """Independent Gaussian tokens with E‖e‖² = 1 around a common mean: nothing is wrong with them."""
    tokens = torch.randn(images, CHANNELS, SIDE, SIDE, generator=generator(seed)) / CHANNELS**0.5
    return tokens + direction(CHANNELS, generator(99)).float().view(-1, 1, 1)


def views(grids: Tensor, cropped: Tensor | None = None, timestep: Tensor | None = None) -> Layer:
    """Fit images first; the cropped view is the middle of the whole one unless given."""
    fit, whole = grids[:FIT], grids[FIT:]
    inner = whole[:, :, 1:-1, 1:-1] if cropped is None else cropped
    other = whole[:REPEATS] if timestep is None else timestep
    return {"fit": fit, "whole": whole, "cropped": inner, "other_noise": whole[:REPEATS], "other_timestep": other}


def position(strength: float) -> Layer:
    return views(clean(seed=1) + position_code(CHANNELS, SIDE, SIDE, strength, generator(5)).float())


def corner(strength: float = CORNER) -> Layer:
    """What lies in a corner is alike, in the whole image and in the cropped one, where other content has come to lie."""
    grids = clean(seed=2)
    whole, inner = (corner_code(CHANNELS, side, side, strength, generator(5)).float() for side in (SIDE, SIDE - 2))
    return views(grids + whole, cropped=grids[FIT:, :, 1:-1, 1:-1] + inner)


def content() -> Layer:
    """What the cropped corners show is alike, and was so in the whole image, away from any corner."""
    alike = corner_mask(SIDE, SIDE, margin=1) * direction(CHANNELS, generator(5)).float().view(-1, 1, 1)
    return views(clean(seed=3) + CORNER * alike)


def patches(strength: float = PATCH) -> Layer:
    """High-norm patches; with other noise in the same places, at another timestep in others."""
    changed, _ = high_norm_patches(clean(seed=4), strength, PATCHES, generator(6))
    elsewhere, _ = high_norm_patches(clean(REPEATS, seed=4), strength, PATCHES, generator(7))
    return views(changed, timestep=elsewhere)


def odd(strength: float = 8.0) -> Layer:
    """Two single tokens an image, on odd rows and columns."""
    grids = clean(seed=8)
    for image, (first, second) in zip(grids, torch.rand(len(grids), 36, generator=generator(9)).topk(2).indices, strict=True):
        for place in (first, second):
            image[:, 2 * (place // 6) + 1, 2 * (place % 6) + 1] *= strength
    return views(grids)


def channel(factor: float = 8.0) -> Layer:
    """One channel with 64 times the energy of any other."""
    scale = torch.ones(CHANNELS, 1, 1)
    scale[7] = factor
    return views(clean(seed=10) * scale)


class Loader:
    """Batches of a view; ``images`` as the data module's loaders have it. Lightning reads a plain list as several."""

    def __init__(self, grids: dict[str, Tensor], labels: dict[str, Tensor], batch: int) -> None:
        self.grids, self.labels, self.images, self.batch = grids, labels, len(next(iter(grids.values()))), batch
        self.asked = 0

    def __len__(self) -> int:
        return -(-self.images // self.batch)

    def __iter__(self) -> Iterator[GridBatch]:
        self.asked += 1
        for index in torch.arange(self.images).split(self.batch):
            grids = {layer: grid[index] for layer, grid in self.grids.items()}
            masks = {layer: token_groups(grid) for layer, grid in grids.items()}
            for layer, mask in self.labels.items():
                masks[layer]["labelled"] = mask[index]
            yield GridBatch(grids, masks, FIRST + index, index)


class Views(lightning.LightningDataModule):
    """Serves planted layers the way the data module serves activations."""

    kind = "grids"

    def __init__(self, layers: dict[str, Layer], batch: int = 8, images: int = IMAGES, repeats: int = REPEATS) -> None:
        super().__init__()
        self.shapes = {layer: tuple(views["whole"].shape[1:]) for layer, views in layers.items()}
        self.floor: Tensor | None = None  # cells, per measured image
        counts = {"fit": FIT, "whole": images, "cropped": images, "other_noise": repeats, "other_timestep": repeats}
        self.loaders = {}
        for view, count in counts.items():
            labels = {layer: views["labelled"] for layer, views in layers.items() if "labelled" in views and view == "whole"}
            self.loaders[view] = Loader({layer: views[view][:count] for layer, views in layers.items()}, labels, batch)

    def train_dataloader(self) -> Loader:
        return self.loaders["fit"]

    def test_dataloader(self) -> list[Loader]:
        return [self.loaders[view] for view in VIEWS]

    def floor_cells(self, indices: list[int]) -> dict[int, Tensor]:
        assert self.floor is not None
        return {index: self.floor[index - FIRST] for index in indices}


@pytest.fixture(scope="module")
def study_of() -> Callable[..., SimpleNamespace]:
    """A function of layers that runs the probe and returns it with its results, by layer."""

    def run(
        layers: dict[str, Layer], probe: dict[str, Any] | None = None, floor: Tensor | None = None, **options: Any
    ) -> SimpleNamespace:
        data = Views(layers, **options)
        data.floor = floor
        module = StatisticsProbe(data.shapes, IMAGES, data, **({"size": SIZE, "margin": MARGIN} | (probe or {})))
        trainer = lightning.Trainer(
            max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
        trainer.test(module, datamodule=data, verbose=False)
        values: dict[str, dict[str, float]] = {layer: {} for layer in layers}
        for key, value in module.results.items():
            _, layer, rest = key.split("/", 2)
            values[layer][rest] = value
        return SimpleNamespace(probe=module, data=data, values=values)

    return run


@pytest.fixture(scope="module")
def layers() -> dict[str, Layer]:
    made = {"clean": views(clean()), "corner": corner(), "content": content(), "patches": patches(), "odd": odd()}
    return made | {"channel": channel()} | {layer: position(strength) for layer, strength in POSITION.items()}


@pytest.fixture(scope="module")
def study(study_of: Callable[..., SimpleNamespace], layers: dict[str, Layer]) -> SimpleNamespace:
    return study_of(layers)


@pytest.fixture(scope="module")
def values(study: SimpleNamespace) -> dict[str, dict[str, float]]:
    return study.values


# --- planted truth ---------------------------------------------------------------------------------------------------
# as functions, since the same must fail where the detector is broken


def nothing_holds(found: dict[str, float]) -> None:
    """No risk and no similarity in tokens that nothing was planted in."""
    bounds = {"position_variance/all": 0.003, "norm_icc/all": 0.01, "rsa/within": 0.01, "rsa/between": 0.01, "r_chn/all": 0.003}
    bounds |= {f"similarity_centred/{group}": 0.01 for group in ("corner", "border", "interior", "corner_border")}
    bounds |= {f"cropped_similarity_centred/{group}": 0.01 for group in ("corner", "border", "interior", "border_interior")}
    for key, bound in bounds.items():
        assert abs(found[key]) < bound, key
    assert found["high_norm_share/all"] == found["high_norm_energy/all"] == found["r_tok/all"] == 0
    assert found["r_cor/all"] < 0.01 and found["credibility/all"] > 0.99
    for group in ("corner", "border", "interior"):
        assert found[f"relative_norm/{group}"] == pytest.approx(1, abs=0.01)
        assert found[f"similarity/{group}"] > 0.4, "raw tokens share a mean"


def corners_hold(values: dict[str, dict[str, float]]) -> None:
    """Corner risk of the planted size where corners are alike as corners, none where their content is alike."""
    expected = CORNER**2 / (CORNER**2 + 1)
    assert values["corner"]["r_cor/all"] == pytest.approx(expected, abs=0.03)
    assert values["corner"]["r_cor/all/ci_low"] < expected + 0.01 and values["corner"]["r_cor/all/ci_high"] > expected - 0.01
    assert values["corner"]["similarity_centred/corner"] == pytest.approx(expected, abs=0.03)
    assert values["corner"]["cropped_similarity_centred/corner"] == pytest.approx(expected, abs=0.03)
    assert values["content"]["cropped_similarity_centred/corner"] == pytest.approx(expected, abs=0.03)
    assert values["content"]["similarity_centred/corner_content"] == pytest.approx(expected, abs=0.03)
    for layer, found in values.items():
        if layer != "corner":
            assert found["r_cor/all"] < 0.01, layer
    for group in ("border", "interior", "border_interior"):
        assert abs(values["corner"][f"similarity_centred/{group}"]) < 0.01


def patches_hold(found: dict[str, float]) -> None:
    """All planted patches and nothing else, with the energy they have."""
    share = 4 * PATCHES / SIDE**2
    energy = share * (1 + PATCH**2) / (1 + share * PATCH**2)
    assert found["high_norm_share/all"] == pytest.approx(share, rel=0.01)
    assert found["high_norm_energy/all"] == pytest.approx(energy, abs=0.02)
    assert found["r_tok/all"] == pytest.approx((energy - share) / (1 - share), abs=0.02)
    assert found["high_norm_images/all"] == 1
    assert found["high_norm_patches/all"] == pytest.approx(PATCHES, abs=0.05)
    assert found["high_norm_aligned/all"] > 0.99
    for place in ("even_even", "even_odd", "odd_even", "odd_odd"):
        assert found[f"high_norm_parity/{place}"] == pytest.approx(0.25, abs=0.01)
    mean = 1 + share * ((1 + PATCH**2) ** 0.5 - 1)  # of the norms, in units of the others
    assert found["relative_norm/high_norm"] == pytest.approx((1 + PATCH**2) ** 0.5 / mean, abs=0.05)


def variance_holds(found: dict[str, float], expected: float) -> None:
    """The share that position explains, in value and within its interval."""
    assert found["position_variance/all"] == found["r_pos/all"] == pytest.approx(expected, abs=0.005)
    slack = 0.005  # an interval of 20 folds misses one time in 20, and a fold of three images is slightly off
    assert found["r_pos/all/ci_low"] - slack < expected < found["r_pos/all/ci_high"] + slack
    assert found["r_pos/all/ci_high"] - found["r_pos/all/ci_low"] < 0.02


def true_share(strength: float) -> float:
    """Share of variance between positions of unit tokens, from 1500 images that the probe never sees."""
    tokens = clean(1500, seed=77) + position_code(CHANNELS, SIDE, SIDE, strength, generator(5)).float()
    unit = torch.nn.functional.normalize(tokens - tokens.mean((0, 2, 3)).view(-1, 1, 1), dim=1)
    mean = unit.mean(0)
    within = (unit - mean).square().sum(1).mean().item()
    between = (mean - mean.mean((1, 2), keepdim=True)).square().sum().item() / (SIDE**2 - 1) - within / len(unit)
    return between / (between + within)


def test_nothing_is_found_where_nothing_was_planted(values: dict[str, dict[str, float]]) -> None:
    nothing_holds(values["clean"])
    places = ("high_norm_aligned", "high_norm_parity", "template_iou", "noise_iou", "timestep_iou", "relative_norm/high_norm")
    assert [key for key in values["clean"] if key.startswith(places)] == [], "no key where nothing was detected"


@pytest.mark.parametrize("layer", POSITION)
def test_the_variance_that_position_explains_is_recovered(values: dict[str, dict[str, float]], layer: str) -> None:
    strength = POSITION[layer]
    variance_holds(values[layer], true_share(strength))
    assert values[layer]["position_variance/all"] == pytest.approx(strength**2 / (strength**2 + 1), abs=0.02)
    assert values[layer]["rsa/between"] > 0.05 and values[layer]["rsa/within"] > 0.05
    assert values[layer]["r_tok/all"] < 0.01


def test_position_explains_nothing_where_no_position_was_planted(values: dict[str, dict[str, float]]) -> None:
    for layer in ("patches", "odd", "channel"):
        assert abs(values[layer]["position_variance/all"]) < 0.005, layer
        assert abs(values[layer]["rsa/between"]) < 0.02, layer
    # four tokens with a place of their own are a position effect of the size that four tokens can have
    share = 4 * (1 - 4 / SIDE**2) / (SIDE**2 - 1) * CORNER**2 / (CORNER**2 + 1)
    assert values["corner"]["position_variance/all"] == pytest.approx(share, abs=0.004)


def test_corner_risk_rises_only_where_corners_are_alike_because_they_are_corners(values: dict[str, dict[str, float]]) -> None:
    corners_hold(values)


def test_planted_patches_are_found_in_number_energy_and_place(values: dict[str, dict[str, float]]) -> None:
    patches_hold(values["patches"])
    assert values["patches"]["template_iou/all"] > 0.98, "they share a direction that the fit images know"


def test_single_tokens_on_odd_places_are_no_patches(values: dict[str, dict[str, float]]) -> None:
    found = values["odd"]
    assert found["high_norm_share/all"] == pytest.approx(2 / SIDE**2, rel=0.01)
    assert found["high_norm_parity/odd_odd"] == pytest.approx(1, abs=0.01)
    assert found["high_norm_patches/all"] == found["high_norm_aligned/all"] == 0
    energy = 2 * 64 / (SIDE**2 - 2 + 2 * 64)
    assert found["high_norm_energy/all"] == pytest.approx(energy, abs=0.02)
    assert found["template_iou/all"] < 0.1, "each points elsewhere"


def test_a_massive_channel_is_risk_of_norm_without_a_token(values: dict[str, dict[str, float]]) -> None:
    found, energy = values["channel"], 64 / (64 + CHANNELS - 1)
    assert found["channel_energy/all"] == pytest.approx(energy, abs=0.01)
    assert found["r_chn/all"] == pytest.approx((energy - 1 / CHANNELS) / (1 - 1 / CHANNELS), abs=0.01)
    assert found["r_tok/all"] == 0 and found["r_norm/all"] == pytest.approx(found["r_chn/all"])


def test_detections_that_stay_and_detections_that_move_are_told_apart(values: dict[str, dict[str, float]]) -> None:
    found = values["patches"]
    assert found["noise_iou/all"] == 1, "the same places with other noise"
    share = 4 * PATCHES / SIDE**2
    assert found["timestep_iou_chance/all"] == pytest.approx(share / (2 - share), abs=0.001)
    assert found["timestep_iou/all"] < 0.1
    assert not any("iou/all/ci_low" in key for key in found if key.startswith(("noise", "timestep"))), "too few images"


def test_detections_are_scored_against_labels(study_of: Callable, layers: dict[str, Layer]) -> None:
    planted = token_groups(layers["patches"]["whole"])["high_norm"]  # every patch and nothing else, see above
    missed, invented = planted.clone(), planted.clone()
    missed[::2] = False  # labels of every other image only
    invented[:, :, 0] = True
    found = {
        name: study_of({"patches": layers["patches"] | {"labelled": mask}}).values["patches"]
        for name, mask in {"all": planted, "half": missed, "more": invented}.items()
    }
    assert (found["all"]["labels_precision/all"], found["all"]["labels_recall/all"]) == (1, 1)
    assert (found["half"]["labels_precision/all"], found["half"]["labels_recall/all"]) == (pytest.approx(0.5, abs=0.01), 1)
    assert found["more"]["labels_precision/all"] == 1
    assert found["more"]["labels_recall/all"] == pytest.approx(planted.sum().item() / invented.sum().item())
    assert found["half"]["labels_patch_precision/all"] == pytest.approx(0.5, abs=0.01)
    rest = {key: value for key, value in found["half"].items() if not key.startswith("labels_")}
    assert rest == {key: value for key, value in found["all"].items() if not key.startswith("labels_")}


def test_the_first_layers_are_held_against_the_floor_cells(study_of: Callable, layers: dict[str, Layer]) -> None:
    planted = token_groups(layers["patches"]["whole"])["high_norm"]
    chosen = {"conv_in": layers["patches"], "up_3": layers["patches"]}
    found = study_of(chosen, floor=planted).values
    assert found["conv_in"]["vae_floor_iou/all"] == 1
    assert found["conv_in"]["vae_floor_share/all"] == planted[:REPEATS].sum().item() / REPEATS / SIDE**2
    assert not any(key.startswith("vae_floor") for key in found["up_3"]), "the first layers only"
    shifted = study_of(chosen, floor=planted.roll(6, dims=2)).values["conv_in"]
    assert shifted["vae_floor_iou/all"] < 0.1
    assert shifted["vae_floor_iou_chance/all"] == pytest.approx(found["conv_in"]["vae_floor_iou_chance/all"])


# --- the same checks, with a detector that is broken on purpose ------------------------------------------------------


def high_norm_of(z: Callable[[Tensor], Tensor], threshold: float = 5.0) -> Callable[[Tensor], Tensor]:
    """A detector by a standardisation of log-norms, (b, p) → (b, p)."""

    def detect(grid: Tensor) -> Tensor:
        log = grid.float().norm(dim=1).log()
        return (z(log.flatten(1)) > threshold).view_as(log)

    return detect


def robust(log: Tensor) -> Tensor:
    centred = log - log.median(dim=1, keepdim=True).values
    return centred / (1.4826 * centred.abs().median(dim=1, keepdim=True).values)


DETECTORS = {
    "low threshold": high_norm_of(robust, 2.0),
    "high threshold": high_norm_of(robust, 50.0),
    "no MAD": high_norm_of(lambda log: log - log.median(dim=1, keepdim=True).values),
    "not robust": high_norm_of(lambda log: (log - log.mean(1, keepdim=True)) / log.std(1, keepdim=True)),
    "one threshold for all images": high_norm_of(lambda log: (log - log.median()) / log.std()),
}


def test_the_reference_detector_finds_the_patches(study_of: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdprobe.tokens.groups, "high_norm", high_norm_of(robust))
    patches_hold(study_of({"patches": patches()}).values["patches"])


@pytest.mark.parametrize("broken", DETECTORS)
def test_planted_patches_are_missed_by_a_broken_detector(
    study_of: Callable, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setattr(sdprobe.tokens.groups, "high_norm", DETECTORS[broken])
    found = study_of({"patches": patches()}).values["patches"]
    with pytest.raises(AssertionError):
        patches_hold(found)


def test_content_counts_as_corner_risk_without_the_chance_correction(
    study_of: Callable, layers: dict[str, Layer], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {layer: layers[layer] for layer in ("corner", "content")}
    corners_hold(study_of(chosen).values)
    monkeypatch.setattr("sdprobe.estimators.layer_statistics.corner_risk", lambda inner, outer: inner.clamp(0, 1))
    found = study_of(chosen).values
    assert found["content"]["r_cor/all"] > 0.4
    with pytest.raises(AssertionError):
        corners_hold(found)


@pytest.mark.parametrize(
    ("target", "broken", "key"),
    [
        # the variance between means of N images, without what chance gives them
        (
            "sdprobe.metrics.position_variance.position_share",
            lambda sums, squares, images, resolution=0.0: 1 / images + position_share(sums, squares, images),
            "position_variance/all",
        ),
        ("sdprobe.metrics.channel_energy.channel_risk", lambda energy, top, channels: energy, "r_chn/all"),
    ],
)
def test_clean_tokens_are_at_risk_where_chance_is_not_taken_off(
    study_of: Callable, monkeypatch: pytest.MonkeyPatch, target: str, broken: Callable, key: str
) -> None:
    monkeypatch.setattr(target, broken)
    found = study_of({"clean": views(clean())}).values["clean"]
    with pytest.raises(AssertionError, match=key):
        nothing_holds(found)


def test_the_energy_of_patches_is_too_much_where_their_number_is_not_taken_off(
    study_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdprobe.metrics.high_norm.token_risk", lambda energy, share: energy)
    found = study_of({"patches": patches()}).values["patches"]
    with pytest.raises(AssertionError):
        patches_hold(found)


# --- the crop contrast -----------------------------------------------------------------------------------------------


def test_without_a_border_effect_the_crop_contrast_is_zero(values: dict[str, dict[str, float]]) -> None:
    """Where the cropped grid is the middle of the whole one, its corners are as alike as their content was."""
    for layer in set(values) - {"corner"}:
        for kind in ("similarity", "similarity_centred"):
            inner, outer = values[layer][f"cropped_{kind}/corner"], values[layer][f"{kind}/corner_content"]
            assert inner - outer == pytest.approx(0, abs=1e-6), layer
        assert values[layer]["r_cor/all"] == pytest.approx(0, abs=1e-6)
    assert values["position_double"]["cropped_similarity_centred/corner"] > 0.1, "not for want of similarity"


def test_a_wider_margin_compares_what_lies_further_inside(study_of: Callable, layers: dict[str, Layer]) -> None:
    layer = layers["position_double"] | {"cropped": layers["position_double"]["whole"][:, :, 2:-2, 2:-2]}
    found = study_of({"position": layer}, probe={"margin": 16}).values["position"]
    assert found["cropped_similarity/corner"] == pytest.approx(found["similarity/corner_content"], abs=1e-6)
    wrong = study_of({"position": layer | {"cropped": layers["position_double"]["cropped"]}}, probe={"margin": 16})
    contrast = wrong.values["position"]["cropped_similarity/corner"] - found["similarity/corner_content"]
    assert abs(contrast) > 1e-3, "the ring that was not cropped shows other tokens"


# --- what changes nothing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [7, 60])
def test_batch_size_and_other_layers_change_no_number(
    study: SimpleNamespace, study_of: Callable, layers: dict[str, Layer], batch: int
) -> None:
    chosen = ("corner", "patches")
    other = study_of({layer: layers[layer] for layer in chosen}, batch=batch)
    for layer in chosen:
        assert other.values[layer] == pytest.approx(study.values[layer], abs=2e-6)
    ours, theirs = study.probe.maps(), other.probe.maps()
    place = [list(study.values).index(layer) for layer in chosen]
    for name in ("cka", "cka_positions"):
        np.testing.assert_allclose(theirs[name], ours[name][np.ix_(place, place)], atol=1e-6)
    for layer in chosen:
        np.testing.assert_allclose(theirs[f"{layer}/norm"], ours[f"{layer}/norm"], rtol=1e-6)


def test_every_image_is_asked_for_once(study: SimpleNamespace) -> None:
    assert {view: loader.asked for view, loader in study.data.loaders.items()} == dict.fromkeys(("fit", *VIEWS), 1)


def test_views_without_images_leave_no_key(study_of: Callable, layers: dict[str, Layer], study: SimpleNamespace) -> None:
    found = study_of({"patches": layers["patches"]}, repeats=0).values["patches"]
    missing = {key for key in study.values["patches"] if key.startswith(("noise_", "timestep_"))}
    assert len(missing) == 4
    assert found == pytest.approx({k: v for k, v in study.values["patches"].items() if k not in missing}, abs=2e-6)


# --- results, maps ---------------------------------------------------------------------------------------------------


def test_credibility_is_the_formula_of_its_reported_parts(values: dict[str, dict[str, float]]) -> None:
    for layer, found in values.items():
        risks = [found[f"{name}/all"] for name in ("r_pos", "r_cor", "r_norm")]
        trust = math.prod(1 - min(max(risk, 0), 1) for risk in risks)
        assert found["credibility/all"] == pytest.approx(trust ** (1 / 3)), layer
        assert risks[0] == found["position_variance/all"]
        similar = {
            "within": (found["cropped_similarity_centred/corner"], found["similarity_centred/corner_content"]),
            "across": (found["cropped_similarity_across/corner"], found["content_similarity_across/corner"]),
        }
        for kind, (inner, outer) in similar.items():
            expected = min(max((inner - outer) / (1 - outer), 0), 1)
            assert found[f"r_cor_{kind}/all"] == pytest.approx(expected, abs=1e-9)
        assert risks[1] == max(found["r_cor_within/all"], found["r_cor_across/all"])
        assert risks[2] == pytest.approx(1 - (1 - found["r_tok/all"]) * (1 - found["r_chn/all"]))
        for key in (key.removesuffix("/ci_low") for key in found if key.endswith("/ci_low")):
            assert found[f"{key}/ci_low"] - 1e-12 <= found[key] <= found[f"{key}/ci_high"] + 1e-12, (layer, key)
    scores = {layer: found["credibility/all"] for layer, found in values.items()}
    assert scores["clean"] == max(scores.values())
    assert scores["position_double"] < scores["position"] < scores["position_half"] < scores["clean"]


def test_what_folds_contribute_means_what_is_reported(study: SimpleNamespace) -> None:
    units = study.probe.pseudovalues()
    for layer, found in study.values.items():
        mine = {key.split("/", 2)[2]: values for key, values in units.items() if key.split("/")[1] == layer}
        risks = {f"{name}/all" for name in ("r_pos", "r_cor", "r_norm", "credibility")}
        assert set(mine) == risks | {
            key for key in found if key.startswith(("relative_norm", "norm_icc")) and key.count("/") == 1
        }
        for key, values in mine.items():
            assert values.shape == (20,) and np.isfinite(values).sum() >= 6
            clipped = key in risks - {"r_pos/all"}
            mean = min(max(np.nanmean(values), 0), 1) if clipped else np.nanmean(values)
            # of credibility each risk is clipped, of its pseudo-values the whole
            assert mean == pytest.approx(found[key], abs=0.005 if key == "credibility/all" else 1e-9), (layer, key)


def test_every_number_is_finite_and_named_by_the_contract(study: SimpleNamespace) -> None:
    for key, value in study.probe.results.items():
        what, layer, *rest = key.split("/")
        assert (what, layer in study.data.shapes, len(rest) in (2, 3)) == ("test", True, True), key
        assert math.isfinite(value), key
        assert len(rest) == 2 or rest[2] in ("ci_low", "ci_high", "n"), key
    assert study.probe.not_converged == []


def test_the_mean_and_the_direction_come_from_fit_images_alone(study: SimpleNamespace, layers: dict[str, Layer]) -> None:
    measured = study.probe.measures["patches"]
    grids = layers["patches"]["fit"]
    torch.testing.assert_close(measured.mean, grids.double().mean((0, 2, 3)), atol=1e-6, rtol=1e-5)
    mask = token_groups(grids)["high_norm"]
    offset = grids.movedim(1, -1)[mask].double().mean(0) - measured.mean
    torch.testing.assert_close(measured.template, offset / offset.norm(), atol=1e-6, rtol=1e-5)
    assert (study.probe.measures["clean"].template == 0).all()


def test_maps_have_the_shapes_and_values_they_claim(study: SimpleNamespace, layers: dict[str, Layer]) -> None:
    maps, count = study.probe.maps(), 4
    assert maps["cka"].shape == maps["cka_positions"].shape == (len(layers), len(layers))
    assert maps["pictured"].tolist() == [FIRST, FIRST + 1, FIRST + 2, FIRST + 3]
    names = ("norm", "components", "high_norm", "similarity")
    assert maps["token"].tolist() == [12, 17, 32]
    assert set(maps) == {"cka", "cka_positions", "pictured", "token"} | {
        f"{layer}/{name}" for layer in layers for name in names
    }
    for layer, grids in layers.items():
        expected = token_similarity(grids["whole"][0], (12, 17), 32)
        np.testing.assert_allclose(maps[f"{layer}/similarity"], expected, atol=1e-6)
        np.testing.assert_allclose(maps[f"{layer}/norm"], grids["whole"].double().norm(dim=1).mean(0), rtol=1e-5)
        assert maps[f"{layer}/components"].shape == (count, SIDE, SIDE, 3)
        assert maps[f"{layer}/components"].dtype == np.uint8 and maps[f"{layer}/components"].std() > 10
        assert np.array_equal(maps[f"{layer}/high_norm"], token_groups(grids["whole"][:count])["high_norm"])


def test_cka_knows_a_rotated_layer_and_tells_unrelated_ones(study_of: Callable) -> None:
    tokens = clean(seed=3)
    turned = torch.einsum("dc,nchw->ndhw", torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=generator(1))).Q, tokens)
    table = study_of({"one": views(tokens), "turned": views(5 * turned), "other": views(clean(seed=4))}).probe.maps()["cka"]
    np.testing.assert_allclose(table, table.T)
    np.testing.assert_allclose(table[:2, :2], 1, atol=1e-6)
    assert table[2, 2] == pytest.approx(1) and abs(table[2, :2]).max() < 0.05


def test_components_are_the_strongest_directions_in_order(study_of: Callable) -> None:
    """Three orthogonal patterns of falling strength come out as red, green and blue."""
    row, col = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
    patterns = torch.stack([row, col, row * col])
    basis = torch.linalg.qr(torch.randn(CHANNELS, 3, generator=generator(2))).Q
    grid = torch.einsum("cs,shw->chw", basis * torch.tensor([30.0, 10.0, 9.0]), patterns)
    found = study_of({"mid": views(0.01 * clean() + grid)}, probe={"pictured": 2}).probe.maps()["mid/components"]
    assert found.shape == (2, SIDE, SIDE, 3)
    for colour, pattern in enumerate(patterns):
        correlation = np.corrcoef(found[..., colour].astype(float).ravel(), np.tile(pattern.numpy().ravel(), 2))[0, 1]
        assert abs(correlation) > 0.98, colour
        assert found[..., colour].min() == 0 and found[..., colour].max() == 255
        strongest = basis[:, colour].abs().argmax()
        assert np.sign(correlation) == basis[strongest, colour].sign(), "the largest loading counts as positive"


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [39, 10])
def test_too_few_images_are_refused_before_anything_is_computed(
    layers: dict[str, Layer], study_of: Callable, images: int
) -> None:
    data = Views({"clean": layers["clean"]}, images=images)
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    probe = StatisticsProbe(data.shapes, images, data, size=SIZE, margin=MARGIN)
    with pytest.raises(InputError, match=f"Expected images for .* to be at least 40, but got {images}. Use 40 or more") as said:
        trainer.fit(probe, datamodule=data)
    assert "\n" not in str(said.value)
    assert {loader.asked for loader in data.loaders.values()} == {0}


def test_forty_images_are_enough(layers: dict[str, Layer], study_of: Callable) -> None:
    found = study_of({"clean": layers["clean"]}, images=40).values["clean"]
    assert found["credibility/all/ci_low"] <= found["credibility/all/ci_high"]


@pytest.mark.parametrize("margin", [0, -64])
def test_without_a_crop_there_is_no_contrast(margin: int) -> None:
    with pytest.raises(InputError, match=rf"datamodule\.margin to be at least 1, but got {margin}"):
        StatisticsProbe({"mid": (8, 8, 8)}, 50, NO_DATA, margin=margin)


@pytest.mark.parametrize(("side", "margin"), [(5, 64), (4, 64)])
def test_a_grid_too_small_for_groups_is_refused_and_named(side: int, margin: int) -> None:
    lost, size = 2 * margin // 64, 64 * side
    said = rf"layer mid to be at least 4×4 .*, but got {side - lost}×{side - lost}\..*leave this layer out"
    with pytest.raises(InputError, match=said):
        StatisticsProbe({"up_2": (8, 8 * side, 8 * side), "mid": (8, side, side)}, 50, NO_DATA, size=size, margin=margin)
    StatisticsProbe({"mid": (8, 4 + lost, 4 + lost)}, 50, NO_DATA, size=64 * (4 + lost), margin=margin)


def test_a_margin_that_cuts_through_tokens_is_refused() -> None:
    shapes = {"up_1": (8, 32, 32), "mid": (8, 8, 8)}
    with pytest.raises(InputError, match=r"datamodule\.margin to be a whole number of tokens in layer mid \(64 pixels each\)"):
        StatisticsProbe(shapes, 50, NO_DATA, size=512, margin=16)
    StatisticsProbe(shapes, 50, NO_DATA, size=512, margin=64)
    StatisticsProbe({"up_1": (8, 32, 32)}, 50, NO_DATA, size=512, margin=16)


def test_relative_norms_have_a_paired_gain_where_both_have_the_group(study: SimpleNamespace) -> None:
    layers, values = study.probe._of, study.values
    found = layers("corner").gain(layers("clean"))
    assert {key for key in found if key.startswith("relative_norm") and key.count("/") == 1} == {
        f"relative_norm/{group}" for group in ("corner", "border", "interior")
    }, "nothing is a high-norm token of the clean layer"
    difference = values["corner"]["relative_norm/corner"] - values["clean"]["relative_norm/corner"]
    assert found["relative_norm/corner"] == pytest.approx(difference) and difference > 0.1
    assert 0 < found["relative_norm/corner/ci_low"] < difference < found["relative_norm/corner/ci_high"]
    assert "relative_norm/high_norm/ci_low" in layers("patches").gain(layers("odd"))

"""Mitigations between stream and probes: what is fitted on what, how many passes it takes, and what is refused."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from datamodules.images.folder import FolderImages
from datamodules.latents import LatentCache, LatentStore
from datamodules.mitigated import Mitigations
from datamodules.stream import ActivationStream, Pass
from sdprobe.backbones import FrozenSD
from sdprobe.backbones.weights import weight_hash
from sdprobe.mitigations import (
    Canvas,
    Leace,
    PaddingSwap,
    PcaDrop,
    PositionMean,
    RandomRank,
    Saved,
    ShiftFlipNoise,
    Standardize,
    load,
    save,
)
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import write_json

LAYERS = ("down_0", "mid")
FIT, TEST = range(8), range(8, 12)
SIZE = 128


@pytest.fixture(scope="module")
def stream(sd: FrozenSD, save_photos: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> ActivationStream:
    root = tmp_path_factory.mktemp("mitigated")
    images = FolderImages(str(save_photos(root / "photos", 12)), size=SIZE)
    store = LatentStore(images, sd.encoder, LatentCache(root / "cache"), 0, 8, 0)
    store.prepare(range(12))
    return ActivationStream(sd, store, Pass(LAYERS, (50,)), 4)


@pytest.fixture
def apart(stream: ActivationStream, tmp_path: Path) -> Iterator[ActivationStream]:
    """The same stream with an empty cache of fits."""
    whole, stream.store.cache = stream.store.cache, _Beside(stream.store.cache, tmp_path)  # type: ignore[assignment]
    yield stream
    stream.store.cache = whole


class _Beside(LatentCache):
    """A latent cache that keeps fits elsewhere."""

    def __init__(self, cache: LatentCache, root: Path) -> None:
        super().__init__(root)
        self.get, self.put = cache.get, cache.put  # type: ignore[method-assign]


def grids(stream: Any, indices: Any = TEST) -> dict[str, torch.Tensor]:
    batches = list(stream(list(indices)))
    return {layer: torch.cat([batch.grids[layer] for batch in batches]) for layer in batches[0].grids}


def fitted(stream: ActivationStream, settings: dict[str, Any], compare: bool = False, fit: Any = FIT) -> Mitigations:
    mitigations = Mitigations(settings, compare)
    mitigations.fit(stream, list(fit), list(TEST))
    return mitigations


SEVERAL: dict[str, Callable[[], Any]] = {
    "standardize": Standardize,
    "position_mean": lambda: PositionMean(basis="cosine", cosines=1),
    "leace": lambda: Leace(columns="cosine", cosines=1),
    "pca_drop": PcaDrop,
    "canvas": Canvas,
    "padding_swap": PaddingSwap,
}


def test_a_variant_is_what_the_mitigation_alone_gives(apart: ActivationStream) -> None:
    together = grids(fitted(apart, {label: make() for label, make in SEVERAL.items()}, compare=True).wrap(apart))
    rmtree(apart.store.cache.root / "mitigations")  # or the fits of the variants would be recalled
    plain = grids(apart)
    assert list(together)[:2] == ["down_0", "down_0__standardize"]
    for layer in LAYERS:
        assert together[layer].equal(plain[layer])
        for label, make in SEVERAL.items():
            alone = grids(fitted(apart, {label: make()}).wrap(apart))
            assert together[f"{layer}__{label}"].equal(alone[layer]), label
            assert not alone[layer].equal(plain[layer]), label


def test_a_chain_is_fitted_and_applied_step_by_step(apart: ActivationStream) -> None:
    chained = grids(fitted(apart, {"a": Standardize(mode="zscore"), "b": PcaDrop()}).wrap(apart))
    fit, test = grids(apart, FIT), grids(apart)
    for layer in LAYERS:
        first = Standardize(mode="zscore").fit([fit[layer]])
        second = PcaDrop().fit([first.transform(fit[layer])])
        torch.testing.assert_close(chained[layer], second.transform(first.transform(test[layer])), rtol=1e-4, atol=1e-5)


def test_one_pass_over_the_fit_images_fits_everything_that_looks_at_them_plainly(apart: ActivationStream) -> None:
    before = apart.backbone.passes["unet"]
    fitted(apart, {label: make() for label, make in SEVERAL.items()}, compare=True)
    assert apart.backbone.passes["unet"] - before == len(FIT)


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors, record: tensors.write_bytes(tensors.read_bytes()[:-1] + bytes([tensors.read_bytes()[-1] ^ 1])),
        lambda tensors, record: record.write_bytes(record.read_bytes()[:-1]),
        lambda tensors, record: record.write_text(record.read_text().replace('"tolerance": 0.01', '"tolerance": 0.02')),
        lambda tensors, record: record.write_text(record.read_text().replace('"timestep": 50', '"timestep": 51')),
        lambda tensors, record: tensors.unlink(),
    ],
)
def test_a_fit_is_recalled_by_itself_and_fitted_anew_when_its_files_are_not_as_written(
    apart: ActivationStream, damage: Callable[[Path, Path], None]
) -> None:
    shown = []

    def passes(**more: Any) -> int:
        before = apart.backbone.passes["unet"]
        mitigations = fitted(apart, {"leace": Leace(columns="cosine", cosines=1), **more}, compare=True)
        found = apart.backbone.passes["unet"] - before
        shown.append(grids(mitigations.wrap(apart)))
        return found

    assert (passes(), passes(), passes(other=Standardize()), passes(other=Standardize())) == (len(FIT), 0, len(FIT), 0)
    for folder in (apart.store.cache.root / "mitigations").iterdir():
        damage(folder / "mitigation.safetensors", folder / "mitigation.json")
    assert passes() == len(FIT) and passes() == 0
    assert all(each["mid__leace"].equal(shown[0]["mid__leace"]) for each in shown)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_results_do_not_depend_on_the_batch_size(apart: ActivationStream, size: int) -> None:
    settings = {"position_mean": PositionMean(basis="cosine", cosines=1), "views": ShiftFlipNoise(2, shift=64)}
    expected = grids(fitted(apart, settings, compare=True).wrap(apart))
    other = ActivationStream(apart.backbone, apart.store, apart.reads, size)
    rmtree(apart.store.cache.root / "mitigations")
    found = grids(fitted(other, settings, compare=True).wrap(other))
    for name, grid in expected.items():
        torch.testing.assert_close(found[name], grid, rtol=1e-4, atol=1e-4)


def test_a_padding_swap_leaves_the_network_as_it_was(apart: ActivationStream) -> None:
    before = weight_hash(apart.backbone.unet.unet), weight_hash(apart.backbone.encoder.vae), grids(apart)
    swapped = grids(fitted(apart, {"padding_swap": PaddingSwap("circular")}).wrap(apart))
    assert not swapped["mid"].equal(before[2]["mid"])
    assert (weight_hash(apart.backbone.unet.unet), weight_hash(apart.backbone.encoder.vae)) == before[:2]
    assert grids(apart)["mid"].equal(before[2]["mid"])


def test_what_a_run_saved_is_used_again_and_only_where_it_belongs(apart: ActivationStream, tmp_path: Path) -> None:
    mitigations = fitted(apart, {"standardize": Standardize(mode="zca"), "leace": Leace(columns="cosine", cosines=1)})
    mitigations.save(tmp_path / "run")
    expected = grids(mitigations.wrap(apart))
    for layer, chain in load(tmp_path / "run", timestep=50).items():
        assert chain.transform(grids(apart)[layer]).equal(expected[layer])
    for layer, grid in grids(fitted(apart, {"saved": Saved(str(tmp_path / "run"))}).wrap(apart)).items():
        assert grid.equal(expected[layer])
    with pytest.raises(InputError, match="used with timestep 50, which it was fitted on, but got 261"):
        load(tmp_path / "run", timestep=261)
    with pytest.raises(InputError, match="4 of the tested ones are among its fit images"):
        Mitigations({"saved": Saved(str(tmp_path / "run"))}).fit(apart, [], [0, 1, 2, 3])
    other = ActivationStream(apart.backbone, apart.store, Pass(("up_0",), (50,)))
    with pytest.raises(InputError, match="at down_0, mid, which it was fitted at, but got up_0"):
        Mitigations({"saved": Saved(str(tmp_path / "run"))}).fit(other, [], list(TEST))
    with pytest.raises(InputError, match="to hold mitigation"):
        load(tmp_path / "nothing")
    (tmp_path / "run" / "mitigation" / "mitigation.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"Expected an intact mitigation in .*no safetensors"):
        load(tmp_path / "run")


def test_a_damaged_or_mixed_mitigation_is_refused_and_one_of_an_older_version_is_not(tmp_path: Path) -> None:
    """An interruption leaves tensors of one fit beside the record of another; older versions wrote no checksums."""
    grid, tensors = torch.randn(4, 3, 2, 2), tmp_path / "old" / "mitigation.safetensors"
    fits = {name: Standardize().fit([scale * grid + scale]) for name, scale in {"old": 1, "new": 2}.items()}
    for name, fit in fits.items():
        save(tmp_path / name, {"mid": fit})
    whole = tensors.read_bytes()
    assert load(tmp_path / "old")["mid"].transform(grid).equal(fits["old"].transform(grid))
    for position in (0, len(whole) - 9, len(whole) - 1):
        tensors.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(InputError, match="Expected an intact mitigation"):
            load(tmp_path / "old")
    tensors.write_bytes(whole)
    record = json.loads((tmp_path / "old" / "mitigation.json").read_text())
    del record["digest"], record["meta"]
    (tmp_path / "old" / "mitigation.json").write_text(json.dumps(record))
    save_file(load_file(tensors), tensors)
    assert load(tmp_path / "old")["mid"].transform(grid).equal(fits["old"].transform(grid))
    tensors.write_bytes((tmp_path / "new" / "mitigation.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"got 'mitigation\.json of another fit than mitigation\.safetensors'"):
        load(tmp_path / "old")


def test_a_record_cannot_name_anything_but_a_mitigation(apart: ActivationStream, tmp_path: Path) -> None:
    fitted(apart, {"standardize": Standardize()}).save(tmp_path)
    record = tmp_path / "mitigation" / "mitigation.json"
    write_json(record, json.loads(record.read_text().replace('"Standardize"', '"load"')))
    with pytest.raises(InputError, match="no mitigation is called load"):
        load(tmp_path)


def test_fits_that_cannot_be_trusted_are_refused(apart: ActivationStream) -> None:
    with pytest.raises(InputError, match="Expected Canvas to come first"):
        Mitigations({"a": Standardize(), "b": Canvas()})
    with pytest.raises(InputError, match="Expected PaddingSwap to come first"):
        Mitigations({"a": Canvas(), "b": PaddingSwap()})
    with pytest.raises(InputError, match="Expected mitigations to compare, but got none"):
        Mitigations({}, compare=True)
    for label in ("t261", "t261__leace", "a/b"):  # keys would hold another timestep, or one part more
        Mitigations({label: Standardize()})
        with pytest.raises(InputError, match=f"Expected labels of compared mitigations .* got '{label}'"):
            Mitigations({label: Standardize()}, compare=True)
    with pytest.raises(InputError, match="this protocol has none"):
        Mitigations({"a": Standardize()}).fit(apart, [], list(TEST))
    with pytest.raises(InputError, match="2 photographs are in both"):
        Mitigations({"a": Standardize()}).fit(apart, list(FIT), [6, 7, 8])
    with pytest.raises(InputError, match="saved alone"):
        Mitigations({"a": Saved("x"), "b": Standardize()}).fit(apart, list(FIT), list(TEST))
    with pytest.raises(InputError, match=r"at most half .* The layer is down_0\."):
        fitted(apart, {"a": RandomRank(rank=60)})


def test_nothing_to_do_costs_nothing(stream: ActivationStream) -> None:
    mitigations = Mitigations({})
    assert mitigations.is_identity and not mitigations.needs_fit
    assert mitigations.wrap(stream) is stream
    assert mitigations.describe(SIZE) == {}


def test_passes_are_counted(apart: ActivationStream) -> None:
    settings = {"canvas": Canvas(), "views": ShiftFlipNoise(8), "standardize": Standardize()}
    described = fitted(apart, settings, compare=True).describe(512)
    passes = {label: way["passes"] for label, way in described.items()}
    assert passes == {"none": 1, "canvas": 1.5625, "views": 8, "standardize": 1}
    assert described["standardize"]["fits"]["mid"] == [{"fit_images": len(FIT)}]

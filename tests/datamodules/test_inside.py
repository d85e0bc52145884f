"""Mitigations inside the network: later layers are those that an independent hook gives, and the fit is that of the first."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datamodules.activations import ActivationDataModule
from datamodules.images.folder import FolderImages
from datamodules.stream import ActivationStream
from sdprobe.backbones import FrozenSD
from sdprobe.mitigations import Canvas, PaddingSwap, PositionMean, ShiftFlipNoise, Standardize
from sdprobe.mitigations.base import Configured
from sdprobe.runs.record import result_settings
from sdprobe.utilities.errors import InputError

LAYERS, LEVELS, SIZE = ["down_0", "mid", "up_0"], (50, 261), 128
SMALL = ["backbone=tiny", "images.size=128", "logger=none", "device=cpu", "twins=0"]
MODULE = "down_blocks.0"


def data_of(images: FolderImages, sd: FrozenSD, cache: Path, *steps: Configured, **options: Any) -> ActivationDataModule:
    mitigation = {type(step).__name__: step for step in steps}
    chosen = {"block": LAYERS, "timestep": LEVELS, "batch_size": 3, "mitigation": mitigation} | options
    data = ActivationDataModule(images, sd, cache_dir=str(cache), **chosen)
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.fixture(scope="module")
def images(save_photos: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> FolderImages:
    return FolderImages(str(save_photos(tmp_path_factory.mktemp("inside"), 24)), size=SIZE)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def hooked(stream: ActivationStream, indices: Sequence[int], edits: dict[int, Callable[[Tensor], Tensor]]) -> dict[str, Tensor]:
    """Grids of every layer and level from passes of diffusers' network, with the output of the first stage edited."""
    sd, reads, found = stream.backbone, stream.reads, {}
    paths = {"mid": "mid_block", "up_0": "up_blocks.0"}
    for level in LEVELS:
        kept: dict[str, Tensor] = {}

        def first(_module: nn.Module, _inputs: Any, output: Any, level: int = level, kept: dict[str, Tensor] = kept) -> Any:
            grid = edits[level](output[0])
            kept["down_0"] = grid
            return grid, (*output[1][:-1], grid)  # the skip connection has the same grid

        def keep(name: str, kept: dict[str, Tensor] = kept) -> Callable[..., None]:
            return lambda _module, _inputs, output: kept.update({name: output[0] if isinstance(output, tuple) else output})

        handles = [sd.unet.unet.get_submodule(MODULE).register_forward_hook(first)]
        handles += [sd.unet.unet.get_submodule(path).register_forward_hook(keep(name)) for name, path in paths.items()]
        latents = torch.stack([stream.store[index] for index in indices])
        noisy = sd.noise(latents, level, [stream.store.images.name(index) for index in indices], reads.seed)
        states = sd.prompts("", sd.device, sd.dtype).states.expand(len(noisy), -1, -1)
        with torch.no_grad():
            sd.unet.unet(noisy.contiguous(memory_format=torch.channels_last), level, states)
        for handle in handles:
            handle.remove()
        found |= {f"{name}__t{level}": grid for name, grid in kept.items()}
    return found


def test_later_layers_are_those_of_an_independent_hook(images: FolderImages, sd: FrozenSD, cache: Path) -> None:
    steps = [Standardize(), PositionMean(basis="cosine", cosines=1)]
    data = data_of(images, sd, cache, *steps, inside=True)
    plain, fit, test = data.base_stream, data.split["fit"], data.split["test"][:3]
    maps: dict[int, Callable[[Tensor], Tensor]] = {}
    for level in LEVELS:
        grids = [batch.grids[f"down_0__t{level}"] for batch in plain(fit)]
        standardize = steps[0].fit(grids)
        position = steps[1].fit(map(standardize.transform, grids))
        maps[level] = lambda grid, first=standardize, second=position: second.transform(first.transform(grid))
    expected = hooked(plain, test, maps)
    (batch,), (before,) = list(data.stream(test)), list(plain(test))
    assert list(batch.grids) == list(before.grids) == [f"{layer}__t{level}" for layer in LAYERS for level in LEVELS]
    for name, grid in batch.grids.items():
        assert torch.allclose(grid, expected[name], rtol=1e-4, atol=1e-5), name
        assert not torch.allclose(grid, before.grids[name], rtol=1e-2)
        assert all(torch.equal(batch.masks[name][group], mask) for group, mask in before.masks[name].items())
    assert data.describe()["inside"] == data.fitted_on["inside"] == "down_0"
    assert list(data.mitigations.describe(SIZE)["none"]["fits"]) == ["down_0__t50", "down_0__t261"]


def test_compared_mitigations_edit_in_turn_beside_the_unedited_network(images: FolderImages, sd: FrozenSD, cache: Path) -> None:
    steps = [Standardize(), PositionMean(basis="cosine", cosines=1)]
    data = data_of(images, sd, cache, *steps, inside=True, compare=True, timestep=50)
    outside = data_of(images, sd, cache, *steps, compare=True, timestep=50)
    test = data.split["test"][:3]
    (batch,), (other,) = list(data.stream(test)), list(outside.stream(test))
    assert list(batch.grids) == list(other.grids)
    for layer in LAYERS:
        assert torch.equal(batch.grids[layer], other.grids[layer])
    for label in ("Standardize", "PositionMean"):
        alone = data_of(images, sd, cache, next(s for s in steps if type(s).__name__ == label), inside=True, timestep=50)
        (single,) = list(alone.stream(test))
        for layer in LAYERS:
            assert torch.equal(batch.grids[f"{layer}__{label}"], single.grids[layer])
        assert torch.equal(batch.grids[f"down_0__{label}"], other.grids[f"down_0__{label}"])
        assert not torch.allclose(batch.grids[f"mid__{label}"], other.grids[f"mid__{label}"], rtol=1e-2)


def test_an_edit_reaches_the_skip_connection_that_has_the_same_grid(sd: FrozenSD) -> None:
    """In ``down_0`` the last skip connection is the grid that the next stage gets; both are edited."""
    latents, seen = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), {}

    def look(_module: nn.Module, args: Any, options: Any) -> None:
        seen["skips"] = options["res_hidden_states_tuple"]

    handle = sd.unet.unet.up_blocks[2].register_forward_pre_hook(look, with_kwargs=True)
    sd.grids(latents, ["a"], ["conv_out"], 50, 0, "", edits={"down_0": torch.zeros_like})
    handle.remove()
    assert [bool(skip.any()) for skip in seen["skips"]].count(False) == 1


@pytest.mark.parametrize(
    ("steps", "options", "sentence"),
    [
        ([], {}, "Expected mitigations to apply inside the network, but got none"),
        ([Canvas()], {}, "but Canvas changes how the network is shown an image"),
        ([ShiftFlipNoise()], {}, "but ShiftFlipNoise changes"),
        ([PaddingSwap()], {}, "but PaddingSwap changes"),
        ([Standardize()], {"block": "mid"}, "to have later ones, which are read, .* but got mid"),
        ([Standardize()], {"block": ["latent", "mid"]}, "begin with a layer of the network"),
    ],
)
def test_what_cannot_be_applied_inside_is_refused(
    images: FolderImages, sd: FrozenSD, cache: Path, steps: list[Configured], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        data_of(images, sd, cache, *steps, inside=True, **options)


def test_a_run_says_where_it_edits_and_runs_without_it_keep_their_hash(
    launch: Callable[..., Any], configure: Callable[..., Any]
) -> None:
    run = launch(
        "probe=position", "block=[mid,up_0]", "probe.solver=closed_form", "mitigation=position_mean", "images.limit=30",
        "mitigation.position_mean.basis=cosine", "mitigation.position_mean.cosines=1", "datamodule.inside=true",
        "datamodule.compare=true",
    )  # fmt: skip
    assert run.meta["inside"] == "mid" and "applied inside mid" in run.setting
    assert "inside" not in result_settings(configure())["datamodule"]
    assert result_settings(configure("datamodule.inside=true"))["datamodule"]["inside"] is True

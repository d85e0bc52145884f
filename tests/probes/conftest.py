"""Planted tokens for probes: grids whose signal is known, served the way the data module serves them."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor

from sdprobe.tokens.batch import GridBatch, TokenBatch
from sdprobe.tokens.groups import token_groups
from sdprobe.tokens.mixing import all_tokens, flattened, mixing_buffer


class Planted(lightning.LightningDataModule):
    """Grids of several layers, mixed for training, whole for validation and test; 60/20/20 by image."""

    kind = "activations"

    def __init__(self, grids: dict[str, Tensor], validate: bool = True, batch: int = 512) -> None:
        super().__init__()
        self.grids = grids
        self.batch = batch
        self.images = len(next(iter(grids.values())))
        self.shapes = {layer: tuple(grid.shape[1:]) for layer, grid in grids.items()}
        first, second = int(0.6 * self.images), int(0.8 * self.images)
        self.parts = {
            "train": range(first if validate else second),
            "val": range(first, second),
            "test": range(second, self.images),
        }
        self.validate = validate

    def part(self, name: str) -> GridBatch:
        index = torch.tensor(list(self.parts[name]))
        grids = {layer: grid[index] for layer, grid in self.grids.items()}
        return GridBatch(grids, {layer: token_groups(grid) for layer, grid in grids.items()}, index, index)

    def train_dataloader(self) -> "Epochs":
        return Epochs(self)

    def val_dataloader(self) -> "Listed | list[TokenBatch]":
        return Listed(self.images_of("val")) if self.validate else []

    def test_dataloader(self) -> "Listed":
        return Listed([self.finished(flattened(self.part("test")))])

    def images_of(self, name: str) -> list[TokenBatch]:
        return [self.finished(tokens) for tokens in all_tokens(self.part(name))]

    def finished(self, batch: TokenBatch) -> TokenBatch:
        return batch


class Targeted(Planted):
    """The same with targets of tokens: layer → (images, side, side, V); ``frames`` images show one photograph."""

    def __init__(self, kind: str, grids: dict[str, Tensor], targets: dict[str, Tensor], **options: Any) -> None:
        super().__init__(grids, **options)
        self.kind, self.targets, self.frames = kind, targets, 2
        self.target_channels = next(iter(targets.values())).shape[-1]

    def training_targets(self, layer: str) -> Tensor:
        return self.targets[layer][list(self.parts["train"])]

    def finished(self, batch: TokenBatch) -> TokenBatch:
        found = {
            layer: self.targets[layer][image, batch.positions[layer][:, 0], batch.positions[layer][:, 1]]
            for layer, image in batch.image.items()
        }
        return replace(batch, targets=found, photo={layer: image // self.frames for layer, image in batch.image.items()})


class Listed:
    """Lightning reads a plain list as several loaders."""

    def __init__(self, batches: list[TokenBatch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[TokenBatch]:
        return iter(self.batches)


class Epochs:
    def __init__(self, data: Planted) -> None:
        self.data = data
        self.pieces = data.images_of("train")

    def __len__(self) -> int:
        most = max(height * width for _, height, width in self.data.shapes.values())
        return -(-len(self.pieces) * most // self.data.batch)

    def __iter__(self) -> Iterator[TokenBatch]:
        assert self.data.trainer is not None
        return mixing_buffer(self.pieces, len(self.pieces), self.data.batch, "planted", self.data.trainer.current_epoch)


@pytest.fixture
def planted() -> type[Planted]:
    return Planted


def fit_and_test(probe: lightning.LightningModule, data: lightning.LightningDataModule, epochs: int) -> dict[str, float]:
    """Results of a probe after training for at most ``epochs``."""
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(probe, datamodule=data)
    trainer.test(probe, datamodule=data, verbose=False)
    return probe.results  # type: ignore[return-value]


def contributions(probe: Any, units: int) -> dict[str, np.ndarray]:
    """Pseudo-values of a tested probe, whose mean is what it reports; one of each of so many units."""
    found: dict[str, np.ndarray] = probe.pseudovalues()
    assert found
    for key, values in found.items():
        assert len(values) == units, key
        assert np.nanmean(values) == pytest.approx(probe.results[key], rel=1e-6, abs=1e-9), key
    return found


@pytest.fixture(name="fit_and_test")
def _fit_and_test():  # type: ignore[no-untyped-def]
    return fit_and_test


@pytest.fixture
def coded():  # type: ignore[no-untyped-def]
    """(images, C, side, side) of white noise, plus ``strength`` times a random but fixed vector per row and column."""

    def make(images: int, channels: int, side: int, strength: float, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        code = torch.randn(2, channels, side, generator=generator)
        position_code = code[0][:, :, None] + code[1][:, None, :]
        return torch.randn(images, channels, side, side, generator=generator) + strength * position_code

    return make

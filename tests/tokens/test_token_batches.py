"""Batches move between devices as a whole and are otherwise immutable."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from torch import Tensor

from sdprobe.tokens.batch import GridBatch, TokenBatch


def grid_batch() -> GridBatch:
    grids = {"mid": torch.rand(2, 3, 4, 5), "up_1": torch.rand(2, 6, 8, 10)}
    masks = {name: {"corner": torch.rand(2, *grid.shape[2:]) > 0.5} for name, grid in grids.items()}
    return GridBatch(grids=grids, masks=masks, image=torch.arange(2), photo=torch.tensor([7, 7]))


def token_batch() -> TokenBatch:
    counts = {"mid": 4, "up_1": 9}
    return TokenBatch(
        tokens={name: torch.rand(n, 3) for name, n in counts.items()},
        positions={name: torch.randint(8, (n, 2)) for name, n in counts.items()},
        masks={name: {"corner": torch.rand(n) > 0.5, "border": torch.rand(n) > 0.5} for name, n in counts.items()},
        image={name: torch.arange(n) for name, n in counts.items()},
        photo={name: torch.arange(n) for name, n in counts.items()},
    )


def leaves(value: Any, path: str = "") -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {path: value}
    items = value.items() if isinstance(value, dict) else vars(value).items()
    return {name: leaf for key, item in items for name, leaf in leaves(item, f"{path}/{key}").items()}


@pytest.mark.parametrize("batch", [grid_batch(), token_batch()], ids=lambda batch: type(batch).__name__)
class TestMoving:
    def test_every_tensor_moves(self, batch: GridBatch | TokenBatch) -> None:
        moved = leaves(batch.to("meta", non_blocking=True))
        assert moved.keys() == leaves(batch).keys()
        assert {leaf.device.type for leaf in moved.values()} == {"meta"}
        assert {name: (leaf.shape, leaf.dtype) for name, leaf in moved.items()} == {
            name: (leaf.shape, leaf.dtype) for name, leaf in leaves(batch).items()
        }

    def test_the_original_stays_where_it_was(self, batch: GridBatch | TokenBatch) -> None:
        batch.to("meta")
        assert {leaf.device.type for leaf in leaves(batch).values()} == {"cpu"}

    def test_moving_to_the_same_device_keeps_values_and_type(self, batch: GridBatch | TokenBatch) -> None:
        moved = batch.to(torch.device("cpu"))
        assert type(moved) is type(batch)
        assert all(torch.equal(leaf, leaves(batch)[name]) for name, leaf in leaves(moved).items())

    def test_fields_cannot_be_replaced(self, batch: GridBatch | TokenBatch) -> None:
        with pytest.raises(FrozenInstanceError):
            batch.masks = {}  # type: ignore[misc]

"""GridBatch.select: the chosen images of a batch, every tensor of them and nothing else."""

import pytest
import torch

from sdprobe.tokens.batch import GridBatch

COUNT = 4


@pytest.fixture
def batch() -> GridBatch:
    """Every number names the image it belongs to."""
    number, shapes = torch.arange(COUNT), {"mid": (3, 2, 2), "up_1": (2, 4, 5)}
    grids = {layer: number.view(-1, 1, 1, 1).expand(COUNT, *shape).float() for layer, shape in shapes.items()}
    masks = {
        layer: {
            "corner": (number.view(-1, 1, 1) == 1).expand(COUNT, *grid.shape[2:]),
            "border": (number.view(-1, 1, 1) >= 2).expand(COUNT, *grid.shape[2:]),
        }
        for layer, grid in grids.items()
    }
    return GridBatch(grids, masks, image=10 + number, photo=20 + number // 2)


@pytest.mark.parametrize("which", [[0], [3], [1, 2], [0, 1, 2], [3, 0], [1, 0, 2, 3], [2, 2]])
def test_every_tensor_holds_the_chosen_images_in_the_order_asked(batch: GridBatch, which: list[int]) -> None:
    chosen = batch.select(which)
    assert chosen.image.tolist() == [10 + k for k in which]
    assert chosen.photo.tolist() == [20 + k // 2 for k in which]
    assert list(chosen.grids) == list(batch.grids) == list(chosen.masks)
    for layer, grid in chosen.grids.items():
        assert grid.shape == (len(which), *batch.grids[layer].shape[1:])
        assert grid[:, 0, 0, 0].tolist() == which and (grid == grid[:, :1, :1, :1]).all()
        assert list(chosen.masks[layer]) == ["corner", "border"]
        assert chosen.masks[layer]["corner"].all((1, 2)).tolist() == [k == 1 for k in which]
        assert chosen.masks[layer]["border"].all((1, 2)).tolist() == [k >= 2 for k in which]
        assert all(mask.shape == (len(which), *grid.shape[2:]) for mask in chosen.masks[layer].values())


def test_all_images_in_order_are_the_batch_itself(batch: GridBatch) -> None:
    assert batch.select(range(COUNT)) is batch
    assert batch.select([1, 0, 2, 3]) is not batch, "another order is another batch"
    assert batch.select([0, 1, 2]) is not batch


def test_the_original_is_left_as_it_was(batch: GridBatch) -> None:
    batch.select([2]).grids["mid"].zero_()
    assert batch.grids["mid"][:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_an_image_that_is_not_there_is_an_error(batch: GridBatch) -> None:
    with pytest.raises(IndexError):
        batch.select([COUNT])


def test_no_images_leave_an_empty_batch(batch: GridBatch) -> None:
    empty = batch.select([])
    assert empty.image.tolist() == [] and empty.grids["up_1"].shape == (0, 2, 4, 5)

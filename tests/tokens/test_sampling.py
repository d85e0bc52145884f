"""Sampling: one token per cell of an 8×8 partition, keyed by image and layer, and the plain flattening of whole grids."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdprobe.tokens.batch import GridBatch, TokenBatch
from sdprobe.tokens.mixing import all_tokens, draw_tokens, flattened, stratified
from sdprobe.utilities.rng import keyed_generator

LAYERS = {"mid": (5, 2, 3), "up_1": (4, 9, 16)}


def cells(index: np.ndarray, side: int) -> np.ndarray:
    """Which of eight bins along an axis a token lies in: floor(8 · index / side), the bins of binned accuracy."""
    return index * 8 // side


@pytest.fixture
def batch() -> GridBatch:
    generator = torch.Generator().manual_seed(0)
    grids = {layer: torch.randn(3, *shape, generator=generator) for layer, shape in LAYERS.items()}
    masks = {
        layer: {group: torch.rand(3, *shape[1:], generator=generator) > 0.5 for group in ("corner", "high_norm")}
        for layer, shape in LAYERS.items()
    }
    return GridBatch(grids, masks, torch.tensor([4, 7, 2]), torch.tensor([1, 1, 0]))


def part(batch: GridBatch, images: list[int]) -> GridBatch:
    return GridBatch(
        {layer: grid[images] for layer, grid in batch.grids.items()},
        {layer: {group: mask[images] for group, mask in groups.items()} for layer, groups in batch.masks.items()},
        batch.image[images],
        batch.photo[images],
    )


def assert_same(one: TokenBatch, other: TokenBatch) -> None:
    assert list(one.tokens) == list(other.tokens)
    for layer in one.tokens:
        assert torch.equal(one.tokens[layer], other.tokens[layer])
        assert torch.equal(one.positions[layer], other.positions[layer])
        assert torch.equal(one.photo[layer], other.photo[layer])
        for group, mask in one.masks[layer].items():
            assert torch.equal(mask, other.masks[layer][group])


def assert_true_to(batch: GridBatch, image: int, piece: TokenBatch) -> None:
    """Every token, mask and photograph is what the grid holds at the token's position; a loop on purpose."""
    for layer, where in piece.positions.items():
        for n, (row, col) in enumerate(where.tolist()):
            assert torch.equal(piece.tokens[layer][n], batch.grids[layer][image, :, row, col])
            assert piece.photo[layer][n] == batch.photo[image]
            for group, mask in piece.masks[layer].items():
                assert mask[n] == batch.masks[layer][group][image, row, col]


@given(st.integers(8, 70), st.integers(8, 70), st.integers(0, 10**6))
@settings(deadline=None)
def test_large_grids_give_one_token_in_each_of_64_cells(height: int, width: int, seed: int) -> None:
    index = stratified(height, width, torch.Generator().manual_seed(seed)).numpy()
    assert index.shape == (64,)
    assert 0 <= index.min() <= index.max() < height * width
    drawn = set(zip(cells(index // width, height).tolist(), cells(index % width, width).tolist(), strict=True))
    assert len(drawn) == 64
    assert len(set(index.tolist())) == 64


@given(st.integers(1, 7), st.integers(1, 20), st.booleans(), st.integers(0, 10**6))
@settings(deadline=None)
def test_small_grids_give_64_tokens_that_cover_every_row_and_column(short: int, other: int, tall: bool, seed: int) -> None:
    height, width = (other, short) if tall else (short, other)
    index = stratified(height, width, torch.Generator().manual_seed(seed))
    assert index.shape == (64,)
    rows, cols = set((index // width).tolist()), set((index % width).tolist())
    assert rows == set(range(height)) if height <= 8 else rows <= set(range(height))
    assert cols == set(range(width)) if width <= 8 else cols <= set(range(width))
    if height <= 8 and width <= 8:
        assert len(set(index.tolist())) == height * width


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 10**6))
@settings(deadline=None)
def test_equal_generators_draw_alike(height: int, width: int, seed: int) -> None:
    one, two = (stratified(height, width, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(one, two)


def test_every_token_of_a_cell_is_equally_likely() -> None:
    draws = 2000
    index = torch.cat([stratified(24, 20, keyed_generator(i)) for i in range(draws)]).numpy()
    seen = np.bincount(index, minlength=24 * 20).reshape(24, 20)
    sizes = np.bincount(cells(np.arange(20), 20))
    share = 1 / (3 * sizes[cells(np.arange(20), 20)])  # of a cell's draws that one of its tokens gets
    z = (seen - draws * share) / np.sqrt(draws * share * (1 - share))
    assert np.abs(z).max() < 4.5
    assert 0.8 < z.std() < 1.2


def test_rows_and_columns_are_drawn_independently() -> None:
    index = torch.stack([stratified(64, 64, keyed_generator(i)) for i in range(300)]).numpy()
    row, col = (index // 64 % 8).ravel(), (index % 64 % 8).ravel()
    assert abs(np.corrcoef(row, col)[0, 1]) < 4 / len(row) ** 0.5


def test_drawn_tokens_are_true_to_the_grid(batch: GridBatch) -> None:
    for image, piece in enumerate(draw_tokens(batch, ["a", "b", "c"], seed=0)):
        assert {layer: len(tokens) for layer, tokens in piece.tokens.items()} == dict.fromkeys(LAYERS, 64)
        assert_true_to(batch, image, piece)


def test_a_draw_depends_on_seed_name_and_layer_but_not_on_the_batch(batch: GridBatch) -> None:
    together = draw_tokens(batch, ["a", "b", "c"], seed=0)
    for image, name in enumerate("abc"):
        [alone] = draw_tokens(part(batch, [image]), [name], seed=0)
        assert_same(together[image], alone)
    for piece, name in zip(draw_tokens(part(batch, [2, 0]), ["c", "a"], seed=0), "ca", strict=True):
        assert_same(piece, together["abc".index(name)])
    only = GridBatch({"up_1": batch.grids["up_1"]}, {"up_1": batch.masks["up_1"]}, batch.image, batch.photo)
    for piece, full in zip(draw_tokens(only, ["a", "b", "c"], seed=0), together, strict=True):
        assert torch.equal(piece.positions["up_1"], full.positions["up_1"])
    where = together[0].positions["up_1"]
    assert not torch.equal(where, together[1].positions["up_1"])
    assert not torch.equal(where, draw_tokens(batch, ["a", "b", "c"], seed=1)[0].positions["up_1"])


def test_two_layers_of_one_shape_are_drawn_at_different_places() -> None:
    grid, mask = torch.randn(1, 2, 32, 32), torch.zeros(1, 32, 32, dtype=torch.bool)
    twins = {"up_1": grid, "up_2": grid}
    batch = GridBatch(twins, {layer: {"corner": mask} for layer in twins}, torch.tensor([0]), torch.tensor([0]))
    [piece] = draw_tokens(batch, ["a"], seed=0)
    assert not torch.equal(piece.positions["up_1"], piece.positions["up_2"])


def test_drawn_tokens_keep_nothing_else_alive(batch: GridBatch) -> None:
    piece = draw_tokens(batch, ["a", "b", "c"], seed=0)[0]
    for layer, tokens in piece.tokens.items():
        assert tokens.untyped_storage().nbytes() == tokens.nbytes
        assert tokens.untyped_storage().data_ptr() != batch.grids[layer].untyped_storage().data_ptr()


def test_all_tokens_are_every_token_in_row_major_order(batch: GridBatch) -> None:
    for image, piece in enumerate(all_tokens(batch)):
        assert_true_to(batch, image, piece)
        for layer, (_, height, width) in LAYERS.items():
            assert piece.positions[layer].tolist() == [[row, col] for row in range(height) for col in range(width)]


def test_flattening_a_batch_is_all_tokens_image_after_image(batch: GridBatch) -> None:
    whole, pieces = flattened(batch), all_tokens(batch)
    for layer in LAYERS:
        assert torch.equal(whole.tokens[layer], torch.cat([piece.tokens[layer] for piece in pieces]))
        assert torch.equal(whole.positions[layer], torch.cat([piece.positions[layer] for piece in pieces]))
        assert torch.equal(whole.photo[layer], torch.cat([piece.photo[layer] for piece in pieces]))
        for group, mask in whole.masks[layer].items():
            assert torch.equal(mask, torch.cat([piece.masks[layer][group] for piece in pieces]))


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
@settings(deadline=None, max_examples=25)
def test_flattened_agrees_with_naive_loops(images: int, channels: int, height: int, width: int) -> None:
    grid = torch.randn(images, channels, height, width).to(memory_format=torch.channels_last)
    mask = torch.rand(images, height, width) > 0.5
    batch = GridBatch({"mid": grid}, {"mid": {"border": mask}}, torch.arange(images), torch.arange(images) + 3)
    tokens = flattened(batch)
    n = 0
    for b in range(images):
        for row in range(height):
            for col in range(width):
                assert torch.equal(tokens.tokens["mid"][n], grid[b, :, row, col])
                assert tokens.positions["mid"][n].tolist() == [row, col]
                assert tokens.masks["mid"]["border"][n] == mask[b, row, col]
                assert tokens.photo["mid"][n] == b + 3
                n += 1
    assert n == len(tokens.tokens["mid"])

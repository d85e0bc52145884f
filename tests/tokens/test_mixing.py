"""mixing_buffer: every token exactly once, full batches, each layer as if alone, in bounded memory."""

from collections.abc import Iterator

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdprobe.tokens.batch import TokenBatch, concatenated
from sdprobe.tokens.mixing import batches_per_pass, mixing_buffer

counts_per_layer = st.dictionaries(st.sampled_from(["mid", "up_0", "up_1"]), st.integers(1, 30), min_size=1)
image_counts, block_sizes, batch_sizes = st.integers(0, 12), st.integers(1, 5), st.integers(1, 40)


def piece(image: int, counts: dict[str, int]) -> TokenBatch:
    """One image's tokens; channel 0 is the image, channel 1 the number of the token."""
    tokens = {layer: torch.tensor([[image, n] for n in range(count)], dtype=torch.float32) for layer, count in counts.items()}
    return TokenBatch(
        tokens=tokens,
        positions={layer: values.long() for layer, values in tokens.items()},
        masks={layer: {"odd": values[:, 1] % 2 == 1} for layer, values in tokens.items()},
        image={layer: values[:, 0].long() for layer, values in tokens.items()},
        photo={layer: values[:, 0].long() + 100 for layer, values in tokens.items()},
    )


def pieces(images: int, counts: dict[str, int]) -> list[TokenBatch]:
    return [piece(i, counts) for i in range(images)]


def of_layer(batches: list[TokenBatch], layer: str) -> list[torch.Tensor]:
    return [batch.tokens[layer] for batch in batches if layer in batch.tokens]


@given(image_counts, counts_per_layer, block_sizes, batch_sizes)
@settings(deadline=None, max_examples=60)
def test_every_token_comes_once_with_what_belongs_to_it_in_full_batches_of_known_number(
    images: int, counts: dict[str, int], block: int, size: int
) -> None:
    batches = list(mixing_buffer(pieces(images, counts), block, size, 0))
    # a Trainer stops after so many steps: one more and its tokens are never trained on
    assert len(batches) == batches_per_pass(images, counts.values(), block, size)
    for layer, count in counts.items():
        tokens = of_layer(batches, layer)
        seen = sorted(tuple(token) for part in tokens for token in part.long().tolist())
        assert seen == [(i, n) for i in range(images) for n in range(count)]
        sizes = [len(part) for part in tokens]
        assert len(sizes) == -(-images * count // size)
        assert all(n == size for n in sizes[:-1]) and all(0 < n <= size for n in sizes)
    for batch in batches:
        assert batch.tokens, "no step without tokens"
        assert set(batch.tokens) == set(batch.positions) == set(batch.masks) == set(batch.photo)
        for layer, part in batch.tokens.items():
            assert torch.equal(batch.positions[layer], part.long())
            assert torch.equal(batch.photo[layer], part[:, 0].long() + 100)
            assert torch.equal(batch.masks[layer]["odd"], part[:, 1] % 2 == 1)


@given(image_counts, counts_per_layer, block_sizes, batch_sizes)
@settings(deadline=None, max_examples=40)
def test_a_layer_gets_the_same_batches_alone_as_with_others(images: int, counts: dict[str, int], block: int, size: int) -> None:
    together = list(mixing_buffer(pieces(images, counts), block, size, 1, "epoch"))
    for layer, count in counts.items():
        alone = of_layer(list(mixing_buffer(pieces(images, {layer: count}), block, size, 1, "epoch")), layer)
        among = of_layer(together, layer)
        assert len(alone) == len(among)
        assert all(torch.equal(one, other) for one, other in zip(alone, among, strict=True))


@given(st.integers(1, 20), st.integers(1, 30), block_sizes, batch_sizes)
@settings(deadline=None, max_examples=60)
def test_it_never_holds_more_than_a_block_and_the_rest(images: int, count: int, block: int, size: int) -> None:
    pulled = 0

    def source() -> Iterator[TokenBatch]:
        nonlocal pulled
        for one in pieces(images, {"mid": count}):
            pulled += 1
            yield one

    given_out = 0
    for batch in mixing_buffer(source(), block, size, 0):
        held = pulled * count - given_out
        assert held <= (block + 1) * count + size - 1, "a block, one image of look-ahead, and less than a batch left over"
        given_out += len(batch.tokens["mid"])


def test_it_does_not_look_at_anything_before_it_is_asked() -> None:
    def source() -> Iterator[TokenBatch]:
        raise AssertionError("asked too early")
        yield piece(0, {"mid": 1})

    mixing_buffer(source(), 2, 2, 0)


def test_keys_give_different_orders_and_equal_keys_equal_ones() -> None:
    runs = [of_layer(list(mixing_buffer(pieces(8, {"mid": 16}), 4, 16, *key)), "mid") for key in ((0, 0), (0, 0), (0, 1))]
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


def test_two_layers_and_two_blocks_are_mixed_differently() -> None:
    batches = list(mixing_buffer(pieces(8, {"mid": 16, "up_1": 16}), 4, 64, 0))
    first, second = batches
    assert not torch.equal(first.tokens["mid"], first.tokens["up_1"])
    assert not torch.equal(first.tokens["mid"][:, 1], second.tokens["mid"][:, 1])


def test_batches_mix_the_images_of_a_block() -> None:
    images, block, count = 64, 16, 64
    batches = of_layer(list(mixing_buffer(pieces(images, {"mid": count}), block, 128, 0)), "mid")
    for number, tokens in enumerate(batches):
        shares = torch.bincount(tokens[:, 0].long(), minlength=images)
        inside = shares[number * 128 // (block * count) * block :][:block]
        assert inside.sum() == 128
        assert (inside > 0).sum() >= block - 2, "128 draws from 16 images miss more than two with p < 1e-5"
        assert inside.max() < 30
    unmixed = of_layer(list(mixing_buffer(pieces(images, {"mid": count}), 1, 64, 0)), "mid")
    assert all(tokens[:, 0].unique().numel() == 1 for tokens in unmixed), "the control: blocks of one image do not mix"


@given(st.integers(1, 6), counts_per_layer)
@settings(deadline=None, max_examples=30)
def test_concatenation_keeps_the_order(images: int, counts: dict[str, int]) -> None:
    joined = concatenated(pieces(images, counts))
    for layer, count in counts.items():
        assert joined.tokens[layer].long().tolist() == [[i, n] for i in range(images) for n in range(count)]

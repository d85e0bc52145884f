"""Several processes: every image in one of them, the same batches for all, and every token's activation in one place."""

from collections.abc import Callable
from pathlib import Path

import lightning
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.activations import ActivationDataModule
from datamodules.images.folder import FolderImages
from datamodules.mixing import mixing_buffer, placeholder, shared
from sdprobe.backbones import FrozenSD
from sdprobe.tokens.batch import TokenBatch
from sdprobe.utilities.distributed import Processes

LAYERS = ["conv_in", "mid"]
SHAPES = {"one": (3, 4, 4), "other": (2, 2, 2)}


@given(st.integers(0, 40), st.integers(1, 7))
def test_every_item_is_in_one_share(items: int, count: int) -> None:
    shares = [Processes(rank, count).share(range(items)) for rank in range(count)]
    assert sorted(item for share in shares for item in share) == list(range(items))
    assert max(map(len, shares)) == Processes(0, count).largest(items)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_needs_no_company() -> None:
    alone = Processes.current()
    assert alone == Processes(0, 1)
    assert alone.gathered("said") == ["said"]
    assert alone.total(torch.tensor(3)).item() == 3


def image(index: int) -> TokenBatch:
    """All tokens of an image; its number and that of the token are in channels 0 and 1."""
    piece = placeholder(SHAPES, None, index, torch.device("cpu"), torch.float32)
    tokens = {}
    for layer, (channels, height, width) in SHAPES.items():
        tokens[layer] = torch.zeros(height * width, channels)
        tokens[layer][:, 0], tokens[layer][:, 1] = index, torch.arange(height * width)
    return TokenBatch(tokens, piece.positions, piece.masks, piece.photo)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 5), st.integers(1, 20))
@settings(max_examples=30)
def test_shares_of_a_batch_are_the_batch(images: int, count: int, block: int, size: int) -> None:
    whole = list(mixing_buffer(map(image, range(images)), block, size, "key"))
    lists = []
    for rank in range(count):
        own = Processes(rank, count).share(range(images))
        absent = {i: placeholder(SHAPES, None, i, torch.device("cpu"), torch.float32) for i in range(images)}
        lists.append(
            list(mixing_buffer((shared(image(i) if i in own else absent[i]) for i in range(images)), block, size, "key"))
        )
    for batch, *parts in zip(whole, *lists, strict=True):
        for layer, tokens in batch.tokens.items():
            together = torch.full_like(tokens, -1)
            for part in parts:
                assert torch.equal(part.positions[layer], batch.positions[layer])
                assert torch.equal(part.photo[layer], batch.photo[layer])
                assert (together[part.here[layer]] == -1).all(), "a token in two processes"
                together[part.here[layer]] = part.tokens[layer]
                assert torch.equal(part.present(layer, batch.positions[layer]), batch.positions[layer][part.here[layer]])
            assert torch.equal(together, tokens)


class Recorder(lightning.LightningModule):
    """Keeps every batch it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.train_batches: list[TokenBatch] = []
        self.others: list[TokenBatch] = []

    def training_step(self, batch: TokenBatch, batch_idx: int) -> torch.Tensor:
        self.train_batches.append(batch)
        return self.weight * 0

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        self.others.append(batch)

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(scope="module")
def recorded(sd: FrozenSD, tmp_path_factory: pytest.TempPathFactory, save_photos: Callable[..., Path]) -> Callable:
    """A function (rank, count, options) → the batches of that process."""
    folder = tmp_path_factory.mktemp("shares")
    photos = save_photos(folder / "photos", 17)

    def record(rank: int, count: int, **options: object) -> Recorder:
        chosen = {"block": LAYERS, "token_batch": 100, "mixing_images": 4, "batch_size": 2, **options}
        data = ActivationDataModule(FolderImages(str(photos), size=64), sd, cache_dir=str(folder / "cache"), **chosen)
        data.prepare_data()
        data.processes = Processes(rank, count)
        trainer = lightning.Trainer(
            max_epochs=1, limit_train_batches=8, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip
        recorder = Recorder()
        trainer.fit(recorder, datamodule=data)
        trainer.test(recorder, datamodule=data, verbose=False)
        return recorder

    return record


@pytest.mark.parametrize(("count", "options"), [(3, {}), (2, {"activation_budget": 0}), (2, {"sampling": "all"})], ids=str)
def test_processes_share_what_one_would_do(recorded: Callable, count: int, options: dict[str, object]) -> None:
    alone = recorded(0, 1, **options)
    parts = [recorded(rank, count, **options) for rank in range(count)]
    for batch, *pieces in zip(alone.train_batches, *(part.train_batches for part in parts), strict=True):
        for layer, tokens in batch.tokens.items():
            together = torch.full_like(tokens, torch.nan)
            for piece in pieces:
                assert torch.equal(piece.positions[layer], batch.positions[layer])
                assert torch.equal(piece.photo[layer], batch.photo[layer])
                together[piece.here[layer]] = piece.tokens[layer]
            torch.testing.assert_close(together, tokens, rtol=1e-4, atol=1e-5)
    assert len({len(part.others) for part in parts}) == 1, "equally many steps"
    for layer in LAYERS:
        seen = [row for part in parts for row in rows(part.others, layer)]
        assert sorted(seen) == sorted(rows(alone.others, layer)), "validation and test images, once each"


def rows(batches: list[TokenBatch], layer: str) -> list[tuple[int, ...]]:
    """(photo, row, col) of every token."""
    kept = [batch for batch in batches if layer in batch.tokens]
    return [(int(p), *where) for b in kept for p, where in zip(b.photo[layer], b.positions[layer].tolist(), strict=True)]

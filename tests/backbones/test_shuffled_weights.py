"""Shuffled weights: every tensor keeps its entries and loses its order."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sdprobe.backbones import FrozenSD


def load(path: object, weights: str, seed: int = 0) -> FrozenSD:
    return FrozenSD.from_pretrained(str(path), precision="fp32", device="cpu", weights=weights, weights_seed=seed)


@pytest.mark.parametrize("tiny", [True, False])
def test_each_tensor_keeps_its_entries_in_another_order(tiny: bool, saved: Path, images: Tensor) -> None:
    path = "tiny" if tiny else saved
    stored, shuffled = load(path, "stored"), load(path, "shuffled")
    for (name, before), (_, after) in zip(
        stored.unet.unet.named_parameters(), shuffled.unet.unet.named_parameters(), strict=True
    ):
        assert torch.equal(before.flatten().sort().values, after.flatten().sort().values), name
        assert before.unique().numel() < 8 or not torch.equal(before, after), name
    assert shuffled.encoder.weights == stored.encoder.weights
    a, b = (sd.activations(images[:1], "mid")["mid"] for sd in (stored, shuffled))
    assert b.isfinite().all() and not torch.allclose(a, b, atol=1e-2)


def test_a_seed_gives_one_order(saved: Path) -> None:
    hashes = [load(saved, "shuffled", seed).unet_hash for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert load(saved, "shuffled").describe()["weights"] == "shuffled-0"

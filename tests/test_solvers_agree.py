"""On real activations: closed form and converged Adam agree, and so does a slow copy of the published training loop."""

import os
from pathlib import Path

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from datamodules.activations import ActivationDataModule
from datamodules.images.scenes import Scenes
from probes import PositionProbe
from sdprobe.backbones import FrozenSD
from sdprobe.tokens.mixing import flattened

LAYERS = ["down_1", "mid", "up_1"]


def measured(probe: PositionProbe, data: ActivationDataModule, epochs: int) -> dict[str, float]:
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(probe, datamodule=data)
    trainer.test(probe, datamodule=data, verbose=False)
    return probe.results


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return os.fspath(tmp_path_factory.mktemp("latents"))


def data_of(cache: str, size: int, limit: int, **options: object) -> ActivationDataModule:
    sd = FrozenSD.from_pretrained("tiny", precision="fp32", device="cpu", **({"noise": "shared"} if options else {}))  # type: ignore[arg-type]
    return ActivationDataModule(Scenes(size, limit), sd, block=LAYERS, cache_dir=cache, **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_closed_form_and_converged_adam_agree(cache: str) -> None:
    data = data_of(cache, size=256, limit=150)
    results = {
        solver: measured(PositionProbe(data.shapes, data.photos, solver=solver), data, epochs=100)
        for solver in ("adam", "closed_form")
    }
    for layer in LAYERS:
        key = f"test/{layer}/axis_accuracy/all"
        chance = results["adam"][f"chance/{layer}/axis_accuracy/all"]
        assert results["adam"][key] > 2 * chance, "there must be something to agree on"
        assert abs(results["adam"][key] - results["closed_form"][key]) < 0.03, layer


@pytest.mark.slow
def test_the_published_loop_agrees_with_a_slow_copy(cache: str, tmp_path: Path) -> None:
    data = data_of(cache, size=256, limit=50, splits="loos2025", sampling="all")
    probe = PositionProbe(data.shapes, data.photos, learning_rate=1e-3)
    initial = {layer: (probe.heads[layer].weight[0].clone(), probe.heads[layer].bias[0].clone()) for layer in LAYERS}
    results = measured(probe, data, epochs=5)
    for layer in LAYERS:
        slow = slow_loop(data, layer, *initial[layer])
        assert abs(results[f"test/{layer}/axis_accuracy/all"] - slow) < 0.02, layer
    assert results["test/up_1/axis_accuracy/all"] > 1.5 / 16, "five epochs must have taught it something"


def slow_loop(data: ActivationDataModule, layer: str, weight: torch.Tensor, bias: torch.Tensor) -> float:
    """Loos & Linhardt's probe as one would write it down: all tokens in one tensor, shuffled whole, five epochs."""
    _, height, width = data.shapes[layer]
    parts = {}
    for name in ("train", "test"):
        batches = [flattened(batch) for batch in data.stream(data.split[name])]
        tokens = torch.cat([batch.tokens[layer] for batch in batches])
        parts[name] = tokens, torch.cat([batch.positions[layer] for batch in batches])
    head = nn.Linear(weight.shape[1], height + width)
    head.load_state_dict({"weight": weight, "bias": bias})
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(*parts["train"]), 512, shuffle=True, generator=torch.Generator().manual_seed(0))
    for _ in range(5):
        for tokens, position in loader:
            output = head(tokens)
            loss = nn.functional.cross_entropy(output[:, :height], position[:, 0])
            loss = loss + nn.functional.cross_entropy(output[:, height:], position[:, 1])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    tokens, position = parts["test"]
    output = head(tokens)
    rows = (output[:, :height].argmax(1) == position[:, 0]).double().mean()
    cols = (output[:, height:].argmax(1) == position[:, 1]).double().mean()
    return (rows + cols).item() / 2

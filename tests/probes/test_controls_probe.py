"""ControlsProbe: planted position from network, content and noise is distinguished by the view that lacks it."""

from collections.abc import Iterator
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor

from probes import ControlsProbe, PositionProbe
from sdprobe.tokens.batch import GridBatch
from sdprobe.tokens.geometry import positions
from sdprobe.tokens.groups import token_groups
from sdprobe.tokens.mixing import all_tokens, flattened

IMAGES, SIDE, CHANNELS = 40, 4, 24
TEST = range(30, IMAGES)


class Loader:
    """Lightning reads a plain list as several loaders."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def code(seed: int) -> Tensor:
    """A pattern (C, h, w) that says where a token is."""
    hot = torch.nn.functional.one_hot(positions(SIDE, SIDE), SIDE).float().flatten(1)  # (16, 8)
    mixed = hot @ torch.randn(2 * SIDE, CHANNELS, generator=torch.Generator().manual_seed(seed))
    return mixed.T.reshape(CHANNELS, SIDE, SIDE)


class Planted(lightning.LightningDataModule):
    """Grids = noise + what the network adds + what photographers put there + what shared noise leaves."""

    kind = "controls"
    views = ["test", "rotated", "other_noise"]  # noqa: RUF012
    photographs = [f"photo {i}" for i in range(IMAGES)]  # noqa: RUF012

    def __init__(self, network: float, content: float, shared: float) -> None:
        super().__init__()
        self.network, self.content, self.shared = network, content, shared
        self.own = torch.randn(IMAGES, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(9)) * 0.3

    def grids(self, index: list[int], rotated: bool = False, noise: int = 5) -> GridBatch:
        picture = self.own[index] + self.content * code(1)
        picture = picture.flip((-2, -1)) if rotated else picture
        grid = picture + self.network * code(2) + self.shared * code(noise)
        which = torch.tensor(index)
        return GridBatch({"mid": grid}, {"mid": token_groups(grid)}, which, which)

    def train_dataloader(self) -> Loader:
        return Loader(all_tokens(self.grids(list(range(30)))))

    def test_dataloader(self) -> list[Loader]:
        whole = list(TEST)
        return [
            Loader([flattened(batch)])
            for batch in (self.grids(whole), self.grids(whole, rotated=True), self.grids(whole, noise=6))
        ]


def probed(data: lightning.LightningDataModule, kind: type[PositionProbe] = ControlsProbe) -> Any:
    probe = kind({"mid": (CHANNELS, SIDE, SIDE)}, IMAGES, data if kind is ControlsProbe else None, solver="closed_form")
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(probe, datamodule=data)
    trainer.test(probe, datamodule=data, verbose=False)
    return probe


def accuracy(probe: Any, view: str) -> float:
    return probe.results[f"{view}/mid/binned_accuracy/all"]


@pytest.mark.parametrize(
    ("planted", "attribution", "survives_other_noise"),
    [((1.0, 0.0, 0.0), 1.0, True), ((0.0, 1.0, 0.0), -1.0, True), ((0.0, 0.0, 1.0), 1.0, False)],
    ids=["network", "photographers", "shared noise"],
)
def test_planted_sources_are_told_apart(
    planted: tuple[float, float, float], attribution: float, survives_other_noise: bool
) -> None:
    probe = probed(Planted(*planted))
    assert accuracy(probe, "test") > 0.9
    assert probe.results["test/mid/flip_attribution/all"] == pytest.approx(attribution, abs=0.1)
    assert (accuracy(probe, "rotated") > 0.9) == (attribution > 0)
    assert (accuracy(probe, "other_noise") > 0.9) == survives_other_noise
    assert accuracy(probe, "other_noise") > 0.9 or accuracy(probe, "other_noise") < 0.5, "chance is a quarter"


def test_without_position_there_is_no_attribution_but_accuracies() -> None:
    probe = probed(Planted(0, 0, 0))
    assert "test/mid/flip_attribution/all" not in probe.results
    assert abs(accuracy(probe, "rotated") - 0.25) < 0.15 and "rotated/mid/binned_accuracy/all/ci_low" in probe.results


def test_the_position_probe_inside_is_the_position_probe() -> None:
    class Plain(Planted):
        def test_dataloader(self) -> Any:
            return super().test_dataloader()[0]

    plain, controls = probed(Plain(0.3, 0.2, 0), PositionProbe), probed(Planted(0.3, 0.2, 0))
    assert plain.results.items() <= controls.results.items()


def test_sums_per_photograph_give_the_accuracy_again() -> None:
    probe = probed(Planted(0.1, 0.1, 0.1))
    maps = probe.maps()
    assert maps["photos"].tolist() == [f"photo {i}" for i in TEST] and maps["views"].tolist() == Planted.views
    assert maps["mid/photo_right"].shape == maps["mid/photo_count"].shape == (3, len(TEST))
    found = maps["mid/photo_right"].sum(1) / maps["mid/photo_count"].sum(1)
    np.testing.assert_allclose(found, [accuracy(probe, view) for view in Planted.views])
    assert maps["mid/accuracy"].shape == (SIDE, SIDE)

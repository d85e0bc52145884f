"""Benchmarks compare speed only of equal results, and time both sides in turns."""

from pathlib import Path

import pytest
import torch

from sdprobe.backbones.noise import NoiseSchedule
from sdprobe.utilities.errors import InputError
from tools.benchmarks import inputs, memory
from tools.benchmarks.rivals import SdhelperNoise, disagreement, require_equal
from tools.benchmarks.timing import Timed, times_faster


def test_results_that_differ_are_refused_with_the_layer_that_differs_most() -> None:
    grids = {"mid": torch.ones(2, 3, 4, 4), "up_1": torch.ones(2, 3, 8, 8)}
    names = {"mid": "mid_block", "up_1": "up_blocks[1]"}
    theirs = [{"mid_block": torch.full((1, 3, 4, 4), 1.001), "up_blocks[1]": torch.ones(1, 3, 8, 8)} for _ in range(2)]
    assert require_equal(grids, theirs, names, tolerance=0.01) == pytest.approx(0.001 / 1.001, rel=1e-3)
    theirs[1]["up_blocks[1]"] = torch.full((1, 3, 8, 8), 2.0)
    with pytest.raises(InputError, match=r"equal activations within 0\.01, but layer up_1 differs by 0\.447"):
        require_equal(grids, theirs, names, tolerance=0.01)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_tolerance_lets_a_value_pass_that_is_not_finite(value) -> None:
    assert disagreement(torch.tensor([1.0, value]), torch.ones(2)) == torch.inf
    with pytest.raises(InputError, match="layer mid differs by inf"):
        require_equal({"mid": torch.tensor([[value]])}, [{"mid": torch.ones(1, 1)}], {"mid": "mid"}, tolerance=1e9)


def test_results_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"same shape, but got \(2,\) and \(3,\)"):
        disagreement(torch.ones(2), torch.ones(3))


def test_the_rivals_noise_is_that_of_its_own_draws() -> None:
    torch.manual_seed(42)
    latents = torch.randn(3, 4, 8, 8).to(memory_format=torch.channels_last)
    theirs = torch.randn_like(latents[None, 0])
    noise = SdhelperNoise(NoiseSchedule(torch.tensor([0.0])), batch=3)(torch.zeros(2, 4, 8, 8), 0, ["a", "b"])
    assert torch.equal(noise, theirs.expand(2, -1, -1, -1))


def test_a_slow_turn_of_the_machine_does_not_change_the_ratio() -> None:
    slow, fast = Timed(wall=[4.0, 40.0, 4.4], cpu=[2.0, 2.0, 2.0]), Timed(wall=[1.0, 10.0, 1.0], cpu=[1.0, 0.5, 1.0])
    assert times_faster(slow, fast) == pytest.approx((4.0, 2.0))


def test_runs_are_started_where_train_py_is() -> None:
    assert (memory.ROOT / "train.py").is_file() and Path(__file__).parents[2] == memory.ROOT


def test_images_of_four_sizes_have_as_many_pixels_as_those_of_one() -> None:
    mixed, alike = inputs.pictures(8, inputs.FOUR), inputs.pictures(8, [inputs.ONE])
    assert len({image.shape for image in mixed}) == 4 and {image.shape for image in alike} == {(3, 256, 256)}
    assert sum(image.numel() for image in mixed) == sum(image.numel() for image in alike)

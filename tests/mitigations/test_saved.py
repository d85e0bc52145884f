"""What was saved by an earlier version is read as it was meant: ``saved/`` holds a chain fitted on five scenes of 64 pixels."""

import json
from pathlib import Path

import torch

from datamodules.images.scenes import Scenes
from datamodules.mitigated import _names, digest
from sdprobe.mitigations import load
from sdprobe.tokens.splits import split_by_photo

SAVED = Path(__file__).with_name("saved")


def test_a_chain_that_was_saved_before_there_were_versions_maps_as_it_did() -> None:
    chain = load(SAVED, timestep=50, size=64, noise="independent")["up_0"]
    assert [type(each.settings).__name__ for each in chain.maps] == ["Standardize", "PcaDrop"]
    grid = torch.linspace(-1, 1, 64 * 4).view(1, 64, 2, 2).sin()
    torch.testing.assert_close(
        chain.transform(grid)[0, ::16, 0, 0], torch.tensor([-0.7683, -0.4885, -0.1174, 0.57]), rtol=1e-3, atol=1e-4
    )


def test_the_pictures_it_was_fitted_on_are_still_known() -> None:
    fitted = set(json.loads((SAVED / "mitigation.json").read_text())["fitted_on"]["images"])
    scenes, other = Scenes(64, 12), Scenes(64, 12, seed=1)
    known = [i for i in range(12) if {digest(name) for name in _names(scenes.content_key(i))} & fitted]
    assert known == sorted(split_by_photo([scenes.photo(i) for i in range(12)])["fit"])
    assert not any({digest(name) for name in _names(other.content_key(i))} & fitted for i in range(12))

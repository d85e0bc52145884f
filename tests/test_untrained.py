"""The table of untrained networks: shapes of every family, and which controls a network has."""

import diffusers
import pytest
import torch

from sdprobe import untrained
from sdprobe.backbones.published import transformers
from sdprobe.backbones.transformer import FrozenTransformer


@pytest.mark.slow
@pytest.mark.parametrize("name", untrained.NAMES)
def test_networks_have_the_blocks_of_the_published_ones(name: str) -> None:
    if name != "sd15":
        kind = getattr(diffusers, transformers()[name]["class"])
        with torch.device("meta"):
            configs = untrained.narrow(name, 2), transformers()[name]["config"]
            narrow, full = (FrozenTransformer(kind.from_config(config)) for config in configs)
        assert list(narrow.table) == list(full.table) and narrow.channels == 32
    found = untrained.measured(name, 2, 0, 48)
    controls = {"sd15": {"circular"}, "sana": {"circular"}}.get(name, {"zero", "permuted"})
    assert found.keys() == {"stored", *controls}
    assert all(0 <= value <= 1 for layers in found.values() for value in layers.values())


@pytest.mark.slow
def test_the_command_prints_every_control(capsys: pytest.CaptureFixture[str]) -> None:
    untrained.main(["--networks", "dit_xl", "--seeds", "2", "--images", "60", "--heads", "2"])
    out = capsys.readouterr().out
    assert "block_27" in out and "position=permuted" in out and "chance .125" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "Expected seeds to be"), (["--heads", "0"], "Expected heads to be"),
        (["--images", "0"], "Expected images to be"), (["--images", "2"], "images"),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_measured_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        untrained.main(["--networks", "dit_xl", *arguments])
    assert caught.value.code == 1 and message in capsys.readouterr().err

"""ChannelDiscard: planted massive channels go, others stay, and every token ends with mean 0 and variance 1."""

import logging

import pytest
import torch

from sdprobe.mitigations import ChannelDiscard
from tests.mitigations.planted import batches, generator, grids


def test_planted_massive_channels_and_no_others_become_zero_before_layer_norm() -> None:
    raw = grids(10, 24, 5, 4) - 1
    massive = raw.clone()
    massive[:, [3, 17]] += torch.tensor([4000.0, -700.0]).view(-1, 1, 1)
    mitigation = ChannelDiscard().fit(batches(massive, 3))
    assert mitigation.settings.chosen(mitigation.fitted["magnitude"]).nonzero().flatten().tolist() == [3, 17]
    assert mitigation.describe() == {"fit_images": 10, "discarded": 2}
    silent = massive.clone()
    silent[:, [3, 17]] = 0
    expected = (silent - silent.mean(1, keepdim=True)) / (silent.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(mitigation.transform(massive), expected, atol=1e-5, rtol=1e-4)


def test_where_nothing_is_massive_the_report_says_so_and_layer_norm_is_left(caplog: pytest.LogCaptureFixture) -> None:
    raw = grids(10, 24, 5, 4)
    with caplog.at_level(logging.INFO):
        mitigation = ChannelDiscard().fit([raw])
    assert "no channel exceeds 100 times" in caplog.text
    assert mitigation.describe()["discarded"] == 0
    left = mitigation.transform(raw)
    torch.testing.assert_close(left.var(1, correction=0), torch.ones(10, 5, 4), atol=1e-3, rtol=0)


def test_the_ratio_is_to_the_median_channel() -> None:
    raw = torch.randn(40, 9, 6, 6, generator=generator(0)) * torch.tensor([1.0] * 7 + [6.0, 20.0]).view(-1, 1, 1)
    assert [ChannelDiscard(ratio=ratio).fit([raw]).describe()["discarded"] for ratio in (3, 10, 30)] == [2, 1, 0]

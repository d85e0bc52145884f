"""Means over random networks: their interval covers networks and photographs, holds its estimate, and is none below three."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig

from sdprobe.metrics.intervals import two_way_interval
from sdprobe.metrics.networks import Network, merged
from sdprobe.runs import baselines
from sdprobe.runs.baselines import _DATA, _identity, _store, _stored

KEY = "random_weights/mid/axis_accuracy/all"


def twins(table: np.ndarray, results: np.ndarray | None = None) -> list[Network]:
    """A network a row; it reports the mean of its row unless told otherwise."""
    values = table.mean(1) if results is None else results
    ends = {f"{KEY}/ci_low": -9.0, f"{KEY}/ci_high": 9.0, f"{KEY}/n": 640}  # of one network, over photographs alone
    return [Network({KEY: float(value)} | ends, {KEY: row}, {}) for value, row in zip(values, table, strict=True)]


def test_a_stored_twin_comes_back_whole_or_not_at_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "twins" / "a.twin.npz"
    twin = Network({KEY: 0.5}, {KEY: np.arange(9.0)}, {"cell": np.arange(50), "name": np.array(["a", "b"] * 25)})
    assert _stored(path, twin.predictions) is None
    _store(path, twin)
    found = _stored(path, twin.predictions)
    assert found is not None
    assert found.results == twin.results
    assert np.array_equal(found.pseudovalues[KEY], twin.pseudovalues[KEY])
    assert all(np.array_equal(found.predictions[name], column) for name, column in twin.predictions.items())
    path.rename(path.with_name("b.twin.npz"))
    assert _stored(path.with_name("b.twin.npz"), twin.predictions) is None
    assert "b.twin.npz is damaged (the results of another network); this network is measured again." in caplog.text
    _store(path, Network(twin.results, twin.pseudovalues, {}))
    assert _stored(path, {}) is not None and _stored(path, twin.predictions) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"results": {KEY: "evil"}}, {"results": {KEY: None}}, {"results": {KEY: math.nan}}, {"results": {KEY: math.inf}},
        {"results": {KEY: True}}, {"results": {"evil": 1.0}}, {"results": {"a/b/../c/d": 1.0}}, {"results": [1]},
        {"pseudovalues": {KEY: np.array(["evil"])}}, {"predictions": {"other": np.arange(50)}},
        {"predictions": {"cell": np.arange(49)}},
    ],
)  # fmt: skip
def test_a_stored_twin_of_another_form_is_measured_again(changed: dict[str, Any], tmp_path: Path) -> None:
    """Its checksum is right: the cache may be in a stranger's run folder."""
    twin = Network({KEY: 0.5}, {KEY: np.arange(9.0)}, {"cell": np.arange(50)})
    _store(tmp_path / "a", twin)
    own = dict(twin.predictions)
    assert _stored(tmp_path / "a", own)
    for name, value in changed.items():
        object.__setattr__(twin, name, value)  # no constructor would take it
    _store(tmp_path / "a", twin)
    assert _stored(tmp_path / "a", own) is None


def test_without_networks_there_is_nothing() -> None:
    assert merged([]) == {}


@given(st.integers(1, 5), st.integers(1, 10), st.floats(0, 0.3), st.integers(0, 10**6))
def test_a_mean_has_the_two_way_interval_from_three_networks_and_six_photographs_on(
    seeds: int, units: int, spread: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    table = (
        generator.uniform(size=units) + spread * generator.normal(size=(seeds, 1)) + 0.1 * generator.normal(size=(seeds, units))
    )
    found = merged(twins(table))
    assert found[KEY] == pytest.approx(table.mean())
    assert (found[f"{KEY}/seeds"], found[f"{KEY}/n"]) == (seeds, 640), "photographs' tokens and networks are two keys"
    assert (f"{KEY}/ci_low" in found) == (f"{KEY}/ci_high" in found) == (seeds >= 3 and units >= 6)
    if f"{KEY}/ci_low" in found:
        low, high = np.clip(two_way_interval(table), 0, 1)  # of an accuracy, were its mean one
        expected = min(low, found[KEY]), max(high, found[KEY])
        assert (found[f"{KEY}/ci_low"], found[f"{KEY}/ci_high"]) == pytest.approx(expected)


def test_a_clipped_mean_lies_in_its_interval() -> None:
    table = np.random.default_rng(0).normal(-0.1, 0.02, (3, 20))  # a risk below 0, reported as 0
    assert two_way_interval(table)[1] < 0
    found = merged(twins(table, results=np.zeros(3)))
    assert found[f"{KEY}/ci_low"] <= found[KEY] == 0 == found[f"{KEY}/ci_high"]


def test_only_shares_end_at_zero_and_one() -> None:
    table = np.random.default_rng(0).normal(0.5, 0.9, (3, 8))
    low, high = two_way_interval(table)
    assert low < 0 and high > 1
    for metric, ends in (("axis_accuracy", (0, 1)), ("relative_norm", (low, high))):
        key = f"random_weights/mid/{metric}/all"
        found = merged([Network({key: float(row.mean())}, {key: row}, {}) for row in table])
        assert (found[f"{key}/ci_low"], found[f"{key}/ci_high"]) == pytest.approx(ends)


def test_networks_that_lack_a_key_or_its_units_do_not_count_for_an_interval() -> None:
    table = np.random.default_rng(0).uniform(size=(4, 8))
    some = twins(table)
    some[1] = Network({}, {}, {})
    assert merged(some)[f"{KEY}/seeds"] == 3 and f"{KEY}/ci_low" in merged(some)
    assert merged(some)[KEY] == pytest.approx(table[[0, 2, 3]].mean())
    some[2] = Network(some[2].results, {}, {})
    assert merged(some)[f"{KEY}/seeds"] == 3 and f"{KEY}/ci_low" not in merged(some)
    unlike = [*twins(table[:3]), *twins(table[3:, :5])]
    assert f"{KEY}/ci_low" not in merged(unlike), "other photographs"


def test_a_kept_network_is_found_by_settings_data_packages_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"seed": 0, "trainer": {"_target_": "lightning.Trainer"}, "mitigation": {}, "run_dir": "here"}
    meta: dict[str, Any] = dict.fromkeys(_DATA, "a") | {"packages": {"torch": "2", "sdprobe": "0.1.0"}, "source": "a"}

    def identity(settings_changed: dict[str, Any] = {}, **changed: Any) -> str:  # noqa: B006
        return _identity(DictConfig(settings | settings_changed), meta | changed)

    one = identity()
    assert one == identity({"run_dir": "there"}) == identity(source="b")
    assert one == identity(packages={"torch": "2", "sdprobe": "0.2.0"}), "a release that changes no number"
    others = [identity({"seed": 1}), identity(packages={"torch": "3", "sdprobe": "0.1.0"})]
    others += [identity(**{name: "b"}) for name in _DATA]
    monkeypatch.setattr(baselines, "VERSION", baselines.VERSION + 1)
    assert len({one, *others, identity()}) == len(others) + 2

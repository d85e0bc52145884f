"""The peak memory of a run is its own, not that of the run before it in the same process."""

import sys

import pytest
import torch

from sdprobe.runs import measurement
from sdprobe.runs.measurement import forget_peak, peak_memory

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process cannot forget its peak")
def test_a_peak_is_counted_from_the_last_run_on() -> None:
    large = torch.ones(64, 2**20)  # 256 MiB
    high = peak_memory(CPU)
    del large
    forget_peak()
    assert peak_memory(CPU) < high - 2**27
    assert peak_memory(CPU) > 2**24


def test_without_proc_the_system_is_asked(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "PROCESS", tmp_path / "absent")
    forget_peak()
    assert peak_memory(CPU) > 2**24

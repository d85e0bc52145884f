"""SumMetric: a metric whose states are sums, so that batches and processes merge by addition."""

import torch
from torchmetrics import Metric


class SumMetric(Metric):
    """States are sums. torchmetrics adds those of processes that saw different images. In a run, every process sees all."""

    full_state_update = False

    def add_sums(self, dtype: torch.dtype = torch.float64, /, **shapes: tuple[int, ...]) -> None:
        """Add states of zeros, by name, with their shapes."""
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")

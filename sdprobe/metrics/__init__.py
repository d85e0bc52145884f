"""torchmetrics on tensors, one per file beside its pure functions."""

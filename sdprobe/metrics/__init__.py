"""torchmetrics on tensors, one per file, with its pure functions."""

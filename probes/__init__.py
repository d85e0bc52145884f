"""LightningModules that read something out of tokens: one linear head per layer, all trained side by side."""

from probes.position import PositionProbe

__all__ = ["PositionProbe"]

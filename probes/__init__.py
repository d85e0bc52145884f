"""LightningModules that read something out of tokens, every layer side by side: linear heads, or statistics."""

from probes.position import PositionProbe
from probes.statistics import StatisticsProbe
from probes.study import StudyProbe

__all__ = ["PositionProbe", "StatisticsProbe", "StudyProbe"]

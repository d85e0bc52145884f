"""LightningModules that read something out of tokens, every layer side by side: linear heads, or statistics."""

from probes.controls import ControlsProbe
from probes.correspondence import CorrespondenceProbe
from probes.position import PositionProbe
from probes.statistics import StatisticsProbe
from probes.study import StudyProbe
from probes.targets import ContentProbe, DepthProbe

__all__ = [
    "ContentProbe",
    "ControlsProbe",
    "CorrespondenceProbe",
    "DepthProbe",
    "PositionProbe",
    "StatisticsProbe",
    "StudyProbe",
]

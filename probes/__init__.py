"""LightningModules that read something out of tokens, every layer side by side: linear heads, or statistics."""

from probes.content import ContentProbe
from probes.controls import ControlsProbe
from probes.correspondence import CorrespondenceProbe
from probes.depth import DepthProbe
from probes.position import PositionProbe
from probes.statistics import StatisticsProbe
from probes.study import StudyProbe

__all__ = [
    "ContentProbe",
    "ControlsProbe",
    "CorrespondenceProbe",
    "DepthProbe",
    "PositionProbe",
    "StatisticsProbe",
    "StudyProbe",
]

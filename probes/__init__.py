"""Lightning modules that measure tokens, all layers in one run: linear heads and statistics."""

from probes.controls import ControlsProbe
from probes.correspondence import CorrespondenceProbe
from probes.explore import ExploreProbe
from probes.position import PositionProbe
from probes.statistics import StatisticsProbe
from probes.study import StudyProbe
from probes.targets import ContentProbe, DepthProbe

__all__ = [
    "ContentProbe",
    "ControlsProbe",
    "CorrespondenceProbe",
    "DepthProbe",
    "ExploreProbe",
    "PositionProbe",
    "StatisticsProbe",
    "StudyProbe",
]

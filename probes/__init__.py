"""Lightning modules that measure tokens, all layers in one run: linear heads and statistics."""

from probes.controls import ControlsProbe
from probes.correspondence import CorrespondenceProbe
from probes.equivariance import EquivarianceProbe
from probes.explore import ExploreProbe
from probes.position import PositionProbe
from probes.role import RoleProbe
from probes.statistics import StatisticsProbe
from probes.study import StudyProbe
from probes.targets import ContentProbe, DepthProbe

__all__ = [
    "ContentProbe",
    "ControlsProbe",
    "CorrespondenceProbe",
    "DepthProbe",
    "EquivarianceProbe",
    "ExploreProbe",
    "PositionProbe",
    "RoleProbe",
    "StatisticsProbe",
    "StudyProbe",
]

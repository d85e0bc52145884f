"""What to do about position, corners and high-norm tokens: maps of activation grids, one idea per file."""

from mitigations.channel_discard import ChannelDiscard
from mitigations.empty_image import EmptyImage
from mitigations.extractions import Canvas, PaddingSwap, ShiftFlipNoise
from mitigations.leace import Leace
from mitigations.mitigation import Extraction, Mitigation
from mitigations.outlier_tokens import OutlierTokens
from mitigations.pca_drop import PcaDrop
from mitigations.position_mean import PositionMean
from mitigations.random_rank import RandomRank
from mitigations.saved import Saved, load, save
from mitigations.shift_anova import ShiftAnova
from mitigations.shuffled_position import ShuffledPosition
from mitigations.standardize import Standardize

__all__ = [
    "Canvas",
    "ChannelDiscard",
    "EmptyImage",
    "Extraction",
    "Leace",
    "Mitigation",
    "OutlierTokens",
    "PaddingSwap",
    "PcaDrop",
    "PositionMean",
    "RandomRank",
    "Saved",
    "ShiftAnova",
    "ShiftFlipNoise",
    "ShuffledPosition",
    "Standardize",
    "load",
    "save",
]

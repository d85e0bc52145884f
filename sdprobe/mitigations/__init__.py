"""Mitigations of position, corner and high-norm artefacts: maps of activation grids, one idea per file."""

from sdprobe.mitigations.base import Extraction, Map, Mitigation
from sdprobe.mitigations.channel_discard import ChannelDiscard
from sdprobe.mitigations.controls import EmptyImage, PcaDrop, RandomRank, ShuffledPosition
from sdprobe.mitigations.extractions import Canvas, PaddingSwap, ShiftFlipNoise
from sdprobe.mitigations.leace import Leace
from sdprobe.mitigations.outlier_tokens import OutlierTokens
from sdprobe.mitigations.position_mean import PositionMean
from sdprobe.mitigations.saved import Saved, load, save
from sdprobe.mitigations.shift_anova import ShiftAnova
from sdprobe.mitigations.standardize import Standardize

__all__ = [
    "Canvas", "ChannelDiscard", "EmptyImage", "Extraction", "Leace", "Map", "Mitigation", "OutlierTokens", "PaddingSwap",
    "PcaDrop", "PositionMean", "RandomRank", "Saved", "ShiftAnova", "ShiftFlipNoise", "ShuffledPosition", "Standardize",
    "load", "save",
]  # fmt: skip

"""What to do about position, corners and high-norm tokens: maps of activation grids, one idea per file."""

from mitigations.leace import Leace
from mitigations.pca_drop import PcaDrop
from mitigations.position_mean import PositionMean
from mitigations.random_rank import RandomRank
from mitigations.shuffled_position import ShuffledPosition
from mitigations.standardize import Standardize

__all__ = ["Leace", "PcaDrop", "PositionMean", "RandomRank", "ShuffledPosition", "Standardize"]

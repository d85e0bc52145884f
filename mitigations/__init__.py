"""What to do about position, corners and high-norm tokens: maps of activation grids, one idea per file."""

from mitigations.extractions import Canvas, PaddingSwap, ShiftFlipNoise
from mitigations.mitigation import Extraction, Mitigation
from mitigations.saved import Saved, load, save

__all__ = ["Canvas", "Extraction", "Mitigation", "PaddingSwap", "Saved", "ShiftFlipNoise", "load", "save"]

"""Procedural images with exact ground truth (`images=scenes`): the dataset that needs no download."""

from .composition import CATEGORIES
from .dataset import Scenes
from .truth import Scene, SceneObject

__all__ = ["CATEGORIES", "Scene", "SceneObject", "Scenes"]

"""Procedural images with exact ground truth (`images=scenes`): the dataset that needs no download."""

from .composition import CATEGORIES
from .dataset import Scenes
from .displaced import DisplacedScenes
from .pairs import ScenePair, scene_pairs
from .truth import Scene, SceneObject

__all__ = ["CATEGORIES", "DisplacedScenes", "Scene", "SceneObject", "ScenePair", "Scenes", "scene_pairs"]

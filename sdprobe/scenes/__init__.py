"""A procedural renderer of scenes with exact ground truth: pixels, depth, masks, keypoints, corresponding pairs."""

from sdprobe.scenes.composition import CATEGORIES
from sdprobe.scenes.painting import scene_pictures
from sdprobe.scenes.pairs import ScenePair, SceneSet, scene_pairs
from sdprobe.scenes.truth import Scene, SceneObject

__all__ = ["CATEGORIES", "Scene", "SceneObject", "ScenePair", "SceneSet", "scene_pairs", "scene_pictures"]

"""``images=scenes``, ``scene_pairs``, ``scene_depth``: procedural scenes with exact ground truth; nothing to download.

Data path step 1, in the place of photographs.
"""

from collections.abc import Sequence
from functools import cache
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from datamodules.images.pairs import SPLITS, Box, Pair
from datamodules.images.source import DrawnImages, check_limit
from sdprobe.scenes import CATEGORIES
from sdprobe.scenes.composition import compose
from sdprobe.scenes.painting import VERSION, paint
from sdprobe.scenes.pairs import SceneSet, in_turns, pairs_among
from sdprobe.scenes.spair_export import FEWEST, members
from sdprobe.scenes.truth import Scene, cover, render, tight_box
from sdprobe.tokens.geometry import Placement
from sdprobe.utilities import expect


class Scenes(DrawnImages):
    """Scenes of one main object (eight categories, equally frequent) before a varied background.

    Scene `index` depends on (seed, index) alone and is the same scene at every size. Colours and patterns are drawn
    independently of category and part. The centre of the main object is uniform over the canvas, short of a margin of
    0.18 of its own width and height: larger objects keep nearer to the middle, none is cut by more than 32 % a side.
    Light falls from a random direction in the upper half, whatever the position. The natural correlations of
    appearance and position are two. Backgrounds: landscapes (about 2 in 10) have their sky above their ground, rooms
    (2 in 10) their wall above their floor, at a horizon of random height. Coverage: a pixel in the middle belongs to an
    object more often than one in a corner, and objects, being shaded and casting shadows, are a little darker (the
    mean image is about 0.03 of full scale darker in the middle).

    Args:
        size: side of the square images in pixels, a positive multiple of 64.
        limit: number of scenes, at least 1. A longer dataset begins with the shorter one.
        seed: which scenes, at least 0.

    Raises:
        InputError: if an argument is out of range.
    """

    def __init__(self, size: int = 512, limit: int = 160, seed: int = 0) -> None:
        super().__init__(size, limit, seed)
        expect.at_least("seed", seed, 0)

    def picture(self, index: int) -> Float[Tensor, "3 size size"]:
        """The scene's pixels, without its ground truth."""
        pixels = np.array(paint(compose(self.seed, self.position(index)), self.size))
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div_(255)

    def scene(self, index: int) -> Scene:
        """The same picture with its full ground truth."""
        return render(compose(self.seed, self.position(index)), self.size)

    def name(self, index: int) -> str:
        """The scene's seed and number."""
        return f"scenes-{self.seed}-{self.position(index)}"

    def content_key(self, index: int) -> str:
        """Names the pixels of a scene without drawing it."""
        return f"scenes:{VERSION}:{self.seed}:{self.position(index)}:{self.size}"


class ScenePairs(Scenes):
    """Scenes, and all pairs of different ones of a category with at least three keypoints that both show.

    Of each category's scenes 18 % are in ``val``, 27 % in ``test`` and the rest in ``train``: those that
    ``python -m sdprobe.scenes --export-spair`` writes. Points and boxes are exact here and rounded there.

    Args:
        size: side of the square images in pixels, a multiple of 64.
        limit: number of scenes, at least 48.
        seed: which scenes, at least 0.
        pairs_per_category: at most, in each split; None takes all.

    Raises:
        InputError: if an argument is out of range.
    """

    resize = "pad"  # to a square that scenes fill anyway
    box = "object"
    image_reach = False

    def __init__(self, size: int = 512, limit: int = 320, seed: int = 0, pairs_per_category: int | None = None) -> None:
        super().__init__(size, limit, seed)
        expect.at_least("images.limit", limit, FEWEST * len(CATEGORIES))
        check_limit(pairs_per_category, "images.pairs_per_category")
        self.pairs_per_category = pairs_per_category
        self._set = SceneSet(size, limit, seed)
        self._pairs: dict[str, tuple[Pair, ...]] = {}

    def pairs(self, split: str) -> Sequence[Pair]:
        """The pairs of ``train``, ``val`` or ``test``; categories take turns."""
        if split not in self._pairs:
            self._pairs[split] = self._paired(split)
        return self._pairs[split]

    def picture_size(self, index: int) -> tuple[int, int]:
        """Scenes are drawn at the size they are used at."""
        return self.size, self.size

    def placement(self, index: int) -> Placement:
        """A scene fills its item."""
        return Placement((1.0, 1.0), (0.0, 0.0))

    def _paired(self, split: str) -> tuple[Pair, ...]:
        parts = (members(self._set, category)[SPLITS[split]] for category in CATEGORIES)
        streams = [islice(pairs_among(self._set, part, self.seed), self.pairs_per_category) for part in parts]
        box = cache(self._box)
        return tuple(
            Pair(p.source, p.target, p.category, p.kps_ids, p.source_points, p.target_points, box(p.target))
            for p in in_turns(streams)
        )

    def _box(self, index: int) -> Box:
        """Box around the visible pixels of the main object, from its outlines alone."""
        composition = compose(self.seed, index)
        main, depth = np.zeros((self.size, self.size), bool), np.zeros((self.size, self.size), np.float32)
        for k in composition.back_to_front():
            for _, pixels in cover(composition.objects[k], self.size, depth):
                main[pixels] = k == 0
        return tight_box(main)


class SceneDepth(Scenes):
    """:class:`Scenes`, pixel for pixel, so that both share one cache of latents."""

    def depth(self, index: int) -> Float[Tensor, "size size"]:
        """Depth in scene units, smaller is nearer: objects within (0, 7), background within [8, 10]."""
        return torch.from_numpy(self.scene(index).depth)

    def depth_key(self, index: int) -> str:
        """Version, seed and index decide depth as they decide pixels."""
        return self.content_key(index)

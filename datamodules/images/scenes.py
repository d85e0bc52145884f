"""``images=scenes``, ``scene_pairs``, ``scene_depth``: procedural scenes with exact ground truth, without a download.

Data path step 1.
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
    """Procedural scenes: one main object (eight categories, equally frequent) before a varied background.

    Items are (3, size, size) in [0, 1]. Scene ``index`` depends on (seed, index) only and is the same scene at every size.

    Colours and patterns are drawn independently of category and part. The centre of the main object is uniform over the canvas,
    except for a margin of 0.18 of its own width and height: larger objects are nearer to the middle, and none is cut by more
    than 32 % per side. Light falls from a random direction in the upper half, at every position.

    As in photographs, appearance is correlated with position in two respects. Landscapes (about 2 in 10 backgrounds) have their
    sky above their ground and rooms (2 in 10) their wall above their floor, at a horizon of random height. A pixel in the
    middle belongs to an object more often than one in a corner, and objects, with shading and shadows, are a little darker: the
    mean image is about 0.03 of full scale darker in the middle.

    Args:
        size: side of the square images in pixels, a positive multiple of 64; 512 is what SD-1.x and 2.x were trained on.
        limit: number of scenes, at least 1. A longer dataset begins with the shorter one.
        seed: seed of the scenes, at least 0.

    Raises:
        InputError: an argument out of range.

    Example:
        >>> scenes = Scenes(size=64, limit=10)
        >>> scenes[3]["id"], tuple(scenes[3]["image"].shape)
        ('scenes-0-3', (3, 64, 64))
        >>> scenes.scene(3).depth.shape
        (64, 64)
    """

    def __init__(self, size: int = 512, limit: int = 160, seed: int = 0) -> None:
        super().__init__(size, limit, seed)
        expect.at_least("seed", seed, 0)

    def picture(self, index: int) -> Float[Tensor, "3 size size"]:
        """Return the pixels (3, size, size) of the scene, in [0, 1]."""
        pixels = np.array(paint(compose(self.seed, self.position(index)), self.size))
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div_(255)

    def scene(self, index: int) -> Scene:
        """Return the picture with masks, boxes, keypoints and depth, see :class:`~sdprobe.scenes.truth.Scene`."""
        return render(compose(self.seed, self.position(index)), self.size)

    def name(self, index: int) -> str:
        """Return the seed and number of the scene."""
        return f"scenes-{self.seed}-{self.position(index)}"

    def content_key(self, index: int) -> str:
        """Return the version of the drawing, seed, number and size; the scene is not drawn."""
        return f"scenes:{VERSION}:{self.seed}:{self.position(index)}:{self.size}"


class ScenePairs(Scenes):
    """:class:`Scenes` in pairs: all pairs of different scenes of a category with at least three keypoints visible in both.

    Of each category's scenes 18 % are in ``val``, 27 % in ``test`` and the others in ``train``. These are the pairs that
    ``python -m sdprobe.scenes --export-spair`` writes; points and boxes are exact here and rounded there.

    Args:
        size: side of the square images in pixels, a positive multiple of 64; 512 is what SD-1.x and 2.x were trained on.
        limit: number of scenes, at least 48, which is 6 of each category.
        seed: seed of the scenes, at least 0.
        pairs_per_category: greatest number of pairs per category and split, at least 1; None takes all.

    Raises:
        InputError: an argument out of range.

    Example:
        >>> pairs = ScenePairs(size=64, limit=48, pairs_per_category=1).pairs("test")
        >>> [pair.category for pair in pairs]
        ['quadruped', 'bird', 'fish', 'vehicle', 'chair', 'face', 'teapot', 'house']
        >>> len(pairs[0].ids) == len(pairs[0].source_points) == len(pairs[0].target_points)
        True
    """

    resize = "pad"  # scenes are square, so nothing is padded
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
        """Return the pairs of ``train``, ``val`` or ``test``; categories alternate. Coordinates are pixels of the items."""
        if split not in self._pairs:
            self._pairs[split] = self._paired(split)
        return self._pairs[split]

    def picture_size(self, index: int) -> tuple[int, int]:
        """Return (width, height) of a scene in pixels, which is the size of the items."""
        return self.size, self.size

    def placement(self, index: int) -> Placement:
        """Return the position and scale of a scene in its item, which it fills."""
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
    """:class:`Scenes` with their depth. The pixels are equal, so both share cached latents.

    Args:
        size: side of the square images in pixels, a positive multiple of 64; 512 is what SD-1.x and 2.x were trained on.
        limit: number of scenes, at least 1.
        seed: seed of the scenes, at least 0.

    Raises:
        InputError: an argument out of range.

    Example:
        >>> depth = SceneDepth(size=64, limit=10).depth(0)
        >>> tuple(depth.shape), bool((depth > 0).all()), bool((depth <= 10).all())
        ((64, 64), True, True)
    """

    def depth(self, index: int) -> Float[Tensor, "size size"]:
        """Return the depth (size, size) in scene units: objects within (0, 7), the background within [8, 10]."""
        return torch.from_numpy(self.scene(index).depth)

    def depth_key(self, index: int) -> str:
        """Return the content key, since depth depends on the same values as the pixels."""
        return self.content_key(index)

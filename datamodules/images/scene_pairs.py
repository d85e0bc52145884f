"""``images=scene_pairs``: procedural scenes whose main objects correspond part by part; nothing to download."""

from collections.abc import Sequence
from functools import cache
from itertools import islice, zip_longest

import numpy as np

from datamodules.images.pairs import Box, Pair
from datamodules.images.scenes import CATEGORIES, Scenes
from datamodules.images.scenes.composition import compose
from datamodules.images.scenes.pairs import pairs_among
from datamodules.images.scenes.spair import FEWEST, members
from datamodules.images.scenes.truth import cover, tight_box
from tokens import expect
from tokens.geometry import Placement

SPLITS = {"train": "trn", "val": "val", "test": "test"}


class ScenePairs(Scenes):
    """Scenes, and all pairs of different ones of a category with at least three keypoints that both show.

    Of each category's scenes 18 % are in ``val``, 27 % in ``test`` and the rest in ``train``: those that
    ``python -m datamodules.images.scenes --export-spair`` writes. Points and boxes are exact here and rounded there.

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
        if pairs_per_category is not None:
            expect.at_least("images.pairs_per_category", pairs_per_category, 1, "Use null for all.")
        self.pairs_per_category = pairs_per_category
        self._pairs = cache(self._paired)
        self._box = cache(self._boxed)

    def pairs(self, split: str) -> Sequence[Pair]:
        """The pairs of ``train``, ``val`` or ``test``; categories take turns."""
        return self._pairs(split)

    def picture_size(self, index: int) -> tuple[int, int]:
        """Scenes are drawn at the size they are used at."""
        return self.size, self.size

    def placement(self, index: int) -> Placement:
        """A scene fills its item."""
        return Placement((1.0, 1.0), (0.0, 0.0))

    def _paired(self, split: str) -> tuple[Pair, ...]:
        parts = (members(self, category)[SPLITS[split]] for category in CATEGORIES)
        streams = [islice(pairs_among(self, part, self.seed), self.pairs_per_category) for part in parts]
        turns = (pair for turn in zip_longest(*streams) for pair in turn if pair is not None)
        return tuple(
            Pair(p.source, p.target, p.category, p.kps_ids, p.source_points, p.target_points, self._box(p.target))
            for p in turns
        )

    def _boxed(self, index: int) -> Box:
        """Box around the visible pixels of the main object, from its outlines alone."""
        composition = compose(self.seed, index)
        main, depth = np.zeros((self.size, self.size), bool), np.zeros((self.size, self.size), np.float32)
        for k in composition.back_to_front():
            for _, pixels in cover(composition.objects[k], self.size, depth):
                main[pixels] = k == 0
        return tight_box(main)

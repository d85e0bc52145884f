"""The dataset: procedurally drawn scenes that need no download and come with exact ground truth.

First step of the data path, in the place of a folder of photographs.
"""

import numpy as np
import torch
from torch.utils.data import Dataset

from datamodules.images.source import Item, check_size
from tokens import expect

from .composition import compose
from .painting import VERSION, paint
from .truth import Scene, render


class Scenes(Dataset[Item]):
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
        check_size(size)
        expect.at_least("images.limit", limit, 1)
        expect.at_least("seed", seed, 0)
        self.size, self.limit, self.seed = size, limit, seed
        self.on_error = "raise"

    def __len__(self) -> int:
        return self.limit

    def __getitem__(self, index: int) -> Item:
        """{"image": (3, size, size) float32 in [0, 1], "id": "scenes-<seed>-<index>"}."""
        pixels = np.array(paint(compose(self.seed, self._position(index)), self.size))
        image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div_(255)
        return {"image": image, "id": self.name(index)}

    def scene(self, index: int) -> Scene:
        """The same picture with its full ground truth."""
        return render(compose(self.seed, self._position(index)), self.size)

    def name(self, index: int) -> str:
        """The scene's id."""
        return f"scenes-{self.seed}-{self._position(index)}"

    def photo(self, index: int) -> str:
        """Every scene is a photograph of its own."""
        return self.name(index)

    def content_key(self, index: int) -> str:
        """Names the pixels of a scene without drawing it."""
        return f"scenes:{VERSION}:{self.seed}:{self._position(index)}:{self.size}"

    def _position(self, index: int) -> int:
        """The index counted from the front; raises IndexError past either end, which also ends iteration."""
        if not -self.limit <= index < self.limit:
            raise IndexError(f"Expected index to be below {self.limit}, but got {index}. Raise images.limit.")
        return int(index) % self.limit

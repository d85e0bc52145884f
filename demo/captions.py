"""What a training image is called: a few plain sentences around the names of what it shows."""

from colorsys import rgb_to_hsv

import numpy as np
import torch

from datamodules.images.scenes import CATEGORIES
from datamodules.images.scenes.composition import Composition
from datamodules.images.scenes.materials import Material

TEMPLATES = ("a photo of a {}", "a photo of a {}", "a {}", "a picture of a {}", "one {}")
HUES = ("red", "orange", "yellow", "green", "green", "teal", "teal", "blue", "blue", "purple", "pink", "pink")  # every 30°


def caption(composition: Composition, generator: torch.Generator) -> str:
    """A sentence that names the main object and, each half the time, its colour, its named companions, and the background."""

    def draw(bound: int) -> int:
        return int(torch.randint(bound, (), generator=generator))

    main, *others = (layer.figure.category for layer in composition.objects)
    if draw(2):
        main = f"{colour(composition.objects[0].materials[0])} {main}"
    text = TEMPLATES[draw(len(TEMPLATES))].format(main)
    named = [name for name in others if name in CATEGORIES]
    if named and draw(2):
        text += " and a " + " and a ".join(named)
    if draw(2):
        text += f" on {colour(composition.backdrop.base)} {composition.backdrop.kind}"
    return text


def colour(material: Material) -> str:
    """A plain name of the material's mean colour."""
    table = np.frombuffer(material.palette, np.uint8).reshape(256, 3) / 255
    hue, saturation, value = rgb_to_hsv(*table[np.asarray(material.field)].mean((0, 1)))
    if value < 0.3:
        return "black"
    if saturation < 0.2:
        return "white" if value > 0.75 else "grey"
    name = HUES[round(hue * len(HUES)) % len(HUES)]
    return "brown" if name in ("red", "orange", "yellow") and value < 0.6 else name

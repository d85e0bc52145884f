"""Captions of training images: sentences that name objects, colours, parts and directions."""

from colorsys import rgb_to_hsv

import numpy as np
import torch

from sdprobe.scenes import CATEGORIES
from sdprobe.scenes.composition import Composition
from sdprobe.scenes.figure import DETAIL, SECOND, THIRD
from sdprobe.scenes.layers import Layer
from sdprobe.scenes.materials import Material

TEMPLATES = ("a photo of a {}", "a photo of a {}", "a {}", "a picture of a {}", "one {}")
HUES = ("red", "orange", "yellow", "green", "green", "teal", "teal", "blue", "blue", "purple", "pink", "pink")  # every 30°


def caption(composition: Composition, generator: torch.Generator) -> str:
    """A sentence that names the main object and, each with probability 1/2, its colour, the direction that it faces, the colour
    of one or two parts, other objects, and the background.

    Words about parts make the denoiser's features semantic, because it must locate the parts.
    """

    def draw(bound: int) -> int:
        return int(torch.randint(bound, (), generator=generator))

    main, *others = composition.objects
    name = main.figure.category
    if draw(2):
        name = f"{colour(main.materials[0])} {name}"
    text = TEMPLATES[draw(len(TEMPLATES))].format(name)
    if draw(2):
        text += " facing left" if main.flipped else " facing right"
    dressed = parts(main)
    if dressed and draw(2):
        chosen = {draw(len(dressed)) for _ in range(2)}
        text += " with " + " and ".join(dressed[k] for k in sorted(chosen))
    named = [layer.figure.category for layer in others if layer.figure.category in CATEGORIES]
    if named and draw(2):
        text += " and a " + " and a ".join(named)
    if draw(2):
        text += f" on {colour(composition.backdrop.base)} {composition.backdrop.kind}"
    return text


def parts(layer: Layer) -> list[str]:
    """Parts whose material differs from the object's first one, with their colours: "blue wing"."""
    slots = {part.name.split("_")[-1]: part.slot for part in layer.figure.parts if part.slot in (SECOND, THIRD, DETAIL)}
    return [f"{colour(layer.materials[slot])} {name}" for name, slot in sorted(slots.items())]


def colour(material: Material) -> str:
    """A common name of the material's mean colour."""
    table = np.frombuffer(material.palette, np.uint8).reshape(256, 3) / 255
    hue, saturation, value = rgb_to_hsv(*table[np.asarray(material.field)].mean((0, 1)))
    if value < 0.3:
        return "black"
    if saturation < 0.2:
        return "white" if value > 0.75 else "grey"
    name = HUES[round(hue * len(HUES)) % len(HUES)]
    return "brown" if name in ("red", "orange", "yellow") and value < 0.6 else name

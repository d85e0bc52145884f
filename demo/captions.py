"""What a training image is called: a few plain sentences around the names of what it shows."""

import torch

from datamodules.images.scenes import CATEGORIES
from datamodules.images.scenes.composition import Composition

TEMPLATES = ("a photo of a {}", "a photo of a {}", "a {}", "a picture of a {}", "one {}")


def caption(composition: Composition, generator: torch.Generator) -> str:
    """A sentence that names the main object, half the time its named companions, and half the time the background."""

    def draw(bound: int) -> int:
        return int(torch.randint(bound, (), generator=generator))

    main, *others = (layer.figure.category for layer in composition.objects)
    text = TEMPLATES[draw(len(TEMPLATES))].format(main)
    named = [name for name in others if name in CATEGORIES]
    if named and draw(2):
        text += " and a " + " and a ".join(named)
    if draw(2):
        text += f" on {composition.backdrop.kind}"
    return text

"""Pixels of a composition: the backdrop, then every layer back to front, each part textured, shaded and pasted."""

from PIL import Image

from sdprobe.scenes.composition import Composition, compose
from sdprobe.scenes.layers import Layer, footprints
from sdprobe.scenes.shading import Light, cast_shadow, shade
from sdprobe.utilities import expect

# version of scenes: composition, pixels, depth, part masks, displaced objects; increase it when one of them changes
VERSION = 1


def scene_pictures(count: int, size: int = 512, seed: int = 0) -> list[Image.Image]:
    """Pictures of procedural scenes, those of ``images=scenes``.

    Args:
        count: number of pictures, at least 1.
        size: side in pixels, at least 1.
        seed: of the scenes, at least 0.

    Returns:
        RGB pictures of size × size pixels.

    Raises:
        InputError: an argument out of range.

    Example:
        >>> from sdprobe.scenes import scene_pictures
        >>> [picture.size for picture in scene_pictures(2, size=64)]
        [(64, 64), (64, 64)]
    """
    expect.count("count", count, 1, 10**7)
    expect.count("size", size, 1, expect.LARGEST)
    expect.at_least("seed", seed, 0)
    return [paint(compose(seed, number), size) for number in range(count)]


def paint(composition: Composition, size: int) -> Image.Image:
    """RGB image of `size` × `size` pixels."""
    canvas = composition.backdrop.base.paint(size, size, (0, 0, 1, 1))
    objects = [composition.objects[k] for k in composition.back_to_front()]
    for layer in (*composition.backdrop.layers, *objects):
        paint_layer(canvas, layer, composition.light)
    return canvas


def paint_layer(canvas: Image.Image, layer: Layer, light: Light) -> None:
    """Paint one layer over the canvas. Patterns span the layer's extent, so they continue across its parts."""
    size = canvas.width
    if layer.casts:
        cast_shadow(canvas, layer, light)
    x0, y0, x1, y1 = layer.figure.extent
    # A pixel box may stick out of the extent by a pixel on each side.
    side, edge = max(x1 - x0, y1 - y0) + 2 / size, 1 / size
    for _, part, box, mask in footprints(layer, size):
        left, top = (box[0] / size - x0 + edge) / side, (box[1] / size - y0 + edge) / side
        right, bottom = (box[2] / size - x0 + edge) / side, (box[3] / size - y0 + edge) / side
        window = max(left, 0.0), max(top, 0.0), min(right, 1.0), min(bottom, 1.0)
        tile = layer.materials[part.slot].paint(box[2] - box[0], box[3] - box[1], window)
        shade(tile, part, box, size, light)
        canvas.paste(tile, box, mask)

"""Light on parts: rounded ones are inflated from their outline on a small grid, flat ones have one normal."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from sdprobe.scenes.figure import Part
from sdprobe.scenes.layers import Box, Layer, silhouette
from sdprobe.scenes.shapes import bounds

GRID = 40  # cells along the longer side of a part's relief
MARGIN = 3
AMBIENT = 0.5
SHADOW_GRID = 96

Light = tuple[float, float, float]


@dataclass(frozen=True)
class Relief:
    """Inflated height in [0, 1] of a part on a small grid; `origin` and `scale` map canvas shares to grid cells."""

    height: NDArray[np.float32]
    thickness: float
    origin: tuple[float, float]
    scale: float

    def window(self, box: Box, size: int) -> tuple[float, float, float, float]:
        """The pixel box in grid coordinates, kept inside the grid."""
        rows, columns = self.height.shape
        x0, x1 = (min(max((x / size - self.origin[0]) * self.scale, 0.0), columns) for x in (box[0], box[2]))
        y0, y1 = (min(max((y / size - self.origin[1]) * self.scale, 0.0), rows) for y in (box[1], box[3]))
        return x0, y0, x1, y1


def inflate(part: Part) -> Relief:
    """Blur the outline by about half the part's thickness: high in the middle, falling off towards the edge."""
    x0, y0, x1, y1 = bounds(part.shape)
    scale = GRID / max(x1 - x0, y1 - y0)
    origin = (x0 - MARGIN / scale, y0 - MARGIN / scale)
    width, height = int((x1 - x0) * scale) + 2 * MARGIN + 1, int((y1 - y0) * scale) + 2 * MARGIN + 1
    mask = silhouette(((ring - origin) * scale for ring in part.shape), (width, height))
    solid = np.asarray(mask, dtype=np.int16) >> 7
    edge = np.abs(np.diff(solid, axis=0)).sum() + np.abs(np.diff(solid, axis=1)).sum()
    thickness = 2.5 * float(solid.sum()) / max(float(edge), 1.0)
    blurred = mask.filter(ImageFilter.GaussianBlur(0.6 * thickness))
    return Relief(np.asarray(blurred, dtype=np.float32) / np.float32(255), thickness, origin, scale)


def brightness(relief: Relief, light: Light) -> NDArray[np.float32]:
    """Lambert shading over that of a surface facing the viewer, darker towards the rim; 1 leaves a colour as it is."""
    down, right = np.gradient(relief.height)
    slope = np.float32(2.2 * relief.thickness)
    nx, ny = -slope * right, -slope * down
    cosine = (nx * light[0] + ny * light[1] + light[2]) / np.sqrt(nx * nx + ny * ny + 1)
    lambert = (AMBIENT + np.maximum(cosine, 0)) / (AMBIENT + light[2])
    rim = 0.62 + 0.38 * np.clip(2.2 * relief.height - 0.75, 0, 1)
    shaded: NDArray[np.float32] = (lambert * rim).astype(np.float32)
    return shaded


def flat_brightness(normal: tuple[float, float, float], light: Light) -> float:
    """Lambert shading of a flat face over that of one facing the viewer."""
    cosine = sum(a * b for a, b in zip(normal, light, strict=True))
    return (AMBIENT + max(cosine, 0.0)) / (AMBIENT + light[2])


def shade(tile: Image.Image, part: Part, box: Box, size: int, light: Light) -> None:
    """Darken and lighten the RGB `tile`, which shows the pixel `box`, as light falls on the part."""
    if part.normal is not None:
        values = np.full((1, 1), flat_brightness(part.normal, light) * part.shade, dtype=np.float32)
        window = (0.0, 0.0, 1.0, 1.0)
    else:
        relief = inflate(part)
        values, window = brightness(relief, light) * np.float32(part.shade), relief.window(box, size)
    dark, bright = 255 * np.clip(0.92 * (1 - values), 0, 0.85), 255 * np.clip(0.55 * (values - 1), 0, 0.6)
    for amount, ink in ((dark, (8, 8, 20)), (bright, (255, 255, 246))):
        if amount.max() >= 1:
            alpha = Image.fromarray(amount.astype(np.uint8))
            tile.paste(ink, mask=alpha.resize(tile.size, Image.Resampling.BILINEAR, box=window))


def cast_shadow(canvas: Image.Image, layer: Layer, light: Light) -> None:
    """Darken the canvas where the layer casts a shadow, with a soft edge."""
    x0, y0, x1, y1 = layer.figure.extent
    reach = 0.05 * max(x1 - x0, y1 - y0) + 0.006
    shift = -reach * np.array(light[:2])
    rings = ((ring + shift) * SHADOW_GRID for part in layer.figure.parts for ring in part.shape)
    mask = silhouette(rings, (SHADOW_GRID, SHADOW_GRID), 130)
    soft = mask.filter(ImageFilter.GaussianBlur(0.35 * reach * SHADOW_GRID + 0.5))
    used = soft.getbbox()
    if used is None:
        return
    size = canvas.width
    left, top = (int(edge * size / SHADOW_GRID) for edge in used[:2])
    right, bottom = (min(size, -(-edge * size // SHADOW_GRID)) for edge in used[2:])
    window = (left * SHADOW_GRID / size, top * SHADOW_GRID / size, right * SHADOW_GRID / size, bottom * SHADOW_GRID / size)
    alpha = soft.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=window)
    canvas.paste((8, 8, 20), (left, top, right, bottom), alpha)

"""Colours and patterns, drawn independently of the parts that they will cover.

Lightness of the slots is set on a circle: the second slot is the first plus a shift in [0.3, 0.7], modulo 1, so
neighbours contrast while every slot, and with it every part of every category, has the same marginal distribution.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from sdprobe.scenes.figure import SLOTS

TILE = 112  # side of a pattern field; patterns are defined on this grid at every image size
KINDS = ("plain", "plain", "mottle", "stripes", "waves", "checks", "dots", "ramp", "blotches")

Field = NDArray[np.float32]


@dataclass(frozen=True)
class Material:
    """A square grey pattern field over the object's extent, and the 256 RGB colours it indexes."""

    field: Image.Image
    palette: bytes

    def paint(self, width: int, height: int, box: tuple[float, float, float, float]) -> Image.Image:
        """RGB image of `width` × `height` pixels showing the share `box` (x0, y0, x1, y1 in [0, 1]) of the field."""
        x0, y0, x1, y1 = (self.field.width * edge for edge in box)
        index = self.field.resize((width, height), Image.Resampling.BICUBIC, box=(x0, y0, x1, y1))
        index.putpalette(self.palette)
        return index.convert("RGB")


def oklch(lightness: float, chroma: float, hue: float) -> NDArray[np.float64]:
    """sRGB colour in [0, 1] of OKLCH coordinates (hue in turns), clipped to the gamut. Björn Ottosson, 2020."""
    a, b = chroma * np.cos(2 * np.pi * hue), chroma * np.sin(2 * np.pi * hue)
    l_, m, s = (
        (lightness + ka * a + kb * b) ** 3
        for ka, kb in ((0.3963377774, 0.2158037573), (-0.1055613458, -0.0638541728), (-0.0894841775, -1.2914855480))
    )
    linear = np.array((
        4.0767416621 * l_ - 3.3077115913 * m + 0.2309699292 * s,
        -1.2684380046 * l_ + 2.6097574011 * m - 0.3413193965 * s,
        -0.0041960863 * l_ - 0.7034186147 * m + 1.7076147010 * s,
    )).clip(0, 1)  # fmt: skip
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def lightness(turn: float) -> float:
    """OKLCH lightness in [0.28, 0.93] of a position on the lightness circle, `turn` taken modulo 1."""
    return 0.28 + 0.65 * (turn % 1.0)


def colour(rng: Generator, turn: float) -> NDArray[np.float64]:
    """A random hue and chroma at the lightness `turn`; sRGB in [0, 1]."""
    return oklch(lightness(turn), rng.uniform(0.01, 0.19), rng.random())


def ramp(stops: list[NDArray[np.float64]], steepness: float, threshold: float) -> bytes:
    """Palette of 256 colours running through `stops`; a `steepness` over 1 sharpens the passage at `threshold`."""
    at = np.clip((np.linspace(0, 1, 256) - threshold) * steepness + 0.5, 0, 1) * (len(stops) - 1)
    table = np.stack([np.interp(at, range(len(stops)), channel) for channel in np.stack(stops, axis=1)], axis=1)
    return (255 * table + 0.5).astype(np.uint8).tobytes()


def as_field(values: Field) -> Image.Image:
    """Values in [0, 1] as a grey image."""
    return Image.fromarray((255 * values.clip(0, 1) + 0.5).astype(np.uint8))


def noise(rng: Generator, coarse: int, octaves: int, decay: float = 0.55, side: int = TILE) -> Field:
    """Fractal value noise in [0, 1], (side, side): random grids of `coarse`, 2·`coarse`, … cells, enlarged."""
    total = np.zeros((side, side), dtype=np.float32)
    for octave in range(octaves):
        cells = min(coarse * 2**octave, side)
        grid = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
        total += decay**octave * np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC))
    low, high = total.min(), total.max()
    field: Field = (total - low) / (high - low)
    return field


def pattern(rng: Generator, kind: str, frequency: float, side: int = TILE) -> Field:
    """Field in [0, 1] of one `kind`, with about `frequency` periods across, at a random angle and phase."""
    if kind in ("mottle", "blotches"):
        return noise(rng, max(2, int(frequency)), 3 if kind == "mottle" else 2, side=side)
    angle = rng.uniform(0, np.pi)
    axis = np.linspace(-0.5, 0.5, side, dtype=np.float32)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = c * axis[None] + s * axis[:, None], c * axis[:, None] - s * axis[None]
    if kind in ("plain", "ramp"):
        return (0.5 + u / 1.42).astype(np.float32)
    pulse = np.float32(2 * np.pi * frequency)
    p, q = (np.float32(phase) for phase in rng.uniform(0, 2 * np.pi, 2))
    if kind == "waves":
        u = u + np.float32(rng.uniform(0.02, 0.08)) * np.sin(0.6 * pulse * v + q)
    wave: Field = np.sin(pulse * u + p).astype(np.float32)
    if kind in ("checks", "dots"):
        wave *= np.sin(pulse * v + q)
    return np.abs(wave) if kind == "dots" else 0.5 + np.float32(0.5) * wave


def material(rng: Generator, turn: float) -> Material:
    """A material of mean lightness about `turn`: two related colours and a pattern of random kind and scale."""
    kind = KINDS[int(rng.integers(len(KINDS)))]
    first, hue = rng.random(), rng.random()
    contrast = rng.uniform(0.02, 0.07) if kind in ("plain", "mottle") else rng.uniform(0.06, 0.14)
    chroma, shift = rng.uniform(0.01, 0.19), rng.normal(0, 0.08) + (0.5 if first < 0.15 else 0.0)
    middle = lightness(turn)
    stops = [oklch(middle - contrast, chroma, hue), oklch(middle + contrast, chroma * rng.uniform(0.4, 1.0), hue + shift)]
    if rng.random() < 0.5:
        stops.reverse()
    sharp = kind in ("stripes", "waves", "checks", "dots", "blotches")
    palette = ramp(stops, rng.uniform(2.0, 8.0) if sharp else 1.0, 0.5)
    return Material(as_field(pattern(rng, kind, rng.uniform(3, 14))), palette)


def wardrobe(rng: Generator, turn: float) -> tuple[Material, ...]:
    """One material per slot; the first has lightness `turn`, the others contrast with it, the last with the fourth."""
    turns = [turn, *(turn + rng.uniform(0.3, 0.7, SLOTS - 2))]
    turns.append(turns[-1] + rng.uniform(0.35, 0.65))
    return tuple(material(rng, value) for value in turns)

"""Faces from the front, turned partly to the right."""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from sdprobe.scenes.figure import BASE, DETAIL, PUPIL, SECOND, THIRD, Figure, Landmark, Part, mark, one
from sdprobe.scenes.shapes import ellipse, limb, mirrored, point, polar, rounded, smooth


def face(rng: Generator) -> Figure:
    """A head from the front, turned partly to the right: hair, ears, eyes, brows, nose, mouth.

    Left and right are the person's own, so the right eye is on the left of the picture.
    """
    wide, tall, jaw = rng.uniform(0.62, 0.85), rng.uniform(0.82, 1.08), rng.uniform(0.45, 0.85)
    turn = rng.uniform(0.0, 0.22)
    side_of_face = [
        (0.75 * wide, -0.72 * tall), (wide, -0.05 * tall), (0.88 * wide, 0.4 * tall), (0.5 * jaw * wide, 0.9 * tall),
    ]  # fmt: skip
    outline = [(0, -tall), *side_of_face, (0, tall), *mirrored(side_of_face)]
    parts = _hair_behind(rng, wide, tall)
    marks: dict[str, Landmark] = {}
    for side, sign in (("right", -1), ("left", 1)):
        ear = point(sign * (wide + 0.02) - 0.25 * turn, 0.02)
        parts.append(Part(f"{side}_ear", one(ellipse(ear, 0.13, rng.uniform(0.17, 0.24)))))
        marks[f"{side}_ear"] = mark(ear + point(sign * 0.06, 0), f"{side}_ear")
    parts.append(Part("skin", one(smooth(outline))))
    fringe = rng.uniform(0.4, 0.62) * tall
    if rng.random() < 0.85:
        parts.append(Part("hair", one(_fringe(rng, wide, tall, fringe)), SECOND))
    for side, sign in (("right", -1), ("left", 1)):
        parts += _eye_and_brow(rng, side, sign, wide, turn, marks)
    nose, mouth = _nose(rng, turn), _mouth(rng, turn, tall)
    parts += [nose[0], *mouth[0]]
    marks |= nose[1] | mouth[1]
    marks["chin"] = mark((0.5 * turn, 0.93 * tall), "skin")
    marks["crown"] = mark((0, -0.94 * tall), "skin", "hair")
    return Figure("face", tuple(parts), marks)


def _hair_behind(rng: Generator, wide: float, tall: float) -> list[Part]:
    """Hair at the back of the head: short cap, long curtain, bun, or none."""
    kind = int(rng.integers(4))
    cap = ellipse((0, -0.2 * tall), wide * 1.15, tall * 0.98)
    if kind == 0:
        return []
    if kind == 1:
        return [Part("hair", one(cap), SECOND)]
    if kind == 2:
        low = rng.uniform(0.5, 1.15) * tall
        edge = [(-wide * 1.22, low), (-wide * 1.15, -0.9 * tall)]
        curtain = rounded([*edge, *mirrored(edge)], 0.25, 3)
        return [Part("hair", one(cap, curtain), SECOND)]
    puffs = [polar((0, -0.35 * tall), a, 0.85 * tall) for a in np.linspace(np.pi, 2 * np.pi, 7)]
    return [Part("hair", one(*(ellipse(p, 0.3, 0.3) for p in puffs)), SECOND)]


def _fringe(rng: Generator, wide: float, tall: float, low: float) -> NDArray[np.float64]:
    """Outline of the hair over the forehead, parted anywhere."""
    part = rng.uniform(-0.5, 0.5) * wide
    dip = rng.uniform(0.0, 0.16)
    edge = [(-1.04 * wide, -0.18 * tall), (-0.86 * wide, -0.78 * tall)]
    tips = [(0.72 * wide, -low), (part, -low - dip), (-0.72 * wide, -low)]
    return smooth([*edge, (0, -1.08 * tall), *mirrored(edge), *tips])


def _eye_and_brow(rng: Generator, side: str, sign: int, wide: float, turn: float, marks: dict[str, Landmark]) -> list[Part]:
    """White, iris and brow of one eye."""
    x, y = sign * 0.42 * wide * (1 - 0.35 * turn) + 0.8 * turn, -0.1
    rx, ry = rng.uniform(0.13, 0.18) * (1 - 0.5 * turn * (sign > 0)), rng.uniform(0.07, 0.13)
    lift, slope = rng.uniform(0.17, 0.26), rng.uniform(-0.25, 0.25)
    brow = [
        point(x - 0.17, y - lift - sign * 0.17 * slope),
        point(x, y - lift - 0.04),
        point(x + 0.17, y - lift + sign * 0.17 * slope),
    ]
    marks[f"{side}_eye"] = mark((x, y), f"{side}_eye")
    marks[f"{side}_brow"] = mark(brow[1], f"{side}_brow", "hair")
    iris = point(x + rng.uniform(-0.03, 0.03) + 0.1 * turn, y)
    return [
        Part(f"{side}_brow", limb(brow, (0.025, 0.045, 0.025)), SECOND),
        Part(f"{side}_eye", one(ellipse((x, y), rx, ry)), DETAIL),
        Part(f"{side}_eye", one(ellipse(iris, 0.068, 0.068, n=20)), PUPIL),
    ]


def _nose(rng: Generator, turn: float) -> tuple[Part, dict[str, Landmark]]:
    """A nose: a tapered ridge ending in a round tip."""
    low, width = rng.uniform(0.16, 0.32), rng.uniform(0.07, 0.13)
    tip = point(1.35 * turn, low)
    ridge = limb((point(0.9 * turn, -0.08), tip), (0.045, width))
    wings = ellipse(tip + point(0, 0.02), 1.45 * width, 0.7 * width)
    return Part("nose", (*ridge, wings), BASE), {"nose_tip": mark(tip, "nose")}


def _mouth(rng: Generator, turn: float, tall: float) -> tuple[list[Part], dict[str, Landmark]]:
    """Lips from smile to frown, sometimes open with teeth showing."""
    y, half, smile = rng.uniform(0.5, 0.6) * tall, rng.uniform(0.2, 0.36), rng.uniform(-0.08, 0.16)
    middle, left, right = point(turn, y), point(turn + half * 0.92, y - smile), point(turn - half, y - smile)
    marks = {"right_mouth_corner": mark(right, "mouth"), "left_mouth_corner": mark(left, "mouth")}
    bend = point(0, 0.2 * smile)
    spine = [right, 0.5 * (right + middle) + bend, middle, 0.5 * (left + middle) + bend, left]
    parts = [Part("mouth", limb(spine, (0.03, 0.05, 0.06, 0.05, 0.03)), THIRD)]
    if rng.random() < 0.45:
        drop = rng.uniform(0.08, 0.2)
        lower_lip = [middle + point(0.5 * half, drop), middle + point(-0.5 * half, drop)]
        parts = [Part("mouth", (*parts[0].shape, smooth([*spine, *lower_lip])), THIRD)]
        parts.append(Part("mouth", one(ellipse(middle + point(0, 0.45 * drop), 0.5 * half, 0.28 * drop)), DETAIL))
    return parts, marks

"""Quadrupeds in side view: anything from dachshund to giraffe, facing right."""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from sdprobe.scenes.figure import FAR, SECOND, THIRD, Figure, Landmark, Part, eye, mark, one
from sdprobe.scenes.shapes import capsule, curve, ellipse, limb, point, polar, rounded, smooth


def quadruped(rng: Generator) -> Figure:
    """Anything from dachshund to giraffe: body, neck, head, ears, tail and four articulated legs."""
    length, depth = rng.uniform(0.95, 1.6), rng.uniform(0.42, 0.66)
    sag, belly = rng.uniform(-0.08, 0.1), rng.uniform(0.3, 0.58)
    front, back = point(length / 2, 0), point(-length / 2, 0)
    outline = [
        (-length / 2 - 0.3 * depth, -0.05 * depth), (-length / 2, -0.48 * depth), (0, (-0.46 + sag) * depth),
        (length / 2, -0.52 * depth), (length / 2 + 0.3 * depth, -0.05 * depth), (length / 2 - 0.03, 0.47 * depth),
        (0, belly * depth), (-length / 2 + 0.1, 0.42 * depth),
    ]  # fmt: skip
    legs, marks = _legs(rng, front + point(-0.02, 0.1 * depth), back + point(0.02, 0.1 * depth), depth)
    tail, tail_marks = _tail(rng, back + point(-0.22 * depth, -0.25 * depth), depth)
    head_far, head_near, head_marks = _head(rng, front + point(0.08 * depth, -0.2 * depth), depth)
    body = Part("body", one(smooth(outline)))
    marks |= tail_marks | head_marks
    marks["withers"] = mark((length / 2 - 0.02, -0.44 * depth), "body", "neck")
    marks["rump"] = mark((-length / 2, -0.4 * depth), "body", "tail")
    marks["belly"] = mark((0, 0.8 * belly * depth), "body")
    parts = (*tail, *legs[:4], *head_far, body, *head_near, *legs[4:])
    return Figure("quadruped", parts, marks)


def _legs(
    rng: Generator, shoulder: NDArray[np.float64], hip: NDArray[np.float64], depth: float
) -> tuple[list[Part], dict[str, Landmark]]:
    """Four legs, far pair first: (leg, foot) each; joints bend backwards in front, forwards behind."""
    length, thick = rng.uniform(0.4, 1.0) + 0.25 * depth, rng.uniform(0.055, 0.1)
    parts: list[Part] = []
    marks: dict[str, Landmark] = {}
    for side, shade in (("far", FAR), ("near", 1.0)):
        for pair, root, knee in (("hind", hip, 1.0), ("fore", shoulder, -1.0)):
            swing = np.pi / 2 + rng.uniform(-0.5, 0.5)
            bend = knee * rng.uniform(0.0, 0.65)
            start = root + point(0.06 if side == "far" else -0.03, 0)
            middle = polar(start, swing - 0.5 * bend, 0.52 * length)
            end = polar(middle, swing + 0.5 * bend, 0.48 * length)
            name = f"{side}_{pair}_leg"
            shape = limb((start, middle, end), (0.34 * depth, 1.15 * thick, 0.8 * thick))
            foot = capsule(end - point(0.3 * thick, 0), end + point(1.1 * thick, 0.15 * thick), 0.95 * thick, 0.7 * thick)
            parts += [Part(name, shape, shade=shade), Part(f"{side}_{pair}_foot", one(foot), THIRD, shade=shade)]
            marks[f"{side}_{pair}_foot"] = mark(end + point(0.3 * thick, 0), f"{side}_{pair}_foot")
    return parts, marks


def _tail(rng: Generator, root: NDArray[np.float64], depth: float) -> tuple[list[Part], dict[str, Landmark]]:
    """A tail: thin, bushy or stubby, hanging or raised."""
    length = rng.uniform(0.25, 0.9)
    spine = curve(root + point(0.1 * depth, 0), rng.uniform(2.0, 4.2), length, rng.uniform(-1.6, 1.6), n=7)
    bulge = rng.uniform(0.0, 0.09) if rng.random() < 0.6 else 0.0
    radii = np.linspace(0.055, 0.035, 7) + bulge * np.array((0, 0.2, 0.5, 0.8, 1, 0.9, 0.5))
    marks = {"tail_tip": mark(spine[-1], "tail"), "tail_root": mark(root, "tail", "body")}
    return [Part("tail", limb(list(spine), list(radii)), shade=0.92)], marks


def _head(rng: Generator, base: NDArray[np.float64], depth: float) -> tuple[list[Part], list[Part], dict[str, Landmark]]:
    """Parts behind the body (far ear), parts before it (neck, head, snout, near ear, eye), and their landmarks."""
    size = rng.uniform(0.19, 0.28)
    centre = polar(base, -rng.uniform(0.35, 1.35), rng.uniform(0.3, 1.0) + 0.2 * depth)
    droop = rng.uniform(-0.1, 0.75)
    muzzle = polar(centre, droop, size * rng.uniform(1.1, 2.3))
    muzzle_radius = size * rng.uniform(0.42, 0.68)
    up = droop - np.pi / 2
    kind, ear_length = int(rng.integers(3)), size * rng.uniform(0.8, 1.7)
    parts: dict[str, Part] = {}
    marks: dict[str, Landmark] = {}
    for side, lean, shade in (("far", 0.25, FAR), ("near", -0.35, 1.0)):
        root = polar(centre, up + lean, 0.75 * size)
        hanging = np.pi / 2 + 0.3 - 0.3 * lean
        heading = hanging if kind == 2 else up + lean - 0.15
        tip = polar(root, heading, ear_length)
        across = heading + np.pi / 2
        width = 0.42 * size
        outline = [polar(root, across, width), polar(root, across, -width), tip]
        pointed = rounded(outline, cut=0.12, rounds=2)
        soft = ellipse((root + tip) / 2, 0.65 * ear_length, 0.5 * size, heading)
        parts[side] = Part(f"{side}_ear", one(pointed if kind == 0 else soft), SECOND, shade=shade)
        marks[f"{side}_ear_tip"] = mark(polar(root, heading, 0.85 * ear_length), f"{side}_ear")
    if kind != 2 and rng.random() < 0.35:
        horn = curve(polar(centre, up + 0.15, 0.8 * size), up + 0.1, size * rng.uniform(1.2, 2.4), rng.uniform(-1.2, 0.9), 5)
        behind = [Part("horn", limb(list(horn), list(np.linspace(0.06, 0.02, 5))), THIRD), parts["far"]]
    else:
        behind = [parts["far"]]
    neck = limb((base, centre), (0.42 * depth, 0.75 * size))
    skull = limb((centre, muzzle), (size, muzzle_radius))
    nose = polar(muzzle, droop - 0.35, 0.78 * muzzle_radius)
    near = [Part("neck", neck), Part("head", skull), parts["near"]]
    near.append(Part("nose", one(ellipse(nose, 0.42 * muzzle_radius, 0.36 * muzzle_radius)), THIRD))
    where = polar(centre, droop - 0.75, 0.5 * size)
    near += eye(where, 0.24 * size)
    marks |= {"nose": mark(nose, "nose"), "eye": mark(where, "eye")}
    marks["throat"] = mark((0.45 * base + 0.55 * centre), "neck", "head")
    return behind, near, marks

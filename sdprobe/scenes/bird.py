"""Birds in side view, standing or flying, facing right."""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from sdprobe.scenes.figure import FAR, SECOND, THIRD, Figure, Landmark, Part, eye, mark, one
from sdprobe.scenes.shapes import capsule, ellipse, limb, point, polar


def bird(rng: Generator) -> Figure:
    """A bird standing or flying: teardrop body, head, beak, a wing folded or raised, tail, two legs."""
    length, plump = rng.uniform(0.7, 1.0), rng.uniform(0.27, 0.42)
    pitch = rng.uniform(-0.7, 0.1)
    chest, rear = polar((0, 0), pitch, 0.32 * length), polar((0, 0), pitch + np.pi, 0.55 * length)
    size = rng.uniform(0.19, 0.27)
    head = chest + polar((0, 0), pitch - rng.uniform(0.5, 1.1), plump + rng.uniform(0.0, 0.4))
    fan, tail_length = rng.uniform(0.1, 0.4), rng.uniform(0.3, 0.85)
    heading = pitch + np.pi + rng.uniform(-0.3, 0.3)
    tips = [polar(rear, heading + fan * k, tail_length) for k in (-1, 0, 1)]
    tail = tuple(ring for tip in tips for ring in limb((rear, tip), (0.09, rng.uniform(0.05, 0.09))))
    legs, marks = _legs(rng, polar((0, 0), pitch + np.pi / 2, 0.45 * plump))
    body = limb((rear, polar((0, 0), pitch, 0.1), chest), (0.1, plump, 0.88 * plump))
    neck = Part("head", limb((chest, head), (0.62 * plump, 0.85 * size)) + one(ellipse(head, size, size)))
    gaze = pitch * 0.4 + rng.uniform(0.0, 0.35)
    beak, beak_tip = _beak(rng, head, size, gaze)
    wing, wing_tip = _wing(rng, polar((0, 0), pitch, 0.22 * length) - point(0, 0.15 * plump), length, pitch)
    where = polar(head, gaze - 0.6, 0.42 * size)
    crest = limb((polar(head, gaze - 1.7, 0.6 * size), polar(head, gaze - 2.2, 2.0 * size)), (0.1, 0.02))
    marks |= {
        "beak_tip": mark(beak_tip, "beak"),
        "eye": mark(where, "eye"),
        "tail_tip": mark(polar(rear, heading, 0.97 * tail_length), "tail"),
        "crown": mark(polar(head, gaze - np.pi / 2, 0.82 * size), "head", "crest"),
        "wing_tip": mark(wing_tip, "wing"),
        "breast": mark(polar(chest, pitch + 0.5, 0.72 * plump), "body", "head"),
        "tail_root": mark(rear, "body", "wing", "tail"),
        "belly": mark(polar((0, 0), pitch + np.pi / 2, 0.8 * plump), "body"),
    }
    crests = [Part("crest", crest, SECOND)] if rng.random() < 0.4 else []
    parts = (Part("tail", tail, SECOND), *legs, *beak, *crests)
    parts += (Part("body", body), neck, Part("wing", wing, SECOND), *eye(where, 0.26 * size))
    return Figure("bird", parts, marks)


def _beak(rng: Generator, head: NDArray[np.float64], size: float, gaze: float) -> tuple[list[Part], NDArray[np.float64]]:
    """A closed or open beak, and the point near the tip of its upper half."""
    length, gap = size * rng.uniform(0.8, 2.0), rng.uniform(0.0, 0.4) if rng.random() < 0.5 else 0.0
    root = polar(head, gaze, 0.7 * size)
    upper = polar(root, gaze, length + 0.3 * size)
    lower = polar(root, gaze + gap + 0.12, 0.8 * length + 0.25 * size)
    shapes = [capsule(root + point(0, 0.06), lower, 0.3 * size, 0.015), capsule(root, upper, 0.4 * size, 0.015)]
    return [Part("beak", one(shape), THIRD) for shape in shapes], polar(root, gaze, 0.85 * length + 0.3 * size)


def _wing(
    rng: Generator, root: NDArray[np.float64], length: float, pitch: float
) -> tuple[tuple[NDArray[np.float64], ...], NDArray[np.float64]]:
    """A wing of overlapping feathers, folded along the back or raised, and the point near its tip."""
    raised = rng.random() < 0.45
    heading = pitch + np.pi + (rng.uniform(0.6, 1.6) if raised else rng.uniform(-0.2, 0.15))
    span = length * (rng.uniform(0.9, 1.4) if raised else rng.uniform(0.65, 0.95))
    spread = 0.55 if raised else 0.3
    feathers = []
    for k in range(4):
        angle = heading - spread * k / 3 * (1 if raised else 0.9)
        tip = polar(root, angle, span * (1 - 0.14 * k))
        feathers.append(capsule(root, tip, 0.16 * length, 0.05 * length))
    return tuple(feathers), polar(root, heading, 0.98 * span)


def _legs(rng: Generator, hips: NDArray[np.float64]) -> tuple[list[Part], dict[str, Landmark]]:
    """Two thin legs with toes, the far one first, and their feet."""
    length = rng.uniform(0.4, 0.85)
    legs: list[Part] = []
    marks: dict[str, Landmark] = {}
    for side, dx, shade in (("far", 0.08, FAR), ("near", -0.06, 1.0)):
        start = hips + point(dx, 0)
        ankle = polar(start, np.pi / 2 + rng.uniform(-0.35, 0.45), length)
        toes = [limb((ankle, polar(ankle, angle, 0.17)), (0.034, 0.022)) for angle in (0.35, -0.1, np.pi - 0.3)]
        shape = (*limb((start, ankle), (0.06, 0.032)), *(ring for toe in toes for ring in toe))
        legs.append(Part(f"{side}_leg", shape, THIRD, shade=shade))
        marks[f"{side}_foot"] = mark(ankle, f"{side}_leg")
    return legs, marks

"""Fish in side view, facing right."""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from sdprobe.scenes.figure import SECOND, THIRD, Figure, Part, eye, mark, one
from sdprobe.scenes.shapes import curve, ellipse, limb, point, polar, smooth


def fish(rng: Generator) -> Figure:
    """A fish: lens-shaped body, forked tail, dorsal, anal and pectoral fins, gill, mouth."""
    half, tall = rng.uniform(0.6, 1.0), rng.uniform(0.26, 0.55)
    nose, arch = rng.uniform(0.25, 0.6), rng.uniform(0.0, 0.35)
    outline = [
        (half, 0.05 * tall), (half * 0.72, -nose * tall), (half * 0.15, -tall), (-half * 0.5, -0.6 * tall),
        (-half, -0.16 * tall), (-half, 0.16 * tall), (-half * 0.5, 0.55 * tall), (half * 0.15, 0.92 * tall),
        (half * 0.72, nose * tall),
    ]  # fmt: skip
    upper, lower = _tail_fin(rng, half, tall)
    flow = rng.uniform(0.3, 0.85)
    notch = point(-half - rng.uniform(0.08, 0.3), 0)
    tail = smooth([(-half + 0.12, -0.12 * tall), upper, notch, lower, (-half + 0.12, 0.12 * tall)])
    dorsal_tip = point(-half * rng.uniform(-0.1, 0.5), -tall * (1 + flow))
    dorsal = smooth([(half * 0.35, -0.75 * tall), dorsal_tip, (-half * 0.62, -0.85 * tall), (-half * 0.6, -0.3 * tall)])
    anal_tip = point(-half * rng.uniform(0.45, 0.7), tall * (0.85 + 0.6 * flow))
    anal = smooth([(-half * 0.1, 0.7 * tall), anal_tip, (-half * 0.68, 0.35 * tall)])
    root = point(half * 0.28, 0.2 * tall)
    pectoral_tip = polar(root, rng.uniform(1.6, 3.3), half * rng.uniform(0.35, 0.6))
    pectoral = limb((root, 0.5 * (root + pectoral_tip), pectoral_tip), (0.05, 0.11, 0.07))
    where = point(half * 0.66, -0.18 * tall)
    gill = curve((half * 0.42, -0.5 * tall), 1.2, 0.95 * tall, 0.75)
    lips = limb(((half * 0.8, 0.22 * tall), (half * 0.96, 0.12 * tall)), (0.02, 0.045))
    bands = [Part("body", one(ellipse((half * x, 0), 0.05, 0.62 * tall)), SECOND) for x in (0.1, -0.2, -0.5)]
    parts = (
        Part("tail_fin", one(tail), SECOND),
        Part("dorsal_fin", one(dorsal), SECOND),
        Part("anal_fin", one(anal), SECOND),
        Part("body", one(smooth(outline))),
        *(bands if rng.random() < arch else []),
        Part("gill", limb(list(gill), [0.018] * 6), THIRD),
        Part("mouth", lips, THIRD),
        Part("pectoral_fin", pectoral, SECOND),
        *eye(where, rng.uniform(0.16, 0.24) * min(tall, 0.42)),
    )
    marks = {
        "mouth": mark((half * 0.95, 0.12 * tall), "mouth", "body"),
        "eye": mark(where, "eye"),
        "gill": mark(gill[3], "gill"),
        "dorsal_fin_tip": mark(dorsal_tip + point(0, 0.08 * tall), "dorsal_fin"),
        "anal_fin_tip": mark(anal_tip - point(0, 0.06 * tall), "anal_fin"),
        "pectoral_fin_tip": mark(pectoral_tip, "pectoral_fin"),
        "tail_root": mark((-half * 0.95, 0), "body", "tail_fin"),
        "tail_upper_tip": mark(0.92 * upper + 0.08 * point(-half, 0), "tail_fin"),
        "tail_lower_tip": mark(0.92 * lower + 0.08 * point(-half, 0), "tail_fin"),
        "belly": mark((half * 0.12, 0.8 * tall), "body"),
    }
    return Figure("fish", parts, marks)


def _tail_fin(rng: Generator, half: float, tall: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Upper and lower tip of the tail fin."""
    reach, fan = rng.uniform(0.3, 0.55), rng.uniform(0.35, 0.6) + 0.2 * tall
    swish = rng.uniform(-0.12, 0.12)
    return point(-half - reach, -fan + swish), point(-half - reach * rng.uniform(0.8, 1.1), fan + swish)

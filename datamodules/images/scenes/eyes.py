"""What animals in side view share: an eye, and how dark their far side is."""

import numpy as np
from numpy.typing import NDArray

from .figure import DETAIL, PUPIL, Part, one
from .shapes import ellipse, point

FAR = 0.72  # brightness of limbs on the side turned away


def eye(centre: NDArray[np.float64], radius: float) -> list[Part]:
    """An eyeball and its pupil, looking ahead."""
    pupil = centre + point(0.18 * radius, 0)
    return [
        Part("eye", one(ellipse(centre, radius, radius, n=20)), DETAIL),
        Part("eye", one(ellipse(pupil, 0.55 * radius, 0.55 * radius, n=16)), PUPIL),
    ]

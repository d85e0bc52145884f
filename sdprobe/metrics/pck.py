"""Percentage of correct keypoints: one set of predicted tokens, counted by the protocol of each paper.

A protocol has its own frame, in which it places the target picture and compares. The network's input, in which the picture was
matched, may place it up to a pixel away from there.

References (protocol: source of its rule):
    dift: Tang et al. (2023), arXiv 2306.03881. sd_dino: Zhang et al. (2023), arXiv 2305.15347. geoaware: Zhang et al. (2024),
    arXiv 2311.17034. loos_thesis: the thesis behind Loos & Linhardt (2025), arXiv 2504.07008. ours: this project.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sdprobe.tokens.batch import Keypoints
from sdprobe.tokens.geometry import centres

ALPHAS = (0.01, 0.05, 0.10, 0.15)
ANNOTATION = 840  # pixels per side of the frame in which sd_dino and geoaware compare
REFINED = "_refined"  # suffix of protocols that use a point between tokens where others use the centre of a token
# protocol → how its correct keypoints are averaged, see sdprobe.metrics.pair_means
PROTOCOLS = {
    "ours": ("point", "image", "macro"),
    "ours_img": ("point", "image", "macro"),
    "dift": ("image", "point"),
    "sd_dino": ("macro", "pair"),
    "geoaware": ("image",),
    "geoaware_refined": ("image",),
    "ours_refined": ("point", "image", "macro"),
    "loos_thesis": ("point",),
}


@dataclass(frozen=True)
class Distances:
    """Distance of predictions from the truth, and the reference length that α multiplies, in pixels of one protocol."""

    error: Float[Tensor, " n"]
    reference: Float[Tensor, " n"]
    strict: bool = False

    def correct(self, alpha: float) -> Bool[Tensor, " n"]:
        """error ≤ α · reference; < instead of ≤ if the protocol is strict."""
        threshold = alpha * self.reference
        return self.error < threshold if self.strict else self.error <= threshold


@dataclass(frozen=True)
class Frame:
    """A square into which a protocol pads target pictures: frame point = (original point + before) · side / longer + after.

    side: of the square, in pixels. longer: longer side of the picture. before, after: margins in pixels of the picture and
    of the frame.
    """

    side: int
    longer: Float[Tensor, "n 1"]
    before: Float[Tensor, "n 2"]
    after: Float[Tensor, "n 2"]

    def to_frame(self, original: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        """Points of the original pictures, in the frame."""
        return (original + self.before) * self.side / self.longer + self.after

    def predicted(self, points: Keypoints, predicted: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        """Points of the network's input, in the frame: scaled as a whole, because both are padded squares.

        Papers do not squash pictures. Points of a squashed input are first mapped to the original picture.
        """
        return self.to_frame(_original(points, predicted)) if points.squashed else predicted * self.side / points.size


def distances(protocol: str, points: Keypoints, cell: Int[Tensor, "n 2"], side: int) -> Distances:
    """Of predicted tokens (row, col) of a grid of ``side`` tokens, taken at their centres; see :func:`input_distances`."""
    return input_distances(protocol, points, centres(cell, points.size / side).double())


def input_distances(protocol: str, points: Keypoints, predicted: Float[Tensor, "n 2"]) -> Distances:
    """Of predicted points (x, y) in the network's input, for every protocol but dift (see :func:`pixel_distances`).

    A refined protocol counts such points by the rule of the protocol without the suffix.

    - ``ours``: in the original picture; the reference is the longer side of the target's box.
    - ``ours_img``: the same, with the longer side of the picture as reference.
    - ``sd_dino``: in a frame of 840 pixels, minus half a pixel: token i is at idx·14 + 6.5 of 60 tokens; strict. The
      reference is the box there, or the side of the frame if ``points.image_reach``.
    - ``geoaware``: the same without the half pixel, idx·14 + 7.
    - ``loos_thesis``: in a frame of the input's size; the reference is the box there, cut to whole pixels.
    """
    protocol = protocol.removesuffix(REFINED)
    if protocol in ("ours", "ours_img"):
        return point_distances(points, predicted, image=protocol == "ours_img")
    if protocol not in ("sd_dino", "geoaware", "loos_thesis"):
        raise ValueError(protocol)
    frame = _thesis_frame(points) if protocol == "loos_thesis" else _annotation_frame(points)
    shift = 0.5 if protocol == "sd_dino" else 0.0
    error = (frame.predicted(points, predicted) - shift - frame.to_frame(points.target_point)).norm(dim=1)
    if protocol == "loos_thesis":
        corners = [frame.to_frame(corner).trunc() for corner in points.target_box.split(2, 1)]
        return Distances(error, _longer(torch.cat(corners, 1)))
    box = _longer(points.target_box) * frame.side / frame.longer[:, 0]
    return Distances(error, torch.full_like(box, frame.side) if points.image_reach else box, strict=True)


def _annotation_frame(points: Keypoints) -> Frame:
    """840 pixels per side. The space beside a rounded shorter side is halved and cut to whole pixels."""
    longer = points.target_size.amax(1, keepdim=True)
    left = ANNOTATION - (ANNOTATION * points.target_size / longer).round()
    return Frame(ANNOTATION, longer, torch.zeros_like(left), (left / 2).floor())


def _thesis_frame(points: Keypoints) -> Frame:
    """The input's size. Pictures are padded by whole pixels of their own before scaling."""
    longer = points.target_size.amax(1, keepdim=True)
    left = longer - points.target_size
    return Frame(points.size, longer, (left / 2).floor(), torch.zeros_like(left))


def _original(points: Keypoints, predicted: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    """Points of the network's input, in pixels of the original pictures."""
    return (predicted - points.target_offset) / points.target_scale


def point_distances(points: Keypoints, predicted: Float[Tensor, "n 2"], image: bool = False) -> Distances:
    """Of any points (x, y) in the network's input, measured in the original pictures."""
    original = _original(points, predicted)
    reference = points.target_size.amax(1) if image else _longer(points.target_box)
    return Distances((original - points.target_point).norm(dim=1), reference)


def pixel_distances(points: Keypoints, pixel: Int[Tensor, "n 2"]) -> Distances:
    """``dift``: predictions are whole pixels (x, y) of the original picture; the reference is the longer side of the box."""
    return Distances((pixel.double() - points.target_point).norm(dim=1), _longer(points.target_box))


def random_correct(points: Keypoints, alpha: float, image: bool = False, grid: int = 48) -> Float[Tensor, " n"]:
    """Probability that a uniform point of the target picture is correct: its share of ``grid`` × ``grid`` points."""
    ticks = (torch.arange(grid, dtype=torch.float64, device=points.pair.device) + 0.5) / grid
    candidates = torch.cartesian_prod(ticks, ticks)
    threshold = alpha * (points.target_size.amax(1) if image else _longer(points.target_box))
    shares = []
    for start in range(0, len(points), 1024):
        rows = slice(start, start + 1024)
        away = candidates[None] * points.target_size[rows, None] - points.target_point[rows, None]
        shares.append((away.norm(dim=2) <= threshold[rows, None]).double().mean(1))
    return torch.cat(shares)


def _longer(box: Float[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    """Longer side of boxes (x0, y0, x1, y1)."""
    return (box[:, 2:] - box[:, :2]).amax(1)

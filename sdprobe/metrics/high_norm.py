"""High-norm tokens: their energy, their positions, and how well detections agree with labels or other detections.

In the decoder of Stable Diffusion they appear as 2×2 patches on even rows and columns: one token of the coarser grid,
upsampled.
"""

from abc import abstractmethod

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import max_pool2d

from sdprobe.metrics.credibility import token_risk
from sdprobe.metrics.folds import FOLDS, Estimate, FoldMetric, estimates_of, with_interval
from sdprobe.metrics.intervals import FEWEST
from sdprobe.metrics.layer_tokens import LayerTokens, inverse_norms
from sdprobe.tokens.geometry import at_grid
from sdprobe.utilities.errors import InputError

DETECTED = "high_norm"
TEMPLATE_COSINE = 0.8
PATCHES = "high_norm_patches/all"  # per image; all other values are shares
PARITY = ("even_even", "even_odd", "odd_even", "odd_odd")


def full_patches(mask: Bool[Tensor, "b h w"]) -> Bool[Tensor, "b h//2 w//2"]:
    """Aligned 2×2 cells whose four tokens are all in the mask. An odd last row or column belongs to no cell."""
    _, height, width = mask.shape
    cells = mask[:, : height // 2 * 2, : width // 2 * 2].unflatten(2, (width // 2, 2)).unflatten(1, (height // 2, 2))
    return cells.all(4).all(2)


def parity_counts(mask: Bool[Tensor, "b h w"]) -> Float[Tensor, "b 4"]:
    """Tokens of the mask at even-even, even-odd, odd-even and odd-odd (row, column), per image."""
    parts = [mask[:, row::2, col::2].double().sum((1, 2)) for row in (0, 1) for col in (0, 1)]
    return torch.stack(parts, dim=1)


class DetectionMetric(FoldMetric):
    """Shares of tokens that occur in some images only, from one table of sums.

    Args:
        images, folds: see :class:`~.FoldMetric`.
        shape: of the sums of an image.
    """

    sums: Tensor

    def __init__(self, images: int, folds: int, *shape: int) -> None:
        super().__init__(images, folds, sums=shape)

    @staticmethod
    @abstractmethod
    def _values(sums: Float[Tensor, "..."]) -> dict[str, Tensor]:
        """Every share, from sums over images."""

    def estimates(self) -> dict[str, Estimate]:
        """Every share of all images and without each fold, of the images on this device; NaN where undefined."""
        return estimates_of(self._values, self.sums)

    def compute(self) -> dict[str, float]:
        """The shares that are defined.

        Intervals need 40 images, 6 folds that differ from 0, and 6 that differ from 1. With fewer, the frequency of rare
        detections is not known.
        """
        report: dict[str, float] = {}
        by_fold = self._values(self.sums)
        for key, estimate in self.estimates().items():
            top = np.inf if key == PATCHES else 1
            numbers = with_interval(key, estimate, self.seen, (0, top))
            folds = by_fold[key][by_fold[key].isfinite()]
            enough = min((folds > 0).sum(), (folds < top).sum()) >= FEWEST
            report |= {name: value for name, value in numbers.items() if enough or name == key}
        return report


class HighNormTokens(DetectionMetric):
    """Number, energy and positions of the detected tokens, those of the group ``high_norm``.

    ``high_norm_share/all`` f_out and ``high_norm_energy/all`` E_out: share of tokens and of Σ‖x‖² over all images;
    ``r_tok/all``: see :func:`token_risk`; ``high_norm_images/all``: share of images with a detection;
    ``high_norm_patches/all``: full aligned 2×2 patches per image; ``high_norm_aligned/all``: share of detections in such a
    patch; ``high_norm_parity/<row>_<column>``: share of detections on even and odd rows and columns (1/4 by chance).

    Args:
        images, folds: see :class:`~.FoldMetric`.
    """

    def __init__(self, images: int, folds: int = FOLDS) -> None:
        # detected tokens, tokens, detected energy, energy, images with a detection, images, patches; detections by parity
        super().__init__(images, folds, 7 + len(PARITY))

    def update(self, layer: LayerTokens) -> None:
        """Add the next images."""
        energy, chosen, grid = layer.norms.square(), layer.masks[DETECTED].double(), layer.grid_mask(DETECTED)
        columns = [
            chosen.sum(1),
            torch.ones_like(chosen).sum(1),
            (chosen * energy).sum(1),
            energy.sum(1),
            chosen.amax(1),
            torch.ones_like(chosen[:, 0]),
            full_patches(grid).double().sum((1, 2)),
            *parity_counts(grid).unbind(1),
        ]
        self._add(layer.rank, sums=torch.stack(columns, dim=1))

    @staticmethod
    def _values(sums: Float[Tensor, "*n 11"]) -> dict[str, Tensor]:
        detected, tokens, hot, energy, hit, images, patches, *parity = sums.unbind(-1)
        share, carried = detected / tokens, hot / energy
        values = {
            "high_norm_share/all": share,
            "high_norm_energy/all": carried,
            "r_tok/all": token_risk(carried, share),
            "high_norm_images/all": hit / images,
            PATCHES: patches / images,
            "high_norm_aligned/all": 4 * patches / detected,
        }
        return values | {f"high_norm_parity/{name}": count / detected for name, count in zip(PARITY, parity, strict=True)}


def resembles(
    layer: LayerTokens, template: Float[Tensor, " c"], threshold: float = TEMPLATE_COSINE
) -> Bool[Tensor, "b {layer.height} {layer.width}"]:
    """Centred tokens whose cosine with the template of :class:`~.TokenMeans` exceeds ``threshold``."""
    cosines = layer.centred @ template.float() * inverse_norms(layer.centred_norms)
    return (cosines > threshold).unflatten(1, (layer.height, layer.width))


def pooled(mask: Bool[Tensor, "b h w"], factor: int) -> Bool[Tensor, "b _h _w"]:
    """Cells of factor × factor tokens that hold a token of the mask; a last cell may be smaller."""
    return max_pool2d(mask.float().unsqueeze(1), factor, ceil_mode=True).squeeze(1).bool()


def same_grid(first: Bool[Tensor, "b h w"], second: Bool[Tensor, "b i j"]) -> tuple[Tensor, Tensor]:
    """Both masks on the coarser of the two grids. A coarse token is in the mask if any token inside it is.

    Raises:
        InputError: one grid is not an exact refinement of the other.
    """
    fine, coarse = max(first.shape[1:], second.shape[1:]), min(first.shape[1:], second.shape[1:])
    factor = fine[0] // coarse[0]
    if fine != (factor * coarse[0], factor * coarse[1]):
        raise InputError(
            f"Expected one grid of masks to divide the other, but got {coarse[0]}×{coarse[1]} and {fine[0]}×{fine[1]}. "
            "Compare layers whose sides are multiples of one another."
        )
    return at_grid(first, *coarse), at_grid(second, *coarse)


class MaskOverlap(DetectionMetric):
    """``iou/all`` of two sets of masks: tokens in both / tokens in either, over all images. ``iou_chance/all``: for independent
    masks.

    Masks of different resolutions are compared on the coarser grid. With a and b the shares of tokens, chance is
    ab / (a + b − ab).

    Args:
        images, folds: see :class:`~.FoldMetric`.
    """

    def __init__(self, images: int, folds: int = FOLDS) -> None:
        super().__init__(images, folds, 4)

    def update(self, first: Bool[Tensor, "b h w"], second: Bool[Tensor, "b i j"]) -> None:
        """Add the next images: two masks of each.

        Raises:
            InputError: if one grid does not divide the other.
        """
        self._add(sums=agreement(*same_grid(first, second)))

    @staticmethod
    def _values(sums: Float[Tensor, "*n 4"]) -> dict[str, Tensor]:
        both, first, second, tokens = sums.unbind(-1)
        product = first * second / tokens
        return {"iou/all": both / (first + second - both), "iou_chance/all": product / (first + second - product)}


def agreement(first: Bool[Tensor, "b h w"], second: Bool[Tensor, "b h w"]) -> Float[Tensor, "b 4"]:
    """Per image: tokens in both masks, in the first, in the second, and all tokens."""
    masks = (first & second, first, second, torch.ones_like(first))
    return torch.stack([mask.double().sum((1, 2)) for mask in masks], dim=1)


class DetectionScore(DetectionMetric):
    """Precision and recall of detected tokens against labels, over all images.

    ``precision/all``, ``recall/all`` count tokens. ``patch_precision/all``, ``patch_recall/all`` count aligned 2×2 cells; a
    cell is detected or labelled if any of its tokens is. ``…_chance`` is the value for independent detections: the labelled
    share for precision, the detected share for recall.

    Args:
        images, folds: see :class:`~.FoldMetric`.
    """

    def __init__(self, images: int, folds: int = FOLDS) -> None:
        super().__init__(images, folds, 2, 4)

    def update(
        self, detected: Bool[Tensor, "b h w"], label: Bool[Tensor, "b h w"], rank: Int[Tensor, " b"] | None = None
    ) -> None:
        """Add the next images: detections, labels, and their numbers in the stream if they arrive out of order."""
        levels = [agreement(pooled(detected, side), pooled(label, side)) for side in (1, 2)]
        self._add(rank, sums=torch.stack(levels, dim=1))

    @staticmethod
    def _values(sums: Float[Tensor, "*n 2 4"]) -> dict[str, Tensor]:
        values = {}
        for level, prefix in enumerate(("", "patch_")):
            both, detected, label, tokens = sums[..., level, :].unbind(-1)
            values[f"{prefix}precision/all"] = both / detected
            values[f"{prefix}recall/all"] = both / label
            values[f"{prefix}precision_chance/all"] = label / tokens
            values[f"{prefix}recall_chance/all"] = detected / tokens
        return values

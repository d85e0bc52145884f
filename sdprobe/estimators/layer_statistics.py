"""LayerStatistics: all statistics of position, corner and high-norm artefacts of one layer."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchmetrics import Metric

from sdprobe.estimators.grids import ImageGrids
from sdprobe.metrics.channel_energy import ChannelEnergy
from sdprobe.metrics.corner_similarity import CornerSimilarity
from sdprobe.metrics.credibility import (
    clipped_pseudovalues,
    corner_risk,
    credibility_pseudovalues,
    credibility_report,
    larger_risk,
    norm_risk,
    with_clipped,
)
from sdprobe.metrics.folds import Estimate, pseudovalues, with_interval
from sdprobe.metrics.gains import holding, paired_gains
from sdprobe.metrics.group_similarity import GroupSimilarity, corner_mask
from sdprobe.metrics.high_norm import DetectionScore, HighNormTokens, MaskOverlap, resembles
from sdprobe.metrics.layer_tokens import LayerTokens, TokenMeans
from sdprobe.metrics.position_rsa import PositionRSA
from sdprobe.metrics.position_variance import PositionVariance
from sdprobe.metrics.token_norms import TokenNorms
from sdprobe.tokens.keys import GROUPS, OVER_NONE, PARTITION, Key, label_of, qualified, unmitigated

CLIPPED = ("r_cor", "r_norm")  # risks that are reported clipped to [0, 1]
CONTENT = "corner_content"  # tokens of the whole image with the same content as the corners of the cropped image


class LayerStatistics(nn.Module):
    """All statistics of one layer.

    Args:
        shape: (C, h, w).
        margin: number of tokens that the cropped view lacks on every side; None without that view, and then also without
            corner risk and credibility.
        fitted: mean token of the fit images, and the direction of their high-norm tokens.
        images: number of images of the whole and of the cropped view.
        repeats: number of images of the views with other ``noise`` and at another ``timestep``.
        seed: of drawn tokens.
        similar: also compare token distance with spatial distance (RSA), which is slow.
    """

    mean: Tensor
    template: Tensor
    content: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        margin: int | None,
        fitted: TokenMeans,
        images: int,
        repeats: dict[str, int],
        seed: int,
        similar: bool = True,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        mean, template = (each.view(channels) for each in fitted.compute())  # torchmetrics drops the axis of one channel
        self.register_buffer("mean", mean)
        self.register_buffer("template", template)
        self.register_buffer("content", corner_mask(height, width, margin or 0), persistent=False)
        self.similarity = GroupSimilarity((*PARTITION, CONTENT), images, centred=True)
        self.cropped_similarity = GroupSimilarity(PARTITION, images, centred=True)
        self.content_corners = CornerSimilarity(channels, images)
        self.cropped_corners = CornerSimilarity(channels, images)
        self.norms = TokenNorms(height, width, GROUPS, images)
        self.variance = PositionVariance(channels, height, width, images)
        self.rsa = PositionRSA(images, seed=seed) if similar else None
        self.channels = ChannelEnergy(channels, images)
        self.high_norm = HighNormTokens(images)
        self.template_overlap = MaskOverlap(images)
        self.labelled = DetectionScore(images)
        self.scored = False
        self.floor: MaskOverlap | None = None
        self.stability = nn.ModuleDict({name: MaskOverlap(number) for name, number in repeats.items() if number})
        self.first_masks: dict[int, Tensor] = {}
        self.images, self.repeats, self.is_cropped = images, max(repeats.values(), default=0), margin is not None

    def whole(
        self, grid: Float[Tensor, "b c h w"], masks: dict[str, Tensor], image: Int[Tensor, " b"], photo: Int[Tensor, " b"]
    ) -> None:
        """Measure whole images."""
        content = self.content.expand(len(grid), -1, -1)
        tokens = LayerTokens.of(grid, {**masks, CONTENT: content}, self.mean)
        metrics: tuple[Metric, ...] = (self.similarity, self.norms, self.variance, self.channels, self.high_norm)
        for metric in metrics:
            metric.update(tokens)
        self.content_corners.update(tokens, CONTENT)
        if self.rsa is not None:
            self.rsa.update(tokens, image, photo)
        self.template_overlap.update(masks["high_norm"], resembles(tokens, self.template))
        if "labelled" in masks:
            self.scored = True
            self.labelled.update(masks["high_norm"], masks["labelled"])
        for index, mask in zip(image.tolist(), masks["high_norm"], strict=True):
            if len(self.first_masks) < self.repeats:
                self.first_masks[index] = mask.cpu()

    def cropped(self, grid: Float[Tensor, "b c h w"], masks: dict[str, Tensor]) -> None:
        """Measure similarity within groups, and of the same corner between images, in cropped images."""
        tokens = LayerTokens.of(grid, masks, self.mean)
        self.cropped_similarity.update(tokens)
        self.cropped_corners.update(tokens, "corner")

    def repeated(self, noise: bool, mask: Bool[Tensor, "b h w"], image: Int[Tensor, " b"]) -> None:
        """Compare the high-norm tokens of images seen before with those under other noise or at another timestep."""
        before = torch.stack([self.first_masks[index] for index in image.tolist()]).to(mask.device)
        self.stability["noise" if noise else "timestep"].update(before, mask)  # type: ignore[operator]

    def compare_with_floor(self, cells: dict[int, Bool[Tensor, "h w"]]) -> None:
        """Compare the high-norm tokens of images seen before with other masks of the same grid."""
        self.floor = MaskOverlap(len(cells)).to(self.mean.device)
        ours = torch.stack([self.first_masks[index] for index in cells]).to(self.mean.device)
        self.floor.update(ours, torch.stack(list(cells.values())).to(self.mean.device))

    def compute(self) -> dict[str, float]:
        """``<metric>/<group>`` with intervals over folds of images; credibility last."""
        left_out = f"_{CONTENT}" if self.is_cropped else CONTENT
        values = {key: value for key, value in self.similarity.compute().items() if left_out not in Key.parse(key).where}
        if self.is_cropped:
            values |= {f"content_{key}": value for key, value in self.content_corners.compute().items()}
            for cropped in (self.cropped_similarity, self.cropped_corners):
                values |= {f"cropped_{key}": value for key, value in cropped.compute().items()}
        for metric in (self.norms, self.variance, self.rsa, self.channels, self.high_norm):
            values |= metric.compute() if metric is not None else {}
        for name, overlap in {"template": self.template_overlap, **dict(self.stability.items())}.items():
            values |= {f"{name}_{key}": value for key, value in overlap.compute().items()}  # type: ignore[operator]
        if self.floor is not None:
            values |= {f"vae_floor_{key}": value for key, value in self.floor.compute().items()}
            values["vae_floor_share/all"] = float(self.floor.sums[:, 2].sum() / self.floor.sums[:, 3].sum())
        if self.scored:
            values |= {f"labels_{key}": value for key, value in self.labelled.compute().items()}
        return values | self._credibility()

    def gain(self, other: "LayerStatistics") -> dict[str, float]:
        """Risks, credibility and relative norms of this layer minus those of another on the same images, see
        :func:`paired_gains`.

        Gains are differences of the reported values. Intervals are those of the unclipped values, extended where needed so
        that they contain the gain.
        """
        units = self.pseudovalues()
        gains = paired_gains(units, other.pseudovalues())
        own, theirs = self.compute(), other.compute()
        for key in (key for key in units if key in gains):
            gains |= holding(key, own[key] - theirs[key], gains)
        return gains

    def pseudovalues(self) -> dict[str, np.ndarray]:
        """``<metric>/<group>`` → contribution of every fold of images to risks, credibility and relative norms."""
        risks = self._risks()
        values = {
            f"{name}/all": clipped_pseudovalues(risk) if name in CLIPPED else pseudovalues(risk) for name, risk in risks.items()
        }
        norms = {key: pseudovalues(estimate) for key, estimate in self.norms.estimates().items() if estimate[0].isfinite()}
        credible = {"credibility/all": credibility_pseudovalues(risks)} if self.is_cropped else {}
        return values | credible | norms

    def _credibility(self) -> dict[str, float]:
        if not self.is_cropped:
            risks = self._risks()
            return with_interval("r_pos/all", risks["r_pos"], self.images) | with_clipped("r_norm/all", *risks["r_norm"])
        report = credibility_report(self._risks(), self.images)
        for name, kind in self._corners().items():
            report |= with_clipped(f"r_cor_{name}/all", *kind)
        return report

    def _risks(self) -> dict[str, Estimate]:
        """r_pos, r_cor and r_norm, unclipped; r_cor only with a cropped view."""
        token, channel = self.high_norm.estimates()["r_tok/all"], self.channels.estimates()["r_chn/all"]
        corner = {"r_cor": larger_risk(*self._corners().values())} if self.is_cropped else {}
        norm = tuple(norm_risk(*parts) for parts in zip(token, channel, strict=True))
        return {"r_pos": self.variance.estimate(), **corner, "r_norm": norm}  # type: ignore[dict-item]

    def _corners(self) -> dict[str, Estimate]:
        """Corner risk by kind of pair, unclipped."""
        inner = self.cropped_similarity.estimates()["similarity_centred/corner"]
        outer = self.similarity.estimates()[f"similarity_centred/{CONTENT}"]
        across = (corners.estimates()["similarity_across/corner"] for corners in (self.cropped_corners, self.content_corners))
        return {
            "within": tuple(corner_risk(*parts) for parts in zip(inner, outer, strict=True)),  # type: ignore[dict-item]
            "across": tuple(corner_risk(*parts) for parts in zip(*across, strict=True)),  # type: ignore[dict-item]
        }


def measured(
    images: ImageGrids,
    views: Mapping[str, ImageGrids],
    margins: Mapping[str, int | None],
    fit: Sequence[int],
    tested: Sequence[int],
    repeats: int,
    seed: int,
    batch_size: int,
) -> dict[str, LayerStatistics]:
    """Layer → its statistics, from the grids of whole images.

    Args:
        images: grids as they are.
        views: ``cropped``, ``other_noise`` and ``other_timestep`` → grids of the same images, where there are any.
        margins: layer → tokens that ``cropped`` lacks on every side.
        fit: images that give the mean token.
        tested: images that are measured.
        repeats: how many of ``tested`` are compared with the views of other noise and another timestep.
        seed: of drawn tokens.
        batch_size: images per step.
    """
    means = {layer: TokenMeans(channels).to(images.device) for layer, (channels, _, _) in images.shapes.items()}
    for batch in images.batches(fit, batch_size):
        for layer, grid in batch.grids.items():
            means[layer].update(grid, batch.masks[layer]["high_norm"])
    some = tested[:repeats]
    repeated = {name: len(some) * (f"other_{name}" in views) for name in ("noise", "timestep")}
    measures = {
        layer: LayerStatistics(shape, margins[layer], means[layer], len(tested), repeated, seed, not label_of(layer)).to(
            images.device
        )
        for layer, shape in images.shapes.items()
    }
    for batch in images.batches(tested, batch_size):
        for layer, grid in batch.grids.items():
            measures[layer].whole(grid, batch.masks[layer], batch.image, batch.photo)
    for name, view in views.items():
        for batch in view.batches(tested if name == "cropped" else some, batch_size):
            for layer, grid in batch.grids.items():
                if name == "cropped":
                    measures[layer].cropped(grid, batch.masks[layer])
                else:
                    measures[layer].repeated(name == "other_noise", batch.masks[layer]["high_norm"], batch.image)
    return measures


def reported(measures: Mapping[str, LayerStatistics]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Numbers and pseudo-values of all layers under their full keys. Variants also get their gain over their layer."""
    results: dict[str, float] = {}
    units: dict[str, np.ndarray] = {}
    for layer, statistics in measures.items():
        results |= qualified("test", layer, statistics.compute())
        units |= qualified("test", layer, statistics.pseudovalues())
        if label_of(layer):
            results |= qualified(OVER_NONE, layer, statistics.gain(measures[unmitigated(layer)]))
    return results, units

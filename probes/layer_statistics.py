"""LayerStatistics: every anomaly statistic of one layer, fed by the views of its images."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchmetrics import Metric

from metrics.channel_energy import ChannelEnergy
from metrics.credibility import corner_risk, credibility, credibility_report, norm_risk
from metrics.gains import fold_gain
from metrics.group_similarity import GroupSimilarity, corner_mask
from metrics.high_norm import DetectionScore, HighNormTokens, MaskOverlap, resembles
from metrics.layer_tokens import LayerTokens
from metrics.position_rsa import PositionRSA
from metrics.position_variance import PositionVariance
from metrics.token_means import TokenMeans
from metrics.token_norms import TokenNorms

PARTS = ("corner", "border", "interior")
CONTENT = "corner_content"  # tokens of the whole image that show what the corners of the cropped image show


class LayerStatistics(nn.Module):
    """Statistics of one layer.

    Args:
        shape: (C, h, w).
        margin: tokens that the cropped view lacks on every side.
        fitted: mean token of the fit images, and the direction of their high-norm tokens.
        images: images of the whole and of the cropped view.
        repeats: images of the views with other ``noise`` and at another ``timestep``.
        seed: of drawn tokens.
        similar: also compare token distance with spatial distance (RSA), which is slow.
    """

    mean: Tensor
    template: Tensor
    content: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        margin: int,
        fitted: TokenMeans,
        images: int,
        repeats: dict[str, int],
        seed: int,
        similar: bool = True,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        mean, template = fitted.compute()
        self.register_buffer("mean", mean)
        self.register_buffer("template", template)
        self.register_buffer("content", corner_mask(height, width, margin), persistent=False)
        self.similarity = GroupSimilarity((*PARTS, CONTENT), images, centred=True)
        self.cropped_similarity = GroupSimilarity(PARTS, images, centred=True)
        self.norms = TokenNorms(height, width, (*PARTS, "high_norm"), images)
        self.variance = PositionVariance(channels, height, width, images)
        self.rsa = PositionRSA(images, seed=seed) if similar else None
        self.channels = ChannelEnergy(channels, images)
        self.high_norm = HighNormTokens(images)
        self.template_overlap = MaskOverlap(images)
        self.labelled = DetectionScore(images)
        self.scored = False
        self.floor: MaskOverlap | None = None
        self.stability = nn.ModuleDict({name: MaskOverlap(number) for name, number in repeats.items() if number})
        self.kept: dict[int, Tensor] = {}
        self.images, self.repeats = images, max(repeats.values())

    def whole(
        self, grid: Float[Tensor, "b c h w"], masks: dict[str, Tensor], image: Int[Tensor, " b"], photo: Int[Tensor, " b"]
    ) -> None:
        """Measure whole images."""
        content = self.content.expand(len(grid), -1, -1)
        tokens = LayerTokens.of(grid, {**masks, CONTENT: content}, self.mean)
        metrics: tuple[Metric, ...] = (self.similarity, self.norms, self.variance, self.channels, self.high_norm)
        for metric in metrics:
            metric.update(tokens)
        if self.rsa is not None:
            self.rsa.update(tokens, image, photo)
        self.template_overlap.update(masks["high_norm"], resembles(tokens, self.template))
        if "labelled" in masks:
            self.scored = True
            self.labelled.update(masks["high_norm"], masks["labelled"])
        for index, mask in zip(image.tolist(), masks["high_norm"], strict=True):
            if len(self.kept) < self.repeats:
                self.kept[index] = mask.cpu()

    def cropped(self, grid: Float[Tensor, "b c h w"], masks: dict[str, Tensor]) -> None:
        """Measure the similarity of groups in cropped images."""
        self.cropped_similarity.update(LayerTokens.of(grid, masks, self.mean))

    def repeated(self, noise: bool, mask: Bool[Tensor, "b h w"], image: Int[Tensor, " b"]) -> None:
        """Compare the high-norm tokens of images seen before, now with other noise or at another timestep."""
        before = torch.stack([self.kept[index] for index in image.tolist()]).to(mask.device)
        self.stability["noise" if noise else "timestep"].update(before, mask)  # type: ignore[operator]

    def compare_with_floor(self, cells: dict[int, Bool[Tensor, "h w"]]) -> None:
        """Hold the high-norm tokens of these images, seen before, against other masks of the same grid."""
        self.floor = MaskOverlap(len(cells)).to(self.mean.device)
        ours = torch.stack([self.kept[index] for index in cells]).to(self.mean.device)
        self.floor.update(ours, torch.stack(list(cells.values())).to(self.mean.device))

    def compute(self) -> dict[str, float]:
        """``<metric>/<group>`` with intervals over folds of images, credibility last."""
        values = {key: value for key, value in self.similarity.compute().items() if f"_{CONTENT}" not in key}
        values |= {f"cropped_{key}": value for key, value in self.cropped_similarity.compute().items()}
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
        """Risks, credibility and relative norms of this layer minus another's of the same images, see :func:`fold_gain`."""
        (own, own_folds), (theirs, their_folds) = (
            (parts | {"credibility": credibility(*parts.values())}, folds | {"credibility": credibility(*folds.values())})
            for parts, folds in (self._risks(), other._risks())
        )
        found: dict[str, float] = {}
        for name in own:
            found |= fold_gain(f"{name}/all", own[name].item(), theirs[name].item(), own_folds[name], their_folds[name])
        (norms, norm_folds), (their_norms, their_norm_folds) = (
            (each.norms.compute(), each.norms.per_fold()) for each in (self, other)
        )
        for key in (key for key in norm_folds if key in norms and key in their_norms):  # a group may have no tokens
            found |= fold_gain(key, norms[key], their_norms[key], norm_folds[key], their_norm_folds[key])
        return found

    def _credibility(self) -> dict[str, float]:
        return credibility_report(*self._risks(), self.images)

    def _risks(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """r_pos, r_cor and r_norm of all images, and of every fold."""
        inner, outer = self.cropped_similarity, self.similarity
        key_in, key_out = "similarity_centred/corner", f"similarity_centred/{CONTENT}"
        folds = {
            "r_pos": self.variance.per_fold(),
            "r_cor": corner_risk(inner.per_fold()[key_in], outer.per_fold()[key_out]),
            "r_norm": norm_risk(self.high_norm.per_fold()["r_tok/all"], self.channels.per_fold()["r_chn/all"]),
        }
        whole = {
            "r_pos": _value(self.variance, "position_variance/all"),
            "r_cor": corner_risk(_value(inner, key_in), _value(outer, key_out)),
            "r_norm": norm_risk(_value(self.high_norm, "r_tok/all"), _value(self.channels, "r_chn/all")),
        }
        parts = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in whole.items()}
        return parts, {name: fold.to(parts[name].device) for name, fold in folds.items()}


def _value(metric: Metric, key: str) -> Tensor:
    """One number of a metric; NaN where it was not measured."""
    return torch.tensor(metric.compute().get(key, torch.nan), dtype=torch.float64)

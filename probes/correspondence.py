"""CorrespondenceProbe: do tokens match the same part in another picture, and what do anomalies cost? Data path steps 8 and 9.

There are three conditions. ``test`` matches by cosine after a linear projection that is trained on keypoints of training pairs;
with ``head=none`` it matches raw tokens. ``zero_shot`` matches raw tokens beside a trained projection. ``shuffled_labels``
matches after a projection that is trained on wrong pairs.
"""

from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property
from typing import Protocol, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from probes.base import Data, Shapes
from probes.linear import LinearProbe
from sdprobe.estimators.correspondence import add, add_pixels, over_networks, reported
from sdprobe.estimators.matching import cosines
from sdprobe.metrics.correspondence import MAIN, Correspondence
from sdprobe.metrics.matches import Matches
from sdprobe.tokens.batch import KeypointBatch, Keypoints, MatchBatch
from sdprobe.tokens.keys import base_of, is_energy_control, label_of, select
from sdprobe.utilities import settings
from sdprobe.utilities.rng import keyed_generator

TRAINED = ("test", "shuffled_labels")


class PairData(Data, Protocol):
    """A data module of image pairs."""

    def keypoints(self) -> Keypoints:
        """Return every keypoint to find in the test split, a row each."""

    def keypoint_names(self) -> dict[str, np.ndarray]:
        """Return column → names for every row of :meth:`keypoints`: of its category, its two pictures and its keypoint."""


class CorrespondenceProbe(LinearProbe):
    """Semantic correspondence: the token in a target picture that is most similar to the token under a source keypoint.

    ``results`` have PCK (the share of keypoints within a distance, from 0 to 1) of every layer by several protocols, retrieval
    accuracies, the cost of anomalous tokens, gains, and the baselines ``same_position`` and ``random_point``; see
    :class:`~sdprobe.metrics.correspondence.Correspondence`.

    Args:
        shapes: layer → (C, h, w).
        photos: number of pictures; not used.
        data: a data module of pairs, such as :class:`~datamodules.pairs.PairDataModule`.
        head: ``linear``, or ``none``, which trains nothing.
        dimensions: dimensions of the projection, above 0.
        temperature: temperature of the contrastive loss, by which cosines are divided, above 0.
        learning_rate: step size of Adam, above 0.
        min_steps: least number of steps before a head may stop, at least 0.
        patience: validations in a row without improvement after which a head stops, at least 1.
        enlarged: also match as DIFT does, on grids enlarged to the size of the picture; with raw tokens only.
        pictured: number of pairs to draw, at least 0.
        seed: seed of initial weights, shuffled pairs, random masks and resampling.

    Raises:
        InputError: an option out of range, a data module of another kind.

    References:
        Tang et al. (2023), arXiv 2306.03881 (DIFT, zero-shot matching). van den Oord et al. (2018), arXiv 1807.03748 (the
        contrastive loss).

    Example:
        >>> import tempfile
        >>> import lightning
        >>> from datamodules.images.scenes import ScenePairs
        >>> from datamodules.pairs import PairDataModule
        >>> from sdprobe import FrozenSD
        >>> cache = tempfile.TemporaryDirectory()
        >>> images = ScenePairs(size=64, limit=48, pairs_per_category=1)
        >>> sd = FrozenSD.from_pretrained("tiny", device="cpu")
        >>> data = PairDataModule(images, sd, block="up_1", head="none", cache_dir=cache.name)
        >>> probe = CorrespondenceProbe(data.shapes, data.photos, data, head="none")
        >>> trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> _ = trainer.test(probe, data, verbose=False)
        >>> 0 <= probe.results["test/up_1/pck_ours_point_0.10/all"] <= 1
        True
    """

    kind, reads = "correspondence", "pairs"
    data: PairData
    variants, metric, predicts = TRAINED, "retrieval_accuracy", "projection"
    score = f"{MAIN}/all"

    def __init__(
        self,
        shapes: Shapes,
        photos: int,
        data: Data,
        head: str = "linear",
        dimensions: int = 128,
        temperature: float = 0.07,
        learning_rate: float = 1e-3,
        min_steps: int = 300,
        patience: int = 3,
        enlarged: bool = True,
        pictured: int = 6,
        seed: int = 0,
    ) -> None:
        settings.check("probe=correspondence", head=head, dimensions=dimensions, temperature=temperature, pictured=pictured)
        solver = "adam" if head == "linear" else "none"
        super().__init__(shapes, data, dict.fromkeys(shapes, dimensions), solver, learning_rate, min_steps, patience, seed)
        self.temperature, self.enlarged, self.pictured = temperature, enlarged, pictured
        self.learns = head == "linear"
        self.raw = "zero_shot" if self.learns else "test"
        self.conditions = (*TRAINED, "zero_shot") if self.learns else ("test",)

    def training_step(self, batch: KeypointBatch, batch_idx: int) -> Tensor | None:
        """Return the sum over layers and variants of the contrastive loss per keypoint."""
        active = [layer for layer in self.shapes if layer not in self._done]
        losses = {layer: self._contrast(layer, batch, "train", self.trainer.current_epoch, batch_idx)[0] for layer in active}
        for layer in active:
            self._head(layer).steps += 1
        return self._total(losses)

    def validation_step(self, batch: KeypointBatch, batch_idx: int) -> None:
        """Add up loss and retrieval accuracy of every head."""
        for layer in self.shapes:
            loss, right = self._contrast(layer, batch, "val", batch_idx)
            self._validate(layer, loss.double() * len(batch.label), right * len(batch.label), len(batch.label))

    def on_test_start(self) -> None:
        """Set the heads to their best states, and allocate the matches of all keypoints."""
        super().on_test_start()
        rows = len(self._points)
        self.measures = nn.ModuleDict({layer: Matches(h, self.conditions, rows) for layer, (_, h, _) in self.shapes.items()})
        self.measures.to(self.device)

    def test_step(self, batch: MatchBatch, batch_idx: int) -> None:
        """Match the keypoints of one target picture in every layer and condition."""
        for layer in self.shapes:
            similarities = self._similarities(layer, batch)
            add(self._of(layer), layer, batch, similarities, self._points, self.seed)
            if self.enlarged and not label_of(layer):  # variants are evaluated by one protocol
                add_pixels(self._of(layer), layer, batch, self._points)

    def collect(self) -> None:
        """Write the results of every condition, baselines and paired gains."""
        results, units = reported(self._reports, {layer: self._of(layer) for layer in self.shapes}, self.raw)
        self.results |= results
        self._units |= units
        self.log_dict(select(self.results, condition="test", metric=MAIN, where="all", statistic=""))

    def compare(self, networks: Sequence[dict[str, np.ndarray]]) -> dict[str, float]:
        """Gain of the tested matching over networks with random weights.

        Args:
            networks: predictions of the same probe on networks with random weights, each as :meth:`predictions` returns them.

        Returns:
            ``gain_over_random_weights/<layer>/…`` → difference to their mean, with interval.
        """
        layers = [layer for layer in self.shapes if not is_energy_control(layer)]
        own = {layer: self._reports.correct(self._of(layer), "test") for layer in layers}
        others = [{layer: torch.from_numpy(network[f"{layer}/hit"]) for layer in layers} for network in networks]
        return over_networks(self._reports, own, others)

    def pseudovalues(self) -> dict[str, np.ndarray]:
        """Return ``<condition>/<layer>/<metric>/<where>`` → contribution of every picture (pictures,), NaN without one."""
        return dict(self._units)

    def predictions(self) -> dict[str, np.ndarray]:
        """A table with a row per keypoint.

        Returns:
            Column → values (keypoints,): columns of :class:`~sdprobe.tokens.batch.Keypoints` and names; by condition
            ``<layer>/<condition>/cell`` (row-major index of the matched token) and others; ``<layer>/hit`` of ``test``.
        """
        points, reports = self._points, self._reports
        table: dict[str, np.ndarray] = dict(self.data.keypoint_names())
        for field in fields(points):
            values = getattr(points, field.name)
            values = values.cpu().numpy() if isinstance(values, Tensor) else np.full(len(points), values)
            ends = {1: ("",), 2: ("_x", "_y"), 4: ("_x0", "_y0", "_x1", "_y1")}[values.reshape(len(points), -1).shape[1]]
            table |= {f"{field.name}{end}": values.reshape(len(points), -1)[:, i] for i, end in enumerate(ends)}
        for layer in (layer for layer in self.shapes if not is_energy_control(layer)):
            matches = self._of(layer)
            table |= {f"{layer}/{name}": column for name, column in matches.columns().items()}
            table[f"{layer}/hit"] = reports.correct(matches, "test").cpu().numpy()
            if self.enlarged and not label_of(layer):
                pixel = matches.pixel.cpu().numpy()
                table |= {f"{layer}/{self.raw}/pixel_x": pixel[:, 0], f"{layer}/{self.raw}/pixel_y": pixel[:, 1]}
        return table

    def maps(self) -> dict[str, np.ndarray]:
        """Arrays by name.

        Returns:
            ``<layer>/offset_counts`` and ``<layer>/offset_errors`` (33, 33), see
            :meth:`~sdprobe.metrics.correspondence.Correspondence.offsets`. Of the drawn pairs: ``pictured`` (2k,), indices of
            their source and target images in turn, and ``<layer>/matches`` (m, 8), whose columns are the number of the pair,
            the source, true and matched point (x, y) as shares of the side, and 1 for right, 2 for wrong at the source
            position, 0 for wrong elsewhere.
        """
        points = self._points
        pairs = self._drawn_pairs()
        rows = torch.isin(points.pair, pairs)
        first = [int((points.pair == pair).nonzero()[0]) for pair in pairs]
        pictured = [int(index) for row in first for index in (points.source[row], points.target[row])]
        maps = {"pictured": np.array(pictured, dtype=int)} if pictured else {}
        number = torch.searchsorted(pairs, points.pair[rows])
        for layer in self.shapes:
            counts, wrong = self._reports.offsets(self._of(layer), "test")
            maps |= {f"{layer}/offset_counts": counts.cpu().numpy(), f"{layer}/offset_errors": wrong.cpu().numpy()}
            predicted, verdict = self._reports.verdicts(self._of(layer), "test")
            table = [
                number[:, None],
                points.source_input[rows],
                points.target_input[rows],
                predicted[rows],
                verdict[rows][:, None],
            ]
            scale = torch.tensor([1.0, *[points.size] * 6, 1.0], dtype=torch.float64, device=predicted.device)
            maps[f"{layer}/matches"] = (torch.cat([column.double() for column in table], 1) / scale).cpu().numpy()
        return maps

    def _drawn_pairs(self) -> Int[Tensor, " k"]:
        """Numbers of the ``pictured`` pairs to draw, ascending: the first of every category, then evenly spread ones."""
        points = self._points
        starts = {int(c): int(points.pair[points.category == c][0]) for c in points.category.unique()}
        spread = torch.linspace(0, len(points) - 1, 4 * self.pictured + 1).long()
        chosen = dict.fromkeys([*starts.values(), *points.pair[spread.to(points.pair.device)].tolist()])
        return torch.tensor(sorted(list(chosen)[: self.pictured]), dtype=torch.long, device=points.pair.device)

    @cached_property
    def _points(self) -> Keypoints:
        return self.data.keypoints().to(self.device)

    @cached_property
    def _reports(self) -> Correspondence:
        return Correspondence(self._points, self.seed)

    def _contrast(self, layer: str, batch: KeypointBatch, *key: object) -> tuple[Float[Tensor, " v"], Float[Tensor, " v"]]:
        """Contrastive loss of every variant, and how often the true target is the most similar one."""
        n = len(batch.label)
        order = torch.randperm(n, generator=keyed_generator("shuffle", self.seed, base_of(layer), *key)).to(batch.label.device)
        head, target = self._head(layer), batch.target[layer]
        query = normalize(head(batch.source[layer]), dim=-1).transpose(0, 1)
        right, shuffled = head(target).transpose(0, 1)
        others = head(batch.background[layer]).transpose(0, 1)
        keys = normalize(torch.cat([torch.stack([right, shuffled[order]]), others], 1), dim=-1)
        logits = query @ keys.mT / self.temperature
        # the same part in another pair, or the same token under another keypoint, is not a wrong answer
        target_tokens = torch.stack([batch.target_token[layer], batch.target_token[layer][order]])
        same = (batch.label[:, None] == batch.label[None, :]) | (target_tokens[:, :, None] == target_tokens[:, None, :])
        same &= ~torch.eye(n, dtype=torch.bool, device=logits.device)
        logits[:, :, :n] = logits[:, :, :n].masked_fill(same, -torch.inf)
        chosen = logits[:, :, :n].diagonal(dim1=1, dim2=2)
        loss = (logits.logsumexp(-1) - chosen).mean(1)
        accurate = (logits.argmax(-1) == torch.arange(n, device=logits.device)).double().mean(1)
        return loss, accurate

    def _similarities(self, layer: str, batch: MatchBatch) -> dict[str, Float[Tensor, "n p"]]:
        similarities = {self.raw: cosines(batch.source[layer], batch.target[layer])}
        if self.learns:
            _, height, width = self.shapes[layer]
            head = self._head(layer)
            source, target = head(batch.source[layer]), head(batch.target[layer].flatten(1).T)
            for v, condition in enumerate(TRAINED):
                similarities[condition] = cosines(source[:, v], target[:, v].T.unflatten(1, (height, width)))
        return similarities

    def _of(self, layer: str) -> Matches:
        return cast(Matches, self.measures[layer])

"""Training of position heads without a trainer: the steps, and their random numbers, are those of a run."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from sdprobe.estimators.closed_form import Moments
from sdprobe.estimators.grids import ImageGrids
from sdprobe.estimators.heads import LayerHead
from sdprobe.estimators.position import VARIANTS, PositionTask, solution
from sdprobe.tokens.batch import TokenBatch
from sdprobe.tokens.keys import base_of
from sdprobe.tokens.mixing import (
    CELLS,
    IMAGES,
    STEPS_PER_EPOCH,
    TOKENS,
    all_tokens,
    batches_per_pass,
    draw_tokens,
    training_pass,
)

# defaults of probe=position and of the trainer
LEARNING_RATE, MIN_STEPS, PATIENCE, MAX_EPOCHS = 3e-3, 600, 3, 100


class PositionTraining:
    """Heads of all layers, which share one optimiser but do not influence each other.

    Args:
        tasks: layer → what its heads learn.
        images: the grids.
        sampling: ``stratified`` (64 tokens per image and layer) or ``all``.
        seed: of initial weights, drawn tokens, order and mixing.
    """

    def __init__(self, tasks: Mapping[str, PositionTask], images: ImageGrids, sampling: str, seed: int) -> None:
        self.tasks, self.images, self.sampling, self.seed = tasks, images, sampling, seed
        self.heads = {
            layer: LayerHead(task.channels, task.outputs, len(VARIANTS), seed, base_of(layer)).to(images.device)
            for layer, task in tasks.items()
        }

    def fit(self, train: Sequence[int], val: Sequence[int], solver: str) -> dict[str, float]:
        """Train the heads, and leave each in its best state.

        Args:
            train: indices of the training images.
            val: indices of the validation images. Without them Adam takes all its epochs.
            solver: ``closed_form`` or ``adam``.

        Returns:
            ``val/<layer>/loss/all`` and ``val/<layer>/axis_accuracy/all`` of the probes; empty without validation images.
        """
        if solver == "closed_form":
            self._solve(train)
            self._validate(val)
        else:
            self._step(train, val)
        for head in self.heads.values():
            head.restore_best()
        best = {layer: head for layer, head in self.heads.items() if head.best_loss[0].isfinite()}
        losses = {f"val/{layer}/loss/all": head.best_loss[0].item() for layer, head in best.items()}
        return losses | {f"val/{layer}/axis_accuracy/all": head.best_score[0].item() for layer, head in best.items()}

    def _solve(self, train: Sequence[int]) -> None:
        moments: dict[str, Moments] = {layer: task.moments(self.images.device) for layer, task in self.tasks.items()}
        for batch, labels in self._labelled(train, 0, 1):
            for layer, tokens in batch.tokens.items():
                moments[layer].update(tokens, labels[layer])
        for layer, head in self.heads.items():
            weight, bias = solution(moments[layer], self.tasks[layer].regresses)
            head.weight.data.copy_(weight)
            head.bias.data.copy_(bias)

    @torch.enable_grad()
    def _step(self, train: Sequence[int], val: Sequence[int]) -> None:
        optimizer = torch.optim.Adam(nn.ModuleList(self.heads.values()).parameters(), lr=LEARNING_RATE)
        for epoch in range(MAX_EPOCHS):
            for batch, labels in self._labelled(train, epoch, self._passes(len(train))):
                active = [layer for layer in batch.tokens if not self._finished(layer)]
                for layer in active:
                    self.heads[layer].steps += 1
                if active:
                    losses = [self._losses(layer, batch, labels[layer]).sum() for layer in active]
                    optimizer.zero_grad()
                    torch.stack(losses).sum().backward()
                    optimizer.step()
            self._validate(val)
            if all(map(self._finished, self.heads)):
                break

    @torch.no_grad()
    def _validate(self, val: Sequence[int]) -> None:
        """Keep every head whose loss fell; the sums are over images, each with its drawn tokens."""
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(self._pieces(val)):
            for layer, tokens in batch.tokens.items():
                task = self.tasks[layer]
                labels = task.validation_labels(batch.positions[layer], number)
                right = (task.predict(self.heads[layer](tokens)) == labels).double().mean((0, 2))
                loss = self._losses(layer, batch, labels).double()
                sums[layer] = sums.get(layer, 0) + torch.stack([loss, right, torch.ones_like(right)])
        for layer, (loss, score, count) in sums.items():
            self.heads[layer].update_best(loss / count, score / count, PATIENCE, MIN_STEPS)

    def _losses(self, layer: str, batch: TokenBatch, labels: Tensor) -> Tensor:
        return self.tasks[layer].losses(self.heads[layer](batch.tokens[layer]), labels)

    def _finished(self, layer: str) -> bool:
        return self.heads[layer].finished(PATIENCE, MIN_STEPS)

    def _passes(self, images: int) -> int:
        """Passes over the training images in an epoch, which are at least 100 steps of drawn tokens."""
        if self.sampling == "all":
            return 1
        return -(-STEPS_PER_EPOCH // batches_per_pass(images, [CELLS * CELLS], IMAGES, TOKENS))

    def _labelled(self, train: Sequence[int], epoch: int, passes: int) -> Iterator[tuple[TokenBatch, dict[str, Tensor]]]:
        """The batches of an epoch, with the labels of every variant."""
        steps: Counter[str] = Counter()
        for number in range(passes):
            for batch in training_pass(train, self._pieces, IMAGES, TOKENS, self.seed, epoch, number):
                steps.update(batch.tokens.keys())
                places = batch.positions.items()
                yield batch, {layer: self.tasks[layer].training_labels(place, epoch, steps[layer]) for layer, place in places}

    def _pieces(self, indices: Sequence[int]) -> Iterator[TokenBatch]:
        """Drawn tokens per image, in order."""
        for start in range(0, len(indices), IMAGES):
            chunk = indices[start : start + IMAGES]
            batch, names = self.images.batch(chunk), [self.images.names[i] for i in chunk]
            yield from all_tokens(batch) if self.sampling == "all" else draw_tokens(batch, names, self.seed)

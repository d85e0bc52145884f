"""Test numbers of a probe, computed anew from the predictions of its saved head."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sdprobe.estimators.heads import Head


def true_positions(grid: Tensor) -> Tensor:
    rows, columns = torch.meshgrid(*map(torch.arange, grid.shape[2:]), indexing="ij")
    return torch.stack([rows, columns])


def position_numbers(head: Head, grid: Tensor, data: Any, layer: str) -> dict[str, float]:
    right = head(grid) == true_positions(grid)
    numbers = {"axis_accuracy": right.double().mean(), "cell_accuracy": right.all(1).double().mean()}
    if head.predicts == "coordinates":
        true = (true_positions(grid) + 0.5) / grid.shape[2] - 0.5
        numbers["r2"] = 1 - (head.outputs(grid) - true).square().sum() / (true.square().sum() * len(grid))
    return {name: float(value) for name, value in numbers.items()}


def depth_numbers(head: Head, grid: Tensor, data: Any, layer: str) -> dict[str, float]:
    true = data.targets[layer][list(data.parts["test"])].movedim(-1, 1)
    return {"rmse": float((head(grid).double() - true.double()).square().mean().sqrt())}


def content_numbers(head: Head, grid: Tensor, data: Any, layer: str) -> dict[str, float]:
    true, training = data.targets[layer][list(data.parts["test"])], data.training_targets(layer)
    mean = training.mean(0)
    spread = (training - mean).square().mean((0, 1, 2)).sqrt()
    off, whole = ((values - true) / spread for values in (head(grid).movedim(1, -1), mean))
    return {"content_r2": float(1 - off.double().square().sum() / whole.double().square().sum())}


def matching_numbers(head: Head, grid: Tensor, data: Any, layer: str) -> dict[str, float]:
    points, vectors = data.keypoints(), normalize(head(data.grids[layer]), dim=1)
    step = points.size / grid.shape[2]
    column, row = (points.source_input / step).floor().long().unbind(1)
    cosines = torch.einsum("nc,ncp->np", vectors[points.source, :, row, column], vectors[points.target].flatten(2))
    cell = cosines.argmax(1)
    predicted = torch.stack([cell % grid.shape[3], cell // grid.shape[3]], 1) * step + step / 2
    distance = (predicted - points.target_input).norm(dim=1)
    return {"pck_ours_point_0.10": float((distance <= 0.1 * points.size).double().mean())}


NUMBERS: dict[str, Callable[[Head, Tensor, Any, str], dict[str, float]]] = {
    "position": position_numbers, "coordinates": position_numbers, "depth": depth_numbers, "content": content_numbers,
    "projection": matching_numbers,
}  # fmt: skip

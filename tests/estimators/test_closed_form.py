"""Streamed moments give the heads that slow formulas give."""

import numpy as np
import pytest
import torch

from sdprobe.estimators.closed_form import SHRINKAGE, Moments, coordinates


@pytest.fixture(scope="module")
def sample() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.stack(
        [torch.randint(0, 5, (400, 2), generator=generator), torch.randint(0, 5, (400, 2), generator=generator)], 1
    )
    code = torch.randn(5, 7, generator=generator)
    tokens = code[labels[:, 0, 0]] + code.roll(1, 0)[labels[:, 0, 1]] + torch.randn(400, 7, generator=generator) + 3
    return tokens, labels


def streamed(tokens: torch.Tensor, labels: torch.Tensor, chunk: int) -> Moments:
    moments = Moments(7, (5, 5), 2, torch.device("cpu"))
    for part, target in zip(tokens.split(chunk), labels.split(chunk), strict=True):
        moments.update(part, target)
    return moments


def slow_discriminants(x: np.ndarray, y: np.ndarray, classes: int) -> np.ndarray:
    """Logits by the definition: class means, pooled covariance, one class at a time."""
    means = np.stack([x[y == k].mean(0) for k in range(classes)])
    pooled = sum(np.outer(v - means[k], v - means[k]) for v, k in zip(x, y, strict=True)) / len(x)
    pooled = pooled + SHRINKAGE * np.trace(pooled) / x.shape[1] * np.eye(x.shape[1])
    inverse = np.linalg.inv(pooled)
    return np.stack([x @ inverse @ m - 0.5 * m @ inverse @ m for m in means], 1)


@pytest.mark.parametrize("chunk", [1, 64, 400])
@pytest.mark.parametrize("variant", [0, 1])
def test_discriminants_are_those_of_the_definition(sample, chunk, variant) -> None:
    tokens, labels = sample
    weight, bias = streamed(tokens, labels, chunk).discriminants(variant)
    logits = tokens.double() @ weight.T + bias
    for axis in range(2):
        slow = slow_discriminants(tokens.double().numpy(), labels[:, variant, axis].numpy(), 5)
        fast = logits[:, 5 * axis : 5 * axis + 5].numpy()
        # a constant per token is the same for every class: discriminants are defined up to it
        np.testing.assert_allclose(fast - fast.mean(1, keepdims=True), slow - slow.mean(1, keepdims=True), atol=1e-8)


def test_ridge_is_that_of_the_normal_equations(sample) -> None:
    tokens, labels = sample
    weight, bias = streamed(tokens, labels, 50).ridge(0)
    x, y = tokens.double().numpy(), np.stack([coordinates(labels[:, 0, axis].double(), 5).numpy() for axis in range(2)], 1)
    centred = x - x.mean(0)
    covariance = centred.T @ centred / len(x)
    penalty = SHRINKAGE * np.trace(covariance) / 7 * np.eye(7)
    slow = np.linalg.solve(covariance + penalty, centred.T @ (y - y.mean(0)) / len(x))
    np.testing.assert_allclose(weight.numpy(), slow.T, atol=1e-10)
    np.testing.assert_allclose(bias.numpy(), y.mean(0) - x.mean(0) @ slow, atol=1e-10)


def test_a_class_never_seen_is_never_predicted() -> None:
    tokens = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 4, (50, 2, 2), generator=torch.Generator().manual_seed(1))  # class 4 is missing
    weight, bias = streamed(tokens, labels, 50).discriminants(0)
    logits = 100 * torch.randn(30, 7, dtype=torch.float64) @ weight.T + bias
    assert set(logits[:, :5].argmax(1).tolist()) <= {0, 1, 2, 3}


def test_coordinates_are_centred() -> None:
    values = coordinates(torch.arange(8), 8)
    assert values.sum() == 0
    assert values.min() == -0.4375

"""LayerHead: one linear head per layer and variant, with the state that decides when its training ends.

Heads of all layers and variants share one optimiser. Adam works elementwise and no head depends on another, so each head ends
in the same state as if it were trained alone.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sdprobe.tokens.keys import base_of
from sdprobe.utilities.rng import keyed_generator


class LayerHead(nn.Module):
    """V linear maps C → K of the same tokens (the probe and its controls), and the best state of each so far.

    Args:
        channels: C.
        outputs: K.
        variants: V.
        key: seeds the initialisation, which is torch's default for ``nn.Linear``: uniform within ±1/√C.
    """

    def __init__(self, channels: int, outputs: int, variants: int, *key: object) -> None:
        super().__init__()
        generator = keyed_generator("head", *key)
        bound = 1 / math.sqrt(channels)
        self.weight = nn.Parameter((torch.rand(variants, outputs, channels, generator=generator) * 2 - 1) * bound)
        self.bias = nn.Parameter((torch.rand(variants, outputs, generator=generator) * 2 - 1) * bound)
        self.best_weight: Tensor
        self.best_bias: Tensor
        self.best_loss: Tensor
        self.best_score: Tensor
        self.stale: Tensor  # validations since the last improvement; checkpoints hold it under this name
        self.steps: Tensor
        self.register_buffer("best_weight", torch.zeros_like(self.weight))
        self.register_buffer("best_bias", torch.zeros_like(self.bias))
        self.register_buffer("best_loss", torch.full((variants,), torch.inf, dtype=torch.float64))
        self.register_buffer("best_score", torch.zeros(variants, dtype=torch.float64))
        self.register_buffer("stale", torch.zeros(variants, dtype=torch.long))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, tokens: Float[Tensor, "n c"]) -> Float[Tensor, "n v k"]:
        """Outputs of every variant, float32."""
        flat = nn.functional.linear(tokens.float(), self.weight.flatten(0, 1), self.bias.flatten())
        return flat.unflatten(1, self.bias.shape)

    @torch.no_grad()
    def update_best(self, loss: Float[Tensor, " v"], score: Float[Tensor, " v"], patience: int, min_steps: int) -> None:
        """Store the state of every variant whose validation loss fell by at least 0.1 %.

        A variant is finished after ``min_steps`` steps and ``patience`` validations in a row without such a fall. Its best
        state is then final.
        """
        better = (loss < self.best_loss * (1 - 1e-3)) & ~self._finished(patience, min_steps)
        self.best_weight[better] = self.weight[better]
        self.best_bias[better] = self.bias[better]
        self.best_loss[better] = loss[better].to(self.best_loss.dtype)
        self.best_score[better] = score[better].to(self.best_score.dtype)
        self.stale += 1
        self.stale[better] = 0

    def finished(self, patience: int, min_steps: int) -> bool:
        """Whether no variant can improve any more."""
        return bool(self._finished(patience, min_steps).all())

    def at_plateau(self, patience: int, min_steps: int) -> int:
        """Return how many variants have finished."""
        return int(self._finished(patience, min_steps).sum())

    @torch.no_grad()
    def restore_best(self) -> None:
        """Load the best states. Variants that were never validated do not change."""
        updated = self.best_loss.isfinite()
        self.weight[updated] = self.best_weight[updated]
        self.bias[updated] = self.best_bias[updated]

    def _finished(self, patience: int, min_steps: int) -> Tensor:
        return (self.stale >= patience) & (self.steps >= min_steps)


def heads(outputs: dict[str, tuple[int, int]], variants: Sequence[str], seed: int) -> nn.ModuleDict:
    """A head per layer. ``outputs`` maps layer → (C, K). Initialisation is keyed by (seed, layer)."""
    return nn.ModuleDict(
        {layer: LayerHead(channels, count, len(variants), seed, base_of(layer)) for layer, (channels, count) in outputs.items()}
    )

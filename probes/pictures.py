"""Pictures: the activations of a few images in every layer, for figures."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sdprobe.tokens.batch import GridBatch
from sdprobe.tokens.groups import token_similarity
from sdprobe.tokens.keys import label_of
from sdprobe.utilities.errors import InputError

SIDE = 32  # tokens per side of the grid that probe.token refers to


class Pictures:
    """Principal components and high-norm tokens of a few images in every layer, and similarities of one token.

    Args:
        token: (row, col) on a grid of 32 × 32 tokens, each from 0 to 31: the token of the first image whose similarity to all
            other tokens is drawn.

    Raises:
        InputError: a token outside the grid.
    """

    def __init__(self, token: Sequence[int]) -> None:
        if len(token) != 2 or not all(0 <= index < SIDE for index in token):
            raise InputError(
                f"Expected probe.token to be [row,col], each from 0 to {SIDE - 1}, but got {list(token)}. "
                "Use probe.token=[12,17]."
            )
        self.token = token[0], token[1]
        self.tables: dict[str, np.ndarray] = {}

    def take(self, batch: GridBatch, count: int) -> None:
        """Draw the first ``count`` images of the batch."""
        self.tables["pictured"] = batch.image[:count].cpu().numpy()
        self.tables["token"] = np.array([*self.token, SIDE])
        for layer, grid in ((layer, grid) for layer, grid in batch.grids.items() if not label_of(layer)):
            self.tables[f"{layer}/similarity"] = token_similarity(grid[0], self.token, SIDE).cpu().numpy()
            self.tables[f"{layer}/components"] = components(grid[:count]).cpu().numpy()
            self.tables[f"{layer}/high_norm"] = batch.masks[layer]["high_norm"][:count].cpu().numpy()

    def maps(self) -> dict[str, np.ndarray]:
        """Arrays by name.

        Returns:
            ``pictured`` (n,), image indices; ``<layer>/components`` (n, h, w, 3), colours; ``<layer>/high_norm`` (n, h, w);
            ``token``, (row, col, side of its grid); ``<layer>/similarity`` (h, w), of that token in the first image.
        """
        return dict(self.tables)


def components(grid: Float[Tensor, "n c h w"]) -> UInt8[Tensor, "n h w 3"]:
    """First three principal components of all tokens of these images as red, green and blue.

    The range from the 2 % to the 98 % quantile is the full scale of a colour. The sign of a component makes its largest loading
    positive, so that colours are the same in every run.
    """
    tokens = grid.float().permute(0, 2, 3, 1).flatten(0, 2)
    tokens = tokens - tokens.mean(0)
    count = min(3, tokens.shape[1])
    _, basis = torch.linalg.eigh((tokens.mT @ tokens).double())
    basis = basis[:, -count:].flip(1)
    basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    scores = tokens.double() @ basis
    low, high = (scores.quantile(q, dim=0) for q in (0.02, 0.98))
    colours = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1) * 255
    padded = torch.zeros(len(scores), 3, device=scores.device)
    padded[:, :count] = colours.float()
    n, _, h, w = grid.shape
    return padded.to(torch.uint8).view(n, h, w, 3)

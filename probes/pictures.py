"""Pictures: the activations of a few images in every layer, for figures."""

from collections.abc import Sequence

import numpy as np

from sdprobe.tokens.batch import GridBatch
from sdprobe.tokens.groups import token_similarity
from sdprobe.tokens.kept import principal_colours
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
            self.tables[f"{layer}/components"] = principal_colours(grid[:count]).cpu().numpy()
            self.tables[f"{layer}/high_norm"] = batch.masks[layer]["high_norm"][:count].cpu().numpy()

    def maps(self) -> dict[str, np.ndarray]:
        """Arrays by name.

        Returns:
            ``pictured`` (n,), image indices; ``<layer>/components`` (n, h, w, 3), colours; ``<layer>/high_norm`` (n, h, w);
            ``token``, (row, col, side of its grid); ``<layer>/similarity`` (h, w), of that token in the first image.
        """
        return dict(self.tables)

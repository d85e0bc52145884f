"""ExploreProbe: keeps the tokens of a few images for the explorer. Data path step 9. It measures how exactly they are kept."""

from typing import Protocol

import numpy as np

from probes.base import Data, Probe, Shapes
from sdprobe.tokens.batch import GridBatch
from sdprobe.tokens.keys import qualified


class ExploreData(Data, Protocol):
    """A data module with few images, of which some may share keypoints."""

    def correspondences(self) -> dict[str, np.ndarray]:
        """Return the keypoints that two of the images share."""


class ExploreProbe(Probe):
    """Keeps quantised tokens of a few images in every layer, see :mod:`sdprobe.tokens.kept`.

    ``results`` are ``test/<layer>/similarity_error/all``: the largest error of a cosine between two of the tokens.

    Args:
        shapes: layer → (C, h, w).
        photos: number of photographs; not used.
        data: a data module of kind ``explore``, such as :class:`~datamodules.explore.ExploreDataModule`.

    Raises:
        InputError: a data module of another kind.

    Example:
        >>> from types import SimpleNamespace
        >>> ExploreProbe({"mid": (64, 8, 8)}, photos=2, data=SimpleNamespace(kind="explore")).kind
        'explore'
    """

    kind, reads = "explore", "explore"
    data: ExploreData

    def __init__(self, shapes: Shapes, photos: int, data: Data) -> None:
        super().__init__(shapes, data)
        self.automatic_optimization, self.fitting = False, ""

    def training_step(self, batch: GridBatch) -> None:
        """Do nothing: there are no training images."""

    def test_step(self, batch: GridBatch, batch_idx: int) -> None:
        """Keep the tokens of a batch."""
        self.keep(batch)

    def collect(self) -> None:
        """Write the largest errors."""
        errors = {name: tokens for name, tokens in self.tokens.items() if name.endswith("/error")}
        for name, error in errors.items():
            layer = name.split("/")[1]
            self.results |= qualified("test", layer, {"similarity_error/all": float(error[0])})

    def correspondences(self) -> dict[str, np.ndarray]:
        """Return the keypoints that two of the images share, see :meth:`ExploreData.correspondences`."""
        return self.data.correspondences()

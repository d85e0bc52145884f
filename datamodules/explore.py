"""ExploreDataModule: whole grids of a few test images, and the keypoints that they share. Data path steps 1 to 6."""

from collections.abc import Iterator, Sequence
from typing import Any, Unpack

import numpy as np
import torch

from datamodules.base import StreamDataModule, StreamOptions
from datamodules.images.pairs import Pair, PairSource
from datamodules.images.source import ImageSource
from datamodules.loaders import GridLoader
from sdprobe.backbones import FrozenSD
from sdprobe.tokens.splits import MINIMUM, split_by_photo
from sdprobe.utilities import settings
from sdprobe.utilities.errors import InputError

REACH = 0.10  # a match is correct within this share of the longer side of the target's box, as in PCK@0.10


class ExploreDataModule(StreamDataModule):
    """Streams the whole grids of a few images: the first ones of the test split, or pictures of test pairs.

    The batches are :class:`~sdprobe.tokens.batch.GridBatch`. Mitigations are fitted on the fit split, or on pictures of
    training pairs. Fewer than 10 photographs have no splits, and the first of them are shown.

    Args:
        images: an image source with pictures.
        backbone: a frozen checkpoint.
        block: layers to read, see :class:`~datamodules.base.StreamDataModule`.
        shown: greatest number of images, 1 to 16. They show different photographs.
        **options: settings of every data module, see :class:`~datamodules.base.StreamOptions`. ``compare`` takes effect only
            with a mitigation.

    Raises:
        InputError: too few photographs to fit a mitigation on, an option out of range.

    Example:
        >>> from datamodules.images.scenes import ScenePairs
        >>> from sdprobe import FrozenSD
        >>> images = ScenePairs(size=64, limit=48, pairs_per_category=2)
        >>> data = ExploreDataModule(images, FrozenSD.from_pretrained("tiny"), block="mid")
        >>> len(data.split["test"]), sorted(data.correspondences())
        (4, ['pair', 'part', 'points', 'reach'])
    """

    kind = "explore"

    def __init__(
        self,
        images: ImageSource,
        backbone: FrozenSD,
        block: str | Sequence[str] = "stages",
        shown: int = 4,
        **options: Unpack[StreamOptions],
    ) -> None:
        settings.check("datamodule", shown=shown)
        options["compare"] = bool(options.get("compare") and options.get("mitigation"))
        super().__init__(images, backbone, block, **options)
        self.split = {"fit": [], "test": []}
        self.split = self._pair_split(images, shown) if isinstance(images, PairSource) else self._split(images, shown)
        if self.mitigations.needs_fit and not self.split["fit"]:
            photographs = len({images.photo(index) for index in range(len(images))})
            raise InputError(
                f"Expected at least {MINIMUM} photographs where a mitigation is fitted, but got {photographs}. Add images, or "
                "use mitigation=saved mitigation.saved.folder=RUN."
            )

    def train_dataloader(self) -> list[Any]:
        """Return nothing, since nothing is trained."""
        return []

    def test_dataloader(self) -> GridLoader:
        """Return the whole grids of the images."""
        return GridLoader(self.stream, self.split["test"])

    def correspondences(self) -> dict[str, np.ndarray]:
        """Return the keypoints that two of the images share, a row each; nothing if the image source has none.

        ``pair`` (m, 2): number of the source and of the target among the images. ``points`` (m, 4): x and y in the source, then
        in the target, as shares of the side. ``reach`` (m, 2): semi-axes of the ellipse in which a match is correct, as shares
        of the side. ``part`` (m,): name.
        """
        if not isinstance(self.images, PairSource):
            return {}
        rows = [row for pair in self._pairs_among(self.split["test"]) for row in self._rows(self.images, pair)]
        if not rows:
            return {}
        columns = dict(zip(("pair", "points", "reach", "part"), zip(*rows, strict=True), strict=True))
        return {name: np.array(column) for name, column in columns.items()}

    def _split(self, images: ImageSource, shown: int) -> dict[str, list[int]]:
        """The first images of different photographs, from the test split if there are enough photographs for splits."""
        photographs = [images.photo(index) for index in range(len(images))]
        parts: dict[str, Sequence[int]] = {"fit": [], "test": range(len(images))}
        if len(set(photographs)) >= MINIMUM:
            parts = dict(split_by_photo(photographs, "default", self.seed))
        first = {photographs[index]: index for index in reversed(parts["test"])}
        return {"fit": list(parts["fit"]), "test": sorted(first.values())[:shown]}

    def _pair_split(self, images: PairSource, shown: int) -> dict[str, list[int]]:
        """Pictures of test pairs that have none in common, and pictures of training pairs that show other photographs."""
        chosen: dict[int, None] = {}
        for pair in images.pairs("test"):
            both = {pair.source, pair.target}
            if not both & chosen.keys() and len(chosen) + len(both) <= max(2, shown):
                chosen |= dict.fromkeys((pair.source, pair.target))
        tested = {images.photo(index) for pair in images.pairs("test") for index in (pair.source, pair.target)}
        candidates = dict.fromkeys(i for pair in images.pairs("train") for i in (pair.source, pair.target))
        return {"fit": [i for i in candidates if images.photo(i) not in tested], "test": list(chosen)}

    def _pairs_among(self, indices: Sequence[int]) -> list[Pair]:
        assert isinstance(self.images, PairSource)
        return [pair for pair in self.images.pairs("test") if {pair.source, pair.target} <= set(indices)]

    def _rows(self, images: PairSource, pair: Pair) -> Iterator[tuple[Any, ...]]:
        size = images.size
        source, target = images.placement(pair.source), images.placement(pair.target)
        x0, y0, x1, y1 = pair.target_box
        longest = REACH * max(x1 - x0, y1 - y0)
        for part, a, b in zip(pair.ids, pair.source_points, pair.target_points, strict=True):
            points = [
                placement.to_input(torch.tensor([point], dtype=torch.float64))[0] / size
                for placement, point in ((source, a), (target, b))
            ]
            places = [self.split["test"].index(index) for index in (pair.source, pair.target)]
            reach = [longest * scale / size for scale in target.scale]
            yield places, torch.cat(points).tolist(), reach, str(part)

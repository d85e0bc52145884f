"""PairDataModule: image pairs → keypoint tokens to train on and target grids to search. Data path steps 1 to 7.

Every image passes the network once, in however many pairs it is. The tokens of its keypoints are kept, and its grid until it
is searched.
"""

import hashlib
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Unpack

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from datamodules.base import StreamDataModule, StreamOptions
from datamodules.images.pairs import PAIR_SPLITS, Pair, PairSource
from datamodules.images.source import ImageSource
from datamodules.keypoints import (
    KeypointTokens,
    concatenated,
    concatenated_shapes,
    keypoint_table,
    slots_of,
)
from datamodules.loaders import Loader
from datamodules.stream import DeviceCache
from sdprobe.backbones import FrozenSD
from sdprobe.tokens.batch import GridBatch, KeypointBatch, Keypoints, MatchBatch
from sdprobe.tokens.keypoints import SourceTokens
from sdprobe.tokens.views import View
from sdprobe.utilities import progress, settings
from sdprobe.utilities.distributed import Processes
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.rng import keyed_generator

log = logging.getLogger(__name__)

STEPS_PER_EPOCH = 100  # least number of steps, since validation and checkpoints come once per epoch


class PairDataModule(StreamDataModule):
    """Streams keypoint tokens of image pairs to train on, and target grids with the keypoints to find in them to test on.

    Training batches are :class:`~sdprobe.tokens.batch.KeypointBatch`, test batches :class:`~sdprobe.tokens.batch.MatchBatch`
    of one target picture each. Mitigations are fitted on the pictures of training pairs.

    Args:
        images: a pair source, see :class:`~datamodules.images.pairs.PairSource`.
        backbone: a frozen checkpoint.
        block: layers to read, see :class:`~datamodules.base.StreamDataModule`. ``up_1`` is the layer
            that DIFT (arXiv 2306.03881) uses.
        head: the probe's: ``linear``, or ``none`` to stream test pairs only.
        concatenate: concatenate the layers' tokens, each of norm 1, on the finest of their grids.
        pair_batch: pairs per training step, at least 1.
        background: tokens per target picture that a training step contrasts with its keypoints, 1 to 64.
        activation_budget: GiB of target grids that stay on the device until they are searched, at least 0; the others are
            computed twice. It changes the speed, never the numbers.
        **options: settings of every data module, see :class:`~datamodules.base.StreamOptions`. In ``prompt``,
            ``{category}`` stands for the category of the pair.

    Raises:
        InputError: images without pairs, too few usable pairs, ``concatenate`` with ``compare``, ``{category}`` in the prompt
            with a fitted mitigation, an option out of range.

    Example:
        >>> from datamodules.images.scenes import ScenePairs
        >>> from sdprobe import FrozenSD
        >>> images = ScenePairs(size=64, limit=48, pairs_per_category=2)
        >>> data = PairDataModule(images, FrozenSD.from_pretrained("tiny"))
        >>> [len(data.pairs(split)) for split in ("train", "val", "test")]
        [16, 16, 16]
        >>> data.shapes
        {'up_1': (64, 4, 4)}
    """

    kind = "pairs"

    def __init__(
        self,
        images: ImageSource,
        backbone: FrozenSD,
        block: str | Sequence[str] = "up_1",
        head: str = "linear",
        concatenate: bool = False,
        pair_batch: int = 32,
        background: int = 16,
        activation_budget: float = 2.0,
        **options: Unpack[StreamOptions],
    ) -> None:
        if not isinstance(images, PairSource):
            raise InputError(
                "Expected images with pairs of corresponding keypoints, but these have none. Use images=scene_pairs, spair, "
                "pf_pascal or pf_willow."
            )
        settings.check("datamodule", pair_batch=pair_batch, background=background)
        settings.check("", activation_budget=activation_budget)
        super().__init__(images, backbone, block, **options)
        self.pair_source = images
        if concatenate and options.get("compare"):
            raise InputError("Expected datamodule.concatenate or datamodule.compare, but got both. Choose one.")
        if "{category}" in self.base_stream.reads.prompt and self.mitigations.needs_fit:
            raise InputError(
                "Expected one prompt where a mitigation is fitted, but got one for every category. "
                "Leave {category} out of prompt=."
            )
        self.concatenate, self.learns = concatenate, head != "none"
        if concatenate:
            self.shapes = concatenated_shapes(self.shapes)
        self.pair_batch, self.background = pair_batch, background
        self.activation_budget = activation_budget
        self._usable: set[int] | None = None
        self._chooses = False
        self._tables: dict[str, Keypoints] = {}
        self._tokens: dict[_Key, dict[str, Tensor]] = {}

    @property
    def photos(self) -> int:
        """Number of pictures."""
        return len(self.images)

    @property
    def used(self) -> list[int]:
        """Indices of the pictures of test pairs."""
        return sorted({i for pair in self.pairs("test") for i in (pair.source, pair.target)})

    @property
    def fit_images(self) -> list[int]:
        """Indices of the pictures of training pairs that can be decoded and are in no test pair."""
        return [index for index in self._fit_candidates if self._usable is None or index in self._usable]

    def pairs(self, split: str) -> list[Pair]:
        """Return the pairs of ``train``, ``val`` or ``test`` whose pictures can be decoded."""
        usable = self._usable
        pairs = self.pair_source.pairs(split)
        return [p for p in pairs if usable is None or (p.source in usable and p.target in usable)]

    def keypoints(self) -> Keypoints:
        """Return every keypoint to find in the tested split, a row each."""
        if self.tested not in self._tables:
            self._tables[self.tested] = keypoint_table(self.tested_pairs(), self.pair_source, self._slots)
        return self._tables[self.tested]

    def tested_pairs(self) -> list[Pair]:
        """Return the pairs of the tested split. Those of ``val`` share no photograph with training or test pairs."""
        pairs = self.pairs(self.tested)
        if self.tested == "test":
            return pairs
        others = self._photographs([*self.pair_source.pairs("train"), *self.pair_source.pairs("test")])
        return [pair for pair in pairs if not others & self._photographs([pair])]

    def validate_choice(self) -> int:
        """Keep the validation pairs for a choice among layers.

        Returns:
            the number of their photographs that are in no other pair.
        """
        self._chooses = True
        with self.testing("val"):
            return len(self._photographs(self.tested_pairs()))

    def keypoint_names(self) -> dict[str, np.ndarray]:
        """Return column → names for every row of :meth:`keypoints`: of its category, its two pictures and its keypoint."""
        rows = [
            (pair.category, self.images.name(pair.source), self.images.name(pair.target), name)
            for pair in self.tested_pairs()
            for name in pair.ids
        ]
        columns = ("category_name", "source_name", "target_name", "keypoint")
        return {column: np.array(values) for column, values in zip(columns, zip(*rows, strict=True), strict=True)}

    @cached_property
    def categories(self) -> list[str]:
        """Names of the categories, in the order of their numbers."""
        return sorted({pair.category for pair in self.pairs("test")})

    @property
    def dropped(self) -> dict[str, int]:
        """Reason → number of pairs that are left out, including pairs of damaged pictures."""
        return dict(Counter(getattr(self.images, "dropped", {})) + Counter({"unreadable image": self._undecodable()}))

    def _undecodable(self) -> int:
        """Number of pairs of the splits in use that are left out because a picture cannot be decoded."""
        return sum(len(self.pair_source.pairs(split)) - len(self.pairs(split)) for split in self._splits)

    @property
    def _splits(self) -> tuple[str, ...]:
        return PAIR_SPLITS if self.learns else ("test",)

    @property
    def _read_splits(self) -> tuple[str, ...]:
        """The splits in use, and that which a choice is made on."""
        return ("val", "test") if self._chooses and not self.learns else self._splits

    def _items(self, splits: Sequence[str]) -> set[int]:
        """The pictures of all pairs of these splits."""
        return {index for split in splits for pair in self.pair_source.pairs(split) for index in (pair.source, pair.target)}

    def _photographs(self, pairs: Sequence[Pair]) -> set[str]:
        return {self.images.photo(index) for pair in pairs for index in (pair.source, pair.target)}

    def counts(self) -> str:
        """Return in words how many pairs each split has."""
        pairs = {split: self.pairs(split) for split in self._read_splits}
        used = {index for part in pairs.values() for pair in part for index in (pair.source, pair.target)}
        return f"{len(used)} images in pairs: {', '.join(f'{split} {len(part)}' for split, part in pairs.items())}"

    def steps(self, trains: bool) -> list[str]:
        """Return the names of the steps: those of every data module, and the extraction of the keypoints' tokens."""
        return [*super().steps(trains), *(["extract keypoints"] if self.learns else [])]

    def setup(self, stage: str) -> None:
        """Fit the mitigations; before training, extract the tokens of all keypoints of its pairs, one pass per image.

        Raises:
            InputError: there are no usable training pairs.
        """
        super().setup(stage)
        if stage != "fit" or not self.learns or self._tokens:
            return
        if not self.pairs("train"):
            raise InputError("Expected usable pairs to train on, but the images have none. Use probe.head=none.")
        started = time.perf_counter()
        jobs: dict[str, set[int]] = defaultdict(set)
        for pair in [*self.pairs("train"), *self.pairs("val")]:
            jobs[self._prompt(pair.category)] |= {pair.source, pair.target}
        with progress.step("extract keypoints", "image") as step:
            step.begin(total=sum(map(len, jobs.values())))
            for prompt in sorted(jobs):
                for batch in self._stream(prompt, sorted(jobs[prompt])):
                    for k, index in enumerate(batch.image.tolist()):
                        self._tokens[prompt, index] = self._points.for_training(batch, k, index)
                        step.advance()
        self.seconds["extract"] = time.perf_counter() - started

    def train_dataloader(self) -> "Loader[KeypointBatch] | list[Any]":
        """Return keypoint tokens of ``pair_batch`` pairs per step, at least 100 steps per epoch; empty with ``head="none"``."""
        if not self.learns:
            return []
        steps = -(-len(self.pairs("train")) // self.pair_batch)
        passes = -(-STEPS_PER_EPOCH // steps)
        return Loader(lambda: self._train_epoch(passes), passes * steps)

    def val_dataloader(self) -> "Loader[KeypointBatch] | list[Any]":
        """Return keypoint tokens of the validation pairs, in their order; empty with ``head="none"``."""
        pairs = self.pairs("val") if self.learns else []
        return Loader(lambda: self._steps(pairs), -(-len(pairs) // self.pair_batch)) if pairs else []

    def test_dataloader(self) -> "Loader[MatchBatch]":
        """Return batches of one target picture with all keypoints to find in it, category by category; of the tested split."""
        return Loader(self._matches, len({(pair.category, pair.target) for pair in self.tested_pairs()}))

    def release(self) -> None:
        """Free the memory of the device: the network and the keypoint tokens."""
        super().release()
        self._tokens.clear()

    def describe(self) -> dict[str, Any]:
        """Return the description of :class:`~datamodules.base.StreamDataModule`, with pairs, categories and dropped pairs."""
        pairs = {split: self.pairs(split) for split in self._splits}
        # pictures that only a choice reads change no number
        others = self._items(self._read_splits) - self._items(self._splits) - set(self.fit_images)
        used = sorted((self._usable or set()) - others)
        described = super().describe()
        del described["photographs"]
        encoded = self.store.encoded
        return described | {
            "dataset_fingerprint": _digest(self.store.fingerprint(used), pairs),
            "test_fingerprint": _digest(self.store.fingerprint(self.used), {"test": pairs["test"]}),
            "images": {split: len({i for p in part for i in (p.source, p.target)}) for split, part in pairs.items()},
            "pairs": {split: len(part) for split, part in pairs.items()},
            "categories": self.categories,
            "dropped_pairs": self.dropped,
            "target_box": self.pair_source.box,
            "image_reach": self.pair_source.image_reach,
            "latents": {"reused": len(Processes.current().shard(used)) - encoded, "encoded": encoded},
            "concatenated": list(self.base_stream.reads.layers) if self.concatenate else None,
        }

    def _encode(self) -> None:
        source = self.pair_source
        if not source.pairs("test"):
            raise InputError("Expected pairs to test on, but the images have none. Check images.root and its test split.")
        if self.learns and not source.pairs("train"):
            raise InputError("Expected pairs to train on, but the images have none. Use probe.head=none.")
        wanted = dict.fromkeys(i for split in self._read_splits for p in source.pairs(split) for i in (p.source, p.target))
        self._usable = set(self.store.prepare(list(dict.fromkeys([*wanted, *self.fit_images]))))
        used = [index for index in wanted if index in self._usable]
        self.mitigations.prepare(self.base_stream, used, self.fit_images)
        if lost := self._undecodable():
            log.warning("Left out %d pairs of pictures that cannot be decoded.", lost)
        keypoints = sum(len(pair.ids) for pair in self.pairs("test"))
        if keypoints < 2:
            raise InputError(
                f"Expected at least 2 keypoints in usable test pairs, but got {keypoints} (pairs left out: "
                f"{self.dropped or 0}). Check the image source."
            )

    def _train_epoch(self, passes: int) -> Iterator[KeypointBatch]:
        assert self.trainer is not None
        pairs = self.pairs("train")
        for number in range(passes):
            generator = keyed_generator("pairs", self.seed, self.trainer.current_epoch, number)
            yield from self._steps([pairs[i] for i in torch.randperm(len(pairs), generator=generator)])

    def _steps(self, pairs: Sequence[Pair]) -> Iterator[KeypointBatch]:
        for start in range(0, len(pairs), self.pair_batch):
            yield self._keypoint_batch(pairs[start : start + self.pair_batch])

    def _keypoint_batch(self, pairs: Sequence[Pair]) -> KeypointBatch:
        """Tokens of these pairs' keypoints, and background tokens of each of their target pictures."""
        targets = dict.fromkeys((self._prompt(pair.category), pair.target) for pair in pairs)
        source, target, background, target_token = {}, {}, {}, {}
        for layer in self.shapes:
            source[layer] = torch.cat([self._of(pair, pair.source, pair.source_points, layer) for pair in pairs])
            target[layer] = torch.cat([self._of(pair, pair.target, pair.target_points, layer) for pair in pairs])
            background[layer] = torch.cat([self._tokens[key][layer][-self.background :] for key in targets])
            target_token[layer] = self._target_tokens(pairs, layer).to(self.backbone.device)
        names = [(pair.category, name) for pair in pairs for name in pair.ids]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        label = torch.tensor([numbers[name] for name in names], device=self.backbone.device)
        return KeypointBatch(source, target, background, target_token, label)

    def _of(self, pair: Pair, index: int, points: Sequence[tuple[float, float]], layer: str) -> Float[Tensor, "k c"]:
        slots = self._slots[index]
        return self._tokens[self._prompt(pair.category), index][layer][[slots[point] for point in points]]

    def _target_tokens(self, pairs: Sequence[Pair], layer: str) -> Int[Tensor, " n"]:
        """A number per target keypoint that names its picture and the token it lies on."""
        _, height, width = self.shapes[layer]
        tokens = []
        for pair in pairs:
            slots = self._slots[pair.target]
            under = self._points.under(pair.target, height, width)
            tokens.append(pair.target * height * width + under[[slots[point] for point in pair.target_points]])
        return torch.cat(tokens)

    @cached_property
    def _slots(self) -> dict[int, dict[tuple[float, float], int]]:
        """Item → point → its number among the item's distinct points."""
        return slots_of(pair for split in self._read_splits for pair in self.pair_source.pairs(split))

    @cached_property
    def _points(self) -> KeypointTokens:
        return KeypointTokens(self.pair_source, self._slots, self.seed, self.background)

    @cached_property
    def _fit_candidates(self) -> list[int]:
        if not self.mitigations.needs_fit:
            return []
        photo, source = self.images.photo, self.pair_source
        tested = {photo(i) for pair in source.pairs("test") for i in (pair.source, pair.target)}
        candidates = dict.fromkeys(i for pair in source.pairs("train") for i in (pair.source, pair.target))
        return [index for index in candidates if photo(index) not in tested]

    def _prompt(self, category: str) -> str:
        """The prompt of a category; tokens of a picture in two categories may therefore differ."""
        return self.base_stream.reads.prompt.replace("{category}", category)

    def _stream(self, prompt: str, indices: Sequence[int]) -> Iterator[GridBatch]:
        stream = self.mitigations.wrap(self.base_stream.viewed(View(), prompt=prompt))
        return map(concatenated, stream(indices)) if self.concatenate else stream(indices)

    def _matches(self) -> Iterator[MatchBatch]:
        """Per category: extract the keypoint tokens of all pictures, then yield every target with the keypoints to find."""
        table = self.keypoints()
        for number, category in enumerate(sorted({pair.category for pair in self.tested_pairs()})):
            rows = (table.category == number).nonzero()[:, 0]
            targets = table.target[rows].unique().tolist()
            pictures = sorted({*targets, *table.source[rows].tolist()})
            cache: DeviceCache[GridBatch] = DeviceCache(self.activation_budget)
            pieces, starts, total = [], torch.zeros(len(self.images), dtype=torch.long), 0
            for batch in self._stream(self._prompt(category), pictures):
                for k, index in enumerate(batch.image.tolist()):
                    pieces.append(self._points.for_matching(batch, k, index))
                    starts[index], total = total, total + len(self._slots[index])
                    if index in targets and not cache.full:
                        cache.add(index, batch.select([k]))
            sources = {layer: SourceTokens.joined([piece[layer] for piece in pieces]) for layer in self.shapes}
            for index, grids in self._grids(category, targets, cache):
                sought = rows[table.target[rows] == index]
                yield self._match(grids, sources, starts[table.source[sought]] + table.source_slot[sought], sought)

    def _grids(self, category: str, targets: list[int], cache: DeviceCache[GridBatch]) -> Iterator[tuple[int, GridBatch]]:
        yield from ((index, cache[index]) for index in targets if index in cache)
        for batch in self._stream(self._prompt(category), [index for index in targets if index not in cache]):
            yield from ((index, batch.select([k])) for k, index in enumerate(batch.image.tolist()))

    def _match(
        self, target: GridBatch, sources: dict[str, SourceTokens], index: Int[Tensor, " n"], rows: Int[Tensor, " n"]
    ) -> MatchBatch:
        """``index`` numbers the source tokens among all of the category."""
        device = target.image.device
        source = {layer: tokens.at(index.to(device)) for layer, tokens in sources.items()}
        return MatchBatch(
            source={layer: tokens.tokens for layer, tokens in source.items()},
            sampled={layer: tokens.sampled for layer, tokens in source.items()},
            target={layer: grid[0] for layer, grid in target.grids.items()},
            source_masks={layer: tokens.masks for layer, tokens in source.items()},
            target_masks={layer: {name: mask[0] for name, mask in masks.items()} for layer, masks in target.masks.items()},
            row=rows.to(device),
        )


_Key = tuple[str, int]  # prompt, item


def _digest(pictures: str, pairs: dict[str, list[Pair]]) -> str:
    """Digest of pictures and of their annotations."""
    result = hashlib.sha256(pictures.encode())
    for split, part in pairs.items():
        for pair in part:
            result.update(f"{split}{pair}".encode())
    return result.hexdigest()

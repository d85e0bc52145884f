"""``images=spair``: SPair-71k, or any folder in its layout, such as exported scenes.

The layout is::

    JPEGImages/<category>/<image>.jpg
    PairAnnotation/<trn|val|test>/<pair>.json   <pair> is <number>-<source>-<target>:<category>
    Layout/large/<trn|val|test>.txt             one <pair> per line
    ImageAnnotation/<category>/<image>.json     with keypoints=image

References:
    Min, Lee, Ponce and Cho, SPair-71k: A Large-scale Benchmark for Semantic Correspondence, arXiv 1908.10543.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

from datamodules.images.pairs import SPLITS, BadPair, Box, Entry, Layout, PairFiles, Point, Statement, inside
from sdprobe.utilities import settings
from sdprobe.utilities.io import DamagedFile, read_file

PAIRS = {"trn": 53_340, "val": 5_384, "test": 12_234}
TEST_PAIRS = {
    "aeroplane": 690, "bicycle": 650, "bird": 702, "boat": 702, "bottle": 870, "bus": 644, "car": 564, "cat": 600,
    "chair": 646, "cow": 640, "dog": 600, "horse": 600, "motorbike": 702, "person": 650, "pottedplant": 862, "sheep": 664,
    "train": 756, "tvmonitor": 692,
}  # fmt: skip
TEST_KEYPOINTS = 88_328

log = logging.getLogger(__name__)


class SPairImages(PairFiles):
    """SPair-71k: pairs of photographs of 18 categories, or of any folder in its layout.

    Pairs are in the order of ``Layout/large``. Items are (3, size, size) in [0, 1]; their ids are ``<category>/<image>.jpg``,
    since categories share image names. The folder's layout is at the top of this module.

    Args:
        root: folder that contains JPEGImages, PairAnnotation and Layout.
        size: side of the square items in pixels, a positive multiple of 64.
        resize: ``pad``, ``replicate`` or ``squash``.
        categories: names of the categories to take; None takes all.
        pairs_per_category: greatest number of pairs per category and split, at least 1, drawn at random; None takes all.
        seed: seed of drawn pairs.
        keypoints: ``pair``, the keypoints of PairAnnotation, or ``image``, all that ImageAnnotation has in both pictures, as
            geoaware (arXiv 2311.17034) reads them.
        on_error: ``raise`` on a pair that cannot be used, or ``skip`` it.

    Raises:
        InputError: an argument out of range, another folder, no pair that can be used, a pair that cannot be used with
            ``on_error="raise"``, a path that leads out of the root.

    References:
        Min, Lee, Ponce and Cho (2019), arXiv 1908.10543.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> root, pair = Path(tempfile.mkdtemp()), "000001-a-b:cat"
        >>> for folder in ("JPEGImages/cat", "PairAnnotation/test", "Layout/large"):
        ...     (root / folder).mkdir(parents=True)
        >>> for name in ("a", "b"):
        ...     Image.new("RGB", (60, 40)).save(root / "JPEGImages" / "cat" / f"{name}.jpg")
        >>> sides = {"src_imname": "a.jpg", "trg_imname": "b.jpg", "src_imsize": [60, 40, 3], "trg_imsize": [60, 40, 3]}
        >>> points = {"src_kps": [[10, 12]], "trg_kps": [[14, 8]], "kps_ids": ["3"], "trg_bndbox": [5, 4, 50, 36]}
        >>> _ = (root / "PairAnnotation" / "test" / f"{pair}.json").write_text(json.dumps(sides | points))
        >>> _ = (root / "Layout" / "large" / "test.txt").write_text(pair)
        >>> [found] = SPairImages(str(root), size=64).pairs("test")
        >>> found.category, found.ids, found.source_points, found.target_points
        ('cat', ('3',), ((10.0, 12.0),), ((14.0, 8.0),))
    """

    layout = Layout("SPair-71k", {part: part for part in ("JPEGImages", "PairAnnotation", "Layout/large")}, "JPEGImages")

    def __init__(
        self,
        root: str,
        size: int = 512,
        resize: str = "pad",
        categories: Sequence[str] | None = None,
        pairs_per_category: int | None = None,
        seed: int = 0,
        keypoints: str = "pair",
        on_error: str = "raise",
    ) -> None:
        settings.check("images", keypoints=keypoints)
        self._keypoints = keypoints
        self._resized: set[str] = set()
        super().__init__(root, size, resize, categories, pairs_per_category, seed, on_error)

    def _entries(self) -> dict[str, list[Entry]]:
        entries: dict[str, list[Entry]] = {}
        for split, folder in SPLITS.items():
            file = inside(self.root, f"Layout/large/{folder}.txt")
            if file.is_file():
                lines = map(str.strip, file.read_text(encoding="utf-8-sig", errors="replace").splitlines())
                entries[split] = [(line.partition(":")[2], partial(self._statement, folder, line)) for line in lines if line]
            else:
                self._absent[split] = file
        return entries

    @cached_property
    def _categories(self) -> set[str]:
        return {folder.name for folder in (self.root / self.layout.folder).iterdir() if folder.is_dir()}

    def _statement(self, folder: str, line: str) -> Statement:
        """The pair of a line of the layout. Raises BadPair if its annotation is missing or unreadable."""
        file = inside(self.root, "PairAnnotation", folder, f"{line}.json")
        category = line.partition(":")[2]
        if category not in self._categories:
            message = f"Expected the category of pair {line} to be a folder of {self._file('')}, but got '{category}'."
            raise BadPair("unknown category", message)
        record = _record(file)
        try:
            source, target = (PurePosixPath(category, record[f"{side}_imname"]).as_posix() for side in ("src", "trg"))
            ids = tuple(str(key) for key in record["kps_ids"])
            points = (_points(record["src_kps"], len(ids)), _points(record["trg_kps"], len(ids)))
            box = _box(record["trg_bndbox"])
            sizes = [tuple(record[f"{side}_imsize"][:2]) for side in ("src", "trg")]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise _unreadable(file, error) from error
        if self._keypoints == "image":
            first, second = self._marked(source), self._marked(target)
            ids = tuple(key for key in first if key in second)
            points = (tuple(first[key] for key in ids), tuple(second[key] for key in ids))
        label, names = f"pair {line}", (source, target)
        self._resized |= {name for name, size in zip(names, sizes, strict=True) if size != self._measured(name, label)}
        return Statement(label, names, category, ids, points, box)

    def _marked(self, name: str) -> dict[str, Point]:
        """Id → point of the keypoints in a picture's ImageAnnotation. Raises BadPair if it cannot be read."""
        return self._annotation(
            inside(self.root, "ImageAnnotation", PurePosixPath(name).with_suffix(".json").as_posix()), _marks
        )

    def _compare(self, entries: Mapping[str, Sequence[Entry]], complete: bool) -> None:
        """Warn if pictures have another size than stated, or a folder with all 18 categories differs from SPair-71k."""
        if self._resized:
            log.warning(
                "%d pictures of %s do not have the size that their pairs state, such as %s; their keypoints may be wrong.",
                len(self._resized), self.root, min(self._resized),
            )  # fmt: skip
        if not {category for part in entries.values() for category, _ in part} >= set(TEST_PAIRS):
            return
        counts = {SPLITS[split]: len(part) for split, part in entries.items()}
        published = PAIRS | TEST_PAIRS | {"test keypoints": TEST_KEYPOINTS}
        if counts.get("test") == PAIRS["test"]:
            per_category = Counter(category for category, _ in entries["test"])
            counts |= {category: per_category[category] for category in TEST_PAIRS}
            if complete and self._keypoints == "pair":
                counts["test keypoints"] = sum(len(pair.ids) for pair in self.pairs("test"))
        self._warn_if_unpublished(counts, published)


def _record(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(read_file(file))
    except FileNotFoundError as error:
        # some file systems and archivers replace ':' in names
        message = f"Expected {file} to be the annotation of a pair, but it is missing; an archiver may have replaced the ':'."
        raise BadPair("missing annotation", message) from error
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(file, error) from error
    if not isinstance(record, dict):
        raise _unreadable(file, TypeError(f"a {type(record).__name__}"))
    return record


def _marks(file: Path) -> dict[str, Point]:
    record = _record(file)
    try:
        return {key: _points([point], 1)[0] for key, point in record["kps"].items() if point is not None}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> BadPair:
    reason = (
        f"no key {error}" if isinstance(error, KeyError) else str(error.args[-1] if isinstance(error, DamagedFile) else error)
    )
    return BadPair("unreadable annotation", f"Expected {file} to annotate a pair, but it cannot be read ({reason}).")


def _points(values: Any, count: int) -> tuple[Point, ...]:
    points = tuple((float(x), float(y)) for x, y in values)
    if len(points) != count:
        raise ValueError(f"{len(points)} keypoints for {count} kps_ids")
    return points


def _box(values: Any) -> Box:
    x0, y0, x1, y1 = map(float, values)
    return x0, y0, x1, y1

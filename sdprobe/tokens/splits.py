"""Splits: which images fit mitigations, train probes, validate them and test them. Data path step 1."""

import hashlib
from collections.abc import Sequence

from sdprobe.utilities import settings
from sdprobe.utilities.errors import InputError

SPLITS = ("fit", "train", "val", "test")
# shares of photographs
DEFAULT_SHARES = {"fit": 0.4, "train": 0.32, "val": 0.08, "test": 0.2}
LOOS2025_SHARES = {"fit": 0.0, "train": 0.8, "val": 0.0, "test": 0.2}
MINIMUM = 10


def split_by_photo(photos: Sequence[str], protocol: str = "default", seed: int = 0) -> dict[str, list[int]]:
    """Split items by photograph, so that all items of a photograph are in one split.

    ``default`` orders photographs by a digest of (seed, name), so that a split does not depend on the order of files. It takes
    40 % to fit mitigations, 32 % to train, 8 % to validate and 20 % to test, with or without mitigations. ``loos2025`` takes
    the first 80 % of the photographs to train and the others to test.

    Args:
        photos: name of the photograph of every item.
        protocol: ``default`` or ``loos2025``.
        seed: seed of ``default``.

    Returns:
        ``fit``, ``train``, ``val`` and ``test`` → indices of items.

    Raises:
        InputError: fewer than 10 photographs, or an unknown protocol.
    """
    settings.check("datamodule", splits=protocol)
    distinct = list(dict.fromkeys(photos))
    if len(distinct) < MINIMUM:
        raise InputError(
            f"Expected at least {MINIMUM} distinct photographs to split, but got {len(distinct)}. "
            "Add images or raise images.limit."
        )
    shares = LOOS2025_SHARES
    if protocol == "default":
        distinct.sort(key=lambda photo: hashlib.blake2b(f"{seed}/{photo}".encode()).digest())
        shares = DEFAULT_SHARES
    members = {photo: name for name, part in _cut(distinct, shares).items() for photo in part}
    return {name: [i for i, photo in enumerate(photos) if members[photo] == name] for name in SPLITS}


def _cut(photos: list[str], shares: dict[str, float]) -> dict[str, list[str]]:
    """Consecutive parts of a list; their ends are rounded cumulatively, so that they cover it."""
    ends, total = {}, 0.0
    for name, share in shares.items():
        total += share
        ends[name] = round(total * len(photos))
    starts = dict(zip(ends, [0, *ends.values()], strict=False))
    return {name: photos[starts[name] : end] for name, end in ends.items()}

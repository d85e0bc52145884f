"""Random numbers keyed by what they belong to, so that batches, order and devices do not change them."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch


def keyed_generator(*key: object) -> torch.Generator:
    """A CPU generator seeded by a digest of ``key``. One per image makes noise independent of the batch.

    >>> a, b = (torch.randn(2, generator=keyed_generator(0, "cat.jpg")) for _ in range(2))
    >>> torch.equal(a, b)
    True
    """
    return torch.Generator().manual_seed(int.from_bytes(_digest(*key), "big") >> 1)


def drawing_order(names: Sequence[str], seed: int, folders: Sequence[str] | None = None) -> list[int]:
    """Indices of all names in a random order whose beginnings are spread over folders as evenly as these allow.

    The first n indices are a draw of n names: of any two folders, one gives at most one name more than the other, unless the
    other has no more. A larger draw contains a smaller one. A draw depends on the seed and on the set of names, not on their
    order, and one more name replaces at most one name of it.

    Args:
        names: distinct, such as paths below a root.
        seed: an integer.
        folders: folder of each name; by default what precedes its last slash.

    Returns:
        every index once.

    >>> names = ["cat/0", "cat/1", "cat/2", "cat/3", "dog/0", "dog/1"]
    >>> sorted(names[i] for i in drawing_order(names, seed=0)[:4])
    ['cat/1', 'cat/2', 'dog/0', 'dog/1']
    """
    folders = [name.rpartition("/")[0] for name in names] if folders is None else folders
    rounds: list[tuple[int, bytes, int]] = []
    taken: Counter[str] = Counter()
    place = {folder: _digest("draw", seed, "folder", folder) for folder in set(folders)}
    for index in sorted(range(len(names)), key=lambda index: _digest("draw", seed, names[index])):
        folder = folders[index]
        rounds.append((taken[folder], place[folder], index))
        taken[folder] += 1
    return [index for *_, index in sorted(rounds)]


def _digest(*key: object) -> bytes:
    return hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest()

"""Where a pair dataset lies: its root folder, checked, and files below it, which no path in its annotations may leave."""

import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokens.errors import InputError


@dataclass(frozen=True)
class Layout:
    """What makes a folder the root of a dataset.

    title: the dataset's name. parts: glob pattern of something below the root → what messages call it.
    """

    title: str
    parts: Mapping[str, str]

    def missing(self, folder: Path) -> list[str]:
        """Names of the parts that a folder does not have."""
        return [name for pattern, name in self.parts.items() if next(folder.glob(pattern), None) is None]


def root_of(layout: Layout, root: str) -> Path:
    """The root without links; raises InputError where it is another folder, saying which to give or what to put there."""
    folder = Path(root).expanduser()
    if not folder.is_dir():
        got = "a file" if folder.exists() else "which does not exist"
        raise InputError(f"Expected images.root to be the folder of {layout.title}, but got '{root}', {got}. Check the path.")
    folder = folder.resolve()
    missing = layout.missing(folder)
    if not missing:
        return folder
    near = [*sorted(child for child in folder.iterdir() if child.is_dir()), *folder.parents[:2]]
    right = next((other for other in near if not layout.missing(other)), None)
    parts = ", ".join(layout.parts.values())
    raise InputError(
        f"Expected images.root to be the folder of {layout.title} ({parts}), but got '{root}', "
        f"which has no {' and no '.join(missing)}. "
        + (f"Use images.root={right}." if right else f"Put {' and '.join(missing)} into {folder}.")
    )


def inside(root: Path, *stated: str) -> Path:
    """The file that a dataset states, below its root; raises InputError, never to be skipped, where that leads out of it."""
    path, top = posixpath.join(*stated), str(root).rstrip(os.sep) + os.sep  # strings: there are 70,000 annotations
    file = os.path.join(root, path)
    spoilt = "\0" in path  # which no file system takes
    if spoilt or path.startswith("/") or ".." in path.split("/") or not (os.path.realpath(file) + os.sep).startswith(top):
        raise InputError(
            f"Expected every path in the dataset to stay below {root}, but got {path!r}, which leads out of it. "
            "Put the file itself there, in place of a link or of a path to elsewhere."
        )
    return Path(file)

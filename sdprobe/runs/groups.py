"""The groups of configs/ and their choices."""

from functools import cache
from pathlib import Path

CONFIGS = Path(__file__).parents[2] / "configs"


@cache
def _groups() -> frozenset[str]:
    return frozenset(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob("**/") if path != CONFIGS)


def is_group(name: str) -> bool:
    """
    >>> is_group("backbone"), is_group("hydra/launcher"), is_group("block"), is_group("a" * 1000)
    (True, True, False, False)
    """
    return name in _groups()


def options(group: str) -> list[str]:
    """The choices of a group.

    >>> options("datamodule")[0]
    'activations'
    """
    return sorted(file.stem for file in (CONFIGS / group).glob("[!_]*.yaml"))

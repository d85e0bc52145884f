"""The groups of configs/ and their choices."""

from functools import cache
from pathlib import Path

CONFIGS = Path(__file__).parents[2] / "configs"


@cache
def _groups() -> frozenset[str]:
    return frozenset(file.parent.relative_to(CONFIGS).as_posix() for file in CONFIGS.glob("*/**/*.yaml"))


def is_group(name: str) -> bool:
    """
    >>> [name for name in ("backbone", "hydra/launcher", "hydra", "block", "a" * 1000) if is_group(name)]
    ['backbone', 'hydra/launcher']
    """
    return name in _groups()


def options(group: str) -> list[str]:
    """The choices of a group.

    >>> options("datamodule")[0]
    'activations'
    """
    return sorted(file.stem for file in (CONFIGS / group).glob("[!_]*.yaml"))

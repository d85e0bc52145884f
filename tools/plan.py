"""The plan of ``make results``: measurements, and the blocks and figures made from them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools.steps import Step


@dataclass(frozen=True)
class Plan:
    """Measurements and publications.

    Attributes:
        steps: measurements, in the order in which they run.
        blocks: name → (steps it needs, function of their folders that returns Markdown).
        figures: published file, relative to the root → (step, function of its folder that returns the picture to publish).
        documents: relative to the root.
    """

    steps: Sequence[Step]
    blocks: Mapping[str, tuple[tuple[str, ...], Callable[..., str]]] = field(default_factory=dict)
    figures: Mapping[str, tuple[str, Callable[[Path], Path]]] = field(default_factory=dict)
    documents: Sequence[str] = ()

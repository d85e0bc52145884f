"""The parts of a probe's report: tables, figures, files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

from sdprobe.reports.run import Run
from sdprobe.reports.style import FORMATS


@dataclass(frozen=True)
class Drawing:
    """A figure of a run, and whether the run has the data for it."""

    draw: Callable[[Run], Figure]
    applies: Callable[[Run], bool]


@dataclass(frozen=True)
class Report:
    """Tables in printed order; figures by file name without ending, the one to open first at the beginning; other files by
    name."""

    tables: tuple[Callable[[Run], Table], ...]
    drawings: Mapping[str, Drawing]
    written: Mapping[str, Callable[[Run, Path], None]] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """Every file that the report may write into a run folder."""
        return [*(f"{name}.{form}" for name in self.drawings for form in FORMATS), *self.written]

    def figures(self, run: Run) -> dict[str, Figure]:
        """Every figure that the run has data for, by file name."""
        return {name: drawing.draw(run) for name, drawing in self.drawings.items() if drawing.applies(run)}


def several_layers(run: Run) -> bool:
    """Whether there is a curve over layers; a layer and its variants count as one."""
    return len(run.bases) > 1


def mapped(name: str) -> Callable[[Run], bool]:
    """Whether every layer has this map; an interrupted run has no maps."""
    return lambda run: all(f"{layer}/{name}" in run.maps for layer in run.layers)


def pictured(run: Run) -> bool:
    """Whether the run stored pictures."""
    return "pictures" in run.maps

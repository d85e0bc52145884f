"""What the report on a probe consists of: tables, figures, files, and the number that its runs are compared by."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

from sdprobe.reports.run import Run


@dataclass(frozen=True)
class Task:
    """What runs are compared by, and the question that singles out a layer: the ``highest`` number answers it, or the lowest.

    ``name`` stands in the names of figures; probes of one name share them. ``scale`` turns a share into percent.
    """

    name: str
    metric: str
    label: str
    question: str
    highest: bool = True
    scale: float = 1.0


@dataclass(frozen=True)
class Drawing:
    """A figure of a run, and whether the run has what it shows."""

    draw: Callable[[Run], Figure]
    applies: Callable[[Run], bool]


@dataclass(frozen=True)
class Report:
    """Tables in the order they are printed; figures by file name without ``.png``; other files by name."""

    tables: tuple[Callable[[Run], Table], ...]
    drawings: Mapping[str, Drawing]
    task: Task | None = None
    written: Mapping[str, Callable[[Run, Path], None]] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """Every file that the report may leave in a run folder."""
        return [*(f"{name}.png" for name in self.drawings), *self.written]

    def figures(self, run: Run) -> dict[str, Figure]:
        """Every figure that the run has data for, by file name."""
        return {name: drawing.draw(run) for name, drawing in self.drawings.items() if drawing.applies(run)}


def several_layers(run: Run) -> bool:
    """Whether there is a curve over layers; a layer and its variants are one."""
    return len(run.bases) > 1


def mapped(name: str) -> Callable[[Run], bool]:
    """Whether every layer has this map; an interrupted run has none."""
    return lambda run: all(f"{layer}/{name}" in run.maps for layer in run.layers)


def pictured(run: Run) -> bool:
    """Whether the run kept pictures to draw on."""
    return "pictures" in run.maps

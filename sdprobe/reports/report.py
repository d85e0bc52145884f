"""The parts of a probe's report: tables, figures, files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

from sdprobe.reports.run import Run
from sdprobe.reports.style import FORMATS
from sdprobe.tokens.keys import variant


@dataclass(frozen=True)
class Drawing:
    """A figure of a run, and whether the run has the data for it.

    ``over_layers``: whether its horizontal axis are the layers. Of several noise levels there is then a figure of each; of a
    single layer at several noise levels, the axis are these.
    """

    draw: Callable[[Run], Figure]
    applies: Callable[[Run], bool]
    over_layers: bool = False


@dataclass(frozen=True)
class Report:
    """Tables in printed order; figures by file name without ending, the one to open first at the beginning; other files by
    name."""

    tables: tuple[Callable[[Run], Table], ...]
    drawings: Mapping[str, Drawing]
    written: Mapping[str, Callable[[Run, Path], None]] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """Every file that the report may write into the folder of a run at one noise level."""
        return [*(f"{name}.{form}" for name in self.drawings for form in FORMATS), *self.written]

    @property
    def files_of_levels(self) -> list[str]:
        """Patterns of the files that it may write beside these for a run at several noise levels."""
        over_layers = [name for name, drawing in self.drawings.items() if drawing.over_layers]
        names = [each for name in over_layers for each in (variant(name, "t*"), _over_noise(name))]
        return [f"{name}.{form}" for name in names for form in FORMATS]

    def figures(self, run: Run) -> dict[str, Figure]:
        """Every figure that the run has data for, by file name."""
        found = {}
        for name, drawing in self.drawings.items():
            apart = drawing.over_layers and len(run.network_layers) > 1
            for level in run.levels if apart else [run]:
                if drawing.applies(level):
                    named = _over_noise(name) if drawing.over_layers and len(level.timesteps) > 1 else name
                    found[variant(named, timestep=level.level)] = drawing.draw(level)
        return found


def _over_noise(name: str) -> str:
    return name.replace("over_layers", "over_noise")


def several_layers(run: Run) -> bool:
    """Whether there is a curve over layers; a layer and its variants count as one."""
    return len(run.bases) > 1


def mapped(name: str) -> Callable[[Run], bool]:
    """Whether every layer has this map; an interrupted run has no maps."""
    return lambda run: all(f"{layer}/{name}" in run.maps for layer in run.layers)


def pictured(run: Run) -> bool:
    """Whether the run stored pictures."""
    return "pictures" in run.maps

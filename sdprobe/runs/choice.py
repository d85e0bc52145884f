"""``choose=``: the best layer, noise level or mitigation on validation photographs, reported on the test photographs.

After training, the probe is tested once more, on the photographs of the validation split. No number of the test depends on it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sdprobe.metrics.choice import choose
from sdprobe.metrics.grid_accuracy import chance
from sdprobe.reports.run import Run
from sdprobe.tokens.keys import Key, base_of, label_of, select, timestep_of
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import DamagedFile

if TYPE_CHECKING:
    from sdprobe.runs.measurement import Measurement

COORDINATES = {"layer": base_of, "timestep": timestep_of, "mitigation": label_of}
POSITION = "binned_accuracy"  # that position_bound= bounds
# settings of a position run that have to be those of the run that chooses
SAME = ("model", "weights", "prompt", "image_size", "timestep")


def check(cfg: DictConfig) -> None:
    """Check the settings of the choice.

    Raises:
        InputError: something else than layers, timesteps and mitigations is to be chosen, or half a bound is given.
    """
    unknown = [name for name in coordinates(cfg) if name not in COORDINATES]
    if unknown or (cfg.choose is not None and not coordinates(cfg)):
        got = unknown[0] if unknown else "nothing"
        raise InputError(
            f"Expected choose to be one or several of {', '.join(COORDINATES)}, but got {got}. Write choose=layer,timestep."
        )
    if (cfg.position_run is None) != (cfg.position_bound is None) or (cfg.position_run is not None and not cfg.choose):
        raise InputError(
            "Expected choose, position_run and position_bound together, but got some of them. position_run=RUN is a finished "
            "run of probe=position, and position_bound=.3 the largest accuracy of a cell that may be chosen."
        )


def check_chance(probe: Any) -> None:
    """Refuse cells whose chance level differs: an accuracy cannot choose among them.

    Raises:
        InputError: grids of different chance levels.
    """
    if probe.kind != "position":
        return
    levels = {cell: round(chance(h, w)[POSITION], 9) for cell, (_, h, w) in probe.shapes.items()}
    low, high = min(levels, key=levels.__getitem__), max(levels, key=levels.__getitem__)
    if levels[low] != levels[high]:
        raise InputError(
            f"Expected layers with one chance level of {POSITION} to choose among, but got {levels[low]:.3g} at {low} and "
            f"{levels[high]:.3g} at {high}, whose grid has fewer than 8 rows. Leave out {high}, or use larger images."
        )


def coordinates(cfg: DictConfig) -> tuple[str, ...]:
    """What is chosen; empty for nothing."""
    chosen = cfg.get("choose")
    if OmegaConf.is_list(chosen):
        return tuple(map(str, chosen))
    return tuple(name for name in str(chosen or "").split(",") if name)


def groups(cells: Sequence[str], chosen: Sequence[str]) -> list[list[str]]:
    """Cells among which one is chosen: they agree in every coordinate that is not chosen.

    >>> groups(["mid__t50", "up_1__t50", "mid__t261", "up_1__t261"], ["layer"])
    [['mid__t50', 'up_1__t50'], ['mid__t261', 'up_1__t261']]
    """
    alike: dict[tuple[Any, ...], list[str]] = {}
    for cell in cells:
        fixed = tuple(of(cell) for name, of in COORDINATES.items() if name not in chosen)
        alike.setdefault(fixed, []).append(cell)
    return list(alike.values())


def measure(measurement: "Measurement") -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Test the trained probe on the validation photographs, and choose.

    Returns:
        Numbers by key, under the condition ``choice``, and a JSON value per choice: ``chosen``, ``equal`` (cells that cannot be
        told from it), ``cells`` (how many there were), ``photographs``, ``metric`` and, where there is one, ``bound``.
    """
    cfg, data = measurement.cfg, measurement.data
    twin = instantiate(cfg.copy().probe)(shapes=data.shapes, photos=data.photos, data=data)
    twin.load_state_dict(measurement.probe.state_dict())
    with data.testing("val"):
        measurement.trainer.test(twin, datamodule=data, verbose=False)
    score = Key.parse(f"test/mid/{twin.score}")
    found = select(twin.results, condition="test", metric=score.metric, where=score.where)
    numbers = {str(Key("choice", *parts[1:])): value for key, value in found.items() if (parts := _parts(key))}
    values = twin.pseudovalues()
    scores = {cell: values[key] for cell in data.layers if (key := f"test/{cell}/{twin.score}") in values}
    bound = bounded(cfg, measurement) if cfg.position_run is not None else {}
    made = []
    for cells in groups(data.layers, coordinates(cfg)):
        allowed = [cell for cell in cells if cell in scores and (not bound or bound[cell] <= cfg.position_bound)]
        if not allowed:
            raise InputError(
                f"Expected a cell whose position accuracy is at most {cfg.position_bound}, but the lowest is "
                f"{min(bound[cell] for cell in cells):.3f}. Raise position_bound, or add mitigations."
            )
        choice = choose({cell: scores[cell] for cell in allowed})
        made.append(
            {
                "by": list(coordinates(cfg)), "metric": twin.score, "chosen": choice.chosen, "equal": list(choice.equal),
                "cells": len(cells), "photographs": choice.units, "left_out": list(choice.left_out),
            }
            | ({"bound": cfg.position_bound, "within_bound": len(allowed), "position": bound[choice.chosen]} if bound else {})
        )  # fmt: skip
    return numbers, made


def _parts(text: str) -> list[str]:
    key = Key.parse(text)
    return [key.condition, key.layer, key.metric, key.where, key.statistic]


def bounded(cfg: DictConfig, measurement: "Measurement") -> dict[str, float]:
    """Cell → upper end of the interval of its position accuracy in the run that bounds the choice.

    Raises:
        InputError: no finished run of probe=position, one of another network or other settings, or one without some cell.
    """
    folder = Path(str(cfg.position_run)).expanduser()
    try:
        run = Run.read(folder, maps=False)
    except (FileNotFoundError, DamagedFile) as error:
        raise InputError(
            f"Expected position_run to be a run folder, but {folder} cannot be read ({error}). Correct it."
        ) from error
    if run.kind != "position" or not run.meta.get("complete"):
        raise InputError(
            f"Expected position_run to be a finished run of probe=position, but {folder} is one of probe={run.kind}. "
            "Correct it."
        )
    own = measurement.meta
    for name in SAME:
        if run.meta.get(name) != own.get(name):
            raise InputError(
                f"Expected position_run to have {name} {own.get(name)!r}, as this run has, but got {run.meta.get(name)!r}. "
                "Measure position with the same settings."
            )
    ends: dict[str, float] = {}
    for cell in measurement.data.layers:
        value, _, high = run.estimate("test", cell, POSITION)
        if value is None:
            raise InputError(
                f"Expected position_run to have measured {cell}, but {folder} has {', '.join(run.layers)}. "
                "Measure position with the same block=, timestep= and mitigation=."
            )
        ends[cell] = value if high is None else high
    return ends

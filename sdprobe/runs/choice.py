"""``choose=``: the best layer, noise level or mitigation on validation photographs, reported on the test photographs.

After training, the probe is tested once more, on the photographs of the validation split. No number of the test depends on it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sdprobe.metrics.choice import choose
from sdprobe.metrics.grid_accuracy import chance
from sdprobe.reports.run import Run
from sdprobe.tokens.keys import Key, base_of, label_of, select, timestep_of
from sdprobe.utilities import settings
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import DamagedFile

if TYPE_CHECKING:
    from sdprobe.runs.measurement import Measurement

COORDINATES = {"layer": base_of, "timestep": timestep_of, "mitigation": label_of}
# what gives several of them
SEVERAL = {
    "layer": "block=[mid,up_1]", "timestep": "timestep=[50,261]",
    "mitigation": "mitigation=[standardize,leace] datamodule.compare=true",
}  # fmt: skip
SAVED = "Saved"  # step of a mitigation that was fitted in another run
POSITION = "binned_accuracy"  # that position_bound= bounds
# what a position run has to share with the run that chooses, as both record it
SAME = (
    "model", "weights", "unet_hash", "vae_hash", "schedule_hash", "noise", "vae_input", "posterior", "scaled_again", "padding",
    "position", "text", "prompt", "image_size", "timestep", "inside",
)  # fmt: skip


def check(cfg: DictConfig) -> None:
    """Check the settings of the choice.

    Raises:
        InputError: something else than layers, timesteps and mitigations is to be chosen, or half a bound is given.
    """
    if cfg.choose is not None:
        settings.check("", choose=cfg.choose)
    if (cfg.position_run is None) != (cfg.position_bound is None) or (cfg.position_run is not None and not cfg.choose):
        raise InputError(
            "Expected choose, position_run and position_bound together, but got some of them. position_run=RUN is a finished "
            "run of probe=position, and position_bound=.3 the largest accuracy of a cell that may be chosen."
        )


def check_cells(probe: Any, chosen: Sequence[str]) -> None:
    """Refuse a choice among single cells, and one among cells whose chance level differs: an accuracy cannot choose among them.

    Raises:
        InputError: nothing to choose among, or grids of different chance levels among which one is to be chosen.
    """
    if all(len(cells) == 1 for cells in groups(list(probe.shapes), chosen)):
        raise InputError(
            f"Expected several cells to choose a {' and '.join(chosen)} among, but got {', '.join(probe.shapes)}. Use "
            f"{' or '.join(SEVERAL[name] for name in chosen)}, or leave out choose=."
        )
    if probe.score.partition("/")[0] != POSITION:
        return
    levels = {cell: round(chance(h, w)[POSITION], 9) for cell, (_, h, w) in probe.shapes.items()}
    for cells in groups(list(levels), chosen):
        low, high = min(cells, key=levels.__getitem__), max(cells, key=levels.__getitem__)
        if levels[low] == levels[high]:
            continue
        raise InputError(
            f"Expected layers with one chance level of {POSITION} to choose among, but got {levels[low]:.3g} at {low} and "
            f"{levels[high]:.3g} at {high}, whose grid has fewer than 8 rows. Leave out {high}, or use larger images."
        )


def coordinates(cfg: DictConfig) -> tuple[str, ...]:
    """What is chosen; empty for nothing."""
    chosen = cfg.get("choose")
    names = map(str, chosen) if OmegaConf.is_list(chosen) else str(chosen or "").split(",")
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


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
    probe = instantiate(cfg.copy().probe)(shapes=data.shapes, photos=data.photos, data=data)
    probe.load_state_dict(measurement.probe.state_dict())
    loggers, measurement.trainer.loggers = measurement.trainer.loggers, []  # a tracker would take them for those of the test
    with data.testing("val"):
        measurement.trainer.test(probe, datamodule=data, verbose=False)
    measurement.trainer.loggers = loggers
    score = Key.parse(probe.score)
    found = select(probe.results, condition="test", metric=score.metric, where=score.where)
    numbers = {str(replace(Key.parse(text), condition="choice")): value for text, value in found.items()}
    values = probe.pseudovalues()
    scores = {cell: values[key] for cell in data.layers if (key := f"test/{cell}/{probe.score}") in values}
    bound = measurement.bound
    made = []
    for cells in groups(data.layers, coordinates(cfg)):
        allowed = within(cells, bound, cfg.position_bound)
        scored = {cell: scores[cell] for cell in allowed if cell in scores}
        if not scored:
            raise InputError(
                f"Expected numbers of the validation photographs to choose by, but {', '.join(cells)} got none. Use more "
                "images, or leave out choose=."
            )
        choice = choose(scored)
        left_out = [cell for cell in allowed if cell in choice.left_out or cell not in scored]
        made.append(
            {
                "by": list(coordinates(cfg)), "metric": probe.score, "chosen": choice.chosen, "equal": list(choice.equal),
                "cells": len(cells), "photographs": choice.units, "left_out": left_out,
            }
            | ({"bound": cfg.position_bound, "within_bound": len(allowed), "position": bound[choice.chosen]} if bound else {})
        )  # fmt: skip
    return numbers, made


def within(cells: Sequence[str], position: Mapping[str, float], bound: float | None) -> list[str]:
    """The cells whose position accuracy is at most ``bound``; all of them without a bound.

    Raises:
        InputError: there is none.
    """
    if bound is None:
        return list(cells)
    allowed = [cell for cell in cells if position[cell] <= bound]
    if not allowed:
        raise InputError(
            f"Expected a cell whose position accuracy is at most {bound}, but the lowest is "
            f"{min(position[cell] for cell in cells):.3f}. Raise position_bound, or add mitigations."
        )
    return allowed


def bounded(cfg: DictConfig, data: Any) -> dict[str, float]:
    """Cell → upper end of the interval of its position accuracy in the run that bounds the choice; empty without a bound.

    Raises:
        InputError: no finished run of probe=position, one of another network or other settings, one without some cell, or
            cells among which none is within the bound.
    """
    if cfg.position_run is None:
        return {}
    folder = Path(str(cfg.position_run)).expanduser()
    try:
        run = Run.read(folder, maps=False)
    except (OSError, DamagedFile) as error:
        reason = error.args[1] if len(error.args) > 1 else error
        raise InputError(
            f"Expected position_run to be a run folder, but '{folder}' cannot be read ({reason}). Correct it."
        ) from error
    if run.kind != "position" or not run.meta.get("complete"):
        got = f"{'a' if run.meta.get('complete') else 'an unfinished'} run of probe={run.kind}"
        raise InputError(f"Expected position_run to be a finished run of probe=position, but '{folder}' is {got}. Correct it.")
    size = OmegaConf.select(cfg, "images.size")
    own = data.backbone.describe() | {"prompt": cfg.prompt, "image_size": size, "timestep": data.timestep}
    own["inside"] = data.mitigations.inside or None
    for name in (name for name in SAME if name in own):  # U-Nets have no position embeddings
        if run.meta.get(name, None if name == "inside" else own[name]) != own[name]:
            raise InputError(
                f"Expected position_run to have {name} {own[name]!r}, as this run has, but got {run.meta[name]!r}. "
                "Measure position with the same settings."
            )
    here, there = data.mitigations.describe(size), run.meta.get("mitigations") or {}
    measured, wanted = _steps(there), _steps(here)
    if SAVED not in str([measured, wanted]) and measured != wanted:  # a saved mitigation does not say what it is
        raise InputError(
            f"Expected position_run to have the mitigations {_spoken(wanted)}, as this run has, but got {_spoken(measured)}. "
            "Measure position with the same mitigation= and datamodule.compare=."
        )
    for label, described in here.items():
        other = there.get(label, {})
        if SAVED in described["steps"] or "options" not in other:  # runs of older versions do not record options
            continue
        if json.dumps(other["options"]) != json.dumps(described["options"]):
            raise InputError(
                f"Expected position_run to have the options {json.dumps(described['options'])} of mitigation {label}, as this "
                f"run has, but got {json.dumps(other['options'])}. Measure position with the same settings."
            )
    ends: dict[str, float] = {}
    for cell in data.layers:
        value, _, high = run.estimate("test", cell, POSITION)
        if value is None:
            raise InputError(
                f"Expected position_run to have measured {cell}, but '{folder}' has {', '.join(run.layers)}. "
                "Measure position with the same block=, timestep= and mitigation=."
            )
        ends[cell] = value if high is None else high
    for cells in groups(data.layers, coordinates(cfg)):
        within(cells, ends, cfg.position_bound)
    return ends


def _steps(described: Mapping[str, Any]) -> dict[str, list[str]]:
    """Label → names of the steps, of mitigations as a run records them."""
    return {label: list(each["steps"]) for label, each in described.items()}


def _spoken(steps: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(" and ".join(names) for names in steps.values() if names) or "none"

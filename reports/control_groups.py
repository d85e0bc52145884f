"""Which cells of ``experiment=controls`` belong together: those of one network, seed and setting."""

import logging
from collections.abc import Sequence
from typing import Any

from reports.run import Run

OWN_TIMESTEP = "shared_261"  # the cell that sets a timestep, and goes with the others' whatever theirs is
NAMED = {"model": "", "seed": "seed ", "image_size": "size ", "precision": "", "timestep": "timestep "}

log = logging.getLogger(__name__)


def control_groups(runs: Sequence[Run]) -> dict[str, dict[str, Run]]:
    """Title → cell → its run: complete ones of ``probe=controls`` with a ``control``.

    Cells of a group have model, seed, image size, precision and timestep in common; the title names the model, and what else
    differs between groups. A cell with a timestep of its own joins every group that is alike otherwise. Of two runs of one cell
    the later counts, and a warning names the other.
    """
    usable = [run for run in runs if run.meta.get("control") and run.meta["complete"] and "photos" in run.maps]
    keys = dict.fromkeys(_key(run) for run in usable if run.meta["control"] != OWN_TIMESTEP)
    keys |= dict.fromkeys(_key(run) for run in usable if not any(_belongs(run, key) for key in keys))
    varying = [i for i in range(1, len(NAMED)) if len({key[i] for key in keys}) > 1]
    groups: dict[str, dict[str, Run]] = {}
    for key in keys:
        texts = [f"{said}{value}" for said, value in zip(NAMED.values(), key, strict=True)]
        title = ", ".join(texts[i] for i in (0, *varying))
        groups[title] = _cells([run for run in usable if _belongs(run, key)], title)
    return groups


def _key(run: Run) -> tuple[Any, ...]:
    return tuple(run.meta.get(name) for name in NAMED)


def _belongs(run: Run, key: tuple[Any, ...]) -> bool:
    own = _key(run)
    return own == key or (run.meta["control"] == OWN_TIMESTEP and own[:-1] == key[:-1])


def _cells(runs: Sequence[Run], title: str) -> dict[str, Run]:
    found: dict[str, Run] = {}
    for run in runs:
        name = str(run.meta["control"])
        if name in found:
            log.warning("Two runs of the cell '%s' of %s: %s is left out.", name, title, found[name].folder)
        found[name] = run
    return found

"""Which runs with ``datamodule.compare=true`` are one table: the same setting, and one way of measuring per probe."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from reports.run import Run

CONDITIONS = ("seed", "noise", "padding", "image_size", "precision", "vae_input", "posterior")


def mitigation_groups(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Title → runs of one network, timestep and conditions, in which every probe has one data set and one solver.

    Two data sets or solvers of a probe make two groups, each with the runs of those probes that have only one. Where several
    probes have two, nothing says which go together: each group has one such probe. Runs without variants are in none.
    """
    settings: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        if len(run.bases) < len(run.layers):
            settings[run.setting, *(run.meta.get(name) for name in CONDITIONS)].append(run)
    groups: dict[str, list[Run]] = {}
    for setting, together in settings.items():
        title = ", ".join([setting[0], *_differing(setting, list(settings))])
        groups |= {", ".join(filter(None, (title, said))): each for said, each in _by_measurement(together).items()}
    return groups


def _differing(setting: tuple[Any, ...], every: list[tuple[Any, ...]]) -> list[str]:
    """What a setting's title needs besides network and timestep: conditions in which settings of the same two differ."""
    alike = [other for other in every if other[0] == setting[0]]
    return [
        f"{name.replace('_', ' ')} {setting[i]}"
        for i, name in enumerate(CONDITIONS, start=1)
        if len({other[i] for other in alike}) > 1
    ]


def _by_measurement(runs: list[Run]) -> dict[str, list[Run]]:
    """What tells the group from others of its setting (nothing where it is alone) → its runs."""
    ways: dict[str, dict[tuple[Any, ...], list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        ways[run.kind][_way(run)].append(run)
    several = [kind for kind, each in ways.items() if len(each) > 1]
    if not several:
        return {"": runs}
    single = [run for run in runs if run.kind not in several]
    return {f"{kind} of {each[0].folder}": [*single, *each] for kind in several for each in ways[kind].values()}


def _way(run: Run) -> tuple[Any, ...]:
    """Data set and images per split; steps tell an iterated probe from one in closed form."""
    images = run.meta.get("images") or {}
    return run.meta.get("dataset_fingerprint"), tuple(sorted(images.items())), bool(run.meta.get("train_steps"))

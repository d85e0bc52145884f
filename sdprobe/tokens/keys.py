"""Names of numbers: the grammar of the keys of ``metrics.json`` and ``pseudovalues.npz``.

``<condition>/<layer>[__t<timestep>][__<mitigation>…]/<metric>/<where>[/<statistic>]``. Metrics name their numbers from
``<metric>`` on; a probe puts condition and layer in front (:func:`qualified`). ``<where>`` is ``all``, a token group, a
stratum, an output band or a later layer.

Variants are treated like further layers: ``mid__leace`` is the layer ``mid`` after the mitigation ``leace``. So are the noise
levels of a run with several: ``mid__t261`` is the layer ``mid`` at timestep 261. Random draws for a layer are keyed by
:func:`base_of`, so that a variant differs from its layer in the mitigation or the noise level only, and the two can be compared
in pairs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

from sdprobe.utilities.errors import InputError

PARTITION = ("corner", "border", "interior")  # every token is in one of them
GROUPS = (*PARTITION, "high_norm")
MASKED = ("corner", "border", "high_norm")  # groups whose cost to matching is measured
OVER_NONE = "gain_over_none"  # a variant minus its layer
ENERGY = "random_energy"  # as much energy removed as by a variant's mitigation, along random directions
CONDITIONS = (
    "test", "val", "chance", "shuffled_labels", "random_partition", "random_weights", "constant", "position_only",
    OVER_NONE, "rotated", "other_noise", "zero_shot", "random_weights_zero_shot", "same_position", "random_point",
    "gain_over_zero_shot", "gain_over_random_weights", "gain_over_same_position",
    "choice",  # on the validation photographs that choose= chooses by
    ENERGY, "ceiling", "shuffled_position",  # edits that probe=role compares with
)  # fmt: skip
ENDS = ("ci_low", "ci_high")  # of the 95 % interval
STATISTICS = (*ENDS, "n", "seeds", "p")  # p: of runs of schema 1
COLUMNS = ("condition", "layer", "timestep", "mitigation", "metric", "group", "value", "low", "high", "n", "seeds")
Value = TypeVar("Value")
_SEPARATOR = "__"


@dataclass(frozen=True)
class Key:
    """The parts of a key. ``condition`` and ``layer`` are empty in the names that metrics use; ``statistic`` is empty for the
    number itself.

    >>> Key.parse("test/mid__leace/r_pos/all/ci_low")
    Key(condition='test', layer='mid__leace', metric='r_pos', where='all', statistic='ci_low')
    >>> str(Key("val", "mid", "loss")), str(Key.parse("rmse/corner/n"))
    ('val/mid/loss/all', 'rmse/corner/n')
    """

    condition: str
    layer: str
    metric: str
    where: str = "all"
    statistic: str = ""

    @classmethod
    @cache  # the tables of a run parse the same thousands of keys many times
    def parse(cls, text: str) -> "Key":
        """Inverse of ``str``.

        Raises:
            InputError: the text does not follow the grammar.
        """
        parts = text.split("/")
        if "" in parts or not 2 <= len(parts) <= 5 or (len(parts) % 2 and parts[-1] not in STATISTICS):
            raise InputError(
                "Expected a key of metrics.json to be <condition>/<layer>/<metric>/<where>, with or without one of "
                f"/{', /'.join(STATISTICS)} behind it, but got '{text}'. Rename it."
            )
        return cls(*["", ""] * (len(parts) < 4), *parts)

    def __str__(self) -> str:
        return "/".join(filter(None, (self.condition, self.layer, self.metric, self.where, self.statistic)))

    @property
    def quantity(self) -> str:
        """``<metric>/<where>``."""
        return f"{self.metric}/{self.where}"


def qualified(condition: str, layer: str, numbers: Mapping[str, Value]) -> dict[str, Value]:
    """Numbers of a metric under their full keys.

    >>> qualified("test", "mid", {"rmse/all": 0.5, "rmse/all/n": 9})
    {'test/mid/rmse/all': 0.5, 'test/mid/rmse/all/n': 9}
    """
    return {f"{condition}/{layer}/{name}": value for name, value in numbers.items()}


def select(numbers: Mapping[str, Value], **parts: str) -> dict[str, Value]:
    """The numbers whose keys have these parts.

    >>> select({"test/mid/rmse/all": 0.5, "test/mid/rmse/all/n": 9}, condition="test", statistic="")
    {'test/mid/rmse/all': 0.5}
    """
    keys = {text: Key.parse(text) for text in numbers}
    return {text: numbers[text] for text, key in keys.items() if all(getattr(key, name) == parts[name] for name in parts)}


def long_form(numbers: Mapping[str, float]) -> list[list[str | float | None]]:
    """A row under :data:`COLUMNS` per number; None where it has no timestep or mitigation in its key, no interval, no count.

    >>> long_form({"test/mid__leace/rmse/all": 0.5, "test/mid__leace/rmse/all/n": 9})
    [['test', 'mid', None, 'leace', 'rmse', 'all', 0.5, None, None, 9, None]]
    """
    table: list[list[str | float | None]] = []
    for text, value in select(numbers, statistic="").items():
        key = Key.parse(text)
        beside = (numbers.get(f"{text}/{statistic}") for statistic in (*ENDS, "n", "seeds"))
        layer = (base_of(key.layer), timestep_of(key.layer), label_of(key.layer) or None)
        table.append([key.condition, *layer, key.metric, key.where, value, *beside])
    return table


def variant(layer: str, label: str = "", timestep: int | None = None) -> str:
    """Name of a layer at one of several timesteps, after a mitigation.

    >>> variant("mid", "leace"), variant("mid", timestep=261), variant("mid")
    ('mid__leace', 'mid__t261', 'mid')
    """
    return _SEPARATOR.join([layer, *([] if timestep is None else [f"t{timestep}"]), *filter(None, [label])])


def cells(layers: Sequence[str], timesteps: Sequence[int]) -> dict[str, tuple[str, int]]:
    """Name → (layer, timestep) of every layer at every timestep. At a single one layers keep their names.

    >>> cells(["mid", "up_1"], [50])
    {'mid': ('mid', 50), 'up_1': ('up_1', 50)}
    >>> list(cells(["mid", "up_1"], [50, 261]))
    ['mid__t50', 'mid__t261', 'up_1__t50', 'up_1__t261']
    """
    several = len(timesteps) > 1
    return {variant(layer, timestep=t if several else None): (layer, t) for layer in layers for t in timesteps}


def by_timestep(names: Iterable[str]) -> dict[int | None, list[str]]:
    """Timestep → the names with it, in order; None for names without one.

    >>> by_timestep(["mid__t50", "mid__t261", "up_1__t50"])
    {50: ['mid__t50', 'up_1__t50'], 261: ['mid__t261']}
    """
    found: dict[int | None, list[str]] = {}
    for name in names:
        found.setdefault(timestep_of(name), []).append(name)
    return found


def base_of(name: str) -> str:
    """The layer of a variant.

    >>> base_of("mid__t261__leace"), base_of("mid")
    ('mid', 'mid')
    """
    return _split(name)[0]


def timestep_of(name: str) -> int | None:
    """The timestep in a name; None if it names none.

    >>> timestep_of("mid__t261__leace"), timestep_of("mid__leace")
    (261, None)
    """
    timestep = _split(name)[1]
    return int(timestep) if timestep else None


def place_of(name: str, timestep: Value) -> tuple[str, int | Value]:
    """(layer, timestep) of a name, in a run at this timestep or at several.

    >>> place_of("mid__t261__leace", [50, 261]), place_of("mid", 50)
    (('mid', 261), ('mid', 50))
    """
    own = timestep_of(name)
    return base_of(name), timestep if own is None else own


def label_of(name: str) -> str:
    """The mitigation in a name; empty for the layer itself.

    >>> label_of("mid__leace"), label_of("mid__t261__leace"), label_of("mid")
    ('leace', 'leace', '')
    """
    return _split(name)[2]


def chained(labels: Iterable[str]) -> str:
    """Label of several mitigations that are applied one after the other, as a variant of its own.

    >>> variant("mid", chained(["standardize", "leace"]))
    'mid__standardize__leace'
    """
    return _SEPARATOR.join(labels)


def steps_of(label: str) -> list[str]:
    """Inverse of :func:`chained`.

    >>> steps_of("standardize__leace")
    ['standardize', 'leace']
    """
    return label.split(_SEPARATOR)


def at_level(text: str, timestep: int) -> str | None:
    """The name that a number or a map of a run at several timesteps has in a run at this one; None if it is of another.

    >>> at_level("test/mid__t261__leace/r_pos/all", 261), at_level("mid__t50/norm", 261), at_level("pictures", 261)
    ('test/mid__leace/r_pos/all', None, 'pictures')
    """
    if f"{_SEPARATOR}t" not in text:
        return text
    parts = text.split("/")
    if any(timestep_of(part) not in (None, timestep) for part in parts):
        return None
    return "/".join(variant(base_of(part), label_of(part)) for part in parts)


def unmitigated(name: str) -> str:
    """The same layer at the same timestep, without the mitigation.

    >>> unmitigated("mid__t261__leace"), unmitigated("mid__leace"), unmitigated("mid")
    ('mid__t261', 'mid', 'mid')
    """
    return variant(base_of(name), timestep=timestep_of(name))


def is_label(text: str) -> bool:
    """Whether a mitigation may have this name without being read as something else.

    >>> [is_label(text) for text in ("leace", "t261", "a/b")]
    [True, False, False]
    """
    return "/" not in text and label_of(variant("mid", text)) == text and not is_energy_control(variant("mid", text))


def energy_control(name: str) -> str:
    """Name of the control of a variant during a run; its numbers get the condition :data:`ENERGY`, see :func:`finished`.

    >>> energy_control("mid__leace")
    'mid__leace__random_energy'
    """
    return f"{name}{_SEPARATOR}{ENERGY}"


def is_energy_control(name: str) -> bool:
    """Whether a name is that of :func:`energy_control`.

    >>> is_energy_control("mid__leace__random_energy"), is_energy_control("mid__leace")
    (True, False)
    """
    return label_of(name).endswith(f"{_SEPARATOR}{ENERGY}")


def finished(numbers: Mapping[str, Value]) -> dict[str, Value]:
    """Numbers by key, with the test of energy controls under their condition. What else these have is left out.

    >>> finished({"test/mid__leace__random_energy/rmse/all": 0.5, "val/mid__leace__random_energy/rmse/all": 0.4})
    {'random_energy/mid__leace/rmse/all': 0.5}
    """
    found: dict[str, Value] = {}
    for text, value in numbers.items():
        key = Key.parse(text)
        if not is_energy_control(key.layer):
            found[text] = value
        elif key.condition == "test":
            found[str(replace(key, condition=ENERGY, layer=key.layer.removesuffix(f"{_SEPARATOR}{ENERGY}")))] = value
    return found


def _split(name: str) -> tuple[str, str, str]:
    """(layer, digits of the timestep, label of the mitigation)."""
    base, _, rest = name.partition(_SEPARATOR)
    first, _, label = rest.partition(_SEPARATOR)
    return (base, first[1:], label) if first.startswith("t") and first[1:].isdecimal() else (base, "", rest)

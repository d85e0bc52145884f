"""A run folder for reports: metrics by condition, layer, metric and group; maps by layer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sdprobe.reports.recorded import checked, shown_names
from sdprobe.tokens.keys import ENDS, Key, at_level, base_of, label_of, steps_of, timestep_of, variant
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import DamagedFile, parsing, read_arrays, read_file, read_json

Value = TypeVar("Value")
SCHEMA = 2  # of metrics.json; older runs have no pseudo-values for significance tests
NAMED = 3  # a title names at most so many mitigations
PICTURED = 12  # pictures of so many layers at most


@dataclass(frozen=True)
class Run:
    """metrics.json and maps.npz of one run.

    ``chosen``: the layers of which pictures are drawn, see :meth:`showing`. ``level``: the timestep if this is one of several
    noise levels of a run, see :attr:`levels`.
    """

    metrics: dict[str, float]
    meta: dict[str, Any]
    maps: dict[str, np.ndarray]
    folder: Path = Path()
    chosen: tuple[str, ...] = ()
    level: int | None = None

    @classmethod
    def read(cls, folder: Path, maps: bool = True) -> "Run":
        """Read a folder, without maps if many runs are compared.

        Raises:
            FileNotFoundError: there is no ``metrics.json``.
            DamagedFile: a file is not what the run wrote, or holds something else than what a run writes.
        """
        content = read_json(folder / "metrics.json")
        with parsing(folder / "metrics.json"):
            metrics, meta = checked(content)
        run = cls(metrics, meta, {}, folder)
        return replace(run, maps=run._arrays("maps.npz")) if maps else run

    def check(self) -> None:
        """Raise :class:`~sdprobe.utilities.io.DamagedFile` if a file that the run wrote is missing or is not what it wrote.

        Older versions did not record checksums. What such a run has is only read.
        """
        for name, checksum in self.files.items():
            try:
                read_file(self.folder / name, checksum)
            except FileNotFoundError as error:
                raise DamagedFile(self.folder / name, "no such file") from error
        if not self.files:
            self._arrays("maps.npz")
            self._arrays("pseudovalues.npz")

    @property
    def files(self) -> dict[str, str]:
        """Files that the run wrote → their checksums; empty for runs of older versions, and incomplete ones."""
        files = self.meta.get("files")
        return {str(name): str(checksum) for name, checksum in files.items()} if isinstance(files, dict) else {}

    def _arrays(self, name: str, ending: str = "") -> dict[str, np.ndarray]:
        """The arrays of a file, or those whose names end so; empty without the file."""
        path = self.folder / name
        arrays = read_arrays(path, expected=self.files.get(name), unchecked=True, ending=ending) if path.exists() else {}
        with parsing(path):
            return shown_names(arrays)

    def tokens(self) -> dict[str, np.ndarray]:
        """Tokens that the run kept for the explorer, see :mod:`sdprobe.tokens.kept`; empty if it kept none."""
        return self._arrays("tokens.npz")

    def pseudovalues(self, quantity: str = "") -> dict[str, np.ndarray]:
        """``<condition>/<layer>/<metric>/<group>`` → contribution of every sampled unit; empty for runs of an older schema.

        ``quantity``: read those of this ``<metric>/<group>`` only.
        """
        if int(self.meta.get("schema", 1)) < SCHEMA:
            return {}
        return self._at_level(self._arrays("pseudovalues.npz", f"/{quantity}" if quantity else ""), self.level)

    @property
    def timesteps(self) -> list[int]:
        """The noise levels of the run."""
        timestep = self.meta["timestep"]
        return list(timestep) if isinstance(timestep, list) else [timestep]

    @property
    def levels(self) -> list["Run"]:
        """The run at each of its noise levels, with the names of a run at this level alone; of one level, the run itself."""
        return list(map(self._one, self.timesteps)) if len(self.timesteps) > 1 else [self]

    def _one(self, level: int) -> "Run":
        """The run at one of several noise levels."""
        meta = self.meta | {"timestep": level, "layers": list(self._at_level(dict.fromkeys(self.layers), level))}
        meta |= {name: self._at_level(meta[name], level) for name in ("published_names", "shapes") if name in meta}
        if isinstance(sigma := meta.get("noise_level"), list):
            meta["noise_level"] = sigma[self.timesteps.index(level)]
        meta["mitigations"] = {
            label: each | {"fits": self._at_level(each.get("fits", {}), level)}
            for label, each in (meta.get("mitigations") or {}).items()
        }
        chosen = tuple(self._at_level(dict.fromkeys(self.chosen), level))
        metrics, maps = self._at_level(self.metrics, level), self._at_level(self.maps, level)
        return replace(self, metrics=metrics, meta=meta, maps=maps, chosen=chosen, level=level)

    @staticmethod
    def _at_level(numbers: Mapping[str, Value], level: int | None) -> dict[str, Value]:
        """What is of one of several noise levels, or of none, by the names of a run at this level alone."""
        if level is None:
            return dict(numbers)
        names = {text: at_level(text, level) for text in numbers}
        return {name: numbers[text] for text, name in names.items() if name is not None}

    @property
    def layers(self) -> list[str]:
        """Measured layers in execution order."""
        return list(self.meta["layers"])

    @property
    def bases(self) -> list[str]:
        """Measured layers, without their variants with mitigations."""
        return [layer for layer in self.layers if not label_of(layer)]

    @property
    def network_layers(self) -> list[str]:
        """Measured layers, at whichever noise level and without their variants with mitigations."""
        return list(dict.fromkeys(map(base_of, self.layers)))

    @property
    def axis(self) -> list[str]:
        """How figures name the measured layers; of a single layer its noise levels."""
        if len(self.network_layers) > 1 or len(self.timesteps) < 2:
            return list(map(of_layer, self.bases))
        return [f"timestep {timestep_of(layer)}" for layer in self.bases]

    @property
    def labels(self) -> list[str]:
        """Mitigations that the run compares with no mitigation, in order; empty for other runs."""
        return list(dict.fromkeys(filter(None, map(label_of, self.layers))))

    @property
    def pictured(self) -> list[str]:
        """The layers, each followed by its variants, of which pictures are drawn: at most twelve unless others were chosen."""
        most = max(1, PICTURED // (1 + len(self.labels)))
        bases = self.chosen or spread(self.bases, most)
        return [
            layer for base in bases for layer in self.layers if layer in {variant(base, label) for label in ("", *self.labels)}
        ]

    def showing(self, patterns: Sequence[str]) -> "Run":
        """The run with pictures of the layers that match; none of the patterns: of at most twelve layers.

        Args:
            patterns: names of layers, such as ``mid`` or ``up_*``, or ``all``.

        Raises:
            InputError: no layer matches.
        """
        wanted = [layer for layer in self.bases if any(p == "all" or fnmatchcase(base_of(layer), p) for p in patterns)]
        if patterns and not wanted:
            raise InputError(
                f"Expected --layers to name layers of the run ({', '.join(self.bases)}), but got '{','.join(patterns)}'."
            )
        return replace(self, chosen=tuple(wanted))

    @property
    def kind(self) -> str:
        """Kind of the probe: ``position``, ``statistics``, ``content``, …"""
        return str(self.meta.get("probe", "position"))

    @property
    def chain(self) -> str:
        """Mitigations that are applied to all layers, in order: ``standardize → leace``; empty for none."""
        steps = (self.meta.get("mitigations") or {}).get("none", {}).get("steps", ())
        return " → ".join(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", step).lower() for step in steps)

    @property
    def network(self) -> str:
        """Name of the network: that of its folder, or of its repository with the owner."""
        return without_folders(str(self.meta["model"]))

    @property
    def setting(self) -> str:
        """Network with its path, noise level and mitigations. Equal for runs that may be compared."""
        mitigated = f", with mitigation {self.chain}" if self.chain else ""
        if inside := self.meta.get("inside"):
            mitigated += f", applied inside {inside}"
        return self._conditions(str(self.meta["model"])) + mitigated

    @property
    def heading(self) -> str:
        """Network, noise level and mitigations, for titles."""
        few = len(self.labels) <= NAMED
        names = ", ".join(" → ".join(steps_of(label)) for label in self.labels)
        labels = f"mitigation {names}" if few else f"{len(self.labels)} mitigations"
        mitigated = f", with mitigation {self.chain}" if self.chain else f", without and with {labels}" if self.labels else ""
        return self._conditions(self.network) + mitigated

    def _conditions(self, network: str) -> str:
        weights = "" if self.meta["weights"] == "stored" else f" with {self.meta['weights'].replace('-', ' weights, seed ')}"
        several = "s" * (len(self.timesteps) > 1)
        return f"{network}{weights}, timestep{several} {', '.join(map(str, self.timesteps))}"

    def value(self, condition: str, layer: str, metric: str, group: str = "all", end: str = "") -> float | None:
        """A number of the run, or None if it was not measured; ``end`` is ``ci_low`` or ``ci_high``."""
        return self.metrics.get(str(Key(condition, layer, metric, group, end)))

    def estimate(
        self, condition: str, layer: str, metric: str, group: str = "all"
    ) -> tuple[float | None, float | None, float | None]:
        """A number and both ends of its 95 % interval; each is None if it was not measured."""
        value, low, high = (self.value(condition, layer, metric, group, end) for end in ("", *ENDS))
        return value, low, high


def of_layer(layer: str) -> str:
    """A layer in figures, with its noise level if it is one of several, and its mitigation.

    >>> of_layer("mid"), of_layer("mid__leace"), of_layer("mid__t261")
    ('mid', 'mid, leace', 'mid, timestep 261')
    """
    level = timestep_of(layer)
    return ", ".join(filter(None, (base_of(layer), "" if level is None else f"timestep {level}", label_of(layer))))


def without_folders(model: str) -> str:
    """The last part of a path, as of the checkpoint in ``assets``; names of repositories stay whole.

    >>> [without_folders(model) for model in ("/data/models/sd15", "assets/demo", "owner/name", "sd15")]
    ['sd15', 'demo', 'owner/name', 'sd15']
    """
    return Path(model).name if model.startswith(("/", "~", ".", "assets/")) or model.count("/") > 1 else model


def spread(names: Sequence[str], most: int = PICTURED) -> list[str]:
    """All names, or of more than ``most`` as many evenly spread ones with the first and the last.

    >>> spread(list("abcdefg"), 3)
    ['a', 'd', 'g']
    """
    if len(names) <= most:
        return list(names)
    return [names[round(place)] for place in np.linspace(0, len(names) - 1, most)]

"""The random-weights baseline: the same probe on the same network with random weights."""

import json
import logging
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from sdprobe.metrics.networks import Network, merged, renamed
from sdprobe.runs.measurement import Measurement
from sdprobe.runs.record import CHOICE, VERSION, Predicts, digest, packed, result_settings, target_name, unpacked
from sdprobe.tokens.kept import RANDOM, TRAINED, KeptTokens
from sdprobe.tokens.keys import select
from sdprobe.utilities import progress
from sdprobe.utilities.distributed import Processes
from sdprobe.utilities.errors import Unfit
from sdprobe.utilities.io import DamagedFile, parsing, read_arrays, write_arrays

_UNITS, _TOKENS = "pseudovalues/", "tokens/"

log = logging.getLogger(__name__)
# what the numbers depend on besides configuration, :data:`VERSION` and packages
_DATA = (
    "unet_config_hash",
    "vae_hash",
    "text_hash",
    "schedule_hash",
    "dataset_fingerprint",
    "images",
    "labels",
    "precision",
    "hardware",
)


def steps(cfg: DictConfig) -> list[str]:
    """What :func:`random_weights` does, as :mod:`sdprobe.utilities.progress` numbers it."""
    return [] if _fits_one_network(cfg) else [_step(_seed(cfg, number)) for number in range(cfg.twins)]


def _fits_one_network(cfg: DictConfig) -> bool:
    """Whether a saved mitigation belongs to the network that it was fitted on."""
    return any(target_name(each._target_) == "Saved" for each in cfg.mitigation.values())


def _seed(cfg: DictConfig, number: int) -> int:
    return int(cfg.backbone.weights_seed) + 1 + number


def _step(seed: int) -> str:
    return f"random weights (seed {seed})"


def random_weights(
    cfg: DictConfig, meta: dict[str, Any], probe: object = None, tokens: dict[str, np.ndarray] | None = None
) -> dict[str, float]:
    """``random_weights/<layer>/...``: mean over ``cfg.twins`` seeds. Each is measured once and stored in ``cfg.cache_dir``.

    The random network shares everything with the measured network except the weights of the U-Net: encoder, images, noise,
    probe. ``/n`` counts the same as in the measured network, ``/seeds`` counts random networks. From three seeds on there is
    an interval over other networks and other photographs, see :func:`~sdprobe.metrics.intervals.two_way_interval`; with fewer
    there is none. If a probe has predictions, they are also compared one by one.

    Args:
        cfg: of the run.
        meta: of the measured network's run.
        probe: that was measured.
        tokens: kept of the measured network; those of the first random network are added.
    """
    if _fits_one_network(cfg):
        log.info("No random-weights baseline: a saved mitigation belongs to the network it was fitted on.")
        return {}
    own = probe.predictions() if isinstance(probe, Predicts) and cfg.twins else {}
    kept = _formats(tokens or {}, getattr(probe, "kept", None))
    twins = [_twin(cfg, meta, number, own, {} if number else kept) for number in range(cfg.twins)]
    if tokens is not None and twins:
        tokens |= twins[0].tokens
    gains = probe.compare([twin.predictions for twin in twins]) if isinstance(probe, Predicts) and twins else {}
    return merged(twins) | gains


def _twin(
    cfg: DictConfig, meta: dict[str, Any], number: int, own: dict[str, np.ndarray], kept: dict[str, tuple[Any, ...]]
) -> Network:
    """One random-weights network, measured or taken from the cache.

    ``own``: predictions of the measured network. ``kept``: dtypes and shapes of its tokens, if those of this one are wanted.
    """
    config = OmegaConf.merge(
        cfg,
        {
            "backbone": {"weights": "random", "weights_seed": _seed(cfg, number)},
            "run_dir": str(Path(cfg.run_dir) / f"random_weights_{number}"),
            **dict.fromkeys(CHOICE),
        },
    )
    assert isinstance(config, DictConfig)
    with progress.step(_step(config.backbone.weights_seed)) as step:
        processes = Processes.current()
        stored = Path(cfg.cache_dir).expanduser() / "twins" / f"{_identity(config, meta)}.twin.npz"
        twin = _stored(stored, own, kept) if not processes.rank else None
        # all processes measure this network, or none does, because they may see different files
        if processes.all_gather(twin is not None)[0]:
            step.note = f"taken from {stored}"
            return twin or Network({}, {}, {})
        measurement = Measurement(config, is_baseline=True)
        measurement.run()
        measurement.release()
    predictions = measurement.probe.predictions() if isinstance(measurement.probe, Predicts) else {}
    tokens = {name: array for name, array in measurement.probe.tokens.items() if name.startswith(f"{RANDOM}/")}
    twin = Network(renamed(measurement.results), renamed(measurement.probe.pseudovalues()), predictions, tokens)
    if processes.rank == 0:
        _store(stored, twin)
    return twin


def _identity(config: DictConfig, meta: dict[str, Any]) -> str:
    """Digest of everything that the numbers depend on. It includes :data:`VERSION`, but not the version of this package."""
    packages = {name: number for name, number in meta["packages"].items() if name != "sdprobe"}
    return digest([result_settings(config), {key: meta[key] for key in _DATA}, packages, VERSION])


def _formats(tokens: dict[str, np.ndarray], kept: KeptTokens | None) -> dict[str, tuple[Any, ...]]:
    """Name → dtype and shape of the tokens that are wanted of a random network, which are those of the measured one."""
    wanted = {name for network, name in kept.plan.grids if network == RANDOM} if kept else set()
    parts = {name: name.split("/") for name in tokens}
    return {
        f"{RANDOM}/{layer}/{part}": (tokens[name].dtype, tokens[name].shape)
        for name, (network, layer, part) in ((name, found) for name, found in parts.items() if len(found) == 3)
        if network == TRAINED and layer in wanted
    }


def _stored(path: Path, own: dict[str, np.ndarray], kept: dict[str, tuple[Any, ...]] | None = None) -> Network | None:
    """Stored results; None if a file cannot be read, is damaged, lacks tokens, or is that of another network.

    ``own``: columns of predictions of the measured network, which its random networks have, too. ``kept``: see :func:`_twin`.
    """
    try:
        arrays = read_arrays(path)
        with parsing(path, OSError):  # pyarrow
            if arrays["name"].tobytes().decode() != path.name:
                raise Unfit("the results of another network")
            predictions = unpacked(arrays["predictions"].tobytes()) if own else {}
            pseudovalues = {name.removeprefix(_UNITS): array for name, array in arrays.items() if name.startswith(_UNITS)}
            results: dict[str, float] = {**json.loads(arrays["results"].tobytes())}
            select(results)  # parses every key
            finite = all(type(value) in (int, float) and isfinite(value) for value in results.values())
            if not finite or any(array.dtype.kind not in "fiu" for array in pseudovalues.values()):
                raise Unfit("no numbers")
            if {name: len(column) for name, column in predictions.items()} != {name: len(own[name]) for name in own}:
                raise Unfit("predictions of another probe")
            kept = kept or {}
            tokens = {name.removeprefix(_TOKENS): array for name, array in arrays.items() if name.startswith(_TOKENS)}
            if any(name not in tokens or (tokens[name].dtype, tokens[name].shape) != form for name, form in kept.items()):
                return None  # those of another page
            return Network(results, pseudovalues, predictions, {name: tokens[name] for name in kept})
    except DamagedFile as error:
        log.warning("%s is damaged (%s); this network is measured again.", *error.args)
    except OSError:
        pass  # no file, or no permission to read it
    return None


def _store(path: Path, twin: Network) -> None:
    """Store the results in one file, since those of two processes could mix. If that fails, they are measured next time."""
    contents = {"name": path.name.encode(), "results": json.dumps(twin.results).encode()}
    contents |= {"predictions": packed(twin.predictions)} if twin.predictions else {}
    arrays = {name: np.frombuffer(content, np.uint8) for name, content in contents.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays |= {f"{_UNITS}{name}": array for name, array in twin.pseudovalues.items()}
        write_arrays(path, arrays | {f"{_TOKENS}{name}": array for name, array in twin.tokens.items()})
    except OSError as error:
        log.warning("Results of random weights cannot be stored in %s (%s).", path.parent, error.strerror)

"""The random-weights null: the same probe on the same network before any training."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from scipy import stats

from runs.measure import Measurement
from runs.predictions import Predicts, read_predictions, write_predictions
from runs.record import decisive, digest, source_digest, write_atomically
from tokens.processes import Processes

log = logging.getLogger(__name__)
# what of a twin is kept, and under which name
WHAT = {"test": "random_weights", "zero_shot": "random_weights_zero_shot"}
# what the twin's numbers depend on besides its configuration
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
    "packages",
)


def random_weights(cfg: DictConfig, meta: dict[str, Any], probe: object = None) -> dict[str, float]:
    """``random_weights/<layer>/...``: mean over ``cfg.twins`` seeds, each measured once and kept in ``cfg.cache_dir``.

    The twin shares everything with the measured network but its U-Net's weights: encoder, images, noise, probe. With
    several seeds the interval is a t-interval over them and ``/n`` their number; with one, the twin's own over photographs.
    A probe that predicts is compared with its twins prediction by prediction, too.

    Args:
        meta: of the measured network's run.
        probe: that was measured.
    """
    if any(str(each.get("_target_", "")).endswith("mitigations.Saved") for each in cfg.mitigation.values()):
        log.info("No random-weights twin: a saved mitigation belongs to the network it was fitted on.")
        return {}
    measured = [_twin(cfg, meta, number) for number in range(cfg.twins)]
    twins = [results for results, _ in measured]
    gains = probe.compare([predictions for _, predictions in measured]) if isinstance(probe, Predicts) and measured else {}
    return _merged(twins) | gains


def _merged(twins: list[dict[str, float]]) -> dict[str, float]:
    """A single twin's results, or the mean over several with an interval."""
    if len(twins) < 2:
        return {key: value for twin in twins for key, value in twin.items()}
    merged: dict[str, float] = {}
    for key in dict.fromkeys(key for twin in twins for key in twin if not key.endswith(("/ci_low", "/ci_high", "/n"))):
        values = np.array([twin[key] for twin in twins if key in twin])
        merged |= {key: float(values.mean()), f"{key}/n": len(values)}
        if len(values) > 1:
            half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
            merged |= {f"{key}/ci_low": float(values.mean() - half), f"{key}/ci_high": float(values.mean() + half)}
    return merged


def _twin(cfg: DictConfig, meta: dict[str, Any], number: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Results and predictions (none, where the probe keeps none) of one twin."""
    twin = OmegaConf.merge(
        cfg,
        {
            "backbone": {"weights": "random", "weights_seed": cfg.backbone.weights_seed + 1 + number},
            "run_dir": str(Path(cfg.run_dir) / f"random_weights_{number}"),
        },
    )
    assert isinstance(twin, DictConfig)
    processes = Processes.current()
    identity = digest([decisive(twin), {key: meta[key] for key in _DATA}, source_digest()])
    stored = Path(cfg.cache_dir).expanduser() / "twins" / f"{identity}.json"
    beside = stored.with_suffix(".parquet")
    predicts = "predictions" in dir(get_object(cfg.probe._target_))
    # all processes measure a twin, or none does, whatever each sees of the folder
    if processes.gathered(stored.is_file() and (beside.is_file() or not predicts))[0]:
        log.info("Random weights, seed %d: taken from %s", twin.backbone.weights_seed, stored)
        found = json.loads(stored.read_text()) if processes.rank == 0 else {}
        return found, read_predictions(beside) if predicts else {}
    log.info("Random weights, seed %d: measuring", twin.backbone.weights_seed)
    measurement = Measurement(twin)
    measurement.run()
    measurement.release()
    kept = {}
    for key, value in measurement.results.items():
        what, rest = key.split("/", 1)
        if what in WHAT:
            kept[f"{WHAT[what]}/{rest}"] = value
    predictions = measurement.probe.predictions() if isinstance(measurement.probe, Predicts) else {}
    if processes.rank == 0:
        _store(stored, kept, predictions)
    return kept, predictions


def _store(path: Path, results: dict[str, float], predictions: dict[str, np.ndarray]) -> None:
    """Keep what a twin gave; where that fails it is only measured again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if predictions:
            write_predictions(path.with_suffix(".parquet"), predictions)
        write_atomically(path, json.dumps(results))  # last: it says that the twin is complete
    except OSError as error:
        log.warning("The twin's results cannot be kept in %s (%s).", path.parent, error.strerror)

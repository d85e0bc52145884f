"""The random-weights null: the same probe on the same network before any training."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from scipy import stats

from runs.measure import Measurement
from runs.record import decisive, digest, source_digest, write_atomically

log = logging.getLogger(__name__)
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


def random_weights(cfg: DictConfig, meta: dict[str, Any]) -> dict[str, float]:
    """``random_weights/<layer>/...``: mean over ``cfg.twins`` seeds, each measured once and kept in ``cfg.cache_dir``.

    The twin shares everything with the measured network but its U-Net's weights: encoder, images, noise, probe. With
    several seeds the interval is a t-interval over them and ``/n`` their number; with one, the twin's own over photographs.

    Args:
        meta: of the measured network's run.
    """
    twins = [_twin(cfg, meta, number) for number in range(cfg.twins)]
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


def _twin(cfg: DictConfig, meta: dict[str, Any], number: int) -> dict[str, float]:
    twin = OmegaConf.merge(
        cfg,
        {
            "backbone": {"weights": "random", "weights_seed": cfg.backbone.weights_seed + 1 + number},
            "run_dir": str(Path(cfg.run_dir) / f"random_weights_{number}"),
        },
    )
    assert isinstance(twin, DictConfig)
    identity = digest([decisive(twin), {key: meta[key] for key in _DATA}, source_digest()])
    stored = Path(cfg.cache_dir).expanduser() / "twins" / f"{identity}.json"
    if stored.is_file():
        log.info("Random weights, seed %d: taken from %s", twin.backbone.weights_seed, stored)
        return json.loads(stored.read_text())
    log.info("Random weights, seed %d: measuring", twin.backbone.weights_seed)
    measurement = Measurement(twin)
    measurement.run()
    measurement.release()
    kept = {
        "random_weights" + key.removeprefix("test"): value
        for key, value in measurement.results.items()
        if key.startswith("test/")
    }
    _store(stored, kept)
    return kept


def _store(path: Path, results: dict[str, float]) -> None:
    """Keep a twin's results; where that fails they are only measured again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(results))
    except OSError as error:
        log.warning("The twin's results cannot be kept in %s (%s).", path.parent, error.strerror)

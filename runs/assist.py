"""What the process of another device does: it measures along, and leaves writing and speaking to the first."""

import sys

from omegaconf import DictConfig

from runs.measure import Measurement
from runs.nulls import random_weights
from tokens.errors import InputError


def assist(cfg: DictConfig, measurement: Measurement) -> None:
    """Encode, train and test with the first process, then every twin that is not kept yet."""
    try:
        measurement.prepare()
    except InputError:
        sys.exit(0)  # all processes end with the same sentence, and the first says it
    measurement.run()
    measurement.release()
    random_weights(cfg, measurement.meta)

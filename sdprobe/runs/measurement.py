"""Measurement: one probe on one network, from configuration to numbers, with time and peak memory."""

import gc
import logging
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from hydra.utils import instantiate
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from sdprobe.backbones import pool
from sdprobe.metrics.choice import check_photographs
from sdprobe.reports.run import spread
from sdprobe.runs import choice, sweep, workers
from sdprobe.runs.record import VERSION, config_hash, provenance
from sdprobe.tokens.kept import RANDOM, TRAINED, KeptTokens, Plan
from sdprobe.tokens.keys import at_level, base_of, finished, is_energy_control
from sdprobe.utilities.distributed import Processes
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.foreign import shown
from sdprobe.utilities.io import DamagedFile, read_state, write_state

log = logging.getLogger(__name__)
PROCESS = Path("/proc/self")
MEGABYTES = 10  # of tokens that are kept beside the numbers, at most
# what Lightning and torch raise for a state of other names, shapes and types
UNFIT = (LookupError, ValueError, TypeError, AttributeError, RuntimeError, MisconfigurationException)


class Bound(lightning.Callback):
    """Binds checkpoints to the settings of the run and to :data:`~.record.VERSION`. Others are not resumed.

    A resumed run also leaves out which files its ModelCheckpoint wrote: Lightning would delete the file of such a path.

    Args:
        settings: hash of the settings that can change a number.
    """

    def __init__(self, settings: str) -> None:
        self.settings = settings
        self.restored = False

    def on_sanity_check_start(self, trainer: Any, module: Any) -> None:
        """Everything has been taken from the checkpoint."""
        self.restored = True

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """The same, for a run without a sanity check."""
        self.restored = True

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        """Store both."""
        checkpoint |= {"numbers_version": VERSION, "config_hash": self.settings}

    def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        """Raises InputError if one differs. A checkpoint without a version is of version 1; older ones have no hash."""
        for name in [name for name in checkpoint.get("callbacks", ()) if str(name).startswith("ModelCheckpoint")]:
            del checkpoint["callbacks"][name]
        stored = shown(checkpoint.get("numbers_version", 1))
        if stored != str(VERSION):
            raise InputError(
                f"Expected a checkpoint of version {VERSION} of the numbers to continue, but got one of version {stored}. "
                "Start a new run in another folder."
            )
        if checkpoint.get("config_hash", self.settings) != self.settings:
            raise InputError(
                "Expected a checkpoint of this run to continue, but got one of a run with other settings. "
                "If .hydra/overrides.yaml has the settings of this run, delete checkpoints/last.ckpt to train from the start."
            )


class Checkpoints(TorchCheckpointIO):
    """Lightning's checkpoints as files of :mod:`sdprobe.utilities.io`. ``loaded``: whether one has been read."""

    loaded = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write one."""
        write_state(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read one, on the CPU and without running code."""
        self.loaded = True
        return read_state(Path(path))


class Measurement:
    """Builds data, probe and trainer from a configuration; :meth:`run` fits and tests.

    ``is_baseline``: whether the network is one with random weights that another is compared with.

    ``results`` and ``meta`` can be read at any time, also after an interruption.
    """

    def __init__(self, cfg: DictConfig, is_baseline: bool = False) -> None:
        choice.check(cfg)
        lightning.seed_everything(cfg.seed, verbose=False)
        workers.set_device(cfg)
        forget_peak()
        self.cfg, self.is_baseline = cfg, is_baseline
        cfg = cfg.copy()  # instantiate resolves interpolations in place, which would change the hash of the settings
        with pool.shared():  # jobs of one process, and the random-weights baseline, share what they load
            self.data = instantiate(cfg.datamodule)
        self.probe = instantiate(cfg.probe)(shapes=self.data.shapes, photos=self.data.photos, data=self.data)
        self.probe.kept = self._kept_tokens()
        device = self.data.backbone.device
        self._checkpoints, self._bound = Checkpoints(), Bound(config_hash(self.cfg))
        self.trainer: lightning.Trainer = instantiate(cfg.trainer)(
            accelerator=device.type,
            logger=False,
            default_root_dir=cfg.run_dir,
            plugins=[self._checkpoints],
            **workers.options(cfg, device),
        )
        self.trainer.callbacks.append(self._bound)
        self.seconds: dict[str, float] = {}
        self.complete = False
        self.choices: list[dict[str, Any]] = []
        self._chosen_by: dict[str, float] = {}
        self.bound: dict[str, float] = {}
        if choice.coordinates(cfg):
            if not self.probe.score:
                raise InputError(
                    f"Expected a probe with a score to maximise, but probe={self.probe.kind} has none. Use probe=position, "
                    "correspondence, depth or content, or leave out choose=."
                )
            choice.check_cells(self.probe, choice.coordinates(cfg))
            check_photographs(self.data.validate_choice())
            self.bound = choice.bounded(cfg, self.data)  # before anything is measured
        self._data: list[dict[str, Any]] = []

    @property
    def _shapes(self) -> dict[str, tuple[int, int, int]]:
        """Layer → (C, h, w), without controls of mitigations."""
        return {layer: self.data.shapes[layer] for layer in self.data.layers}

    @property
    def steps(self) -> list[str]:
        """What :meth:`run` does, as :mod:`sdprobe.utilities.progress` numbers it."""
        fitting = [self.probe.fitting] if self.probe.fitting else []
        choosing = ["choose"] if choice.coordinates(self.cfg) else []
        return [*self.data.steps(self.probe.automatic_optimization), *fitting, *choosing, "test"]

    def summary(self) -> str:
        """Return a line on what is measured: device, precision, layers and images."""
        level, *others = levels if isinstance(levels := self.data.timestep, list) else [levels]
        shapes = {at_level(name, level): sides for name, (_, *sides) in self._shapes.items()}  # the same at every level
        layers = [f"{layer} ({height} × {width} tokens)" for layer, (height, width) in shapes.items() if layer]
        named = ", ".join(layers) if len(layers) <= 3 else f"{layers[0]} to {layers[-1]}"
        backbone = self.data.backbone.describe()
        return (
            f"Device {backbone['device']}, precision {backbone['precision']}. {self.data.counts()}. "
            f"{len(layers)} {'layer' if len(layers) == 1 else 'layers'}: {named}"
            f"{f', at timesteps {level}' if others else ''}{''.join(f', {other}' for other in others)}."
        )

    def prepare(self) -> None:
        """Start the processes of the other devices, and encode the images that the latent cache lacks."""
        workers.launch(self.trainer)
        self.data.prepare_data()

    def run(self) -> None:
        """Encode, train and test, in all processes. A resumed run continues from the last checkpoint of its folder."""
        self.prepare()
        checkpoint = self._checkpoint()
        started = time.perf_counter()
        with self._restoring(checkpoint):
            self.trainer.fit(self.probe, datamodule=self.data, ckpt_path=checkpoint, weights_only=True)
        trained = time.perf_counter()
        if self.probe.not_converged:
            log.warning(
                "%d of %d layers%s had not reached their plateau after trainer.max_epochs=%d. More epochs may help.",
                len(self.probe.not_converged), len(self.data.layers),
                " with random weights" if self.cfg.backbone.weights == "random" else "", self.trainer.max_epochs,
            )  # fmt: skip
        self.seconds["train"] = trained - started - self.data.seconds.get("extract", 0.0)
        if choice.coordinates(self.cfg):
            self._chosen_by, self.choices = choice.measure(self)
            self.seconds["choose"] = time.perf_counter() - trained
            trained = time.perf_counter()
        self.trainer.test(self.probe, datamodule=self.data, verbose=False)
        self.seconds["test"] = time.perf_counter() - trained
        self._data = Processes.current().all_gather(self.data.describe())
        self.complete = True

    def _checkpoint(self) -> Path | None:
        """The checkpoint to continue from; None without one, or with a damaged one: training again gives the same numbers."""
        path = Path(self.cfg.run_dir) / "checkpoints" / "last.ckpt"
        if not self.cfg.resume or not path.exists():
            return None
        try:
            stored = read_state(path)
        except DamagedFile as error:
            log.warning("%s is damaged (%s). Training starts again.", path, str(error.args[1]).splitlines()[0])
            return None
        if "config_hash" not in stored:
            log.warning("An older version wrote %s. Whether it is of the same settings is not checked.", path)
        return path

    @contextmanager
    def _restoring(self, checkpoint: Path | None) -> Iterator[None]:
        """Raises InputError if the state in a checkpoint does not fit this run. Other errors of the block pass."""
        try:
            yield
        except UNFIT as error:
            if isinstance(error, InputError) or not self._checkpoints.loaded or self._bound.restored:
                raise
            raise InputError(
                f"Expected {checkpoint} to hold the state of this run, but it cannot be restored ({type(error).__name__}). "
                "Delete it to train from the start."
            ) from error

    def release(self) -> None:
        """Free device memory for the next network."""
        self.data.release()
        gc.collect()  # trainer, probe and data refer to each other
        torch.cuda.empty_cache()

    def maps(self) -> dict[str, np.ndarray]:
        """The probe's maps by name, and ``pictures`` (n, 256, 256, 3) of the images that it chose to draw, if any."""
        maps: dict[str, np.ndarray] = {
            name: table for name, table in self.probe.maps().items() if not is_energy_control(name.partition("/")[0])
        }
        if "pictured" in maps:
            maps["pictures"] = self._pictures(maps["pictured"])
        return maps

    def tokens(self) -> dict[str, np.ndarray]:
        """Tokens for the explorer, if the probe kept any, see :class:`~sdprobe.tokens.kept.KeptTokens`.

        Also ``names`` (n,) of the images, ``pictures`` unless ``report.pictures`` is false, ``keypoints/…`` if images share
        some, and ``left_out``, in words.
        """
        tokens = self.probe.tokens
        if not tokens or self.probe.kept is None:
            return {}
        indices = tokens["images"]
        tokens["names"] = np.array([self.data.images.name(int(index)) for index in indices])
        tokens["left_out"] = np.array([*self.probe.kept.plan.left_out, *self._left_out], dtype=str)
        if OmegaConf.select(self.cfg, "report.pictures", default=True):
            tokens["pictures"] = self._pictures(indices)
        keypoints = self.probe.correspondences() if self._explores else {}
        return tokens | {f"keypoints/{name}": column for name, column in keypoints.items()}

    def _pictures(self, indices: np.ndarray) -> np.ndarray:
        shown = torch.stack([self.data.images[int(index)]["image"] for index in indices])
        small = torch.nn.functional.interpolate(shown, size=(256, 256), mode="area")
        pictures: np.ndarray = (small * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return pictures

    @property
    def _explores(self) -> bool:
        return bool(self.probe.kind == "explore")

    def _kept_tokens(self) -> KeptTokens | None:
        """What the probe keeps for the explorer; None for nothing.

        Probes that measure something else keep tokens of few layers of the measured network, and none in a sweep.
        """
        cfg, shapes = self.cfg, {name: shape for name, shape in self.data.shapes.items() if not is_energy_control(name)}
        self._left_out: list[str] = []
        megabytes = OmegaConf.select(cfg, "report.megabytes", default=MEGABYTES)
        if self._explores:
            networks = [TRAINED, *([RANDOM] if cfg.twins else [])]
            plan = Plan.of(shapes, len(self.data.split["test"]), megabytes, networks)
            return KeptTokens(plan, RANDOM if self.is_baseline else TRAINED)
        wanted = OmegaConf.select(cfg, "report.explorer", default=True) and not sweep.active() and not self.is_baseline
        if not (wanted and self.probe.explored):
            return None
        layers = list(dict.fromkeys(map(base_of, shapes)))
        chosen = spread(layers)
        if len(chosen) < len(layers):
            self._left_out.append(f"{len(layers) - len(chosen)} of {len(layers)} layers")
        self._left_out.append("random weights")
        shapes = {name: shape for name, shape in shapes.items() if base_of(name) in chosen}
        try:
            return KeptTokens(Plan.of(shapes, self.probe.explored, min(megabytes, MEGABYTES)))
        except InputError:  # not even one image fits
            return None

    @property
    def results(self) -> dict[str, float]:
        """Metrics by ``<condition>/<layer>/<metric>/<where>``."""
        return finished(self.probe.results) | self._chosen_by

    @property
    def meta(self) -> dict[str, Any]:
        """What is needed to repeat this run, and what it cost."""
        kept = {} if self.probe.kept is None else {"tokens": self.probe.seconds_kept}
        published = self.data.backbone.published_names([*map(base_of, self.data.layers)])
        published_names = {name: published[base_of(name)] for name in self.data.layers}
        return (
            provenance(self.cfg)
            | workers.merged(self._data or [self.data.describe()])
            | {
                "devices": self.trainer.world_size,
                "probe": self.probe.kind,
                "layers": list(self.data.layers),
                "published_names": published_names,
                "shapes": {layer: list(shape) for layer, shape in self._shapes.items()},
                "timestep": self.data.timestep,
                "noise_level": self.data.noise_level,
                "prompt": self.cfg.prompt,
                "train_steps": self.trainer.global_step,
                "before_plateau": list(self.probe.not_converged),
                **({"choices": self.choices} if self.choices else {}),
                "seconds": {name: round(value, 3) for name, value in (self.data.seconds | self.seconds | kept).items()},
                "peak_memory_gib": round(peak_memory(self.data.backbone.device) / 2**30, 3),
                "complete": self.complete,
            }
        )


def forget_peak() -> None:
    """Reset the peak memory, because one process may run several jobs of a sweep."""
    with suppress(OSError):  # not on every system, and not for every user
        (PROCESS / "clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes since :func:`forget_peak` or the start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (PROCESS / "status").is_file():  # getrusage may report the maximum of the parent process
        [line] = [line for line in (PROCESS / "status").read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

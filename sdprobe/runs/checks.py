"""Check settings against the signatures of constructors, before anything is built. Importing this imports torch."""

import os
import re

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from sdprobe.backbones.precision import choose_device
from sdprobe.runs import configuration
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.signatures import declared, fits, spoken

MOST = 10**6  # of epochs and steps between two lines


def check(cfg: DictConfig) -> None:
    """Check types and devices of a composed configuration (that of the first job of a sweep).

    Raises:
        InputError: a value of another type, or devices that the run cannot have.
    """
    try:
        check_types(cfg)
        check_devices(cfg, cfg.hydra.mode == RunMode.MULTIRUN)
    except InputError:
        raise
    except (OmegaConfBaseException, HydraException, ImportError, AttributeError, TypeError, ValueError):
        return  # a configuration that cannot be checked here is reported where it is used


def fill_size(cfg: DictConfig) -> None:
    """Replace ``images.size=null`` by the size that the checkpoint was made for: numbers, keys and records depend on it.

    Raises:
        InputError: the checkpoint cannot be found, or does not say.
    """
    if "size" in cfg.images and cfg.images.size is None:
        from sdprobe.backbones.loading import native_size  # seconds of import that wrong settings must not wait for

        cfg.images.size = native_size(cfg.backbone.path, cfg.backbone.revision, cfg.backbone.variant)


def fill_timestep(cfg: DictConfig) -> None:
    """Replace ``noise_level`` by the nearest timesteps of the checkpoint's schedule, and a list of one timestep by it.

    Raises:
        InputError: levels that the schedule has not, the checkpoint cannot be found, or ``timestep`` is given, too.
    """
    if cfg.noise_level is not None:
        configuration.check_levels(cfg, HydraConfig.get().overrides.task)
        from sdprobe.backbones.loading import schedule  # seconds of import that wrong settings must not wait for

        known = schedule(cfg.backbone.path, cfg.backbone.revision, cfg.backbone.variant)
        cfg.timestep = list(known.nearest(cfg.noise_level))
    if OmegaConf.is_list(cfg.timestep) and len(cfg.timestep) == 1:
        cfg.timestep = cfg.timestep[0]


def check_types(cfg: DictConfig) -> None:
    """Compare every setting with the type in the signature of its constructor, before anything is built.

    Raises:
        InputError: a value of another type, or a number out of range that no constructor checks.
    """
    nodes = {name: cfg[name] for name in ("images", "backbone", "datamodule", "probe")}
    for name, node in (nodes | {f"mitigation.{label}": mitigation for label, mitigation in cfg.mitigation.items()}).items():
        raw = OmegaConf.to_container(node, resolve=False)
        hints = declared(get_object(node._target_))
        if strange := [str(key) for key in node if not str(key).startswith("_") and hints and key not in hints]:
            raise InputError(
                f"Expected {name}={node._target_.rpartition('.')[2]} to have a setting '{strange[0]}', but it has none. "
                f"Choose another {name}=, or another cell of control=, which may set {name}, too."
            )
        for key, hint in hints.items():
            if key not in node or OmegaConf.is_missing(node, key) or "_target_" in str(raw[key]):  # type: ignore[index,call-overload]
                continue
            if raw[key] in ("${images}", "${backbone}"):  # type: ignore[index,call-overload]
                continue
            try:
                value = OmegaConf.to_container(node[key]) if OmegaConf.is_config(node[key]) else node[key]
            except InterpolationResolutionError:
                continue  # it refers to a value that only a run has, such as ${hydra:job.num}
            if value is None and key == "size" and cfg.images.get("size", 0) is None:
                continue  # fill_size comes later
            linked = re.fullmatch(r"\$\{(\w+)\}", str(raw[key]))  # type: ignore[index,call-overload]
            if not fits(value, hint):
                shown = linked.group(1) if linked else f"{name}.{key}"
                raise InputError(f"Expected {shown} to be {spoken(hint)}, but got {value!r}. Correct the value.")
    least = {"twins": 0, "trainer.max_epochs": 1, "trainer.num_sanity_val_steps": 0, "trainer.log_every_n_steps": 1}
    for key, low in least.items():
        value = OmegaConf.select(cfg, key)
        if not fits(value, int) or not low <= value <= MOST:
            bound = f"of at most {MOST}" if fits(value, int) and value > MOST else f"of at least {low}"
            raise InputError(f"Expected {key} to be an integer {bound}, but got {value!r}. Correct the value.")
    if not fits(cfg.activation_budget, float):
        raise InputError(f"Expected activation_budget to be a number, but got {cfg.activation_budget!r}. Correct the value.")


def check_devices(cfg: DictConfig, sweep: bool) -> None:
    """Check that the run can have the devices it asks for.

    Args:
        cfg: of the run.
        sweep: whether the run is a job of a multirun.

    Raises:
        InputError: not a valid number of devices, more than there are, or more than one in a sweep.
    """
    count = cfg.trainer.get("devices", 1)
    if not fits(count, int) or count < 1:
        raise InputError(f"Expected trainer.devices to be an integer of at least 1, but got {count!r}. Use trainer.devices=2.")
    if count == 1:
        return
    if sweep:
        raise InputError(
            f"Expected trainer.devices to be 1 in a sweep, whose jobs have one device each, but got {count}. "
            "Leave out trainer=ddp."
        )
    if str(cfg.device).startswith("cuda:"):
        raise InputError(
            f"Expected device to be auto, cpu or cuda for several devices, but got '{cfg.device}'. Use device=cuda."
        )
    gpus = choose_device(str(cfg.device)).type == "cuda"
    there, unit = (torch.cuda.device_count(), "GPUs") if gpus else (os.cpu_count() or 1, "processor cores")
    if count > there:
        raise InputError(f"Expected trainer.devices to be at most {there}, the number of {unit}, but got {count}. Lower it.")

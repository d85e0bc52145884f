"""Trackers: wandb, online if you are logged in, else offline, and TensorBoard. Their errors never stop a run."""

import logging
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, ListConfig, OmegaConf

from sdprobe.reports.explorer import PAGE
from sdprobe.reports.run import Run
from sdprobe.reports.tracked import COLUMNS, DEPTH, NOISE, headline, layer_rows, long_table, noise_rows
from sdprobe.runs import sweep
from sdprobe.tokens.keys import CONDITIONS, Key
from sdprobe.utilities import expect
from sdprobe.utilities.io import write_file
from sdprobe.utilities.pictures import opened

log = logging.getLogger(__name__)
# longest wait for a server before the run continues offline, in seconds
PATIENCE = 20
# longest wait for uploads at a run's end, in seconds; what is not uploaded stays on disk for `wandb sync`
UPLOAD = 120
MODES = ("online", "offline", "disabled", "shared")
# axis of each set of curves; no curve has an entry in the summary, which is written at the end
STEP = "trainer/global_step"
AXES = {
    "train/*": STEP, "val/*": STEP, "layers/*": DEPTH, "mitigations/*": DEPTH, "layers_t*": DEPTH, "mitigations_t*": DEPTH,
    "noise/*": NOISE,
}  # fmt: skip
HIDDEN = (STEP, "epoch", "part", DEPTH, NOISE)
# steps that every further part of a run that was resumed offline begins at, so that no two parts share one
PART = 1_000_000
FEW = 3  # mitigations that a name lists
LARGEST_PANEL = 20e6  # bytes of a page that wandb shows; a larger one becomes a file of the run
PER_LAYER = ("layers", "published_names", "shapes", "mitigations", "before_plateau")  # of meta; in metrics.json


@dataclass(frozen=True)
class Identity:
    """Name, group, tags and configuration of a run. ``config`` has the settings by which runs are filtered, and all settings
    below ``settings``."""

    name: str
    group: str
    tags: tuple[str, ...]
    config: Mapping[str, Any]


class FaultTolerantWandbLogger(WandbLogger):
    """A wandb logger that logs a warning where wandb fails, for example because a server cannot be reached."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send the metrics of a step, if wandb still answers; of several layers, their mean."""
        if set(found := condensed(metrics)) - {"epoch"}:
            with forgiving():
                super().log_metrics(found, step)


class FaultTolerantTensorBoardLogger(TensorBoardLogger):
    """A TensorBoard logger that logs a warning where its files cannot be written."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write the metrics of a step; of several layers, their mean."""
        if set(found := condensed(metrics)) - {"epoch"}:
            with forgiving():
                super().log_metrics(found, step)


def tensorboard_logger(folder: str) -> TensorBoardLogger:
    """A Lightning logger for TensorBoard. ``logger=tensorboard`` selects it; it needs the extra of that name.

    Args:
        folder: the run folder; TensorBoard's files go to ``<folder>/tensorboard``.

    Returns:
        the logger.

    Example:
        >>> from importlib.util import find_spec
        >>> from sdprobe.runs.tracking import tensorboard_logger
        >>> made = tensorboard_logger("run") if find_spec("tensorboard") else None
        >>> made is None or made.log_dir.endswith("tensorboard/")
        True
    """
    return FaultTolerantTensorBoardLogger(folder, name="tensorboard", version="", default_hp_metric=False)


def condensed(metrics: Mapping[str, float]) -> dict[str, float]:
    """Training metrics and, of validation, the mean over layers. Test metrics are left out; :func:`log_results` sends them.

    >>> condensed({"epoch": 1, "val/mid/loss/all": 1.0, "val/up_0/loss/all": 2.0, "test/mid/rmse/all": 0.5})
    {'epoch': 1, 'val/loss': 1.5}
    """
    plain: dict[str, float] = {}
    layers: dict[str, list[float]] = {}
    for text, value in metrics.items():
        condition = text.partition("/")[0]
        if condition == "val":
            layers.setdefault(f"val/{Key.parse(text).metric}", []).append(float(value))
        elif condition not in CONDITIONS:
            plain[text] = value
    return plain | {name: sum(values) / len(values) for name, values in layers.items()}


@contextmanager
def forgiving() -> Iterator[None]:
    """Turn any exception of a tracker into a warning. They have no common base class, and results do not need a tracker."""
    try:
        yield
    except Exception as error:
        log.warning("Tracking failed (%s). The run continues without it.", _line(error))


def start(cfg: DictConfig) -> Logger | None:
    """The logger of a run; None with ``logger=none``, or if wandb cannot write its files."""
    if not cfg.logger:
        return None
    made = instantiate(cfg.logger)
    return made(identity(cfg)) if isinstance(made, partial) else made


def identity(cfg: DictConfig) -> Identity:
    """Name, group, tags and configuration of a run, from its settings and Hydra's choices."""
    choices = HydraConfig.get().runtime.choices
    weights = "" if cfg.backbone.weights == "stored" else f" {cfg.backbone.weights}"
    labels = list(cfg.mitigation)
    levels = list(cfg.timestep) if OmegaConf.is_list(cfg.timestep) else [cfg.timestep]
    plain = {
        "probe": choices["probe"],
        "backbone": _named(choices["backbone"], cfg.backbone, "local") + weights,
        "block": "+".join(map(str, _listed(cfg.block))),
        "timestep": levels if len(levels) > 1 else levels[0],
        "mitigation": _mitigation(labels, bool(cfg.datamodule.get("compare"))),
        "seed": cfg.seed,
        "images": _named(choices["images"], cfg.images, "folder"),
        "protocol": choices["protocol"],
        "control": cfg.control,
        "sweep": sweep.name(),
    }
    told = (plain["mitigation"] if labels else None, plain["control"], f"t{'+'.join(map(str, levels))}")
    tags = {name: [plain[name]] for name in ("probe", "backbone", "images")}
    tags |= {
        "timestep": levels,
        "layer": _listed(cfg.block),
        "mitigation": labels or ["none"],
        "sweep": _listed(plain["sweep"]),
    }
    return Identity(
        " · ".join(filter(None, (plain["probe"], plain["backbone"], plain["block"], *told))),
        " · ".join(plain[name] for name in ("probe", "images", "protocol")),
        tuple(f"{name}={value}" for name, values in tags.items() for value in values),
        plain | {"settings": OmegaConf.to_container(cfg, resolve=True)},
    )


def _named(choice: str, node: DictConfig, unspecific: str) -> str:
    """A choice. The choice ``unspecific`` is followed by the last part of its path."""
    place = node.get("path") or node.get("root")
    return f"{choice} {Path(str(place)).name}" if choice == unspecific and place else choice


def _mitigation(labels: Sequence[str], compared: bool) -> str:
    if not labels:
        return "none"
    listed = len(labels) <= FEW
    return ("+" if listed else f"{len(labels)} mitigations").join(labels if listed else ["", ""]) + " compared" * compared


def wandb_logger(
    run: Identity,
    folder: str,
    project: str | None = "sdprobe",
    entity: str | None = None,
    group: str | None = None,
    name: str | None = None,
    job_type: str | None = None,
    notes: str | None = None,
    tags: Sequence[str] = (),
    resume: str | None = None,
) -> WandbLogger | None:
    """A Lightning logger with a wandb run that has started. ``logger=wandb`` selects it.

    The run is online if ``WANDB_API_KEY`` is set or ``wandb login`` was done, else offline. The environment variable
    ``WANDB_MODE`` overrides this. If the server does not answer within 20 seconds, the run is logged offline.

    Args:
        run: name, group, tags and configuration.
        folder: the run folder; wandb writes into ``<folder>/wandb``, and the id of the run is in ``<folder>/wandb/run_id``.
        project: name of the wandb project.
        entity: user or team of the project; None for your own.
        group: replaces that of ``run``; cut after 128 characters.
        name: replaces that of ``run``; cut after 128 characters.
        job_type: job type of the run.
        notes: notes on the run.
        tags: added to those of ``run``; each is cut after 64 characters.
        resume: if not None, the run continues under the id that its folder has.

    Returns:
        the logger; None if wandb cannot write its files.

    Raises:
        InputError: ``WANDB_MODE`` has an unknown value.

    Example:
        >>> import tempfile
        >>> from unittest.mock import patch
        >>> from sdprobe.runs.tracking import Identity, wandb_logger
        >>> run = Identity("position · demo · mid · t50", "position · scenes · default", ("layer=mid",), {"probe": "position"})
        >>> with tempfile.TemporaryDirectory() as folder, patch.dict("os.environ", WANDB_MODE="disabled"):
        ...     logger = wandb_logger(run, folder)
        ...     logger.experiment.finish()
        >>> type(logger).__name__
        'FaultTolerantWandbLogger'
    """
    mode = os.environ.get("WANDB_MODE")
    if mode:
        expect.one_of("WANDB_MODE", mode, MODES, "Unset it, or use offline.")
    place = Path(folder) / "wandb"
    try:
        number, parts = _id(place, bool(resume))
        options: dict[str, Any] = {
            "project": project,
            "entity": entity,
            "name": (name or run.name)[:128],
            "group": (group or run.group)[:128],
            "job_type": job_type,
            "notes": notes,
            "tags": list(dict.fromkeys(str(tag)[:64] for tag in (*run.tags, *_listed(tags)))),
            "config": dict(run.config),
            "dir": folder,
            "id": number,
            "resume": "allow",
            "reinit": "finish_previous",
            "settings": _settings(),
        }
        begun = _begin(mode, options)
    except Exception as error:  # a full disk, a folder that cannot be written to
        log.warning("wandb cannot start a run (%s). The run is not tracked.", _line(error))
        return None
    with forgiving():
        for axis in HIDDEN:
            begun.define_metric(axis, hidden=True, summary="none")
        for curves, axis in AXES.items():
            begun.define_metric(curves, step_metric=axis, summary="none")
        begun.define_metric("figures/*", summary="none")
        if begun.offline and parts and not begun.disabled:
            begun.log({"part": parts}, step=parts * PART)
        if not (begun.offline or begun.disabled):
            log.info("Tracked at %s", begun.url)
    return FaultTolerantWandbLogger(experiment=begun)


def _settings() -> wandb.Settings:
    """wandb's settings; older versions of it lack some."""
    wanted: dict[str, Any] = {
        "init_timeout": PATIENCE,
        "finish_timeout": UPLOAD,
        "silent": True,
        "console": "off",  # what a terminal shows is mostly frames of progress bars
        "capture_loggers": {"root": "INFO"},  # the run's log has lines instead
        "x_transaction_log_flush_interval": 1.0,  # seconds; the configuration is on disk when a run is killed early
    }
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in wandb.Settings.model_fields})


def _id(place: Path, resumed: bool) -> tuple[str, int]:
    """(id of a run, how many parts of it were written offline before): the folder's own for a run that is resumed."""
    file = place / "run_id"
    number = file.read_text(errors="replace").strip() if resumed and file.is_file() else ""
    if re.fullmatch("[0-9a-f]{8}", number):  # not a damaged one
        return number, len(list(place.glob(f"offline-run-*-{number}")))
    number = secrets.token_hex(4)
    place.mkdir(parents=True, exist_ok=True)
    write_file(file, number)
    return number, 0


def _begin(mode: str | None, options: dict[str, Any]) -> Any:
    """wandb's run, offline where it cannot be online."""
    try:
        mode = mode or ("online" if wandb.login(prompt=False) else "offline")
        return wandb.init(mode=mode, **options)  # type: ignore[arg-type]
    except Exception as error:  # no network, a refused key, an address that is none, a server that does not answer
        if mode == "offline":
            raise
        log.warning("wandb cannot be used online (%s). The run is logged offline.", _line(error))
        return wandb.init(mode="offline", **options)


def _line(error: Exception) -> str:
    """The first line of what went wrong."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".removesuffix(": ")


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, list | tuple | ListConfig) else [values] if values else []


def log_results(logger: Logger | None, run: Run, network: Sequence[str], figures: Sequence[Path]) -> None:
    """Send rows over layers, summary, table, figures and provenance of a finished run to wandb or TensorBoard.

    Args:
        logger: the logger of the run; others are ignored.
        run: the finished run.
        network: all layers of the network, in execution order.
        figures: PNG files.
    """
    with forgiving():
        if isinstance(logger, WandbLogger):
            _to_wandb(logger.experiment, run, network, figures)
        elif isinstance(logger, TensorBoardLogger):
            _to_tensorboard(logger, run, network, figures)


def _to_wandb(begun: Any, run: Run, network: Sequence[str], figures: Sequence[Path]) -> None:
    provenance = {name: value for name, value in run.meta.items() if name not in PER_LAYER}
    begun.config.update({"provenance": provenance}, allow_val_change=True)
    for row in [*layer_rows(run, network), *noise_rows(run)]:
        begun.log(row)
    pictures = {f"figures/{figure.stem}": wandb.Image(str(figure)) for figure in figures}
    begun.log({"results": wandb.Table(columns=list(COLUMNS), data=long_table(run)), **pictures})
    begun.summary.update(headline(run, network))
    _show_page(begun, run.folder / PAGE)


def _show_page(begun: Any, page: Path) -> None:
    """Send the explorer's page, if the run wrote one."""
    if not page.is_file():
        return
    if page.stat().st_size > LARGEST_PANEL:
        begun.save(str(page), base_path=str(page.parent), policy="now")
    else:
        begun.log({"explorer": wandb.Html(str(page), inject=False)})  # wandb's style would have to come from its server


def _to_tensorboard(logger: TensorBoardLogger, run: Run, network: Sequence[str], figures: Sequence[Path]) -> None:
    """TensorBoard's steps are integers: the index of the layer, or the timestep over noise levels. Text is left out."""
    for row in layer_rows(run, network):
        numbers = {name: value for name, value in row.items() if not isinstance(value, str)}
        logger.log_metrics(numbers, step=row["layers/index"])
    for row in noise_rows(run):
        logger.log_metrics(row, step=row[NOISE])
    for figure in figures:
        with opened(figure) as picture:
            logger.experiment.add_image(figure.stem, np.asarray(picture.convert("RGB")), dataformats="HWC")


def finish(logger: Logger | None, exit_code: int = 0) -> None:
    """End a wandb run, so that the next job of a sweep can start its own. Log how to upload an offline run."""
    if isinstance(logger, WandbLogger):
        with forgiving():
            begun = logger.experiment
            begun.finish(exit_code=exit_code)
            if begun.offline and not begun.disabled and not sweep.active():
                log.info("Tracked offline; upload with: wandb sync '%s'", Path(begun.dir).parents[1])

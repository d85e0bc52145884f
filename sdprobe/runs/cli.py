"""The command line: ``resume=``, one-sentence messages for errors the user can fix, and quiet libraries."""

import errno
import gc
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from sdprobe.runs import adapting, configuration, console, folders, interrupts
from sdprobe.runs.arguments import as_overrides, command, quoted
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.foreign import shown

# the disk is full, protected or read-only, or a folder has the name of a file
WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR)
# warnings of libraries about their own internals, which occur in every run
_NOISE = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r".*`LightningModule.configure_optimizers` returned `None`",
    r"It is recommended to use `self\.log\(.*sync_dist=True\)`",  # logged values are already sums over processes
    r"`broadcast_buffers` is deprecated",
    r"The ``compute`` method of metric \w+ was called before the ``update``",  # a process may have no test images
    r"You are using `torch.load` with `weights_only=False`",
    r".*does not have many workers",
    r"Checkpoint directory .* exists and is not empty",  # that of a resumed run
    r"Total length of `\w+` across ranks is zero",
    r"\n'hydra/launcher/\w+' is validated against ConfigStore schema",  # our launcher files name every setting
    r"The number of training batches .* is smaller than the logging interval",
)


def is_rank_zero() -> bool:
    """Whether this process reports: the one the user began. Those Lightning begins have their number in LOCAL_RANK."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def say(text: str) -> None:
    """Print a line at once, to standard error as the log does."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def start(main: Callable[[], None]) -> None:
    """Run Hydra's entry point on checked arguments. Errors that a user can fix and Ctrl-C end with a sentence each."""
    silence_libraries()
    try:
        if is_rank_zero():  # worker processes get the arguments of the first process
            sys.argv[1:] = prepare(sys.argv[1:])
        if not gc.get_freeze_count():
            gc.freeze()  # modules stay; without them the collection after each network takes no time
        main()
    except InputError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        interrupts.say()
        sys.exit(interrupts.EXIT_CODE)


def prepare(words: Sequence[str]) -> list[str]:
    """Command-line words as overrides that Hydra takes, checked; says what was asked for. Help is printed and ends the process.

    Raises:
        InputError: the command cannot be used. Most reasons are found before torch is imported.
    """
    if any(word in ("--help", "-h") for word in words):
        from sdprobe.runs import help

        help.show(words)
        sys.exit()
    overrides = expanded(as_overrides(words))
    more, sentences = adapting.adapted(overrides)
    overrides += more
    overrides.sort(key=lambda word: word not in ("-m", "--multirun"))  # Hydra takes them at the ends only
    cfg = configuration.check(overrides)
    if cfg is not None:
        configuration.check_given(cfg)
        configuration.check_folders(cfg)
        for sentence in sentences:
            say(sentence)
        say(asked_for(cfg))
        from sdprobe.runs import checks  # imports torch: from here on seconds pass

        checks.check(cfg)
    return overrides


def expanded(arguments: list[str]) -> list[str]:
    """Command-line arguments with ``resume=FOLDER`` replaced by the overrides that FOLDER was started with.

    Raises:
        InputError: FOLDER is no run folder or its overrides do more than a run's, or there are others besides ``resume`` and
            ``cache_dir``.
    """
    given = [argument for argument in arguments if argument.startswith("resume=")]
    value = OverridesParser.create().parse_override(given[-1]).value() if given else None
    if value is None:
        return arguments
    if not value:
        raise InputError("Expected resume to be a run folder, but got nothing. Use resume=FOLDER, or leave it out.")
    folder = Path(str(value))
    cache = [argument for argument in arguments if argument.startswith("cache_dir=")]
    if others := [argument for argument in arguments if argument not in given and argument not in cache]:
        settings = {text.partition("=")[0]: text for text in (*folders.resumed_overrides(folder, cache), *others)}
        raise InputError(
            f"Expected resume={folder} alone, but got {' '.join(others)}, too. A resumed run keeps its settings. "
            f"Start a new run for others: python train.py {shown(command(settings.values()), longest=4000)}"
        )
    # without mode RUN, a job of a preset or an experiment would start the whole sweep again
    place = quoted(str(folder))
    return [*folders.resumed_overrides(folder, cache), f"resume={place}", f"hydra.run.dir={place}", "hydra.mode=RUN"]


def asked_for(cfg: DictConfig) -> str:
    """A line on a composed configuration: what a run, or the first job of a sweep, will measure.

    >>> asked_for(configuration.composed(["block=[mid,up_1]"]))
    'Probe position, backbone demo, block mid and up_1, timestep 50, images scenes.'
    >>> asked_for(configuration.composed(["mitigation=[standardize,leace]"]))
    'Probe position, backbone demo, block mid, timestep 50, images scenes, mitigation standardize and leace.'
    """
    choices = cfg.hydra.runtime.choices
    level = "timestep" if cfg.noise_level is None else "noise_level"
    names = {"probe": choices.probe, "backbone": cfg.backbone.path}
    for name in ("block", level):
        names[name.replace("_", " ")] = " and ".join(map(str, cfg[name])) if OmegaConf.is_list(cfg[name]) else cfg[name]
    names |= {"images": choices.images, "mitigation": choices.get("mitigation") or " and ".join(cfg.mitigation)}
    text = ", ".join(f"{name} {value}" for name, value in names.items() if value != "none")
    return f"{'A sweep; its first job: ' if cfg.hydra.mode == RunMode.MULTIRUN else ''}{text[0].upper()}{text[1:]}."


def explained(error: OmegaConfBaseException) -> str:
    """One sentence for a configuration error that occurs only when a value is used."""
    if isinstance(error, MissingMandatoryValue):
        # images and backbone are read through datamodule, but users set them by their own names
        return configuration.missing(str(error.full_key).removeprefix("datamodule."))
    reason = str(error).strip().splitlines()[0].rstrip(".")
    return f"Expected a usable value for {error.full_key or 'the configuration'}, but got an error: {reason}."


@contextmanager
def ended_by_a_sentence() -> Iterator[None]:
    """End the process with the sentence of :class:`UserError` alone, without the lines that Hydra prints around it."""
    try:
        with user_errors():
            yield
    except UserError as error:
        sys.exit(str(error))


class UserError(CompactHydraException):
    """A message for the user. Hydra prints it without a traceback and exits with code 1."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Raise :class:`UserError` for wrong input, wrong configuration, and locations that cannot be written to."""
    try:
        yield
    except InputError as error:
        raise UserError(str(error)) from error
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise UserError(str(cause)) from error
    except OmegaConfBaseException as error:
        raise UserError(explained(error)) from None  # Hydra would print the cause too
    except OSError as error:
        if error.errno not in WRITING:
            raise
        path = error.filename or "the run folder"
        raise UserError(
            f"Expected to write to {path}, but got '{error.strerror}'. Free some space, or set hydra.run.dir and cache_dir."
        ) from error


def silence_libraries() -> None:
    """Let warnings of libraries pass only, except for those above."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(console.wanted)
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.rank_zero",
        "lightning.fabric.utilities.distributed",
        "lightning.pytorch.accelerators.cuda",
        "diffusers",
    ):
        logging.getLogger(name).setLevel(logging.ERROR if name == "diffusers" else logging.WARNING)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    warnings.formatwarning = lambda message, *_: f"Warning: {message}\n"

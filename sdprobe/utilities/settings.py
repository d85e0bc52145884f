"""Allowed values of settings: one table for the command line, which checks before anything is built, and for constructors.

A section is a configuration group, one choice of a group, or a mitigation. Types are those of the constructors.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from sdprobe.utilities import expect

WEIGHTS = ("stored", "random", "shuffled")
NOISES = ("independent", "shared", "rolled", "none")
PADDINGS = ("zeros", "replicate", "reflect", "circular")
POSITIONS = ("stored", "zero", "permuted", "shifted")
TEXTS = ("encoded", "none")
BASES = ("additive", "onehot", "cosine")
RESIZES = ("pad", "replicate", "squash")
COARSEST = 64  # pixels per token of Stable Diffusion's coarsest grid
Rule = Callable[[str, Any], object]


def target_name(target: str) -> str:
    """A ``_target_`` without the modules that it lies in.

    >>> [target_name(target) for target in ("a.b.Standardize", "a.FrozenSD.from_pretrained", "a.function")]
    ['Standardize', 'FrozenSD.from_pretrained', 'function']
    """
    parts = target.split(".")
    classes = (number for number, part in enumerate(parts) if part[:1].isupper())
    return ".".join(parts[next(classes, -1) :])


def _one_of(*options: str) -> Rule:
    return partial(expect.one_of, options=options)


def _at_least(low: float) -> Rule:
    return partial(expect.at_least, low=low)


def _between(low: float, high: float) -> Rule:
    return partial(expect.between, low=low, high=high)


def _count(low: int, high: int, fix: str = "") -> Rule:
    return partial(expect.count, low=low, high=high, fix=fix)


def _device(name: str, value: object) -> None:
    if not re.fullmatch(r"auto|(cpu|cuda)(:\d+)?", str(value)):
        expect.one_of(name, str(value), ("auto", "cpu", "cuda"))


_MULTIPLE = partial(expect.multiple, step=COARSEST)
SEEDS = (0, 2**32 - 1)  # what random number generators take
_SEED = _count(*SEEDS)

# with null the class chooses, or there is none
OPTIONAL = {
    "limit", "cosines", "rank", "control", "variant", "pairs_per_category", "noise_level", "choose",
    "position_run", "position_bound", "where",
}  # fmt: skip
CHOSEN = ("layer", "timestep", "mitigation")
_POSITION_MEAN: dict[str, Rule] = {
    "basis": _one_of(*BASES), "gamma": _between(0, 1), "cosines": _count(1, 10**4), "ridge": _at_least(0),
}  # fmt: skip
_NAME = partial(expect.matching, pattern=r"[\w.-]+", meaning="letters, digits, dots and dashes")
_POSITION: dict[str, Rule] = {"head": _one_of("classification", "regression")}

SETTINGS: dict[str, dict[str, Rule]] = {
    "": {
        "activation_budget": _at_least(0), "timestep": expect.ascending(partial(expect.whole, low=0, high=999)),
        "noise_level": expect.ascending(_between(0, 1)), "seed": _SEED,
        "twins": _count(0, 1000), "device": _device, "control": expect.text,
        "choose": expect.each(partial(expect.one_of, options=CHOSEN, fix="Write choose=layer,timestep.")),
        "position_bound": _between(0, 1), "position_run": expect.text,
    },
    "report": {"format": _one_of("png", "pdf"), "megabytes": _between(1, 1000)},
    "logger": {"project": partial(expect.without, characters="/\\#?%:", longest=128)},
    "images": {
        "size": _MULTIPLE, "limit": _count(1, 10**7, "Use null for all."), "crops": _count(1, 1000), "seed": _SEED,
        "pairs_per_category": _count(1, 10**7),
        "on_error": _one_of("raise", "skip"), "photograph": _one_of("file", "folder"),
        "depth_per_metre": expect.positive, "resize": _one_of(*RESIZES), "keypoints": _one_of("pair", "image"),
    },
    "backbone": {
        "weights": _one_of(*WEIGHTS), "weights_seed": _SEED, "variant": _NAME, "noise": _one_of(*NOISES),
        "vae_input": _one_of("symmetric", "unit"), "posterior": _one_of("mode", "sample"), "padding": _one_of(*PADDINGS),
        "position": _one_of(*POSITIONS), "text": _one_of(*TEXTS),
    },
    "datamodule": {
        "batch_size": _count(1, 4096), "num_workers": _count(0, 64), "sampling": _one_of("stratified", "all"),
        "token_batch": _count(1, 10**6), "mixing_images": _count(1, 10**6), "repeats": _count(0, 10**4),
        "margin": _count(1, expect.LARGEST), "shift": _count(1, expect.LARGEST), "pair_batch": _count(1, 10**6),
        "background": partial(expect.whole, low=1, high=64), "shown": _count(1, 16), "splits": _one_of("default", "loos2025"),
    },
    "probe": {
        "patience": _count(1, 10**6), "min_steps": _count(0, 10**9), "learning_rate": expect.positive,
        "pictured": _count(0, 10**4), "dimensions": _count(1, 10**6), "temperature": expect.positive,
        "solver": _one_of("adam", "closed_form"),
    },
    "probe=position": _POSITION,
    "probe=controls": _POSITION,
    "probe=study": _POSITION,
    "probe=correspondence": {"head": _one_of("linear", "none")},
    "canvas": {"margin": _MULTIPLE},
    "channel_discard": {"ratio": _at_least(1)},
    "empty_image": {"draws": _count(1, 10**6)},
    "leace": {"columns": _one_of("auto", "additive", "cosine"), "tolerance": expect.positive, "cosines": _count(1, 10**4)},
    "outlier_tokens": {"threshold": expect.positive, "mode": _one_of("project", "inpaint", "mask", "clip")},
    "padding_swap": {"mode": _one_of(*PADDINGS[1:]), "where": expect.text},
    "pca_drop": {"rank": _count(1, 10**6)},
    "position_mean": _POSITION_MEAN,
    "shuffled_position": _POSITION_MEAN | {"seed": _SEED},
    "random_rank": {"rank": _count(1, 10**6), "seed": _SEED},
    "shift_anova": {"larger": _count(1, expect.LARGEST), "step": _count(1, expect.LARGEST), "images": _count(1, 10**7)},
    "shift_flip_noise": {"shift": _MULTIPLE, "views": partial(expect.whole, low=2, high=18)},
    "standardize": {"shrinkage": expect.positive, "mode": _one_of("centre", "zscore", "zca")},
}  # fmt: skip


def rules(section: str) -> dict[str, Rule]:
    """Name → rule. A choice of a group, such as ``probe=position``, also has the rules of its group."""
    return SETTINGS.get(section.partition("=")[0], {}) | SETTINGS.get(section, {})


def check(section: str, **values: Any) -> None:
    """Check settings against the table. A setting without a rule passes, and so does None if it is :data:`OPTIONAL`.

    Raises:
        InputError: a value that is not allowed.
    """
    table, group = rules(section), section.partition("=")[0]
    for name, value in values.items():
        if name in table and not (value is None and name in OPTIONAL):
            table[name](f"{group}.{name}".removeprefix(".").removeprefix("backbone."), value)

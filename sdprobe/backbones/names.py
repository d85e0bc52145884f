"""Names that a layer may have, before a network is known: typing errors are found without importing torch."""

import difflib
import re
from collections.abc import Iterable

from sdprobe.utilities.errors import InputError

INPUTS = ("latent", "noisy_latent")
EMPTY = "Expected block to name at least one layer, but got an empty list. Use block=mid, for example."
LISTING = "`python -m sdprobe.backbones <backbone>` lists all of them"
SETS = ("stages", "all", "loos2025")
GRAMMAR = re.compile(r"conv_in|conv_out|(mid|(down|up)_\d+)(_(res|attn)_\d+|_upsample|_downsample)?")
# paths of modules in diffusers: up_blocks.1.resnets.2, up_blocks[1].resnets[2], mid_block
_PATH = re.compile(r"(mid_block|(down|up)_blocks(\.\d+|\[\d+\]))(\.\w+(\.\d+|\[\d+\]))?")
_STAGES = ("mid", *(f"{side}_{number}" for side in ("down", "up") for number in range(4)))
_COMMON = (
    "conv_in",
    "conv_out",
    *_STAGES,
    *(f"{stage}_{kind}_{i}" for stage in _STAGES for kind in ("res", "attn") for i in (0, 1)),
)


def check_names(block: str | Iterable[str]) -> None:
    """Refuse what no network could have: neither a name, a path, a glob, nor one of the sets.

    >>> check_names(["mid", "up_*", "up_blocks[1].resnets[2]"])

    Raises:
        InputError: the message names the nearest one.
    """
    items = [block] if isinstance(block, str) else [str(item) for item in block]
    if not items:
        raise InputError(EMPTY)
    for item in items:
        known = item in (*INPUTS, *SETS) or GRAMMAR.fullmatch(item) or _PATH.fullmatch(item) or set("*?[") & set(item)
        if not known:
            raise unknown(item, (*_COMMON, *INPUTS))


def unknown(item: str, names: Iterable[str]) -> InputError:
    """The error for an item that is none of these names and no set of them."""
    [nearest] = difflib.get_close_matches(item, [*names, *SETS], n=1, cutoff=0.0)
    return InputError(
        f"Expected block to be a layer, a list, a glob, 'stages', 'all' or 'loos2025', but got '{item}'. "
        f"The nearest name is '{nearest}'; {LISTING}."
    )

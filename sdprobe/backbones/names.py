"""Names that a layer may have, before a network is known: typing errors are found without importing torch."""

import difflib
import re
from collections.abc import Iterable

from sdprobe.backbones.capabilities import KINDS, UNET, Capabilities
from sdprobe.utilities.errors import InputError

INPUTS = ("latent", "noisy_latent")
EMPTY = "Expected block to name at least one layer, but got an empty list. Use block={}, for example."
SETS = ("stages", "all", "loos2025", "inside")
TOKEN_SETS = ("stages", "all", "inside")
# layers of diffusion transformers, and paths of their blocks in diffusers
BLOCK = re.compile(r"patch|block_\d+(_norm)?")
PATH = re.compile(r"(\w*transformer_blocks|noise_refiner|layers)(\.\d+|\[\d+\])")
# what is inside attention, in execution order: end of the name → path within one of diffusers' transformer blocks
PARTS = {
    "query": "attn1.to_q", "key": "attn1.to_k", "value": "attn1.to_v", "out": "attn1",
    "cross_query": "attn2.to_q", "cross_out": "attn2", "ff": "ff",
}  # fmt: skip
GRAMMAR = re.compile(
    rf"conv_in|conv_out|prediction|(mid|(down|up)_\d+)(_res_\d+|_attn_\d+(_(b\d+_)?({'|'.join(PARTS)}))?|_upsample|_downsample)?"
)
# paths of modules in diffusers: up_blocks.1.resnets.2, up_blocks[1].resnets[2], mid_block
_INDEX = r"(\.\d+|\[\d+\])"
_MODULE = rf"transformer_blocks{_INDEX}\.({'|'.join(map(re.escape, PARTS.values()))})(\.to_out{_INDEX})?"
_PATH = re.compile(rf"(mid_block|(down|up)_blocks{_INDEX})(\.\w+{_INDEX}(\.{_MODULE})?)?")
_WORDS = re.compile(r".*(cross_(key|value)|attn2\.to_[kv])")
_STAGES = ("mid", *(f"{side}_{number}" for side in ("down", "up") for number in range(4)))
_COMMON = (
    "conv_in",
    "conv_out",
    *_STAGES,
    *(f"{stage}_{kind}_{i}" for stage in _STAGES for kind in ("res", "attn") for i in (0, 1)),
    *(f"{stage}_attn_{i}_{part}" for stage in _STAGES for i in (0, 1) for part in PARTS),
)


def is_unet_stage(item: str) -> bool:
    """Whether a name is that of a stage of U-Nets.

    >>> is_unet_stage("up_1"), is_unet_stage("stages")
    (True, False)
    """
    return item in _STAGES


def check_names(block: str | Iterable[str], kind: Capabilities | None = KINDS[UNET]) -> None:
    """Refuse what no network could have: neither a name, a path, a glob, nor one of the sets.

    >>> check_names(["mid", "up_*", "up_blocks[1].resnets[2]", "up_1_attn_0_key"])

    Args:
        block: the layers.
        kind: what the network can do; None where it is not known, which allows layers of all families.

    Raises:
        InputError: the message names the nearest one. Keys and values of cross-attention belong to words, which it says.
    """
    items = [block] if isinstance(block, str) else [str(item) for item in block]
    if not items:
        raise InputError(EMPTY.format("mid" if kind is None or kind.network == UNET else "block_0"))
    for item in items:
        if kind is None or kind.network != UNET:
            if BLOCK.fullmatch(item) or PATH.fullmatch(item) or item in (*INPUTS, *TOKEN_SETS) or set("*?[") & set(item):
                continue
            if kind is not None:
                raise InputError(
                    f"Expected block to be a layer of {kind.network}, such as patch, block_12 or block_12_norm, a list, a "
                    f"glob, 'stages', 'all' or 'inside', but got '{item}'. `python -m sdprobe.backbones <backbone>` lists them."
                )
        known = item in (*INPUTS, *SETS) or GRAMMAR.fullmatch(item) or _PATH.fullmatch(item) or set("*?[") & set(item)
        if not known or _WORDS.fullmatch(item):
            raise unknown(item, (*_COMMON, *INPUTS))


def unknown(item: str, names: Iterable[str]) -> InputError:
    """The error for an item that is none of these names and no set of them."""
    if _WORDS.fullmatch(item):
        return InputError(
            f"Expected block to name a layer with a token per place of the image, but got '{item}': keys and values of "
            "cross-attention belong to the words of the prompt. Use cross_query, cross_out, or key and value of self-attention."
        )
    [nearest] = difflib.get_close_matches(item, [*names, *SETS], n=1, cutoff=0.0)
    return InputError(
        f"Expected block to be a layer, a list, a glob, 'stages', 'all', 'inside' or 'loos2025', but got '{item}'. "
        f"The nearest name is '{nearest}'; {listing(item)}."
    )


def listing(item: str) -> str:
    """The command that lists the layers among which a user looks for ``item``.

    >>> listing("up_1_attn_9_key")
    '`python -m sdprobe.backbones <backbone> --inside` lists all of them'
    """
    option = " --inside" if re.search(r"attn_\d+_|attn\d\.", item) else ""
    return f"`python -m sdprobe.backbones <backbone>{option}` lists all of them"

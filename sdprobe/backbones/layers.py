"""Layer names ↔ diffusers module paths, in execution order. ``python -m sdprobe.backbones sd15`` prints them.

Names use ``[a-z0-9_]`` only, because Hydra cannot parse ``up[1]`` and ``ModuleDict`` rejects dots. Every tensor has one
canonical name. The output of a stage has the name of the stage (``down_0``, ``mid``, ``up_1``). Any other tensor has the name
of its module (``up_1_res_0``, ``up_1_attn_0``, ``up_1_upsample``). The module name of a stage output is an alias, and so is
``prediction``, which is the network's output ``conv_out``. Two inputs of the U-Net are available as controls: ``latent`` and
``noisy_latent``.

Inside an attention module are transformer blocks: one in SD-1.x and 2.x, two or ten in SDXL. Of the first block
``up_1_attn_1_query``, ``_key``, ``_value`` and ``_out`` are the self-attention's projections and its output,
``up_1_attn_1_cross_query`` and ``_cross_out`` the same of cross-attention, whose keys and values belong to words, and
``up_1_attn_1_ff`` is the output of the feed-forward network. Other blocks have a number, counted from 0 like everything else:
``up_1_attn_1_b3_key``. Block 0 has it, too, as an alias (``up_1_attn_1_b0_key``).
"""

import fnmatch
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from sdprobe.backbones.names import EMPTY, GRAMMAR, INPUTS, PARTS, SETS, listing, unknown
from sdprobe.utilities.errors import InputError


@dataclass(frozen=True)
class Layer:
    """One tensor of the U-Net. ``path`` is the path of its module in diffusers; ``alias`` a longer name, if it has one.

    ``inside`` says whether it is inside an attention module, where diffusers has sequences of tokens instead of grids.
    """

    name: str
    path: str
    alias: str | None = None
    inside: bool = False

    @property
    def published(self) -> str:
        """The name Loos & Linhardt (2025) use, e.g. ``up_blocks[1].upsamplers[0]``."""
        return re.sub(r"\.(\d+)", r"[\1]", self.path)


def layer_table(unet: nn.Module, inside: bool = False) -> dict[str, Layer]:
    """Every layer of a ``UNet2DConditionModel`` by canonical name, in execution order.

    SD-1.x and 2.x have 46, and 112 ``inside`` attention. The U-Net may be on the ``meta`` device.
    """
    stages = [(f"down_{i}", f"down_blocks.{i}", block) for i, block in enumerate(unet.down_blocks)]  # type: ignore[arg-type]
    if unet.mid_block is not None:
        stages.append(("mid", "mid_block", unet.mid_block))
    stages += [(f"up_{i}", f"up_blocks.{i}", block) for i, block in enumerate(unet.up_blocks)]  # type: ignore[arg-type]
    layers = [Layer("conv_in", "conv_in")]
    for name, path, block in stages:
        layers += _stage_layers(name, path, block)
    layers.append(Layer("conv_out", "conv_out", alias="prediction"))
    return {layer.name: layer for layer in layers if inside or not layer.inside}


def _stage_layers(stage: str, path: str, block: nn.Module) -> list[Layer]:
    """Layers of one block in execution order. The last one has the name of the stage."""
    resnets = [(f"res_{i}", f"resnets.{i}") for i in range(len(block.resnets))]  # type: ignore[arg-type]
    attentions = [(f"attn_{i}", f"attentions.{i}") for i in range(len(getattr(block, "attentions", None) or ()))]
    # every resnet is followed by its attention; mid has one more resnet, so that it begins and ends with one
    pairs = itertools.zip_longest(resnets, attentions)
    steps = [step for pair in pairs for step in pair if step is not None]
    steps += [(kind, f"{kind}rs.0") for kind in ("downsample", "upsample") if getattr(block, f"{kind}rs", None)]
    layers: list[Layer] = []
    for name, child in steps:
        layers += _inside(f"{stage}_{name}", f"{path}.{child}", block.get_submodule(child))
        layers.append(Layer(f"{stage}_{name}", f"{path}.{child}"))
    return [*layers[:-1], Layer(stage, layers[-1].path, alias=layers[-1].name)]


def _inside(name: str, path: str, module: nn.Module) -> Iterator[Layer]:
    """Layers inside an attention module, in execution order; none in another module."""
    for number, block in enumerate(getattr(module, "transformer_blocks", ())):
        for part, child in PARTS.items():
            attention = getattr(block, child.partition(".")[0])
            of_words = part in ("key", "value") and attention.is_cross_attention  # some blocks have no self-attention
            if attention is not None and not of_words:
                long = f"{name}_b{number}_{part}"
                inner = f"{path}.transformer_blocks.{number}.{child}"
                yield Layer(long, inner, inside=True) if number else Layer(f"{name}_{part}", inner, long, inside=True)


def resolve(block: str | Iterable[str], table: dict[str, Layer]) -> tuple[str, ...]:
    """Canonical layer names for a user's ``block=``, in execution order, without repetition.

    ``block`` is a name, an alias, a list of these, a glob (``up_*``), ``stages`` (block outputs), ``all``, ``inside`` (what is
    inside attention), or ``loos2025`` (the 45 layers of the study, which skips the last resnet of ``up_0``). ``all`` and the
    others leave out what is inside attention, and so does a glob that matches anything else: ``up_1_*`` does, and
    ``up_1_attn_1_*`` does not. A layer can also be named by the path of its module in diffusers: ``up_blocks.1.resnets.2``,
    ``up_blocks[1].resnets[2]``, ``mid_block``, ``up_blocks[1].attentions[1].transformer_blocks[0].attn1.to_q``.

    Raises:
        InputError: a name that is no layer of this U-Net. The message suggests the nearest name.
    """
    wanted = {name for item in ([block] if isinstance(block, str) else block) for name in _expand(str(item), table)}
    if not wanted:
        raise InputError(EMPTY.format("mid"))
    return tuple(name for name in (*INPUTS, *table) if name in wanted)


def _expand(item: str, table: dict[str, Layer]) -> list[str]:
    aliases = {layer.alias: layer.name for layer in table.values() if layer.alias}
    inside = [name for name, layer in table.items() if layer.inside]
    if item == "inside" and inside:
        return inside
    if item == "all":
        return [name for name in table if name not in inside]
    if item == "loos2025":
        return [name for name in table if name not in (*inside, "up_0_res_2")]
    if item == "stages":
        return [name for name in table if re.fullmatch(r"conv_in|conv_out|mid|(down|up)_\d+", name)]
    if item in table or item in INPUTS:
        return [item]
    if item in aliases:
        return [aliases[item]]
    if (name := _by_path(item, table)) in table:
        return [name]
    found = [*fnmatch.filter(table, item), *(aliases[a] for a in fnmatch.filter(aliases, item))]
    if not found:
        raise _unknown(item, table, [*table, *aliases, *INPUTS])
    return [name for name in found if name not in inside] or found


def _by_path(item: str, table: dict[str, Layer]) -> str:
    """The layer of a module's path; a block's is its output."""
    path = re.sub(r"\[(\d+)\]", r".\1", item)
    path = re.sub(r"(attn\d)\.to_out\.0$", r"\1", path)  # the last module of attention that computes something
    stage = re.sub(r"^(mid|down|up)_block(s\.(\d+))?$", lambda match: "_".join(filter(None, match.group(1, 3))), path)
    return next((layer.name for layer in table.values() if layer.path == path), stage)


def _unknown(item: str, table: dict[str, Layer], names: Sequence[str]) -> InputError:
    if not GRAMMAR.fullmatch(item) and item not in SETS:
        return unknown(item, names)
    stages = ", ".join(_expand("stages", table))
    return InputError(
        f"Expected block to name a layer that this backbone has, but got '{item}', which it does not have. "
        f"Its stages are {stages}; {listing(item)}."
    )

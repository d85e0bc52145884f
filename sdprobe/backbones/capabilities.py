"""What the families of networks can do, known before a network is loaded. Imports no torch.

Commands refuse what a family cannot do by this table, ``experiment=controls`` leaves out controls by it, and
docs/transformers.md shows it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdprobe.backbones.embedded import folder_of
from sdprobe.backbones.published import transformers
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import DamagedFile, read_json

UNET = "UNet2DConditionModel"
# how hub repositories name networks that diffusers has since given classes of their own, and what tells them apart
EARLIER = "Transformer2DModel"
BY_NORM = {"ada_norm_single": "PixArtTransformer2DModel", "ada_norm_zero": "DiTTransformer2DModel"}


@dataclass(frozen=True)
class Capabilities:
    """What networks of one class can do.

    Attributes:
        network: class of the network in diffusers.
        name: of the family, in messages.
        position: ``added`` (a table is added to the tokens), ``rotary`` (angles in every attention), or ``none``.
        padding: whether the network has convolutions that pad.
        edits: whether layers can be edited inside the network, and its output be predicted.
        latents: whether it takes latents of 4 channels and 8 pixels per cell, which ``images=texture_latents`` draws.
        posterior: whether its autoencoder has a posterior.
        prompt: ``text`` or ``class``.
        optional_text: whether a text encoder can be left out.
        half: whether it computes in fp16.
    """

    network: str
    name: str
    position: str = "none"
    padding: bool = False
    edits: bool = False
    latents: bool = False
    posterior: bool = True
    prompt: str = "text"
    optional_text: bool = False
    half: bool = True


KINDS = {
    kind.network: kind
    for kind in (
        Capabilities(UNET, "U-Net", padding=True, edits=True, latents=True),
        Capabilities("PixArtTransformer2DModel", "PixArt", position="added", latents=True),
        Capabilities("SD3Transformer2DModel", "SD3", position="added", optional_text=True),
        Capabilities("FluxTransformer2DModel", "FLUX", position="rotary", half=False),
        Capabilities("DiTTransformer2DModel", "DiT", position="added", latents=True, prompt="class"),
        Capabilities("SanaTransformer2DModel", "Sana", padding=True, posterior=False),
        Capabilities("Lumina2Transformer2DModel", "Lumina2", position="rotary"),
    )
}


def class_of(config: Mapping[str, Any]) -> str:
    """Class of the transformer that a configuration describes, by its current name.

    >>> class_of({"_class_name": "Transformer2DModel", "norm_type": "ada_norm_single"})
    'PixArtTransformer2DModel'
    """
    name = str(config.get("_class_name"))
    return BY_NORM.get(str(config.get("norm_type")), name) if name == EARLIER else name


def is_transformer_folder(folder: Path) -> bool:
    """Whether a diffusers folder holds a transformer in place of a U-Net."""
    return (folder / "transformer" / "config.json").is_file() and not (folder / "unet" / "config.json").is_file()


def capabilities_of(backbone: str) -> Capabilities | None:
    """What a preset, its repository on the hub or a local folder can do; None for other repositories and networks."""
    folder = folder_of(backbone)
    for name, entry in transformers().items():
        if backbone == name or (backbone == entry["repository"] and not folder.exists()):
            return KINDS[entry["class"]]
    if not is_transformer_folder(folder):
        return None if "/" in backbone and not folder.exists() else KINDS[UNET]
    try:
        config = read_json(folder / "transformer" / "config.json")
        kind = KINDS.get(class_of(config))
    except (OSError, DamagedFile, AttributeError):
        return None  # loading it says what is wrong
    # Sana has a table for images of 2048 and 4096 pixels only
    tabled = config.get("interpolation_scale") is not None
    return replace(kind, position="added") if kind is not None and kind.name == "Sana" and tabled else kind


def check_options(kind: Capabilities, **options: str) -> None:
    """Refuse options of a backbone that a family does not have.

    Args:
        kind: the family.
        **options: ``padding``, ``position``, ``text``, ``posterior`` and ``precision``, as far as they are known.

    Raises:
        InputError: the first of them that has no meaning; the message says what has.
    """
    check_convolutions(kind, options.get("padding", "zeros"))
    check_position(kind, options.get("position", "stored"))
    if options.get("text") == "none" and not (kind.network != UNET and kind.prompt == "text"):
        raise InputError(
            f"Expected text=encoded for {kind.network}, "
            + ("which has classes in place of text" if kind.prompt == "class" else "whose prompt is always encoded")
            + ", but got 'none'. Leave it out; prompt='' conditions on nothing."
        )
    if options.get("posterior") == "sample" and not kind.posterior:
        raise InputError(
            f"Expected posterior=mode for {kind.network}, whose autoencoder has no posterior, but got 'sample'. Use mode."
        )
    if options.get("precision") == "fp16" and not kind.half:
        raise InputError(
            f"Expected precision bf16 or fp32 for {kind.network}, which clips large activations in fp16, but got fp16. "
            "Use backbone.precision=bf16."
        )


def check_prompt_cache(name: str, text: str = "encoded", prompt: str = "text") -> None:
    """Refuse to store text states where no files of text encoders are read.

    Args:
        name: of the backbone, in the message.
        text: its option.
        prompt: ``text`` or ``class``, as its family has it.

    Raises:
        InputError: no text is encoded, or the encoders are those of ``backbone=tiny``.
    """
    if text == "none" or prompt == "class" or name == "tiny":
        why = "whose text encoder is made, not read from files" if name == "tiny" else "which encodes no text"
        raise InputError(f"Expected prompt_cache=false for {name}, {why}, but got true. Leave it out.")


def check_prompt(text: str, prompt: str) -> None:
    """Raises InputError for a prompt that is not encoded."""
    if text == "none" and prompt:
        raise InputError(f"Expected an empty prompt with text=none, which encodes none, but got {prompt!r}. Leave one out.")


def check_position(kind: Capabilities, mode: str) -> None:
    """Raises InputError for other position embeddings of a network that has none."""
    if mode != "stored" and kind.position == "none":
        raise InputError(
            f"Expected position=stored for {kind.network}, which has no position embedding, but got '{mode}'. "
            "Change what its convolutions read beyond the border instead: padding=circular."
        )


def check_convolutions(kind: Capabilities, mode: str) -> None:
    """Raises InputError for another padding of a network without convolutions that pad."""
    if mode != "zeros" and not kind.padding:
        raise InputError(
            f"Expected padding=zeros for {kind.network}, which has no convolutions that pad, but got '{mode}'. "
            "Change its position embeddings instead: position=zero."
        )


def check_edits(kind: Capabilities, what: str) -> None:
    """Raises InputError for edits inside a network that takes none."""
    if not kind.edits:
        raise InputError(
            f"Expected a U-Net for {what}, which edits layers inside the network or predicts its output, but got "
            f"{kind.network}. Leave it out, or use a U-Net."
        )


# control → what a family needs for it, and why it has no meaning without
_PADDED = ("padding", "no convolutions that pad")
_POSITIONED = ("position", "no position embedding")
NEEDS = {
    **dict.fromkeys(("replicate", "reflect", "circular", "random_circular", "random_circular_1", "random_circular_2"), _PADDED),
    **dict.fromkeys(("position_zero", "position_permuted", "position_shifted"), _POSITIONED),
    **dict.fromkeys(("random_zero", "random_zero_1", "random_zero_2"), _POSITIONED),
    "no_vae": ("latents", "latents of other channels or cells than the drawn ones"),
    "vae_sample": ("posterior", "an autoencoder without a posterior"),
}


def left_out(kind: Capabilities, controls: Sequence[str]) -> dict[str, list[str]]:
    """Why controls mean nothing for a family → their names.

    >>> left_out(KINDS["SanaTransformer2DModel"], ["trained", "circular", "position_zero", "vae_sample"])
    {'no position embedding': ['position_zero'], 'an autoencoder without a posterior': ['vae_sample']}
    """
    found: dict[str, list[str]] = {}
    for name in controls:
        needed, reason = NEEDS.get(name, ("", ""))
        if needed and getattr(kind, needed) in (False, "none"):
            found.setdefault(reason, []).append(name)
    return found

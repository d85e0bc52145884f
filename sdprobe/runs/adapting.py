"""What a command means for the family of its backbone: default layers, controls that have a meaning, and refusals.

Imports no torch, so that a mistake is reported at once. The family of a repository on the hub is known once it is loaded; there
the networks themselves refuse.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from sdprobe.backbones.capabilities import (
    Capabilities,
    capabilities_of,
    check_edits,
    check_options,
    check_prompt,
    check_prompt_cache,
    left_out,
)
from sdprobe.backbones.names import is_unet_stage
from sdprobe.runs.groups import CONFIGS
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.settings import target_name

STAGES = "stages"  # layers of a network without those that the default names


def adapted(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides that a command gets for the family of its backbone, and a sentence on each of them.

    A transformer has no ``mid``. Where no layers are given, it is read at ``stages``, and so are all networks of a sweep over
    it. ``experiment=controls`` keeps the controls that mean something for the family, if there is one backbone.

    >>> adapted(["backbone=flux_dev"])[0]
    ['block=stages']
    >>> adapted(["backbone=demo"])
    ([], [])
    """
    given = {word.lstrip("+").partition("=")[0]: word.partition("=")[2] for word in overrides if not word.startswith("-")}
    kinds = _kinds(overrides, given)
    if not kinds or (all(kind.edits for kind in kinds) and not given.keys() & {"experiment", "sweep"}):
        return [], []
    more, sentences = [], []
    chosen = [OmegaConf.load(file) for group in ("experiment", "sweep") if (file := _file(group, given.get(group)))]
    swept = {key: value for node in chosen for key, value in (OmegaConf.select(node, "hydra.sweeper.params") or {}).items()}
    block = next((node.block for node in chosen if "block" in node), OmegaConf.load(CONFIGS / "train.yaml").block)
    names = [block] if isinstance(block, str) else list(block)
    if not all(kind.edits for kind in kinds) and "block" not in {*given, *swept} and all(map(is_unet_stage, names)):
        more.append(f"block={STAGES}")
        sentences.append(f"block={STAGES}, because {', '.join(names)} {'is' if len(names) == 1 else 'are'} of U-Nets.")
    if len(kinds) > 1:
        return more, sentences
    kind = kinds[0]
    steps: Any = next((node.mitigation for node in chosen if "mitigation" in node), {})
    swaps = [label for label, step in steps.items() if target_name(step._target_) == "PaddingSwap"]
    if swaps and not kind.padding and "mitigation" not in given:
        more += [f"~mitigation.{label}" for label in swaps]
        sentences.append(f"Left out: {', '.join(swaps)}. {kind.network} has no convolutions that pad.")
    if "control" in swept and "control" not in given:
        controls = "".join(str(swept["control"]).split()).split(",")
        without = left_out(kind, controls)
        gone = {name for each in without.values() for name in each}
        more += [f"control={','.join(name for name in controls if name not in gone)}"] * bool(gone)
        sentences += [f"Left out: {', '.join(each)}. {kind.network} has {reason}." for reason, each in without.items()]
    return more, sentences


def check_backbone(cfg: DictConfig) -> Capabilities | None:
    """Refuse settings that the family of the backbone does not have. Returns what it can do, where that is known.

    Raises:
        InputError: such a setting.
    """
    if OmegaConf.is_missing(cfg.backbone, "path"):
        return None
    kind = capabilities_of(str(cfg.backbone.path))
    if kind is None:
        return None
    check_options(kind, **{name: str(cfg.backbone[name]) for name in ("padding", "position", "text", "posterior", "precision")})
    check_prompt(str(cfg.backbone.text), str(cfg.prompt))
    if cfg.backbone.prompt_cache:
        check_prompt_cache(str(cfg.backbone.path), str(cfg.backbone.text), kind.prompt)
    if cfg.hydra.runtime.choices.probe == "role":
        check_edits(kind, "probe=role")
    if cfg.datamodule.get("inside"):
        check_edits(kind, "datamodule.inside=true")
    names = {label: target_name(step._target_) for label, step in cfg.mitigation.items()}
    if not kind.padding and (swaps := [label for label, name in names.items() if name == "PaddingSwap"]):
        raise InputError(
            f"Expected a network with convolutions that pad for mitigation={swaps[0]}, but got {kind.network}. Leave it out; "
            "backbone.position=zero takes its position embeddings away."
        )
    if not kind.latents and target_name(cfg.images._target_) == "LatentTextures":
        raise InputError(
            f"Expected a network of latents with 4 channels and 8 pixels per cell for images=texture_latents, but got "
            f"{kind.network}. Use images=texture."
        )
    return kind


def _kinds(overrides: Sequence[str], given: dict[str, str]) -> list[Capabilities]:
    """The families of the backbones of a command; empty where one is not known."""
    names = [name.strip() for name in given.get("backbone", "demo").split(",")]
    if "backbone.path" in given:
        word = next(word for word in reversed(overrides) if word.lstrip("+").startswith("backbone.path="))
        value = OverridesParser.create().parse_override(word).value()
        names = [value if isinstance(value, str) else ""]
    kinds = [None if name in ("", "local") or set(name) & set("*[{(") else capabilities_of(name) for name in names]
    return [] if None in kinds else [kind for kind in kinds if kind]


def _file(group: str, choice: str | None) -> Path | None:
    file = CONFIGS / group / f"{choice}.yaml"
    return file if choice and file.is_file() else None

"""Checkpoints on the Hugging Face hub: the files that are needed are chosen from the list of the repository, then fetched."""

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

from sdprobe.backbones.published import transformers
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.hub import Repository
from sdprobe.utilities.io import read_json

NETWORKS = ("unet", "vae", "text_encoder")
OPTIONAL = ("text_encoder_2",)
INDEX_OF_PARTS = "model_index.json"
# model.fp16.safetensors, model.fp16-00001-of-00002.safetensors, and what older versions of diffusers wrote
WEIGHTS = re.compile(r"(?:diffusion_pytorch_)?model(?:\.(\w+))?(-\d+-of-\d+)?(?:\.(\w+))?\.safetensors")
INDEX = re.compile(r"(?:diffusion_pytorch_)?model\.safetensors\.index(?:\.(\w+))?\.json")


def download(path: str, revision: str | None, variant: str | None, only: Sequence[str] = (), text: bool = True) -> Path:
    """The folder of a hub repository in the cache, with the needed files: safetensors, configurations, tokenizers.

    ``only``: fetch those of these files that it has, and no others. Without ``text``, diffusion transformers need no encoder.

    Raises:
        InputError: ``path`` is no name of a repository, the hub refuses or cannot be reached, or the repository holds no
            checkpoint that can be used.
    """
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise InputError(
            f"Expected the backbone to be a preset, a hub repository (owner/name) or a local diffusers folder, "
            f"but got '{path}', which does not exist. Check the path."
        )
    licence, plain = licence_of(path), "[.-][s0]*"  # files of no variant: model.safetensors, model-00001-of-…
    ending = f".{variant}*" if variant else plain
    weights = [f"{part}/*model{ending}tensors" for part in ("unet", "transformer", "vae", "text_encoder*")]
    if variant and licence:  # a published transformer: of SD3, text encoders alone have a variant
        weights += [f"{part}/*model{plain}tensors" for part in ("transformer", "vae")]
    use = "backbone=local backbone.path=DIR" + f" backbone.variant={variant}" * bool(variant)
    repository = Repository(path, revision, "model", "backbone", ("*.json", "tokenizer*/*", *weights), use, licence)
    if "transformer/config.json" not in repository.files or "unet/config.json" in repository.files:
        needed = needed_files(repository.files, variant, path)
        return repository.fetch([name for name in only if name in needed] or needed)
    from sdprobe.backbones import transformer_folders  # not needed for U-Nets

    if INDEX_OF_PARTS not in repository.files:
        raise InputError(
            f"Expected {path} to hold {INDEX_OF_PARTS}, which names the pipeline of its transformer, but there is none. "
            "Choose the repository of a whole pipeline."
        )
    index = read_json(repository.fetch([INDEX_OF_PARTS]) / INDEX_OF_PARTS)
    needed = transformer_folders.needed_files(repository.files, index, variant, path, text)
    return repository.fetch([name for name in only if name in needed] or needed)


def licence_of(path: str) -> str:
    """The licence of a published diffusion transformer, to be said before it is downloaded; empty for other repositories."""
    return next((str(each["licence"]) for each in transformers().values() if each["repository"] == path), "")


def needed_files(names: Collection[str], variant: str | None, where: str) -> list[str]:
    """The files of a repository that a backbone is loaded from.

    Raises:
        InputError: a part is missing, or has no weights that can be loaded.
    """
    for part in NETWORKS:
        if f"{part}/config.json" not in names:
            listed = sorted({name.split("/")[0] for name in names if not name.startswith(".")})
            raise InputError(
                f"Expected {where} to be a diffusers repository with {part}/config.json, but it holds "
                f"{', '.join(listed) or 'nothing'}. Choose one with unet, vae, text_encoder, tokenizer and scheduler."
            )
    parts = [*NETWORKS, *(part for part in OPTIONAL if f"{part}/config.json" in names)]
    other = [name for name in names if re.match(r"(model_index\.json$|scheduler/|tokenizer(_2)?/)", name)]
    needed = [name for part in parts for name in (f"{part}/config.json", *weight_files(names, part, variant, where))]
    return sorted({*other, *needed})


def weight_files(names: Collection[str], part: str, variant: str | None, where: str) -> list[str]:
    """The weight files of a part, with the index of shards: those of the variant if the part has it, else those without one.

    Raises:
        InputError: the part has neither.
    """
    files = [name for name in names if name.rpartition("/")[0] == part]
    shards: dict[str | None, list[str]] = defaultdict(list)
    whole: dict[str | None, list[str]] = defaultdict(list)
    indices: dict[str | None, list[str]] = defaultdict(list)
    for name in files:
        if match := WEIGHTS.fullmatch(name.rpartition("/")[2]):
            (shards if match[2] else whole)[match[1] or match[3]].append(name)
        elif match := INDEX.fullmatch(name.rpartition("/")[2]):
            indices[match[1]].append(name)
    stored = {*whole, *shards}
    for kind in (variant, None):
        if kind in stored:
            return [*indices[kind], *shards[kind]] if indices[kind] else whole[kind] or shards[kind]
    if stored:
        found = sorted(Path(name).name for group in (whole, shards) for kind in group.values() for name in kind)
        raise InputError(
            f"Expected {where}/{part} to hold weights without a variant, but found only {', '.join(found)}. "
            f"Use backbone.variant={min(kind or '' for kind in stored)}."
        )
    pickled = sorted(Path(name).name for name in files if name.endswith((".bin", ".ckpt", ".pt")))
    held = f"only pickled weights ({', '.join(pickled)}), which are not loaded" if pickled else "no weights"
    raise InputError(
        f"Expected {where}/{part} to hold .safetensors weights, but found {held}. "
        "Save the pipeline again with save_pretrained(..., safe_serialization=True)."
    )

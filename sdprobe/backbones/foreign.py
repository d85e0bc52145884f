"""Checkpoint folders as data: before anything loads, refuse what names code, and weights that lie elsewhere."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdprobe.utilities.errors import InputError
from sdprobe.utilities.foreign import special, within
from sdprobe.utilities.io import DamagedFile, read_json

PARTS = (
    "unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3",
    "scheduler",
)  # fmt: skip
CONFIGURATIONS = ("config.json", "tokenizer_config.json", "scheduler_config.json")
# what makes diffusers or transformers import code of a repository, of a kernel or of another package
CODE = {
    "auto_map",
    "quantization_config",
    "attn_implementation",
    "_attn_implementation",
    "trust_remote_code",
    "custom_pipeline",
}
KERNELS = {None, "eager", "sdpa"}  # that are part of PyTorch
LAYERS = 1000  # of a part: each is built before weights are read, and 10⁹ of them never end
STEPS = 100_000  # of a noise schedule, whose table is computed in memory


def check_folder(folder: Path) -> None:
    """Check the configurations and the indices of weights of a diffusers folder.

    Raises:
        InputError: a configuration names code or cannot be read, or an index names a file elsewhere or another format.
    """
    try:
        _check_parts(folder)
    except DamagedFile as error:
        file, reason = error.args
        raise InputError(
            f"Expected {folder} to hold intact diffusers weights, but loading them failed: {Path(file).name}, {reason}. "
            "Copy or download the folder again."
        ) from error


def _check_parts(folder: Path) -> None:
    for path in folder.glob("*/*"):
        if strange := special(path):
            raise DamagedFile(path, strange)
    for part in PARTS:
        for name in CONFIGURATIONS:
            if (folder / part / name).is_file():
                _check_configuration(folder / part / name)
        if (folder / part / "adapter_config.json").is_file():  # weights of another repository
            raise InputError(f"Expected {folder / part} to be a network, but got an adapter. Merge it, and save the network.")
        for index in (folder / part).glob("*.index*.json"):
            _check_index(index, _home(folder, folder / part))


def _check_configuration(file: Path) -> None:
    settings = read_json(file)
    for key, value in _settings(settings):
        if key in CODE and not (key.endswith("attn_implementation") and isinstance(value, str | None) and value in KERNELS):
            raise InputError(
                f"Expected {file} to describe a network, but got '{key}', which names code, and no code of others is run. "
                "If the network does not need it, remove the entry."
            )
        if "layers" in key and (many := [count for count in _integers(value) if count > LAYERS]):
            raise InputError(f"Expected {file} to have at most {LAYERS} {key}, but got {many[0]}. Correct the file.")
    steps = settings.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or not 1 <= steps <= STEPS:
        raise InputError(f"Expected {file} to have num_train_timesteps from 1 to {STEPS}, but got {steps!r}. Correct the file.")


def _integers(node: Any) -> Iterator[int]:
    """The integers in a value or in a list of them, at any depth."""
    pending = [node]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending += node
        elif isinstance(node, int):
            yield node


def _settings(node: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a configuration with its value, at any depth."""
    pending = [node]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            yield from node.items()
        pending += node.values() if isinstance(node, dict) else node if isinstance(node, list) else []


def _check_index(index: Path, home: Path) -> None:
    weights = read_json(index).get("weight_map")
    names = set(map(str, weights.values())) if isinstance(weights, dict) else {json.dumps(weights)}
    for name in sorted(names):
        if Path(name).name != name or not name.endswith(".safetensors") or not within(index.parent / name, home):
            raise InputError(
                f"Expected {index} to name .safetensors files beside it, but got '{name}'. "
                "Copy the files there, and save the pipeline again with safe_serialization=True."
            )


def _home(folder: Path, part: Path) -> Path:
    """Where the files of a part are: there, or with the others of its repository in the cache of the hub."""
    place = folder.resolve()
    return place.parents[1] if place.parent.name == "snapshots" else part.resolve()

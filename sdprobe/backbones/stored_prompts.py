"""StoredPrompts: text states from disk, so that a text encoder is in memory only while a new prompt is encoded."""

import gc
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdprobe.backbones.cards import digest
from sdprobe.backbones.hub import weight_files
from sdprobe.backbones.prompts import Prompts
from sdprobe.utilities.errors import Unfit
from sdprobe.utilities.tensor_cache import TensorCache

# version of text states; increase it when they change for the same encoders and prompts
VERSION = 1
AXES = {"states": 3, "pooled": 2, "mask": 2}
WEIGHTS = "weights"  # text in the entry that has no tensors: the digest of the encoders' weights as loaded


def identity(folder: Path, encoders: Sequence[str], variant: str | None, *settings: object) -> str:
    """Digest of what text states depend on besides the prompt.

    Args:
        folder: of the checkpoint.
        encoders: its text encoders; all their files and those of their tokenizers are read, not loaded.
        variant: of the weight files.
        settings: what else the text states depend on.
    """
    result = hashlib.sha256(repr((VERSION, settings)).encode())
    for part in encoders:
        names = [file.relative_to(folder).as_posix() for file in (folder / part).iterdir()]
        files = [f"{part}/config.json", *weight_files(names, part, variant, str(folder))]
        tokenizer = folder / part.replace("text_encoder", "tokenizer")
        files += [file.relative_to(folder).as_posix() for file in tokenizer.rglob("*") if file.is_file()]
        result.update("".join(f"{name} {digest(folder / name)}\n" for name in sorted(files)).encode())
    return result.hexdigest()


class TextCache(TensorCache):
    """Conditions of prompts below ``root``.

    Args:
        root: the cache folder.
        kind: class of the conditions, with optional tensors as fields.
    """

    def __init__(self, root: str | Path, kind: type) -> None:
        super().__init__(root, "text")
        self.conditions = kind

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise Unfit if there are tensors, but not those of one prompt."""
        names = {field.name for field in fields(self.conditions)}
        if tensors and not ("states" in tensors and tensors.keys() <= names):
            raise Unfit("no text states")
        if any(tensor.ndim != AXES.get(name) or len(tensor) != 1 for name, tensor in tensors.items()):
            raise Unfit("text states of another shape")


class StoredPrompts(Prompts):
    """Conditions of prompts from a cache. Text encoders are loaded for those that it lacks, and leave memory afterwards.

    Args:
        load: loads the encoders.
        cache: stores conditions.
        key: of the encoders, see :func:`identity`.
        tokenizers: of a U-Net's checkpoint.
        configs: configurations of a U-Net's text encoders.
    """

    def __init__(
        self,
        load: Callable[[], Prompts],
        cache: TextCache,
        key: str,
        tokenizers: Sequence[Any] = (),
        configs: Sequence[Any] = (),
    ) -> None:
        super().__init__()
        self.tokenizers, self.configs = tokenizers, configs
        self.cache = cache
        self._load, self._key = load, key
        self._loaded: Prompts | None = None

    @cached_property
    def weights(self) -> str:  # type: ignore[override]
        """Digest of the encoders' weights as loaded. Without a stored one they are loaded and wait for the first prompt."""
        found = self.cache.read(self._key)
        return found[1][WEIGHTS] if found and WEIGHTS in found[1] else self._encoders().weights

    def prepare(self, prompts: Iterable[str], device: torch.device) -> None:
        """Read the conditions of prompts, or compute and store those that the cache lacks.

        Raises:
            InputError: the cache cannot be written to.
        """
        lacking = []
        for prompt in dict.fromkeys(prompts):
            if prompt in self._known:
                continue
            if found := self.cache.read(self._key, prompt):
                self._known[prompt] = self.cache.conditions(**found[0])
            else:
                lacking.append(prompt)
        for prompt in lacking:
            tensors = self._encoded(prompt, device)
            self.cache.write(tensors, self._key, prompt)
            self._known[prompt] = self.cache.conditions(**tensors)
        if self._loaded is not None:
            self._loaded = None
            gc.collect()  # a pipeline and its parts may refer to each other
            if device.type == "cuda":
                torch.cuda.empty_cache()

    def _encoded(self, prompt: str, device: torch.device) -> dict[str, Tensor]:
        source = self._encoders()
        for encoder in source.encoders:
            encoder.to(device)
        computed = source.encode(prompt)
        tensors = {field.name: getattr(computed, field.name) for field in fields(computed)}
        return {name: tensor.cpu() for name, tensor in tensors.items() if tensor is not None}

    def _encoders(self) -> Prompts:
        if self._loaded is None:
            self._loaded = self._load()
            self.cache.write({}, self._key, **{WEIGHTS: self._loaded.weights})
        return self._loaded

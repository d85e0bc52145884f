"""ImageGrids: activation grids of any origin, checked, with the names of their images and photographs."""

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdprobe.tokens.batch import GridBatch
from sdprobe.tokens.groups import token_groups
from sdprobe.tokens.keys import label_of, unmitigated
from sdprobe.utilities.arrays import tensor_of
from sdprobe.utilities.errors import InputError

LAYER = "layer"  # name of the layer where grids are a tensor


@dataclass(frozen=True)
class ImageGrids:
    """Grids of images, their names, and the photographs that they show."""

    grids: dict[str, Tensor]
    names: list[str]
    photographs: list[str]

    @classmethod
    def of(cls, argument: str, grids: Any, names: Any = None, photographs: Any = None) -> "ImageGrids":
        """Raises InputError, which names the argument, if something cannot be used."""
        checked = _grids(argument, grids)
        count = len(next(iter(checked.values())))
        named = texts("names", names, count, [*map(str, range(count))])
        return cls(checked, named, texts("photographs", photographs, count, named))

    def like(self, argument: str, grids: Any, resized: bool = False) -> "ImageGrids":
        """Other grids of the same images."""
        other = replace(self, grids=_grids(argument, grids))
        other.check_like(self, argument, "grids", resized)
        return other

    def check_like(self, other: "ImageGrids", argument: str, reference: str, resized: bool = False) -> None:
        """Raises InputError if layers, numbers of images or shapes differ; ``resized`` ignores height and width."""
        own, theirs = ({layer: grid.shape for layer, grid in images.grids.items()} for images in (self, other))
        if resized:
            own, theirs = ({layer: shape[:2] for layer, shape in shapes.items()} for shapes in (own, theirs))
        if own != theirs:
            shown = (", ".join(f"{layer} {tuple(shape)}" for layer, shape in shapes.items()) for shapes in (theirs, own))
            raise InputError(
                f"Expected {argument} to have the layers, images and {'channels' if resized else 'shapes'} of {reference}, "
                "{}, but got {}. Extract both from the same images.".format(*shown)
            )

    def __len__(self) -> int:
        return len(next(iter(self.grids.values())))

    @property
    def device(self) -> torch.device:
        """Device of the grids."""
        return next(iter(self.grids.values())).device

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Layer → (C, h, w)."""
        return {layer: (grid.shape[1], grid.shape[2], grid.shape[3]) for layer, grid in self.grids.items()}

    @cached_property
    def photos(self) -> dict[str, int]:
        """Photograph → its number, in the order of the images."""
        return {name: number for number, name in enumerate(dict.fromkeys(self.photographs))}

    def batch(self, indices: Sequence[int]) -> GridBatch:
        """These images, in the memory format of the networks; variants have the token groups of their layers."""
        index = torch.tensor(indices, dtype=torch.long, device=self.device)
        grids = {layer: grid[index].contiguous(memory_format=torch.channels_last) for layer, grid in self.grids.items()}
        masks = {layer: token_groups(grid) for layer, grid in grids.items() if not label_of(layer)}
        photo = torch.tensor([self.photos[self.photographs[i]] for i in indices], device=self.device)
        return GridBatch(grids, {layer: masks[unmitigated(layer)] for layer in grids}, index, photo)

    def batches(self, indices: Sequence[int], size: int) -> Iterator[GridBatch]:
        """These images in order, ``size`` at a time."""
        for start in range(0, len(indices), size):
            yield self.batch(indices[start : start + size])


def _grids(argument: str, given: Any) -> dict[str, Tensor]:
    """Layer → (B, C, h, w), checked."""
    if isinstance(given, Tensor | np.ndarray):
        given, bare = {LAYER: given}, True
    else:
        bare = False
    if not isinstance(given, Mapping) or not given:
        raise InputError(
            f"Expected {argument} to be a tensor (B, C, h, w) or a dictionary with one per layer, but got "
            f"{'an empty one' if isinstance(given, Mapping) else type(given).__name__}. Give the images one size: a list of "
            "several sizes gives a list of grids."
        )
    grids = {layer: _grid(argument if bare else f"{argument}['{layer}']", grid) for layer, grid in given.items()}
    counts = {layer: len(grid) for layer, grid in grids.items()}
    if len(set(counts.values())) > 1 or len({grid.device for grid in grids.values()}) > 1:
        raise InputError(
            f"Expected {argument} to hold the same images at every layer, on one device, but got {counts} images on "
            f"{', '.join(sorted({str(grid.device) for grid in grids.values()}))}. Extract all layers together."
        )
    for layer in grids:
        if not isinstance(layer, str) or not layer or "/" in layer or unmitigated(layer) not in grids:
            raise InputError(
                f"Expected {argument} to have layers as keys, without '/', and a variant LAYER__NAME beside its LAYER, but got "
                f"{layer!r}. Rename it."
            )
    return grids


def _grid(name: str, given: Any) -> Tensor:
    """One grid as a tensor without gradients."""
    grid = tensor_of(given)
    if not isinstance(grid, Tensor) or not grid.is_floating_point() or grid.ndim != 4 or not grid.numel():
        found = f"{tuple(given.shape)} of {given.dtype}" if hasattr(given, "dtype") else type(given).__name__
        raise InputError(
            f"Expected {name} to be floating-point activations with the axes (B, C, h, w), but got {found}. Choose one "
            "timestep and one draw of several; tokens without a grid need their height and width back."
        )
    wrong = ~grid.isfinite().flatten(1).all(1)
    if wrong.any():
        raise InputError(
            f"Expected {name} to be finite, but image {int(wrong.nonzero()[0])} has NaN or infinite numbers. Leave it out, or "
            "compute in float32."
        )
    return grid.detach()


def texts(argument: str, given: Any, count: int, default: list[str], per: str = "image") -> list[str]:
    """One text per image, or per something else."""
    if given is None:
        return default
    given = given.tolist() if hasattr(given, "tolist") else given  # arrays, tensors, and columns of pandas
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != count:
        found = (
            f"the text '{given}'" if isinstance(given, str) else f"{len(given)}" if hasattr(given, "__len__") else repr(given)
        )
        raise InputError(f"Expected {argument} to be one per {per}, {count}, but got {found}. Give a list of {count}.")
    return [*map(str, given)]


def numbers_of(argument: str, given: Any) -> Tensor:
    """Numbers as a tensor on the CPU. Raises InputError, which names the argument, if they are none."""
    try:
        return torch.as_tensor(given).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"Expected {argument} to be numbers of a regular shape, but got {given!r:.60}. Correct it.") from error


def chosen(images: ImageGrids, given: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> dict[str, list[int]]:
    """Part → indices of images that the user gave; empty if none were given.

    Raises:
        InputError: some parts but not all, or something else than different indices of images.
    """
    every = {part: indices for part, indices in {**given, **(optional or {})}.items() if indices is not None}
    if not every:
        return {}
    if not set(given) <= set(every):
        raise InputError(f"Expected {' and '.join(given)} together, but got {', '.join(every)} only. Give both, or neither.")
    parts: dict[str, list[int]] = {}
    for part, indices in every.items():
        numbers = numbers_of(part, indices)
        whole = numbers.ndim == 1 and len(numbers) and not (numbers.is_floating_point() or numbers.dtype == torch.bool)
        if not whole or numbers.min() < 0 or numbers.max() >= len(images) or len(numbers.unique()) < len(numbers):
            raise InputError(
                f"Expected {part} to be different indices of images, each from 0 to {len(images) - 1}, but got "
                f"{reprlib.repr(indices)}. Correct it."
            )
        parts[part] = numbers.tolist()
    return parts

"""Linear heads: per layer and variant while they are trained (LayerHead); and as a run saves them for later use (Head).

Heads of all layers and variants share one optimiser. Adam works elementwise and no head depends on another, so each head ends
in the same state as if it were trained alone.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sdprobe.mitigations.base import Chain
from sdprobe.mitigations.saved import read as read_mitigation
from sdprobe.tokens.keys import base_of, label_of, unmitigated
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.fits import check_bound, find_fit, intact, read_fit, write_fit
from sdprobe.utilities.foreign import shown
from sdprobe.utilities.rng import keyed_generator

__all__ = ["Head", "load", "save"]

log = logging.getLogger(__name__)
NAME = "heads"
PREDICTIONS = ("position", "coordinates", "depth", "content", "projection")


class LayerHead(nn.Module):
    """V linear maps C → K of the same tokens (the probe and its controls), and the best state of each so far.

    Args:
        channels: C.
        outputs: K.
        variants: V.
        key: seeds the initialisation, which is torch's default for ``nn.Linear``: uniform within ±1/√C.
    """

    def __init__(self, channels: int, outputs: int, variants: int, *key: object) -> None:
        super().__init__()
        generator = keyed_generator("head", *key)
        bound = 1 / math.sqrt(channels)
        self.weight = nn.Parameter((torch.rand(variants, outputs, channels, generator=generator) * 2 - 1) * bound)
        self.bias = nn.Parameter((torch.rand(variants, outputs, generator=generator) * 2 - 1) * bound)
        self.best_weight: Tensor
        self.best_bias: Tensor
        self.best_loss: Tensor
        self.best_score: Tensor
        self.stale: Tensor  # validations since the last improvement; checkpoints hold it under this name
        self.steps: Tensor
        self.register_buffer("best_weight", torch.zeros_like(self.weight))
        self.register_buffer("best_bias", torch.zeros_like(self.bias))
        self.register_buffer("best_loss", torch.full((variants,), torch.inf, dtype=torch.float64))
        self.register_buffer("best_score", torch.zeros(variants, dtype=torch.float64))
        self.register_buffer("stale", torch.zeros(variants, dtype=torch.long))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, tokens: Float[Tensor, "n c"]) -> Float[Tensor, "n v k"]:
        """Outputs of every variant, float32."""
        flat = nn.functional.linear(tokens.float(), self.weight.flatten(0, 1), self.bias.flatten())
        return flat.unflatten(1, self.bias.shape)

    @torch.no_grad()
    def update_best(self, loss: Float[Tensor, " v"], score: Float[Tensor, " v"], patience: int, min_steps: int) -> None:
        """Store the state of every variant whose validation loss fell by at least 0.1 %.

        A variant is finished after ``min_steps`` steps and ``patience`` validations in a row without such a fall. Its best
        state is then final.
        """
        better = (loss < self.best_loss * (1 - 1e-3)) & ~self._finished(patience, min_steps)
        self.best_weight[better] = self.weight[better]
        self.best_bias[better] = self.bias[better]
        self.best_loss[better] = loss[better].to(self.best_loss.dtype)
        self.best_score[better] = score[better].to(self.best_score.dtype)
        self.stale += 1
        self.stale[better] = 0

    def finished(self, patience: int, min_steps: int) -> bool:
        """Whether no variant can improve any more."""
        return bool(self._finished(patience, min_steps).all())

    def at_plateau(self, patience: int, min_steps: int) -> int:
        """Return how many variants have finished."""
        return int(self._finished(patience, min_steps).sum())

    @torch.no_grad()
    def restore_best(self) -> None:
        """Load the best states. Variants that were never validated do not change."""
        updated = self.best_loss.isfinite()
        self.weight[updated] = self.best_weight[updated]
        self.bias[updated] = self.best_bias[updated]

    def _finished(self, patience: int, min_steps: int) -> Tensor:
        return (self.stale >= patience) & (self.steps >= min_steps)


def layer_heads(outputs: dict[str, tuple[int, int]], variants: Sequence[str], seed: int) -> nn.ModuleDict:
    """A head per layer. ``outputs`` maps layer → (C, K). Initialisation is keyed by (seed, layer)."""
    return nn.ModuleDict(
        {layer: LayerHead(channels, count, len(variants), seed, base_of(layer)) for layer, (channels, count) in outputs.items()}
    )


@dataclass(frozen=True, eq=False)
class Head:
    """The head that a probe fitted at one layer, without its controls. :func:`load` reads those of a run.

    ``head(grid)`` maps activations (B, C, h, w), as ``FrozenSD.activations`` returns them, to
    predictions (B, K, h, w). The mitigations of the run are applied first.

    ============  ===  ===================================================================================================
    predicts      K    unit
    ============  ===  ===================================================================================================
    position      2    row and column of the layer's grid, integers from 0; a classifier of rows and one of columns
    coordinates   2    the same, from a regression that is rounded to the grid
    depth         1    depth in the unit of the training images: metres for NYU Depth v2, scene units for rendered scenes
    content       4    the clean latent, in the units of the latents that the network gets
    projection    D    vectors to compare by cosine
    ============  ===  ===================================================================================================

    Args:
        layer: name of the layer, or of its variant at one of several timesteps or after a mitigation, such as ``mid__t261`` and
            ``mid__leace``.
        predicts: a name of the table.
        shape: (C, h, w) of the layer's activations. Channels have the order of the network.
        tensors: ``weight`` (K, C) and ``bias`` (K,) of :meth:`outputs`; for content also ``mean`` (h, w, 4) and ``scale`` (4,),
            by which the training targets were standardised.
        mitigation: fitted mitigations that are applied to activations first.

    Example:
        >>> import torch
        >>> from sdprobe import heads
        >>> tensors = {"weight": torch.ones(1, 8), "bias": torch.zeros(1)}
        >>> head = heads.Head("mid", "depth", (8, 4, 4), tensors)
        >>> head(torch.full((2, 8, 4, 4), 0.5)).unique()
        tensor([4.])
    """

    layer: str
    predicts: str
    shape: tuple[int, int, int]
    tensors: Mapping[str, Tensor]
    mitigation: Chain = field(default_factory=Chain)

    def __call__(self, grid: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"] | Int[Tensor, "b k h w"]:
        """Predictions for activations.

        Args:
            grid: activations (B, C, h, w) of the layer, without mitigations.

        Returns:
            (B, K, h, w), on the device of ``grid``.

        Raises:
            InputError: activations of another shape.
        """
        outputs = self.outputs(grid)
        if self.predicts in ("position", "coordinates"):
            _, height, width = self.shape
            return grid_positions(outputs.movedim(1, -1), height, width, self.predicts == "coordinates").movedim(-1, 1)
        if self.predicts == "content":
            mean, scale = (self.tensors[name].to(outputs.device) for name in ("mean", "scale"))
            # a channel that never varied in training has an infinite scale
            return outputs * torch.where(scale.isfinite(), scale, 0)[:, None, None] + mean.movedim(-1, 0)
        return outputs

    def outputs(self, grid: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """What the linear map gives: logits of rows, then of columns (``position``), coordinates in (−½, ½) (``coordinates``),
        standardised content (``content``), or the predictions themselves.

        Args:
            grid: activations (B, C, h, w) of the layer, without mitigations.

        Returns:
            float32 (B, K, h, w), on the device of ``grid``.

        Raises:
            InputError: activations of another shape.
        """
        if grid.ndim != 4 or tuple(grid.shape[1:]) != self.shape:
            raise InputError(
                f"Expected activations of {self.layer} of shape (B, {', '.join(map(str, self.shape))}), as its head was fitted "
                f"on, but got {tuple(grid.shape)}. Use the layer, the network and the image size of that run."
            )
        tokens = self.mitigation.to(grid.device).transform(grid).movedim(1, -1).float()
        weight, bias = (self.tensors[name].to(grid.device) for name in ("weight", "bias"))
        return nn.functional.linear(tokens, weight, bias).movedim(-1, 1)


def grid_positions(outputs: Float[Tensor, "*n k"], height: int, width: int, regression: bool) -> Int[Tensor, "*n 2"]:
    """(row, column) from logits of rows, then of columns, or from coordinates of a regression."""
    if not regression:
        return torch.stack([outputs[..., :height].argmax(-1), outputs[..., height:].argmax(-1)], dim=-1)
    sides = torch.tensor([height, width], device=outputs.device)
    return ((outputs + 0.5) * sides).floor().long().clamp(min=torch.zeros_like(sides), max=sides - 1)


def save(folder: str | Path, heads: Mapping[str, Head], **fitted_on: Any) -> None:
    """Write heads into a folder. Their mitigations are not written; a run writes them into the folder beside.

    Args:
        folder: created if it does not exist.
        heads: layer → head.
        **fitted_on: what a later use must agree with (see :func:`load`), such as ``timestep=50, **sd.describe()``.
            JSON-serialisable.

    Example:
        >>> import tempfile, torch
        >>> from sdprobe import heads
        >>> head = heads.Head("mid", "depth", (8, 4, 4), {"weight": torch.ones(1, 8), "bias": torch.zeros(1)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     heads.save(folder, {"mid": head}, timestep=50)
        ...     print(list(heads.load(folder, timestep=50)))
        ['mid']
    """
    # a file cannot hold one tensor under two names
    tensors = {f"{layer}/{name}": tensor.clone() for layer, head in heads.items() for name, tensor in head.tensors.items()}
    described = {layer: {"predicts": head.predicts, "shape": list(head.shape)} for layer, head in heads.items()}
    write_fit(Path(folder), NAME, tensors, {"heads": described, "fitted_on": fitted_on})


def load(folder: str | Path, **expected: Any) -> dict[str, Head]:
    """Read the heads of a run.

    Args:
        folder: a run folder, or where :func:`save` wrote.
        **expected: what your activations come from, such as ``timestep=50, size=512, **sd.describe()``. Each name that the file
            records, too, must have the same value there. Device, precision and model path are not compared.

    Returns:
        layer → head, with the mitigations of the run. A layer without a head raises InputError.

    Raises:
        InputError: no saved heads, damaged ones, or ones that were fitted on something else.

    Example:
        >>> import tempfile, torch
        >>> from sdprobe import heads
        >>> head = heads.Head("mid", "projection", (8, 4, 4), {"weight": torch.ones(16, 8), "bias": torch.zeros(16)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     heads.save(folder, {"mid": head})
        ...     heads.load(folder)["mid"](torch.rand(2, 8, 4, 4)).shape
        torch.Size([2, 16, 4, 4])
    """
    path = find_fit(folder, NAME, "Give the folder of a finished run whose probe has heads.")
    with intact("set of heads", path):
        record, tensors = read_fit(path, NAME)
        fitted_on: dict[str, Any] = record["fitted_on"]
        found = _Heads(path)
        for layer, entry in record["heads"].items():
            if entry["predicts"] not in PREDICTIONS:
                raise ValueError(f"no head predicts {entry['predicts']}")
            own = {name.removeprefix(f"{layer}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{layer}/")}
            shape = tuple(entry["shape"])
            if len(shape) != 3 or not all(type(side) is int and side > 0 for side in shape):
                raise ValueError(f"a shape {entry['shape']}")
            wanted = {"weight": 2, "bias": 1} | ({"mean": 3, "scale": 1} if entry["predicts"] == "content" else {})
            if {name: tensor.ndim for name, tensor in own.items()} != wanted or own["weight"].shape != (
                len(own["bias"]),
                shape[0],
            ):
                raise ValueError(f"tensors of {layer} that do not fit its shape")
            if not all(tensor.is_floating_point() for tensor in own.values()):
                raise ValueError(f"tensors of {layer} that are no floating-point numbers")
            found[layer] = Head(layer, entry["predicts"], shape, own)
        applied = {
            label: (bool(steps["maps"]), [step["name"] for step in steps["extraction"]])
            for label, steps in fitted_on.get("mitigations", {}).items()
        }
        if outside := [label for label in applied if label == ".." or Path(label).name != label]:
            raise ValueError(f"a mitigation in '{outside[0]}'")
    check_bound("set of heads", path, fitted_on, expected)
    for label, (mapped, extraction) in applied.items():
        names = [layer for layer in found if label_of(layer) == label]
        if mapped:
            _, chains, _ = read_mitigation(path.parent / "mitigation" / label, {})
            # concatenated layers have chains of their own, applied before
            chained = [layer for layer in names if unmitigated(layer) in chains]
            found.update({layer: replace(found[layer], mitigation=chains[unmitigated(layer)]) for layer in chained})
        if extraction:
            log.warning(
                "Heads of %s were fitted on activations that %s extracted. Give them such.",
                shown(", ".join(names)), shown(extraction[0]),
            )  # fmt: skip
    return found


class _Heads(dict[str, Head]):
    """Layer → head, with a sentence for a layer that has none."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def __missing__(self, layer: str) -> Head:
        raise InputError(
            f"Expected a layer with a head in {self.path}, {', '.join(self)}, but got '{layer}'. Use one of these."
        )

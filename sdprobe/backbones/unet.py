"""FrozenUNet: noisy latents → activation grids of the requested layers; stops after the deepest. Data path step 4."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sdprobe.backbones.architectures import meta_unet
from sdprobe.backbones.layers import layer_table, resolve
from sdprobe.utilities.errors import InputError


@dataclass(frozen=True)
class Conditioning:
    """Inputs of a U-Net besides the noisy latent: text states (1, L, D) and, for SDXL, a pooled text state (1, P).

    The first axis is 1 for the whole batch, or has one entry per image.
    """

    states: Float[Tensor, "_b _l _d"]
    pooled: Float[Tensor, "_b _p"] | None = None


# inputs besides text that a U-Net may need, and the setting of its configuration that shows it
CONDITIONS = {
    "class_embed_type": "class labels", "num_class_embeds": "class labels", "encoder_hid_dim_type": "projected states",
    "time_cond_proj_dim": "an embedding of the guidance scale", "addition_embed_type": "added states",
}  # fmt: skip


def check_conditions(config: Mapping[str, Any]) -> None:
    """Raises InputError if a U-Net of this configuration needs other inputs than text and, as in SDXL, sizes."""
    for setting, needed in CONDITIONS.items():
        value = config.get(setting)
        if value is not None and (setting, value) != ("addition_embed_type", "text_time"):
            raise InputError(
                f"Expected a U-Net that is conditioned on text alone, but this one needs {needed} ({setting}={value}). "
                "Use the text-to-image checkpoint that it was made from."
            )


FUSED = ("to_q", "to_k", "to_v")  # projections that diffusers can fuse, in this order
OUTPUT = "conv_out"  # the layer whose grid is the network's prediction
Edit = Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b c h w"]]
DEFAULT = "Use the pipeline without what changes attention (pipe.unet.set_default_attn_processor())."


class _Deepest(Exception):
    """Raised by the hook on the deepest requested layer to end the forward pass."""


class FrozenUNet(nn.Module):
    """A diffusers U-Net that never trains and returns the outputs of any of its layers.

    ``layers`` maps every canonical name to its layer, in execution order. ``table`` also has those inside attention.
    ``passes`` counts the images that went through.

    Raises:
        InputError: a U-Net that needs other inputs than text, see :func:`check_conditions`.
    """

    patch = 1  # latent cells per side of a token of the finest grid

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        check_conditions(unet.config)
        self.unet = unet.eval().requires_grad_(False)
        self.table = layer_table(unet, inside=True)
        self.layers = layer_table(unet)
        self.passes = 0

    @property
    def network(self) -> UNet2DConditionModel:
        """The U-Net, by the name that it has in every backbone."""
        return self.unet

    @property
    def config(self) -> Any:
        """The diffusers configuration of the U-Net."""
        return self.unet.config

    def train(self, mode: bool = True) -> "FrozenUNet":
        """Stay in evaluation mode, also if a Trainer asks for training mode."""
        return super().train(False)

    def forward(
        self,
        noisy: Float[Tensor, "b c h w"],
        timestep: int,
        conditioning: Conditioning,
        layers: Sequence[str],
        with_grad: bool = False,
        edits: Mapping[str, Edit] | None = None,
        outputs: dict[str, Any] | None = None,
    ) -> dict[str, Float[Tensor, "b _c _h _w"]]:
        """Activation grids of ``layers``; no module after the deepest of them runs.

        Sequences of tokens inside attention become grids without a copy, so their channels are last in memory.

        Args:
            noisy: noisy latents (B, 4, H, W), of any height and width.
            timestep: noise level, the same for the whole batch.
            conditioning: shared by the whole batch, or one per image.
            layers: canonical names, see :func:`sdprobe.backbones.layers.resolve`.
            with_grad: record gradients with respect to ``noisy``.
            edits: layer → function of its grid (B, C, h, w). The network goes on with what the function returns, and an edited
                layer among ``layers`` is read after the edit. An edit must not change its argument in place.
            outputs: a pass without edits fills an empty dictionary with the outputs of modules. Given to later passes on
                the same inputs, it stands in for the modules before the first edit. Results are the same bit for bit.

        Raises:
            InputError: attention that computes otherwise than diffusers' own, so that a layer inside it has no grid; an edit
                of a layer that does not exist or is after the deepest of ``layers``, or that returns another shape.
        """
        edits = edits or {}
        self._check_edits(edits, layers)
        grids: dict[str, Tensor] = {}
        with ExitStack() as stack:
            # not inference_mode: probes train on these tensors
            stack.enter_context(nullcontext() if with_grad else torch.no_grad())
            if outputs:
                stack.enter_context(self._replay(outputs, [*edits, *layers]))
            elif outputs is not None and not edits:
                stack.enter_context(self._record(outputs))
            edited = stack.enter_context(self._edit(edits))  # hooks run in the order in which they are registered
            stack.enter_context(self._capture(layers, grids))
            stack.enter_context(suppress(_Deepest))
            self._run(self.unet, noisy, timestep, conditioning)
        self.passes += len(noisy)
        if idle := [name for name in edits if name not in edited]:
            raise InputError(
                f"Expected the edit of {idle[0]} to take effect, but the module {self.table[idle[0]].path} did not run. "
                f"{DEFAULT}"
            )
        if absent := [name for name in layers if name not in grids]:
            raise InputError(
                f"Expected {absent[0]} to be computed by the module {self.table[absent[0]].path}, but it did not run. {DEFAULT}"
            )
        return grids

    def predict(
        self,
        noisy: Float[Tensor, "b c h w"],
        timestep: int,
        conditioning: Conditioning,
        edits: Mapping[str, Edit] | None = None,
        outputs: dict[str, Any] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """The output of the network.

        Args:
            noisy: noisy latents (B, 4, H, W).
            timestep: noise level.
            conditioning: shared by the whole batch, or one per image.
            edits: layer → function of its grid, as in :meth:`forward`.
            outputs: of modules, as in :meth:`forward`.

        Raises:
            InputError: see :meth:`forward`.
        """
        return self(noisy, timestep, conditioning, [OUTPUT], edits=edits, outputs=outputs)[OUTPUT]

    def shapes(self, latent: tuple[int, int], layers: Sequence[str]) -> dict[str, tuple[int, int, int]]:
        """(C, h, w) of every layer for latents of this height and width, in execution order, without running the network."""
        settings = {key: value for key, value in dict(self.config).items() if not key.startswith("_")}
        return dict(_shapes(json.dumps(settings), latent, tuple(layers)))

    def resolve(self, block: str | Iterable[str]) -> tuple[str, ...]:
        """Canonical names for a user's ``block``, in execution order; see :func:`sdprobe.backbones.layers.resolve`."""
        return resolve(block, self.table)

    def edited(self, layers: Sequence[str]) -> str:
        """The first of these layers, which is edited inside the network while the others are read.

        Raises:
            InputError: there is no other, or the first is an input of the network.
        """
        if len(layers) < 2 or layers[0] not in self.table:
            raise InputError(
                "Expected block to begin with a layer of the network, which is edited, and to have later ones, which are read, "
                f"with datamodule.inside=true, but got {', '.join(layers)}. Use block=[mid,up_1]."
            )
        return layers[0]

    def modules_of(self, name: str) -> list[nn.Module]:
        """The modules of a layer and, if it is the output of a stage, of all other layers of the stage.

        Raises:
            InputError: no such layer.
        """
        [name] = self.resolve([name])
        return [self.unet.get_submodule(layer.path) for key, layer in self.layers.items() if f"{key}_".startswith(f"{name}_")]

    def _check_edits(self, edits: Mapping[str, Edit], layers: Sequence[str]) -> None:
        order = {name: number for number, name in enumerate(self.table)}
        deepest = max(layers, key=order.__getitem__)
        for name in edits:
            if name not in order:
                raise InputError(
                    f"Expected edits of layers of the network, but got one of '{name}'. "
                    "python -m sdprobe.backbones NAME lists the layers."
                )
            if order[name] > order[deepest]:
                raise InputError(
                    f"Expected edits before the layer that is read, but {name} runs after {deepest}, the deepest of them. "
                    "Read a later layer, or leave the edit out."
                )

    @contextmanager
    def _edit(self, edits: Mapping[str, Edit]) -> Iterator[set[str]]:
        """Edit outputs of layers inside the block. Yields the names of the layers that were edited so far."""
        edited: set[str] = set()

        def changed(name: str, grid: Tensor) -> Tensor:
            found = edits[name](grid)
            if not isinstance(found, Tensor) or found.shape != grid.shape:
                got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise InputError(
                    f"Expected the edit of {name} to return a grid of its own shape {tuple(grid.shape)}, but got {got}. "
                    "Correct it."
                )
            edited.add(name)
            return found.to(grid)

        with _removed(handle for name in edits for handle in self._hooks(name, changed)):
            yield edited

    @contextmanager
    def _record(self, outputs: dict[str, Any]) -> Iterator[None]:
        """Fill ``outputs`` with what the modules of all layers return inside the block."""

        def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
            return lambda _module, _inputs, output: outputs.update({name: output})

        modules = {name: self.unet.get_submodule(layer.path) for name, layer in self.layers.items()}
        with _removed(module.register_forward_hook(keep(name)) for name, module in modules.items()):
            yield

    @contextmanager
    def _replay(self, outputs: Mapping[str, Any], needed: Sequence[str]) -> Iterator[None]:
        """Inside the block, modules return ``outputs`` up to the first layer that is edited or read, and compute nothing."""
        order = list(self.table)
        first = min(map(order.index, needed))
        inner = self.table[order[first]].path  # a layer inside attention is computed by its attention module
        with ExitStack() as stack:
            for name, layer in self.layers.items():
                if order.index(name) <= first and name in outputs and not inner.startswith(f"{layer.path}."):
                    stack.enter_context(_returning(self.unet.get_submodule(layer.path), outputs[name]))
            yield

    @contextmanager
    def _capture(self, layers: Sequence[str], grids: dict[str, Tensor]) -> Iterator[None]:
        """Fill ``grids``, and end the pass when they have every layer."""

        def keep(name: str, grid: Tensor) -> None:
            grids[name] = grid
            if len(grids) == len(set(layers)):
                raise _Deepest

        with _removed(handle for name in layers for handle in self._hooks(name, keep)):
            yield

    def _hooks(self, name: str, use: Callable[[str, Tensor], Tensor | None]) -> Iterator[RemovableHandle]:
        """Hooks that give the grid of a layer to ``use``. What it returns, if anything, replaces the grid in the network."""
        layer = self.table[name]
        module = self.unet.get_submodule(layer.path)
        if not layer.inside:
            yield module.register_forward_hook(lambda _module, _inputs, output: _with(output, use(name, _tensor(output))))
            return
        shapes: list[torch.Size] = []  # of the grid that goes into the attention module
        attention = self.unet.get_submodule(layer.path.partition(".transformer_blocks.")[0])
        yield attention.register_forward_pre_hook(lambda _module, inputs: shapes.append(inputs[0].shape))

        def tokens(output: Tensor) -> Tensor | None:
            grid = use(name, _grid(name, output, shapes[-1]))
            return None if grid is None else grid.flatten(2).transpose(1, 2)

        yield module.register_forward_hook(lambda _module, _inputs, output: tokens(output))
        parent, _, last = layer.path.rpartition(".")
        fused = getattr(self.unet.get_submodule(parent), "to_qkv", None)  # runs in their place after fuse_qkv_projections
        if fused is not None and last in FUSED:
            yield fused.register_forward_hook(lambda _module, _inputs, output: _part(output, FUSED.index(last), tokens))

    def _run(self, unet: nn.Module, noisy: Tensor, timestep: int, conditioning: Conditioning) -> None:
        batch = len(noisy)
        states = conditioning.states.expand(batch, -1, -1)
        added = None
        if self._takes_pooled():
            assert conditioning.pooled is not None
            # SDXL's size conditioning: original size, crop corner, target size, all in pixels
            height, width = (side * 8 for side in noisy.shape[-2:])
            time_ids = torch.tensor([[height, width, 0, 0, height, width]], device=noisy.device, dtype=noisy.dtype)
            added = {"text_embeds": conditioning.pooled.expand(batch, -1), "time_ids": time_ids.expand(batch, -1)}
        step = torch.tensor(timestep, device=noisy.device)
        unet(noisy, step, encoder_hidden_states=states, added_cond_kwargs=added, return_dict=False)

    def _shapes(self, latent: tuple[int, int], layers: Sequence[str]) -> dict[str, tuple[int, int, int]]:
        states = torch.empty(1, 1, self._state_width(), device="meta")
        pooled = torch.empty(1, self._pooled_width(), device="meta") if self._takes_pooled() else None
        noisy = torch.empty(1, self.config.in_channels, *latent, device="meta")
        grids = self(noisy, 0, Conditioning(states, pooled), layers)
        return {name: tuple(grids[name].shape[1:]) for name in self.table if name in grids}

    def _takes_pooled(self) -> bool:
        return self.config.addition_embed_type == "text_time"

    def _state_width(self) -> int:
        width = self.config.cross_attention_dim
        return width if isinstance(width, int) else width[0]

    def _pooled_width(self) -> int:
        return self.config.projection_class_embeddings_input_dim - 6 * self.config.addition_time_embed_dim


def _tensor(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else getattr(output, "sample", output)


def _with(output: Any, grid: Tensor | None) -> Any:
    """The output of a module with another grid in it, also where a skip connection has it; None for no change."""
    if grid is None or isinstance(output, Tensor):
        return grid
    if not isinstance(output, tuple):
        return type(output)(sample=grid)
    before = output[0]

    def replaced(part: Any) -> Any:
        return grid if part is before else tuple(map(replaced, part)) if isinstance(part, tuple) else part

    return replaced(output)


def _part(fused: Tensor, index: int, tokens: Callable[[Tensor], Tensor | None]) -> Tensor | None:
    """Fused projections with another one at ``index``; None for no change."""
    parts = list(fused.chunk(len(FUSED), dim=-1))
    found = tokens(parts[index])
    return None if found is None else torch.cat([*parts[:index], found, *parts[index + 1 :]], dim=-1)


@contextmanager
def _removed(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove hooks at the end of the block, also where one cannot be made."""
    handles: list[RemovableHandle] = []
    try:
        handles.extend(hooks)
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _returning(module: nn.Module, output: Any) -> Iterator[None]:
    """Inside the block, the module returns ``output`` whatever its inputs are. Its hooks run."""
    own = vars(module).get("forward")
    module.forward = lambda *_inputs, **_options: output
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _grid(name: str, tokens: Float[Tensor, "_b _n _c"], shape: torch.Size) -> Float[Tensor, "_b _c _h _w"]:
    """Tokens inside attention as a grid; ``shape`` is that of the grid (B, _, h, w) that the attention module got."""
    batch, _, height, width = shape
    if tokens.shape[:2] != (batch, height * width):
        raise InputError(
            f"Expected {name} to have a token for each of {height}×{width} places of {batch} images, but got "
            f"{tuple(tokens.shape[:2])} (images, tokens): tokens are merged, tiled or computed in parts. {DEFAULT}"
        )
    return tokens.contiguous().unflatten(1, (height, width)).permute(0, 3, 1, 2)  # copies nothing but fused projections


@lru_cache(256)
def _shapes(config: str, latent: tuple[int, int], layers: tuple[str, ...]) -> dict[str, tuple[int, int, int]]:
    """:meth:`FrozenUNet.shapes` of a U-Net of this configuration; networks of one architecture share them."""
    return FrozenUNet(meta_unet(json.loads(config)))._shapes(latent, layers)

"""FrozenUNet: noisy latents → activation grids of the requested layers; stops after the deepest. Data path step 4."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

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


class _Deepest(Exception):
    """Raised by the hook on the deepest requested layer to end the forward pass."""


class FrozenUNet(nn.Module):
    """A diffusers U-Net that never trains and returns the outputs of any of its layers.

    ``layers`` maps every canonical name to its layer, in execution order. ``passes`` counts the images that went through.

    Raises:
        InputError: a U-Net that needs other inputs than text, see :func:`check_conditions`.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        check_conditions(unet.config)
        self.unet = unet.eval().requires_grad_(False)
        self.layers = layer_table(unet)
        self.passes = 0

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
    ) -> dict[str, Float[Tensor, "b _c _h _w"]]:
        """Activation grids of ``layers``; no module after the deepest of them runs.

        Args:
            noisy: noisy latents (B, 4, H, W), of any height and width.
            timestep: noise level, the same for the whole batch.
            conditioning: shared by the whole batch, or one per image.
            layers: canonical names, see :func:`sdprobe.backbones.layers.resolve`.
            with_grad: record gradients with respect to ``noisy``.
        """
        grids: dict[str, Tensor] = {}
        # not inference_mode: probes train on these tensors
        with nullcontext() if with_grad else torch.no_grad(), self._capture(layers, grids), suppress(_Deepest):
            self._run(self.unet, noisy, timestep, conditioning)
        self.passes += len(noisy)
        return grids

    def shapes(self, latent: tuple[int, int], layers: Sequence[str]) -> dict[str, tuple[int, int, int]]:
        """(C, h, w) of every layer for latents of this height and width, in execution order, without running the network."""
        settings = {key: value for key, value in dict(self.config).items() if not key.startswith("_")}
        return dict(_shapes(json.dumps(settings), latent, tuple(layers)))

    def resolve(self, block: str | Sequence[str]) -> tuple[str, ...]:
        """Canonical names for a user's ``block``, in execution order; see :func:`sdprobe.backbones.layers.resolve`."""
        return resolve(block, self.layers)

    @contextmanager
    def _capture(self, layers: Sequence[str], grids: dict[str, Tensor]) -> Iterator[None]:
        deepest = max(layers, key=list(self.layers).index)

        def hook_of(name: str) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                grids[name] = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
                if name == deepest:
                    raise _Deepest

            return hook

        handles = [self.unet.get_submodule(self.layers[name].path).register_forward_hook(hook_of(name)) for name in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

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
        return {name: tuple(grids[name].shape[1:]) for name in self.layers if name in grids}

    def _takes_pooled(self) -> bool:
        return self.config.addition_embed_type == "text_time"

    def _state_width(self) -> int:
        width = self.config.cross_attention_dim
        return width if isinstance(width, int) else width[0]

    def _pooled_width(self) -> int:
        return self.config.projection_class_embeddings_input_dim - 6 * self.config.addition_time_embed_dim


@lru_cache(256)
def _shapes(config: str, latent: tuple[int, int], layers: tuple[str, ...]) -> dict[str, tuple[int, int, int]]:
    """:meth:`FrozenUNet.shapes` of a U-Net of this configuration; networks of one architecture share them."""
    return FrozenUNet(meta_unet(json.loads(config)))._shapes(latent, layers)

"""FrozenTransformer: noisy latents → activation grids of a diffusion transformer's blocks. Data path step 4.

Layers have the same names in every family, and numbers count blocks in execution order from 0:

- ``block_7``: image tokens that block 7 returns. FLUX's single-stream blocks continue the count of its double-stream blocks, as
  Lumina2's joint blocks continue that of its noise refiner.
- ``block_7_norm``: the normalised and modulated tokens that go into the attention of block 7.
- ``patch``: embedded tokens that enter the first block, with the position embedding that is added to them.

Text tokens never enter a grid. Grids are (B, C, h, w); tokens are in row-major order.
"""

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sdprobe.backbones import positions
from sdprobe.backbones.families import STEPS, Conditions, Family, family_of
from sdprobe.backbones.layers import Layer
from sdprobe.backbones.names import EMPTY, INPUTS, TOKEN_SETS
from sdprobe.utilities import expect
from sdprobe.utilities.errors import InputError


@dataclass(frozen=True)
class TokenLayer(Layer):
    """Tokens that a module returns or, ``inside`` a block, those that its attention gets."""

    @property
    def published(self) -> str:
        """The path in diffusers, as sdhelper writes it: ``transformer_blocks[3]``."""
        return super().published + " (input)" * self.inside


class _Deepest(Exception):
    """Raised by the hook on the deepest requested layer to end the forward pass."""


def token_layers(network: Any, family: Family) -> dict[str, TokenLayer]:
    """Every layer by canonical name, in execution order. The network may be on the ``meta`` device."""
    paths = [f"{blocks}.{i}" for blocks in family.blocks for i in range(len(network.get_submodule(blocks)))]
    layers = [TokenLayer("patch", family.patch)]
    for number, path in enumerate(paths):
        layers.append(TokenLayer(f"block_{number}_norm", f"{path}.{family.attention}", inside=True))
        layers.append(TokenLayer(f"block_{number}", path))
    return {layer.name: layer for layer in layers}


def stages(table: dict[str, TokenLayer]) -> tuple[str, ...]:
    """Blocks at 0, ¼, ½ and ¾ of the depth, and the last one."""
    count = sum(not layer.inside for layer in table.values()) - 1
    return tuple(dict.fromkeys(f"block_{number}" for number in (*(count * k // 4 for k in range(4)), count - 1)))


def other_name(network: "FrozenTransformer", name: str) -> str:
    """DiTF's k of a layer: the modulated input of FLUX's single-stream block k (arXiv 2505.18584).

    For the double-stream blocks, its k is another point inside a block, so that no layer has it.
    """
    found = re.fullmatch(r"single_transformer_blocks\.\d+\.attn", network.table[name].path)
    return f"k={name.split('_')[1]}" if found else ""


class FrozenTransformer(nn.Module):
    """A diffusion transformer of diffusers that never trains and returns the tokens of any of its blocks as grids.

    It has the interface of :class:`~sdprobe.backbones.unet.FrozenUNet`. ``layers`` maps every canonical name to its layer, in
    execution order. ``table`` also has the inputs of attention (``block_0_norm``). ``passes`` counts images.

    Args:
        network: of a family in :mod:`sdprobe.backbones.families`.
        position: mode of its position embeddings, see :meth:`positioned`.

    Raises:
        InputError: another network, position embeddings that it has not, or one that takes other inputs than its family's
            text-to-image pipeline gives.

    Example:
        >>> import torch
        >>> from diffusers import DiTTransformer2DModel
        >>> from sdprobe.backbones.transformer import FrozenTransformer
        >>> network = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, num_layers=4, sample_size=8)
        >>> dit = FrozenTransformer(network)
        >>> grids = dit(torch.randn(2, 4, 8, 8), 261, dit.without_text(), ["block_1", "block_2_norm"])
        >>> {layer: tuple(grid.shape) for layer, grid in grids.items()}
        {'block_1': (2, 16, 4, 4), 'block_2_norm': (2, 16, 4, 4)}
    """

    def __init__(self, network: nn.Module, position: str = "stored") -> None:
        super().__init__()
        self.family = family_of(network)
        positions.check(position, network, self.family)
        self.network: Any = network.eval().requires_grad_(False)
        self.table = token_layers(network, self.family)
        self.layers = {name: layer for name, layer in self.table.items() if not layer.inside}
        self.passes = 0
        self.position = position
        self._position_seed = 0

    @property
    def config(self) -> Any:
        """The diffusers configuration of the network."""
        return self.network.config

    @property
    def patch(self) -> int:
        """Latent cells per side of a token."""
        return 2 if self.family.name == "flux" else self.config.patch_size

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.config.in_channels // 4 if self.family.name == "flux" else self.config.in_channels

    @property
    def sample_size(self) -> int:
        """Side of the latents that the network was made for, in cells; FLUX's configuration does not say, its pipeline does."""
        return self.config.get("sample_size") or 128

    @property
    def pixels_per_cell(self) -> int:
        """Pixels per side of a latent cell of the published autoencoders."""
        return 32 if self.family.name == "sana" else 8

    @property
    def stored(self) -> int:
        """How many numbers a checkpoint of the network stores: parameters and SD3's table of positions."""
        return sum(tensor.numel() for tensor in self.network.state_dict().values())

    @property
    def channels(self) -> int:
        """Channels of every token."""
        return self.config.get("hidden_size") or self.config.num_attention_heads * self.config.attention_head_dim

    def train(self, mode: bool = True) -> "FrozenTransformer":
        """Stay in evaluation mode, also if a Trainer asks for training mode."""
        return super().train(False)

    def forward(
        self,
        noisy: Float[Tensor, "b c h w"],
        timestep: float,
        conditioning: Conditions,
        layers: Sequence[str],
        with_grad: bool = False,
    ) -> dict[str, Float[Tensor, "b _c _h _w"]]:
        """Activation grids of ``layers``; no module after the deepest of them runs. Channels are last in memory.

        The network is called with the arguments that its own pipeline passes at this noise level without guidance.

        Args:
            noisy: noisy latents (B, C, H, W), sides a multiple of :attr:`patch`.
            timestep: noise level of the whole batch, 0 to 1000. With rectified flow it is σ · 1000, any number. With DDPM
                (PixArt, DiT) it is an integer below 1000.
            conditioning: text, of the whole batch or one per image.
            layers: canonical names, see :meth:`resolve`.
            with_grad: record gradients with respect to ``noisy``.

        Raises:
            InputError: latents, a noise level or conditions that this network does not take.
        """
        grid = self._grid(noisy.shape)
        self._check_timestep(timestep)
        given = conditioning.of_batch(len(noisy))
        self._check_conditions(given)
        arguments = self.family.arguments(self.network, noisy.contiguous(), timestep, given)
        seed = self._position_seed
        grids: dict[str, Tensor] = {}
        with (
            nullcontext() if with_grad else torch.no_grad(),
            positions.changed(self.network, self.family, self.position, grid, seed, arguments),
            self._capture(layers, grids, grid, _text_lengths(given)),
            suppress(_Deepest),
        ):
            self.network(**arguments)
        self.passes += len(noisy)
        return grids

    def without_text(
        self, tokens: int | None = None, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Conditions:
        """Zeros in place of text states, or the null class: conditions without a text encoder, for networks on their own.

        Zeros are not the empty prompt. Some published works use them.

        Args:
            tokens: number of text tokens; None is that of the family's pipeline.
            device: of the conditions; None is that of the network.
            dtype: of the states; None is that of the network.
        """
        kind: dict[str, Any] = {"device": device or self.network.device, "dtype": dtype or self.network.dtype}
        if self.family.width is None:
            return Conditions(labels=torch.tensor([self.config.num_embeds_ada_norm], device=kind["device"]))
        length = self.family.tokens if tokens is None else tokens
        pooled = self.config.get("pooled_projection_dim")
        return Conditions(
            torch.zeros(1, length, self.config[self.family.width], **kind),
            torch.zeros(1, pooled, **kind) if pooled else None,
            torch.ones(1, length, dtype=torch.int64, device=kind["device"]) if "mask" in self.family.returned else None,
        )

    def shapes(self, latent: tuple[int, int], layers: Sequence[str]) -> dict[str, tuple[int, int, int]]:
        """(C, h, w) of every layer for latents of this height and width, in execution order, without running the network."""
        height, width = self._grid((1, self.latent_channels, *latent))
        return {name: (self.channels, height, width) for name in self.table if name in layers}

    def resolve(self, block: str | Iterable[str]) -> tuple[str, ...]:
        """Canonical names for a user's ``block``, in execution order, without repetition.

        ``block`` is a name, a list, a glob (``block_1*``), ``stages`` (blocks at 0, ¼, ½, ¾ of the depth, and the last),
        ``all`` (``patch`` and all blocks), ``inside`` (inputs of attention), or the path of a block in diffusers
        (``transformer_blocks[3]``). A glob that matches anything else leaves out inputs of attention.

        Raises:
            InputError: a name that is no layer of this network. The message suggests the nearest name.
        """
        wanted = {name for item in ([block] if isinstance(block, str) else block) for name in self._expand(str(item))}
        if not wanted:
            raise InputError(EMPTY.format("block_0"))
        return tuple(name for name in (*INPUTS, *self.table) if name in wanted)

    @contextmanager
    def positioned(self, mode: str, seed: int = 0) -> Iterator["FrozenTransformer"]:
        """Other position embeddings inside a ``with`` block. Afterwards the network computes bit for bit what it did before.

        Args:
            mode: ``stored``, ``zero`` (every token gets the embedding of no or of the same place), ``permuted`` (places are
                exchanged at random), or ``shifted`` (places move by half the grid, see :mod:`sdprobe.backbones.positions`).
            seed: of the permutation.

        Raises:
            InputError: another mode, or a network without position embeddings.
        """
        positions.check(mode, self.network, self.family)
        before = self.position, self._position_seed
        self.position, self._position_seed = mode, expect.as_count("seed", seed, 0, 2**63 - 1)
        try:
            yield self
        finally:
            self.position, self._position_seed = before

    @contextmanager
    def _capture(
        self, layers: Sequence[str], grids: dict[str, Tensor], grid: tuple[int, int], text: list[int]
    ) -> Iterator[None]:
        """Fill ``grids``, and end the pass when they have every layer."""

        def keep(name: str, tokens: Tensor) -> None:
            grids[name] = _image_tokens(tokens, grid[0] * grid[1], text).unflatten(1, grid).permute(0, 3, 1, 2)
            if len(grids) == len(set(layers)):
                raise _Deepest

        handles: list[RemovableHandle] = []
        try:
            for name in layers:
                handles.append(self._hook(name, keep))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str, keep: Callable[[str, Tensor], None]) -> RemovableHandle:
        layer = self.table[name]
        module = self.network.get_submodule(layer.path)
        if layer.inside:
            return module.register_forward_pre_hook(
                lambda _module, given, named: keep(name, given[0] if given else named["hidden_states"]), with_kwargs=True
            )
        # two-stream blocks return (text, image)
        return module.register_forward_hook(
            lambda _module, _inputs, output: keep(name, output[-1] if isinstance(output, tuple) else output)
        )

    def _expand(self, item: str) -> list[str]:
        inside = [name for name, layer in self.table.items() if layer.inside]
        if item in TOKEN_SETS:
            return {"stages": list(stages(self.table)), "all": list(self.layers), "inside": inside}[item]
        if item in self.table or item in INPUTS:
            return [item]
        path = re.sub(r"\[(\d+)\]", r".\1", item)
        if named := [name for name, layer in self.layers.items() if layer.path == path]:
            return named
        found = fnmatch.filter(self.table, item)
        if not found:
            [nearest] = difflib.get_close_matches(item, [*self.table, *TOKEN_SETS, *INPUTS], n=1, cutoff=0.0)
            last = list(self.layers)[-1]
            raise InputError(
                f"Expected block to be a layer of {self.family.network}, which has patch, block_0 to {last}, and block_0_norm "
                f"to {last}_norm, or 'stages' or 'all', but got '{item}'. The nearest name is '{nearest}'."
            )
        return [name for name in found if name not in inside] or found

    def _grid(self, shape: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of tokens. Raises InputError for latents that the network does not take."""
        kind, height, width = self.family.network, shape[-2], shape[-1]
        if len(shape) != 4 or shape[1] != self.latent_channels:
            raise InputError(
                f"Expected latents (B, {self.latent_channels}, H, W) for {kind}, but got {tuple(shape)}. "
                "Use the VAE of its checkpoint."
            )
        if height % self.patch or width % self.patch:
            raise InputError(
                f"Expected latent sides to be multiples of {self.patch} cells for {kind}, but got {height}×{width}. "
                "Resize or crop the images."
            )
        rows, columns = height // self.patch, width // self.patch
        if self.family.name == "dit" and rows != columns:
            raise InputError(f"Expected square latents for {kind}, but got {height}×{width}. Crop the images to squares.")
        limits = self.config.get("axes_lens", [0, *[self.config.get("pos_embed_max_size")] * 2])[1:]
        if any(limit and side > limit for side, limit in zip((rows, columns), limits, strict=True)):
            raise InputError(
                f"Expected at most {limits[0]}×{limits[1]} tokens, for which {kind} has position embeddings, but got "
                f"{rows}×{columns}. Use smaller images."
            )
        return rows, columns

    def _check_timestep(self, timestep: float) -> None:
        if self.family.flow:
            expect.between("timestep", timestep, 0, STEPS, "It is 1000 times the noise level σ.")
            return
        expect.between("timestep", timestep, 0, STEPS - 1, "Features are usually read between 1 and 300.")
        expect.integer("timestep", timestep)

    def _check_conditions(self, given: Conditions) -> None:
        needed = {"labels"} if self.family.width is None else {name for name in self.family.returned if name}
        for name in sorted(needed):
            if getattr(given, name) is None:
                raise InputError(
                    f"Expected conditions of {self.family.network} to have {name}, but they are None. "
                    "Encode a prompt with the checkpoint's pipeline, or use without_text()."
                )
        if self.family.width is not None and given.states is not None:
            width = self.config[self.family.width]
            if given.states.shape[-1] != width:
                raise InputError(
                    f"Expected text states of {width} channels for {self.family.network}, but got {given.states.shape[-1]}. "
                    "Use the text encoders of its checkpoint."
                )


def _text_lengths(given: Conditions) -> list[int]:
    """How many text tokens precede the image's in a joint sequence, of every image."""
    if given.mask is not None:
        return [int(length) for length in given.mask.sum(1).tolist()]
    return [] if given.states is None else [given.states.shape[1]] * len(given.states)


def _image_tokens(tokens: Float[Tensor, "b _s c"], count: int, text: list[int]) -> Float[Tensor, "b _n c"]:
    """The image's tokens, which come after the text of a joint sequence. Images with shorter texts have padding at the end."""
    if tokens.shape[1] == count:
        return tokens
    if len(set(text)) == 1:
        return tokens[:, text[0] : text[0] + count]
    return torch.stack([each[length : length + count] for each, length in zip(tokens, text, strict=True)])

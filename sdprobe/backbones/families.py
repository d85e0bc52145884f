"""Families of diffusion transformers: where their blocks are, and how their own pipelines call them. Data path step 4.

A function of this module builds the arguments of one call of a network, as the family's pipeline in diffusers 0.42 builds them
at the same noise level without classifier-free guidance. Tests compare them with the arguments that the pipeline passes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdprobe.backbones.capabilities import KINDS
from sdprobe.utilities.errors import InputError

GUIDANCE = 3.5  # scale that FLUX.1-dev takes as an input: the default of its pipeline
STEPS = 1000  # of training: a timestep t is the noise level σ = t / 1000 of rectified flow


@dataclass(frozen=True)
class Conditions:
    """Inputs of a diffusion transformer besides noisy latent and noise level.

    The first axis is 1 for the whole batch, or has one entry per image.

    Attributes:
        states: text states (B, L, D); None for class-conditional networks.
        pooled: pooled text state (B, P), where the family has one.
        mask: 1 where ``states`` are text, 0 where they are padding, (B, L), where the family has one.
        labels: number of the class (B,) of class-conditional networks.
    """

    states: Float[Tensor, "_b _l _d"] | None = None
    pooled: Float[Tensor, "_b _p"] | None = None
    mask: Int[Tensor, "_b _l"] | None = None
    labels: Int[Tensor, " _b"] | None = None

    def of_batch(self, batch: int) -> "Conditions":
        """One entry per image of a batch, in memory of its own as a pipeline has it."""
        tensors = {name: getattr(self, name) for name in ("states", "pooled", "mask", "labels")}
        for name, tensor in tensors.items():
            if tensor is not None and len(tensor) not in (1, batch):
                raise InputError(f"Expected {name} of one image or of {batch}, but got {len(tensor)}. Give one per image.")
        spread = {name: part.expand(batch, *part.shape[1:]) for name, part in tensors.items() if part is not None}
        return Conditions(**{name: part.contiguous() for name, part in spread.items()})


Arguments = dict[str, Any]
Adapter = Callable[[Any, Tensor, float, Conditions], Arguments]


@dataclass(frozen=True)
class Family:
    """Networks of one diffusers class.

    Attributes:
        name: of the family.
        network: class of the network.
        pipelines: classes of text-to-image (or class-to-image) pipelines whose network is read.
        blocks: paths of the lists of blocks, in execution order.
        attention: module of a block whose input is the normalised and modulated one of its attention.
        patch: module whose output are the embedded tokens that enter the first block.
        flow: whether the network was trained with rectified flow, x = (1 − σ) z + σ ε, or with DDPM's noise.
        arguments: (network, noisy latent, timestep, conditions) → arguments of the call.
        width: setting that says how many channels the text states have; None without text.
        tokens: how many text tokens the pipeline passes.
        encoders: parts of the pipeline that encode the prompt, and must be there.
        optional: parts that the pipeline replaces by zeros where they are absent.
        returned: what the pipeline's ``encode_prompt`` returns, in its order.
    """

    name: str
    network: str
    pipelines: tuple[str, ...]
    blocks: tuple[str, ...]
    attention: str
    patch: str
    flow: bool
    arguments: Adapter
    width: str | None
    tokens: int
    encoders: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    returned: tuple[str | None, ...] = ()

    @property
    def position(self) -> str:
        """``added`` (a table is added to the tokens), ``rotary`` (angles in every attention), or ``none``."""
        return KINDS[self.network].position


def _integer_steps(noisy: Tensor, timestep: float) -> Tensor:
    return torch.tensor([int(timestep)], device=noisy.device).expand(len(noisy))


def _flow_steps(noisy: Tensor, timestep: float) -> Tensor:
    """σ · 1000 of the batch, in the float32 arithmetic of the scheduler, which starts from σ."""
    sigma = torch.tensor(timestep / STEPS, dtype=torch.float32, device=noisy.device)
    return (sigma * STEPS).expand(len(noisy))


def _pixart(network: Any, noisy: Tensor, timestep: float, given: Conditions) -> Arguments:
    sizes: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if network.use_additional_conditions:  # the checkpoints of α for 1024 pixels
        height, width = (side * 8 for side in noisy.shape[-2:])
        rows = len(noisy), 1
        sizes = {
            "resolution": torch.tensor([height, width]).repeat(*rows).to(noisy.device, noisy.dtype),
            "aspect_ratio": torch.tensor([float(height / width)]).repeat(*rows).to(noisy.device, noisy.dtype),
        }
    return {
        "hidden_states": noisy,
        "encoder_hidden_states": given.states,
        "encoder_attention_mask": given.mask,
        "timestep": _integer_steps(noisy, timestep),
        "added_cond_kwargs": sizes,
        "return_dict": False,
    }


def _sd3(network: Any, noisy: Tensor, timestep: float, given: Conditions) -> Arguments:
    return {
        "hidden_states": noisy,
        "timestep": _flow_steps(noisy, timestep),
        "encoder_hidden_states": given.states,
        "pooled_projections": given.pooled,
        "joint_attention_kwargs": None,
        "return_dict": False,
    }


def packed(latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b _n _c"]:
    """Blocks of 2 × 2 cells as tokens, rows first: how FLUX takes latents."""
    batch, channels, height, width = latents.shape
    cells = latents.contiguous().view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(batch, height * width // 4, channels * 4)


def _flux(network: Any, noisy: Tensor, timestep: float, given: Conditions) -> Arguments:
    assert given.states is not None
    height, width = (side // 2 for side in noisy.shape[-2:])
    ids = torch.zeros(height, width, 3, device=noisy.device)
    ids[..., 1], ids[..., 2] = torch.arange(height)[:, None], torch.arange(width)
    scale = torch.full([1], GUIDANCE, dtype=torch.float32, device=noisy.device).expand(len(noisy))
    return {
        "hidden_states": packed(noisy),
        "timestep": _flow_steps(noisy, timestep).to(noisy.dtype) / STEPS,
        "guidance": scale if network.config.guidance_embeds else None,
        "pooled_projections": given.pooled,
        "encoder_hidden_states": given.states,
        "txt_ids": torch.zeros(given.states.shape[1], 3, device=noisy.device, dtype=noisy.dtype),
        "img_ids": ids.view(height * width, 3).to(noisy.dtype),
        "joint_attention_kwargs": {},
        "return_dict": False,
    }


def _dit(network: Any, noisy: Tensor, timestep: float, given: Conditions) -> Arguments:
    return {"hidden_states": noisy, "timestep": _integer_steps(noisy, timestep), "class_labels": given.labels}


def _sana(network: Any, noisy: Tensor, timestep: float, given: Conditions) -> Arguments:
    return {
        "hidden_states": noisy,
        "encoder_hidden_states": given.states,
        "encoder_attention_mask": given.mask,
        "timestep": _flow_steps(noisy, timestep) * network.config.timestep_scale,
        "attention_kwargs": None,
        "return_dict": False,
    }


def _lumina2(network: Any, noisy: Tensor, timestep: float, given: Conditions) -> Arguments:
    return {
        "hidden_states": noisy,
        "timestep": 1 - _flow_steps(noisy, timestep) / STEPS,  # 0 is noise, 1 the image
        "encoder_hidden_states": given.states,
        "encoder_attention_mask": given.mask,
        "attention_kwargs": None,
        "return_dict": False,
    }


FAMILIES = (
    Family(
        name="pixart", network="PixArtTransformer2DModel", pipelines=("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
        blocks=("transformer_blocks",), attention="attn1", patch="pos_embed", flow=False, arguments=_pixart,
        width="caption_channels", tokens=300, encoders=("text_encoder",), returned=("states", "mask"),
    ),
    Family(
        name="sd3", network="SD3Transformer2DModel", pipelines=("StableDiffusion3Pipeline",),
        blocks=("transformer_blocks",), attention="attn", patch="pos_embed", flow=True, arguments=_sd3,
        width="joint_attention_dim", tokens=77 + 256, encoders=("text_encoder", "text_encoder_2"),
        optional=("text_encoder_3",), returned=("states", None, "pooled"),
    ),
    Family(
        name="flux", network="FluxTransformer2DModel", pipelines=("FluxPipeline",),
        blocks=("transformer_blocks", "single_transformer_blocks"), attention="attn", patch="x_embedder", flow=True,
        arguments=_flux, width="joint_attention_dim", tokens=512,
        encoders=("text_encoder", "text_encoder_2"), returned=("states", "pooled"),
    ),
    Family(
        name="dit", network="DiTTransformer2DModel", pipelines=("DiTPipeline",),
        blocks=("transformer_blocks",), attention="attn1", patch="pos_embed", flow=False, arguments=_dit,
        width=None, tokens=0,
    ),
    Family(
        name="sana", network="SanaTransformer2DModel", pipelines=("SanaPipeline",),
        blocks=("transformer_blocks",), attention="attn1", patch="patch_embed", flow=True, arguments=_sana,
        width="caption_channels", tokens=300, encoders=("text_encoder",), returned=("states", "mask"),
    ),
    Family(
        name="lumina2", network="Lumina2Transformer2DModel", pipelines=("Lumina2Pipeline",),
        blocks=("noise_refiner", "layers"), attention="attn", patch="x_embedder", flow=True, arguments=_lumina2,
        width="cap_feat_dim", tokens=256, encoders=("text_encoder",), returned=("states", "mask"),
    ),
)  # fmt: skip


def family_of(network: Any) -> Family:
    """The family of a network, by the name of its class.

    Raises:
        InputError: a class of no family, or a network that takes other inputs than its family's pipeline gives.
    """
    kind = type(network).__name__
    found = next((family for family in FAMILIES if family.network == kind), None)
    if found is None:
        known = ", ".join(family.network for family in FAMILIES)
        raise InputError(f"Expected a diffusion transformer ({known}), but got {kind}. Use a checkpoint of one of these.")
    if found.name == "sana" and network.config.guidance_embeds:
        raise InputError(
            "Expected a Sana network that takes text and noise level, but this one also takes a guidance scale (Sana-Sprint). "
            "Use the checkpoint that it was made from."
        )
    return found

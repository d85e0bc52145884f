"""Tiny random pipelines of every family of diffusion transformers, with the parts that the real ones have."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

TEXT = 24  # channels of text states
CLIP = 12  # channels of each of SD3's two CLIP encoders
HEADS = {"num_attention_heads": 4, "attention_head_dim": 16}
LETTERS = [*"abcdefghijklmnopqrstuvwxyz .,:<>"]
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "pixart": lambda **more: PixArtTransformer2DModel(
        **{**HEADS, "num_layers": 4, "cross_attention_dim": 64, "sample_size": 16, "caption_channels": TEXT, **more}
    ),
    "sd3": lambda **more: SD3Transformer2DModel(
        **{
            **HEADS, "num_layers": 4, "sample_size": 16, "joint_attention_dim": TEXT, "caption_projection_dim": 64,
            "pooled_projection_dim": 2 * CLIP, "pos_embed_max_size": 24, **more,
        }
    ),
    "flux": lambda **more: FluxTransformer2DModel(
        **{
            **HEADS, "axes_dims_rope": (4, 6, 6), "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": TEXT,
            "pooled_projection_dim": CLIP, "guidance_embeds": True, **more,
        }
    ),
    "dit": lambda **more: DiTTransformer2DModel(**{**HEADS, "num_layers": 4, "sample_size": 16, "out_channels": 8, **more}),
    "sana": lambda **more: SanaTransformer2DModel(
        **{
            **HEADS, "num_layers": 4, "num_cross_attention_heads": 4, "cross_attention_head_dim": 16, "cross_attention_dim": 64,
            "caption_channels": TEXT, "sample_size": 16, "timestep_scale": 0.5, **more,
        }
    ),
    "lumina2": lambda **more: Lumina2Transformer2DModel(
        **{
            "hidden_size": 64, "num_layers": 3, "num_refiner_layers": 1, "num_attention_heads": 4, "num_kv_heads": 2,
            "multiple_of": 16, "axes_dim_rope": (4, 6, 6), "axes_lens": (300, 64, 64), "cap_feat_dim": TEXT, **more,
        }
    ),
}  # fmt: skip
FAMILIES = tuple(NETWORKS)


def network(family: str, seed: int = 0, **more: Any) -> nn.Module:
    """A random network of a family with 4 blocks of 64 channels; ``more`` changes its configuration."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[family](**more).eval()


def tokenizer(length: int = 512) -> PreTrainedTokenizerFast:
    """Letters are tokens. Texts begin and end with one of their own, and are padded on the right."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = {word: number for number, word in enumerate([*special, *LETTERS])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=length,
        padding_side="right",
    )  # fmt: skip


def clip(kind: type, width: int = CLIP) -> nn.Module:
    return kind(
        CLIPTextConfig(
            vocab_size=64, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            projection_dim=width, bos_token_id=1, eos_token_id=2,
        )
    ).eval()  # fmt: skip


def t5() -> nn.Module:
    return T5EncoderModel(T5Config(vocab_size=64, d_model=TEXT, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).eval()


def gemma() -> nn.Module:
    return Gemma2Model(
        Gemma2Config(
            vocab_size=64, hidden_size=TEXT, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    ).eval()  # fmt: skip


def vae(channels: int, scaling: float, shift: float | None = None) -> AutoencoderKL:
    """One with a shift has no quantising convolutions, as those of SD3 and FLUX."""
    more = {"scaling_factor": scaling, "shift_factor": shift, "use_quant_conv": not shift, "use_post_quant_conv": not shift}
    return AutoencoderKL(
        latent_channels=channels, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **more,
    ).eval()  # fmt: skip


def deep_autoencoder() -> AutoencoderDC:
    """Sana's autoencoder, of 32 pixels per cell."""
    sides = {"block_types": ("ResBlock",) * 6, "block_out_channels": (8,) * 5 + (32,), "layers_per_block": (1,) * 6}
    both = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sides.items()}
    return AutoencoderDC(
        latent_channels=32, **both, encoder_qkv_multiscales=((),) * 6, decoder_qkv_multiscales=((),) * 6, scaling_factor=0.41407
    ).eval()


def pipeline(name: str, seed: int = 0, **more: Any) -> Any:
    """A pipeline of a family (``pixart_sigma`` has a class of its own); ``more`` replaces parts."""
    family = name.split("_")[0]
    flow = FlowMatchEulerDiscreteScheduler()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: dict[str, Any] = {"transformer": NETWORKS[family](**({"sample_size": 32} if family == "sana" else {})).eval()}
        if family == "pixart":
            parts |= {"vae": vae(4, 0.18215), "text_encoder": t5(), "tokenizer": tokenizer()}
            parts["scheduler"] = DPMSolverMultistepScheduler()
            kind: Any = PixArtSigmaPipeline if name == "pixart_sigma" else PixArtAlphaPipeline
        elif family == "sd3":
            parts |= {"vae": vae(16, 1.5305, 0.0609), "scheduler": flow}
            parts |= {"text_encoder": clip(CLIPTextModelWithProjection), "tokenizer": tokenizer(77)}
            parts |= {"text_encoder_2": clip(CLIPTextModelWithProjection), "tokenizer_2": tokenizer(77)}
            parts |= {"text_encoder_3": t5(), "tokenizer_3": tokenizer()}
            kind = StableDiffusion3Pipeline
        elif family == "flux":
            parts |= {"vae": vae(16, 0.3611, 0.1159), "scheduler": flow}
            parts |= {"text_encoder": clip(CLIPTextModel), "tokenizer": tokenizer(77)}
            parts |= {"text_encoder_2": t5(), "tokenizer_2": tokenizer()}
            kind = FluxPipeline
        elif family == "dit":
            parts |= {"vae": vae(4, 0.18215), "scheduler": DDIMScheduler(), "id2label": {3: "cat, tabby", 7: "dog"}}
            kind = DiTPipeline
        elif family == "sana":
            parts |= {"vae": deep_autoencoder(), "text_encoder": gemma(), "tokenizer": tokenizer(), "scheduler": flow}
            kind = SanaPipeline
        else:
            parts |= {"vae": vae(16, 0.3611, 0.1159), "text_encoder": gemma(), "tokenizer": tokenizer(), "scheduler": flow}
            kind = Lumina2Pipeline
    made = kind(**(parts | more))
    made.set_progress_bar_config(disable=True)
    return made

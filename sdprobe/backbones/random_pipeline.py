"""Pipelines with random weights: ``backbone=tiny``, and folders in the full shape of a preset, to try sdprobe offline.

``python -m sdprobe.backbones.random_pipeline sd15 DIR`` writes an SD-1.5-shaped diffusers folder with random weights.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sdprobe.backbones.architectures import preset_config
from sdprobe.backbones.saving import save_folder
from sdprobe.backbones.weights import random_unet

# Stable Diffusion's noise schedule
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1}


def random_pipeline(
    model: str = "tiny", seed: int = 0, dtype: torch.dtype = torch.float32, narrower: tuple[int, int] = (1, 1)
) -> StableDiffusionPipeline:
    """A ``StableDiffusionPipeline`` with the U-Net of preset ``model`` (SD-1.x or 2.x shape) and random weights.

    The VAE has the shape of kl-f8: full width for full-width presets, a few channels for ``tiny``. Its scaling factor is set
    so that latents of white noise have about unit scale. The text encoder is one small layer; the tokenizer knows single
    bytes. ``narrower`` divides the widths of the U-Net and VAE of a full-width preset.
    """
    config = preset_config(model)
    config = config | {"block_out_channels": [width // narrower[0] for width in config["block_out_channels"]]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = _vae((8, 16, 16, 16) if model == "tiny" else tuple(width // narrower[1] for width in (128, 256, 512, 512)))
        tokenizer = _tokenizer()
        text_encoder = _text_encoder(tokenizer, config["cross_attention_dim"])
    return StableDiffusionPipeline(
        vae=vae.to(dtype),
        text_encoder=text_encoder.to(dtype),
        tokenizer=tokenizer,
        unet=random_unet(config, seed, dtype),
        scheduler=DDIMScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _vae(widths: tuple[int, ...]) -> AutoencoderKL:
    vae = AutoencoderKL(
        block_out_channels=widths,
        layers_per_block=1 if widths[0] < 32 else 2,
        norm_num_groups=min(32, widths[0] // 2),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=512,
    )
    with torch.no_grad():
        scale = vae.encode(torch.rand(1, 3, 64, 64) * 2 - 1).latent_dist.mean.std().item()
    vae.register_to_config(scaling_factor=1 / scale)
    return vae


def _tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer without merges: every byte is a token."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    # byte-level BPE writes unprintable bytes as the characters from 256 on
    characters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    pieces = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=77)


def _text_encoder(tokenizer: CLIPTokenizer, width: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=1,
            num_attention_heads=width // 16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a pipeline folder with random weights (safetensors, half precision)."""
    parser = argparse.ArgumentParser(prog="python -m sdprobe.backbones.random_pipeline", description=main.__doc__)
    parser.add_argument("model", choices=["tiny", "sd14", "sd15", "sd21", "sd_turbo"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    save_folder(random_pipeline(options.model, options.seed, torch.float16), options.folder)


if __name__ == "__main__":
    main()

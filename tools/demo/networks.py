"""The denoising networks of the demo models, each with the text encoder that conditions it and its linear maps for training.

`UNet` has Stable Diffusion's stages. `DiT` is a transformer of PixArt's class (Chen et al., 2024, arXiv 2310.00426): no
convolution and no skip connection, so that everything passes through its blocks, and a position embedding added to the tokens.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from jaxtyping import Float, Int
from omegaconf import DictConfig
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel

from tools.demo.parts import names
from tools.demo.text import t5_encoder, text_encoder

ALIGNED = 2  # index of block_out_channels for the output of up_1
DEEP = ("mid", "up_0", "up_1")  # stages whose outputs are trained to predict the clean latent, pooled to their grid
ATTENDING = (False, True, True, False)  # down stages with attention: 64, 32, 16, 8 tokens per side; the middle (8) has it, too

Prediction = tuple[Float[Tensor, "b 4 h w"], Float[Tensor, "b k h w"], list[Float[Tensor, "b 4 _ _"]]]


class Denoiser(nn.Module, ABC):
    """A denoising network and its text encoder."""

    text: CLIPTextModel | T5EncoderModel

    @property
    @abstractmethod
    def network(self) -> Any:
        """The denoising network, a model of diffusers."""

    @abstractmethod
    def forward(self, noisy: Float[Tensor, "b 4 h w"], timesteps: Int[Tensor, "b"], tokens: Int[Tensor, "b l"]) -> Prediction:
        """(The predicted velocity, logits of the part at every cell, the pooled clean latent as deep stages predict it.)"""

    @abstractmethod
    def pipeline(self, vae: AutoencoderKL, words: CLIPTokenizer, scheduler: Any) -> DiffusionPipeline:
        """What diffusers saves and samples with."""

    def load(self, folder: str) -> None:
        """Take the weights of a finished folder."""
        part = "unet" if isinstance(self.network, UNet2DConditionModel) else "transformer"
        self.network.load_state_dict(type(self.network).from_pretrained(folder, subfolder=part).float().state_dict())
        self.text.load_state_dict(type(self.text).from_pretrained(folder, subfolder="text_encoder").float().state_dict())


class UNet(Denoiser):
    """Stable Diffusion's stages; in training also linear maps from up_1's tokens to parts and from the tokens of the deep
    stages to the clean latent.
    """

    def __init__(self, config: DictConfig, words: CLIPTokenizer) -> None:
        super().__init__()
        self.text = text_encoder(words, config.text_width, config.text_layers)
        self.unet = UNet2DConditionModel(
            sample_size=64,
            layers_per_block=2,
            block_out_channels=tuple(config.block_out_channels),
            down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in ATTENDING),
            up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(ATTENDING)),
            attention_head_dim=config.attention_heads,
            cross_attention_dim=config.text_width,
            norm_num_groups=16,
        ).to(memory_format=torch.channels_last)
        self.parts = nn.Conv2d(config.block_out_channels[ALIGNED], len(names()), 1)
        *_, before, last = config.block_out_channels
        self.clean = nn.ModuleList(nn.Conv2d(width, 4, 1) for width in (last, last, before))

    @property
    def network(self) -> UNet2DConditionModel:
        """The U-Net."""
        return self.unet

    def forward(self, noisy: Float[Tensor, "b 4 h w"], timesteps: Int[Tensor, "b"], tokens: Int[Tensor, "b l"]) -> Prediction:
        """(The predicted velocity, logits of the part at every cell, the clean latent as each of `DEEP` predicts it.)"""
        seen: list[Tensor] = []
        stages = (self.unet.mid_block, *self.unet.up_blocks[:2])
        hooks = [stage.register_forward_hook(lambda module, inputs, output: seen.append(output)) for stage in stages]
        try:
            velocity: Tensor = self.unet(noisy, timesteps, self.text(tokens).last_hidden_state).sample
        finally:
            for hook in hooks:
                hook.remove()
        seen = [grid.to(self.parts.weight.dtype) for grid in seen]
        logits = nn.functional.interpolate(self.parts(seen[-1]), noisy.shape[2:], mode="bilinear")
        return velocity, logits, [read(grid) for read, grid in zip(self.clean, seen, strict=True)]

    def pipeline(self, vae: AutoencoderKL, words: CLIPTokenizer, scheduler: Any) -> StableDiffusionPipeline:
        """A Stable Diffusion pipeline."""
        return StableDiffusionPipeline(
            vae=vae, text_encoder=self.text, tokenizer=words, unet=self.unet, scheduler=scheduler,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip


class DiT(Denoiser):
    """A transformer over patches; in training also a linear map from the tokens after block `aligned` to parts.

    Sample from its folder with `use_resolution_binning=False`, because the bins are those of 1024 pixels.
    """

    def __init__(self, config: DictConfig, words: CLIPTokenizer) -> None:
        super().__init__()
        width = config.heads * config.head_width
        self.text = t5_encoder(words, config.text_width, config.text_layers)
        self.end, self.aligned = words.eos_token_id, config.aligned
        self.transformer = PixArtTransformer2DModel(
            num_attention_heads=config.heads,
            attention_head_dim=config.head_width,
            out_channels=4,
            num_layers=config.blocks,
            cross_attention_dim=width,
            sample_size=64,
            caption_channels=config.text_width,
            use_additional_conditions=False,
        )
        self.parts = nn.Conv2d(width, len(names()), 1)

    @property
    def network(self) -> PixArtTransformer2DModel:
        """The transformer."""
        return self.transformer

    def forward(self, noisy: Float[Tensor, "b 4 h w"], timesteps: Int[Tensor, "b"], tokens: Int[Tensor, "b l"]) -> Prediction:
        """(The predicted velocity, logits of the part at every cell, nothing.)"""
        seen: list[Tensor] = []
        block = self.transformer.transformer_blocks[self.aligned]
        hook = block.register_forward_hook(lambda module, inputs, output: seen.append(output))
        spoken = (tokens == self.end).cumsum(1).cumsum(1) <= 1  # up to the first end of the text; padding repeats it
        try:
            states = self.text(tokens, attention_mask=spoken.long()).last_hidden_state
            velocity: Tensor = self.transformer(
                noisy, states, timestep=timesteps, encoder_attention_mask=spoken.long(),
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            ).sample  # fmt: skip
        finally:
            hook.remove()
        rows, columns = (side // self.transformer.config.patch_size for side in noisy.shape[2:])
        grid = seen[0].to(self.parts.weight.dtype).mT.unflatten(2, (rows, columns))
        return velocity, nn.functional.interpolate(self.parts(grid), noisy.shape[2:], mode="bilinear"), []

    def pipeline(self, vae: AutoencoderKL, words: CLIPTokenizer, scheduler: Any) -> PixArtAlphaPipeline:
        """A pipeline of PixArt-α, with the CLIP tokenizer of the captions."""
        return PixArtAlphaPipeline(
            vae=vae, text_encoder=self.text, tokenizer=words, transformer=self.transformer, scheduler=scheduler
        )

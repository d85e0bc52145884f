"""Tiny random checkpoints, in memory and on disk; they are the fakes of every test here."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sdprobe.backbones import FrozenSD
from sdprobe.backbones.random_pipeline import random_pipeline


@pytest.fixture(scope="session")
def pipeline() -> StableDiffusionPipeline:
    """The in-memory pipeline; tests leave it unchanged."""
    return random_pipeline("tiny")


@pytest.fixture(scope="session")
def saved(pipeline: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``pipeline`` as a diffusers folder; read only."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved folder that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def euler_folder(pipeline: StableDiffusionPipeline, saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same checkpoint with the scheduler class that SD-Turbo and SDXL folders name."""
    folder = Path(shutil.copytree(saved, tmp_path_factory.mktemp("euler") / "tiny"))
    shutil.rmtree(folder / "scheduler")
    EulerDiscreteScheduler.from_config(pipeline.scheduler.config).save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="session")
def sd(saved: Path) -> FrozenSD:
    """The saved folder as a backbone in fp32 on the CPU; tests leave its weights unchanged."""
    return FrozenSD.from_pretrained(str(saved), precision="fp32", device="cpu")


@pytest.fixture(scope="session")
def images() -> Tensor:
    """Eight images of 128 px whose contents differ in every frequency."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.nn.functional.interpolate(torch.rand(8, 3, 8, 8, generator=generator), scale_factor=16, mode="bilinear")
    return (0.7 * coarse + 0.3 * torch.rand(8, 3, 128, 128, generator=generator)).clamp(0, 1)


@pytest.fixture(scope="session")
def sdxl_unet() -> UNet2DConditionModel:
    """SDXL's structure with few channels: no attention in the outer blocks, pooled text and sizes as conditioning."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32, 64),
        norm_num_groups=8,
        transformer_layers_per_block=[1, 1, 2],
        attention_head_dim=[2, 4, 8],
        use_linear_projection=True,
        cross_attention_dim=16 + 24,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=20 + 6 * 8,
    )
    return unet.eval()


def _text_config(tokenizer: CLIPTokenizer, width: int, pooled: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=pooled,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


@pytest.fixture(scope="session")
def sdxl_pipeline(pipeline: StableDiffusionPipeline, sdxl_unet: UNet2DConditionModel) -> StableDiffusionXLPipeline:
    """A whole SDXL pipeline in miniature: two text encoders, an Euler scheduler."""
    torch.manual_seed(1)
    tokenizer = pipeline.tokenizer
    return StableDiffusionXLPipeline(
        vae=copy.deepcopy(pipeline.vae),
        text_encoder=CLIPTextModel(_text_config(tokenizer, 16, 16)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer, 24, 20)).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=sdxl_unet,
        scheduler=EulerDiscreteScheduler.from_config(pipeline.scheduler.config),
        add_watermarker=False,
    )


@pytest.fixture(scope="session")
def sdxl_folder(sdxl_pipeline: StableDiffusionXLPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``sdxl_pipeline`` as a diffusers folder; read only."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-xl"
    sdxl_pipeline.save_pretrained(folder)
    return folder

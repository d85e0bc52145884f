"""Prompts are encoded as Stable Diffusion's own pipelines encode them, once each."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from sdprobe.backbones import FrozenSD
from sdprobe.backbones.prompts import PromptEncoder

CPU = torch.device("cpu")
PROMPTS = ["", "a photo of a cat", "Ünïcode — 猫", "very long " * 40]


@pytest.fixture(scope="module")
def encoder(pipeline: StableDiffusionPipeline) -> PromptEncoder:
    return PromptEncoder([pipeline.tokenizer], [pipeline.text_encoder])


@pytest.fixture(scope="module")
def double(sdxl_pipeline: StableDiffusionXLPipeline) -> PromptEncoder:
    p = sdxl_pipeline
    return PromptEncoder([p.tokenizer, p.tokenizer_2], [p.text_encoder, p.text_encoder_2], zeros_for_empty=True)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_states_are_those_of_the_pipeline(prompt: str, encoder: PromptEncoder, pipeline: StableDiffusionPipeline) -> None:
    expected, _ = pipeline.encode_prompt(prompt, CPU, 1, do_classifier_free_guidance=False)
    conditioning = encoder(prompt, CPU, torch.float32)
    assert conditioning.states.shape == (1, 77, 32) and conditioning.pooled is None
    torch.testing.assert_close(conditioning.states, expected)


@pytest.mark.parametrize("prompt", PROMPTS[1:])
def test_two_encoders_are_joined_as_in_sdxl(
    prompt: str, double: PromptEncoder, sdxl_pipeline: StableDiffusionXLPipeline
) -> None:
    expected, _, pooled, _ = sdxl_pipeline.encode_prompt(prompt, device=CPU, do_classifier_free_guidance=False)
    conditioning = double(prompt, CPU, torch.float32)
    assert conditioning.states.shape == (1, 77, 40) and conditioning.pooled is not None
    torch.testing.assert_close(conditioning.states, expected)
    torch.testing.assert_close(conditioning.pooled, pooled)


def test_the_unconditional_prompt_is_what_guidance_uses(encoder: PromptEncoder, pipeline: StableDiffusionPipeline) -> None:
    _, unconditional = pipeline.encode_prompt("a cat", CPU, 1, do_classifier_free_guidance=True)
    torch.testing.assert_close(encoder("", CPU, torch.float32).states, unconditional)


@pytest.mark.parametrize("zeros", [True, False])
def test_no_prompt_is_what_the_checkpoints_own_pipeline_takes_for_it(
    zeros: bool, sdxl_pipeline: StableDiffusionXLPipeline, sdxl_folder: Path, tmp_path: Path
) -> None:
    """Zeros if SDXL's ``force_zeros_for_empty_prompt`` says so, which it does where model_index.json does not say."""
    folder = shutil.copytree(sdxl_folder, tmp_path / "xl")
    index = json.loads((folder / "model_index.json").read_text())
    assert index.pop("force_zeros_for_empty_prompt") is True
    (folder / "model_index.json").write_text(json.dumps(index if zeros else index | {"force_zeros_for_empty_prompt": False}))
    own = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True, add_watermarker=False)
    _, states, _, pooled = own.encode_prompt("a cat", device=CPU, do_classifier_free_guidance=True)
    prompts = FrozenSD.from_pretrained(str(folder), device="cpu", precision="fp32").prompts
    conditioning = prompts("", CPU, torch.float32)
    assert conditioning.pooled is not None and bool(conditioning.states.any()) is not zeros
    torch.testing.assert_close(conditioning.states, states)
    torch.testing.assert_close(conditioning.pooled, pooled)
    assert prompts("a cat", CPU, torch.float32).states.any()
    assert prompts.weights.endswith("-zeros") is zeros, "what was fitted with other conditioning has another digest"


@pytest.mark.parametrize("stated", [10**30, 64, 500])
def test_prompts_are_padded_to_what_tokenizer_and_encoder_both_take(stated: int, pipeline: StableDiffusionPipeline) -> None:
    """A ``tokenizer_config.json`` without ``model_max_length`` gives 1e30."""
    tokenizer = copy.deepcopy(pipeline.tokenizer)
    tokenizer.model_max_length = stated
    states = PromptEncoder([tokenizer], [pipeline.text_encoder])("a cat", CPU, torch.float32).states
    if stated >= 77:
        torch.testing.assert_close(states, pipeline.encode_prompt("a cat", CPU, 1, do_classifier_free_guidance=False)[0])
    assert states.shape[1] == min(stated, 77)


def test_prompts_differ(encoder: PromptEncoder) -> None:
    states = [encoder(prompt, CPU, torch.float32).states for prompt in PROMPTS]
    assert all(not torch.allclose(states[i], states[j]) for i in range(len(states)) for j in range(i))


def test_every_distinct_prompt_is_encoded_once(pipeline: StableDiffusionPipeline) -> None:
    encoder = PromptEncoder([pipeline.tokenizer], [pipeline.text_encoder])
    runs: list[int] = []
    handle = pipeline.text_encoder.register_forward_hook(lambda *_: runs.append(1))
    for prompt in ("", "a cat", "", "a dog", "a cat", ""):
        encoder(prompt, CPU, torch.float32)
    encoder("a cat", CPU, torch.bfloat16)
    handle.remove()
    assert len(runs) == 3


def test_dtype_is_that_asked_for_and_does_not_stick(double: PromptEncoder) -> None:
    half = double("a cat", CPU, torch.bfloat16)
    assert half.pooled is not None and half.states.dtype == half.pooled.dtype == torch.bfloat16
    full = double("a cat", CPU, torch.float32)
    assert full.pooled is not None and full.states.dtype == full.pooled.dtype == torch.float32
    assert torch.equal(full.states.bfloat16(), half.states)


def test_text_encoders_do_not_train(encoder: PromptEncoder) -> None:
    assert not any(p.requires_grad for network in encoder.encoders for p in network.parameters())
    assert not encoder("a cat", CPU, torch.float32).states.requires_grad

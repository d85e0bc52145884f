"""Prompts are encoded as Stable Diffusion's own pipelines encode them, once each."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from sdprobe.backbones.prompts import PromptEncoder

CPU = torch.device("cpu")
PROMPTS = ["", "a photo of a cat", "Ünïcode — 猫", "very long " * 40]


@pytest.fixture(scope="module")
def encoder(pipeline: StableDiffusionPipeline) -> PromptEncoder:
    return PromptEncoder([pipeline.tokenizer], [pipeline.text_encoder])


@pytest.fixture(scope="module")
def double(sdxl_pipeline: StableDiffusionXLPipeline) -> PromptEncoder:
    p = sdxl_pipeline
    return PromptEncoder([p.tokenizer, p.tokenizer_2], [p.text_encoder, p.text_encoder_2])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_states_are_those_of_the_pipeline(prompt: str, encoder: PromptEncoder, pipeline: StableDiffusionPipeline) -> None:
    expected, _ = pipeline.encode_prompt(prompt, CPU, 1, do_classifier_free_guidance=False)
    conditioning = encoder(prompt, CPU, torch.float32)
    assert conditioning.states.shape == (1, 77, 32) and conditioning.pooled is None
    torch.testing.assert_close(conditioning.states, expected)


@pytest.mark.parametrize("prompt", PROMPTS)
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

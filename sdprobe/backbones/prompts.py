"""Prompt → conditioning of the network, computed once per prompt. Data path step 4."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

import torch
from diffusers.loaders import TextualInversionLoaderMixin
from torch import Tensor, nn
from transformers import CLIPTokenizer, PreTrainedModel

from sdprobe.backbones.unet import Conditioning
from sdprobe.backbones.weights import weight_hash


class Prompts:
    """Conditions of prompts, each computed on its first use.

    Attributes:
        encoders: text encoders in memory, which the caller moves.
        weights: digest of their weights.
    """

    encoders: Sequence[nn.Module] = ()
    weights = ""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def __call__(self, prompt: str | Sequence[str], device: torch.device, dtype: torch.dtype) -> Any:
        """Conditions of one prompt, or of one per image; ``""`` is the unconditional one of the checkpoint's pipeline."""
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if len(set(prompts)) == 1:
            prompts = prompts[:1]
        self.prepare(prompts, device)
        each = [self._known[text] for text in prompts]

        def joined(name: str) -> Tensor | None:
            parts = [getattr(one, name) for one in each]
            if parts[0] is None:
                return None
            tensor = torch.cat(parts).to(device)
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        return type(each[0])(**{field.name: joined(field.name) for field in fields(each[0])})

    def prepare(self, prompts: Iterable[str], device: torch.device) -> None:
        """Compute the conditions of prompts that were not used yet.

        Args:
            prompts: all that follow.
            device: where text encoders run that are not in memory yet.
        """
        for prompt in prompts:
            if prompt not in self._known:
                self._known[prompt] = self.encode(prompt)

    def encode(self, prompt: str) -> Any:
        """Conditions of one prompt (first axis 1), without the known ones."""
        raise NotImplementedError


class PromptEncoder(Prompts):
    """CLIP text states, as the pipelines of Stable Diffusion compute them.

    With one encoder (SD-1.x, 2.x): its last hidden state. With two (SDXL): their last but one hidden states, concatenated, and
    the pooled state of the second.

    Args:
        tokenizers: one per encoder.
        encoders: one or two.
        zeros_for_empty: whether the empty prompt is zeros, as SDXL was trained for the absence of a prompt, not an encoded "".
    """

    def __init__(
        self, tokenizers: Sequence[CLIPTokenizer], encoders: Sequence[PreTrainedModel], zeros_for_empty: bool = False
    ) -> None:
        super().__init__()
        self.tokenizers = tokenizers
        self.encoders: list[Any] = [encoder.eval().requires_grad_(False) for encoder in encoders]
        self.zeros_for_empty = zeros_for_empty
        self.weights = "-".join([weight_hash(encoder, torch.float32) for encoder in encoders] + ["zeros"] * zeros_for_empty)

    @property
    def configs(self) -> list[Any]:
        """Configurations of the encoders."""
        return [encoder.config for encoder in self.encoders]

    @torch.no_grad()
    def encode(self, prompt: str) -> Conditioning:
        """Conditioning of one prompt, on the device of the encoders."""
        outputs = [
            encoder(ids, output_hidden_states=True, return_dict=True)
            for encoder, ids in zip(self.encoders, self._ids(prompt), strict=True)
        ]
        if len(outputs) == 1:
            return Conditioning(outputs[0].last_hidden_state)
        states, pooled = torch.cat([out.hidden_states[-2] for out in outputs], dim=-1), outputs[1].text_embeds
        if self.zeros_for_empty and not prompt:
            states, pooled = torch.zeros_like(states), torch.zeros_like(pooled)
        return Conditioning(states, pooled)

    def _ids(self, prompt: str) -> list[Tensor]:
        device = next(self.encoders[0].parameters()).device
        return [
            tokenizer(
                # a word of textual inversion may stand for several vectors
                TextualInversionLoaderMixin().maybe_convert_prompt(prompt, tokenizer),
                padding="max_length",
                # a tokenizer that states no length has 1e30
                max_length=min(tokenizer.model_max_length, encoder.config.max_position_embeddings),
                truncation=True,
                return_tensors="pt",
            ).input_ids.to(device)
            for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True)
        ]

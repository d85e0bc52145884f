"""PromptEncoder: text → conditioning of the U-Net, computed once per prompt. Data path step 4."""

from collections.abc import Sequence

import torch
from diffusers.loaders import TextualInversionLoaderMixin
from torch import Tensor
from transformers import CLIPTokenizer, PreTrainedModel

from sdprobe.backbones.unet import Conditioning
from sdprobe.backbones.weights import weight_hash


class PromptEncoder:
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
        self.tokenizers = tokenizers
        self.encoders = [encoder.eval().requires_grad_(False) for encoder in encoders]
        self.zeros_for_empty = zeros_for_empty
        self.weights = "-".join([weight_hash(encoder, torch.float32) for encoder in encoders] + ["zeros"] * zeros_for_empty)
        self._known: dict[str, Conditioning] = {}

    def __call__(self, prompt: str | Sequence[str], device: torch.device, dtype: torch.dtype) -> Conditioning:
        """Conditioning of one prompt, or of one per image; ``""`` is the unconditional one of the checkpoint's pipeline."""
        if not isinstance(prompt, str):
            if len(set(prompt)) == 1:
                return self(prompt[0], device, dtype)
            each = [self(text, device, dtype) for text in prompt]
            pooled = [one.pooled for one in each if one.pooled is not None]
            return Conditioning(torch.cat([one.states for one in each]), torch.cat(pooled) if pooled else None)
        if prompt not in self._known:
            self._known[prompt] = self._encode(prompt)
        known = self._known[prompt]
        return Conditioning(known.states.to(device, dtype), None if known.pooled is None else known.pooled.to(device, dtype))

    @torch.no_grad()
    def _encode(self, prompt: str) -> Conditioning:
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

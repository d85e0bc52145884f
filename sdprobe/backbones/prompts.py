"""PromptEncoder: text → conditioning of the U-Net, computed once per prompt. Data path step 4."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from sdprobe.backbones.unet import Conditioning
from sdprobe.backbones.weights import weight_hash


class PromptEncoder:
    """CLIP text states, as the pipelines of Stable Diffusion compute them.

    With one encoder (SD-1.x, 2.x): its last hidden state. With two (SDXL): their last but one hidden states, concatenated, and
    the pooled state of the second.
    """

    def __init__(self, tokenizers: Sequence[CLIPTokenizer], encoders: Sequence[nn.Module]) -> None:
        self.tokenizers = tokenizers
        self.encoders = [encoder.eval().requires_grad_(False) for encoder in encoders]
        self.weights = "-".join(weight_hash(encoder) for encoder in encoders)
        self._known: dict[str, Conditioning] = {}

    def __call__(self, prompt: str, device: torch.device, dtype: torch.dtype) -> Conditioning:
        """Conditioning of one prompt; ``""`` is the unconditional one."""
        if prompt not in self._known:
            self._known[prompt] = self._encode(prompt)
        known = self._known[prompt]
        pooled = known.pooled if known.pooled is None else known.pooled.to(device, dtype)
        return Conditioning(known.states.to(device, dtype), pooled)

    @torch.no_grad()
    def _encode(self, prompt: str) -> Conditioning:
        outputs = [
            encoder(ids, output_hidden_states=True) for encoder, ids in zip(self.encoders, self._ids(prompt), strict=True)
        ]
        if len(outputs) == 1:
            return Conditioning(outputs[0].last_hidden_state)
        return Conditioning(torch.cat([out.hidden_states[-2] for out in outputs], dim=-1), outputs[1].text_embeds)

    def _ids(self, prompt: str) -> list[Tensor]:
        device = next(self.encoders[0].parameters()).device
        return [
            tokenizer(
                prompt, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
            ).input_ids.to(device)
            for tokenizer in self.tokenizers
        ]

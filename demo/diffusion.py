"""The demo model's U-Net and text encoder, trained together to denoise latents of scenes.

Velocity prediction (Salimans & Ho, 2022, arXiv 2202.00512) on Stable Diffusion's noise schedule. Step s draws from a
generator of its own, keyed by (seed, s): a run that was stopped goes on to the same weights.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from jaxtyping import Float, Int
from lightning.fabric import Fabric
from omegaconf import DictConfig
from torch import Tensor, nn
from transformers import CLIPTokenizer

from backbones.random_pipeline import SCHEDULE
from demo.latents import CAPTIONS, Latents
from demo.states import Clock, load_state, log_line, save_state
from demo.text import text_encoder

LOG_EVERY = 50  # steps
ATTENDING = (False, True, True, False)  # which down stages attend: 64, 32, 16, 8 tokens a side; the middle (8) does too


class Denoiser(nn.Module):
    """A U-Net and the text encoder that conditions it."""

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
        )

    def forward(self, noisy: Float[Tensor, "b 4 h w"], timesteps: Int[Tensor, "b"], tokens: Int[Tensor, "b l"]) -> Tensor:
        """The predicted velocity, of `noisy`'s shape."""
        velocity: Tensor = self.unet(noisy, timesteps, self.text(tokens).last_hidden_state).sample
        return velocity


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, for a model that predicts velocities."""
    return DDIMScheduler(**SCHEDULE, set_alpha_to_one=False, prediction_type="v_prediction")


def batch(data: Latents, count: int, window: int, drop: float, generator: torch.Generator) -> tuple[Tensor, list[str]]:
    """`count` random latents, cut to a random window, and one caption each, empty with probability `drop`."""

    def draw(bound: int) -> int:
        return int(torch.randint(bound, (), generator=generator))

    latents, captions = [], []
    for _ in range(count):
        index, side = draw(len(data.values)), data.values.shape[-1]
        top, left = draw(side - window + 1), draw(side - window + 1)
        latents.append(data.values[index, :, top : top + window, left : left + window].float())
        dropped = bool(torch.rand((), generator=generator) < drop)
        choice = data.captions[index][draw(CAPTIONS)]
        captions.append("" if dropped else choice)
    return torch.stack(latents), captions


def corruption(shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise of this shape, and a timestep for each of its items."""
    return torch.randn(shape, generator=generator), torch.randint(1000, shape[:1], generator=generator)


def loss(
    model: nn.Module, schedule: DDIMScheduler, latents: Float[Tensor, "b 4 h w"], tokens: Int[Tensor, "b l"],
    noise: Float[Tensor, "b 4 h w"], timesteps: Int[Tensor, "b"],
) -> Tensor:  # fmt: skip
    """Mean squared error of the velocity, equal for all timesteps: what objects look like is decided at high noise."""
    noisy = schedule.add_noise(latents, noise, timesteps)
    target = schedule.get_velocity(latents, noise, timesteps)
    noisy = noisy.contiguous(memory_format=torch.channels_last)
    return (model(noisy, timesteps, tokens).float() - target).square().mean()


class Trainer:
    """One diffusion training run: model, optimiser, average weights, and how far it has come."""

    def __init__(
        self, config: DictConfig, shape: DictConfig, words: CLIPTokenizer, seed: int, work: Path, fabric: Fabric
    ) -> None:
        torch.manual_seed(seed)
        self.config, self.words, self.seed, self.work, self.fabric = config, words, seed, work, fabric
        self.model = Denoiser(shape, words)
        self.model.unet.to(memory_format=torch.channels_last)
        self.schedule = scheduler()
        fused = fabric.device.type in ("cpu", "cuda")
        optimiser = torch.optim.AdamW(self.model.parameters(), config.rate, weight_decay=config.weight_decay, fused=fused)
        self.average = EMAModel(self.model.parameters(), decay=config.ema, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        self.step, self.stage, self.done = 0, 0, 0
        state = load_state(self.path)
        if state:
            self.model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            self.average.load_state_dict(state["average"])
            self.step, self.stage, self.done = state["step"], state["stage"], state["done"]
        self.wrapped, self.optimiser = fabric.setup(self.model, optimiser)
        self.average.to(fabric.device)

    @property
    def path(self) -> Path:
        """Where the state is kept."""
        return self.work / "diffusion.pt"

    def save(self) -> None:
        """Write everything needed to go on; one process does."""
        if self.fabric.is_global_zero:
            state: dict[str, Any] = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
            state |= {"average": self.average.state_dict(), "step": self.step, "stage": self.stage, "done": self.done}
            save_state(self.path, state)

    def run_stage(self, stage: DictConfig, data: dict[tuple[str, int], Latents], save_every: float) -> None:
        """Train until `stage.samples` samples of the current stage are done, then move on to the next stage."""
        clock, total, first = Clock(save_every), torch.zeros(()), self.step
        while self.done < stage.samples:
            total += self._take_step(stage, data)
            if self.step % LOG_EVERY == 0:
                mean = self.fabric.all_reduce(total / (self.step - first), reduce_op="mean")
                assert isinstance(mean, torch.Tensor)
                total, first = torch.zeros(()), self.step
                if self.fabric.is_global_zero:
                    where = {"step": self.step, "stage": self.stage, "samples": self.done}
                    log_line(self.work / "diffusion.csv", **where, loss=mean.item())
            if clock.due():
                self.save()
        self.stage, self.done = self.stage + 1, 0
        self.save()

    def _take_step(self, stage: DictConfig, data: dict[tuple[str, int], Latents]) -> Tensor:
        """One optimiser step; with several processes each takes its part of the batch. Returns the loss."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        view = stage.views[self.step % len(stage.views)]
        latents, captions = batch(data[view.kind, view.size], stage.batch, view.window, self.config.drop_caption, generator)
        tokens = self.words(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        everything = (latents, tokens, *corruption(latents.shape, generator))
        mine = slice(self.fabric.global_rank, None, self.fabric.world_size)
        latents, tokens, noise, timesteps = (self.fabric.to_device(tensor[mine]) for tensor in everything)
        for group in self.optimiser.param_groups:
            group["lr"] = stage.get("rate", self.config.rate) * min(1.0, (self.step + 1) / self.config.warmup)
        value = loss(self.wrapped, self.schedule, latents, tokens, noise, timesteps)
        self.optimiser.zero_grad()
        self.fabric.backward(value)
        self.fabric.clip_gradients(self.wrapped, self.optimiser, max_norm=self.config.clip)
        self.optimiser.step()
        self.average.step(self.model.parameters())
        self.step, self.done = self.step + 1, self.done + stage.batch
        return value.detach().cpu()

    def averaged(self) -> Denoiser:
        """The model with its average weights, for use; training continues with the others."""
        self.average.store(self.model.parameters())
        self.average.copy_to(self.model.parameters())
        return self.model.eval()

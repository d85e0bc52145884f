"""A denoising network and its text encoder, trained together on latents of scenes.

Velocity prediction (Salimans & Ho, 2022, arXiv 2202.00512) on Stable Diffusion's noise schedule. Step s draws from a
generator of its own, keyed by (seed, s): a run that was stopped goes on to the same weights.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import EMAModel
from jaxtyping import Float, Int
from lightning.fabric import Fabric
from omegaconf import DictConfig
from torch import Tensor, nn
from transformers import CLIPTokenizer

from sdprobe.backbones.random_pipeline import SCHEDULE
from sdprobe.utilities.io import read_state, write_state
from tools.demo import depth
from tools.demo.latents import CAPTIONS, Latents, Pool
from tools.demo.networks import Denoiser
from tools.demo.states import Clock, log_line

LOG_EVERY = 50  # steps


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, for a model that predicts velocities."""
    return DDIMScheduler(**SCHEDULE, set_alpha_to_one=False, prediction_type="v_prediction")


def batch(
    data: Latents, count: int, window: int, drop: float, generator: torch.Generator
) -> tuple[Float[Tensor, "b 4 h h"], list[str], Int[Tensor, "b h h"]]:
    """`count` random latents, cut to a random window, one caption each, empty with probability `drop`, and their parts."""

    def draw(bound: int) -> int:
        return int(torch.randint(bound, (), generator=generator))

    latents, captions, parts = [], [], []
    for _ in range(count):
        index, side = draw(len(data.values)), data.values.shape[-1]
        top, left = draw(side - window + 1), draw(side - window + 1)
        rows, cols = slice(top, top + window), slice(left, left + window)
        latents.append(data.values[index, :, rows, cols].float())
        parts.append(data.parts[index, rows, cols].long())
        dropped = bool(torch.rand((), generator=generator) < drop)
        choice = data.captions[index][draw(CAPTIONS)]
        captions.append("" if dropped else choice)
    return torch.stack(latents), captions, torch.stack(parts)


def corruption(shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise of this shape, and a timestep for each of its items."""
    return torch.randn(shape, generator=generator), torch.randint(1000, shape[:1], generator=generator)


def losses(
    model: nn.Module, schedule: DDIMScheduler, latents: Float[Tensor, "b 4 h w"], tokens: Int[Tensor, "b l"],
    parts: Int[Tensor, "b h w"], noise: Float[Tensor, "b 4 h w"], timesteps: Int[Tensor, "b"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:  # fmt: skip
    """(Mean squared error of the velocity, cross-entropy of the parts, mean squared error of the pooled clean latent), with
    equal weight for all timesteps, because the appearance of objects is determined at high noise."""
    noisy = schedule.add_noise(latents, noise, timesteps)
    target = schedule.get_velocity(latents, noise, timesteps)
    velocity, logits, deep = model(noisy.contiguous(memory_format=torch.channels_last), timesteps, tokens)
    unread = velocity.new_zeros(())
    for read in deep:
        pooled = nn.functional.adaptive_avg_pool2d(latents, read.shape[2:])
        unread = unread + (read.float() - pooled).square().mean() / len(deep)
    return (velocity.float() - target).square().mean(), nn.functional.cross_entropy(logits.float(), parts), unread


class Trainer:
    """One diffusion training run: model, optimiser, average weights, and progress."""

    def __init__(
        self, config: DictConfig, model: Denoiser, words: CLIPTokenizer, seed: int, work: Path, fabric: Fabric
    ) -> None:
        self.config, self.words, self.seed, self.work, self.fabric = config, words, seed, work, fabric
        self.model = model
        self.schedule = scheduler()
        fused = fabric.device.type in ("cpu", "cuda")
        optimiser = torch.optim.AdamW(self.model.parameters(), config.rate, weight_decay=config.weight_decay, fused=fused)
        self.average = self._average()
        self.step, self.stage, self.done = 0, 0, 0
        state = read_state(self.path) if self.path.exists() else None
        if state:
            self.model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            self.average.load_state_dict(state["average"])
            self.step, self.stage, self.done = state["step"], state["stage"], state["done"]
        self.wrapped, self.optimiser = fabric.setup(self.model, optimiser)
        self.average.to(fabric.device)

    def _average(self) -> EMAModel:
        return EMAModel(self.model.parameters(), decay=self.config.ema, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    @property
    def path(self) -> Path:
        """File of the state."""
        return self.work / "diffusion.pt"

    def save(self) -> None:
        """Write everything needed to resume; only one process writes."""
        if self.fabric.is_global_zero:
            state: dict[str, Any] = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
            state |= {"average": self.average.state_dict(), "step": self.step, "stage": self.stage, "done": self.done}
            write_state(self.path, state)

    def run_stage(self, stage: DictConfig, data: dict[tuple[str, int], Pool], save_every: float) -> None:
        """Train until `stage.samples` samples of the current stage are done, then move on to the next stage."""
        if stage.get("cut") and not depth.is_cut(self.model.network, stage.cut):
            depth.open_path(self.model.network, stage.cut)
            depth.cut(self.model.network, stage.cut)
            self.average = self._average()  # the weights before the cut are another network's
            self.average.to(self.fabric.device)
        clock, total, first = Clock(save_every), torch.zeros(3), self.step
        while self.done < stage.samples:
            total += self._take_step(stage, data)
            if self.step % LOG_EVERY == 0:
                mean = self.fabric.all_reduce(total / (self.step - first), reduce_op="mean")
                assert isinstance(mean, torch.Tensor)
                total, first = torch.zeros(3), self.step
                if self.fabric.is_global_zero:
                    row = {"step": self.step, "stage": self.stage, "samples": self.done}
                    parts = dict(zip(("loss", "parts", "clean"), mean.tolist(), strict=True))
                    log_line(self.work / "diffusion.csv", **row, **parts)
            if clock.due():
                self.save()
        self.stage, self.done = self.stage + 1, 0
        self.save()

    def _take_step(self, stage: DictConfig, data: dict[tuple[str, int], Pool]) -> Tensor:
        """One optimiser step; with several processes each uses its part of the batch. Returns the losses."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        view = stage.views[self.step % len(stage.views)]
        drop = self.config.drop_caption
        pool = data[view.kind, view.size].at(self.stage, self.done / stage.samples)
        latents, captions, parts = batch(pool, stage.batch, view.window, drop, generator)
        tokens = self.words(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        everything = (latents, tokens, parts, *corruption(latents.shape, generator))
        mine = slice(self.fabric.global_rank, None, self.fabric.world_size)
        here = [self.fabric.to_device(tensor[mine]) for tensor in everything]
        rate = stage.get("rate", self.config.rate) * min(1.0, (self.step + 1) / self.config.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * (1 - self.done / stage.samples) if stage.get("decay") else rate
        error, misread, unread = losses(self.wrapped, self.schedule, *here)
        self.optimiser.zero_grad()
        aligned = stage.get("alignment", self.config.alignment)
        self.fabric.backward(error + aligned * misread + stage.get("clean", 0.0) * unread)
        self.fabric.clip_gradients(self.wrapped, self.optimiser, max_norm=self.config.clip)
        self.optimiser.step()
        if stage.get("cut"):
            depth.cut(self.model.network, stage.cut)
        self.average.step(self.model.parameters())
        self.step, self.done = self.step + 1, self.done + stage.batch
        return torch.stack([error.detach(), misread.detach(), unread.detach()]).cpu()

    def averaged(self) -> Denoiser:
        """The model with its average weights, for inference; training continues with the other weights."""
        self.average.store(self.model.parameters())
        self.average.copy_to(self.model.parameters())
        return self.model.eval()

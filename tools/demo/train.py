"""Train a demo model: `python -m tools.demo.train [key=value ...]`. Options and their meaning: tools/demo/config.yaml.

`recipe=dit` trains the transformer of tools/demo/dit.yaml instead of the U-Net.
"""

import json
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from lightning.fabric import Fabric
from omegaconf import DictConfig, OmegaConf
from transformers import CLIPTokenizer

from sdprobe.backbones import cards
from sdprobe.backbones.saving import save_folder
from sdprobe.scenes.composition import compose
from sdprobe.utilities.io import read_json, write_file
from tools.demo import autoencoder, diffusion, networks
from tools.demo.captions import caption
from tools.demo.latents import Painters, Pool, shards
from tools.demo.text import tokenizer

CONFIG = Path(__file__).with_name("config.yaml")


@cache
def words(seed: int) -> CLIPTokenizer:
    """The tokenizer of the captions of the first 400 scenes of `seed`."""
    generator = torch.Generator().manual_seed(0)
    return tokenizer([caption(compose(seed, i), generator) for i in range(400) for _ in range(4)])


def configured(arguments: Sequence[str]) -> DictConfig:
    """tools/demo/config.yaml, or the recipe that `recipe=NAME` names, with the command line's changes."""
    changes = OmegaConf.from_cli(list(arguments))
    path = CONFIG.with_stem(changes.pop("recipe", CONFIG.stem))
    if not path.is_file():
        found = ", ".join(sorted(file.stem for file in CONFIG.parent.glob("*.yaml")))
        sys.exit(f"Expected recipe to be one of {found}, but got '{path.stem}'. Correct the name.")
    base = OmegaConf.load(path)
    unknown = [key for key in changes if key not in base]
    if unknown:
        known = ", ".join(map(str, base))
        sys.exit(f"Expected options of tools/demo/{path.name} as key=value, but got '{unknown[0]!s}'. Known are {known}.")
    if "diffusion" in changes and "pictures" in changes.diffusion:
        base.diffusion.pictures = {}
    return cast(DictConfig, OmegaConf.merge(base, changes))


def export(pipe: DiffusionPipeline, folder: Path) -> None:
    """Write a half-precision diffusers folder, tokenizer files of older transformers releases included."""
    for part in (pipe.components["unet" if "unet" in pipe.components else "transformer"], pipe.vae, pipe.text_encoder):
        part.to(torch.float16, memory_format=torch.contiguous_format)
    save_folder(pipe, folder)
    pairs = read_json(folder / "tokenizer" / "tokenizer.json")["model"]
    write_file(folder / "tokenizer" / "vocab.json", json.dumps(pairs["vocab"], ensure_ascii=False))
    merges = "\n".join(" ".join(pair) for pair in pairs["merges"])
    write_file(folder / "tokenizer" / "merges.txt", f"#version: 0.2\n{merges}\n")
    cards.list_files(folder)


def pools(config: DictConfig, painters: Painters, work: Path) -> dict[tuple[str, int], Pool]:
    """The pictures of every (kind, size) that a stage uses."""
    found: dict[tuple[str, int], Pool] = {}
    for number, stage in enumerate(config.stages):
        for kind, size in ((view.kind, view.size) for view in stage.views):
            if (kind, size) not in found:
                pictures = config.pictures[kind]
                parts = shards(kind, pictures.seed, pictures.counts[size], size, painters.model, work)
                found[kind, size] = Pool(painters, parts, number)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the training stages that are not finished, then write the pipeline."""
    config = configured(sys.argv[1:] if arguments is None else arguments)
    work = Path(config.work)
    fabric = Fabric(accelerator=config.device, devices=config.devices, precision=config.precision)
    fabric.launch()
    if fabric.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // fabric.world_size))
    finished = config.start or config.get("vae")
    if finished and not Path(finished, "vae").is_dir():
        sys.exit(f"Expected {'start' if config.start else 'vae'} to be a finished folder, but {finished} has no vae.")
    if finished:
        vae = AutoencoderKL.from_pretrained(finished, subfolder="vae", torch_dtype=torch.float32)
    else:
        vae = autoencoder.train(config.autoencoder, config.seed, work, fabric, config.save_every)
    vocabulary = words(config.diffusion.pictures.scenes.seed)
    torch.manual_seed(config.seed)
    model = networks.UNet(config.unet, vocabulary) if "unet" in config else networks.DiT(config.dit, vocabulary)
    if config.start:
        model.load(config.start)
    trainer = diffusion.Trainer(config.diffusion, model, vocabulary, config.seed, work, fabric)
    if trainer.stage < len(config.diffusion.stages):
        painters = Painters(vae, config.painters if fabric.is_global_zero else 0)
        try:
            data = pools(config.diffusion, painters, work)
            while trainer.stage < len(config.diffusion.stages):
                trainer.run_stage(config.diffusion.stages[trainer.stage], data, config.save_every)
        finally:
            painters.close()
    if fabric.is_global_zero:
        export(trainer.averaged().pipeline(vae, vocabulary, diffusion.scheduler()), Path(config.folder))


if __name__ == "__main__":
    main()

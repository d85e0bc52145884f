"""Peak memory of a process that extracts 45 layers: ``python -m tools.benchmarks.peak ours|theirs IMAGES PIPELINE CACHE``."""

import argparse
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from rich.console import Console

from sdprobe.backbones import FrozenSD
from sdprobe.backbones.architectures import meta_unet
from sdprobe.backbones.layers import layer_table, resolve
from sdprobe.runs.measurement import peak_memory
from tools.benchmarks.rivals import Sdhelper
from tools.benchmarks.rows import drain, stream_of
from tools.benchmarks.shaped import Pictures


def main() -> None:
    """Print the peak in GiB."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks.peak", description=main.__doc__)
    parser.add_argument("who", choices=["ours", "theirs"])
    parser.add_argument("images", type=int)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("cache", type=Path)
    options = parser.parse_args()
    pictures = Pictures(options.images, 256)
    if options.who == "ours":
        sd = FrozenSD.from_pretrained(str(options.pipeline))
        drain(stream_of(sd, pictures, "loos2025", options.cache))
    else:
        table = layer_table(meta_unet(UNet2DConditionModel.load_config(options.pipeline, subfolder="unet")))
        names = [table[layer].published for layer in resolve("loos2025", table)]
        found = Sdhelper(options.pipeline).extract(pictures.pictures, names)
        assert len(found) == options.images
    Console().print(f"{peak_memory(torch.device('cpu')) / 2**30:.4f}")


if __name__ == "__main__":
    main()

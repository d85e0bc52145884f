"""Peak memory of a process that extracts 45 layers: ``python -m benchmarks.peak ours|theirs IMAGES PIPELINE CACHE``."""

import argparse
import resource
from pathlib import Path

from rich.console import Console

from backbones import FrozenSD
from benchmarks.rivals import Sdhelper
from benchmarks.rows import drain, stream_of
from benchmarks.shaped import Pictures


def main() -> None:
    """Print GiB."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peak", description=main.__doc__)
    parser.add_argument("who", choices=["ours", "theirs"])
    parser.add_argument("images", type=int)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("cache", type=Path)
    options = parser.parse_args()
    pictures = Pictures(options.images, 256)
    sd = FrozenSD.from_pretrained(str(options.pipeline))  # in both processes: the same imports, the same start
    if options.who == "ours":
        drain(stream_of(sd, pictures, "loos2025", options.cache))
    else:
        names = sd.published_names(sd.unet.resolve("loos2025"))
        found = Sdhelper(options.pipeline).extract(pictures.pictures, list(names.values()))
        assert len(found) == options.images
    Console().print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.4f}")


if __name__ == "__main__":
    main()

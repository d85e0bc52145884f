"""``python -m sdprobe.scenes --export-spair DIR``: scenes and pairs of them in the layout of SPair-71k."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> None:
    """Write procedural scenes with exact keypoints as a folder in the layout of SPair-71k."""
    parser = argparse.ArgumentParser(prog="python -m sdprobe.scenes", description=main.__doc__)
    parser.add_argument("--export-spair", type=Path, required=True, metavar="DIR", help="new or empty folder to write to")
    parser.add_argument("--images-per-category", type=int, default=100, metavar="N", help="at least 6; default: 100")
    parser.add_argument("--pairs-per-category", type=int, metavar="N", help="at most, in each split; default: all pairs")
    parser.add_argument("--size", type=int, default=512, help="side of the images in pixels; default: 512")
    parser.add_argument("--seed", type=int, default=0, help="which scenes; default: 0")
    options = parser.parse_args(arguments)

    from rich.console import Console  # imports that take seconds; help does without them

    from sdprobe.scenes.composition import CATEGORIES
    from sdprobe.scenes.spair_export import export
    from sdprobe.utilities.errors import InputError

    try:
        counts = export(
            options.export_spair, options.images_per_category, options.pairs_per_category, options.size, options.seed
        )
    except (InputError, OSError) as error:  # OSError: no space, no permission
        parser.exit(1, f"{error}\n")
    pairs = ", ".join(f"{count} {split}" for split, count in counts.items())
    images = options.images_per_category * len(CATEGORIES)
    Console().print(f"{images} images and {pairs} pairs in {options.export_spair}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()

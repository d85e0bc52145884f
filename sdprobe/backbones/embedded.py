"""The demo models that come with sdprobe, by name. Imports no torch."""

from pathlib import Path

HERE = Path(__file__).parent
PACKAGED = HERE.parent / "assets"
# inside the package in a wheel, next to it in a checkout
ASSETS = PACKAGED if PACKAGED.is_dir() else HERE.parents[1] / "assets"
DEMO = ASSETS / "demo"
NAMES = ("demo", "demo_dit")


def embedded(model: str) -> Path | None:
    """Folder of a demo model, by its preset (``demo``) or its path in a checkout (``assets/demo``); None for other models."""
    name = model.removeprefix("assets/")
    return ASSETS / name if name in NAMES else None


def folder_of(model: str) -> Path:
    """Folder of a demo model by its name, or the path itself, with ``~`` expanded. It need not exist."""
    return embedded(model) or Path(model).expanduser()

"""The same pictures as a mitigation wants them shown: shifted, mirrored, padded, or as a window of a larger rendering."""

import copy
from typing import Any

from datamodules.images.given import LatentSource
from datamodules.images.source import ImageSource, Item
from mitigations.views import VERSION as SHOWN
from mitigations.views import View
from tokens.errors import InputError


class Viewed:
    """An image source whose pictures are shown as a :class:`~mitigations.views.View` says; items keep their ids."""

    def __init__(self, images: ImageSource, view: View) -> None:
        if isinstance(images, LatentSource) and view.shows != View():
            raise InputError(
                f"Expected pictures to show in another way, but {type(images).__name__} has latents only. "
                "Use images=texture, or a mitigation that takes no passes of its own."
            )
        self.images = resized(images, images.size + view.larger) if view.larger else images
        self.view = view
        self.size, self.on_error = images.size + 2 * view.margin, images.on_error

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        """The item as it is shown."""
        item = self.images[index]
        return {"image": self.view.show(item["image"]), "id": item["id"]}

    def name(self, index: int) -> str:
        """The id of the picture itself."""
        return self.images.name(index)

    def photo(self, index: int) -> str:
        """The photograph of the picture itself."""
        return self.images.photo(index)

    def content_key(self, index: int) -> str:
        """The picture's own key, what the view does to it, and the version of that."""
        shown = self.view
        parts = {"shift": shown.shift, "flip": shown.flip, "margin": shown.margin, "window": shown.window}
        if shown.empty:
            return f"empty:{self.size}:{SHOWN}"
        done = ",".join(f"{key}={value}" for key, value in parts.items() if value)
        return f"{self.images.content_key(index)}:{done}:larger={shown.larger}:{SHOWN}"


def resized(images: ImageSource, size: int) -> ImageSource:
    """The same source at another size, through whatever wraps it."""
    other: Any = copy.copy(images)
    if hasattr(images, "images"):
        other.images = resized(images.images, images.images.size + size - images.size)
    other.size = size
    return other

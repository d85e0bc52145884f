"""Modules that remember the arguments they were made with, so that a saved state can be given to a new one of their kind."""

import inspect
from typing import Any, TypeVar

from torch import nn

Made = TypeVar("Made", bound="Configured")


class Configured(nn.Module):
    """``options`` holds the constructor's arguments by name, defaults included; plain values that JSON can hold."""

    options: dict[str, Any]

    def __new__(cls: type[Made], *args: Any, **kwargs: Any) -> Made:
        """Note the arguments."""
        made = super().__new__(cls)
        bound = inspect.signature(cls).bind(*args, **kwargs)
        bound.apply_defaults()
        object.__setattr__(made, "options", dict(bound.arguments))
        return made

"""Published diffusion transformers by name, read without importing torch."""

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def transformers() -> dict[str, dict[str, Any]]:
    """Name → ``class``, ``repository``, ``licence``, ``text``, ``config`` and ``source`` of published diffusion transformers.

    ``config`` has what differs from the defaults of the class in diffusers; ``source`` says where its numbers are from.

    >>> transformers()["flux_schnell"]["licence"]
    'apache-2.0'
    """
    return json.loads((Path(__file__).parent / "transformers.json").read_text())

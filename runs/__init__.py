"""One run: its command line, its folder, its record, its tracking."""

import backbones  # noqa: F401  # quiets transformers and diffusers before lightning imports them

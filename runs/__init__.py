"""One run: its command line, its folder, its record, its tracking."""

import os

# torch's notes on DistributedDataParallel; read when torch is imported
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import backbones  # noqa: F401  # quiets transformers and diffusers before lightning imports them

# before torch is imported: threads that wait for work sleep instead of spinning, or two runs on one machine starve each other
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

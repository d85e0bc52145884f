"""Shapes and types in signatures are checked while tests run, and nowhere else."""

import os
from pathlib import Path

import torch
from hypothesis import settings
from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401  # the hook looks it up by name

settings.register_profile("steady", deadline=None)  # a busy machine is no failure
settings.load_profile("steady")
torch.set_num_threads(1)  # the networks are tiny: more threads only wait for each other
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

ROOT = Path(__file__).parent.parent
# images.scenes is left out: numpy's ArrayLike, which it draws with, refuses plain tuples at run time
DATAMODULES = [f"datamodules.{'.'.join(path.relative_to(ROOT / 'datamodules').with_suffix('').parts)}"
               for folder in ("", "images") for path in (ROOT / "datamodules" / folder).glob("*.py")
               if path.stem != "__init__"]  # fmt: skip
PACKAGES = ["tokens", "backbones", "anomalies", "mitigations", "probes", "metrics", *DATAMODULES]
install_import_hook(PACKAGES, "tests.typechecker.check")

"""Writing pipeline folders that load again without naming a type."""

import json
from pathlib import Path

from diffusers import DiffusionPipeline


def save_folder(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Write a diffusers folder (safetensors, in the pipeline's precision) whose parts agree on fp32 when no type is asked for.

    diffusers loads its own parts in fp32 then, but transformers 5 loads a text encoder in the ``dtype`` of its configuration.
    With ``float16`` there the first sample fails, Half against Float.
    """
    pipeline.save_pretrained(folder)
    for path in folder.glob("text_encoder*/config.json"):
        config = json.loads(path.read_text())
        config |= {key: "float32" for key in ("dtype", "torch_dtype") if key in config}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

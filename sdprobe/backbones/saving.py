"""Write pipeline folders that load again without a dtype argument."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from diffusers import DiffusionPipeline

from sdprobe.backbones import cards
from sdprobe.utilities.io import read_json, replacing, write_file

LAST = ("unet/config.json", "model_index.json")  # nothing loads a folder without them


def save_folder(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Write a diffusers folder (safetensors, in the precision of the pipeline) whose parts all load in fp32 by default.

    By default diffusers loads its own parts in fp32, but transformers 5 loads a text encoder in the ``dtype`` of its
    configuration. If that is ``float16``, the first sample fails because Half meets Float. An interrupted write leaves a
    folder that does not load. The card lists digests of all files, which loading compares.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        pipeline.save_pretrained(temporary)
        for path in Path(temporary).glob("text_encoder*/config.json"):
            config = read_json(path)
            config |= {key: "float32" for key in ("dtype", "torch_dtype") if key in config}
            write_file(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
        if (folder / cards.NAME).is_file():
            shutil.copyfile(folder / cards.NAME, Path(temporary, cards.NAME))
        cards.list_files(Path(temporary))
        for name in LAST:
            (folder / name).unlink(missing_ok=True)
        names = [path.relative_to(temporary).as_posix() for path in Path(temporary).rglob("*") if path.is_file()]
        for name in sorted(names, key=LAST.__contains__):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            # renaming would keep the permissions 0600 of safetensors
            with replacing(folder / name) as file, Path(temporary, name).open("rb") as source:
                shutil.copyfileobj(source, file)

"""A checkpoint folder that a stranger wrote: it is read as data, and only from its own files."""

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sdprobe.backbones import FrozenSD
from sdprobe.backbones.cards import check_card
from sdprobe.utilities.errors import InputError

UNET, ENCODER = "diffusion_pytorch_model.safetensors", "model.safetensors"
EVIL = "import os\nopen(os.environ['MARK'], 'w').close()\n\nclass Evil: ...\nclass CLIPTextModel: ...\n"


@pytest.fixture
def mark(tmp_path: Path, monkeypatch) -> Path:
    """A file that the code of a checkpoint makes, if it runs."""
    monkeypatch.setenv("MARK", str(tmp_path / "ran"))
    return tmp_path / "ran"


def load(folder: Path) -> FrozenSD:
    return FrozenSD.from_pretrained(str(folder), precision="fp32", device="cpu")


def merge(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | entries))


class Pickled:
    def __reduce__(self) -> Any:
        return open, (os.environ["MARK"], "w")


def pickled(file: Path, name: str) -> None:
    file.unlink()
    torch.save(Pickled(), file.with_name(name))


def first(weights: str) -> str:
    return weights.replace(".", "-00001-of-00001.", 1)


def sharded(part: Path, weights: str, shard: str) -> None:
    """The weights of a part, behind an index that names one shard. A shard of the usual name is there, too."""
    shutil.copy(part / weights, part / first(weights))
    tensors = load_file(part / weights)
    size = sum(tensor.nbytes for tensor in tensors.values())
    merge(part / f"{weights}.index.json", metadata={"total_size": size}, weight_map=dict.fromkeys(tensors, shard))


def elsewhere(part: Path, weights: str, shard: str, *, link: bool = False, file: str = "elsewhere.safetensors") -> None:
    sharded(part, weights, shard)
    (part / weights).rename(part.parents[1] / file)
    if link:
        (part / shard).unlink()
        (part / shard).symlink_to(part.parents[1] / file)


Attack = Callable[[Path], object]
CODE: dict[str, Attack] = {
    f"{part}: {key}": lambda folder, part=part, key=key, value=value: merge(folder / part, **{key: value})  # type: ignore[misc]
    for part in ("text_encoder/config.json", "unet/config.json", "vae/config.json", "tokenizer/tokenizer_config.json")
    for key, value in {
        "auto_map": {"AutoModel": "evil.Evil"}, "trust_remote_code": True, "text_config": {"auto_map": {"A": "evil.Evil"}},
        "attn_implementation": "evil/kernel", "_attn_implementation": "evil/kernel", "custom_pipeline": "evil",
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    }.items()
}  # fmt: skip
REFUSED: dict[str, Attack] = CODE | {
    "pickled network": lambda f: pickled(f / "unet" / UNET, "diffusion_pytorch_model.bin"),
    "pickled encoder": lambda f: pickled(f / "text_encoder" / ENCODER, "pytorch_model.bin"),
    "pickle by another name": lambda f: (f / "unet" / UNET).write_bytes(pickle.dumps(Pickled())),
    "encoder that is a pickle": lambda f: (f / "text_encoder" / ENCODER).write_bytes(pickle.dumps(Pickled())),
    "archive by another name": lambda f: torch.save(Pickled(), f / "vae" / UNET),
    "shards above": lambda f: elsewhere(f / "unet", UNET, "../../elsewhere.safetensors"),
    "shards above, encoder": lambda f: elsewhere(f / "text_encoder", ENCODER, "../../elsewhere.safetensors"),
    "shards at an absolute path": lambda f: elsewhere(f / "text_encoder", ENCODER, str(f.parent / "elsewhere.safetensors")),
    "shards behind a link": lambda f: elsewhere(f / "text_encoder", ENCODER, first(ENCODER), link=True),
    "shards behind a link, network": lambda f: elsewhere(f / "unet", UNET, first(UNET), link=True),
    "shards in a folder": lambda f: (sharded(f / "vae", UNET, f"x/../{UNET}"), (f / "vae" / "x").mkdir()),
    "pipe for weights": lambda f: ((f / "unet" / UNET).unlink(), os.mkfifo(f / "unet" / UNET)),
    "pipe for words": lambda f: ((f / "tokenizer" / "tokenizer.json").unlink(), os.mkfifo(f / "tokenizer" / "tokenizer.json")),
    "pickled shards": lambda f: (sharded(f / "text_encoder", ENCODER, "a.bin"), pickled(f / "text_encoder" / ENCODER, "a.bin")),
    "index of numbers": lambda f: merge(f / "unet" / f"{UNET}.index.json", weight_map={"a": 1}),
    "index of nothing": lambda f: merge(f / "unet" / f"{UNET}.index.json", weight_map=None),
    "deep configuration": lambda f: (f / "unet" / "config.json").write_text("[" * 10_000),
    "configuration that is a list": lambda f: (f / "vae" / "config.json").write_text("[]"),
    "word for a number": lambda f: merge(f / "unet" / "config.json", block_out_channels="x"),
    "endless schedule": lambda f: merge(f / "scheduler" / "scheduler_config.json", num_train_timesteps=10**12),
    "schedule of a stranger": lambda f: merge(f / "scheduler" / "scheduler_config.json", _class_name=["evil", "Evil"]),
    **{f"{part}: {key} without end": lambda f, part=part, key=key: merge(f / part / "config.json", **{key: 10**9})
       for part, key in [("unet", "layers_per_block"), ("unet", "transformer_layers_per_block"), ("vae", "layers_per_block"),
                         ("text_encoder", "num_hidden_layers")]},
    "layers without end in a list": lambda f: merge(f / "unet" / "config.json", layers_per_block=[[1], [10**9]]),
    **{f"{part}: word for {key}": lambda f, part=part, key=key: merge(f / part / "config.json", **{key: "x"})
       for part, key in [("unet", "norm_eps"), ("vae", "scaling_factor"), ("vae", "shift_factor")]},
    **{f"tokenizer: {value!r} as length": lambda f, value=value: merge(f / "tokenizer" / "tokenizer_config.json",
                                                                       model_max_length=value) for value in ("x", -1, 0)},
    "no padding": lambda f: merge(f / "tokenizer" / "tokenizer_config.json", pad_token=None),
    "adapter": lambda f: merge(f / "text_encoder" / "adapter_config.json", base_model_name_or_path="evil/x", peft_type="LORA"),
    "card that lists a device": lambda f: (f / "README.md").write_text("---\nsha256: {/dev/zero: x}\n---\n"),
    "card that lists files above": lambda f: (f / "README.md").write_text("---\nsha256: {../elsewhere: x}\n---\n"),
    "card with an object": lambda f: (f / "README.md").write_text("---\nsha256: !!python/object/apply:os.mkdir [x]\n---\n"),
    "card with a list": lambda f: (f / "README.md").write_text("---\nsha256: [x]\n---\n"),
    "deep card": lambda f: (f / "README.md").write_text("---\nsha256: " + "[" * 3000 + "\n---\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_checkpoint_runs_nothing_and_stays_in_its_folder(name: str, folder: Path, mark: Path) -> None:
    for part in (".", "unet", "text_encoder", "tokenizer"):
        (folder / part / "evil.py").write_text(EVIL)
    REFUSED[name](folder)
    with pytest.raises(InputError) as caught:
        load(folder)
    assert not mark.exists() and str(caught.value).isprintable()
    assert ("to name .safetensors files beside it" in str(caught.value)) == ("shards" in name or name.startswith("index"))


def test_code_beside_a_checkpoint_stays_unread(folder: Path, mark: Path) -> None:
    """Custom pipelines, models and tokenizers: the parts are loaded by name, whatever the index of the pipeline says."""
    for part in (".", "unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        for module in ("pipeline", "evil", "modeling_evil", "tokenization_evil", "__init__", "setup", "conftest"):
            (folder / part / f"{module}.py").write_text(EVIL)
    parts = {"unet": ["evil", "Evil"], "text_encoder": ["evil", "CLIPTextModel"], "custom_pipeline": "pipeline"}
    merge(folder / "model_index.json", _class_name=["pipeline", "Evil"], trust_remote_code=True, **parts)
    before = set(sys.modules)
    load(folder)
    assert not mark.exists() and not {name for name in set(sys.modules) - before if "evil" in name}


def test_shards_of_the_cache_of_the_hub_are_links(folder: Path, tmp_path: Path) -> None:
    """Its layout is a folder of links into a folder of contents, beside each other."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    (snapshot.parents[1] / "blobs").mkdir(parents=True)
    sharded(folder / "unet", UNET, first(UNET))
    (folder / "unet" / UNET).unlink()
    for number, file in enumerate(path for path in folder.rglob("*") if path.is_file()):
        blob, link = snapshot.parents[1] / "blobs" / str(number), snapshot / file.relative_to(folder)
        file.rename(blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    assert load(snapshot).weights == "stored"


def test_kernels_of_pytorch_may_be_named(folder: Path) -> None:
    merge(folder / "text_encoder" / "config.json", _attn_implementation="sdpa")
    load(folder)


def test_a_card_reads_no_file_of_another_folder(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nsha256: {/dev/zero: x}\n---\n")
    with pytest.raises(InputError, match="files of its folder"):
        check_card(tmp_path)

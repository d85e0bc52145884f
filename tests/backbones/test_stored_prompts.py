"""Text states from the cache: equal bit for bit, without a text encoder in memory, and of the right checkpoint."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdprobe import FrozenSD
from sdprobe.backbones import loading, transformer_folders
from sdprobe.backbones.families import Conditions
from sdprobe.backbones.stored_prompts import TextCache, identity
from sdprobe.utilities.errors import InputError

FAMILIES = ("sd", "sdxl", "pixart", "pixart_sigma", "sd3", "flux", "sana", "lumina2")
FAST = ("sd3",)
PROMPTS = ["", "a cat", "", "two dogs"]


@pytest.fixture
def folder(saved_pipeline: Callable[[str], Path], saved: Path, sdxl_folder: Path) -> Callable[[str], Path]:
    return lambda name: {"sd": saved, "sdxl": sdxl_folder}.get(name) or saved_pipeline(name)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the text encoders that are loaded from now on."""
    found: list[str] = []
    original = loading.network_of

    def spied(kind: Any, folder: Path, part: str, *given: Any, **options: Any) -> Any:
        found.extend([part] * part.startswith("text_encoder"))
        return original(kind, folder, part, *given, **options)

    for module in (loading, transformer_folders):
        monkeypatch.setattr(module, "network_of", spied)
    return found


def load(folder: Path, cache: Path | None = None, **options: Any) -> FrozenSD:
    kept = {"prompt_cache": True, "cache_dir": str(cache)} if cache else {}
    return FrozenSD.from_pretrained(str(folder), device="cpu", **{"precision": "fp32", **kept, **options})


def states(sd: FrozenSD, prompt: Any = PROMPTS) -> dict[str, Tensor]:
    return {name: part for name, part in vars(sd.prompts(prompt, sd.device, sd.dtype)).items() if part is not None}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    equal = [torch.equal(part, second[name]) and part.dtype == second[name].dtype for name, part in first.items()]
    return first.keys() == second.keys() and all(equal)


def files(cache: Path) -> list[Path]:
    return sorted((cache / "text").rglob("*.safetensors"))


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in FAMILIES])
def test_stored_states_are_the_computed_ones_and_load_no_encoder(
    name: str, folder: Callable[[str], Path], loads: list[str], tmp_path: Path
) -> None:
    plain = load(folder(name))
    encoders = sorted(loads)
    loads.clear()
    first = load(folder(name), tmp_path)
    assert not loads and first.describe() == plain.describe() and sorted(loads) == encoders
    assert same(states(first), states(plain)) and sorted(loads) == encoders, "they are loaded once, for the first prompts"
    assert not first.prompts.encoders and first.prompts._loaded is None, "and leave memory"
    loads.clear()
    again = load(folder(name), tmp_path)
    assert same(states(again), states(plain)) and again.describe() == plain.describe()
    side = 256 if name == "sana" else 128
    images = torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    read = [sd.activations(images, "all", timestep=260, prompt=PROMPTS) for sd in (plain, again)]
    assert same(*read)
    assert not loads


def test_prompts_of_a_call_load_the_encoders_once(
    saved_pipeline: Callable[[str], Path], loads: list[str], tmp_path: Path
) -> None:
    sd = load(saved_pipeline("sd3"), tmp_path)
    sd.activations(torch.rand(2, 3, 128, 128), "latent", prompt="")
    assert not loads, "what needs no text"
    images = [torch.rand(3, side, 128) for side in (128, 256, 128)]
    sd.activations(images, "block_0", timestep=260, prompt=["a cat", "a dog", "a bird"])
    assert sorted(loads) == ["text_encoder", "text_encoder_2", "text_encoder_3"]


def changed(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def edited(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


OTHER: dict[str, Callable[[Path], object]] = {
    "weights": lambda folder: changed(folder / "text_encoder_2" / "model.safetensors"),
    "configuration": lambda folder: edited(folder / "text_encoder_3" / "config.json", layer_norm_epsilon=0.1),
    "tokenizer": lambda folder: edited(folder / "tokenizer_3" / "tokenizer_config.json", padding_side="left"),
    "absent": lambda folder: (shutil.rmtree(folder / "text_encoder_3"), shutil.rmtree(folder / "tokenizer_3")),
}


@pytest.mark.parametrize("what", OTHER)
def test_every_file_of_encoders_and_tokenizers_is_in_the_key(
    what: str, saved_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved_pipeline("sd3"), tmp_path / "own"))
    key = lambda: identity(folder, [part.name for part in sorted(folder.glob("text_encoder*"))], None)  # noqa: E731
    before = key()
    edited(folder / "vae" / "config.json", force_upcast=True)
    assert key() == before
    OTHER[what](folder)
    assert key() != before


@pytest.mark.slow
@pytest.mark.parametrize("what", OTHER)
def test_another_encoder_has_other_states(
    what: str, saved_pipeline: Callable[[str], Path], loads: list[str], tmp_path: Path
) -> None:
    own, cache = Path(shutil.copytree(saved_pipeline("sd3"), tmp_path / "own")), tmp_path / "cache"
    before = states(load(own, cache), "a cat")
    OTHER[what](own)
    loads.clear()
    after = states(load(own, cache), "a cat")
    assert loads and same(after, states(load(own), "a cat"))
    assert not same(before, after) or what == "weights"  # the lowest bits of one weight may not matter


@pytest.mark.slow
def test_another_precision_has_other_states_and_other_networks_the_same(
    saved_pipeline: Callable[[str], Path], loads: list[str], tmp_path: Path
) -> None:
    own = saved_pipeline("flux")
    states(load(own, tmp_path), "a cat")
    loads.clear()
    for options in ({"weights": "random"}, {"position": "zero"}, {"noise": "none"}):
        states(load(own, tmp_path, **options), "a cat")
    assert not loads
    half = states(load(own, tmp_path, precision="bf16"), "a cat")
    assert loads and same(half, states(load(own, precision="bf16"), "a cat"))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "bit": changed, "empty": lambda file: file.write_bytes(b""), "zeros": lambda file: file.write_bytes(bytes(4000)),
}  # fmt: skip


@pytest.mark.parametrize("damage", [pytest.param(name, marks=[pytest.mark.slow] * (name != "bit")) for name in DAMAGE])
def test_a_damaged_entry_is_computed_again(
    damage: str,
    saved_pipeline: Callable[[str], Path],
    loads: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = saved_pipeline("sd3")
    first = load(own, tmp_path)
    expected, described = states(first, "a cat"), first.describe()
    stored = files(tmp_path)
    assert len(stored) == 2, "a prompt, and the digest of the weights"
    for file in stored:
        DAMAGE[damage](file)
    loads.clear()
    sd = load(own, tmp_path)
    assert sd.describe() == described and same(states(sd, "a cat"), expected) and loads
    assert "is damaged" in caplog.text and sd.prompts.cache.damaged == 2
    loads.clear()
    assert same(states(load(own, tmp_path), "a cat"), expected) and not loads


TENSORS = {"states": torch.zeros(1, 4, 8), "mask": torch.ones(1, 4, dtype=torch.int64)}


@pytest.mark.parametrize(
    "tensors",
    [
        {"mask": TENSORS["mask"]},
        {**TENSORS, "more": torch.zeros(1, 2)},
        {"states": torch.zeros(2, 4, 8)},
        {"states": torch.ones(4)},
    ],
)
def test_what_is_no_entry_of_this_prompt_is_damage(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    cache = TextCache(tmp_path, Conditions)
    cache.write(TENSORS, "key", "a cat")
    assert cache.read("key", "a cat") is not None
    cache.write(TENSORS, "key", "a dog")
    shutil.copy(cache._path(("key", "a cat")), cache._path(("key", "a dog")))
    assert cache.read("key", "a dog") is None and cache.damaged == 1
    cache.write(tensors, "key", "a dog")
    assert cache.read("key", "a dog") is None and cache.damaged == 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dit", {}, r"prompt_cache=false for .*dit.*, which encodes no text, but got true"),
        ("sd3", {"text": "none"}, r"prompt_cache=false for .*sd3, which encodes no text, but got true"),
        ("tiny", {}, r"prompt_cache=false for tiny, whose text encoder is made, not read from files, but got true"),
    ],
)
def test_what_encodes_no_text_has_no_cache(
    name: str, options: dict[str, str], message: str, saved_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        load(Path("tiny") if name == "tiny" else saved_pipeline(name), tmp_path, **options)

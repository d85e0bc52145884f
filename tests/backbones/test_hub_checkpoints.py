"""Checkpoints on the hub, from a server on the loopback address: what is fetched, what is shown, and what is refused."""

import json
import logging
import re
import shlex
import shutil
import subprocess
import sys
from logging.handlers import BufferingHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline
from huggingface_hub import constants
from omegaconf import OmegaConf

from sdprobe.backbones import FrozenSD
from sdprobe.backbones.architectures import presets
from sdprobe.backbones.hub import download, needed_files, weight_files
from sdprobe.backbones.loading import native_size
from sdprobe.backbones.random_pipeline import random_pipeline
from sdprobe.backbones.weights import weight_hash
from sdprobe.runs import cli, console
from sdprobe.utilities import progress
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.hub import Repository
from tests.hub_server import Hub

ROOT = Path(__file__).parents[2]
UNET = "unet/diffusion_pytorch_model.safetensors"
# what repositories of Stable Diffusion hold beside the parts that are needed
CLUTTER = {
    "README.md": b"# a model\n",
    "v1-5-pruned.safetensors": bytes(10),
    "unet/diffusion_pytorch_model.bin": bytes(10),
    "unet/diffusion_pytorch_model.non_ema.safetensors": bytes(10),
    "unet/diffusion_pytorch_model.fp16.bin": bytes(10),
    "text_encoder/flax_model.msgpack": bytes(10),
    "vae_decoder/model.onnx": bytes(10),
    "safety_checker/model.safetensors": bytes(10),
    "safety_checker/config.json": b"{}",
}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def load(path: str, **options: Any) -> FrozenSD:
    return FrozenSD.from_pretrained(path, device="cpu", precision="fp32", **options)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with other weights, as fp16 files, with its U-Net in shards."""
    folder = tmp_path_factory.mktemp("halves")
    pipeline = random_pipeline("tiny", seed=5)
    pipeline.save_pretrained(folder, variant="fp16")
    shutil.rmtree(folder / "unet")
    pipeline.unet.save_pretrained(folder / "unet", variant="fp16", max_shard_size="4MB")
    assert len(list((folder / "unet").glob("*.fp16*.safetensors"))) >= 2
    return folder


# --- what is fetched -------------------------------------------------------------------------------------------------


def test_only_what_is_needed_is_fetched_and_a_second_run_makes_no_request(hub: Hub, saved: Path, sd: FrozenSD) -> None:
    hub.add("me/tune", contents(saved) | CLUTTER)
    loaded = load("me/tune")
    assert loaded.unet_hash == sd.unet_hash and loaded.encoder.weights == sd.encoder.weights and loaded.path == "me/tune"
    assert hub.fetched() == set(contents(saved))
    assert max(hub.sent.values()) == len((saved / UNET).read_bytes()), "no file is sent twice"
    hub.forget()
    assert load("me/tune").unet_hash == sd.unet_hash
    assert hub.requests == []


def test_the_size_of_images_is_read_before_any_weights_are_fetched(hub: Hub, saved: Path) -> None:
    hub.add("me/tune", saved)
    assert native_size("me/tune") == native_size(str(saved))
    assert hub.fetched() == {"unet/config.json", "vae/config.json"}


def test_a_commit_is_fetched_once_and_other_revisions_are_asked_for(hub: Hub, saved: Path) -> None:
    commit = hub.add("me/tune", saved, refs=("main", "v1")).commit
    folder = download("me/tune", commit, None)
    hub.forget()
    assert download("me/tune", commit, None) == folder and hub.requests == []
    assert download("me/tune", "v1", None) == folder and hub.fetched() == set(), "only its commit is asked for"
    assert [path for _, path in hub.requests] == ["/api/models/me/tune/revision/v1"]


def test_the_variant_is_chosen_for_each_part(hub: Hub, saved: Path, halves: Path, sd: FrozenSD) -> None:
    mixed = contents(saved) | {name: content for name, content in contents(halves).items() if name.startswith("unet/")}
    hub.add("me/mixed", mixed)
    loaded = load("me/mixed", variant="fp16")
    assert loaded.unet_hash == weight_hash(random_pipeline("tiny", seed=5).unet), "the shards of the variant"
    assert loaded.encoder.weights == sd.encoder.weights, "a part without the variant has its usual weights"
    assert UNET not in hub.fetched() and "unet/diffusion_pytorch_model.safetensors.index.fp16.json" in hub.fetched()
    hub.forget()
    assert load("me/mixed").unet_hash == sd.unet_hash
    assert hub.fetched() == {UNET}, "without a variant, shards of one are gigabytes that nothing reads"


def test_a_fine_tune_in_the_place_of_a_preset_needs_no_variant(hub: Hub, saved: Path, sd: FrozenSD) -> None:
    # backbone=sd15 backbone.path=me/tune
    hub.add("me/tune", saved)
    backbone = OmegaConf.merge(*(OmegaConf.load(ROOT / f"configs/backbone/{name}.yaml") for name in ("_base", "sd15")))
    assert presets()[backbone.path]["variant"] == "fp16"
    assert load("me/tune", variant=backbone.variant).unet_hash == sd.unet_hash


SHARDS = [f"diffusion_pytorch_model-0000{k}-of-00002" for k in (1, 2)]
CHOICES = [
    (["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"], "fp16", [1]),
    (["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bf16.safetensors"], "fp16", [0]),
    (["diffusion_pytorch_model.safetensors.index.json", *(f"{shard}.safetensors" for shard in SHARDS)], None, [0, 1, 2]),
    (
        ["diffusion_pytorch_model.safetensors.index.fp16.json", *(f"{shard}.fp16.safetensors" for shard in SHARDS)],
        "fp16",
        [0, 1, 2],
    ),
    (
        ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json", f"{SHARDS[0]}.safetensors"],
        None,
        [1, 2],  # as diffusers chooses
    ),
    (["model.safetensors", "model.bin", "flax_model.msgpack", "model.non_ema.safetensors"], None, [0]),
]


@pytest.mark.parametrize(("files", "variant", "chosen"), CHOICES)
def test_weight_files_are_chosen_from_a_list(files: list[str], variant: str | None, chosen: list[int]) -> None:
    names = [f"unet/{file}" for file in files]
    assert sorted(weight_files([*names, f"unet/more/{files[0]}"], "unet", variant, "me/tune")) == sorted(
        names[k] for k in chosen
    )


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_a_download_leaves_two_lines_and_no_request(
    hub: Hub, saved: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # the log as the command writes it, beside one that hears everything; pytest's may have the filter of an earlier test
    written, heard, root = console.Stderr(), BufferingHandler(10**6), logging.getLogger()
    written.setFormatter(console.Marked("%(message)s"))
    monkeypatch.setattr(root, "handlers", [written])
    cli.silence_libraries()
    root.addHandler(heard)
    caplog.set_level(logging.INFO)
    hub.add("me/tune", contents(saved) | CLUTTER)
    download("me/tune", None, None)
    assert sum("HTTP Request" in record.getMessage() for record in heard.buffer) > 20
    first, last = capfd.readouterr().err.splitlines()
    total = sum(hub.sent.values()) / 1e6
    assert first == f"Downloading me/tune: 10 files, {total:.1f} MB, to {constants.HF_HUB_CACHE}"
    assert re.fullmatch(rf"download me/tune, {total:.1f} MB \(\d.* s\)", last)
    logging.getLogger("httpx2").info("from a user's own module")
    assert capfd.readouterr().err == "from a user's own module\n", "what counts is where a line comes from"


def test_a_bar_moves_while_bytes_arrive(hub: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    totals: list[int | None] = []
    counts: list[int] = []
    monkeypatch.setattr(progress.Plan, "draw", lambda plan, description, total, unit: totals.append(total))
    monkeypatch.setattr(progress.Step, "_update", lambda step, **values: counts.append(step.done))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**20)
    hub.add("me/tune", saved)
    download("me/tune", None, None)
    assert totals == [9] and counts[-1] == 9
    assert len(counts) >= 5 and counts == sorted(counts)


# --- what goes on ----------------------------------------------------------------------------------------------------


def test_a_lost_connection_is_taken_up_where_it_broke(hub: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**20)
    hub.add("me/tune", saved)
    hub.cut[UNET] = 5 * 2**20
    folder = download("me/tune", None, None)
    assert (folder / UNET).read_bytes() == (saved / UNET).read_bytes()
    assert hub.ranges == [(UNET, f"bytes={5 * 2**20}-")]
    assert hub.sent[UNET] == (saved / UNET).stat().st_size, "no byte is sent twice"


def test_an_interrupted_download_goes_on_with_the_files_that_are_missing(
    hub: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("me/tune", saved)
    Repository("me/tune", None, "model", "backbone", (), "").fetch(
        ["model_index.json"]
    )  # so that one is kept, whatever comes first
    with monkeypatch.context() as patch:
        patch.setattr(progress.Step, "advance", lambda step, count: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            download("me/tune", None, None)
    [snapshot] = Path(constants.HF_HUB_CACHE).glob("models--me--tune/snapshots/*")
    kept = set(contents(snapshot))
    assert kept and UNET not in kept
    hub.forget()
    assert contents(download("me/tune", None, None)) == contents(saved)
    assert hub.fetched() == set(contents(saved)) - kept


@pytest.mark.slow
def test_ctrl_c_does_not_wait_until_open_files_are_complete(hub: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**16)
    hub.add("me/tune", saved)
    hub.interrupts = UNET
    with pytest.raises(KeyboardInterrupt):
        download("me/tune", None, None)
    assert hub.sent[UNET] < 4 * 2**20 < (saved / UNET).stat().st_size
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))
    hub.interrupts = ""
    assert contents(download("me/tune", None, None)) == contents(saved)


# --- what is refused -------------------------------------------------------------------------------------------------


def refusal(*arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        download(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_gated_misspelt_and_wrong_revision_have_a_sentence_each(hub: Hub, saved: Path) -> None:
    hub.add("me/tune", saved, refs=("main", "fp16"))
    hub.add("them/gated", saved, gated=True)
    assert refusal("them/gated", None, None) == (
        "Expected them/gated to be open to you, but its licence has to be accepted first. "
        f"Accept it at {hub.url}/them/gated, then log in with `hf auth login`."
    )
    assert refusal("me/tuen", None, None) == (
        "Expected backbone.path to be a model repository on the Hugging Face hub, but got 'me/tuen', which does not exist "
        "there or is private. Correct the name, or log in with `hf auth login`."
    )
    assert refusal("me/tune", "v2", None) == (
        "Expected backbone.revision to be a branch, tag or commit of me/tune, but got 'v2', which it does not have. "
        "Use one of main, fp16."
    )
    assert hub.fetched() == set()


def test_a_licence_that_the_user_has_not_accepted(hub: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    hub.add("them/gated", saved, gated=True)
    assert refusal("them/gated", None, None).endswith(
        f"Accept it at {hub.url}/them/gated as the user that you are logged in as."
    )


def test_a_hub_that_cannot_be_reached_or_is_down(hub: Hub, saved: Path) -> None:
    hub.broken.add("models/me/tune")
    assert refusal("me/tune", None, None) == (
        f"Expected to download me/tune from {hub.url}, but it answered with HTTP 503. Try again later."
    )
    hub.broken.clear()
    hub.add("me/tune", saved)
    folder = download("me/tune", None, None)
    hub.broken.add("models/me/tune")
    assert download("me/tune", None, None) == folder, "what is in the cache needs no hub"


def test_without_network_the_message_says_what_to_bring_where(hub: Hub) -> None:
    hub.close()
    message = refusal("me/tune", "v1", "fp16")
    assert re.match(
        rf"Expected to download me/tune@v1 from {hub.url}, but it cannot be reached \(.*refused\)\. Try again\. ", message
    )
    assert message.endswith("copy DIR here and use backbone=local backbone.path=DIR backbone.variant=fp16.")


def test_offline_and_absent_or_incomplete_in_the_cache(hub: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("me/tune", saved)
    folder = download("me/tune", None, None)
    hub.forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download("me/tune", None, None) == folder
    (folder / UNET).unlink()
    for name in ("me/tune", "me/other"):
        assert re.fullmatch(
            rf"Expected the cache {constants.HF_HUB_CACHE} to hold {name}, because HF_HUB_OFFLINE is set, but files are "
            rf"missing\. Unset HF_HUB_OFFLINE to download them\. On a machine with network access run `hf download {name} .*"
            r"--local-dir DIR`, copy DIR here and use backbone=local backbone\.path=DIR\.",
            refusal(name, None, None),
        )
    assert hub.requests == []


def test_pickled_weights_are_named_before_anything_is_fetched(hub: Hub, saved: Path) -> None:
    files = contents(saved)
    files["unet/diffusion_pytorch_model.bin"] = files.pop(UNET)
    hub.add("me/old", files)
    assert re.match(
        r"Expected me/old/unet to hold \.safetensors weights, but found only pickled weights \(diffusion_pytorch_model\.bin\)",
        refusal("me/old", None, None),
    )
    assert hub.fetched() == set()


def test_a_repository_with_one_variant_only_says_so(hub: Hub, halves: Path) -> None:
    hub.add("me/half", halves)
    assert re.search(
        r"weights without a variant, but found only .*Use backbone\.variant=fp16\.", refusal("me/half", None, None)
    )
    assert hub.fetched() == set()


def test_other_kinds_of_repositories_are_said_to_be_that(hub: Hub) -> None:
    hub.add("me/flow", {"model_index.json": b"{}", "transformer/config.json": b"{}", "vae/config.json": b"{}"})
    assert "to be a pipeline of Stable Diffusion 1, 2 or XL, or one of PixArtAlphaPipeline, " in refusal("me/flow", None, None)


def test_no_part_may_be_missing_from_the_list(saved: Path) -> None:
    names = set(contents(saved))
    assert set(needed_files(names, None, "me/tune")) == names
    with pytest.raises(InputError, match=r"vae to hold \.safetensors weights, but found no weights"):
        needed_files(names - {"vae/diffusion_pytorch_model.safetensors"}, None, "me/tune")


@pytest.mark.slow
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_the_command_in_the_message_brings_what_loads(
    hub: Hub, saved: Path, halves: Path, tmp_path: Path, variant: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = Hub()
    closed.close()
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", closed.url)
        [command] = re.findall(r"`(hf download .*?)`", refusal("me/tune", None, variant))
    hub.add("me/tune", contents(saved) | contents(halves) | CLUTTER)
    words = shlex.split(command.replace("DIR", str(tmp_path / "brought")))
    subprocess.run([str(Path(sys.executable).parent / words[0]), *words[1:]], check=True, capture_output=True, timeout=120)
    brought = load(str(tmp_path / "brought"), variant=variant)
    assert brought.unet_hash == weight_hash(random_pipeline("tiny", seed=5 if variant else 0).unet)
    weights = {name for name in hub.fetched() if not name.endswith(".json")}
    assert weights == {
        name for name in needed_files(set(contents(saved) | contents(halves)), variant, "") if not name.endswith(".json")
    }


def test_a_pipeline_of_diffusers_reads_the_same_cache(hub: Hub, saved: Path) -> None:
    hub.add("me/tune", saved)
    folder = download("me/tune", None, None)
    hub.forget()
    pipeline = StableDiffusionPipeline.from_pretrained("me/tune", local_files_only=True)
    assert (
        hub.requests == [] and json.loads((folder / "model_index.json").read_text())["_class_name"] == type(pipeline).__name__
    )

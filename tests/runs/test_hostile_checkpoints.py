"""The checkpoint, the id and the settings in a stranger's run folder: nothing in them is run, resolved, or taken for a path."""

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning import Callback

from sdprobe.reports.similarity import defaults_of
from sdprobe.runs import tracking
from sdprobe.runs.cli import UserError
from sdprobe.runs.measurement import Bound, Measurement
from sdprobe.runs.record import VERSION
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import DamagedFile, read_state, write_state

SMALL = [
    "block=up_0", "backbone=tiny", "images.size=128", "images.limit=30", "probe.min_steps=10", "trainer.max_epochs=5",
    "logger=none", "device=cpu", "twins=0",
]  # fmt: skip


class Evil:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("function", ["os.system", "open", "eval", "torch.load", "os.mkdir", "builtins.getattr"])
@pytest.mark.parametrize("protocol", ["zip", "legacy", "pickle"])
def test_a_pickle_of_a_stranger_is_not_run(function: str, protocol: str, tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.chdir(tmp_path)
    evil = {
        "os.system": Evil(os.system, "touch evil"), "open": Evil(open, "evil", "w"), "eval": Evil(eval, "open('evil', 'w')"),
        "torch.load": Evil(torch.load, "other.ckpt"), "os.mkdir": Evil(os.mkdir, "evil"),
        "builtins.getattr": Evil(getattr, str, "upper"),
    }[function]  # fmt: skip
    file, content = tmp_path / "checkpoints" / "last.ckpt", {"state_dict": {}, "callbacks": evil}
    file.parent.mkdir()
    if protocol == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=protocol == "zip")
    before = file.read_bytes()
    with pytest.raises(DamagedFile, match="more than tensors, numbers and texts" if protocol == "zip" else "checksum mismatch"):
        read_state(file)
    assert starts_again(tmp_path, caplog)
    assert [*tmp_path.rglob("*")] == [file.parent, file] and file.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04", bytes(1000), b"\x80\x02" + b"(" * 10_000])
def test_what_is_no_checkpoint_is_told(content: bytes, tmp_path: Path, caplog) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(content)
    assert starts_again(tmp_path, caplog)


def starts_again(folder: Path, caplog: pytest.LogCaptureFixture) -> bool:
    """Whether a resumed run of this folder trains from the start, and says so in one line."""
    run = SimpleNamespace(cfg=SimpleNamespace(run_dir=folder, resume=folder))
    checkpoint = Measurement._checkpoint(run)  # type: ignore[arg-type]
    [line] = caplog.messages
    said = re.fullmatch(rf"{re.escape(str(folder))}/checkpoints/last\.ckpt is damaged \(.+\)\. Training starts again\.", line)
    return checkpoint is None and said is not None


@pytest.mark.parametrize("restored", [False, True])
def test_a_state_that_cannot_be_restored_is_told_and_a_fault_of_training_is_not(restored: bool) -> None:
    run = SimpleNamespace(_checkpoints=SimpleNamespace(loaded=True), _bound=SimpleNamespace(restored=restored))
    with pytest.raises(KeyError if restored else InputError, match=r"state_dict|cannot be restored"):  # noqa: SIM117
        with Measurement._restoring(run, Path("last.ckpt")):  # type: ignore[arg-type]
            raise KeyError("state_dict")


STATES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "nothing": lambda state: [state.pop(key) for key in list(state) if key not in ("config_hash", "numbers_version")],
    "no weights": lambda state: state.pop("state_dict"),
    "weights of another shape": lambda state: state.update(state_dict={key: torch.zeros(1) for key in state["state_dict"]}),
    "no optimiser": lambda state: state.pop("optimizer_states"),
    "optimiser of another network": lambda state: state.update(optimizer_states=[{"state": {}, "param_groups": []}]),
    "a word for a loop": lambda state: state["loops"].update(fit_loop="x"),
    "an old version": lambda state: state.update({"pytorch-lightning_version": "0.1.0"}),
    "no version": lambda state: state.update({"pytorch-lightning_version": [1]}),
    "a list of callbacks": lambda state: state.update(callbacks=[1]),
}


@pytest.mark.slow
def test_a_checkpoint_of_another_form_is_told_in_a_sentence(launch, interrupt) -> None:
    part = interrupt(Interrupt())
    file = part.folder / "checkpoints" / "last.ckpt"
    whole = file.read_bytes()
    for name, change in STATES.items():
        file.write_bytes(whole)
        state = read_state(file)
        change(state)
        write_state(file, state)
        with pytest.raises((UserError, InputError), match=r"last\.ckpt to hold the state of this run") as caught:
            launch(f"resume={part.folder}", folder="cut")
        assert len(str(caught.value).splitlines()) == 1, name


def test_paths_in_a_checkpoint_are_left_out() -> None:
    """Lightning would delete the file that a ModelCheckpoint wrote last, wherever that is."""
    checkpoint = {"callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": "/x"}, "EarlyStopping{}": {"wait": 1}}}
    Bound("a").on_load_checkpoint(None, None, checkpoint | {"numbers_version": VERSION})
    assert checkpoint == {"callbacks": {"EarlyStopping{}": {"wait": 1}}}


class Interrupt(Callback):
    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_checkpoint_deletes_no_file_elsewhere(launch, interrupt, tmp_path: Path) -> None:
    part = interrupt(Interrupt())
    note = tmp_path / "note.txt"
    note.write_text("mine")
    file = part.folder / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    [name] = [name for name in checkpoint["callbacks"] if name.startswith("ModelCheckpoint")]
    checkpoint["callbacks"][name]["best_model_path"] = f"{file.parent}/../../note.txt"
    torch.save(checkpoint, file)
    assert launch(f"resume={part.folder}", folder="cut").meta["complete"]
    assert note.read_text() == "mine"


@pytest.mark.slow
def test_a_run_with_the_checkpoint_of_a_stranger_is_trained_again(launch, interrupt, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole, part = launch(folder="whole"), interrupt(Interrupt())
    torch.save({"state_dict": {}, "callbacks": Evil(open, "evil", "w")}, part.folder / "checkpoints" / "last.ckpt")
    assert launch(f"resume={part.folder}", folder="cut").metrics == whole.metrics
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("number", ["../../x", "..", "a/b", "x" * 1000, "a\nb", "*", "", "\x1b[2J", "ab cd"])
def test_an_id_is_no_path(number: str, tmp_path: Path) -> None:
    (tmp_path / "run_id").write_text(number)
    assert tracking._id(tmp_path, resumed=True)[0] not in ("", number)
    assert len((tmp_path / "run_id").read_text()) == 8


HONEST = {
    "backbone": {"_target_": "x", "path": "tiny", "device": "${device}"}, "images": {"size": 64}, "timestep": 5, "prompt": "",
    "seed": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {"backbone": {"path": "evil/${oc.env:HF_TOKEN}"}},
        {"backbone": {"path": "${oc.env:HOME}"}},
        {"backbone": {"path": {"_target_": "os.system"}}},
        {"backbone": {"path": ["tiny"]}},
        {"backbone": {"weights_seed": "x"}},
        {"backbone": "tiny"},
        {"backbone": None},
        {"images": {"size": "64"}},
        {"images": {"size": 1e400}},
        {"images": {"size": True}},
        {"images": []},
        {"timestep": "${oc.decode:5}"},
        {"seed": [1]},
        {"prompt": {"a": 1}},
        {"prompt": "${oc.env:HOME}"},
    ],
)
def test_the_settings_of_a_stranger_are_read_as_they_are(changed: dict[str, Any], tmp_path: Path) -> None:
    """By reports similarity --run: no environment variable reaches a sentence or the address of a hub."""
    (tmp_path / ".hydra").mkdir()
    stored = tmp_path / ".hydra" / "config.yaml"
    stored.write_text(yaml.safe_dump(HONEST))
    assert defaults_of(tmp_path)["backbone"] == {"path": "tiny"}
    stored.write_text(yaml.safe_dump(HONEST | changed))
    with pytest.raises(InputError) as caught:
        defaults_of(tmp_path)
    assert os.environ["HOME"] not in str(caught.value).replace(str(tmp_path), "")


@pytest.mark.parametrize("content", [b"!!python/object/apply:os.system [touch evil]", b"[" * 5000, b"\xff", b"", b"1"])
def test_settings_that_are_no_settings_are_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.yaml"):
        defaults_of(tmp_path)

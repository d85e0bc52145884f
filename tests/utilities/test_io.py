"""Files: an old one or a new one, never half; readable as the umask says; damage is noticed."""

import json
import multiprocessing
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file

from sdprobe.runs.record import unpacked, write_predictions
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import (  # fmt: skip
    DamagedFile,
    parsing,
    read_arrays,
    read_file,
    read_json,
    read_state,
    read_tensors,
    read_yaml,
    replacing,
    write_arrays,
    write_figure,
    write_file,
    write_json,
    write_rows,
    write_state,
    write_tensors,
    write_yaml,
)

TENSORS = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor([True, False])}
WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: write_file(path, "new"),
    "rows": lambda path: write_rows(path, [["a"], [1]]),
    "figure.png": lambda path: write_figure(path, Figure(), dpi=10),
    "arrays": lambda path: write_arrays(path, {"a": np.arange(3)}),
    "tensors": lambda path: write_tensors(path, TENSORS),
    "predictions": lambda path: write_predictions(path, {"a": np.arange(3)}),
    "json": lambda path: write_json(path, {"a": 1}),
    "yaml": lambda path: write_yaml(path, "- a=1\n"),
    "state": lambda path: write_state(path, {"a": 1}),
}


def flipped(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_permissions_are_those_of_the_umask(tmp_path: Path, name: str, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        WRITERS[name](tmp_path / name)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt])
def test_an_exception_on_the_way_leaves_the_old_file_alone(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    write_file(path, "old")

    def fail() -> None:
        with replacing(path) as file:
            file.write(b"new")
            file.flush()
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_file(path, "new")
    assert path.read_text() == "new"


def dying(path: Path) -> None:
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_leaves_is_hidden_and_has_no_known_ending(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_file(path, "old")
    process = multiprocessing.get_context("fork").Process(target=dying, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    [left] = set(tmp_path.iterdir()) - {path}
    assert left.read_bytes() == b"new", "the control: it died on the way"
    assert left.name.startswith(".") and left.suffix == ".tmp"
    assert path.read_text() == "old"


def rewriting(path: Path, number: int) -> None:
    for _ in range(50):
        write_tensors(path, {"a": torch.full((10_000,), float(number))}, writer=str(number))


def test_a_file_that_two_processes_write_is_that_of_one_of_them_at_any_time(tmp_path: Path) -> None:
    path, seen = tmp_path / "file", set()
    write_tensors(path, {"a": torch.zeros(10_000)}, writer="0")
    processes = [multiprocessing.get_context("fork").Process(target=rewriting, args=(path, number)) for number in (1, 2)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        tensors, texts = read_tensors(path)
        assert (tensors["a"] == float(texts["writer"])).all()
        seen.add(texts["writer"])
    assert [process.exitcode for process in processes] == [0, 0]
    assert seen >= {"1", "2"}
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_and_texts_come_back(tmp_path: Path) -> None:
    strided = TENSORS | {"strided": torch.randn(4, 6)[:, ::2], "scalar": torch.tensor(3), "none": torch.zeros(0, 3).bfloat16()}
    digest = write_tensors(tmp_path / "file", strided, captions="é")
    found, texts = read_tensors(tmp_path / "file")
    assert found.keys() == strided.keys()
    for name, tensor in strided.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    assert texts.items() >= {"captions": "é", "digest": digest}.items()


def test_every_damaged_byte_of_tensors_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_tensors(path, TENSORS, captions="a text")
    whole, unnoticed = path.read_bytes(), 0
    for position in range(len(whole)):
        flipped(path, position, position % 6)
        try:
            found, texts = read_tensors(path)
        except DamagedFile:
            pass
        else:  # of the checksum of the header only its name can be hit
            unnoticed += 1
            assert "header" not in texts and texts["captions"] == "a text"
            assert found.keys() == TENSORS.keys()
            assert all(found[name].dtype == t.dtype and torch.equal(found[name], t) for name, t in TENSORS.items())
        path.write_bytes(whole)
    assert unnoticed <= len("header")


@pytest.mark.parametrize(
    "swapped", [{"b": TENSORS["b"].view(3, 2)}, {"b": TENSORS["b"].view(torch.int32)}, {"c": TENSORS["b"]}]
)
def test_equal_bytes_of_another_name_type_or_shape_are_damage(tmp_path: Path, swapped: dict[str, torch.Tensor]) -> None:
    write_tensors(tmp_path / "file", {"b": TENSORS["b"]})
    save_file(swapped, tmp_path / "other", read_tensors(tmp_path / "file")[1])
    with pytest.raises(DamagedFile, match="checksum mismatch"):
        read_tensors(tmp_path / "other")


def test_latents_of_older_versions_are_read_and_checked(tmp_path: Path) -> None:
    """Their digest is BLAKE2b over the bytes of the one tensor, and stays so: older versions read what newer ones write."""
    from hashlib import blake2b

    latent, path = torch.randn(4, 2, 2), tmp_path / "file"
    digest = blake2b(latent.numpy().tobytes(), digest_size=16).hexdigest()
    save_file({"latent": latent}, path, {"digest": digest})
    assert torch.equal(read_tensors(path)[0]["latent"], latent)
    flipped(path, -1)
    with pytest.raises(DamagedFile):
        read_tensors(path)
    assert write_tensors(path, {"latent": latent}) == digest


def test_a_file_without_checksum_is_read_where_that_is_asked_for(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "file")
    with pytest.raises(DamagedFile):
        read_tensors(tmp_path / "file")
    assert torch.equal(read_tensors(tmp_path / "file", unchecked=True)[0]["a"], torch.ones(2))
    write_tensors(tmp_path / "file", {"a": torch.ones(2)})
    flipped(tmp_path / "file", -1)
    with pytest.raises(DamagedFile):  # one that has a checksum is checked
        read_tensors(tmp_path / "file", unchecked=True)


# format → how two contents are written, and one is read as something comparable
FORMATS: dict[str, tuple[Callable[[Path, int], object], Callable[[Path], str]]] = {
    "json": (
        lambda path, seed: write_json(path, {"test/mid/axis_accuracy/all": 0.125 + seed, "meta": {"seed": seed}}),
        lambda path: repr(without_sum(path, read_json(path))),
    ),
    "yaml": (
        lambda path, seed: write_yaml(path, f"- probe=position\n- seed={seed}\n"),
        lambda path: repr(listed(path)),
    ),
    "arrays": (
        lambda path, seed: write_arrays(path, {"mid/accuracy": np.arange(6.0) + seed, "b": np.arange(3)}),
        lambda path: repr(read_arrays(path)),
    ),
    "tensors": (lambda path, seed: write_tensors(path, {"a": TENSORS["b"] + seed}), lambda path: repr(read_tensors(path)[0])),
    "predictions": (
        lambda path, seed: Path(f"{path}.sum").write_text(write_predictions(path, {"cell": np.arange(5) + seed})),
        lambda path: repr(unpacked(read_file(path, Path(f"{path}.sum").read_text()))),  # as metrics.json has it
    ),
    "state": (
        lambda path, seed: write_state(path, {"step": seed, "head": TENSORS["b"] + seed}),
        lambda path: repr(read_state(path)),
    ),
}


def without_sum(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Without the checksum: a bit of its name may be hit, which makes it a file of an older version with the same content."""
    with parsing(path):
        return {key: value for key, value in content.items() if key != "meta"} | {"seed": content["meta"]["seed"]}


def listed(path: Path) -> list[Any]:
    content = read_yaml(path)
    with parsing(path):
        return [*content]


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_of_any_format_is_noticed_or_means_the_same(tmp_path: Path, name: str) -> None:
    write, read = FORMATS[name]
    path = tmp_path / "file"
    write(path, 0)
    whole, meaning = path.read_bytes(), read(path)
    cuts = [whole[:end] for end in range(0, len(whole), max(1, len(whole) // 40))]
    step = max(1, len(whole) // 400)
    flips = [whole[:at] + bytes([whole[at] ^ 1 << at // step % 8]) + whole[at + 1 :] for at in range(0, len(whole), step)]
    noticed = 0
    for content in [*cuts, *flips, whole + b"x", bytes(len(whole))]:
        path.write_bytes(content)
        try:
            assert read(path) == meaning, content
        except DamagedFile:
            noticed += 1
    assert noticed > 0.9 * (len(cuts) + len(flips))
    path.unlink()
    path.mkdir()
    with pytest.raises(DamagedFile, match="Is a directory"):
        read(path)
    with pytest.raises(IsADirectoryError, match=str(path)):
        write(path, 0)
    assert not [*path.iterdir()] and not [*tmp_path.glob(".*")]


def test_a_file_of_another_run_is_noticed_by_the_checksum_that_a_record_has_of_it(tmp_path: Path) -> None:
    first, second = (write_arrays(tmp_path / name, {"a": np.arange(3) + number}) for number, name in enumerate("ab"))
    assert read_arrays(tmp_path / "a", expected=first)["a"][0] == 0
    for name, expected in (("a", second), ("b", first)):
        with pytest.raises(DamagedFile, match="checksum mismatch"):
            read_arrays(tmp_path / name, expected=expected)


@pytest.mark.parametrize(("old", "new"), [("0.125", "0.225"), ('"seed": 0', '"seed": 1'), ('"test/mid/', '"test/mod/')])
def test_json_that_was_edited_by_hand_is_noticed_unless_it_means_the_same(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"test/mid/axis_accuracy/all": 0.125, "meta": {"seed": 0}})
    text, before = path.read_text(), read_json(path)
    path.write_text(text.replace("\n", "  "))
    assert read_json(path) == before, "its form does not matter"
    path.write_text(text.replace(old, new))
    with pytest.raises(DamagedFile, match="checksum mismatch"):
        read_json(path)


def test_archives_of_older_versions_are_read_where_that_is_asked_for(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.arange(3))
    assert read_arrays(tmp_path / "a.npz", unchecked=True)["a"][2] == 2
    with pytest.raises(DamagedFile, match="checksum mismatch"):
        read_arrays(tmp_path / "a.npz")
    torch.save({"a": 1}, tmp_path / "a.ckpt")
    assert read_state(tmp_path / "a.ckpt") == {"a": 1}
    write_state(tmp_path / "a.ckpt", {"a": 2})
    assert torch.load(tmp_path / "a.ckpt") == {"a": 2}, "torch reads it, too"


def test_json_and_yaml_of_older_versions_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text('{"a": 1, "meta": {"seed": 0}}')
    assert read_json(tmp_path / "file") == {"a": 1, "meta": {"seed": 0}}
    (tmp_path / "file").write_text("- a=1\n")
    assert read_yaml(tmp_path / "file") == ["a=1"]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DamagedFile):
        read_yaml(tmp_path / "file")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b'{"a": 1', b"[1]", b"\xff"])
@pytest.mark.parametrize("read", [read_json, read_arrays, read_tensors, read_state])
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, read: Callable[[Path], Any], content: bytes) -> None:
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        read(path)
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^Expected {path} to be intact, but got '(?s:.+)' while reading it\. Delete it"):
        read(path)


def test_json_rows_and_figures_are_written_in_their_formats(tmp_path: Path) -> None:
    write_file(tmp_path / "a.json", json.dumps({"é": None}))
    assert read_json(tmp_path / "a.json") == {"é": None}
    write_rows(tmp_path / "a.csv", [["a", "b,c"], [None, 1.5]])
    assert (tmp_path / "a.csv").read_bytes() == b'a,"b,c"\r\n,1.5\r\n'
    for ending, start in {"PNG": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}.items():
        write_figure(tmp_path / f"a.{ending}", Figure(), dpi=10)
        assert (tmp_path / f"a.{ending}").read_bytes().startswith(start)

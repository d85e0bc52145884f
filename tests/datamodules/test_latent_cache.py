"""LatentCache: an entry is whole or absent, whatever happens to the process, the disk or the file."""

import errno
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sdprobe.utilities.io
from datamodules.latents import LatentCache
from sdprobe.utilities.errors import InputError

KEYS = [f"image {n}" for n in range(6)]
forked = multiprocessing.get_context("fork")


def latent(key: str, side: int = 8) -> Tensor:
    return torch.randn(4, side, side, generator=torch.Generator().manual_seed(KEYS.index(key)))


def entries(root: Path) -> list[Path]:
    return sorted(root.rglob("*.safetensors"))


def run(target: Callable[..., Any], *arguments: object) -> multiprocessing.process.BaseProcess:
    process = forked.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


@pytest.fixture
def cache(tmp_path: Path) -> LatentCache:
    return LatentCache(tmp_path)


# --- what is put is what is got --------------------------------------------------------------------------------------


@given(sides=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)), parts=st.lists(st.text(), min_size=1))
@settings(deadline=None, max_examples=40)
def test_a_latent_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, sides: tuple[int, int, int], parts: list[str]
) -> None:
    root = tmp_path_factory.mktemp("cache")
    stored = torch.randn(sides)
    LatentCache(root).put(stored, *parts)
    read = LatentCache(root).get(*parts)
    assert read is not None
    assert read.dtype == stored.dtype
    assert torch.equal(read, stored)
    assert LatentCache(root).get(*parts, "more") is None


def test_strided_and_extreme_values_come_back(cache: LatentCache) -> None:
    values = torch.tensor([[[float("nan"), float("inf"), -0.0, 1e-45]] * 4] * 3)
    for number, tensor in enumerate((values, torch.randn(8, 6, 4).permute(2, 0, 1), torch.randn(4, 8, 8)[:, ::2, 1:])):
        cache.put(tensor, str(number))
        read = cache.get(str(number))
        assert read is not None
        assert torch.equal(read.view(torch.int32), tensor.contiguous().view(torch.int32))


def test_hits_and_misses_are_counted(cache: LatentCache) -> None:
    assert cache.get("a") is None
    cache.put(latent(KEYS[0]), "a")
    cache.get("a")
    cache.get("a")
    assert (cache.hits, cache.misses, cache.damaged) == (2, 1, 0)


def test_every_part_of_the_key_counts(cache: LatentCache) -> None:
    keys = [("a", "b", ""), ("a", "c", ""), ("ab", "", ""), ("a", "b", "x"), ("", "ab", "")]
    for number, key in enumerate(keys):
        cache.put(torch.full((1, 2, 2), float(number)), *key)
    assert len(entries(cache.root)) == len(keys)
    for number, key in enumerate(keys):
        read = cache.get(*key)
        assert read is not None
        assert (read == number).all()


def test_a_later_latent_replaces_an_earlier_one(cache: LatentCache) -> None:
    for value in (1.0, 2.0):
        cache.put(torch.full((4, 2, 2), value), "a")
    read = cache.get("a")
    assert read is not None
    assert (read == 2).all()
    assert len(entries(cache.root)) == 1


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    LatentCache("~/latents").put(latent(KEYS[0]), "a")
    assert len(entries(tmp_path / "latents")) == 1


# --- damage ----------------------------------------------------------------------------------------------------------


def assert_noticed_and_rebuilt(cache: LatentCache, caplog: pytest.LogCaptureFixture) -> None:
    assert cache.get("a") is None
    assert (cache.damaged, cache.misses) == (1, 1)
    assert entries(cache.root) == [], "the damaged file is gone"
    assert "is damaged" in caplog.text
    cache.put(latent(KEYS[0]), "a")
    read = cache.get("a")
    assert read is not None
    assert torch.equal(read, latent(KEYS[0]))


def test_any_flipped_bit_is_noticed_or_harmless(cache: LatentCache, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")
    stored = latent(KEYS[0], side=4)
    cache.put(stored, "a")
    [path] = entries(cache.root)
    whole = path.read_bytes()
    tensor_starts = len(whole) - stored.nbytes
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        read = cache.get("a")
        assert read is None or torch.equal(read, stored), f"bit {bit}"
        if bit // 8 >= tensor_starts:
            assert read is None
    assert cache.damaged >= 8 * stored.nbytes


def test_a_flipped_bit_is_counted_and_the_entry_rebuilt(cache: LatentCache, caplog: pytest.LogCaptureFixture) -> None:
    cache.put(latent(KEYS[0]), "a")
    [path] = entries(cache.root)
    damaged = bytearray(path.read_bytes())
    damaged[-100] ^= 4
    path.write_bytes(damaged)
    assert_noticed_and_rebuilt(cache, caplog)


@pytest.mark.parametrize("kept", [0, 4, 8, 50, 300, -1])
def test_truncation_is_counted_and_the_entry_rebuilt(cache: LatentCache, caplog: pytest.LogCaptureFixture, kept: int) -> None:
    cache.put(latent(KEYS[0]), "a")
    [path] = entries(cache.root)
    path.write_bytes(path.read_bytes()[:kept])
    assert_noticed_and_rebuilt(cache, caplog)


def test_a_foreign_file_in_an_entrys_place_is_damage(cache: LatentCache, caplog: pytest.LogCaptureFixture) -> None:
    from safetensors.torch import save_file

    cache.put(latent(KEYS[0]), "a")
    [path] = entries(cache.root)
    save_file({"latent": latent(KEYS[0])}, path)  # no checksum
    assert_noticed_and_rebuilt(cache, caplog)


# --- killed processes ------------------------------------------------------------------------------------------------


def put_for_ever(root: Path, side: int) -> None:
    cache, parent = LatentCache(root), os.getppid()
    while os.getppid() == parent:  # never outlives the tests
        for key in KEYS:
            cache.put(latent(key, side), key)


def test_a_kill_at_any_moment_leaves_only_whole_entries(tmp_path: Path) -> None:
    side, moments, reader = 160, random.Random(0), LatentCache(tmp_path)
    for _ in range(10):
        process = run(put_for_ever, tmp_path, side)
        until = time.monotonic() + moments.uniform(0.01, 0.15)
        while time.monotonic() < until:
            reader.get(moments.choice(KEYS))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        for key in KEYS:
            read = reader.get(key)
            assert read is None or torch.equal(read, latent(key, side))
    assert reader.damaged == 0
    assert reader.hits > 20, "the writers did write"
    for path in entries(tmp_path):
        assert path.stat().st_size > 4 * side * side * 4


def put_and_die(root: Path, moment: str) -> None:
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "before the rename":
        os.replace = die  # type: ignore[assignment]
    else:

        def half_written(*arguments: Any) -> Any:
            file = open(*arguments)  # noqa: SIM115
            whole = file.write

            class Half:
                def __enter__(self) -> "Half":
                    return self

                def __exit__(self, *_: object) -> None: ...

                def write(self, data: bytes) -> None:
                    whole(data[: len(data) // 2])
                    file.flush()
                    die()

            return Half()

        sdprobe.utilities.io.open = half_written  # type: ignore[attr-defined]
    LatentCache(root).put(-latent(KEYS[0]), KEYS[0])


@pytest.mark.parametrize("moment", ["in the middle of writing", "before the rename"])
def test_a_kill_within_a_put_keeps_the_old_entry_and_its_leftovers_are_harmless(tmp_path: Path, moment: str) -> None:
    cache = LatentCache(tmp_path)
    cache.put(latent(KEYS[0]), KEYS[0])
    process = run(put_and_die, tmp_path, moment)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.rglob("*.tmp"))) == 1, "the control: it died on the way"
    read = cache.get(KEYS[0])
    assert read is not None
    assert torch.equal(read, latent(KEYS[0]))
    cache.put(-latent(KEYS[0]), KEYS[0])
    read = cache.get(KEYS[0])
    assert read is not None
    assert torch.equal(read, -latent(KEYS[0]))
    assert cache.damaged == 0


# --- several processes -----------------------------------------------------------------------------------------------


def write_and_check(root: Path) -> None:
    cache = LatentCache(root)
    for _ in range(15):
        for key in KEYS:
            cache.put(latent(key, 64), key)
            read = cache.get(key)
            if read is None or not torch.equal(read, latent(key, 64)) or cache.damaged:
                os._exit(3)


def test_processes_that_write_the_same_keys_share_safely(tmp_path: Path) -> None:
    writers = [run(write_and_check, tmp_path) for _ in range(3)]
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert len(entries(tmp_path)) == len(KEYS)
    assert not list(tmp_path.rglob("*.tmp"))


# --- disks that refuse -----------------------------------------------------------------------------------------------


def refusing(code: int) -> Callable[..., Any]:
    def refuse(*_: object, **__: object) -> Any:
        raise OSError(code, os.strerror(code))

    return refuse


def full_while_writing(code: int) -> Callable[..., Any]:
    def opened(*arguments: Any) -> Any:
        file = open(*arguments, buffering=0)  # noqa: SIM115

        class Full:
            def __enter__(self) -> "Full":
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def write(self, data: bytes) -> int:
                file.write(data[: len(data) // 2])
                raise OSError(code, os.strerror(code))

        return Full()

    return opened


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM])
@pytest.mark.parametrize("call", ["open", "write", "replace"])
def test_a_refusing_disk_gives_a_sentence_and_leaves_nothing_behind(
    cache: LatentCache, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    cache.put(latent(KEYS[1]), "kept")
    if call == "replace":
        monkeypatch.setattr(os, "replace", refusing(code))
    else:
        opened = full_while_writing(code) if call == "write" else refusing(code)
        monkeypatch.setattr(sdprobe.utilities.io, "open", opened, raising=False)
    with pytest.raises(InputError, match=rf"Expected {cache.root} to be a folder .*{os.strerror(code)}.*cache_dir"):
        cache.put(latent(KEYS[0]), "a")
    monkeypatch.undo()
    assert len(entries(cache.root)) == 1
    assert not list(cache.root.rglob("*.tmp"))
    assert cache.get("a") is None
    assert cache.get("kept") is not None
    assert cache.damaged == 0


def test_a_file_where_the_folder_should_be_gives_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = LatentCache(tmp_path / "file")
    assert cache.get("a") is None
    with pytest.raises(InputError, match="cache_dir"):
        cache.put(latent(KEYS[0]), "a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_gives_a_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match=r"Permission denied.*cache_dir"):
        LatentCache(tmp_path).put(latent(KEYS[0]), "a")
    tmp_path.chmod(0o700)

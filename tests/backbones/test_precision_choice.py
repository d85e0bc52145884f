"""Where a backbone runs and in which dtype: the whole table of choices."""

import pytest
import torch

from sdprobe.backbones.precision import DTYPES, choose_device, choose_dtype, name_of
from sdprobe.utilities.errors import InputError


def pretend(patch: pytest.MonkeyPatch, cuda: bool, capability: tuple[int, int] = (8, 0), amx: bool = False) -> None:
    """Stand-ins for questions to the hardware, none of it ours."""
    patch.setattr(torch.cuda, "is_available", lambda: cuda)
    patch.setattr(torch.cuda, "device_count", lambda: 2 * cuda)
    patch.setattr(torch.cuda, "get_device_capability", lambda _device=None: capability)
    patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)


@pytest.mark.parametrize(
    ("cuda", "device", "expected"),
    [(True, "auto", "cuda"), (False, "auto", "cpu"), (True, "cpu", "cpu"), (True, "cuda", "cuda"), (True, "cuda:1", "cuda:1")],
)
def test_auto_takes_the_gpu_if_there_is_one(cuda: bool, device: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda)
    assert choose_device(device) == torch.device(expected)


@pytest.mark.parametrize(
    ("cuda", "device", "message"),
    [
        (False, "cuda", "device=cuda to have a CUDA GPU, but torch finds none. Use device=cpu"),
        (False, "cuda:0", "device=cuda:0 to have a CUDA GPU, but torch finds none. Use device=cpu"),
        (True, "cuda:2", "device=cuda:2 to exist, but torch finds 2 GPUs. Use device=cuda:1 or less"),
        *((True, device, f"one of auto, cpu, cuda, but got '{device}'") for device in ("gpu", "mps", "tpu:0", "")),
    ],
)
def test_devices_that_are_not_there_are_refused(cuda: bool, device: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda)
    with pytest.raises(InputError, match=message):
        choose_device(device)


@pytest.mark.parametrize(
    ("device", "capability", "amx", "expected"),
    [
        ("cuda", (9, 0), False, torch.bfloat16),  # Hopper
        ("cuda", (8, 0), False, torch.bfloat16),  # Ampere
        ("cuda", (7, 5), False, torch.float16),  # Turing
        ("cuda", (7, 0), True, torch.float16),  # Volta; what the CPU can do has no say
        ("cpu", (9, 0), True, torch.bfloat16),
        ("cpu", (9, 0), False, torch.float32),
    ],
)
def test_auto_takes_bf16_where_it_is_fast(
    device: str, capability: tuple[int, int], amx: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, cuda=device == "cuda", capability=capability, amx=amx)
    assert choose_dtype("auto", torch.device(device)) == expected


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_named_precision_is_taken_at_its_word(precision: str, dtype: torch.dtype, device: str) -> None:
    assert choose_dtype(precision, torch.device(device)) == dtype
    assert name_of(dtype) == precision


@pytest.mark.parametrize("precision", ["float32", "16", "half", ""])
def test_an_unknown_precision_lists_the_known(precision: str) -> None:
    with pytest.raises(InputError, match=f"auto, {', '.join(DTYPES)}, but got '{precision}'"):
        choose_dtype(precision, torch.device("cpu"))

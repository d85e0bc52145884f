"""What only a GPU can show: the same activations as on the CPU, and a run that stays on the device."""

import pytest
import torch

from sdprobe.backbones import FrozenSD

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_activations_agree_with_the_cpu() -> None:
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    grids = {
        device: FrozenSD.from_pretrained("tiny", device=device, precision="fp32").activations(images, "stages")
        for device in ("cpu", "cuda")
    }
    for layer, grid in grids["cpu"].items():
        assert grids["cuda"][layer].device.type == "cuda"
        torch.testing.assert_close(grids["cuda"][layer].cpu(), grid, rtol=1e-2, atol=1e-2)  # TF32 convolutions

"""What a notebook shows: :func:`explore`, a page in which one hovers over tokens."""

import html
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdprobe.backbones import FrozenSD
from sdprobe.backbones.inputs import tensors_of
from sdprobe.estimators.grids import ImageGrids, texts
from sdprobe.reports.explorer import page
from sdprobe.tokens.kept import RANDOM, TRAINED, KeptTokens, Plan
from sdprobe.tokens.keys import cells
from sdprobe.utilities import expect
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import write_file

SIDE = 256  # pixels of a picture on the page


class Explorer:
    """A page in which one hovers over tokens. A notebook shows it as the value of a cell.

    Args:
        page: the HTML of the page.
    """

    def __init__(self, page: str) -> None:
        self.page = page

    def _repr_html_(self) -> str:
        """An iframe with the page, which can neither leave it nor reach the notebook."""
        source = html.escape(self.page)
        return (
            f'<iframe title="Token explorer" sandbox="allow-scripts allow-downloads" srcdoc="{source}" '
            'style="width: 100%; height: 900px; border: 0"></iframe>'
        )

    def __repr__(self) -> str:
        """How large the page is."""
        return f"Explorer of {len(self.page) / 1e6:.1f} MB; .save(path) writes it as a page that any browser opens"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page.

        Args:
            path: of the file, such as ``explorer.html``.

        Returns:
            the path.
        """
        write_file(Path(path), self.page)
        return Path(path)


@torch.no_grad()
def explore(
    sd: FrozenSD | Mapping[str, Any],
    images: Any,
    layers: str | Sequence[str] = "stages",
    timestep: int | Iterable[int] = 50,
    seed: int = 0,
    prompt: str = "",
    *,
    size: int | None = None,
    names: Sequence[str] | None = None,
    random_weights: FrozenSD | Mapping[str, Any] | None = None,
    pictures: bool = True,
    megabytes: float = 10,
) -> Explorer:
    """A page in which one hovers over a token and sees its similarity to all tokens of two images, in every layer at once.

    Args:
        sd: a checkpoint; or grids of your own network, layer → (B, C, h, w), also with a variant such as ``mid__repaired``.
        images: a few images, as :meth:`FrozenSD.activations` takes them, all of one size.
        layers: as in :meth:`FrozenSD.activations`; not used with grids.
        timestep: noise level, or several; not used with grids.
        seed: seed of the noise; not used with grids.
        prompt: conditioning text; not used with grids.
        size: side of the centred square that is taken of each picture, see :meth:`FrozenSD.activations`.
        names: a name per image; the default is its number.
        random_weights: the network with random weights, or its grids. None for no such network.
        pictures: show the images on the page.
        megabytes: largest page, in 10⁶ bytes, 1 to 1000; tokens are stored less exactly, or left out, to keep it.

    Returns:
        the page: shown in a notebook, written by ``.save(path)``.

    Raises:
        InputError: images of several sizes, grids of other images, an option out of range, a page that is too small.

    Example:
        >>> import torch, sdprobe
        >>> sd = sdprobe.FrozenSD.from_pretrained("tiny")
        >>> explorer = sdprobe.explore(sd, torch.rand(2, 3, 128, 128), ["mid", "up_1"])
        >>> len(explorer.page) < 1e6
        True
    """
    expect.between("megabytes", megabytes, 1, 1000)
    networks = {TRAINED: sd, **({} if random_weights is None else {RANDOM: random_weights})}
    stride = next((each.encoder.stride for each in networks.values() if isinstance(each, FrozenSD)), 1)
    tensors = tensors_of(images, size, stride)
    if sides := {tuple(image.shape[-2:]) for image in tensors} - {tuple(tensors[0].shape[-2:])}:
        raise InputError(
            "Expected images of one size, but got {}×{} and {}×{}. Pass size=512, which takes the centred square of each."
            .format(*tensors[0].shape[-2:], *min(sides))
        )  # fmt: skip
    stack = tensors if isinstance(tensors, Tensor) else torch.stack(tensors)
    named = texts("names", names, len(stack), [f"image {number}" for number in range(len(stack))])
    levels = [int(step) for step in timestep] if np.iterable(timestep) else [int(timestep)]
    grids = {name: _grids(name, network, stack, layers, levels, seed, prompt) for name, network in networks.items()}
    if RANDOM in grids:
        grids[RANDOM].check_like(grids[TRAINED], "random_weights", "sd")
    if len(grids[TRAINED]) != len(stack):
        raise InputError(
            f"Expected grids of {len(stack)} images, but got {len(grids[TRAINED])}. Pass the images that the grids are of."
        )
    plan = Plan.of(grids[TRAINED].shapes, len(stack), megabytes, list(grids))
    tokens: dict[str, np.ndarray] = {"names": np.array(named), "left_out": np.array(plan.left_out, dtype=str)}
    for network, found in grids.items():
        kept = KeptTokens(plan, network)
        kept.take(found.batch(range(len(stack))))
        tokens |= {name: tensor.numpy() for name, tensor in kept.arrays.items()}
    if pictures:
        small = torch.nn.functional.interpolate(stack[: plan.images].float(), size=(SIDE, SIDE), mode="area")
        tokens["pictures"] = (small * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    tokens["names"] = tokens["names"][: plan.images]
    if not isinstance(sd, FrozenSD):
        return Explorer(page(tokens, "tokens"))
    about = [f"timestep {levels[0]}" if len(levels) == 1 else "", f"prompt “{prompt}”" if prompt else "", f"seed {seed}"]
    title = sd.path if sd.weights == "stored" else f"{sd.path}, {sd.weights} weights"
    return Explorer(page(tokens, title, ", ".join(filter(None, about)), sd.published_names(sd.unet.resolve(layers)), levels))


def _grids(
    argument: str,
    network: FrozenSD | Mapping[str, Any],
    images: Tensor,
    layers: str | Sequence[str],
    levels: Sequence[int],
    seed: int,
    prompt: str,
) -> ImageGrids:
    """Grids of a checkpoint at these noise levels, or those that were given."""
    if not isinstance(network, FrozenSD):
        return ImageGrids.of("sd" if argument == TRAINED else "random_weights", network)
    found = network.activations(images, layers, levels, seed, prompt)
    names = cells(list(found), levels)
    grids = {name: found[layer][levels.index(level)].float() for name, (layer, level) in names.items()}
    return ImageGrids.of(argument, grids)

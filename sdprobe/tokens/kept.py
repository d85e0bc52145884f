"""Tokens of a few images in few bytes, for the explorer: quantised, and projected if they are many. Data path step 9.

Every token is the mean token of its image plus a remainder, which is stored as integers with one scale per token. Projected
tokens are coordinates in an orthonormal basis that holds the mean tokens and the principal components of the remainders, so
that inner products stay. The largest error of a similarity is measured, or bounded where pairs of tokens are too many.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import normalize

from sdprobe.tokens.batch import GridBatch, joined
from sdprobe.tokens.geometry import flatten
from sdprobe.tokens.keys import label_of, timestep_of
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.rng import keyed_generator

Shape = tuple[int, int, int]
TRAINED, RANDOM = "trained", "random"  # networks: the measured one, and that with random weights
STEPS = ((64, 8), (128, 8), (256, 8), (512, 8), (512, 16))  # coordinates of a token, at most, and their bits; ever more exact
MOST_PAIRED = 4096  # tokens of a grid of which all pairs are compared
ROUNDING = 2e-6  # of single precision, which the page and this file compute in
BASE64 = 4 / 3  # bytes on the page per stored byte
PER_TOKEN = 4 + 4 + 3 + 1  # bytes beside the codes: scale, norm, colour, whether its norm is high
PER_GRID, PER_IMAGE, PAGE = 500, 50_000, 150_000  # bytes of a grid's names, of a picture, and of a page without tokens
STILLS, PER_STILL, PER_PIXEL = 2, 1500, 4  # images that a page shows without JavaScript; bytes of a layer, and of its token


@dataclass(frozen=True)
class Plan:
    """What is kept of which grids.

    Args:
        images: number of images.
        grids: (network, name of a layer or variant), in order of importance.
        stored: name → (greatest number of coordinates of a token, their bits).
        left_out: in words, what does not fit.
    """

    images: int
    grids: tuple[tuple[str, str], ...]
    stored: Mapping[str, tuple[int, int]]
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, shapes: Mapping[str, Shape], images: int, megabytes: float, networks: Iterable[str] = (TRAINED,)) -> "Plan":
        """The most precise plan whose page is at most so large.

        All grids get more coordinates step by step, smaller ones first, and then more bits: a projection costs more exactness
        than rounding does. If the least precise plan is too large, other noise levels are left out first, then mitigations and
        random weights, then images.

        Args:
            shapes: name of a layer or variant → (C, h, w).
            images: number of images, at least 1.
            megabytes: largest page, in 10⁶ bytes.
            networks: names of the networks whose tokens are kept.

        Raises:
            InputError: not even one image fits.

        Example:
            >>> shapes = {"mid": (64, 8, 8), "mid__leace": (64, 8, 8)}
            >>> plan = Plan.of(shapes, images=2, megabytes=1, networks=("trained", "random"))
            >>> plan.grids[0], len(plan.grids), plan.stored["mid__leace"], plan.left_out
            (('trained', 'mid'), 4, (512, 16), ())
        """
        labels, levels = (list(dict.fromkeys(map(of, shapes))) for of in (label_of, timestep_of))
        units: dict[tuple[int, int, int], list[tuple[str, str]]] = {}
        for number, network in enumerate(networks):
            for name in shapes:
                rank = (levels.index(timestep_of(name)), labels.index(label_of(name)), number)
                units.setdefault(rank, []).append((network, name))
        ordered = [units[rank] for rank in sorted(units)]
        space = 1e6 * megabytes - PAGE

        def least(units: Sequence[Sequence[tuple[str, str]]], count: int) -> float:
            """Bytes of the least precise page with so many images."""
            stills = sum(BASE64 * (PER_STILL + PER_PIXEL * shapes[name][1] * shapes[name][2]) for _, name in ordered[0])
            grids = sum(_bytes(shapes[name], count, *STEPS[0]) for unit in units for _, name in unit)
            return PER_IMAGE * count + min(STILLS, count) * (PER_IMAGE + stills) + grids

        for count in range(images, 0, -1):
            number = max((k for k in range(len(ordered) + 1) if least(ordered[:k], count) <= space), default=0)
            if number:
                kept = tuple(grid for unit in ordered[:number] for grid in unit)
                owners = Counter(name for _, name in kept)
                stored, free = dict.fromkeys(owners, STEPS[0]), space - least(ordered[:number], count)
                for step in STEPS[1:]:
                    for name in sorted(owners, key=lambda name: math.prod(shapes[name])):
                        more = owners[name] * (_bytes(shapes[name], count, *step) - _bytes(shapes[name], count, *stored[name]))
                        if more <= free:
                            stored[name], free = step, free - more
                lost = [_words(unit[0], len(levels) > 1) for unit in ordered[number:]]
                lost += [f"{images - count} of {images} images"] if count < images else []
                return cls(count, kept, stored, tuple(lost))
        needed = math.ceil(10 * (least(ordered[:1], 1) + PAGE) / 1e6) / 10
        raise InputError(
            f"Expected report.megabytes to be at least {needed:.1f} for one image at {len(ordered[0])} layers, but got "
            f"{megabytes}. Raise it, or ask for fewer layers with block=."
        )


def _bytes(shape: Shape, images: int, components: int, bits: int) -> float:
    """Bytes of a grid on the page."""
    channels, height, width = shape
    tokens = images * height * width
    each = min(components, channels, tokens)
    return PER_GRID + BASE64 * (tokens * (each * bits / 8 + PER_TOKEN) + 4 * images * each)


def _words(grid: tuple[str, str], several: bool) -> str:
    """A network, mitigation and noise level in words."""
    network, name = grid
    parts = ["random weights" if network == RANDOM else "", label_of(name), f"timestep {timestep_of(name)}" if several else ""]
    return ", ".join(filter(None, parts))


class KeptTokens:
    """Tokens of the first images that it gets.

    Args:
        plan: what is kept.
        network: the network that the tokens come from.

    Attributes:
        arrays: ``<network>/<name>/codes`` (n, h, w, K), ``/scale`` (n, h, w), ``/mean`` (n, K), ``/norm`` (n, h, w) of the
            activations, ``/high_norm`` (n, h, w), ``/colours`` (n, h, w, 3), ``/error`` (3,) of cosine, dot product and
            distance; ``images`` (n,), indices. Token = mean + scale · codes. Empty until all images are there.
    """

    def __init__(self, plan: Plan, network: str = TRAINED) -> None:
        self.plan, self.network = plan, network
        self.names = [name for owner, name in plan.grids if owner == network]
        self.arrays: dict[str, Tensor] = {}
        self._waiting: list[GridBatch] = []

    def take(self, batch: GridBatch) -> None:
        """Keep the first images of the batch, until there are enough."""
        if self.arrays or not self.names:
            return
        self._waiting.append(batch)
        if sum(len(each.image) for each in self._waiting) >= self.plan.images:
            self.finish()

    def finish(self) -> None:
        """Keep what there is, if there are fewer images than the plan has."""
        if self.arrays or not self._waiting:
            return
        together = joined(self._waiting)
        batch = together.select(range(min(self.plan.images, len(together.image))))
        self._waiting = []
        for name in self.names:
            found = quantised(batch.grids[name], *self.plan.stored[name])
            found["high_norm"] = batch.masks[name]["high_norm"]
            self.arrays |= {f"{self.network}/{name}/{part}": tensor.cpu() for part, tensor in found.items()}
        self.arrays["images"] = batch.image.cpu()


def quantised(grid: Float[Tensor, "n c h w"], components: int, bits: int) -> dict[str, Tensor]:
    """Tokens as integers, and the largest error of a similarity.

    Args:
        grid: activations of n images.
        components: greatest number of coordinates of a token.
        bits: of a coordinate, 8 or 16.

    Returns:
        ``codes``, ``scale``, ``mean``, ``norm``, ``colours`` and ``error``, see :class:`KeptTokens`.

    Example:
        >>> grid = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
        >>> kept = quantised(grid, components=64, bits=8)
        >>> tokens = kept["mean"][:, None, None] + kept["scale"][..., None] * kept["codes"]
        >>> bool((tokens.norm(dim=-1) - kept["norm"]).abs().max() < 0.02)  # rotated, so that inner products stay
        True
    """
    _, _, height, width = grid.shape
    tokens = flatten(grid.float())
    basis = _basis(tokens, components)
    coordinates = tokens @ basis
    mean = coordinates.mean(1, keepdim=True)
    most = 2 ** (bits - 1) - 1
    scale = (coordinates - mean).abs().amax(2, keepdim=True) / most
    codes = ((coordinates - mean) / scale.clamp_min(torch.finfo(torch.float32).tiny)).round().clamp(-most, most)
    shown = mean + scale * codes
    return {
        "codes": codes.to(torch.int8 if bits == 8 else torch.int16).unflatten(1, (height, width)),
        "scale": scale[..., 0].unflatten(1, (height, width)),
        "mean": mean[:, 0],
        "norm": tokens.norm(dim=2).unflatten(1, (height, width)),
        "colours": principal_colours(grid),
        "error": _errors(tokens, shown, basis),
    }


def _basis(tokens: Float[Tensor, "n t c"], components: int) -> Float[Tensor, "c k"]:
    """Orthonormal columns. Of too many channels they span the mean tokens and the main directions of the remainders.

    They are rotated at random, so that no coordinate is much larger than others: the largest sets the scale of all.
    """
    images, count, channels = tokens.shape
    number = min(components, images * count, channels)
    basis = torch.eye(channels, dtype=torch.float64, device=tokens.device)
    if number < channels:
        exact = tokens.double()
        means = exact.mean(1)
        directions = _main_directions((exact - means[:, None]).flatten(0, 1), number)
        columns = torch.cat([means.mT, directions], 1)[:, :number]
        basis, _ = torch.linalg.qr(columns / columns.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny))
    draw = torch.randn(number, number, generator=keyed_generator("rotation", 0, number), dtype=torch.float64)
    rotation, _ = torch.linalg.qr(draw.to(tokens.device))
    return (basis @ rotation).float()


def _errors(tokens: Float[Tensor, "n t c"], shown: Float[Tensor, "n t k"], basis: Float[Tensor, "c k"]) -> Float[Tensor, "3"]:
    """The largest error of a cosine, of a dot product and of a distance between any two tokens, raw or centred.

    Those of dot product and distance are upper bounds, by the triangle and the Cauchy–Schwarz inequality, and so is that of the
    cosine where pairs are too many to compare them all.
    """
    found = torch.zeros(3, device=tokens.device)
    for exact, other in ((tokens, shown), (tokens - tokens.mean(1, keepdim=True), shown - shown.mean(1, keepdim=True))):
        x, y = exact.flatten(0, 1), other.flatten(0, 1)
        u, v = normalize(x, dim=1), normalize(y, dim=1)
        apart = (x - y @ basis.mT).norm(dim=1).amax()
        longest = torch.maximum(x.norm(dim=1).amax(), y.norm(dim=1).amax())
        if len(x) <= MOST_PAIRED:
            pieces = torch.arange(len(x)).split(512)
            cosine = torch.stack([(u[rows] @ u.mT - v[rows] @ v.mT).abs().amax() for rows in pieces]).amax()
        else:
            cosine = 2 * (u - v @ basis.mT).norm(dim=1).amax()
        found = torch.maximum(found, torch.stack([cosine, 2 * apart * longest, 2 * apart]))
    return found + ROUNDING * torch.stack([torch.ones_like(longest), longest.square(), longest])


def _main_directions(rows: Float[Tensor, "m c"], number: int) -> Float[Tensor, "c k"]:
    """Principal directions of rows that have mean 0, the first ones first. The smaller of the rows' two products is solved."""
    wide = rows.shape[1] > rows.shape[0]
    _, found = torch.linalg.eigh((rows @ rows.mT if wide else rows.mT @ rows).double())
    directions = found.flip(1)[:, :number]
    return normalize(rows.mT.double() @ directions, dim=0) if wide else directions


def principal_colours(grid: Float[Tensor, "n c h w"]) -> UInt8[Tensor, "n h w 3"]:
    """First three principal components of all tokens of these images as red, green and blue.

    The range from the 2 % to the 98 % quantile is the full scale of a colour. The sign of a component makes its largest loading
    positive, so that colours are the same in every run.
    """
    tokens = grid.float().permute(0, 2, 3, 1).flatten(0, 2)
    tokens = tokens - tokens.mean(0)
    tokens = tokens / tokens.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)  # squares of large numbers overflow
    count = min(3, *tokens.shape)
    basis = _main_directions(tokens, count)
    basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    scores = tokens.double() @ basis
    low, high = (scores.quantile(q, dim=0) for q in (0.02, 0.98))
    colours = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1) * 255
    padded = torch.zeros(len(scores), 3, device=scores.device)
    padded[:, :count] = colours.float()
    n, _, h, w = grid.shape
    return padded.to(torch.uint8).view(n, h, w, 3)

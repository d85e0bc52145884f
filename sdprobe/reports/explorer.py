"""``python -m sdprobe.reports explore RUN``: one HTML file in which one hovers over tokens. It opens without a server.

The file holds tokens, pictures, style and script. Its content security policy allows this script only, and no network. Names
reach the page as text.
"""

import argparse
import html
import json
import math
import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from hashlib import sha256
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

from sdprobe.reports.numbers import add_columns, run_table
from sdprobe.reports.recorded import fitting, lacking
from sdprobe.reports.report import Report
from sdprobe.reports.run import Run
from sdprobe.tokens.kept import RANDOM, TRAINED
from sdprobe.tokens.keys import base_of, label_of, timestep_of
from sdprobe.utilities.errors import LONGEST, InputError, Unfit
from sdprobe.utilities.foreign import shown
from sdprobe.utilities.io import DamagedFile, parsing, write_file

TOKENS, PAGE = "tokens.npz", "explorer.html"
PARTS = ("codes", "scale", "mean", "norm", "high_norm", "colours", "error")
KEYPOINTS = {"pair": (2,), "points": (4,), "reach": (2,), "part": ()}
# of numpy, of every array by the end of its name
KINDS = dict.fromkeys(("scale", "mean", "norm", "error", "points", "reach"), "f") | {"codes": "i", "high_norm": "bu"}
KINDS |= dict.fromkeys(("colours", "pictures"), "u") | dict.fromkeys(("images", "pair"), "iu") | {"names": "U", "part": "U"}
QUALITIES, LARGEST_PICTURE = (85, 70), 35_000  # of a JPEG: the lower one if a picture has more bytes
HOW = (
    "Use python train.py probe=explore images=folder images.root=PHOTOS block=stages. A run of probe=statistics keeps tokens, "
    "too, unless report.explorer=false is set or it is a job of a sweep."
)


def main(arguments: Sequence[str]) -> Path:
    """Write the page of a run.

    Raises:
        InputError: no finished run, one without tokens, damaged files, a layer that was not stored.
    """
    parser = argparse.ArgumentParser(prog="python -m sdprobe.reports explore", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, such as outputs/2026-01-31/12-00-00-000000")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=f"default: RUN/{PAGE}")
    parser.add_argument("--layers", default="", metavar="A,B", help="names or globs of layers; default: all that are stored")
    parser.add_argument("--images", type=int, metavar="N", help="number of images to show; default: all that are stored")
    options = parser.parse_args(arguments)
    run = finished(options.run)
    output = options.output or options.run / PAGE
    with fitting(options.run):
        tokens = chosen(stored(run), list(filter(None, options.layers.split(","))), options.images)
        content = page_of(run, tokens)
    try:
        write_file(output, content)
    except OSError as error:
        raise InputError(
            f"Expected --output to be a file that can be written, but got '{output}' ({error.strerror}). Use another one."
        ) from error
    return output


def finished(folder: Path) -> Run:
    """The finished run of a folder.

    Raises:
        InputError: there is none, it is not finished, or its files are damaged.
    """
    if not os.path.isfile(folder / "metrics.json"):
        below = sorted(folder.glob("*/**/metrics.json")) if os.path.isdir(folder) else []
        fix = f"Use one of the runs below it, such as '{below[0].parent}'." if below else "Correct the path."
        raise InputError(f"Expected RUN to be a run folder with metrics.json, but '{folder}' has none. {fix}")
    run = Run.read(folder, maps=False)
    if wrong := lacking(run.meta):
        raise DamagedFile(folder / "metrics.json", wrong)
    if not run.meta.get("complete"):
        raise InputError(
            f"Expected RUN to be a finished run, but '{folder}' is not. Continue it with python train.py resume={folder}"
        )
    return run


def stored(run: Run) -> dict[str, np.ndarray]:
    """The tokens that a run kept.

    Raises:
        InputError: it kept none.
        DamagedFile: they are not what the run wrote.
    """
    tokens = run.tokens()
    if not tokens:
        raise InputError(f"Expected RUN to have kept tokens, but '{run.folder}' has no {TOKENS}. {HOW}")
    with parsing(run.folder / TOKENS):
        check(tokens)
    return tokens


def check(tokens: Mapping[str, np.ndarray]) -> None:
    """Raise :class:`~sdprobe.utilities.errors.Unfit` unless tokens have the names, shapes and kinds that a page can show."""
    shapes: dict[str, tuple[int, ...]] = {"images": (-1,), "names": (len(tokens.get("images", ())),)}
    for network, name in stored_grids(tokens):
        if network not in (TRAINED, RANDOM):
            raise Unfit(f"it has the network {shown(network)}")
        codes = tokens[f"{network}/{name}/codes"]
        n, height, width, components = codes.shape if codes.ndim == 4 and codes.size else (0, 0, 0, 0)
        each = (n, height, width)
        parts = dict(zip(PARTS, ((*each, components), each, (n, components), each, each, (*each, 3), (3,)), strict=True))
        shapes |= {f"{network}/{name}/{part}": shape for part, shape in parts.items()} | {"images": (n,), "names": (n,)}
    if len(shapes) == 2 or not shapes["images"][0]:
        raise Unfit("it has no tokens")
    if "pictures" in tokens:
        shapes["pictures"] = (*shapes["images"], -1, -1, 3)
    if "keypoints/pair" in tokens:
        shapes |= {f"keypoints/{name}": (len(tokens["keypoints/pair"]), *sides) for name, sides in KEYPOINTS.items()}
    for name, shape in shapes.items():
        array, kinds = tokens.get(name), KINDS[name.rpartition("/")[2]]
        if array is None or array.dtype.kind not in kinds or len(array.shape) != len(shape):
            raise Unfit(f"it lacks {shown(name)} as a page needs it")
        if any(side not in (-1, found) for side, found in zip(shape, array.shape, strict=True)):
            raise Unfit(f"{shown(name)} has another shape")
        if array.dtype.kind == "f" and not name.endswith("/error") and not np.isfinite(array).all():
            raise Unfit(f"{shown(name)} is not finite")
    if "keypoints/pair" in tokens and not np.isin(tokens["keypoints/pair"], range(*shapes["images"])).all():
        raise Unfit("a keypoint is of no image")


def chosen(tokens: dict[str, np.ndarray], layers: Sequence[str], images: int | None) -> dict[str, np.ndarray]:
    """The tokens of some layers and of the first images.

    Raises:
        InputError: a layer that was not stored, or not so many images.
    """
    known = list(dict.fromkeys(base_of(name) for _, name in stored_grids(tokens)))
    for pattern in layers:
        if not any(fnmatchcase(layer, pattern) for layer in known):
            raise InputError(f"Expected --layers to name stored layers ({', '.join(known)}), but got '{pattern}'. Correct it.")
    count = len(tokens["images"])
    if images is not None and not 1 <= images <= count:
        raise InputError(f"Expected --images to be from 1 to {count}, as many as are stored, but got {images}. Correct it.")
    kept = {}
    for name, array in tokens.items():
        network, _, rest = name.partition("/")
        layer = base_of(rest.partition("/")[0])
        if network in (TRAINED, RANDOM):
            if layers and not any(fnmatchcase(layer, pattern) for pattern in layers):
                continue
            array = array if name.endswith("/error") else array[:images]
        elif name in ("images", "names", "pictures"):
            array = array[:images]
        kept[name] = array
    if images is not None and "keypoints/pair" in tokens:
        among = (tokens["keypoints/pair"] < images).all(1)
        kept |= {name: array[among] for name, array in kept.items() if name.startswith("keypoints/")}
    return kept


def stored_grids(tokens: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
    """(network, name) of every stored grid."""
    split = (name.split("/") for name in tokens if name.endswith("/codes"))
    return [(network, layer) for network, layer, _ in split]


def write(run: Run, path: Path) -> None:
    """Write the page of a run that has tokens."""
    if tokens := run.tokens():
        write_file(path, page_of(run, tokens))


def page_of(run: Run, tokens: Mapping[str, np.ndarray]) -> str:
    """The page of a run."""
    names = run.meta.get("published_names") or {}
    published = {base_of(layer): name for layer, name in names.items()}
    conditions = run.heading.removeprefix(run.network).lstrip(", ")
    about = [conditions, f"prompt “{prompt}”" if (prompt := run.meta.get("prompt")) else "", f"seed {run.meta.get('seed')}"]
    return page(tokens, run.network, ", ".join(filter(None, about)), published, run.timesteps)


def page(
    tokens: Mapping[str, np.ndarray],
    title: str,
    about: str = "",
    published: Mapping[str, str] | None = None,
    timesteps: Sequence[int] = (),
) -> str:
    """A self-contained HTML page.

    Args:
        tokens: as :meth:`sdprobe.runs.measurement.Measurement.tokens` returns them.
        title: name of the network.
        about: conditions, in words.
        published: layer → the name that papers use.
        timesteps: noise levels; one if the names of grids have none.

    Returns:
        the page.
    """
    grids = [_grid(tokens, network, name, list(timesteps)) for network, name in stored_grids(tokens)]
    title, pictures = shown(title), tokens.get("pictures")
    images = [
        {"name": shown(name), "picture": None if pictures is None else _uri(Image.fromarray(pictures[number]), "JPEG")}
        for number, name in enumerate(tokens["names"])
    ]
    columns = [tokens[f"keypoints/{name}"].tolist() for name in KEYPOINTS] if "keypoints/pair" in tokens else []
    keypoints = [dict(zip(KEYPOINTS, row, strict=True)) for row in zip(*columns, strict=True)]
    content = {
        "title": title,
        "about": shown(about, LONGEST),
        "images": images,
        "grids": grids,
        "published": dict(published or {}),
        "keypoints": keypoints,
        "leftOut": [str(text) for text in tokens.get("left_out", ())],
        "colours": _base64(_viridis()),
    }
    data = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    style, script, skeleton = (_file(ending) for ending in ("css", "js", "html"))
    filled = {
        "TITLE": html.escape(title),
        "STYLE_HASH": _hash(style),
        "SCRIPT_HASH": _hash(script),
        "STATIC": _static(tokens, images),
        "STYLE": style,
        "SCRIPT": script,
        "DATA": data,
    }
    pieces = skeleton.split("@@")  # names and data may contain anything, so no part is searched for others
    return "".join(filled[piece] if number % 2 else piece for number, piece in enumerate(pieces))


def _grid(tokens: Mapping[str, np.ndarray], network: str, name: str, timesteps: list[int]) -> dict[str, Any]:
    """A grid for the script: names, sizes, numbers in base64."""
    found = {part: tokens[f"{network}/{name}/{part}"] for part in PARTS}
    level = timestep_of(name)
    kinds = {"scale": "<f4", "mean": "<f4", "norm": "<f4", "high_norm": "u1", "colours": "u1"}
    bits = 8 * found["codes"].dtype.itemsize
    kinds["codes"] = f"<i{bits // 8}"
    errors = [float(value) for value in found["error"]]
    return {
        "layer": base_of(name), "label": label_of(name), "weights": network,
        "level": level if level is not None else (timesteps[0] if timesteps else None),
        "shape": list(found["codes"].shape), "bits": bits,
        "error": [value if math.isfinite(value) else None for value in errors],
        **{part: _base64(found[part].astype(kind)) for part, kind in kinds.items()},
    }  # fmt: skip


def _static(tokens: Mapping[str, np.ndarray], images: Sequence[Mapping[str, Any]]) -> str:
    """Still pictures of the first images, for browsers without JavaScript: principal components, cosine to the middle token."""
    first = dict.fromkeys(name for network, name in stored_grids(tokens) if network == TRAINED and not label_of(name))
    levels = {timestep_of(name) for name in first}
    shown = [name for name in first if timestep_of(name) == next(iter(levels))]
    rows = []
    for number, image in enumerate(images[:2]):
        name = html.escape(image["name"])
        picture = f'<img class="photo" src="{image["picture"]}" alt="{name}">' if image["picture"] else ""
        rows.append(f"<h3>{name}</h3>{picture}<div class='stills'>")
        for layer in shown:
            part = f"{TRAINED}/{layer}"
            codes, scale = tokens[f"{part}/codes"][number].astype(np.float32), tokens[f"{part}/scale"][number]
            unit = codes * scale[..., None]
            unit /= np.maximum(np.linalg.norm(unit, axis=2, keepdims=True), 1e-12)
            cosine = unit @ unit[unit.shape[0] // 2, unit.shape[1] // 2]
            similar = Image.fromarray(np.clip((cosine + 1) * 127.5, 0, 255).astype(np.uint8))
            similar.putpalette(_viridis().tobytes())
            colours = Image.fromarray(tokens[f"{part}/colours"][number])
            stills = (("principal components", colours), ("cosine to the middle token", similar))
            text = html.escape(base_of(layer))
            drawn = "".join(f'<img src="{_uri(still, "PNG")}" alt="{text}: {meaning}">' for meaning, still in stills)
            rows.append(f"<figure>{drawn}<figcaption>{text}</figcaption></figure>")
        rows.append("</div>")
    return "".join(rows)


def _file(ending: str) -> str:
    return files("sdprobe.reports").joinpath(f"explorer.{ending}").read_text("utf-8")


def _viridis() -> np.ndarray:
    """(256, 3) colours."""
    from matplotlib import colormaps

    return (np.array(colormaps["viridis"].colors) * 255).round().astype(np.uint8)  # type: ignore[attr-defined]


def _uri(picture: Image.Image, form: str) -> str:
    for quality in QUALITIES:
        content = BytesIO()
        picture.save(content, form, quality=quality)
        if form == "PNG" or content.tell() <= LARGEST_PICTURE:
            break
    return f"data:image/{form.lower()};base64,{b64encode(content.getvalue()).decode()}"


def _base64(array: np.ndarray) -> str:
    return b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _hash(text: str) -> str:
    """What a content security policy calls an inline script or style."""
    return b64encode(sha256(text.encode()).digest()).decode()


def explore_table(run: Run) -> Table:
    """A row per layer: its grid, and the largest error of a cosine on the page, of both networks."""
    shown = run_table(f"Explorer: {run.heading}, {run.meta['images'].get('test')} images", run)
    add_columns(shown, "layer", left=True)
    add_columns(shown, "channels", "rows", "columns", "largest error", "random weights")
    for layer in run.layers:
        errors = [run.value(condition, layer, "similarity_error") for condition in ("test", "random_weights")]
        sides = map(str, run.meta["shapes"][layer])
        shown.add_row(layer, *sides, *("–" if error is None else f"{error:.5f}" for error in errors))
    shown.caption = f"largest error: of a cosine of two tokens that the page shows. Open {PAGE} in a browser."
    return shown


REPORT = Report(tables=(explore_table,), drawings={}, written={PAGE: write})

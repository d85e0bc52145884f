"""``python train.py --help``: what it does, examples, and settings with the comments of the YAML files. Imports no torch."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sdprobe.runs.arguments import as_overrides
from sdprobe.runs.configuration import check
from sdprobe.runs.groups import CONFIGS

PURPOSE = """\
Measure what the activations of a diffusion model's U-Net say of position, corners, norms and content, beside chance, shuffled \
labels and random weights. Usage: python train.py [setting=value …]"""
EXAMPLES = {
    "python train.py probe=position block=mid": "position probe of one layer of the demo model",
    "python train.py probe=statistics block=all backbone=sd15": "corners, norms and credibility of all layers of SD-1.5",
    "python train.py probe=position images=folder images.root=DIR": "on your photographs",
    "python train.py probe=correspondence mitigation=position_mean": "matching with a repair",
    "python train.py timestep=[10,50,261]": "several noise levels in one run",
    "python train.py -m timestep=10,50,261": "a sweep, one job per value",
    "python train.py experiment=mitigations": "what removes position, and what it costs",
}
GROUPS = (
    "probe", "backbone", "images", "mitigation", "trainer", "logger", "protocol", "experiment", "sweep", "hydra/launcher",
)  # fmt: skip
LINE = re.compile(r"^(?P<indent> *)(?P<key>\w+):(?: (?P<value>.*?))?(?: +# (?P<comment>.*))?$")
INTERNAL = re.compile(r"trainer\.callbacks|hydra\.(job_logging|hydra_logging|output_subdir)")


class Setting(NamedTuple):
    """A setting of a YAML file with its comment."""

    name: str
    default: str
    values: str
    meaning: str


def settings_of(file: Path, prefix: str = "") -> Iterator[Setting]:
    """Settings of a file that have a comment ``# meaning; values: …``, those it inherits first.

    Settings that pass another one on (``# set with NAME=``) and Hydra's and Lightning's own are left out.
    """
    text = file.read_text()
    inherited = re.search(r"^defaults: *\[([^\]]*)\]|^defaults:\n((?:  - .*\n)+)", text, re.M)
    for name in re.findall(r"\w+", inherited[1] or inherited[2]) if inherited else ():
        if (base := file.with_name(f"{name}.yaml")).is_file() and base != file:
            yield from settings_of(base, prefix)
    parents: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        depth = len(match["indent"])
        parents = [*(parent for parent in parents if parent[0] < depth), (depth, match["key"])]
        meaning, found, values = (match["comment"] or "").partition("; values: ")
        if found:
            yield Setting(prefix + ".".join(key for _, key in parents), match["value"] or "", values, meaning)


def summary(file: Path) -> str:
    """The first sentence of a file's heading; commands and packages in it are left out."""
    heading = re.match(r"(#.*\n)+", file.read_text())
    lines = [line.strip("# ") for line in heading[0].splitlines()] if heading else []
    text = " ".join(line for line in lines if line and not line.startswith(("@package", "python train.py")))
    return re.split(r"(?<=[.?]) (?=[A-Z])", text)[0].rstrip(".")


def choices(group: str) -> dict[str, str]:
    """Choice → what it is, of a configuration group."""
    return {file.stem: summary(file) for file in sorted((CONFIGS / group).glob("[!_]*.yaml"))}


def show(words: Sequence[str]) -> None:
    """Print help for a command: with ``probe=depth --help``, the settings of that probe and its data."""
    console = Console(width=None if Console().is_terminal else 120)
    overrides = as_overrides([word for word in words if word not in ("--help", "-h")])
    cfg = check(overrides)
    chosen = cfg.hydra.runtime.choices if cfg is not None else {}
    console.print(PURPOSE, highlight=False, markup=False)
    examples = Table("", "", box=None, show_header=False, title="Examples", title_justify="left")
    for command, meaning in EXAMPLES.items():
        examples.add_row(command, meaning)
    console.print(examples, highlight=False)
    groups = Table("choose", "among", "", box=None, title="\nChoices: GROUP=CHOICE", title_justify="left")
    for group in GROUPS:
        for number, (name, meaning) in enumerate(choices(group).items()):
            groups.add_row(f"{group}=" if number == 0 else "", name, escape(meaning))
    console.print(groups, highlight=False)
    console.print(_table("Settings of every command", settings_of(CONFIGS / "train.yaml")), highlight=False)
    for group in ("probe", "images", "backbone", "datamodule", "trainer", "logger", "mitigation", "hydra/launcher"):
        file = CONFIGS / group / f"{chosen.get(group)}.yaml"
        if file.is_file() and (rows := [*settings_of(file, f"{group.replace('/', '.')}.")]):
            console.print(_table(f"Settings of {group}={file.stem}", rows), highlight=False)
    console.print(
        "\nOther choices have other settings: python train.py probe=correspondence images=spair --help\n"
        "More: docs/usage.md. Hydra's own options: python train.py --hydra-help",
        highlight=False,
    )


def _table(title: str, rows: Iterator[Setting] | Sequence[Setting]) -> Table:
    table = Table("setting", "default", "values", "meaning", box=None, title=f"\n{title}", title_justify="left")
    for row in {setting.name: setting for setting in rows if not INTERNAL.match(setting.name)}.values():
        table.add_row(*(escape(text) for text in row))
    return table

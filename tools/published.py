"""What README.md, the documents and the demo model's card publish: the steps that measure it and the functions that print it.

A renderer gets the folders of its steps and returns the Markdown of one block. Numbers come from ``metrics.json`` and from the
tables that ``reports`` writes; those and the figures are made anew from the run folders, so that a change of ``reports`` needs
no new measurement.
"""

import re
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from sdprobe.reports.collection import read_runs, summarise
from sdprobe.reports.controls import CIRCULAR, PERIODIC, mean_accuracy, tested
from sdprobe.reports.dispatch import draw
from sdprobe.reports.run import Run
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import read_json
from tools.demo.samples import GUIDANCE, SIDE_DRAWN, STEPS
from tools.plan import Plan
from tools.steps import OUTPUT, Step, sweep, train
from tools.wording import Estimate, Measured, effect, half_width, number

ACCURACY = "binned_accuracy/all"
PCK = "pck_ours_point_0.10"
MID, UP_1 = "mid", "up_1"
COVERAGE = "import sys; from tools.coverage import table; sys.stdout.write(table())"

# fmt: off
MEASUREMENTS = (
    train("position", "probe=position", f"block={MID}", "twins=3"),
    train("layers", "probe=position", "block=all", "probe.solver=closed_form", "twins=3"),
    train("matches", "probe=correspondence", "probe.head=none", f"block={UP_1}", "images.seed=30001", "twins=3"),
    train("correspondence", "probe=correspondence", f"block={UP_1}", "twins=3"),
    train("statistics", "probe=statistics", "block=all", "twins=3"),
    sweep("controls", "experiment=controls"),
    sweep("mitigations", "experiment=mitigations"),
    train("card_matching", "probe=correspondence", "probe.head=none", "block=stages", "images.seed=30001", "twins=3"),
    Step(
        "full_width",
        (
            ("-m", "sdprobe.backbones.random_pipeline", "sd15", "FOLDER/sd15"),
            (
                "train.py", "probe=position", f"block={MID}", "probe.solver=closed_form", "backbone=local",
                "backbone.path=FOLDER/sd15", "images=scenes", "images.limit=60", "twins=3", "logger=none",
                "hydra.run.dir=FOLDER/run",
            ),
        ),
    ),
    Step(
        "levels", (("-c", COVERAGE),), group="" if find_spec("tools.coverage") else "levels", capture=True,
        sources=("tools/coverage.py", "sdprobe/reports/*.py"),
    ),
    Step("samples", (("-m", "tools.demo.samples", "FOLDER"),), sources=("tools/demo/samples.py",)),
    Step("overview", (("-m", "tools.overview", "FOLDER"),), sources=("tools/overview.py",)),
    Step("bench", (("-m", "tools.benchmarks.extraction"),), group="bench", capture=True, sources=("tools/benchmarks/*.py",)),
)
# fmt: on


def summary(position: Path, correspondence: Path) -> str:
    """The main result of two probes beside their baselines."""
    accuracy, _, chance, shuffled, random = position_cells(position)
    matching = Measured.read(correspondence)
    key = f"{UP_1}/{PCK}/all"
    head = half_width(matching.estimate(f"test/{key}"), pairs(matching), 1, 100)
    same = matching.estimate(f"same_position/baseline/{PCK}/all").text(1, 100)
    untrained = Measured.read(position).random_estimate(f"{MID}/{ACCURACY}").low
    lines = [
        "| measured | trained network | random weights | chance | shuffled labels |", "|---|---|---|---|---|",
        f"| accuracy of the position read from `{MID}`, 8 bins | {accuracy} | {random} | {chance} | {shuffled} |",
        f"| the same part found in another picture at `{UP_1}`, PCK@0.10 in percent | {head} | "
        f"{matching.random(key, 1, 100, seeded=True)} | {same} (same position) | |",
    ]  # fmt: skip
    if untrained is not None and untrained > float(chance):
        lines += ["", "An untrained network encodes position, too."]
    return "\n".join(lines)


def layers_caption(folder: Path) -> str:
    """What the figure of accuracy over layers shows, and whether position needs training."""
    run = Measured.read(folder)
    key = f"{MID}/{ACCURACY}"
    chance = run.number(f"chance/{key}")
    low = run.random_estimate(key).low
    untrained = (
        "An untrained network already encodes position: training is not needed to read it."
        if low is not None and low > chance
        else "Whether an untrained network encodes position is not decided."
    )
    return (
        "*Position read from every layer of the embedded demo model, a small Stable Diffusion trained on procedural scenes\n"
        "([card](../assets/demo/README.md)), and of the same network before any training "
        "(`block=all probe.solver=closed_form`).\n"
        f"{untrained} At `{MID}` the accuracy in eight bins is {run.random(key, seeded=True)} untrained and\n"
        f"{run.estimate(f'test/{key}')} trained (n = {run.tested()} photographs, chance {number(chance, 3)}).*"
    )


def matches_caption(folder: Path) -> str:
    """What the drawn matches show."""
    run = Measured.read(folder)
    key = f"{UP_1}/{PCK}/all"
    gain = run.estimate(f"gain_over_random_weights/{key}")
    same = run.estimate(f"same_position/baseline/{PCK}/all")
    return (
        f"*`probe=correspondence probe.head=none block={UP_1} images.seed=30001`: parts of one scene found in another, "
        "untrained\nmatching. PCK@0.10 in percent of keypoints, on other scenes than below: "
        f"{run.estimate(f'test/{key}').text(1, 100)}; with random weights\n{run.random(key, 1, 100, seeded=True)}; at the same "
        f"position {same.text(1, 100)}. Difference from random weights:\n{gain.text(1, 100, sign=True)} points "
        f"(n = {pairs(run)}).*"
    )


def pairs(run: Measured) -> str:
    """The n of a correspondence run."""
    return f"{run.tested('images')} scenes in {run.tested('pairs')} pairs"


def position_table(folder: Path) -> str:
    """Position accuracy at one layer beside its nulls."""
    lines = ["| network | accuracy | corner | chance | shuffled labels | random weights |", "|---|---|---|---|---|---|"]
    return "\n".join([*lines, f"| `demo`: small, trained on scenes (`make demo`) | {' | '.join(position_cells(folder))} |"])


def position_cells(folder: Path) -> list[str]:
    """Accuracy with its n, corner, chance, shuffled labels, random weights."""
    run = Measured.read(folder)
    key = f"{MID}/{ACCURACY}"
    return [
        half_width(run.estimate(f"test/{key}"), f"{run.tested()} photographs"),
        run.estimate(f"test/{MID}/binned_accuracy/corner").text(3),
        number(run.number(f"chance/{key}"), 3),
        run.estimate(f"shuffled_labels/{key}").text(3),
        run.random(key, 3, seeded=True),
    ]


def full_width(folder: Path) -> str:
    """The same of a network of SD-1.5's shape that was never trained."""
    own, _, chance, shuffled, random = position_cells(folder / "run")
    return (
        f"A network of SD-1.5's shape and full width, never trained¹: {own}; chance {chance}, shuffled labels "
        f"{shuffled}, other random weights\n{random}."
    )


def correspondence_table(folder: Path) -> str:
    """Matching by a trained head and without one, beside its nulls, and what was measured besides."""
    run = Measured.read(folder)
    key, n = f"{UP_1}/{PCK}/all", pairs(run)
    cells = [
        half_width(run.estimate(f"test/{key}"), n, 1, 100),
        run.estimate(f"zero_shot/{key}").text(1, 100),
        run.random(key, 1, 100, seeded=True),
        run.estimate(f"same_position/baseline/{PCK}/all").text(1, 100),
        run.estimate(f"gain_over_random_weights/{key}").text(1, 100, sign=True),
    ]
    groups = (("displacement_near", "near targets (within .15 of the side)"), ("displacement_far", "far ones"),
              ("target_border", "targets on border tokens"), ("target_interior", "inside"))  # fmt: skip
    split = "; ".join(
        f"{label} {run.estimate(f'test/{UP_1}/{PCK}/{group}').text(1, 100)}, "
        f"{run.number(f'test/{UP_1}/{PCK}/{group}/n'):,.0f} keypoints"
        for group, label in groups
    )
    masked = "; ".join(
        f"{label}: {effect(run.estimate(f'test/{UP_1}/harm/{group}'), keypoints(run, group))}"
        for group, label in (("corner", "corners"), ("border", "borders"), ("high_norm", "high-norm tokens"))
        if f"test/{UP_1}/harm/{group}" in run.metrics
    )
    return "\n".join(
        [
            "| network | trained head | zero-shot | random weights, head | same position | head − random weights |",
            "|---|---|---|---|---|---|", f"| `demo` | {' | '.join(cells)} |", "",
            f"By target: {split}.", "What masking tokens of the target picture changes in PCK (as a fraction of keypoints) — "
            f"{masked}.",
        ]
    )  # fmt: skip


def keypoints(run: Measured, group: str) -> str:
    """The n of a harm: keypoints that count, and the pictures of the run."""
    return f"{run.number(f'test/{UP_1}/harm/{group}/n'):,.0f} keypoints of {run.tested('images')} scenes"


@cache
def tables_of(folder: Path) -> tuple[Run, ...]:
    """The runs of a sweep, after its tables and figures were written anew.

    Raises:
        InputError: a job failed or is missing.
    """
    runs, skipped = read_runs(folder)
    if skipped or not runs:
        path, reason = next(iter(skipped.items()), (folder, "it holds no run"))
        raise InputError(f"Expected every job of {folder.name} to be complete, but {path.name}: {reason}. Run the step again.")
    summarise(runs, folder)
    return tuple(runs)


EXTRACT = {
    "none": "none (chance .125)", "position_mean": "`position_mean`", "shift_anova": "`shift_anova`", "leace": "`leace`",
    "padding_swap": "`padding_swap` (reflect)", "random_rank": "control: as many random directions as `position_mean` takes",
}  # fmt: skip
COLUMNS = (("mid", "position"), ("up_1", "position"), ("up_1", "PCK all"), ("up_1", "depth RMSE"), ("up_1", "passes"))


def mitigation_tables(folder: Path) -> str:
    """Every table of the experiment."""
    tables_of(folder)
    return (folder / "mitigations.md").read_text()


def mitigation_extract(folder: Path) -> str:
    """A few rows and columns of those tables, and their n."""
    counts = {run.kind: Measured.read(run.folder) for run in tables_of(folder)}
    kinds = [kind for kind in ("position", "correspondence", "depth") if kind in counts]
    n = ", ".join(f"{kind} n = {counts[kind].tested()}" for kind in kinds)
    return (
        f"{extract_table((folder / 'mitigations.md').read_text())}\n\nIn test pictures: {n}. A star is that of the whole table."
    )


def repair(folder: Path) -> str:
    """The mitigation that removes position at the least cost, in a sentence."""
    tables_of(folder)
    return repair_sentence((folder / "mitigations.md").read_text())


def repair_sentence(text: str) -> str:
    """What ``position_mean`` does to position, PCK and depth in Markdown tables, beside its control."""
    tables = layer_tables(text)

    def value(row: str, layer: str, column: str) -> str:
        return bare(cell(tables, layer, row, column))

    def change(layer: str, column: str) -> str:
        return f"from {value('none', layer, column)} to {value('position_mean', layer, column)}"

    return (
        f"`position_mean` changes the position accuracy at `{MID}` {change(MID, 'position')}. As many random directions leave "
        f"{value('random_rank', MID, 'position')}. What it costs at `{UP_1}`:\nPCK {change(UP_1, 'PCK all')}, depth RMSE "
        f"{change(UP_1, 'depth RMSE')}. A star marks a difference, corrected for all mitigations."
    )


def extract_table(text: str) -> str:
    """The rows and columns of EXTRACT and COLUMNS of Markdown tables, values alone."""
    tables = layer_tables(text)
    lines = ["| | position at mid | at up_1 | PCK at up_1 | depth RMSE at up_1 | passes |", "|---|---|---|---|---|---|"]
    for row, label in EXTRACT.items():
        lines.append(f"| {label} | {' | '.join(bare(cell(tables, layer, row, column)) for layer, column in COLUMNS)} |")
    return "\n".join(lines)


def layer_tables(text: str) -> dict[str, dict[str, dict[str, str]]]:
    """Layer → row → column → cell of Markdown tables under headings ``## Mitigations of LAYER: …``."""
    tables = {}
    for layer, table in re.findall(r"^## Mitigations of (\w+)\b.*?\n+((?:\|.*\n)+)", text, re.M):
        heading, _, *rows = ([part.strip() for part in line.strip("|").split("|")] for line in table.splitlines())
        tables[layer] = {row[0]: dict(zip(heading, row, strict=True)) for row in rows}
    return tables


def cell(tables: dict[str, dict[str, dict[str, str]]], layer: str, row: str, column: str) -> str:
    """One cell.

    Raises:
        InputError: there is none.
    """
    try:
        return tables[layer][row][column]
    except KeyError as error:
        raise InputError(
            f"Expected mitigations.md to have '{column}' of {row} at {layer}, but {error} is missing. Mend the renderer."
        ) from error


def bare(text: str) -> str:
    """``.24 [.21, .28] −.33 [−.36, −.30]*`` as ``.24*``."""
    return (text.split() or [""])[0].rstrip("*") + ("*" if text.rstrip().endswith("*") else "")


def origin(folder: Path) -> str:
    """What networks with and without zero padding and training read of position.

    Raises:
        InputError: a cell is missing.
    """
    cells = {str(run.meta["control"]): run for run in tables_of(folder)}

    def accuracy(*names: str) -> str:
        found = mean_accuracy(cells, MID, tested(*names))
        if found is None or not set(names) <= set(cells):
            raise InputError(f"Expected cells {', '.join(names)} in {folder.name}, but not all are there. Run the step again.")
        return str(Estimate(found.value, found.low, found.high))

    trained = Measured.read(cells["trained"].folder)
    return (
        f"Accuracy at `{MID}` ({trained.tested()} test photographs, chance "
        f"{number(trained.number(f'chance/{MID}/{ACCURACY}'), 3)}). Untrained networks on periodic texture (3 seeds; intervals "
        f"over seeds and\nphotographs): {accuracy(*PERIODIC)} with zero padding, {accuracy(*CIRCULAR)} with circular padding. "
        f"The trained network\non scenes: {accuracy('trained')} with zero padding, {accuracy('circular')} with circular."
    )


def speed(folder: Path) -> str:
    """What ``tools.benchmarks.extraction`` printed: machine and date, then the table without its column "how"."""
    machine, *rows = (folder / OUTPUT).read_text().strip().splitlines()
    return "\n".join([machine, "", *(f"{row.rsplit('|', 2)[0]}|" for row in rows if row.startswith("|"))])


def levels(folder: Path) -> str:
    """The table that ``tools.coverage`` simulates."""
    return (folder / OUTPUT).read_text()


def card_matching(folder: Path) -> str:
    """Zero-shot PCK of every layer in percent."""
    run = Measured.read(folder)
    lines = ["| layer | trained | random weights | difference |", "|---|---|---|---|"]
    for layer in run.meta["layers"]:
        key = f"{layer}/{PCK}/all"
        gain = run.estimate(f"gain_over_random_weights/{key}").text(1, 100, sign=True)
        lines.append(f"| {layer} | {run.estimate(f'test/{key}').text(1, 100)} | {run.random(key, 1, 100)} | {gain} |")
    same = run.estimate(f"same_position/baseline/{PCK}/all").text(1, 100)
    return "\n".join([*lines, f"| same position | {same} | | |", "", note(run, f"n = {pairs(run)}")])


def card_position(folder: Path) -> str:
    """Position accuracy of every layer."""
    run = Measured.read(folder)
    lines = ["| layer | trained | random weights | chance |", "|---|---|---|---|"]
    for layer in run.meta["layers"]:
        key = f"{layer}/{ACCURACY}"
        lines.append(
            f"| {layer} | {run.estimate(f'test/{key}')} | {run.random(key)} | {number(run.number(f'chance/{key}'), 3)} |"
        )
    return "\n".join([*lines, "", note(run, f"n = {run.tested()} photographs")])


def note(run: Measured, n: str) -> str:
    """What the intervals of a card's table are."""
    return f"In brackets 95 % intervals over photographs, {n}; those of random weights also over {run.meta['twins']} seeds."


def card_samples(folder: Path) -> str:
    """How many samples a classifier recognises."""
    drawn = read_json(folder / "samples.json")
    each = ", ".join(f"{name} {100 * value:.0f}" for name, value in drawn["each"].items())
    scenes, share = (f"{100 * drawn[name]:.0f} %" for name in ("scenes", "share"))
    return (
        f"**Samples.** A small classifier, trained on rendered scenes ({scenes} right on held-out ones), names the asked\n"
        f"category in **{share}** of {drawn['count']} samples ({SIDE_DRAWN} px, {STEPS} DDIM steps, guidance {GUIDANCE:g}; "
        f"chance 12.5 %). Per\ncategory: {each}."
    )


def run_figure(name: str) -> Callable[[Path], Path]:
    """A function of a run folder: draws its figures anew and returns one."""

    def source(folder: Path) -> Path:
        draw(Run.read(folder), folder)
        return folder / f"{name}.png"

    return source


def sweep_figure(name: str) -> Callable[[Path], Path]:
    """The same for a sweep."""

    def source(folder: Path) -> Path:
        tables_of(folder)
        return folder / f"{name}.png"

    return source


PLAN = Plan(
    steps=MEASUREMENTS,
    blocks={
        "summary": (("position", "correspondence"), summary),
        "layers": (("layers",), layers_caption),
        "matches": (("matches",), matches_caption),
        "position": (("position",), position_table),
        "full_width": (("full_width",), full_width),
        "correspondence": (("correspondence",), correspondence_table),
        "extract": (("mitigations",), mitigation_extract),
        "repair": (("mitigations",), repair),
        "origin": (("controls",), origin),
        "speed": (("bench",), speed),
        "mitigations": (("mitigations",), mitigation_tables),
        "levels": (("levels",), levels),
        "card_samples": (("samples",), card_samples),
        "card_matching": (("card_matching",), card_matching),
        "card_position": (("layers",), card_position),
    },
    figures={
        "docs/overview.png": ("overview", lambda folder: folder / "overview.png"),
        "docs/accuracy_over_layers.png": ("layers", run_figure("accuracy_over_layers")),
        "docs/matches.jpg": ("matches", run_figure("matches")),
        "docs/credibility.png": ("statistics", run_figure("credibility")),
        "docs/controls.png": ("controls", sweep_figure("controls")),
        "docs/mitigations_pareto.png": ("mitigations", sweep_figure("mitigations_pareto")),
        "assets/demo/samples.jpg": ("samples", lambda folder: folder / "samples.jpg"),
    },
    documents=(
        "README.md",
        "docs/results.md",
        "docs/benchmarks.md",
        "docs/mitigations.md",
        "docs/methods.md",
        "assets/demo/README.md",
    ),
)

"""Published numbers of README.md, the documents and the demo model's card: the steps that measure them, and their renderers.

A renderer gets the folders of its steps and returns the Markdown of one block. Numbers come from ``metrics.json`` and from the
tables of ``sdprobe.reports``. Tables and figures are made again from the run folders, so a change of their layout needs no new
measurement.
"""

import re
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path

from sdprobe.reports.collection import read_runs, summarise
from sdprobe.reports.controls import CIRCULAR, PERIODIC, mean_accuracy, tested
from sdprobe.reports.dispatch import draw
from sdprobe.reports.run import Run
from sdprobe.tokens.keys import variant
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import read_json
from tools.demo.samples import GUIDANCE, SIDE_DRAWN, STEPS
from tools.plan import Plan
from tools.steps import OUTPUT, RUN, Step, sweep, train
from tools.wording import Estimate, Measured, effect, half_width, number

ACCURACY = "binned_accuracy/all"
PCK = "pck_ours_point_0.10"
MID, UP_1 = "mid", "up_1"
COVERAGE = "import sys; from tools.coverage import table; sys.stdout.write(table())"

EDITS = ("position_mean", "leace")
LEVELS = (50, 261, 600)
STAGES = ("conv_in", *(f"down_{i}" for i in range(4)), MID, *(f"up_{i}" for i in range(4)))
ROLE = (
    "probe=role", "images.size=256", "images.limit=320", f"timestep=[{','.join(map(str, LEVELS))}]",
    f"mitigation=[{','.join(EDITS)}]",
)  # fmt: skip
DIT, POSITIONS = ("backbone=demo_dit", "images.size=256", "twins=3"), ("stored", "zero", "permuted")
TRACKED = ("tools/tracked.py", "tools/offline.py", "sdprobe/reports/tracked.py")

# fmt: off
MEASUREMENTS = (
    train("position", "probe=position", f"block={MID}", "twins=3"),
    train("layers", "probe=position", "block=all", "probe.solver=closed_form", "twins=3"),
    train("matches", "probe=correspondence", "probe.head=none", f"block={UP_1}", "images.seed=30001", "twins=3"),
    train("correspondence", "probe=correspondence", f"block={UP_1}", "twins=3"),
    train("statistics", "probe=statistics", "block=all", "twins=3"),
    train("role", *ROLE, f"block=[{','.join(STAGES)}]", "twins=3"),
    train("later", *ROLE, f"block=[{MID},{UP_1}]", "datamodule.reemergence=true", "twins=3"),
    train("equivariance", "probe=equivariance", "block=[latent,stages]", "twins=3"),
    sweep("controls", "experiment=controls"),
    sweep("mitigations", "experiment=mitigations"),
    *(
        train(f"dit_{mode}", *DIT, "probe=position", "block=all", "images.limit=200", "probe.solver=closed_form",
              f"backbone.position={mode}")
        for mode in POSITIONS
    ),
    train("dit_matching", *DIT, "probe=correspondence", "probe.head=none", "block=stages", "images.seed=30001"),
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
    Step("ceilings", (("-m", "tools.demo.ceilings", "assets/demo"),), capture=True, sources=("tools/demo/ceilings.py",)),
    Step("overview", (("-m", "tools.overview", "FOLDER"),), sources=("tools/overview.py",)),
    Step("wandb", (("-m", "tools.tracked", "FOLDER"),), sources=(*TRACKED, *RUN)),
    Step("bench", (("-m", "tools.benchmarks.extraction"),), group="bench", capture=True, sources=("tools/benchmarks/*.py",)),
)
# fmt: on


def summary(position: Path, correspondence: Path) -> str:
    """The main results of two probes and their baselines."""
    accuracy, _, chance, shuffled, random = position_cells(position)
    matching = Measured.read(correspondence)
    key = f"{UP_1}/{PCK}/all"
    head, zero_shot = (matching.estimate(f"{name}/{key}").text(1, 100) for name in ("test", "zero_shot"))
    same = matching.estimate(f"same_position/baseline/{PCK}/all").text(1, 100)
    lines = [
        "| measured | trained network | random weights | baseline |", "|---|---|---|---|",
        f"| position accuracy at `{MID}` (8 × 8 tokens) | {accuracy} | {random} | chance {chance}; shuffled labels "
        f"{shuffled.split()[0]} |",
        f"| keypoints matched at `{UP_1}`, PCK@0.10 in percent | {head} with a trained head, {zero_shot} zero-shot (n = "
        f"{pairs(matching)}) | {matching.random(key, 1, 100, seeded=True)} with a head | {same} at the same position |",
    ]  # fmt: skip
    run = Measured.read(position)
    trained, untrained = run.estimate(f"test/{MID}/{ACCURACY}"), run.random_estimate(f"{MID}/{ACCURACY}")
    if untrained.low is not None and trained.high is not None and untrained.low > trained.high:
        stronger = f"At `{MID}` the untrained network encodes position more strongly than the trained one."
        lines += ["", f"{stronger} A readable position alone does not show that training put it there."]
    return "\n".join(lines)


def layers_caption(folder: Path) -> str:
    """Caption of the figure of accuracy over layers, with a sentence on whether position needs training."""
    run = Measured.read(folder)
    key = f"{MID}/{ACCURACY}"
    chance = run.number(f"chance/{key}")
    low = run.random_estimate(key).low
    untrained = (
        "An untrained network already encodes position."
        if low is not None and low > chance
        else "It is inconclusive whether an untrained network encodes position."
    )
    return (
        "*Accuracy of linear position probes in every layer of the demo model, a small Stable Diffusion trained on procedural\n"
        "scenes ([card](../assets/demo/README.md)), and of the same network with random weights (`block=all\n"
        f"probe.solver=closed_form`). {untrained} At `{MID}` the accuracy in eight bins is\n"
        f"{run.random(key, seeded=True)} with random weights and {run.estimate(f'test/{key}')} after training\n"
        f"(n = {run.tested()} photographs, chance {number(chance, 3)}).*"
    )


def matches_caption(folder: Path) -> str:
    """Caption of the drawn matches."""
    run = Measured.read(folder)
    key = f"{UP_1}/{PCK}/all"
    gain = run.estimate(f"gain_over_random_weights/{key}")
    same = run.estimate(f"same_position/baseline/{PCK}/all")
    return (
        f"*Zero-shot matching of keypoints between two scenes (`probe=correspondence probe.head=none block={UP_1}\n"
        "images.seed=30001`; other scenes than in the tables). PCK@0.10 in percent of keypoints: "
        f"{run.estimate(f'test/{key}').text(1, 100)};\nwith random weights {run.random(key, 1, 100, seeded=True)}; "
        f"for the same position {same.text(1, 100)}.\nDifference from random weights: "
        f"{gain.text(1, 100, sign=True)} percentage points (n = {pairs(run)}).*"
    )


def pairs(run: Measured) -> str:
    """The n of a correspondence run."""
    return f"{run.tested('images')} scenes in {run.tested('pairs')} pairs"


def position_table(folder: Path) -> str:
    """Position accuracy at one layer and its baselines."""
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
    """The same for an untrained network with the shape of SD-1.5."""
    own, _, chance, shuffled, random = position_cells(folder / "run")
    return (
        f"A network with the shape and width of SD-1.5 and random weights¹: {own}; chance {chance}, shuffled labels\n"
        f"{shuffled}, other random weights {random}."
    )


def correspondence_table(folder: Path) -> str:
    """PCK with a trained head and zero-shot, its baselines, PCK by target, and the effect of masking tokens."""
    run = Measured.read(folder)
    key, n = f"{UP_1}/{PCK}/all", pairs(run)
    cells = [
        half_width(run.estimate(f"test/{key}"), n, 1, 100),
        run.estimate(f"zero_shot/{key}").text(1, 100),
        run.random(key, 1, 100, seeded=True),
        run.estimate(f"same_position/baseline/{PCK}/all").text(1, 100),
        run.estimate(f"gain_over_random_weights/{key}").text(1, 100, sign=True),
    ]
    groups = (
        ("displacement_near", "displacement below .15 of the side"), ("displacement_far", "displacement above .35"),
        ("target_border", "target on a border token"), ("target_interior", "target on an interior token"),
    )  # fmt: skip
    split = "; ".join(
        f"{label} {run.estimate(f'test/{UP_1}/{PCK}/{group}').text(1, 100)}, "
        f"{run.number(f'test/{UP_1}/{PCK}/{group}/n'):,.0f} keypoints"
        for group, label in groups
    )
    masked = " ".join(
        f"{label} tokens: {effect(run.estimate(f'test/{UP_1}/harm/{group}'), keypoints(run, group))}."
        for group, label in (("corner", "Corner"), ("border", "Border"), ("high_norm", "High-norm"))
        if f"test/{UP_1}/harm/{group}" in run.metrics
    )
    return "\n".join(
        [
            "| network | trained head | zero-shot | random weights, head | same position | head − random weights |",
            "|---|---|---|---|---|---|", f"| `demo` | {' | '.join(cells)} |", "",
            f"PCK of the trained head by group of keypoints: {split}.",
            f"Change of PCK (as a fraction) if a group of tokens is masked in the target picture. {masked}",
        ]
    )  # fmt: skip


def keypoints(run: Measured, group: str) -> str:
    """The n of a harm: keypoints that count, and pictures of the run."""
    return f"{run.number(f'test/{UP_1}/harm/{group}/n'):,.0f} keypoints of {run.tested('images')} scenes"


def role_table(folder: Path) -> str:
    """Change of the loss by two edits at every stage, in percent, beside equal energy, random weights and the ceiling."""
    run = Measured.read(folder)
    lines = [
        "| stage | t | ceiling | edit | change | random energy | random weights | share of the ceiling |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for layer, level in product(STAGES, LEVELS):
        name = variant(layer, timestep=level)
        ceiling = run.estimate(f"ceiling/{name}/loss_change/all")
        shown = f"| {layer} | {level} | {ceiling.text(2, 100, sign=True)} |"
        if ceiling.low is None or ceiling.high is None or ceiling.low <= 0 <= ceiling.high:
            lines.append(f"{shown} the loss does not see this stage | | | | |")
            continue
        for edit in EDITS:
            key = f"{variant(name, edit)}/loss_change/all"
            conditions = ("test", "random_energy", "random_weights")
            cells = [run.estimate(f"{condition}/{key}").text(2, 100, sign=True) for condition in conditions]
            share = run.estimate(f"test/{variant(name, edit)}/ceiling_share/all").text(1, 100)
            lines.append(f"{shown} {edit} | {' | '.join(cells)} | {share} |")
    note = (
        f"Percent of the loss without the edit, with 95 % intervals over n = {run.tested()} scenes at 256 px; random weights: "
        f"{run.meta['twins']} networks, intervals also over them."
    )
    return "\n".join([*lines, "", note])


def later_table(folder: Path) -> str:
    """Change of the loss by two edits and by the ceiling, and re-emergence ρ of position after them in every later stage."""
    run = Measured.read(folder)
    later = run.meta["later"]
    lines = [f"| edited | t | edit | loss, % | {' | '.join(later)} | first ρ ≥ ½ |", "|---" * (len(later) + 5) + "|"]
    for layer, level in product((MID, UP_1), LEVELS):
        name = variant(layer, timestep=level)
        rows = {f"test/{variant(name, edit)}": edit for edit in EDITS}
        rows |= {f"random_energy/{variant(name, edit)}": f"random energy of {edit}" for edit in EDITS}
        rows |= {f"random_weights/{variant(name, edit)}": f"{edit}, random weights" for edit in EDITS}
        for key, text in (rows | {f"ceiling/{name}": "ceiling"}).items():
            keys = {where: f"{key}/reemergence/{where}" for where in later}
            found = {where: run.estimate(key) for where, key in keys.items() if key in run.metrics}
            cells = [str(found[where]) if where in found else "–" for where in later]
            first = next((where for where, rho in found.items() if rho.value >= 0.5), "–")
            loss = run.estimate(f"{key}/loss_change/all").text(2, 100, sign=True)
            lines.append(f"| {layer} | {level} | {text} | {loss} | {' | '.join(cells)} | {first} |")
    note = f"n = {run.tested()} scenes at 256 px; random weights: {run.meta['twins']} networks, intervals also over them."
    return "\n".join([*lines, "", note])


def equivariance_table(folder: Path) -> str:
    """Share of every stage that moves with the picture, beside random weights and position variance."""
    run = Measured.read(folder)
    lines = [
        "| layer | all tokens | random weights | at least one token from the border | random weights | position variance |",
        "|---|---|---|---|---|---|",
    ]
    for layer in run.meta["layers"]:
        cells = []
        for where in ("all", "margin_1"):
            key = f"{layer}/equivariance/{where}"
            cells += [str(run.estimate(f"test/{key}")), run.random(key, seeded=True)]
        lines.append(f"| {layer} | {' | '.join(cells)} | {run.estimate(f'test/{layer}/r_pos/all')} |")
    return "\n".join([*lines, "", f"n = {run.tested()} scenes at 512 px, moved by 64 px. 1 is exact."])


@cache
def tables_of(folder: Path) -> tuple[Run, ...]:
    """The runs of a sweep, after writing its tables and figures again.

    Raises:
        InputError: a job failed or is missing.
    """
    runs, skipped = read_runs(folder)
    if skipped or not runs:
        path, reason = next(iter(skipped.items()), (folder, "it contains no run"))
        raise InputError(f"Expected every job of {folder.name} to be complete, but {path.name}: {reason}. Run the step again.")
    summarise(runs, folder)
    return tuple(runs)


EXTRACT = {
    "none": "none (chance .125)", "position_mean": "`position_mean`", "shift_anova": "`shift_anova`", "leace": "`leace`",
    "padding_swap": "`padding_swap` (reflect)", "random_rank": "control: random subspace of the rank of `position_mean`",
}  # fmt: skip
COLUMNS = (("mid", "position"), ("up_1", "position"), ("up_1", "PCK all"), ("up_1", "depth RMSE"), ("up_1", "passes"))


def mitigation_tables(folder: Path) -> str:
    """All tables of the experiment."""
    tables_of(folder)
    return (folder / "mitigations.md").read_text()


def mitigation_extract(folder: Path) -> str:
    """A selection of rows and columns of these tables, and their n."""
    counts = {run.kind: Measured.read(run.folder) for run in tables_of(folder)}
    kinds = [kind for kind in ("position", "correspondence", "depth") if kind in counts]
    n = ", ".join(f"{kind} n = {counts[kind].tested()}" for kind in kinds)
    return (
        f"{extract_table((folder / 'mitigations.md').read_text())}\n\nTest pictures: {n}. Stars are corrected for all "
        "comparisons of the full table."
    )


def repair(folder: Path) -> str:
    """Effect and cost of one mitigation, ``position_mean``."""
    tables_of(folder)
    return repair_sentence((folder / "mitigations.md").read_text())


def repair_sentence(text: str) -> str:
    """Position, PCK and depth with ``position_mean`` from Markdown tables, and position with its control."""
    tables = layer_tables(text)

    def value(row: str, layer: str, column: str) -> str:
        return bare(cell(tables, layer, row, column))

    def change(layer: str, column: str) -> str:
        return f"from {value('none', layer, column)} to {value('position_mean', layer, column)}"

    return (
        f"`position_mean` subtracts the mean token of each position. Position accuracy at `{MID}` changes "
        f"{change(MID, 'position')} (with a random subspace of the same rank: {value('random_rank', MID, 'position')}),\n"
        f"zero-shot PCK@0.10 at `{UP_1}` {change(UP_1, 'PCK all')} (as a fraction), depth RMSE {change(UP_1, 'depth RMSE')}. "
        "A star marks a significant change, corrected for all mitigations and layers."
    )


def extract_table(text: str) -> str:
    """The rows of EXTRACT and COLUMNS of Markdown tables, without intervals."""
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
            f"Expected mitigations.md to have '{column}' of {row} at {layer}, but {error} is missing. Correct the renderer."
        ) from error


def bare(text: str) -> str:
    """``.24 [.21, .28] −.33 [−.36, −.30]*`` as ``.24*``."""
    return (text.split() or [""])[0].rstrip("*") + ("*" if text.rstrip().endswith("*") else "")


def origin(folder: Path) -> str:
    """Position accuracy with and without zero padding and training.

    Raises:
        InputError: a control is missing.
    """
    cells = {str(run.meta["control"]): run for run in tables_of(folder)}

    def accuracy(*names: str) -> str:
        found = mean_accuracy(cells, MID, tested(*names))
        if found is None or not set(names) <= set(cells):
            raise InputError(
                f"Expected controls {', '.join(names)} in {folder.name}, but not all are there. Run the step again."
            )
        return str(Estimate(found.value, found.low, found.high))

    trained = Measured.read(cells["trained"].folder)
    return (
        f"Accuracy at `{MID}` ({trained.tested()} test photographs, chance "
        f"{number(trained.number(f'chance/{MID}/{ACCURACY}'), 3)}). Untrained networks on periodic texture (3 seeds; intervals "
        f"over seeds and\nphotographs): {accuracy(*PERIODIC)} with zero padding, {accuracy(*CIRCULAR)} with circular padding. "
        f"The trained network\non scenes: {accuracy('trained')} with zero padding, {accuracy('circular')} with circular."
    )


def speed(folder: Path) -> str:
    """Output of ``tools.benchmarks.extraction``: date and machine, then the table without its column "how"."""
    machine, *rows = (folder / OUTPUT).read_text().strip().splitlines()
    return "\n".join([machine, "", *(f"{row.rsplit('|', 2)[0]}|" for row in rows if row.startswith("|"))])


def captured(folder: Path) -> str:
    """Output of a command that prints Markdown."""
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


def card_dit_position(*folders: Path) -> str:
    """Position accuracy of every layer of the transformer, with its position table, without it, and with it permuted."""
    runs = [Measured.read(folder) for folder in folders]
    names = [f"{mode}, {weights}" for mode in POSITIONS for weights in ("trained", "random weights")]
    lines = [f"| layer | {' | '.join(names)} | chance |", "|---" * (len(names) + 2) + "|"]
    for layer in runs[0].meta["layers"]:
        key = f"{layer}/{ACCURACY}"
        cells = [text for run in runs for text in (str(run.estimate(f"test/{key}")), run.random(key))]
        lines.append(f"| {layer} | {' | '.join(cells)} | {number(runs[0].number(f'chance/{key}'), 3)} |")
    return "\n".join([*lines, "", note(runs[0], f"n = {runs[0].tested()} photographs")])


def note(run: Measured, n: str) -> str:
    """A sentence on the intervals of a table in the card."""
    return f"Brackets: 95 % intervals over photographs ({n}); for random weights also over {run.meta['twins']} seeds."


def card_samples(folder: Path) -> str:
    """Share of samples that a classifier recognises."""
    drawn = read_json(folder / "samples.json")
    each = ", ".join(f"{name} {100 * value:.0f}" for name, value in drawn["each"].items())
    scenes, share = (f"{100 * drawn[name]:.0f} %" for name in ("scenes", "share"))
    return (
        f"**Samples.** A small classifier, trained on rendered scenes ({scenes} accuracy on held-out ones), predicts the\n"
        f"requested category for **{share}** of {drawn['count']} samples ({SIDE_DRAWN} px, {STEPS} DDIM steps, guidance "
        f"{GUIDANCE:g}; chance 12.5 %). Per\ncategory: {each}."
    )


def run_figure(name: str) -> Callable[[Path], Path]:
    """A function of a run folder that draws its figures again and returns the path of one."""

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
        "role": (("role",), role_table),
        "later": (("later",), later_table),
        "equivariance": (("equivariance",), equivariance_table),
        "origin": (("controls",), origin),
        "speed": (("bench",), speed),
        "mitigations": (("mitigations",), mitigation_tables),
        "levels": (("levels",), captured),
        "card_ceilings": (("ceilings",), captured),
        "card_samples": (("samples",), card_samples),
        "card_matching": (("card_matching",), card_matching),
        "card_position": (("layers",), card_position),
        "card_dit_position": (tuple(f"dit_{mode}" for mode in POSITIONS), card_dit_position),
        "card_dit_matching": (("dit_matching",), card_matching),
    },
    figures={
        "docs/wandb.png": ("wandb", lambda folder: folder / "wandb.png"),
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
        "docs/role.md",
        "docs/equivariance.md",
        "docs/methods.md",
        "assets/demo/README.md",
        "assets/demo_dit/README.md",
    ),
)

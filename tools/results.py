"""Measure all numbers that the documents publish, and write them into the documents: ``python -m tools.results``.

Steps write into folders below ``.cache/results``. Finished steps are skipped, so the command can be stopped and started again.
Then tables and figures are made from the run folders, and the marked blocks of the documents are rewritten. At the end the
command prints what changed. ``--check`` writes nothing and exits 1 if anything would change.
"""

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sdprobe.runs.record import ROOT
from sdprobe.utilities import expect
from sdprobe.utilities.errors import InputError
from sdprobe.utilities.io import write_file
from tools.documents import changes, names, rewritten
from tools.plan import Plan
from tools.steps import Step, is_finished, perform, state_of

WORK = ROOT / ".cache" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, render, and print what changed."""
    from tools.published import PLAN  # loads the networks' libraries

    parser = argparse.ArgumentParser(prog="python -m tools.results", description=main.__doc__)
    parser.add_argument("--only", nargs="+", metavar="STEP", help="steps, or groups of steps such as bench")
    parser.add_argument("--list", action="store_true", help="show the steps and whether they are finished")
    parser.add_argument("--check", action="store_true", help="measure and write nothing; exit 1 if anything would change")
    options = parser.parse_args(arguments)
    return regenerate(PLAN, ROOT, WORK, options.only, options.list, options.check)


def regenerate(
    plan: Plan, root: Path, work: Path, only: Sequence[str] | None = None, show: bool = False, check: bool = False
) -> int:
    """Run the command; returns its exit status.

    Raises:
        InputError: an unknown step, an unknown or unclosed block, or a command that failed.
    """
    steps = chosen(plan, only)
    check_blocks(plan, root)
    states = {step.name: state_of(step) for step in plan.steps}
    done = {step.name: is_finished(step, work / step.name, states[step.name]) for step in plan.steps}
    if show:
        for step in plan.steps:
            say(f"{step.name:20} {'finished' if done[step.name] else 'to do':9} {step.group}")
        return 0
    for step in [] if check else steps:
        if done[step.name]:
            say(f"{step.name}: finished already")
            continue
        say(f"{step.name}: {' && '.join(' '.join(('python', *command)) for command in step.commands)}")
        perform(step, work / step.name, states[step.name])
        done[step.name] = True
    missing = [step.name for step in plan.steps if not step.group and not done[step.name]]
    contents, complaints = render(plan, work, done)
    changed = publish_documents(plan, root, contents, write=not check)
    drawn, undrawn = publish_figures(plan, root, work, done, write=not check)
    changed, complaints = changed + drawn, complaints + undrawn
    say(*(changed or ["Nothing changed."]), *complaints)
    if missing:
        say(f"Not measured by this code, so not compared: {', '.join(missing)}.")
    return int(bool(complaints) or (check and bool(changed or missing)))


def chosen(plan: Plan, only: Sequence[str] | None) -> list[Step]:
    """The steps named by ``only``, as steps or groups; without it all steps that have no group."""
    known = {name for step in plan.steps for name in (step.name, step.group) if name}
    for name in only or ():
        expect.one_of("--only", name, sorted(known), "Correct the name.")
    return [step for step in plan.steps if (step.name in only or step.group in only if only else not step.group)]


def check_blocks(plan: Plan, root: Path) -> None:
    """Raise an error for a block without a renderer, and for a renderer without a block."""
    blocks = {name: document for document in plan.documents for name in names((root / document).read_text())}
    if unknown := [name for name in blocks if name not in plan.blocks]:
        raise InputError(
            f"Expected the blocks of {blocks[unknown[0]]} to be among {', '.join(plan.blocks)}, but got '{unknown[0]}'. "
            "Correct the name, or add a renderer to tools/published.py."
        )
    if unused := [name for name in plan.blocks if name not in blocks]:
        raise InputError(
            f"Expected a block results:{unused[0]} in {', '.join(plan.documents)}, but got none. "
            "Add its marks, or remove its renderer."
        )


def render(plan: Plan, work: Path, done: Mapping[str, bool]) -> tuple[dict[str, str], list[str]]:
    """(Block → Markdown, for blocks whose steps are finished; messages about blocks that could not be rendered)."""
    contents, complaints = {}, []
    for name, (needed, renderer) in plan.blocks.items():
        if all(done[step] for step in needed):
            try:
                contents[name] = renderer(*(work / step for step in needed))
            except InputError as error:
                complaints.append(f"{name}: {error} The block was not changed.")
    return contents, complaints


def publish_documents(plan: Plan, root: Path, contents: Mapping[str, str], write: bool) -> list[str]:
    """Rewrite the documents; returns what changed."""
    changed = []
    for document in plan.documents:
        before = (root / document).read_text()
        after = rewritten(before, contents)
        changed += changes(document, before, after)
        if write and after != before:
            write_file(root / document, after)
    return changed


def publish_figures(plan: Plan, root: Path, work: Path, done: Mapping[str, bool], write: bool) -> tuple[list[str], list[str]]:
    """Replace figures whose pixels changed; returns their names, and messages about those that could not be drawn."""
    changed, complaints = [], []
    for name, (step, source) in plan.figures.items():
        if not done[step]:
            continue
        try:
            content = encoded(source(work / step), Path(name).suffix)
        except (InputError, FileNotFoundError) as error:
            complaints.append(f"{name}: {error} The figure was not changed.")
            continue
        if not (root / name).is_file() or not same_pixels(content, (root / name).read_bytes()):
            changed.append(f"{name}: pixels changed")
            if write:
                write_file(root / name, content)
    return changed, complaints


def encoded(picture: Path, suffix: str) -> bytes:
    """The bytes of a picture in the format of a suffix."""
    if picture.suffix == suffix:
        return picture.read_bytes()
    buffer = io.BytesIO()
    with Image.open(picture) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=88, optimize=True)
    return buffer.getvalue()


def same_pixels(one: bytes, other: bytes) -> bool:
    """Whether two files have the same pixels."""
    first, second = (np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in (one, other))
    return np.array_equal(first, second)


def say(*lines: str) -> None:
    """Write lines and flush, so that they appear in order with the output of the steps."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)

"""Table of ``choose=``: the chosen cells, their scores on validation and on test photographs, and what equals them."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from sdprobe.reports.numbers import bare_table, number, within
from sdprobe.reports.run import Run
from sdprobe.tokens.keys import Key, base_of, label_of, timestep_of

SHOWN = 6  # cells that are named as equal


def choice_tables(run: Run) -> list[Table]:
    """The table, if the run made a choice."""
    choices = run.meta.get("choices") or []
    if not choices:
        return []
    photographs, key = choices[0]["photographs"], Key.parse(choices[0]["metric"])
    what = " and ".join(choices[0]["by"])
    table = bare_table(f"Choice of {what} on {photographs} validation photographs")
    for head in ("chosen", "of", f"{key.metric}\nvalidation", "±", f"{key.metric}\ntest", "±", "not told\nfrom it"):
        table.add_column(head, justify="left" if head == "chosen" else "right")
    for choice in choices:
        cell = choice["chosen"]
        estimates = [run.estimate(condition, cell, key.metric, key.where) for condition in ("choice", "test")]
        cells = [text for value, low, high in estimates for text in _with_half(value, low, high)]
        table.add_row(Text(_named(cell)), str(choice["cells"]), *cells, str(len(choice["equal"])))
    out = sorted({cell for choice in choices for cell in choice["left_out"]})
    bound = choices[0].get("bound")
    notes = [
        "not told from it: number of those where the interval of the paired difference holds 0. With the chosen one they hold "
        "the truly best in at least 95 % of experiments. The test photographs had no part in the choice."
    ]
    notes += [f"Not told from {_named(choice['chosen'])}: {_listed(choice['equal'])}." for choice in choices if choice["equal"]]
    if bound is not None:
        least = ", ".join(f"{choice['within_bound']} of {choice['cells']}" for choice in choices)
        notes.append(f"Chosen among the cells whose position accuracy (8 bins) is at most {number(bound)}: {least}.")
    if out:
        notes.append(f"Left out, since some photographs have no number: {_listed(out)}.")
    table.caption = " ".join(notes)
    return [table]


def _with_half(value: float | None, low: float | None, high: float | None) -> tuple[str, str]:
    return number(value), "" if value is None or low is None or high is None else within(value, low, high)


def _named(cell: str) -> str:
    """A cell in words.

    >>> _named("mid__t261__leace"), _named("mid")
    ('mid, t = 261, leace', 'mid')
    """
    timestep = timestep_of(cell)
    parts = [base_of(cell), *([] if timestep is None else [f"t = {timestep}"]), *filter(None, [label_of(cell)])]
    return ", ".join(parts)


def _listed(cells: Sequence[str]) -> str:
    names = "; ".join(map(_named, cells[:SHOWN]))
    return names + f" and {len(cells) - SHOWN} more" * (len(cells) > SHOWN)

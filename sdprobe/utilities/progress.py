"""Progress of a run: numbered steps, a bar while a step is at work, a line with its duration when it ends.

All bars go through this module. A run lists its steps with :func:`plan`, and the code that does the work opens
them with :func:`step`. Bars are drawn on a terminal only. Pipes, CI and Slurm logs get the lines.
"""

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID
from rich.table import Column
from rich.text import Text

Item = TypeVar("Item")

log = logging.getLogger(__name__)


def duration(seconds: float) -> str:
    """
    >>> duration(0.42), duration(7), duration(59.3), duration(65.2), duration(3725)
    ('0.4 s', '7 s', '59 s', '1 min 5 s', '1 h 2 min')
    """
    if round(seconds) < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 and isinstance(seconds, float) else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def counted(count: int, unit: str) -> str:
    """
    >>> counted(1, "batch"), counted(2, "batch"), counted(3, "image"), counted(4, "MB")
    ('1 batch', '2 batches', '3 images', '4 MB')
    """
    plural = "" if count == 1 or unit.isupper() or not unit else "es" if unit.endswith("ch") else "s"
    return f"{count} {unit}{plural}".rstrip()


class Plan:
    """The steps of a run, and the one display of bars.

    Args:
        names: of the steps, in order.
        heading: what stands before every bar, such as the number of a sweep's job.
        lines: whether a step that ends leaves a line.
        shown: whether this process reports at all.
    """

    def __init__(self, names: Sequence[str] = (), heading: str = "", lines: bool = True, shown: bool = True) -> None:
        self.names, self.heading, self.lines, self.shown = tuple(names), heading, lines, shown
        self.open: list[Step] = []
        self.bars: Progress | None = None

    def label(self, name: str) -> str:
        """
        >>> Plan(["encode images", "test"]).label("test")
        '2 of 2: test'
        """
        return f"{self.names.index(name) + 1} of {len(self.names)}: {name}" if name in self.names else name

    def draw(self, description: str, total: int | None, unit: str) -> TaskID | None:
        """A new bar in place of the last one; None where nobody watches."""
        if not self.shown or not _terminal():
            return None
        if self.bars is None:
            self.bars = _bars()
            self.bars.start()
        for task in self.bars.task_ids:
            self.bars.update(task, visible=False)
        text = f"{self.heading}, {description}" if self.heading else description
        return self.bars.add_task(text, total=total, unit=unit, detail="")

    def close(self) -> None:
        """Remove the display."""
        if self.bars is not None:
            self.bars.stop()
            self.bars = None


class Step:
    """A step at work. ``done`` counts its items; ``note`` says in its line what was done.

    Args:
        plan: that it belongs to.
        name: as the plan has it.
        unit: what it counts, in the singular.
        outer: the step that it is a part of, if any.
    """

    def __init__(self, plan: Plan, name: str, unit: str, outer: "Step | None") -> None:
        self.name, self.unit, self.note = name, unit, ""
        if outer is None:
            self.label = plan.label(name)
        else:
            self.label = outer.label if outer.name == name else f"{outer.label}: {name}"
        self.done = 0
        self._plan, self._outer = plan, outer
        self._task: TaskID | None = None
        self._started = self._noted = time.monotonic()

    def begin(self, part: str = "", total: int | None = None) -> None:
        """Draw a new bar for a part of the step; ``total`` is None where it is not known."""
        self._task = self._plan.draw(f"{self.label}: {part}" if part else self.label, total, self.unit)

    def advance(self, count: int = 1) -> None:
        """Count items that are done."""
        self.done += count
        self._update(advance=count)
        if self._outer is not None and self._outer.unit == self.unit:
            self._outer.done += count

    def due(self) -> bool:
        """Whether a new detail would be read: there is a bar, and the last detail is half a second old."""
        if self._task is None or time.monotonic() - self._noted < 0.5:
            return False
        self._noted = time.monotonic()
        return True

    def detail(self, text: str) -> None:
        """Write a text beside the bar."""
        self._update(detail=text)

    def line(self) -> str:
        """What is left of the step when it has ended."""
        note = self.note or (counted(self.done, self.unit) if self.done and self.unit else "")
        return f"{self.label}{f', {note}' if note else ''} ({duration(time.monotonic() - self._started)})"

    def _update(self, **values: Any) -> None:
        if self._task is not None and self._plan.bars is not None:
            self._plan.bars.update(self._task, **values)


_plan = Plan()


@contextmanager
def plan(names: Sequence[str], heading: str = "", lines: bool = True, shown: bool = True) -> Iterator[None]:
    """Number the steps of a run, see :class:`Plan`."""
    global _plan
    before, _plan = _plan, Plan(names, heading, lines, shown)
    try:
        if lines and shown:
            log.info("Steps: %s.", ", ".join(f"{number} {name}" for number, name in enumerate(names, 1)))
        yield
    finally:
        _plan.close()
        _plan = before


@contextmanager
def step(name: str, unit: str = "") -> Iterator[Step]:
    """A step of the plan. Within another step it is a part of that step and leaves no line."""
    current = _plan
    outer = current.open[-1] if current.open else None
    found = Step(current, name, unit, outer)
    current.open.append(found)
    try:
        yield found
    finally:
        current.open.remove(found)
        if outer is None:
            current.close()
    if outer is None and current.lines and current.shown:
        log.info("%s", found.line())


def track(items: Iterable[Item], name: str, unit: str = "", total: int | None = None) -> Iterator[Item]:
    """The items, counted by a bar: part ``name`` of the step at work, or a step of its own."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with step(name, unit) as current:
        current.begin(total=total)
        for item in items:
            yield item
            current.advance()


class _TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Time left where it can be estimated, else the time since the start."""
        left = task.time_remaining if task.total else None
        minutes, seconds = divmod(int(task.elapsed or 0) if left is None else round(left), 60)
        return Text(f"{minutes}:{seconds:02}{'' if left is None else ' left'}")


class _Doing(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Label, items done of all, and the detail; what does not fit is cut at the end."""
        done, unit = int(task.completed), task.fields["unit"]
        count = counted(done, unit) if done else ""
        if task.total is not None:
            count = f"{done}/{counted(int(task.total), unit)}"
        parts = (task.description, count, task.fields["detail"])
        return Text(", ".join(part for part in parts if part), no_wrap=True, overflow="ellipsis")


def _bars() -> Progress:
    """A bar that disappears when its step ends, on standard error, where the log is written, too."""
    return Progress(
        _Doing(table_column=Column(no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=5)),
        _TimeLeft(table_column=Column(no_wrap=True, min_width=9, justify="right")),
        console=Console(stderr=True, highlight=False),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        expand=True,
    )


def _terminal() -> bool:
    """Whether somebody watches: standard error is a terminal that can move its cursor."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")

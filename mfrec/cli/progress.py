"""The progress of long work, on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

if TYPE_CHECKING:
    from mfrec.evaluation.monitors import Monitor
    from mfrec.experiments.loop import Epoch


@contextmanager
def epoch_progress(solver: str, monitor: Monitor, *, quiet: bool = False) -> Iterator[Callable[[Epoch], None]]:
    """A line on stderr that follows the training: epoch, metric, cost, ratings per second, time left at most.

    Silent if stderr is not a terminal.

    Args:
        monitor: the metric to show.
    """
    console = Console(stderr=True)
    line = TextColumn("{task.fields[line]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
    # A terminal too narrow for all shortens the bar first.
    columns = (line, BarColumn(bar_width=12), TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=8)))
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        yield EpochLine(solver, monitor, bar).show


class EpochLine:
    """The line of `epoch_progress`."""

    def __init__(self, solver: str, monitor: Monitor, bar: Progress) -> None:
        self.solver, self.monitor, self.bar = solver, monitor, bar
        self.task: TaskID | None = None
        self.train, self.is_refit = "", False

    def show(self, epoch: Epoch) -> None:
        """Show the result of an epoch."""
        if self.task is None or epoch.refit != self.is_refit:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task = self.bar.add_task("", total=epoch.epochs, completed=epoch.number, line="")
            self.train, self.is_refit = "", epoch.refit
        if epoch.train is not None:
            self.train = f" train{self._value(epoch.train)} cost {epoch.train['cost']:,.0f}"
        valid = "" if epoch.valid is None else f" valid{self._value(epoch.valid)}"
        speed = next(task.speed for task in self.bar.tasks if task.id == self.task)
        rate = "" if speed is None else f" {epoch.n_ratings * speed / 1e6:.1f}M ratings/s"
        # A narrow terminal cuts the end off, so the most wanted comes first.
        name = f"{self.solver} refit" if epoch.refit else self.solver
        line = f"{name} epoch {epoch.number}/{epoch.epochs} {self.monitor.label}{valid}{self.train}{rate}"
        self.bar.update(self.task, completed=epoch.number, line=line)

    def _value(self, measured: dict[str, float]) -> str:
        """The monitored metric after a space, if it was measured."""
        name = self.monitor.name
        return f" {measured[name]:{self.monitor.format}}" if name in measured else ""


@contextmanager
def count_progress(unit: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr that advances by a number of units.  Silent if stderr is not a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.completed:,}/{task.total:,} {task.description}"), BarColumn(bar_width=24))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(unit, total=total)
        yield lambda done: bar.update(task, advance=done)


def announce_stop() -> None:
    """Say, after a first Ctrl-C, that the epoch is being finished."""
    print("\nfinishing this epoch, then saving; press Ctrl-C again to stop now", file=sys.stderr)

"""Progress of reading data, on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def stage_progress(title: str) -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr that follows the stages of long work.  Silent if stderr is not a terminal.

    Yields:
        a function to call with the name of a stage and the fraction of it that is done.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task, current = bar.add_task(title, total=1.0), ""

        def show(stage: str, fraction: float) -> None:
            nonlocal current
            if stage != current:
                bar.reset(task, description=f"{title}: {stage}")
                current = stage
            bar.update(task, completed=fraction)

        yield show

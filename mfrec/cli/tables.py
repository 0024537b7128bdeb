"""Tables on a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

# The format of the numbers in a column, by its name.
FORMATS = {
    "rating": ".1f",
    "predicted": ".2f",
    "std": ".2f",
    "n_ratings": ",",
    "epochs": ".0f",
    "cosine": ".3f",
    "l2": ".3g",
    "lr": ".3g",
    "lr_decay": ".3g",
    "relaxation": ".2f",
    "mean": ".2f",
    "seconds": ".1f",
}
# The columns whose texts may be wrapped.
WRAPPED = (
    *("run", "folder", "title", "genres", "summary", "to tune", "supports", "because"),
    *("test sets", "sees besides ratings"),
)


class StandardOutput(Console):
    """A console on stdout."""

    def on_broken_pipe(self) -> None:
        """Leave the exit status to `main`, where rich would exit with 1."""
        raise BrokenPipeError


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], formats: Mapping[str, str] = FORMATS
) -> None:
    """Print a table, numbers to the right; on a narrow terminal, titles and other long texts are wrapped.

    None and NaN are a dash.

    Args:
        formats: the format of the numbers in a column, by its name.
    """
    table = Table(box=SIMPLE_HEAD, show_header=any(columns))
    for position, name in enumerate(columns):
        numeric = all(isinstance(row[position], int | float) or row[position] is None for row in rows)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=name not in WRAPPED, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value, formats.get(name)) for name, value in zip(columns, row, strict=True)))
    console = StandardOutput()
    console.print(title, style="bold", highlight=False, markup=False, soft_wrap=True)
    console.print(table, markup=False)


def print_rows(title: str, rows: Sequence[Mapping[str, Any]], formats: Mapping[str, str] = FORMATS) -> None:
    """Print a table of one or more rows that have the same keys."""
    print_table(title, list(rows[0]), [list(row.values()) for row in rows], formats)


def _cell(value: object, format_spec: str | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, int | float) and format_spec is not None:
        return format(value, format_spec)
    return format(value, ".4f" if isinstance(value, float) else "")

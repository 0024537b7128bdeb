"""Pairs: tables of (user, item) pairs to predict, or of one person's ratings; their further columns are kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mfrec.data.ids import ids_from_text
from mfrec.data.text import Lines, checked_text, first_line, parquet_frame, shown, split_header
from mfrec.errors import InputError

# The possible names of each role's column; the first that a table has counts.
NAMES = {
    "user": ("user", "userId", "user_id"),
    "item": ("item", "movieId", "item_id", "itemId", "title"),
    "rating": ("rating", "stars"),
    "timestamp": ("timestamp",),
}


def read_table(path: str | Path, needed: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """A CSV, TSV or parquet table whose columns of these roles are renamed to "user", "item" and "rating".

    Ids of text files become integers if no text changes by it; all other cells stay text.

    Args:
        needed, optional: roles that must have a column, and roles that may have one.

    Raises:
        InputError: there is no such file, it is not such a table, or a needed column is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}; give a CSV, TSV or parquet table")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    frame = parquet_frame(str(path), data) if data[:4] == b"PAR1" else _text_frame(path, data)
    if not len(frame):
        raise InputError(f"{path} has a header and no rows; give it at least one")
    for role in (*needed, *optional):
        name = next((name for name in NAMES[role] if name in frame), None)
        if name is not None:
            frame = _with_role(path, frame.rename(columns={name: role}), role)
        elif role in needed:
            names = " or ".join(NAMES[role])
            raise InputError(f"{path} needs a column {names} (got {shown(', '.join(frame.columns))}); rename a column")
    return frame


def _with_role(path: Path, frame: pd.DataFrame, role: str) -> pd.DataFrame:
    """The frame with ids as integers if all of them are; the column of the role must be complete."""
    column = frame[role]
    missing = int((column.isna() | (column == "")).sum())
    if missing:
        raise InputError(
            f"column {role!r} of {path} must be complete ({missing:,} of {len(frame):,} rows have none); "
            "drop or fill them"
        )
    if role != "rating" and column.dtype == object:
        return frame.assign(**{role: ids_from_text(column).astype(object)})
    return frame


def _text_frame(path: Path, data: bytes) -> pd.DataFrame:
    data = checked_text(str(path), data)
    separator, names = split_header(first_line(data))
    if len(set(names)) < len(names):
        raise InputError(f"{path} must have distinct columns (got {shown(', '.join(names))}); rename one")
    return Lines(str(path), data, separator, len(names), has_header=True, quoting=True).frame(names)

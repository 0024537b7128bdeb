"""Tables whose rows are not all of a rating: pairs to predict, or what someone rated; their other columns are kept."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mfrec.data.ids import ids_from_text
from mfrec.data.parsing import checked_text, first_line, parquet_frame, split_header, text_encoding
from mfrec.errors import InputError

# What the column of each role may be called, the first found counts.
NAMES = {
    "user": ("user", "userId", "user_id"),
    "item": ("item", "movieId", "item_id", "itemId", "title"),
    "rating": ("rating", "stars"),
}


def read_table(path: str | Path, needed: Sequence[str], maybe: Sequence[str] = ()) -> pd.DataFrame:
    """A CSV, TSV or parquet table, whose columns of these roles are called "user", "item" and "rating".

    Ids of text files are integers where the text of none changes by it, ratings are numbers, all else stays text.

    Args:
        needed, maybe: roles that must have a column, and that may have one.

    Raises:
        InputError: there is no such file, it is empty or no table, or a needed column is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}; give a CSV, TSV or parquet table")
    data = path.read_bytes()
    frame = parquet_frame(str(path), data) if data[:4] == b"PAR1" else _text(path, data)
    frame.columns = frame.columns.astype(str)
    for role in (*needed, *maybe):
        found = next((name for name in NAMES[role] if name in frame), None)
        if found is None and role in needed:
            held = ", ".join(frame.columns[:6])
            raise InputError(f"{path} has the columns {held} and no {' or '.join(NAMES[role])}; rename one")
        if found is not None:
            frame = frame.rename(columns={found: role})
            empty = int((frame[role] == "").sum())
            if empty:
                raise InputError(
                    f"{empty:,} of {len(frame):,} rows of {path} have no {role}; fill them, or leave them out"
                )
            if role != "rating" and frame[role].dtype == object:
                frame[role] = ids_from_text(frame[role]).astype(object)
    if not len(frame):
        raise InputError(f"{path} has a header and no rows; give it some")
    return frame


def _text(path: Path, data: bytes) -> pd.DataFrame:
    data = checked_text(str(path), data)
    encoding = text_encoding(data)
    first = first_line(data).decode(encoding)
    separator, _ = split_header(first)
    try:
        frame = pd.read_csv(io.BytesIO(data), sep=separator, dtype=object, na_filter=False, encoding=encoding)
    except ValueError as error:  # pandas' ParserError is one
        raise InputError(f"{path} is no table ({str(error).strip().splitlines()[-1]}); mend the line") from error
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes a surplus first field for an index
        raise InputError(f"{path} has lines of more fields than its header {first!r}; mend the lines or the header")
    return frame

"""Parsing: from the bytes of one file to a frame of ratings, or to one sentence about the first faulty line.

Text is lines of `user::item::rating[::timestamp]`, the same between tabs, or a delimited table with a header; anything
else is parquet.  pandas' C parser reads it, and only if that fails are the lines examined one by one.  Ids are read as
text and become integers only if no id of the column changes by it ("007" stays text).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from mfrec.data.ids import ids_from_text
from mfrec.data.raw_tables import RatingRange
from mfrec.data.text import (
    checked_text,
    first_line,
    parquet_frame,
    parse_number,
    read_delimited,
    reason_of,
    shown,
    split_header,
    text_encoding,
)
from mfrec.errors import InputError, OptionError

ROLES = ("user", "item", "rating", "timestamp")
HEADERS = (("userId", "movieId", "rating", "timestamp"), ROLES, ("user_id", "item_id", "rating", "timestamp"))
_NAME_THEM = "name its columns with columns='USER,ITEM,RATING[,TIMESTAMP]'"


def column_names(columns: str | Sequence[str] | None) -> list[str] | None:
    """ "user,item,rating[,timestamp]", or such a sequence, as a list; None stays None.

    Raises:
        OptionError: these are not three or four distinct names.
    """
    if columns is None:
        return None
    names = [name.strip() for name in columns.split(",")] if isinstance(columns, str) else list(columns)
    if len(names) not in (3, 4) or len(set(names)) < len(names) or "" in names:
        raise OptionError(
            "columns", f"must be 3 or 4 distinct names, USER,ITEM,RATING[,TIMESTAMP] (got {','.join(names)!r})"
        )
    return names


@dataclass(frozen=True)
class _Layout:
    """How to read the lines of a ratings file.

    Attributes:
        movielens_header: whether the columns have MovieLens's names.
        columns: the position of each role among n_fields.
    """

    separator: str
    quoting: Literal[0, 3]
    has_header: bool
    movielens_header: bool
    n_fields: int
    columns: dict[str, int]


def read_ratings(where: str, data: bytes, wanted: list[str] | None) -> tuple[pd.DataFrame, RatingRange | None]:
    """The ratings in a file's bytes, in columns named as in ROLES, and the rating range that the format declares.

    Args:
        where: the file's path for messages.
        wanted: the file's names of these columns, as `column_names` returns them.

    Raises:
        InputError: the bytes are not such a table; the message names the first faulty line.
    """
    if data[:4] == b"PAR1":
        return _read_parquet(where, data, wanted)
    data = checked_text(where, data)
    double_colons = b"::" in first_line(data) and wanted is None
    if double_colons:
        data = data.replace(b"::", b"\t")
    layout = _layout(where, data, wanted)
    ratings = _parse(where, data, layout)
    if double_colons:  # ml-1m has whole stars, ml-10m half stars
        return ratings, (0.5 if bool((ratings["rating"] % 1 != 0).any()) else 1.0, 5.0)
    if layout.movielens_header:
        return ratings, (0.5, 5.0)
    # A headerless table between tabs is ml-100k only if its ratings are whole stars.
    stars = not layout.has_header and layout.separator == "\t" and bool(ratings["rating"].isin(range(1, 6)).all())
    return ratings, (1.0, 5.0) if stars else None


def _layout(where: str, data: bytes, wanted: list[str] | None) -> _Layout:
    """The layout by the first line: if one of its fields is a number, the line is a rating and not a header."""
    first = first_line(data).decode(text_encoding(data), errors="replace")
    separator, fields = split_header(first, wanted or ())
    if wanted is None and any(parse_number(name) is not None for name in fields):
        if len(fields) not in (3, 4):
            raise InputError(
                f"{where}, line 1: a rating has the fields user, item, rating[, timestamp] (got {len(fields)} in "
                f"{shown(first)}); correct the line, or give the file a header and {_NAME_THEM}"
            )
        columns = {role: position for position, role in enumerate(ROLES[: len(fields)])}
        return _Layout(separator, csv.QUOTE_NONE, False, False, len(fields), columns)
    names = named_columns(where, fields, wanted)
    columns = {role: fields.index(name) for role, name in names.items()}
    return _Layout(separator, csv.QUOTE_MINIMAL, True, _is_movielens(names), len(fields), columns)


def _is_movielens(names: dict[str, str]) -> bool:
    return (names["user"], names["item"]) == HEADERS[0][:2]


def named_columns(where: str, header: Sequence[str], wanted: Sequence[str] | None) -> dict[str, str]:
    """The column of each role, by the names wanted, else by HEADERS; there the timestamp may be absent.

    Raises:
        InputError: a column is missing.
    """
    if wanted is not None:
        missing = [name for name in wanted if name not in header]
        if missing:
            raise InputError(f"{where} has no column {missing[0]!r} (it has {shown(', '.join(header))}); {_NAME_THEM}")
        return dict(zip(ROLES, wanted, strict=False))
    for names in HEADERS:
        if set(names[:3]) <= set(header):
            return {role: name for role, name in zip(ROLES, names, strict=True) if name in header}
    expected = " or ".join(",".join(names[:3]) for names in HEADERS)
    raise InputError(f"{where} must have the columns {expected} (got {shown(', '.join(header))}); {_NAME_THEM}")


def _parse(where: str, data: bytes, layout: _Layout) -> pd.DataFrame:
    """The ratings of a text file; if pandas refuses it, the error names the line."""
    roles = {position: role for role, position in layout.columns.items()}
    dtypes = {"user": "object", "item": "object", "rating": "float64", "timestamp": "int64"}
    try:
        # All columns are read, for only then does the parser refuse a line with too many fields.
        frame = read_delimited(
            data,
            layout.separator,
            header=0 if layout.has_header else None,
            names=list(range(layout.n_fields)),
            dtype={n: dtypes[roles[n]] if n in roles else "object" for n in range(layout.n_fields)},
            quoting=layout.quoting,
        )
    except (ValueError, OverflowError) as error:  # pandas' ParserError is a ValueError
        raise _first_fault(where, data, layout, error) from error
    frame = frame.rename(columns=roles)[list(layout.columns)]
    if not len(frame):
        raise InputError(f"{where} has a header and no ratings; it must hold one line for each rating")
    if (frame["user"] == "").any() or (frame["item"] == "").any() or not np.isfinite(frame["rating"].to_numpy()).all():
        raise _first_fault(where, data, layout, None)
    frame["user"], frame["item"] = ids_from_text(frame["user"]), ids_from_text(frame["item"])
    return frame


def _first_fault(where: str, data: bytes, layout: _Layout, error: Exception | None) -> InputError:
    """The error, for the caller to raise, about the first line that is not a rating."""
    try:
        for number, row in _numbered_rows(data, layout):
            fault = _fault(row, layout)
            if fault:
                return InputError(f"{where}, line {number}: {fault}; correct or remove the line")
    except csv.Error as csv_error:
        error = csv_error
    reason = reason_of(error) if error else "no single line is at fault"
    return InputError(f"{where} cannot be read as ratings ({reason}); check its quotes and separators")


def _numbered_rows(data: bytes, layout: _Layout) -> Iterator[tuple[int, list[str]]]:
    """The fields of each line after the header, with the line's number; blank lines are skipped."""
    text = io.TextIOWrapper(io.BytesIO(data), text_encoding(data), newline="")
    rows = csv.reader(text, delimiter=layout.separator, quoting=layout.quoting)
    header = layout.has_header
    for row in rows:
        if row and (len(row) > 1 or row[0].strip(" ")):
            if not header:
                yield rows.line_num, row
            header = False


def _fault(row: list[str], layout: _Layout) -> str | None:
    if len(row) != layout.n_fields:
        return f"the line must have {layout.n_fields} fields, as the first line has (got {len(row)})"
    fields = {role: row[position] for role, position in layout.columns.items()}
    empty = next((role for role in ("user", "item") if fields[role] == ""), None)
    if empty:
        return f"the {empty} id is empty"
    rating = parse_number(fields["rating"])
    if rating is None or not math.isfinite(rating):
        return f"the rating must be a finite number (got {shown(fields['rating'])})"
    if "timestamp" in fields and not _is_whole_seconds(fields["timestamp"]):
        return f"the timestamp must be whole seconds since 1970 (got {shown(fields['timestamp'])})"
    return None


def _is_whole_seconds(text: str) -> bool:
    number = parse_number(text)
    return number is not None and math.isfinite(number) and number == int(number) and abs(number) < 2**63


def _read_parquet(where: str, data: bytes, wanted: list[str] | None) -> tuple[pd.DataFrame, RatingRange | None]:
    frame = parquet_frame(where, data)
    names = named_columns(where, list(frame.columns), wanted)
    ratings = frame[list(names.values())].set_axis(list(names), axis=1)
    return ratings, (0.5, 5.0) if _is_movielens(names) else None

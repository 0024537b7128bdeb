"""Tables: from the bytes of one file to a frame of ratings, or to one sentence on what is wrong with them.

Text is `user::item::rating[::timestamp]` lines, the same between tabs, or a delimited table with a header; anything
else is parquet.  pandas' C parser reads it, and only where that stumbles are the lines looked through one by one.
Ids are read as text and become integers only where no id of the column changes its text ("007" stays).
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from mfrec.data.ids import ids_from_text
from mfrec.errors import InputError

ROLES = ("user", "item", "rating", "timestamp")
HEADERS = (("userId", "movieId", "rating", "timestamp"), ROLES, ("user_id", "item_id", "rating", "timestamp"))
_NAME_THEM = "name them with columns (--columns USER,ITEM,RATING[,TIMESTAMP])"
_INTEGER = re.compile(r"\s*[-+]?[0-9]{1,18}\s*")
Scale = tuple[float, float]


def column_names(columns: str | Sequence[str] | None) -> list[str] | None:
    """ "user,item,rating[,timestamp]", or such a sequence, as a list; None of None.

    Raises:
        InputError: these are not three or four distinct names.
    """
    if columns is None:
        return None
    names = [name.strip() for name in columns.split(",")] if isinstance(columns, str) else list(columns)
    if len(names) not in (3, 4) or len(set(names)) < len(names) or "" in names:
        raise InputError(f"columns {','.join(names)!r} are not three or four names; {_NAME_THEM}")
    return names


@dataclass(frozen=True)
class _Layout:
    """How the lines of a ratings file are to be read; columns: the position of each role among n_fields."""

    separator: str
    quoting: Literal[0, 3]
    encoding: str
    has_header: bool
    movielens_header: bool
    n_fields: int
    columns: dict[str, int]


def read_ratings(where: str, data: bytes, wanted: list[str] | None) -> tuple[pd.DataFrame, Scale | None]:
    """The ratings of a file's bytes, in columns named as in ROLES, and the scale, if any, that the format declares.

    Args:
        where: what the file is called in errors.
        wanted: the file's own names of these columns, as `column_names` gives them.

    Raises:
        InputError: the bytes are not such a table; the message names the line where one is at fault.
    """
    if data[:4] == b"PAR1":
        return _read_parquet(where, data, wanted)
    data = checked_text(where, data)
    double_colons = b"::" in first_line(data) and wanted is None
    if double_colons:
        data = data.replace(b"::", b"\t")
    layout = _layout(where, data, wanted)
    ratings = _parse(where, data, layout)
    if double_colons:  # ml-1m has whole stars and ml-10m halves
        return ratings, (0.5 if bool((ratings["rating"] % 1 != 0).any()) else 1.0, 5.0)
    if layout.movielens_header:
        return ratings, (0.5, 5.0)
    return ratings, (1.0, 5.0) if not layout.has_header and layout.separator == "\t" else None


def checked_text(where: str, data: bytes) -> bytes:
    """The bytes without a byte order mark, if they can be lines of text.

    Raises:
        InputError: there are none, or they are of a binary file.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data or data.isspace():
        raise InputError(f"{where} is empty; it should hold one line for each entry")
    if b"\0" in data or any(byte < 9 or 13 < byte < 32 for byte in data[:4096]):
        raise InputError(f"{where} is a binary file (it begins with {data[:4]!r}); give text, parquet or a zip of them")
    return data


def first_line(data: bytes) -> bytes:
    """The first line that is not empty."""
    return data[: 1 << 16].lstrip(b"\r\n").splitlines()[0]


def text_encoding(data: bytes) -> str:
    """ "utf-8", or else "latin-1", which the older MovieLens files are in and which takes any bytes."""
    try:
        if not data.isascii():
            data.decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def _layout(where: str, data: bytes, wanted: list[str] | None) -> _Layout:
    """Told from the first line: a field that is a number makes it a rating, and not a header."""
    encoding = text_encoding(data)
    first = first_line(data).decode(encoding)
    separator, fields = split_header(first, wanted or ())
    if wanted is None and any(_number(name) is not None for name in fields):
        if len(fields) not in (3, 4):
            raise InputError(
                f"{where}, line 1: {_shown(first)} has {len(fields)} fields where user, item, rating[, timestamp] are "
                f"due; give the columns a header and {_NAME_THEM}"
            )
        columns = {role: position for position, role in enumerate(ROLES[: len(fields)])}
        return _Layout(separator, csv.QUOTE_NONE, encoding, False, False, len(fields), columns)
    names = _named_columns(where, fields, wanted)
    columns = {role: fields.index(name) for role, name in names.items()}
    return _Layout(separator, csv.QUOTE_MINIMAL, encoding, True, _is_movielens(names), len(fields), columns)


def _is_movielens(names: dict[str, str]) -> bool:
    return (names["user"], names["item"]) == HEADERS[0][:2]


def split_header(line: str, wanted: Sequence[str] = ()) -> tuple[str, list[str]]:
    """The separator of a delimited table's first line, that which finds most of the wanted names, and its fields."""
    parsed = {separator: next(csv.reader([line], delimiter=separator)) for separator in ",\t;"}
    separator = max(parsed, key=lambda s: (len(set(wanted) & set(parsed[s])), len(parsed[s])))
    return separator, parsed[separator]


def _named_columns(where: str, header: Sequence[str], wanted: Sequence[str] | None) -> dict[str, str]:
    """The column of each role, by the names wanted or else by one of HEADERS; only there may the timestamp lack."""
    if wanted is not None:
        missing = [name for name in wanted if name not in header]
        if missing:
            raise InputError(f"{where} has no column {missing[0]!r}, but {_shown(', '.join(header))}; {_NAME_THEM}")
        return dict(zip(ROLES, wanted, strict=False))
    for names in HEADERS:
        if set(names[:3]) <= set(header):
            return {role: name for role, name in zip(ROLES, names, strict=True) if name in header}
    known = " or ".join(",".join(names[:3]) for names in HEADERS)
    raise InputError(f"{where} has the columns {_shown(', '.join(header))} and not {known}; {_NAME_THEM}")


def _parse(where: str, data: bytes, layout: _Layout) -> pd.DataFrame:
    """The ratings of a text file, through pandas' C parser; whatever it stumbles on is looked up line by line."""
    roles = {position: role for role, position in layout.columns.items()}
    dtypes = {"user": "object", "item": "object", "rating": "float64", "timestamp": "int64"}
    try:
        # All columns are read, for only then does the parser refuse a line of too many fields.
        frame = pd.read_csv(
            io.BytesIO(data),
            sep=layout.separator,
            header=0 if layout.has_header else None,
            names=list(range(layout.n_fields)),
            dtype={n: dtypes[roles[n]] if n in roles else "object" for n in range(layout.n_fields)},
            na_filter=False,
            quoting=layout.quoting,
            encoding=layout.encoding,
        )
    except (ValueError, OverflowError) as error:  # pandas' ParserError is a ValueError
        raise _first_fault(where, data, layout, error) from error
    frame = frame.rename(columns=roles)[list(layout.columns)]
    if not len(frame):
        raise InputError(f"{where} has a header and no ratings; it should hold a rating a line")
    missing = (frame["user"] == "").any() or (frame["item"] == "").any()
    shifted = not isinstance(frame.index, pd.RangeIndex)  # pandas takes a surplus first field for an index
    if missing or shifted or not np.isfinite(frame["rating"].to_numpy()).all():
        raise _first_fault(where, data, layout, None)
    frame["user"], frame["item"] = ids_from_text(frame["user"]), ids_from_text(frame["item"])
    return frame


def _first_fault(where: str, data: bytes, layout: _Layout, error: Exception | None) -> InputError:
    """The error for the first line that is not a rating."""
    text = io.TextIOWrapper(io.BytesIO(data), layout.encoding, newline="")
    rows = csv.reader(text, delimiter=layout.separator, quoting=layout.quoting)
    try:
        if layout.has_header:
            next(row for row in rows if row)
        for row in rows:
            fault = _fault(row, layout) if row else None
            if fault:
                return InputError(f"{where}, line {rows.line_num}: {fault}; mend or drop the line")
    except csv.Error as csv_error:
        error = csv_error
    reason = str(error).strip().splitlines()[0] if error else "no line of it is at fault alone"
    return InputError(f"{where} cannot be read as ratings ({reason}); check its quotes and separators")


def _fault(row: list[str], layout: _Layout) -> str | None:
    if len(row) != layout.n_fields:
        return f"{len(row)} fields where the first line has {layout.n_fields}"
    fields = {role: row[position] for role, position in layout.columns.items()}
    empty = next((role for role in ("user", "item") if fields[role] == ""), None)
    if empty:
        return f"the {empty} id is empty"
    rating = _number(fields["rating"])
    if rating is None or not math.isfinite(rating):
        return f"rating {_shown(fields['rating'])} is not a {'' if rating is None else 'finite '}number"
    if "timestamp" in fields and not _INTEGER.fullmatch(fields["timestamp"]):
        shown = _shown(fields["timestamp"])
        return f"timestamp {shown} is not whole seconds since 1970; convert the column or leave it out"
    return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _shown(text: str) -> str:
    """Text quoted for a message, cut where it is long."""
    return repr(text if len(text) <= 60 else text[:57] + "…")


def parquet_frame(where: str, data: bytes) -> pd.DataFrame:
    """The table of a parquet file's bytes, `where` being what the file is called in errors.

    Raises:
        InputError: pyarrow is not installed, or the bytes are not whole parquet.
    """
    try:
        return pd.read_parquet(io.BytesIO(data))
    except ImportError as error:
        raise InputError(f"{where} is parquet, which needs pyarrow; pip install pyarrow, or give a CSV") from error
    except (ValueError, OSError) as error:
        raise InputError(f"{where} is not whole parquet ({str(error).splitlines()[0]}); make it again") from error


def _read_parquet(where: str, data: bytes, wanted: list[str] | None) -> tuple[pd.DataFrame, Scale | None]:
    frame = parquet_frame(where, data)
    names = _named_columns(where, [str(name) for name in frame.columns], wanted)
    ratings = frame[list(names.values())].set_axis(list(names), axis=1)
    return ratings, (0.5, 5.0) if _is_movielens(names) else None

"""Parsing: from the bytes of one file to a frame of ratings, or to one sentence about the first faulty line.

Text is lines of `user::item::rating[::timestamp]`, the same between tabs, or a delimited table with a header; anything
else is parquet.  Arrow reads it, and only if that fails are the lines read one by one.  Ids are read as text and become
integers only if no id of the column changes by it ("007" stays text).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow

from mfrec.data.ids import ids_of_codes, text_ids
from mfrec.data.raw_tables import RatingRange
from mfrec.data.text import Lines, checked_text, first_line, parquet_frame, parse_number, shown, split_header
from mfrec.errors import InputError, OptionError

PARQUET = b"PAR1"
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
class Layout:
    """The lines of a ratings file, or some of them.

    Attributes:
        double_colons: whether `::` separates the fields; tabs replace it in the lines.
        movielens_header: whether the columns have MovieLens's names.
        columns: the position of each role among the fields.
    """

    lines: Lines
    double_colons: bool
    movielens_header: bool
    columns: dict[str, int]

    def continued(self, text: bytes, n_before: int) -> Layout:
        """The layout of lines that follow in the file, with the number of lines before them."""
        return replace(self, lines=replace(self.lines, data=text, has_header=False, n_before=n_before))

    def part(self, text: bytes) -> Layout:
        """The layout of the lines at the beginning of these."""
        return replace(self, lines=replace(self.lines, data=text))

    def text(self, text: bytes) -> bytes:
        """Text of the file with the separator that `lines` has."""
        return text.replace(b"::", b"\t") if self.double_colons else text

    def rating_range(self, ratings: pd.Series) -> RatingRange | None:
        """The rating range that the format declares, given the ratings in the file."""
        if self.double_colons:  # ml-1m has whole stars, ml-10m half stars
            return 0.5 if bool((ratings % 1 != 0).any()) else 1.0, 5.0
        if self.movielens_header:
            return 0.5, 5.0
        # A headerless table between tabs is ml-100k only if its ratings are whole stars.
        headerless = not self.lines.quoting and self.lines.separator == "\t"
        return (1.0, 5.0) if headerless and bool(ratings.isin(range(1, 6)).all()) else None


def read_ratings(where: str, data: bytes, wanted: list[str] | None) -> tuple[pd.DataFrame, RatingRange | None]:
    """The ratings in a file's bytes, in columns named as in ROLES, and the rating range that the format declares.

    Args:
        where: the file's path for messages.
        wanted: the file's names of these columns, as `column_names` returns them.

    Raises:
        InputError: the bytes are not such a table; the message names the first faulty line.
    """
    if data[:4] == PARQUET:
        return _read_parquet(where, data, wanted)
    layout = text_layout(where, checked_text(where, data), wanted)
    ratings = parsed(layout)
    if not len(ratings):
        raise no_ratings(where)
    for role in ("user", "item"):
        ratings[role] = ids_of_codes(ratings[role].cat.codes.to_numpy(), ratings[role].cat.categories.tolist())
    return ratings, layout.rating_range(ratings["rating"])


def no_ratings(where: str) -> InputError:
    """The error, for the caller to raise, about a text file without ratings."""
    return InputError(f"{where} has a header and no ratings; it must hold one line for each rating")


def text_layout(where: str, text: bytes, wanted: list[str] | None) -> Layout:
    """The layout of a file by its first line: if one of the fields is a number, the line is a rating and not a header.

    Args:
        text: the checked text of the file, or whole lines at its beginning.

    Raises:
        InputError: a column is missing, or the line has another number of fields.
    """
    first = first_line(text)
    double_colons = "::" in first and wanted is None
    if double_colons:
        text, first = text.replace(b"::", b"\t"), first.replace("::", "\t")
    separator, fields = split_header(first, wanted or ())
    if wanted is None and any(parse_number(name) is not None for name in fields):
        if len(fields) not in (3, 4):
            raise InputError(
                f"{where}, line 1: a rating has the fields user, item, rating[, timestamp] (got {len(fields)} in "
                f"{shown(first)}); correct the line, or give the file a header and {_NAME_THEM}"
            )
        columns = {role: position for position, role in enumerate(ROLES[: len(fields)])}
        lines = Lines(where, text, separator, len(fields), has_header=False, quoting=False)
        return Layout(lines, double_colons, False, columns)
    names = named_columns(where, fields, wanted)
    columns = {role: fields.index(name) for role, name in names.items()}
    lines = Lines(where, text, separator, len(fields), has_header=True, quoting=True)
    return Layout(lines, double_colons, is_movielens(names), columns)


def is_movielens(names: dict[str, str]) -> bool:
    """Whether the columns of the roles have MovieLens's names."""
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


_ID_TYPE = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
_TYPES = {"user": _ID_TYPE, "item": _ID_TYPE, "rating": pyarrow.float64(), "timestamp": pyarrow.int64()}


def parsed(layout: Layout) -> pd.DataFrame:
    """The ratings of text, as Arrow reads them; as they are read line by line if that has another result.

    Returns:
        a frame with a column for each role; ids are categorical, each category is text.

    Raises:
        InputError: a line is not a rating; the message names the first.
    """
    data = layout.lines.data
    # To Arrow, 0x10 is an integer.  The search for two letters is slow, that for one is not.
    if "timestamp" in layout.columns and any(x in data and b"0" + x in data for x in (b"x", b"X")):
        return _parsed_by_line(layout)
    try:
        table = layout.lines.table({position: _TYPES[role] for role, position in layout.columns.items()})
    except ValueError:  # pyarrow's ArrowInvalid is a ValueError
        return _parsed_by_line(layout)
    columns: dict[str, pd.Series] = {}
    for role, position in layout.columns.items():
        column = table.column(position)
        if role in ("user", "item"):
            column = column.unify_dictionaries().combine_chunks()
            columns[role] = text_ids(column.indices.to_numpy(), column.dictionary.to_pylist())
            if "" in columns[role].cat.categories:
                return _parsed_by_line(layout)
        else:
            columns[role] = column.to_pandas()
    if not np.isfinite(columns["rating"].to_numpy()).all():
        return _parsed_by_line(layout)
    return pd.DataFrame(columns, copy=False)


def _parsed_by_line(layout: Layout) -> pd.DataFrame:
    """The definition of `parsed`, in Python alone.

    Raises:
        InputError: a line is not a rating; the message names the first.
    """
    columns: dict[str, list[str | float | int]] = {role: [] for role in layout.columns}
    for number, row in layout.lines.rows():
        if len(row) != layout.lines.n_fields:
            raise layout.lines.wrong_count(number, row)
        for role, position in layout.columns.items():
            cell = _cell(role, row[position])
            if cell is None:
                raise layout.lines.fault(number, _FAULTS[role].format(shown(row[position])))
            columns[role].append(cell)
    series = {role: pd.Series(cells, dtype=_DTYPES[role]) for role, cells in columns.items()}
    for role in ("user", "item"):
        codes, texts = pd.factorize(series[role])
        series[role] = text_ids(codes, texts.tolist())
    return pd.DataFrame(series)


_DTYPES = {"user": object, "item": object, "rating": np.float64, "timestamp": np.int64}
_FAULTS = {
    "user": "the user id is empty",
    "item": "the item id is empty",
    "rating": "the rating must be a finite number (got {})",
    "timestamp": "the timestamp must be whole seconds since 1970 (got {})",
}


def _cell(role: str, text: str) -> str | float | int | None:
    """The value of a field, or None if it has none."""
    if role in ("user", "item"):
        return text or None
    number = parse_number(text)
    if number is None or not math.isfinite(number):
        return None
    if role == "rating":
        return number
    try:
        seconds = int(text)  # exact beyond 2^53
    except ValueError:
        if not number.is_integer():
            return None
        seconds = int(number)
    return seconds if -(2**63) <= seconds < 2**63 else None


def _read_parquet(where: str, data: bytes, wanted: list[str] | None) -> tuple[pd.DataFrame, RatingRange | None]:
    frame = parquet_frame(where, data)
    names = named_columns(where, list(frame.columns), wanted)
    ratings = frame[list(names.values())].set_axis(list(names), axis=1)
    return ratings, parquet_range(names)


def parquet_range(names: dict[str, str]) -> RatingRange | None:
    """The rating range of a parquet file, given the column of each role."""
    return (0.5, 5.0) if is_movielens(names) else None

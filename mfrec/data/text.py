"""Text: the bytes of a file as delimited fields, safely, with one sentence for each thing that cannot be read."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from mfrec.errors import InputError

_BLANK_LINES = re.compile(rb"(?: *[\r\n]+)*")
# Before 3.1, pandas' fast parser reads outside its table of powers for a huge exponent: it crashes, or returns another
# number.  Its round-trip parser is exact.  Later versions have one parser, which is exact, and deprecate the option.
_EXACT_FLOATS: dict[str, Any] = (
    {"float_precision": "round_trip"} if tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1) else {}
)


def checked_text(where: str, data: bytes) -> bytes:
    """The bytes without a byte order mark, if they can be lines of text.

    Raises:
        InputError: they are empty or binary.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data or data.isspace():
        raise InputError(f"{where} is empty; it must hold one line for each entry")
    if b"\0" in data or any(byte < 9 or 13 < byte < 32 for byte in data[:4096]):
        raise InputError(f"{where} is a binary file (it begins with {data[:4]!r}); give text, parquet or a zip of them")
    return data


def first_line(data: bytes) -> bytes:
    """The first line that is not blank, at most 64 KiB of it."""
    blank = _BLANK_LINES.match(data)
    begin = blank.end() if blank else 0
    return data[begin : begin + (1 << 16)].splitlines()[0]


def text_encoding(data: bytes) -> Literal["utf-8", "latin-1"]:
    """ "utf-8", or else "latin-1", the encoding of the older MovieLens files, which accepts any bytes."""
    try:
        if not data.isascii():
            data.decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def split_header(line: str, wanted: Sequence[str] = ()) -> tuple[str, list[str]]:
    """The separator and the fields of a delimited table's first line.

    Of comma, tab and semicolon, the separator is the one that yields most of the wanted names, then most fields.
    """
    fields = {separator: next(csv.reader([line], delimiter=separator), [""]) for separator in ",\t;"}
    separator = max(fields, key=lambda s: (len(set(wanted) & set(fields[s])), len(fields[s])))
    return separator, fields[separator]


def parse_number(text: str) -> float | None:
    """The number that text holds, as CSV files write numbers, or None."""
    if "_" in text or not text.isascii():  # `float` accepts 1_000 and the digits of all scripts
        return None
    try:
        return float(text)
    except ValueError:
        return None


def shown(text: str) -> str:
    """Text in quotes for a message, cut if it is long."""
    return repr(text if len(text) <= 60 else text[:57] + "…")


def reason_of(error: Exception) -> str:
    """The first line of an error's message, or the name of its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def read_delimited(data: bytes, separator: str, **options: Any) -> pd.DataFrame:
    """The frame that `pandas.read_csv` makes of text, without a crash or a warning for any bytes.

    Args:
        options: further arguments of `pandas.read_csv`.

    Raises:
        ValueError: the text is not such a table, or its rows have more fields than its header.
        OverflowError: an integer has more than 64 bits.
    """
    with np.errstate(all="ignore"):  # pandas casts an infinite timestamp before it refuses it
        frame: pd.DataFrame = pd.read_csv(
            io.BytesIO(data), sep=separator, na_filter=False, encoding=text_encoding(data), **_EXACT_FLOATS, **options
        )
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes a surplus first field for an index
        raise ValueError("lines have more fields than the first line")
    return frame


def text_table(where: str, data: bytes, separator: str, header: bool) -> pd.DataFrame:
    """A table of strings; without a header, its columns are numbered from 0 and quotes are characters.

    Raises:
        InputError: the bytes are not such a table.
    """
    data = checked_text(where, data)
    quoting = csv.QUOTE_MINIMAL if header else csv.QUOTE_NONE
    try:
        return read_delimited(data, separator, header=0 if header else None, dtype="object", quoting=quoting)
    except ValueError as error:
        raise InputError(f"{where} cannot be read ({reason_of(error)}); correct or remove it") from error


def parquet_frame(where: str, data: bytes) -> pd.DataFrame:
    """The table in a parquet file's bytes; the names of its columns are text.

    Raises:
        InputError: pyarrow is not installed, or the bytes are not a complete parquet file.
    """
    try:
        frame = pd.read_parquet(io.BytesIO(data))
    except ImportError as error:
        raise InputError(f"{where} is parquet, which needs pyarrow; pip install pyarrow, or give a CSV") from error
    except Exception as error:  # of damaged bytes, pyarrow raises ValueError, OSError and others
        raise InputError(f"{where} is a damaged parquet file ({reason_of(error)}); make it again") from error
    return frame.set_axis(frame.columns.astype(str), axis=1)

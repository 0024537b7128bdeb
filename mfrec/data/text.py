"""Text: the bytes of a file as lines of delimited fields, with one sentence for each thing that cannot be read.

Arrow reads lines of fields into columns.  If it refuses them, `Lines.rows` reads them one by one: that defines what the
lines hold, and names the faulty one.
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.csv

from mfrec.errors import InputError

_BLANK_LINES = re.compile(rb"(?: *[\r\n]+)*")
_LINE_END = re.compile(rb"\r\n?|\n")
# Bytes that Arrow reads at a time, in parallel; with fewer, it spends more time on uniting the blocks' distinct ids.
_BLOCK_SIZE = 2**22
# Each field of the line that follows the last one where quotes are used.
_END = "0"
_OPEN_QUOTE = "a quote is open at the end of the file"


class NotUTF8(Exception):
    """Some bytes of a file are not UTF-8."""


def checked_text(where: str, data: bytes) -> bytes:
    """The bytes in UTF-8 without a byte order mark, if they can be lines of text.

    Bytes that are not UTF-8 are taken for Latin-1, the encoding of the older MovieLens files.

    Raises:
        InputError: they are empty or binary.
    """
    data = _text_begin(where, data)
    _refuse_binary(where, data, data[:4])
    try:
        return _in_utf8(data, is_latin1=False)
    except NotUTF8:
        return _in_utf8(data, is_latin1=True)


def checked_blocks(where: str, blocks: Iterable[bytes], *, is_latin1: bool) -> Iterator[bytes]:
    """The checked text of a file in blocks of whole lines, from blocks that are cut anywhere.

    Args:
        is_latin1: whether the file is Latin-1 and not UTF-8.

    Raises:
        InputError: the file is empty or binary.
        NotUTF8: it is not UTF-8; `checked_text` takes all of such a file for Latin-1.
    """
    waiting, begin = b"", b""
    for block in blocks:
        waiting += block
        end = _end_of_lines(waiting)
        if not end or (not begin and waiting.isspace()):
            continue
        text, waiting = waiting[:end], waiting[end:]
        if not begin:
            text = _text_begin(where, text)
            begin = text[:4]
        _refuse_binary(where, text, begin)
        yield _in_utf8(text, is_latin1)
    if waiting or not begin:
        text = waiting if begin else _text_begin(where, waiting)
        _refuse_binary(where, text, begin or text[:4])
        yield _in_utf8(text, is_latin1)


def _text_begin(where: str, data: bytes) -> bytes:
    """The beginning of a file without a byte order mark."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data or data.isspace():
        raise InputError(f"{where} is empty; it must hold one line for each entry")
    if any(byte < 9 or 13 < byte < 32 for byte in data[:4096]):
        raise _binary(where, data[:4])
    return data


def _refuse_binary(where: str, data: bytes, begin: bytes) -> None:
    if b"\0" in data:
        raise _binary(where, begin)


def _binary(where: str, begin: bytes) -> InputError:
    return InputError(f"{where} is a binary file (it begins with {begin!r}); give text, parquet or a zip of them")


def _in_utf8(data: bytes, is_latin1: bool) -> bytes:
    if data.isascii():
        return data
    if is_latin1:
        return data.decode("latin-1").encode()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotUTF8 from error
    return data


def _end_of_lines(data: bytes) -> int:
    """Where the last line of a block ends; a return at its very end may be half of a line end."""
    return data.rfind(b"\n") + 1 or data.rfind(b"\r", 0, -1) + 1


def first_line(data: bytes) -> str:
    """The first line that is not blank, at most 64 KiB of it."""
    begin = _first(data)
    return data[begin : begin + (1 << 16)].splitlines()[0].decode(errors="replace")


def _first(data: bytes) -> int:
    blank = _BLANK_LINES.match(data)
    return blank.end() if blank else 0


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


@dataclass(frozen=True)
class Lines:
    """Lines of fields between separators.  Blank lines are skipped; a line ends with a line feed, a return or both.

    Attributes:
        where: the file's path for messages.
        data: UTF-8, as `checked_text` returns it.
        n_fields: the number of fields on each line.
        has_header: whether the first line is a header, which is skipped.
        quoting: whether a field may be between quotes, and then hold separators and line ends; "" is a quote there.
        n_before: the number of lines before these in the file.
    """

    where: str
    data: bytes
    separator: str
    n_fields: int
    has_header: bool
    quoting: bool
    n_before: int = 0

    @property
    def n_lines(self) -> int:
        """The number of lines, blank ones and the header included."""
        return self.data.count(b"\n") + self.data.count(b"\r") - self.data.count(b"\r\n")

    def end_of_rows(self) -> int:
        """Where the last line ends after which no quote is open, in lines that end with a line end."""
        quotes = np.array([], dtype=np.int64)
        if self.quoting:
            quotes = np.flatnonzero(np.frombuffer(self.data, np.uint8, offset=self._begin) == ord('"')) + self._begin
        if not len(quotes):
            return len(self.data)
        # A quote opens a field or follows a quote, and closes a field or is followed by one; else read by line.
        edges = np.frombuffer(f'{self.separator}\r\n"'.encode(), np.uint8)
        padded = np.frombuffer(b"\n" + self.data + b"\n", np.uint8)
        before, after = padded[quotes[::2]], padded[quotes[1::2] + 2]
        if not (np.isin(before, edges).all() and np.isin(after, edges).all()):
            return self._end_of_rows_by_line()
        if len(quotes) % 2 == 0:
            return len(self.data)
        for opener, last in zip(quotes[::-2].tolist(), [*(quotes[-2::-2] + 1).tolist(), self._begin], strict=True):
            if end := _end_of_lines(self.data[last : opener + 1]):
                return int(last + end)
        return self._begin

    def _end_of_rows_by_line(self) -> int:
        """The definition of `end_of_rows`; all of the lines if they cannot be split into fields."""
        text = self.data[self._begin :].decode("latin-1")  # one character for each byte
        consumed = [0]

        def lines() -> Iterator[str]:
            for line in io.StringIO(text, newline=""):
                consumed.append(consumed[-1] + len(line))
                yield line
            yield _END

        try:
            rows = [(row == [_END], consumed[-1]) for row in csv.reader(lines(), delimiter=self.separator)]
        except csv.Error:
            return len(self.data)
        is_end, end = rows[-1]
        return self._begin + (end if is_end else rows[-2][1] if len(rows) > 1 else 0)

    def table(self, types: Mapping[int, pyarrow.DataType]) -> pyarrow.Table:
        """The columns as Arrow reads them, named by their positions "0", "1", ….

        Arrow accepts more numbers than `rows` and `parse_number`: hexadecimal integers.

        Args:
            types: the type of each column by its position; by default text.

        Raises:
            ValueError: Arrow refuses the lines.
        """
        if self.n_fields == 1:
            raise ValueError("Arrow takes a blank line for a field")
        body, has_end = self._body
        names = [str(position) for position in range(self.n_fields)]
        table = pyarrow.csv.read_csv(
            pyarrow.BufferReader(body),
            pyarrow.csv.ReadOptions(column_names=names, block_size=_BLOCK_SIZE),
            pyarrow.csv.ParseOptions(
                delimiter=self.separator,
                quote_char='"' if self.quoting else False,
                newlines_in_values=has_end,
                invalid_row_handler=lambda row: "skip" if row.text is not None and _is_blank([row.text]) else "error",
            ),
            pyarrow.csv.ConvertOptions(
                column_types={name: types.get(position, pyarrow.string()) for position, name in enumerate(names)},
                null_values=[],
            ),
        )
        if has_end:
            table, end = table.slice(0, len(table) - 1), table.slice(len(table) - 1)
            if any(cell not in (_END, int(_END)) for row in end.to_pylist() for cell in row.values()):
                raise ValueError(_OPEN_QUOTE)
        return table

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Each line's number and its fields, of any count; this defines what the lines hold.

        Raises:
            InputError: a field is too long, or a quote is open at the end.
        """
        body, has_end = self._body
        text = io.TextIOWrapper(io.BytesIO(body), "utf-8", newline="")
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if self.quoting else csv.QUOTE_NONE
        reader = csv.reader(text, delimiter=self.separator, quoting=quoting)
        n_before = self.n_before + len(_LINE_END.findall(self.data, 0, self._begin))
        number, waiting = n_before + 1, (0, [""])  # a row waits for the next, as the last may be that of _END
        try:
            for row in reader:
                if not _is_blank(waiting[1]):
                    yield waiting
                number, waiting = n_before + reader.line_num + 1, (number, row)
        except csv.Error as error:
            raise self.fault(number, f"it cannot be split into fields ({error})") from error
        if has_end and waiting[1] == [_END] * self.n_fields:
            return
        if not _is_blank(waiting[1]):
            yield waiting
        if has_end:
            raise self.fault(waiting[0], _OPEN_QUOTE)

    def frame(self, names: Sequence[str | int]) -> pd.DataFrame:
        """All columns as text, by these names; fields that a line lacks are empty.

        Raises:
            InputError: a line has too many fields, a field is too long, or a quote is open at the end.
        """
        try:
            table = self.table({})
            columns = [table.column(position).to_pylist() for position in range(self.n_fields)]
        except ValueError:  # pyarrow's ArrowInvalid is a ValueError
            columns = [[] for _ in range(self.n_fields)]
            for number, row in self.rows():
                if len(row) > self.n_fields:
                    raise self.wrong_count(number, row) from None
                for position, column in enumerate(columns):
                    column.append(row[position] if position < len(row) else "")
        return pd.DataFrame(dict(enumerate(columns)), dtype=object).set_axis(pd.Index(names), axis=1)

    def fault(self, number: int, fault: str) -> InputError:
        """The error, for the caller to raise, about a line."""
        return InputError(f"{self.where}, line {number}: {fault}; correct or remove the line")

    def wrong_count(self, number: int, row: list[str]) -> InputError:
        """The error, for the caller to raise, about a line with another number of fields."""
        return self.fault(number, f"the line must have {self.n_fields} fields, as the first line has (got {len(row)})")

    @cached_property
    def _begin(self) -> int:
        """Where the first line after the header begins."""
        if not self.has_header:
            return 0
        end = _LINE_END.search(self.data, _first(self.data))
        return end.end() if end else len(self.data)

    @cached_property
    def _body(self) -> tuple[bytes | memoryview, bool]:
        """The lines after the header, and whether a line of _END follows, which shows that no quote is open."""
        if not self.quoting or self.data.find(b'"', self._begin) < 0:
            return memoryview(self.data)[self._begin :], False
        end = self.separator.join([_END] * self.n_fields)
        return b"".join([memoryview(self.data)[self._begin :], b"\n", end.encode()]), True


def _is_blank(row: list[str]) -> bool:
    return not row or (len(row) == 1 and not row[0].strip(" \t"))


def text_table(where: str, data: bytes, separator: str, header: bool) -> pd.DataFrame:
    """A table of strings; without a header, its columns are numbered from 0 and quotes are characters.

    Raises:
        InputError: the bytes are not such a table.
    """
    data = checked_text(where, data)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if header else csv.QUOTE_NONE
    fields = next(csv.reader([first_line(data)], delimiter=separator, quoting=quoting))
    if len(set(fields)) < len(fields) and header:
        raise InputError(f"{where} must have distinct columns (got {shown(', '.join(fields))}); rename one")
    return Lines(where, data, separator, len(fields), header, header).frame(fields if header else range(len(fields)))


def parquet_frame(where: str, data: bytes) -> pd.DataFrame:
    """The table in a parquet file's bytes; the names of its columns are text.

    Raises:
        InputError: the bytes are not a complete parquet file.
    """
    with damaged_parquet(where):
        frame = pd.read_parquet(io.BytesIO(data))
    return frame.set_axis(frame.columns.astype(str), axis=1)


@contextlib.contextmanager
def damaged_parquet(where: str) -> Iterator[None]:
    """Reading that fails only if a parquet file is damaged.

    Raises:
        InputError: it fails.
    """
    try:
        yield
    except Exception as error:  # of damaged bytes, pyarrow raises ValueError, OSError and others
        raise InputError(f"{where} is a damaged parquet file ({reason_of(error)}); make it again") from error

"""Readers: from a path to raw tables of ratings, users and items.

A path is a folder, a file or a zip; the readers in `READERS` are asked in turn if they recognize its files:

    ml-100k          u.data: user⇥item⇥rating⇥timestamp, with u.user, u.item, u.genre and the official splits' .test
    movielens-dat    ratings.dat: user::item::rating[::timestamp] (ml-1m, ml-10m), with users.dat and movies.dat
    movielens-csv    ratings.csv: userId,movieId,rating,timestamp (ml-latest, ml-20m and later), with movies.csv
    table            one table with any name: CSV, TSV, parquet or a ratings file of the formats above

A file given by its own path is read without the files around it; its first line decides the format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mfrec.data.archives import Source, source_at
from mfrec.data.movielens import read_ml_100k, read_with_tables
from mfrec.data.parsing import column_names
from mfrec.data.raw_tables import RawTables
from mfrec.errors import InputError

_TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Reader:
    """A format of ratings.  A plugin adds its own by a row in `READERS`.

    Attributes:
        needs: the files that a folder of this format has, for messages.
        recognizes: whether the files of a source are in this format.
        read: the raw tables of such a source.  Its second argument is the option `columns` as a list, or None.
        ratings: the name of the file with the ratings, if `read` does the same as `movielens.read_with_tables`; then
            large files are read in batches.

    Examples:
        >>> import io
        >>> import pandas as pd
        >>> def read_json(source, columns):
        ...     return RawTables(pd.read_json(io.BytesIO(source.read("ratings.json"))))
        >>> json_reader = Reader("ratings.json", lambda source: "ratings.json" in source.members, read_json)
        >>> # In a plugin: READERS["my-json"] = json_reader
    """

    needs: str
    recognizes: Callable[[Source], bool]
    read: Callable[[Source, list[str] | None], RawTables]
    ratings: Callable[[Source], str | None] = lambda source: None


def _table_in(source: Source) -> str | None:
    """The name of the only table of a source, or None."""
    tables = [name for name in source.members if name.lower().endswith(_TABLE_SUFFIXES) and "/" not in name]
    return source.only_file or (tables[0] if len(tables) == 1 else None)


def _with_tables(needs: str, ratings: Callable[[Source], str | None]) -> Reader:
    """The reader of ratings in one file, by its name in a source or None, with the source's tables."""

    def read(source: Source, columns: list[str] | None) -> RawTables:
        name = ratings(source)
        assert name is not None, "read is called only if recognizes"
        return read_with_tables(source, name, columns)

    return Reader(needs, lambda source: ratings(source) is not None, read, ratings)


def _among_others(name: str) -> Callable[[Source], str | None]:
    """Names the file of folders and zips that hold a file of this name among others."""
    return lambda source: name if source.only_file is None and name in source.members else None


# The last row that recognizes a source reads it, so that a plugin's row goes before these and a special format before
# a general one.
READERS: dict[str, Reader] = {
    "table": _with_tables(f"a single {', '.join(_TABLE_SUFFIXES)} table", _table_in),
    "movielens-csv": _with_tables("ratings.csv", _among_others("ratings.csv")),
    "movielens-dat": _with_tables("ratings.dat", _among_others("ratings.dat")),
    "ml-100k": Reader("u.data", lambda source: _among_others("u.data")(source) is not None, read_ml_100k),
}


def read_raw_tables(path: str | Path, columns: str | Sequence[str] | None = None) -> RawTables:
    """The tables of a folder, file or zip.

    Args:
        path: a folder, file or zip in one of the formats of `READERS`.
        columns: the header's names of user, item, rating and, if wanted, timestamp: "user,item,rating" or a sequence.

    Raises:
        InputError: no reader recognizes the files, or one is damaged.
    """
    names = column_names(columns)
    source, reader = recognized(Path(path))
    return reader.read(source, names)


def recognized(path: Path) -> tuple[Source, Reader]:
    """The files at a path, and the reader that recognizes them.

    Raises:
        InputError: there is none.
    """
    source = source_at(path)
    for reader in reversed(READERS.values()):
        if reader.recognizes(source):
            return source, reader
    first = ", ".join(islice(source.members, 4)) + (", …" if len(source.members) > 4 else "")
    needs = ", ".join(reader.needs for reader in reversed(READERS.values()))
    raise InputError(
        f"{path} must hold ratings as {needs} (got {first or 'no files'}); give the path of the ratings file itself"
    )

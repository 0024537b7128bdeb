"""Readers: from a path to raw tables of ratings, users and items.

A path is a folder, a file or a zip (read member by member, never extracted).  What it holds tells the format:

    u.data         user⇥item⇥rating⇥timestamp (ml-100k), with u.user, u.item, u.genre and the official splits' .test
    ratings.dat    user::item::rating[::timestamp] (ml-1m, ml-10m), with users.dat and movies.dat
    ratings.csv    userId,movieId,rating,timestamp (ml-latest, ml-20m and later), with movies.csv
    one table      CSV, TSV or parquet of any name, its columns named by `columns` or as in HEADERS

A file given by its own path is read alone, and its first line tells its format whatever its name.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from mfrec.data.archives import Members, members_of
from mfrec.data.ids import Id, is_plain_integer
from mfrec.data.parsing import Scale, checked_text, column_names, read_ratings, text_encoding
from mfrec.errors import InputError

OFFICIAL_SPLITS = ("u1", "u2", "u3", "u4", "u5", "ua", "ub")
_RATINGS_FILES = ("u.data", "ratings.dat", "ratings.csv")
_TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
_USER_COLUMNS = {
    "u.user": ("user", "age", "gender", "occupation", "zip_code"),
    "users.dat": ("user", "gender", "age", "occupation", "zip_code"),
}
_AGES = {str(age): age for age in range(150)}
# By their codes in users.dat, as the README of ml-1m names them.
_OCCUPATIONS = {
    "0": "other",
    "1": "academic/educator",
    "2": "artist",
    "3": "clerical/admin",
    "4": "college/grad student",
    "5": "customer service",
    "6": "doctor/health care",
    "7": "executive/managerial",
    "8": "farmer",
    "9": "homemaker",
    "10": "K-12 student",
    "11": "lawyer",
    "12": "programmer",
    "13": "retired",
    "14": "sales/marketing",
    "15": "scientist",
    "16": "self-employed",
    "17": "technician/engineer",
    "18": "tradesman/craftsman",
    "19": "unemployed",
    "20": "writer",
}
_Value = TypeVar("_Value")


@dataclass(frozen=True, eq=False)
class RawTables:
    """What a path holds, before ids become indices.

    ratings: user, item, rating and, where known, timestamp; one row a line of the file, in its order.
    users: user (id), age (nullable Int64; in ml-1m that at which an age bracket begins), gender, occupation, zip_code
        (str or None); None without such a table.
    items: item (id), title, year (nullable Int64) and, where known, genres (tuple of str); None without such a table.
    scale: lowest and highest rating, where the format declares them.
    official_splits: for each, a mask over the rows of `ratings`, True for the test part.
    """

    ratings: pd.DataFrame
    users: pd.DataFrame | None = None
    items: pd.DataFrame | None = None
    scale: Scale | None = None
    official_splits: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)


def read(path: str | Path, columns: str | Sequence[str] | None = None) -> RawTables:
    """The tables of a folder, file or zip.

    Args:
        path: see the module's docstring for what it may hold.
        columns: the header's names of user, item, rating and, if wanted, timestamp: "user,item,rating" or a sequence.

    Raises:
        InputError: there is nothing to read there, or something in it is not what its format says.
    """
    path = Path(path)
    members = members_of(path)
    name = _ratings_member(path, members)
    where = str(path / name) if len(members) > 1 or path.is_dir() else str(path)
    ratings, scale = read_ratings(where, members[name](), column_names(columns))
    users = _read_users(path, members, _holds_integers(ratings["user"]))
    items = _read_items(path, members, _holds_integers(ratings["item"]))
    splits = _read_official_splits(path, members, ratings) if name == "u.data" else {}
    return RawTables(ratings, users, items, scale, splits)


def _ratings_member(path: Path, members: Members) -> str:
    if len(members) == 1 and not path.is_dir():
        return next(iter(members))
    named = next((name for name in _RATINGS_FILES if name in members), None)
    tables = [name for name in members if name.lower().endswith(_TABLE_SUFFIXES) and "/" not in name]
    if named is None and len(tables) != 1:
        held = ", ".join(islice(members, 4)) + (", …" if len(members) > 4 else "") if members else "no files"
        raise InputError(
            f"{path} holds {held} and not {', '.join(_RATINGS_FILES)} or a single {', '.join(_TABLE_SUFFIXES)} table; "
            "give the path of the ratings file itself"
        )
    return named or tables[0]


def _holds_integers(ids: pd.Series) -> bool:
    return pd.api.types.is_integer_dtype(ids.cat.categories if isinstance(ids.dtype, pd.CategoricalDtype) else ids)


def _ids(texts: Iterable[str], integers: bool) -> list[Id]:
    return [int(text) if integers and is_plain_integer(text) else text for text in texts]


def _read_users(path: Path, members: Members, integers: bool) -> pd.DataFrame | None:
    """The user table that lies beside the ratings; its ids are integers where those of the ratings are."""
    name = next((name for name in _USER_COLUMNS if name in members), None)
    if name is None:
        return None
    where, columns, data = path / name, _USER_COLUMNS[name], members[name]()
    if name == "users.dat":
        table = _text_table(where, data.replace(b"::", b"\t"), "\t", header=False)
    else:
        table = _text_table(where, data, "|", header=False)
    if len(table.columns) != len(columns):
        due = ", ".join(columns)
        raise InputError(f"{where} has {len(table.columns)} fields a line where {due} are due; restore or remove it")
    table.columns = pd.Index(columns)
    users = pd.DataFrame({"user": _ids(table["user"], integers)})
    for column in columns[1:]:
        users[column] = pd.Series([text or None for text in table[column]], dtype=object)
    users["age"] = pd.Series(_looked_up(where, table, "age", _AGES), dtype="Int64")
    if name == "users.dat":
        users["occupation"] = pd.Series(_looked_up(where, table, "occupation", _OCCUPATIONS), dtype=object)
    return users


def _looked_up(where: Path, table: pd.DataFrame, column: str, known: Mapping[str, _Value]) -> list[_Value | None]:
    """What each text of a column stands for, None for an empty one."""
    for user, text in zip(table["user"], table[column], strict=True):
        if text and text not in known:
            due = f"a whole number from 0 to {len(known) - 1}"
            raise InputError(f"{where}: {column} {text[:60]!r} of user {user} is not {due}; mend or drop the line")
    return [known.get(text) for text in table[column]]


def _read_items(path: Path, members: Members, integers: bool) -> pd.DataFrame | None:
    """The item table that lies beside the ratings; its ids are integers where those of the ratings are."""
    name = next((name for name in ("u.item", "movies.dat", "movies.csv") if name in members), None)
    if name is None:
        return None
    data = members[name]()
    if name == "u.item":
        table = _read_u_item(path, data, members)
    elif name == "movies.dat":
        table = _text_table(path / name, data.replace(b"::", b"\t"), "\t", header=False)
        table = table.rename(columns={0: "item", 1: "title", 2: "genres"})
    else:
        table = _text_table(path / name, data, ",", header=True).rename(columns={"movieId": "item"})
    if not {"item", "title"} <= set(table.columns):
        raise InputError(f"{path / name} has no columns of movie ids and titles; restore or remove it")
    items = pd.DataFrame({"item": _ids(table["item"], integers)})
    items["title"] = pd.Series([title.strip() for title in table["title"]], dtype=object)
    items["year"] = title_years(items["title"])
    if "genres" in table.columns:
        items["genres"] = pd.Series([split_genres(text) for text in table["genres"]], dtype=object)
    return items


def _read_u_item(path: Path, data: bytes, members: Members) -> pd.DataFrame:
    """id|title|three columns|a 0/1 flag for each genre of u.genre; without u.genre the flags mean nothing."""
    table = _text_table(path / "u.item", data, "|", header=False)
    items = table.rename(columns={0: "item", 1: "title"})
    if "u.genre" in members:
        names = _text_table(path / "u.genre", members["u.genre"](), "|", header=False)[0].tolist()
        flags = table.iloc[:, 5:].to_numpy() == "1"
        if len(names) != flags.shape[1]:
            raise InputError(
                f"{path}: u.genre names {len(names)} genres but u.item flags {flags.shape[1]}; restore them"
            )
        items["genres"] = ["|".join(name for name, flag in zip(names, row, strict=True) if flag) for row in flags]
    return items


def _text_table(where: Path, data: bytes, separator: str, header: bool) -> pd.DataFrame:
    """A table of strings."""
    data = checked_text(str(where), data)
    try:
        return pd.read_csv(
            io.BytesIO(data),
            sep=separator,
            header=0 if header else None,
            dtype="object",
            na_filter=False,
            quoting=csv.QUOTE_MINIMAL if header else csv.QUOTE_NONE,
            encoding=text_encoding(data),
            index_col=False,
        )
    except ValueError as error:
        raise InputError(f"{where} cannot be read ({str(error).strip().splitlines()[0]}); mend or remove it") from error


def split_genres(text: str) -> tuple[str, ...]:
    """("Action", "Comedy") of "Action|Comedy", () of "(no genres listed)" and of nothing."""
    return () if text in ("", "(no genres listed)") else tuple(text.split("|"))


def title_years(titles: pd.Series) -> pd.Series:
    """1995 of "Toy Story (1995)", nullable Int64; missing where a title does not end so."""
    years = titles.astype("object").str.extract(r"\(([0-9]{4})\)\s*$", expand=False)
    return pd.to_numeric(years).astype("Int64")


def _read_official_splits(path: Path, members: Members, ratings: pd.DataFrame) -> dict[str, npt.NDArray[np.bool_]]:
    """The test part of each official split, found by its (user, item) pairs."""
    n_items = len(ratings["item"].cat.categories)
    rated = ratings["user"].cat.codes.to_numpy(np.int64) * n_items + ratings["item"].cat.codes.to_numpy(np.int64)
    splits = {}
    for name in OFFICIAL_SPLITS:
        if f"{name}.test" not in members:
            continue
        where = f"{path / name}.test"
        test, _ = read_ratings(where, members[f"{name}.test"](), None)
        users, items = (_codes_among(test[role], ratings[role].cat.categories) for role in ("user", "item"))
        pairs = np.where((users < 0) | (items < 0), -1, users * n_items + items)
        absent = int((~np.isin(pairs, rated)).sum())
        if absent:
            raise InputError(f"{where} has {absent:,} ratings that u.data lacks; restore u.data or remove {name}.test")
        splits[name] = np.isin(rated, pairs)
    return splits


def _codes_among(ids: pd.Series, categories: pd.Index) -> npt.NDArray[np.int64]:
    """The position of each id among other categories, -1 where it is not there."""
    return categories.get_indexer(ids.cat.categories).astype(np.int64)[ids.cat.codes]

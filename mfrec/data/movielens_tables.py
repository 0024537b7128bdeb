"""The user and item tables of MovieLens data sets, in each of their formats.

users    u.user (ml-100k), users.dat (ml-1m)
items    u.item with u.genre (ml-100k), movies.dat (ml-1m, ml-10m), movies.csv (ml-latest, ml-20m and later)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import pandas as pd

from mfrec.data.archives import Source
from mfrec.data.ids import ids_like
from mfrec.data.text import text_table
from mfrec.data.titles import split_genres, title_years
from mfrec.errors import InputError

_USER_COLUMNS = {
    "u.user": ("user", "age", "gender", "occupation", "zip_code"),
    "users.dat": ("user", "gender", "age", "occupation", "zip_code"),
}
_AGES = {str(age): age for age in range(150)}
# By their codes in users.dat, from the README of ml-1m.
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


def read_users(source: Source, integers: bool) -> pd.DataFrame | None:
    """The user table of a source, or None.

    Columns: user, age (nullable Int64; in users.dat the lower end of an age bracket), gender, occupation and zip_code
    (str or None).

    Args:
        integers: whether the ratings' user ids are integers; then those of the table are integers too.

    Raises:
        InputError: the table is damaged.
    """
    name = source.first_of(*_USER_COLUMNS)
    if name is None:
        return None
    where, columns, data = source.where(name), _USER_COLUMNS[name], source.read(name)
    if name == "users.dat":
        table = text_table(where, data.replace(b"::", b"\t"), "\t", header=False)
    else:
        table = text_table(where, data, "|", header=False)
    if len(table.columns) != len(columns):
        expected = ", ".join(columns)
        raise InputError(
            f"{where} must have the fields {expected} on each line (got {len(table.columns)} fields); "
            "restore or remove it"
        )
    table.columns = pd.Index(columns)
    users = pd.DataFrame({"user": ids_like(table["user"], integers)})
    for column in columns[1:]:
        users[column] = pd.Series([text or None for text in table[column]], dtype=object)
    users["age"] = pd.Series(_decoded(where, table, "age", _AGES), dtype="Int64")
    if name == "users.dat":
        users["occupation"] = pd.Series(_decoded(where, table, "occupation", _OCCUPATIONS), dtype=object)
    return users


def _decoded(where: str, table: pd.DataFrame, column: str, values: Mapping[str, _Value]) -> list[_Value | None]:
    """The value of each code in a column, None for empty text."""
    for user, text in zip(table["user"], table[column], strict=True):
        if text and text not in values:
            raise InputError(
                f"{where}: {column} must be a whole number from 0 to {len(values) - 1} (got {text[:60]!r} of user "
                f"{user}); correct or remove the line"
            )
    return [values.get(text) for text in table[column]]


def read_items(source: Source, integers: bool) -> pd.DataFrame | None:
    """The item table of a source, or None.

    Columns: item, title, year (nullable Int64) and, if available, genres (tuple of str).

    Args:
        integers: whether the ratings' item ids are integers; then those of the table are integers too.

    Raises:
        InputError: the table is damaged.
    """
    name = source.first_of("u.item", "movies.dat", "movies.csv")
    if name is None:
        return None
    where, data = source.where(name), source.read(name)
    if name == "u.item":
        table = _read_u_item(source, data)
    elif name == "movies.dat":
        table = text_table(where, data.replace(b"::", b"\t"), "\t", header=False)
        table = table.rename(columns={0: "item", 1: "title", 2: "genres"})
    else:
        table = text_table(where, data, ",", header=True).rename(columns={"movieId": "item"})
    if not {"item", "title"} <= set(table.columns):
        raise InputError(f"{where} must have columns of movie ids and titles; restore or remove it")
    items = pd.DataFrame({"item": ids_like(table["item"], integers)})
    items["title"] = pd.Series([title.strip() for title in table["title"]], dtype=object)
    items["year"] = title_years(items["title"])
    if "genres" in table.columns:
        items["genres"] = pd.Series([split_genres(text) for text in table["genres"]], dtype=object)
    return items


def _read_u_item(source: Source, data: bytes) -> pd.DataFrame:
    """id|title|three columns|a 0/1 flag for each genre of u.genre; without u.genre the flags are ignored."""
    where = source.where("u.item")
    items = text_table(where, data, "|", header=False).rename(columns={0: "item", 1: "title"})
    if "u.genre" in source.members:
        names = text_table(source.where("u.genre"), source.read("u.genre"), "|", header=False)[0].tolist()
        flags = items.iloc[:, 5:].to_numpy() == "1"
        if len(names) != flags.shape[1]:
            raise InputError(
                f"{where} must have a flag for each of the {len(names)} genres in u.genre (got {flags.shape[1]}); "
                "restore both files"
            )
        items["genres"] = ["|".join(name for name, flag in zip(names, row, strict=True) if flag) for row in flags]
    return items

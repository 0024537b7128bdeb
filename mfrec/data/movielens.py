"""The folders of MovieLens data sets: ratings with user and item tables, and the official splits of ml-100k."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pandas as pd

from mfrec.data.archives import Source
from mfrec.data.ids import has_integer_ids
from mfrec.data.movielens_tables import read_items, read_users
from mfrec.data.parsing import read_ratings
from mfrec.data.raw_tables import RawTables
from mfrec.errors import InputError

OFFICIAL_SPLITS = ("u1", "u2", "u3", "u4", "u5", "ua", "ub")


def read_with_tables(source: Source, name: str, columns: list[str] | None) -> RawTables:
    """The ratings in one member, with the source's user and item tables, if it has any.

    Args:
        columns: the names of the user, item, rating and timestamp columns, instead of those in `parsing.HEADERS`.

    Raises:
        InputError: a table is damaged.
    """
    ratings, rating_range = read_ratings(source.where(name), source.read(name), columns)
    users = read_users(source, has_integer_ids(ratings["user"]))
    items = read_items(source, has_integer_ids(ratings["item"]))
    return RawTables(ratings, users, items, rating_range)


def read_ml_100k(source: Source, columns: list[str] | None) -> RawTables:
    """u.data, with its tables and its official splits.

    Raises:
        InputError: a table or a split is damaged.
    """
    raw = read_with_tables(source, "u.data", columns)
    return dataclasses.replace(raw, official_splits=_official_splits(source, raw.ratings))


def _official_splits(source: Source, ratings: pd.DataFrame) -> dict[str, npt.NDArray[np.bool_]]:
    """The test mask of each official split, found by its (user, item) pairs."""
    n_items = len(ratings["item"].cat.categories)
    rated = ratings["user"].cat.codes.to_numpy(np.int64) * n_items + ratings["item"].cat.codes.to_numpy(np.int64)
    splits = {}
    for split in OFFICIAL_SPLITS:
        name = f"{split}.test"
        if name not in source.members:
            continue
        test, _ = read_ratings(source.where(name), source.read(name), None)
        users, items = (_codes_among(test[role], ratings[role].cat.categories) for role in ("user", "item"))
        pairs = np.where((users < 0) | (items < 0), -1, users * n_items + items)
        absent = int((~np.isin(pairs, rated)).sum())
        if absent:
            raise InputError(
                f"{source.where(name)} has {absent:,} ratings that u.data lacks; restore u.data or remove {name}"
            )
        splits[split] = np.isin(rated, pairs)
    return splits


def _codes_among(ids: pd.Series, categories: pd.Index) -> npt.NDArray[np.int64]:
    """(n_rows,) the position of each id among categories, -1 if it is absent."""
    return categories.get_indexer(ids.cat.categories).astype(np.int64)[ids.cat.codes]

"""New rows: users or items that a dataset does not have, with their ratings of its items or by its users."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from mfrec.data.dataset import Dataset
from mfrec.data.frames import checked_ratings, checked_timestamps, distinct_pairs, report_duplicates, require_columns
from mfrec.data.ids import Id, index_ids, indices_of
from mfrec.data.ratings import Ratings
from mfrec.data.tables import item_table, user_table
from mfrec.errors import InputError

# The id of a single new user whose ratings come without one.
YOU = "you"
_Indices = npt.NDArray[np.int32] | npt.NDArray[np.int64]


def new_users(
    dataset: Dataset,
    ratings: pd.DataFrame | Mapping[Id, float],
    users: pd.DataFrame | None = None,
    user: str = "user",
    item: str = "item",
    rating: str = "rating",
    timestamp: str | None = None,
) -> Dataset:
    """New users' ratings of a dataset's items, as a dataset of the new users and of all its items.

    Args:
        ratings: one row for each rating of an item by id or title, or one new user's ratings by item.  Without a column
            of users, all ratings are by one user, "you".  If an item is rated twice, the last rating counts.
        users: one row for each new user, as in `Dataset.from_frame`; users without a rating are included.
        timestamp: the name of a column of whole seconds since 1970 or of datetimes, which may be absent.

    Raises:
        InputError: a column is missing, an item is unknown (near titles are suggested), or a rating is out of range.

    Examples:
        >>> train = pd.DataFrame({"user": ["ann", "ann"], "item": ["Emma", "Jaws"], "rating": [5, 1]})
        >>> new_users(Dataset.from_frame(train), {"Jaws": 4})
        Dataset('frame', Ratings(1 of 1 users × 2 items, cpu), rating range 1–5)
    """
    frame = _frame(ratings, item, rating)
    if user not in frame.columns:
        frame = frame.assign(**{user: YOU})
        users = (pd.DataFrame(index=[0]) if users is None else users).assign(**{user: YOU})
    require_columns("ratings", frame, ids=(user, item), others=(rating,))
    columns = _looked_up(dataset.item_ids, frame[item], dataset.item_index)
    rows, ids = _with_unrated(frame[user], users, user, "user")
    tables = user_table(users, user, ids), dataset.items
    return _new_dataset(dataset, (rows, columns, frame[rating]), (ids, dataset.item_ids), tables, frame.get(timestamp))


def new_items(
    dataset: Dataset,
    ratings: pd.DataFrame,
    items: pd.DataFrame | None = None,
    user: str = "user",
    item: str = "item",
    rating: str = "rating",
    timestamp: str | None = None,
) -> Dataset:
    """New items' ratings by a dataset's users, as a dataset of all its users and of the new items.

    Args:
        ratings: one row for each rating.  If a user rated an item twice, the last rating counts.
        items: one row for each new item, as in `Dataset.from_frame`; items without a rating are included.
        timestamp: as for `new_users`.

    Raises:
        InputError: a column is missing, a user is unknown, or a rating is out of range.
    """
    frame = _frame(ratings, item, rating)
    require_columns("ratings", frame, ids=(user, item), others=(rating,))
    rows = _looked_up(dataset.user_ids, frame[user], dataset.user_index)
    columns, ids = _with_unrated(frame[item], items, item, "item")
    tables = dataset.users, item_table(items, item, ids)
    return _new_dataset(dataset, (rows, columns, frame[rating]), (dataset.user_ids, ids), tables, frame.get(timestamp))


def _frame(ratings: pd.DataFrame | Mapping[Id, float], item: str, rating: str) -> pd.DataFrame:
    if isinstance(ratings, pd.DataFrame):
        return ratings
    if not isinstance(ratings, Mapping):
        raise InputError(f"ratings must be a DataFrame or a dict from item to rating (got {type(ratings).__name__})")
    return pd.DataFrame({item: pd.Series(list(ratings), dtype=object), rating: list(ratings.values())})


def _looked_up(ids: pd.Index, typed: pd.Series, look_up: Callable[[Id], int]) -> npt.NDArray[np.int64]:
    """(n_rows,) the index of each id, and of anything else by `look_up`, which may refuse it."""
    indices = indices_of(ids, typed)
    for row in np.flatnonzero(indices < 0):
        cell = typed.iloc[row]
        indices[row] = look_up(cell if isinstance(cell, int) else str(cell))
    return indices


def _with_unrated(
    column: pd.Series, table: pd.DataFrame | None, id_column: str, kind: str
) -> tuple[_Indices, pd.Index]:
    """The index of each row's id, and the ids of both the ratings and the table."""
    further = [] if table is None or id_column not in table.columns else [table[id_column].astype(object)]
    codes, ids = index_ids(pd.concat([column.astype(object), *further], ignore_index=True), kind)
    return codes[: len(column)], ids


def _new_dataset(
    dataset: Dataset,
    ratings: tuple[_Indices, _Indices, pd.Series],
    ids: tuple[pd.Index, pd.Index],
    tables: tuple[pd.DataFrame, pd.DataFrame],
    timestamp_column: pd.Series | None,
) -> Dataset:
    """A dataset from user indices, item indices, values and times of ratings, and from the ids and tables of both."""
    *indices, column = ratings
    (users, items), shape = (each.astype(np.int32) for each in indices), (len(ids[0]), len(ids[1]))
    values = checked_ratings(column, None) if len(column) else np.empty(0)
    low, high = dataset.rating_range
    outside = values[(values < low) | (values > high)]
    if len(outside):
        raise InputError(
            f"ratings must be in {low:g} to {high:g}, the rating range of {dataset.name} (got {outside[0]:g})"
        )
    seconds = None if timestamp_column is None else checked_timestamps(timestamp_column)
    if len(column):
        kept, values, seconds, surplus = distinct_pairs(users, items, shape, values, seconds, "last")
        report_duplicates(surplus, len(users), "last")
        users, items = users[kept], items[kept]
    row_users, row_items, stars = (torch.from_numpy(array) for array in (users, items, values.astype(np.float32)))
    new = Ratings(row_users, row_items, stars, *shape, None if seconds is None else torch.tensor(seconds))
    return Dataset(dataset.name, new, *ids, *tables, dataset.rating_range)

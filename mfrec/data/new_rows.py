"""Newcomers: ratings by users, or of items, that a dataset does not have, beside those that it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from mfrec.data.dataset import Dataset
from mfrec.data.frames import checked_ratings, distinct_pairs, item_table, require_columns, user_table
from mfrec.data.ids import Id, index_ids, indices_of
from mfrec.data.ratings import Ratings
from mfrec.errors import InputError

# The id of someone who gave ratings and no id.
YOU = "you"


def new_users(
    dataset: Dataset,
    ratings: pd.DataFrame | Mapping[Id, float],
    users: pd.DataFrame | None = None,
    user: str = "user",
    item: str = "item",
    rating: str = "rating",
) -> Dataset:
    """New users' ratings of the dataset's items, as a dataset of the new users and of all its items.

    Args:
        ratings: a row a rating, of an item by id or title; or one new user's ratings by item.  Without a column of
            users they are all of one user, "you".  Of several ratings of an item the last counts.
        users: a row a new user, as `Dataset.from_frame` takes it; those without a rating come in by it.

    Raises:
        InputError: a column is missing, an item is unknown (near titles are suggested), or a rating is off the scale.

    Examples:
        >>> known = pd.DataFrame({"user": ["ann", "ann"], "item": ["Emma", "Jaws"], "rating": [5, 1]})
        >>> new_users(Dataset.from_frame(known), {"Jaws": 4})
        Dataset('frame', Ratings(1 of 1 users × 2 items, cpu), scale 1–5)
    """
    frame = _frame(ratings, item, rating)
    if user not in frame.columns:
        frame = frame.assign(**{user: YOU})
        users = (pd.DataFrame(index=[0]) if users is None else users).assign(**{user: YOU})
    require_columns("ratings", frame, ids=(user, item), others=(rating,))
    found = _looked_up(dataset.item_ids, frame[item], dataset.item_index)
    rows, ids = _with_others(frame[user], users, user, "user")
    tables = user_table(users, user, ids), dataset.items
    return _newcomers(dataset, (rows, found, frame[rating]), (ids, dataset.item_ids), tables)


def new_items(
    dataset: Dataset,
    ratings: pd.DataFrame,
    items: pd.DataFrame | None = None,
    user: str = "user",
    item: str = "item",
    rating: str = "rating",
) -> Dataset:
    """New items' ratings by the dataset's users: `new_users` the other way round.

    Args:
        items: a row a new item, as `Dataset.from_frame` takes it; those without a rating come in by it.

    Raises:
        InputError: a column is missing, a user is unknown, or a rating is off the scale.
    """
    frame = _frame(ratings, item, rating)
    require_columns("ratings", frame, ids=(user, item), others=(rating,))
    found = _looked_up(dataset.user_ids, frame[user], dataset.user_index)
    rows, ids = _with_others(frame[item], items, item, "item")
    tables = dataset.users, item_table(items, item, ids)
    return _newcomers(dataset, (found, rows, frame[rating]), (dataset.user_ids, ids), tables)


def _frame(ratings: pd.DataFrame | Mapping[Id, float], item: str, rating: str) -> pd.DataFrame:
    if isinstance(ratings, pd.DataFrame):
        return ratings
    if not isinstance(ratings, Mapping):
        raise InputError(f"ratings are a frame, or a dict by item, not a {type(ratings).__name__}")
    return pd.DataFrame({item: pd.Series(list(ratings), dtype=object), rating: list(ratings.values())})


def _looked_up(ids: pd.Index, typed: pd.Series, look_up: Callable[[Id], int]) -> npt.NDArray[np.int64]:
    """The index of each id; of what is no id what `look_up` makes of it, or its refusal."""
    found = indices_of(ids, typed)
    for at in np.flatnonzero(found < 0):
        one = typed.iloc[at]
        found[at] = look_up(one if isinstance(one, int) else str(one))
    return found


def _with_others(
    column: pd.Series, table: pd.DataFrame | None, id_column: str, kind: str
) -> tuple[npt.NDArray[np.int64], pd.Index]:
    """The index of each row's id among the ids of the ratings and of the table, and these."""
    others = [] if table is None or id_column not in table.columns else [table[id_column].astype(object)]
    codes, ids = index_ids(pd.concat([column.astype(object), *others], ignore_index=True), kind)
    return codes[: len(column)], ids


def _newcomers(
    dataset: Dataset,
    ratings: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], pd.Series],
    ids: tuple[pd.Index, pd.Index],
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> Dataset:
    """From the users, items and values of ratings, and the ids and tables of the users and of the items."""
    users, items, column = ratings
    values = checked_ratings(column, None) if len(column) else np.empty(0)
    low, high = dataset.scale
    for value in values[(values < low) | (values > high)]:
        raise InputError(f"rating {value:g} is off the scale {low:g} to {high:g}; give one on it")
    if len(column):
        kept, values, _ = distinct_pairs(users * len(ids[1]) + items, values, None, "last")
        users, items = users[kept], items[kept]
    raters, rated, stars = (torch.from_numpy(numbers) for numbers in (users, items, values.astype(np.float32)))
    found = Ratings(raters, rated, stars, len(ids[0]), len(ids[1]))
    return Dataset(dataset.name, found, *ids, *tables, dataset.scale)

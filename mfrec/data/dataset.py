"""Dataset: ratings, the ids behind their indices, and what is known of the users and items."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from mfrec.data.frames import (
    checked_ratings,
    checked_timestamps,
    distinct_pairs,
    item_table,
    plain_columns,
    table_of,
    user_table,
)
from mfrec.data.ids import Id, find_id, id_index, index_ids, indices_of
from mfrec.data.parsing import Scale
from mfrec.data.ratings import SPLITS, Ratings, k_folds
from mfrec.data.readers import OFFICIAL_SPLITS
from mfrec.errors import InputError, unknown

Duplicates = Literal["last", "first", "mean", "error"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Ratings, the ids behind their indices, and what is known of the users and items.

    The users and items are those with at least one rating, in the order of their ids.

    Attributes:
        user_ids, item_ids: position = index in the user or item table; int64, or object where ids are strings.
        users: a row a user index: age (nullable Int64), gender, occupation, zip_code (str or None), more; what is
            known.
        items: a row an item index: title (str), year (nullable Int64), genres (tuple of str), more; what is known.
        scale: lowest and highest rating, as declared or else as found.
        official_splits: masks over the ratings, True for the test part.
    """

    name: str
    ratings: Ratings
    user_ids: pd.Index
    item_ids: pd.Index
    users: pd.DataFrame
    items: pd.DataFrame
    scale: Scale
    official_splits: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_frame(
        cls,
        df: pd.DataFrame,
        user: str = "user",
        item: str = "item",
        rating: str = "rating",
        timestamp: str | None = None,
        weight: str | None = None,
        users: pd.DataFrame | None = None,
        items: pd.DataFrame | None = None,
        scale: Scale | None = None,
        duplicates: Duplicates = "last",
        name: str = "frame",
        official_splits: Mapping[str, npt.NDArray[np.bool_]] | None = None,
    ) -> Dataset:
        """From one row a rating.

        Args:
            user, item, rating: names of columns; ids are integers or strings, ratings finite numbers.
            timestamp: name of a column of whole seconds since 1970, or of datetimes; by default "timestamp" if any.
            weight: name of a column of how much each rating counts, above 0; by default each counts 1.
            users: a row a user, with its id in a column named as `user`, and any further columns.  Of those numbers
                become Int64 or Float64, tuples and lists tuples of str, and all else str; a missing value stays so.
            items: a row an item, with its id in a column named as `item`, any of title, year, genres (a tuple, a list,
                or text split at |), and any further columns, as those of users.  Without years they are read from
                titles such as "Toy Story (1995)".
            scale: lowest and highest possible rating; a rating outside is refused.
            duplicates: which of several ratings of an item by a user is kept, in the order of the rows; "mean" is of
                the ratings, at their latest timestamp and weight; "error" refuses them.
            official_splits: masks over the rows of df, True for the test part.

        Raises:
            InputError: a column is missing or holds what it may not; the message says which and where.

        Examples:
            >>> df = pd.DataFrame({"who": ["bob", "ann", "bob"], "what": ["Emma", "Emma", "Jaws"], "stars": [4, 5, 2]})
            >>> dataset = Dataset.from_frame(df, user="who", item="what", rating="stars", scale=(1, 5))
            >>> dataset
            Dataset('frame', Ratings(3 of 2 users × 2 items, cpu), scale 1–5)
            >>> dataset.user_ids.tolist(), dataset.item_ids.tolist()  # sorted, whatever the order of the rows
            (['ann', 'bob'], ['Emma', 'Jaws'])
            >>> dataset.ratings.users.tolist(), dataset.ratings.items.tolist(), dataset.ratings.values.tolist()
            ([0, 1, 1], [0, 0, 1], [5.0, 4.0, 2.0])
        """
        if timestamp is None and "timestamp" in df.columns:
            timestamp = "timestamp"
        absent = [c for c in (user, item, rating, timestamp, weight) if c is not None and c not in df.columns]
        if absent:
            raise InputError(f"the frame has no column {absent[0]!r}, but {', '.join(map(str, df.columns))}; name it")
        values = checked_ratings(df[rating], scale)
        raters, user_ids = index_ids(df[user], "user")
        rated, item_ids = index_ids(df[item], "item")
        timestamps = None if timestamp is None else checked_timestamps(df[timestamp])

        kept, values, timestamps = distinct_pairs(raters * len(item_ids) + rated, values, timestamps, duplicates)
        ratings = Ratings(
            torch.from_numpy(raters[kept]),
            torch.from_numpy(rated[kept]),
            torch.from_numpy(values.astype(np.float32)),
            len(user_ids),
            len(item_ids),
            None if timestamps is None else torch.from_numpy(timestamps),
            None if weight is None else torch.from_numpy(checked_ratings(df[weight], None, "weight")[kept]),
        )
        if scale is None:
            scale = float(ratings.values.min()), float(ratings.values.max())
        masks = {split: torch.from_numpy(mask[kept]) for split, mask in (official_splits or {}).items()}
        tables = user_table(users, user, user_ids), item_table(items, item, item_ids)
        return cls(name, ratings, user_ids, item_ids, *tables, scale, masks)

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {self.ratings!r}, scale {self.scale[0]:g}–{self.scale[1]:g})"

    def test_mask(self, split: str, fraction: float, generator: torch.Generator) -> Tensor:
        """(n_ratings,) bool, True for the part held out by an official split's name, by one of `SPLITS`, or by a fold.

        Of "fold-2-of-5" it is the second of five random parts of one size: with the same generator, parts of one whole.
        An official split and a fold have their own size, whatever the fraction.

        Args:
            fraction: the share to hold out, in [0, 1): of all ratings, each user's, or the items, as the split has it.

        Raises:
            InputError: there is no such split or fold, the fraction is out of range, or timestamps are lacking.
        """
        if split in self.official_splits:
            return self.official_splits[split]
        if split in SPLITS:
            return SPLITS[split](self.ratings, fraction, generator)
        fold = re.fullmatch(r"fold-([1-9]\d*)-of-(\d+)", split)
        if fold is not None:
            number, k = int(fold.group(1)), int(fold.group(2))
            if number > k:
                raise InputError(f"there is no fold {number} of {k}; they are counted from 1")
            return k_folds(self.ratings, k, generator) == number - 1
        known = [*self.official_splits, *SPLITS]
        if split in OFFICIAL_SPLITS:
            raise InputError(f"{self.name} has no official split {split!r}; choose from {', '.join(known)}")
        raise unknown("split", split, known)

    def title(self, index: int) -> str:
        """The title of the item at an index, or its id where titles are not known."""
        return str(self.items["title"].iat[index] if "title" in self.items else self.item_ids[index])

    def user_index(self, user_id: Id) -> int:
        """The index of a user by id, as an integer or as typed.

        Raises:
            InputError: there is no such user.
        """
        index = find_id(self.user_ids, user_id)
        if index is None:
            raise InputError(f"user id {user_id} is not in this dataset ({_examples(self.user_ids, 'users')})")
        return index

    def item_index(self, id_or_title: Id) -> int:
        """The index of an item by id, as an integer or as typed, or by its title in any case.

        Raises:
            InputError: there is none, or several items have the title; the message suggests ids or near titles.
        """
        index = find_id(self.item_ids, id_or_title)
        if index is not None:
            return index
        typed = str(id_or_title).strip().casefold()
        same = self._folded_titles.get(typed, [])
        if len(same) > 1:
            ids = ", ".join(str(self.item_ids[at]) for at in same)
            raise InputError(f"title {id_or_title!r} is of {len(same)} items; give one of their ids, {ids}")
        if same:
            return same[0]
        near = self._near_titles(typed)
        kind, hint = ("item", f"; did you mean {' or '.join(map(repr, near))}?") if near else ("item id", "")
        raise InputError(f"{kind} {id_or_title} is not in this dataset ({_examples(self.item_ids, 'items')}){hint}")

    def item_indices(self, ids_or_titles: pd.Series) -> npt.NDArray[np.int64]:
        """The index of each item of a column, by id or by a title that one item alone has, and -1 for none."""
        found = indices_of(self.item_ids, ids_or_titles)
        lost = found < 0
        if lost.any():
            own = {title: indices[0] for title, indices in self._folded_titles.items() if len(indices) == 1}
            found[lost] = [own.get(str(one).strip().casefold(), -1) for one in ids_or_titles[lost]]
        return found

    @cached_property
    def _folded_titles(self) -> dict[str, list[int]]:
        """Indices by title without regard to case."""
        indices: dict[str, list[int]] = {}
        for index, title in enumerate(self.items.get("title", ())):
            indices.setdefault(title.strip().casefold(), []).append(index)
        return indices

    def _near_titles(self, typed: str) -> list[str]:
        """At most three titles that hold what is typed, those that begin with it first, or else look like it."""
        folded = list(self._folded_titles)
        near = sorted((t for t in folded if typed in t), key=lambda t: t.find(typed)) if len(typed) > 2 else []
        near = near or difflib.get_close_matches(typed, folded, n=3)
        return [self.title(self._folded_titles[title][0]) for title in near[:3]]

    def state_dict(self) -> dict[str, Any]:
        """All but the official splits, as tensors, lists, strings, numbers and None, for `weights_only=True`."""
        return {
            "name": self.name,
            "users": self.ratings.users,
            "items": self.ratings.items,
            "values": self.ratings.values,
            "timestamps": self.ratings.timestamps,
            "weights": self.ratings.weights,
            "user_ids": self.user_ids.tolist(),
            "item_ids": self.item_ids.tolist(),
            "user_columns": plain_columns(self.users),
            "item_columns": plain_columns(self.items),
            "scale": list(self.scale),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Dataset:
        """The inverse of `state_dict`."""
        user_ids, item_ids = id_index(state["user_ids"]), id_index(state["item_ids"])
        sizes = len(user_ids), len(item_ids)
        ratings = Ratings(
            state["users"], state["items"], state["values"], *sizes, state["timestamps"], state["weights"]
        )
        users, items = table_of(state["user_columns"], sizes[0]), table_of(state["item_columns"], sizes[1])
        low, high = state["scale"]
        return cls(state["name"], ratings, user_ids, item_ids, users, items, (low, high))


def _examples(ids: pd.Index, kind: str) -> str:
    return f"{len(ids):,} {kind}, e.g. {', '.join(map(str, ids[:2]))}"

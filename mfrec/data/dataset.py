"""Dataset: ratings, the ids of their users and items, and the tables that describe them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from mfrec.data.frames import (
    checked_ratings,
    checked_timestamps,
    distinct_pairs,
    report_duplicates,
    require_columns,
    require_duplicates,
)
from mfrec.data.ids import Id, index_ids
from mfrec.data.lookup import Lookup
from mfrec.data.named_splits import SharedPairs, named_test_mask, with_validation
from mfrec.data.ratings import Ratings, checked_weights
from mfrec.data.raw_tables import RatingRange
from mfrec.data.splits import TEST, TRAIN, VALID
from mfrec.data.tables import item_table, user_table
from mfrec.errors import InputError
from mfrec.sparse import CSRPattern, SparseMatrix

Duplicates = Literal["last", "first", "mean", "error"]


class PreparedFolder(NamedTuple):
    """The folder that a data set was opened from, and the hash of its content; see `mfrec.data.prepared`."""

    path: Path
    content_hash: str


@dataclass(frozen=True, eq=False)
class Dataset:
    """Ratings, the ids of their users and items, and the tables that describe them.

    Users and items are those with at least one rating, in the order of their ids.

    Attributes:
        user_ids, item_ids: the id at each user or item index; int64, or object if ids are strings.
        users: one row for each user index: any of age (nullable Int64), gender, occupation, zip_code (str or None) and
            further columns.
        items: one row for each item index: any of title (str), year (nullable Int64), genres (tuple of str) and further
            columns.
        rating_range: lowest and highest possible rating, as declared, else as found in the ratings.
        official_splits: test masks over the ratings, (n_ratings,) bool, by name.
        split_labels: (n_ratings,) uint8 TRAIN, VALID or TEST if the data come with a split of their own, else None.
        prepared: the folder of the ratings, ids and tables; None if they are in memory only, or changed.
    """

    name: str
    ratings: Ratings
    user_ids: pd.Index
    item_ids: pd.Index
    users: pd.DataFrame
    items: pd.DataFrame
    rating_range: RatingRange
    official_splits: dict[str, Tensor] = field(default_factory=dict)
    split_labels: Tensor | None = None
    # Not an argument, so that `dataclasses.replace` leaves it out: a changed dataset has no folder.
    prepared: PreparedFolder | None = field(default=None, init=False)

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
        rating_range: RatingRange | None = None,
        duplicates: Duplicates = "last",
        name: str = "frame",
        official_splits: Mapping[str, npt.NDArray[np.bool_]] | None = None,
        split_labels: npt.NDArray[np.uint8] | None = None,
    ) -> Dataset:
        """A dataset from a frame with one row for each rating.

        Args:
            user, item, rating: names of columns; ids are integers or strings, ratings finite numbers.
            timestamp: name of a column of whole seconds since 1970 or of datetimes; by default "timestamp", if any.
            weight: name of a column of positive weights of the ratings; by default every weight is 1.
            users: one row for each user: a column of ids named as `user`, and any further columns.  Numbers become
                Int64 or Float64, tuples and lists become tuples of str, everything else becomes str.
            items: one row for each item: a column of ids named as `item`, any of title, year, genres (a tuple, a list,
                or text separated by |), and further columns.  Without years, titles such as "Toy Story (1995)" yield
                them.
            rating_range: lowest and highest possible rating.
            duplicates: which rating to keep if a user rated an item more than once, in the order of the rows; "mean"
                averages them and keeps the latest timestamp and weight; "error" refuses them.
            official_splits: by name, (n_rows,) a test mask over the rows of df.
            split_labels: (n_rows,) TRAIN, VALID or TEST.

        Raises:
            InputError: a column is missing or has an invalid value; the message says which and where.

        Examples:
            >>> df = pd.DataFrame({"who": ["bob", "ann", "bob"], "what": ["Emma", "Emma", "Jaws"], "stars": [4, 5, 2]})
            >>> dataset = Dataset.from_frame(df, user="who", item="what", rating="stars", rating_range=(1, 5))
            >>> dataset
            Dataset('frame', Ratings(3 of 2 users × 2 items, cpu), rating range 1–5)
            >>> dataset.user_ids.tolist(), dataset.item_ids.tolist()  # sorted, for any order of the rows
            (['ann', 'bob'], ['Emma', 'Jaws'])
            >>> dataset.ratings.users.tolist(), dataset.ratings.items.tolist(), dataset.ratings.values.tolist()
            ([0, 1, 1], [0, 0, 1], [5.0, 4.0, 2.0])
        """
        if timestamp is None and "timestamp" in df.columns:
            timestamp = "timestamp"
        optional = [column for column in (timestamp, weight) if column is not None]
        require_duplicates(duplicates)
        require_columns("ratings", df, ids=(), others=(user, item, rating, *optional))
        values = checked_ratings(df[rating], rating_range)
        row_users, user_ids = index_ids(df[user], "user")
        row_items, item_ids = index_ids(df[item], "item")
        timestamps = None if timestamp is None else checked_timestamps(df[timestamp])
        if split_labels is not None:
            pairs = row_users.astype(np.int64) * len(item_ids) + row_items
            splits = SharedPairs()
            splits.add(pairs, split_labels)
            splits.check(lambda pair: pair_name(user_ids, item_ids, pair))

        shape = len(user_ids), len(item_ids)
        kept, values, timestamps, surplus = distinct_pairs(row_users, row_items, shape, values, timestamps, duplicates)
        report_duplicates(surplus, len(df), duplicates)
        pattern = CSRPattern.from_sorted(torch.from_numpy(row_users[kept]), torch.from_numpy(row_items[kept]), shape)
        matrix = SparseMatrix(pattern, torch.from_numpy(values.astype(np.float32)))
        weights = None if weight is None else torch.tensor(checked_ratings(df[weight], None, "weight")[kept])
        ratings = Ratings.of_matrix(
            matrix,
            None if timestamps is None else torch.tensor(timestamps),
            None if weights is None else checked_weights(weights.float(), len(weights)),
        )
        if rating_range is None:
            rating_range = float(ratings.values.min()), float(ratings.values.max())
        masks = {split: torch.tensor(mask[kept]) for split, mask in (official_splits or {}).items()}
        labels = None if split_labels is None else torch.tensor(split_labels[kept])
        tables = user_table(users, user, user_ids), item_table(items, item, item_ids)
        return cls(name, ratings, user_ids, item_ids, *tables, rating_range, masks, labels)

    def __repr__(self) -> str:
        low, high = self.rating_range
        return f"Dataset({self.name!r}, {self.ratings!r}, rating range {low:g}–{high:g})"

    def select(self, mask: Tensor) -> Dataset:
        """The dataset with the ratings at which the mask, (n_ratings,) bool, is True; all users and items stay."""
        return replace(
            self,
            ratings=self.ratings.select(mask),
            official_splits={name: held_out[mask] for name, held_out in self.official_splits.items()},
            split_labels=None if self.split_labels is None else self.split_labels[mask],
        )

    def with_split_labels(self, labels: Tensor | None) -> Dataset:
        """The dataset with another split of its own, (n_ratings,) TRAIN, VALID or TEST, or without one."""
        dataset = replace(self, split_labels=labels)
        object.__setattr__(dataset, "prepared", self.prepared)
        return dataset

    def test_mask(self, split: str, fraction: float, generator: torch.Generator) -> Tensor:
        """(n_ratings,) bool, True for a test rating.

        If the data come with `split_labels`, these decide, and split and fraction are ignored.

        Args:
            split: the name of an official split, a name in `SPLITS`, or a fold such as "fold-2-of-5", the second of
                five random sets of equal size.  With the same generator, the folds are disjoint.
            fraction: the fraction to hold out, in [0, 1); official splits and folds have sizes of their own.

        Raises:
            InputError: there is no such split or fold, the fraction is out of range, or timestamps are missing.
        """
        if self.split_labels is not None:
            return self.split_labels == TEST
        return named_test_mask(self.ratings, self.official_splits, split, fraction, generator)

    def split_labels_for(
        self, split: str, test_fraction: float, valid_fraction: float, generator: torch.Generator
    ) -> Tensor:
        """(n_ratings,) uint8 TRAIN, VALID or TEST: a test split by name, then a random validation split of the rest.

        If the data come with `split_labels`, these decide; if none of them is VALID, a validation split is drawn from
        the training ratings.

        Args:
            split, test_fraction: as in `test_mask`.
            valid_fraction: the fraction of the training ratings to hold out for validation, in [0, 1).

        Raises:
            InputError: `test_mask` refuses the split, or no rating is left to train on.
        """
        if self.split_labels is not None and bool((self.split_labels == VALID).any()):
            labels = self.split_labels.clone()
        else:
            test = self.test_mask(split, test_fraction, generator)
            labels = with_validation(self.ratings, test, valid_fraction, generator)
        if not bool((labels == TRAIN).any()):
            raise InputError(
                f"none of the {len(labels):,} ratings of {self.name} is left to train on; "
                "lower test_fraction or valid_fraction"
            )
        return labels

    def title(self, index: int) -> str:
        """The title of the item at an index, or its id if there are no titles."""
        return str(self.items["title"].iat[index] if "title" in self.items else self.item_ids[index])

    def user_index(self, user_id: Id) -> int:
        """The index of a user by id, as an integer or as typed.

        Raises:
            InputError: there is no such user.
        """
        return self._user_lookup.index(user_id)

    def item_index(self, id_or_title: Id) -> int:
        """The index of an item by id, as an integer or as typed, or by its title in any case.

        Raises:
            InputError: there is no such item, or several items have the title; the message suggests ids or near titles.
        """
        return self._item_lookup.index(id_or_title)

    def item_indices(self, ids_or_titles: pd.Series) -> npt.NDArray[np.int64]:
        """(n_rows,) the index of each item of a column by id or unique title, -1 for an unknown item."""
        return self._item_lookup.indices(ids_or_titles)

    @cached_property
    def _user_lookup(self) -> Lookup:
        return Lookup("user", self.name, self.user_ids)

    @cached_property
    def _item_lookup(self) -> Lookup:
        return Lookup("item", self.name, self.item_ids, self.items.get("title", ()))


def pair_name(user_ids: pd.Index, item_ids: pd.Index, pair: int) -> str:
    """The ids of a pair, user index · n_items + item index, for messages."""
    return f"user {user_ids[pair // len(item_ids)]}, item {item_ids[pair % len(item_ids)]}"

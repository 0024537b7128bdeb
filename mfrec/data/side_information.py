"""Side information: features from the columns of user and item tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from mfrec.data.dataset import Dataset
from mfrec.data.features import IMPLICIT_BLOCK, Features, implicit_features, joined
from mfrec.data.ratings import Ratings
from mfrec.data.tables import is_missing
from mfrec.errors import InputError, unknown

# The name of the feature block made from columns.
SIDE_INFORMATION_BLOCK = "side_information"
IMPLICIT = ("none", "users", "items", "both")
# A column with more distinct numbers than this is cut into this many bins of about equal size.
BINS = 24


def column_features(column: pd.Series, n_bins: int = BINS, like: pd.Series | None = None) -> Features:
    """Features from a column of a user or item table, by its type.

        texts            one feature for each text (one-hot)
        tuples of texts  one feature for each text, 1/√n at each of a row's n texts (multi-hot)
        numbers          one feature for each number (one-hot); more than n_bins numbers are binned: one
                         feature for each of n_bins intervals with about equally many rows

    A row with a missing value has no feature.

    Args:
        like: the column that defines the features, by default this one.  Values that it does not have are ignored;
            numbers fall into its intervals.

    Raises:
        InputError: there are no values, or one is not a number in a column of numbers.

    Examples:
        >>> genres = pd.Series([("Comedy", "Drama", "Horror", "War"), ("Drama",), ()], name="genres")
        >>> features = column_features(genres)
        >>> features.names
        ('genres Comedy', 'genres Drama', 'genres Horror', 'genres War')
        >>> (features.matrix @ torch.eye(4)).tolist()  # F; its last row is empty
        [[0.5, 0.5, 0.5, 0.5], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    like = column if like is None else like
    name, present = str(like.name), [value for value in like if not is_missing(value)]
    labels_of = _labeller(name, present, n_bins)
    labels = {label: n for n, label in enumerate(sorted({label for value in present for label in labels_of(value)}))}
    if not labels:
        raise InputError(f"column {name!r} has no values; leave it out of the features")
    sets = [
        () if is_missing(value) else [labels[label] for label in labels_of(value) if label in labels]
        for value in column
    ]
    rows = [row for row, indices in enumerate(sets) for _ in indices]
    columns = [index for indices in sets for index in indices]
    values = [len(indices) ** -0.5 for indices in sets for _ in indices]
    entries = torch.tensor(rows, dtype=torch.long), torch.tensor(columns, dtype=torch.long), torch.tensor(values)
    return Features.from_entries(*entries, len(column), [f"{name} {label}" for label in labels])


def _labeller(name: str, present: Sequence[Any], n_bins: int) -> Callable[[Any], tuple[str, ...]]:
    """A function from a value to the labels of its features, for a column that has these values."""
    if any(isinstance(value, tuple) for value in present):
        return lambda value: tuple(dict.fromkeys(value if isinstance(value, tuple) else (value,)))
    if not present or not all(isinstance(value, int | float | np.number) for value in present):
        return lambda value: (str(value),)
    edges, labels = _bins(np.array([float(value) for value in present]), n_bins)

    def bin_of(value: Any) -> tuple[str, ...]:
        try:
            return (labels[min(int(np.searchsorted(edges, float(value))), max(labels))],)
        except (TypeError, ValueError):
            raise InputError(f"values of {name!r} must be numbers, as in training (got {value!r})") from None

    return bin_of


def _bins(numbers: np.ndarray, n_bins: int) -> tuple[np.ndarray, dict[int, str]]:
    """The edges between the intervals, each the highest number of an interval, and the label of each interval."""
    distinct = np.unique(numbers)
    edges = distinct[:-1]
    if len(distinct) > n_bins:
        edges = np.unique(np.quantile(numbers, np.linspace(0, 1, n_bins + 1)[1:-1], method="lower"))
    places, labels = np.searchsorted(edges, numbers), {}
    for place in np.unique(places):
        low, high = numbers[places == place].min(), numbers[places == place].max()
        # All digits of both ends, since intervals with one label would be one feature.
        labels[int(place)] = f"{low:.15g}" if low == high else f"{low:.15g} to {high:.15g}"
    return edges, labels


def dataset_features(
    dataset: Dataset,
    train: Ratings,
    implicit: str = "none",
    user_columns: str | Sequence[str] = (),
    item_columns: str | Sequence[str] = (),
) -> tuple[dict[str, Features], dict[str, Features]]:
    """The feature blocks of the users and of the items, by name.

    Block "implicit" comes from the training ratings, block "side_information" from the columns.

    Args:
        implicit: "none", "users", "items" or "both".
        user_columns, item_columns: columns of `dataset.users` and `dataset.items`, as "genres,year" or a sequence.

    Raises:
        InputError: a column is unknown, or `column_features` refuses it.
    """
    users = entity_features("users", dataset, train, implicit, user_columns)
    return users, entity_features("items", dataset, train, implicit, item_columns)


def entity_features(
    entity: str,
    dataset: Dataset,
    ratings: Ratings,
    implicit: str,
    columns: str | Sequence[str],
    new: pd.DataFrame | None = None,
) -> dict[str, Features]:
    """The feature blocks of the users or of the items, by name.

    Args:
        entity: "users" or "items".
        ratings: the training ratings; for new rows, theirs.
        new: one row for each new user or item.  Its features are the dataset's; a column that it lacks is missing.

    Raises:
        InputError: a name is unknown, or `column_features` refuses a column.
    """
    if implicit not in IMPLICIT:
        raise unknown("value of implicit", implicit, IMPLICIT)
    features, blocks = {}, []
    if implicit in (entity, "both"):
        features[IMPLICIT_BLOCK] = implicit_features(ratings, entity)
    for name in (name.strip() for name in (columns.split(",") if isinstance(columns, str) else columns)):
        if name:
            like = _column(dataset, entity, name)
            blocks.append(column_features(like if new is None else _or_missing(new, name), like=like))
    if blocks:
        features[SIDE_INFORMATION_BLOCK] = joined(blocks)
    return {name: block.to(ratings.device, ratings.values.dtype) for name, block in features.items()}


def _column(dataset: Dataset, entity: str, column: str) -> pd.Series:
    table = dataset.users if entity == "users" else dataset.items
    if column in table:
        return table[column]
    kind = entity.removesuffix("s")
    if not len(table.columns):
        raise InputError(f"{dataset.name} has no {kind} table, so no column {column!r}; leave it out")
    names = [str(name) for name in table.columns if name != "title"]
    raise unknown("column", column, names, f"the {kind} table")


def _or_missing(table: pd.DataFrame, column: str) -> pd.Series:
    return table[column] if column in table else pd.Series([None] * len(table), name=column, dtype=object)

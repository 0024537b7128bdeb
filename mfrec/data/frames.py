"""Frames: columns of a frame of ratings, checked and turned into arrays."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from mfrec.data.raw_tables import RatingRange
from mfrec.data.text import parse_number, shown
from mfrec.errors import InputError, OptionError, unknown
from mfrec.sparse import entry_order

logger = logging.getLogger("mfrec")

DUPLICATES = ("last", "first", "mean", "error")
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_LARGEST = float(np.finfo(np.float32).max)


def require_columns(what: str, frame: pd.DataFrame, ids: Sequence[str], others: Sequence[str] = ()) -> None:
    """Check that a frame has these columns, and that those of ids have no missing value.

    Args:
        what: the rows of the frame for messages, such as "ratings".

    Raises:
        InputError: a column or an id is missing.
    """
    for column in (*ids, *others):
        if column not in frame.columns:
            raise InputError(f"the {what} need a column {column!r} (got {_names(frame)}); rename a column or name it")
    for column in ids:
        missing = int(frame[column].isna().sum())
        if missing:
            raise InputError(
                f"all {what} need an id in column {column!r} ({missing:,} of {len(frame):,} have none); "
                "drop or fill them"
            )


def _names(frame: pd.DataFrame) -> str:
    return ", ".join(map(str, frame.columns)) or "no columns"


def numbers_of(column: pd.Series) -> Floats:
    """(n_rows,) float64; NaN for a cell that is missing or not a number.  Text that holds a number is one."""
    # `pandas.to_numeric` is not used: before pandas 3.1, text with a huge exponent crashes it.
    dtype = column.dtype
    if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype):
        return column.to_numpy(np.float64, na_value=np.nan)
    return np.array([_number(cell) for cell in column], dtype=np.float64)


def _number(cell: Any) -> float:
    try:
        number = parse_number(cell) if isinstance(cell, str) else float(cell)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return math.nan if number is None else number


def checked_ratings(column: pd.Series, rating_range: RatingRange | None, kind: str = "rating") -> Floats:
    """(n_rows,) ratings, or their weights, as float64.

    Args:
        kind: "rating" or "weight", for messages.

    Raises:
        InputError: there are none, or one is not a finite number.
        OptionError: a rating is outside the range, or the range is not one.
    """
    numbers = FiniteNumbers(kind)
    values = numbers.add(column)
    numbers.check()
    if rating_range is not None:
        check_range([values], rating_range)
    return values


class FiniteNumbers:
    """The ratings, or their weights, of a column that may come in batches.

    Args:
        kind: "rating" or "weight", for messages.
    """

    def __init__(self, kind: str = "rating") -> None:
        self.kind, self.n_rows, self._n_bad, self._first_bad = kind, 0, 0, ""

    def add(self, column: pd.Series) -> Floats:
        """(n_rows,) the numbers of a batch as float64."""
        values = numbers_of(column)
        bad = ~(np.abs(values) <= _LARGEST)
        if bad.any():
            self._first_bad = self._first_bad or _first(column, bad)
        self.n_rows, self._n_bad = self.n_rows + len(values), self._n_bad + int(bad.sum())
        return values

    def check(self) -> None:
        """Check all batches.

        Raises:
            InputError: there are no numbers, or one is not finite.
        """
        if not self.n_rows:
            raise InputError("the frame has no ratings; give one row for each rating")
        if self._n_bad:
            raise InputError(
                f"{self.kind}s must be finite numbers in float32 (got {self._first_bad}; {self._n_bad:,} of "
                f"{self.n_rows:,} are not); drop or replace them"
            )


def require_range(rating_range: RatingRange) -> None:
    """Check that a rating range is one.

    Raises:
        OptionError: it is not finite, or empty.
    """
    low, high = rating_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise OptionError("rating_range", f"must be the lowest and the highest rating (got {low:g} and {high:g})")


def check_range(blocks: Iterable[Floats], rating_range: RatingRange) -> None:
    """Check that ratings, in blocks, are in a range.

    Raises:
        OptionError: one is outside, or the range is not one.
    """
    require_range(rating_range)
    low, high = rating_range
    n_ratings, n_outside, first = 0, 0, 0.0
    for values in blocks:
        outside = values[(values < low) | (values > high)]
        if len(outside) and not n_outside:
            first = outside[0]
        n_ratings, n_outside = n_ratings + len(values), n_outside + len(outside)
    if n_outside:
        raise OptionError(
            "rating_range",
            f"must hold every rating: {n_outside:,} of {n_ratings:,} ratings are outside {low:g} to {high:g} "
            f"(e.g. {first:g}); widen it or drop them",
        )


def checked_timestamps(column: pd.Series) -> Ints:
    """(n_rows,) int64 whole seconds since 1970, from such numbers or from datetimes, in UTC unless they have a zone.

    Raises:
        InputError: a timestamp is missing or is not whole seconds.
    """
    bad = column.isna().to_numpy()
    if not bad.any():
        if pd.api.types.is_datetime64_any_dtype(column):
            utc = pd.to_datetime(column, utc=True).dt.tz_localize(None)
            return utc.to_numpy("datetime64[s]").astype(np.int64)
        if pd.api.types.is_signed_integer_dtype(column):
            return column.to_numpy(np.int64)
        numbers = numbers_of(column)
        bad = ~((numbers == np.floor(numbers)) & (np.abs(numbers) < 2**63))
    if bad.any():
        raise InputError(
            f"timestamps must be whole seconds since 1970 (got {_first(column, bad)}); "
            "convert the column or leave it out"
        )
    return numbers.astype(np.int64)


class Distinct(NamedTuple):
    """One rating for each (user, item) pair.

    Attributes:
        kept: (n_kept,) positions of the rows that are kept, by user, then item; or the slice of all rows.
        values, timestamps: of each; timestamps may be None.
        surplus: the number of rows that repeat a pair.
    """

    kept: npt.NDArray[np.int32] | slice
    values: Floats
    timestamps: Ints | None
    surplus: int


def distinct_pairs(
    users: npt.NDArray[np.int32],
    items: npt.NDArray[np.int32],
    shape: tuple[int, int],
    values: Floats,
    timestamps: Ints | None,
    duplicates: str,
) -> Distinct:
    """One rating for each (user, item) pair; `report_duplicates` refuses the others, or warns.

    Args:
        users, items: (n_rows,) indices.
        shape: the numbers of users and items.
        duplicates: as in `Dataset.from_frame`.
    """
    sorting = entry_order(torch.from_numpy(users), torch.from_numpy(items), shape)
    if sorting is None:
        return Distinct(slice(None), values, timestamps, 0)
    changes = torch.zeros(len(users) - 1, dtype=torch.bool)
    for indices in (users, items):
        changes |= torch.from_numpy(indices).index_select(0, sorting).diff() != 0
    order, surplus = sorting.numpy(), int((~changes).sum())
    if not surplus:
        return Distinct(order, values[order], None if timestamps is None else timestamps[order], 0)
    begins, ends = np.r_[True, changes.numpy()], np.r_[changes.numpy(), True]
    kept = order[begins if duplicates == "first" else ends]
    if duplicates == "mean":
        starts = np.flatnonzero(begins)
        values = np.add.reduceat(values[order], starts) / np.diff(np.r_[starts, len(order)])
        stamps = None if timestamps is None else np.maximum.reduceat(timestamps[order], starts)
    else:
        values, stamps = values[kept], None if timestamps is None else timestamps[kept]
    return Distinct(kept, values, stamps, surplus)


def require_duplicates(duplicates: str) -> None:
    """Check the name of a way to treat duplicates.

    Raises:
        InputError: it is not in DUPLICATES.
    """
    if duplicates not in DUPLICATES:
        raise unknown("value of duplicates", duplicates, DUPLICATES)


def report_duplicates(surplus: int, n_ratings: int, duplicates: str) -> None:
    """Warn of the ratings that repeat a pair.

    Raises:
        InputError: there are some, and duplicates is "error".
    """
    if not surplus:
        return
    if duplicates == "error":
        raise InputError(
            f"{surplus:,} of {n_ratings:,} ratings repeat a (user, item) pair; remove them, or set duplicates to "
            f"{', '.join(DUPLICATES[:2])} or {DUPLICATES[2]}"
        )
    action = "averaged" if duplicates == "mean" else f"only the {duplicates} of each pair is kept"
    logger.warning("%s of %s ratings repeat a (user, item) pair: %s", f"{surplus:,}", f"{n_ratings:,}", action)


def _first(column: pd.Series, bad: npt.NDArray[np.bool_]) -> str:
    """The first bad cell and its row, for messages."""
    position = int(bad.argmax())
    cell = column.iloc[position]
    return f"{shown(cell) if isinstance(cell, str) else str(cell)} in row {column.index[position]}"

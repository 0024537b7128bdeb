"""Frames: columns of a pandas frame checked and turned into arrays, and an item table aligned to item indices."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mfrec.datasets.readers import split_genres, title_years
from mfrec.datasets.tables import Scale
from mfrec.errors import InputError, unknown

logger = logging.getLogger("mfrec.datasets")  # the room that users know

DUPLICATES = ("last", "first", "mean", "error")
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def checked_ratings(column: pd.Series, scale: Scale | None) -> Floats:
    """The ratings as floats, each a finite number on the scale, if one is declared."""
    if not len(column):
        raise InputError("the frame has no ratings; give it one row a rating")
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    bad = ~np.isfinite(values)
    if bad.any():
        first = int(bad.argmax())
        raise InputError(
            f"rating {_shown(column.iloc[first])} in row {column.index[first]} is not a finite number "
            f"({bad.sum():,} of {len(values):,} are not); drop such rows or give them a rating"
        )
    if scale is not None:
        low, high = scale
        if not low < high:
            raise InputError(f"scale {low:g} to {high:g} does not rise; give the lowest and the highest rating")
        outside = values[(values < low) | (values > high)]
        if len(outside):
            raise InputError(
                f"{len(outside):,} of {len(values):,} ratings are off the scale {low:g} to {high:g}, "
                f"e.g. {outside[0]:g}; drop them or give the scale as (lowest, highest)"
            )
    return values


def checked_timestamps(column: pd.Series) -> Ints:
    """The timestamps as whole seconds since 1970, from such numbers or from datetimes."""
    bad = column.isna().to_numpy()
    if not bad.any():
        if pd.api.types.is_datetime64_any_dtype(column):
            utc = pd.to_datetime(column, utc=True).dt.tz_localize(None)
            return utc.to_numpy("datetime64[s]").astype(np.int64)
        if pd.api.types.is_integer_dtype(column):
            return column.to_numpy(np.int64)
        numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
        bad = ~np.isfinite(numbers) | (numbers != np.floor(numbers))
    if bad.any():
        first = int(bad.argmax())
        raise InputError(
            f"timestamp {_shown(column.iloc[first])} in row {column.index[first]} is not whole seconds since 1970; "
            "convert the column, or leave it out"
        )
    return numbers.astype(np.int64)


def distinct_pairs(
    pairs: Ints, values: Floats, timestamps: Ints | None, duplicates: str
) -> tuple[Ints, Floats, Ints | None]:
    """One rating a pair: the rows kept, in the order of their pairs, and the values and timestamps of them.

    Raises:
        InputError: pairs occur more than once and duplicates is "error", or it is not in DUPLICATES.
    """
    if duplicates not in DUPLICATES:
        raise unknown("way with duplicates", duplicates, DUPLICATES)
    order = np.argsort(pairs, kind="stable")
    changes = np.diff(pairs[order]) != 0
    begins, ends = np.r_[True, changes], np.r_[changes, True]
    surplus = len(pairs) - int(begins.sum())
    if surplus and duplicates == "error":
        raise InputError(
            f"{surplus:,} of {len(pairs):,} ratings are of an item that the same user has rated already; "
            f"keep one of each, or choose duplicates from {', '.join(DUPLICATES[:3])}"
        )
    kept = order[begins if duplicates == "first" else ends]
    if not surplus or duplicates != "mean":
        stamps = None if timestamps is None else timestamps[kept]
        values = values[kept]
    else:
        starts = np.flatnonzero(begins)
        values = np.add.reduceat(values[order], starts) / np.diff(np.r_[starts, len(order)])
        stamps = None if timestamps is None else np.maximum.reduceat(timestamps[order], starts)
    if surplus:
        done = "averaged" if duplicates == "mean" else f"dropped for the {duplicates} one"
        logger.warning("%s of %s ratings repeat a (user, item) pair: %s", f"{surplus:,}", f"{len(pairs):,}", done)
    return kept, values, stamps


def item_table(items: pd.DataFrame | None, id_column: str, item_ids: pd.Index) -> pd.DataFrame:
    """What is known of the items, a row an item index; an item that the table lacks is titled by its id."""
    table = pd.DataFrame(index=pd.RangeIndex(len(item_ids)))
    if items is None:
        return table
    if id_column not in items.columns:
        raise InputError(f"the item table has no column {id_column!r}, but {', '.join(map(str, items.columns))}")
    items = items.drop_duplicates(id_column)
    row_of_item = pd.Index(items[id_column].tolist(), dtype=object).get_indexer(item_ids.astype(object))

    def aligned(column: Iterable[Any], absent: Iterable[Any]) -> list[Any]:
        known = list(column)
        return [
            other if row < 0 or _missing(known[row]) else known[row]
            for row, other in zip(row_of_item, absent, strict=True)
        ]

    if "title" in items.columns:
        table["title"] = pd.Series([str(title) for title in aligned(items["title"], item_ids)], dtype=object)
    if "year" in items.columns or "title" in items.columns:
        years = items["year"] if "year" in items.columns else title_years(items["title"])
        table["year"] = pd.Series(aligned(years, [None] * len(item_ids)), dtype="Int64")
    if "genres" in items.columns:
        genres = [
            split_genres(one) if isinstance(one, str) else tuple(one)
            for one in aligned(items["genres"], [()] * len(item_ids))
        ]
        table["genres"] = pd.Series(genres, dtype=object)
    return table


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, str) else str(value)


def _missing(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value))

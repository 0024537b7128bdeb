"""Frames: columns of a pandas frame checked and turned into arrays, and tables aligned to user and item indices."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mfrec.data.parsing import Scale
from mfrec.data.readers import split_genres, title_years
from mfrec.errors import InputError, unknown

logger = logging.getLogger("mfrec.data")

DUPLICATES = ("last", "first", "mean", "error")
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def require_columns(what: str, frame: pd.DataFrame, ids: Sequence[str], others: Sequence[str] = ()) -> None:
    """Raise InputError unless the frame has these columns, and those of ids have one in each row."""
    for column in (*ids, *others):
        if column not in frame.columns:
            held = ", ".join(map(str, frame.columns)) or "none"
            raise InputError(f"the {what} have no column {column!r}, but {held}; name it")
    for column in ids:
        missing = int(frame[column].isna().sum())
        if missing:
            raise InputError(f"{missing:,} of {len(frame):,} {what} have no {column}; leave them out")


def checked_ratings(column: pd.Series, scale: Scale | None, kind: str = "rating") -> Floats:
    """(n_rows,) the ratings, or their weights, as float64, each a finite number on the scale, if one is declared.

    Raises:
        InputError: there are none, one is no finite number or off the scale, or the scale does not rise.
    """
    if not len(column):
        raise InputError("the frame has no ratings; give it one row a rating")
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    bad = ~np.isfinite(values)
    if bad.any():
        first = int(bad.argmax())
        raise InputError(
            f"{kind} {_shown(column.iloc[first])} in row {column.index[first]} is not a finite number "
            f"({bad.sum():,} of {len(values):,} are not); drop such rows or give them a {kind}"
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
    """(n_rows,) the timestamps as whole seconds since 1970, int64, from such numbers or from datetimes, UTC if naive.

    Raises:
        InputError: one is missing, or no whole number of seconds.
    """
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

    Args:
        pairs: (n_rows,) a number for each (user, item), the same for the same pair.
        duplicates: as in `Dataset.from_frame`.

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


def user_table(users: pd.DataFrame | None, id_column: str, user_ids: pd.Index) -> pd.DataFrame:
    """What is known of the users, a row a user index; of a user that the table lacks every cell is missing.

    Raises:
        InputError: the table has no column of ids, or two columns of one name.
    """
    rows, columns = _rows_and_columns(users, "user", id_column, user_ids)
    return _aligned({name: column for name, column in columns.items() if name != id_column}, rows)


def item_table(items: pd.DataFrame | None, id_column: str, item_ids: pd.Index) -> pd.DataFrame:
    """What is known of the items, a row an item index; an item that the table lacks is titled by its id.

    Raises:
        InputError: the table has no column of ids or two columns of one name, or a year is not a whole number.
    """
    rows, columns = _rows_and_columns(items, "item", id_column, item_ids)
    known: dict[str, pd.Series] = {}
    if "title" in columns:
        known["title"] = columns["title"]
    if "year" in columns or "title" in columns:
        known["year"] = _years(columns["year"]) if "year" in columns else title_years(columns["title"])
    if "genres" in columns:
        known["genres"] = pd.Series([_genres(one) for one in columns["genres"]], dtype=object)
    others = {name: column for name, column in columns.items() if name not in known and name != id_column}
    table = _aligned(known | others, rows)
    if "title" in table.columns:
        titles = zip(table["title"], item_ids, strict=True)
        table["title"] = pd.Series([str(one if is_missing(title) else title) for title, one in titles], dtype=object)
    if "genres" in table.columns:  # an empty table has none to tell that they are tuples
        table["genres"] = pd.Series([genres or () for genres in table["genres"]], dtype=object)
    return table


def _years(column: pd.Series) -> pd.Series:
    try:
        return column.astype("Int64")
    except (TypeError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the years of the item table are not whole numbers ({reason}); convert the column") from error


def _genres(cell: Any) -> tuple[Any, ...]:
    if isinstance(cell, str):
        return split_genres(cell)
    return () if is_missing(cell) else tuple(cell)


def _rows_and_columns(
    table: pd.DataFrame | None, kind: str, id_column: str, ids: pd.Index
) -> tuple[list[int], dict[str, pd.Series]]:
    """The row of each id, the first of several and -1 for none, and all columns by name."""
    if table is None:
        return [-1] * len(ids), {}
    names = table.columns.astype(str)
    if id_column not in names:
        raise InputError(f"the {kind} table has no column {id_column!r}, but {', '.join(names)}")
    if not names.is_unique:
        raise InputError(f"the {kind} table has two columns {names[names.duplicated()][0]!r}; rename or drop one")
    table = table.set_axis(names, axis=1).drop_duplicates(id_column)
    rows = pd.Index(table[id_column].tolist(), dtype=object).get_indexer(ids.astype(object))
    return rows.tolist(), {name: table[name] for name in names}


def _aligned(columns: Mapping[str, pd.Series], rows: list[int]) -> pd.DataFrame:
    aligned = {name: _aligned_column(column, rows) for name, column in columns.items()}
    return pd.DataFrame(aligned, index=pd.RangeIndex(len(rows)))


def _aligned_column(column: pd.Series, rows: list[int]) -> pd.Series:
    """The cells of rows, absent where a row is -1: numbers, tuples of str, or else str.

    Numbers are Int64 where the whole column is of whole ones, for pandas makes floats of integers where one is missing,
    and else Float64.  An absent tuple is (), all else that is absent is missing.
    """
    cells = [None if missing else cell for cell, missing in zip(column.tolist(), column.isna(), strict=True)]
    known = [cell for cell in cells if cell is not None]
    plain: Callable[[Any], Any] = str
    dtype, absent = "object", None
    if all(map(_is_number, known)) if known else _is_number_dtype(column):
        plain, dtype = (int, "Int64") if all(map(_is_whole, known)) else (float, "Float64")
    elif known and all(isinstance(cell, (tuple, list, np.ndarray)) for cell in known):
        plain, absent = _texts, ()
    values = [absent if cell is None else plain(cell) for cell in cells]
    return pd.Series([values[row] if row >= 0 else absent for row in rows], dtype=dtype)


def _is_number(cell: object) -> bool:
    return isinstance(cell, Real) and not isinstance(cell, bool)


def _is_whole(number: Any) -> bool:
    return bool(-(2**63) <= number < 2**63 and number == int(number))


def _is_number_dtype(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _texts(cell: Iterable[Any]) -> tuple[str, ...]:
    return tuple(str(one) for one in cell if not is_missing(one))


def plain_columns(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The dtype and values of each column, in lists, strings, numbers and None."""
    return {
        column: {"dtype": str(table[column].dtype), "values": [_plain(cell) for cell in table[column].tolist()]}
        for column in table.columns
    }


def _plain(cell: Any) -> Any:
    return list(cell) if isinstance(cell, tuple) else None if cell is pd.NA else cell


def table_of(columns: Mapping[str, Mapping[str, Any]], n_rows: int) -> pd.DataFrame:
    """The inverse of `plain_columns`."""
    table = {}
    for name, column in columns.items():
        cells = [tuple(cell) if isinstance(cell, list) else cell for cell in column["values"]]
        table[name] = pd.Series(cells, dtype=column["dtype"])
    return pd.DataFrame(table, index=pd.RangeIndex(n_rows))


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, str) else str(value)


def is_missing(cell: Any) -> bool:
    """Whether a cell of a table holds None, NA or NaN; a tuple never is."""
    return bool(pd.api.types.is_scalar(cell) and pd.isna(cell))

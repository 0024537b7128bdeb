"""Tables: the columns of user and item tables, with one row for each user or item index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
import pyarrow

from mfrec.data.titles import split_genres, title_years
from mfrec.errors import InputError


def user_table(users: pd.DataFrame | None, id_column: str, user_ids: pd.Index) -> pd.DataFrame:
    """The columns of a user table, one row for each user index; a user without a row has missing values.

    Raises:
        InputError: the table has no column of ids, or two columns with one name.
    """
    rows, columns = _rows_and_columns(users, "user", id_column, user_ids)
    return _aligned({name: column for name, column in columns.items() if name != id_column}, rows)


def item_table(items: pd.DataFrame | None, id_column: str, item_ids: pd.Index) -> pd.DataFrame:
    """The columns of an item table, one row for each item index; an item without a title has its id as the title.

    Raises:
        InputError: the table has no column of ids, two columns with one name, or a year that is not a whole number.
    """
    rows, columns = _rows_and_columns(items, "item", id_column, item_ids)
    standard: dict[str, pd.Series] = {}
    if "title" in columns:
        standard["title"] = columns["title"]
    if "year" in columns or "title" in columns:
        standard["year"] = _years(columns["year"]) if "year" in columns else title_years(columns["title"])
    if "genres" in columns:
        standard["genres"] = pd.Series([_genres(cell) for cell in columns["genres"]], dtype=object)
    further = {name: column for name, column in columns.items() if name not in standard and name != id_column}
    table = _aligned(standard | further, rows)
    if "title" in table.columns:
        titles = zip(table["title"], item_ids, strict=True)
        table["title"] = pd.Series([str(id if is_missing(title) else title) for title, id in titles], dtype=object)
    if "genres" in table.columns:  # an empty table has no cell that shows its type
        table["genres"] = pd.Series([genres or () for genres in table["genres"]], dtype=object)
    return table


def _years(column: pd.Series) -> pd.Series:
    try:
        with np.errstate(invalid="ignore"):  # pandas casts a year that is too large before it refuses it
            return column.astype("Int64")
    except (TypeError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"years of the item table must be whole numbers ({reason}); convert the column") from error


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
        raise InputError(f"the {kind} table needs a column {id_column!r} (got {', '.join(names)}); rename a column")
    if not names.is_unique:
        raise InputError(f"the {kind} table has two columns {names[names.duplicated()][0]!r}; rename or drop a column")
    table = table.set_axis(names, axis=1).drop_duplicates(id_column)
    rows = pd.Index(table[id_column].tolist(), dtype=object).get_indexer(ids.astype(object))
    return rows.tolist(), {name: table[name] for name in names}


def _aligned(columns: Mapping[str, pd.Series], rows: list[int]) -> pd.DataFrame:
    aligned = {name: _aligned_column(column, rows) for name, column in columns.items()}
    return pd.DataFrame(aligned, index=pd.RangeIndex(len(rows)))


def _aligned_column(column: pd.Series, rows: list[int]) -> pd.Series:
    """The cells at these rows, missing for row -1: numbers, tuples of str, or else str.

    Numbers are Int64 if the whole column holds whole numbers, since pandas makes floats of integers if a cell is
    missing; else Float64.  A missing tuple is ().
    """
    cells = [None if missing else cell for cell, missing in zip(column.tolist(), column.isna(), strict=True)]
    present = [cell for cell in cells if cell is not None]
    plain: Callable[[Any], Any] = str
    dtype, absent = "object", None
    if all(map(_is_number, present)) if present else _is_number_dtype(column):
        plain, dtype = (int, "Int64") if all(map(_is_whole, present)) else (float, "Float64")
    elif present and all(isinstance(cell, (tuple, list, np.ndarray)) for cell in present):
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
    return tuple(str(part) for part in cell if not is_missing(part))


def table_to_arrow(table: pd.DataFrame) -> pyarrow.Table:
    """A user or item table for Arrow's files; the metadata of each field has the dtype of its column.

    Raises:
        InputError: a column holds anything but numbers, text, or tuples of text.
    """
    arrays, fields = [], []
    for name in table.columns:
        column = table[name]
        try:
            arrays.append(pyarrow.array([_plain(cell) for cell in column.tolist()]))
        except (ValueError, TypeError) as error:  # Arrow's errors are such
            reason = " ".join(str(error).split())
            raise InputError(
                f"column {name!r} must hold numbers, text or tuples of text, to be saved ({reason}); convert it"
            ) from error
        fields.append(pyarrow.field(name, arrays[-1].type, metadata={"dtype": str(column.dtype)}))
    return pyarrow.Table.from_arrays(arrays, schema=pyarrow.schema(fields))


def _plain(cell: Any) -> Any:
    return list(cell) if isinstance(cell, tuple) else None if cell is pd.NA else cell


def table_from_arrow(table: pyarrow.Table) -> pd.DataFrame:
    """The inverse of `table_to_arrow`."""
    columns = {}
    for field, column in zip(table.schema, table.columns, strict=True):
        cells = [tuple(cell) if isinstance(cell, list) else cell for cell in column.to_pylist()]
        columns[field.name] = pd.Series(cells, dtype=field.metadata[b"dtype"].decode())
    return pd.DataFrame(columns, index=pd.RangeIndex(len(table)))


def is_missing(cell: Any) -> bool:
    """Whether a cell holds None, NA or NaN; a tuple never does."""
    return bool(pd.api.types.is_scalar(cell) and pd.isna(cell))

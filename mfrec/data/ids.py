"""Ids: the names users and items have outside, and the indices they have in the tables.

Ids are integers or strings, sorted (integers by value, then strings by code point), so that the order of a file's rows
changes no index.  An `Index` of ids is int64 where all are integers and object otherwise, in every pandas.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pandas as pd

from mfrec.errors import InputError

Id = int | str
_PLAIN_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")


def id_index(ids: Iterable[Id]) -> pd.Index:
    """Ids in the order given, int64 if every one is an integer of 64 bits."""
    ids = list(ids)
    if all(isinstance(one, int) and -(2**63) <= one < 2**63 for one in ids):
        return pd.Index(np.array(ids, dtype=np.int64))
    return pd.Index(ids, dtype=object)


def index_ids(column: pd.Series, kind: str) -> tuple[npt.NDArray[np.int64], pd.Index]:
    """(n_rows,) the index of each row's id, and the distinct ids in the order of their indices.

    Raises:
        InputError: an id is missing, or is neither an integer nor a string.
    """
    missing = int(column.isna().sum())
    if missing:
        raise InputError(f"{missing:,} of {len(column):,} rows have no {kind} id; drop them or give them one")
    codes, uniques = pd.factorize(column)
    found = [_plain(one, kind) for one in uniques.tolist()]
    order = sorted(range(len(found)), key=lambda n: (isinstance(found[n], str), found[n]))
    index_of_code = np.empty(len(order), dtype=np.int64)
    index_of_code[order] = np.arange(len(order))
    return index_of_code[codes], id_index(found[n] for n in order)


def _plain(one: object, kind: str) -> Id:
    if isinstance(one, str):
        return str(one)
    if isinstance(one, (int, np.integer)) and not isinstance(one, bool):
        return operator.index(one)
    raise InputError(f"{kind} id {one!r} is a {type(one).__name__}; make the ids integers or strings")


def is_plain_integer(text: str) -> bool:
    """Whether text is an integer of 64 bits written the one way that `str` writes it."""
    return _PLAIN_INTEGER.fullmatch(text) is not None and -(2**63) <= int(text) < 2**63


def ids_from_text(texts: pd.Series) -> pd.Series:
    """A column of ids read as text, as integers if that changes the text of none of them ("007" stays text)."""
    codes, uniques = pd.factorize(texts)
    found = [str(text) for text in uniques]
    ids: list[Id] = [int(text) for text in found] if all(map(is_plain_integer, found)) else list(found)
    return pd.Series(pd.Categorical.from_codes(codes, categories=id_index(ids)), index=texts.index)


def find_id(ids: pd.Index, typed: Id) -> int | None:
    """The index of an id as typed, on a command line say ("31" finds the integer 31), or None.

    Examples:
        >>> ids = id_index([1, 31, 1029])
        >>> find_id(ids, 31), find_id(ids, "31"), find_id(ids, "031")
        (1, 1, None)
    """
    candidates: list[Id] = [typed, str(typed)]
    if isinstance(typed, str) and is_plain_integer(typed):
        candidates.insert(1, int(typed))
    at = ids.get_indexer(pd.Index(candidates, dtype=object))
    return next((int(index) for index in at if index >= 0), None)


def indices_of(ids: pd.Index, typed: pd.Series) -> npt.NDArray[np.int64]:
    """(n_rows,) the index of each id of a column, as `find_id` finds it, and -1 for none."""
    found = ids.get_indexer(pd.Index(typed, dtype=object))
    unknown = found < 0
    if unknown.any():
        texts = pd.Index([str(one) for one in ids], dtype=object)
        found[unknown] = texts.get_indexer(pd.Index([str(one) for one in typed[unknown]], dtype=object))
    return found.astype(np.int64)

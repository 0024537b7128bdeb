"""Ids: the names of users and items outside the package, and their indices inside it.

Ids are integers or strings.  They are sorted, integers by value and then strings by code point, so that the order of a
file's rows changes no index.  A `pd.Index` of ids is int64 if all are integers, and object otherwise.
"""

from __future__ import annotations

import contextlib
import operator
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mfrec.errors import InputError

Id = int | str
Codes = npt.NDArray[np.integer[Any]]
_PLAIN_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")


def id_index(ids: Iterable[Id]) -> pd.Index:
    """Ids in their order, as int64 if each is an integer of 64 bits."""
    ids = list(ids)
    if all(isinstance(each, int) and -(2**63) <= each < 2**63 for each in ids):
        return pd.Index(np.array(ids, dtype=np.int64))
    return pd.Index(ids, dtype=object)


def index_ids(column: pd.Series, kind: str) -> tuple[npt.NDArray[np.int32], pd.Index]:
    """(n_rows,) the index of each row's id, and the distinct ids in the order of their indices.

    Args:
        kind: "user" or "item", for messages.

    Raises:
        InputError: an id is missing, or is neither an integer nor a string.
    """
    require_ids(kind, int(column.isna().sum()), len(column))
    codes, ids = _factorized(column, kind)
    if ids.dtype == np.int64:
        order = ids.argsort()
    else:
        order = np.array(sorted(range(len(ids)), key=lambda n: (isinstance(ids[n], str), ids[n])), dtype=np.intp)
    index_of_code = np.empty(len(ids), dtype=np.int32)
    index_of_code[order] = np.arange(len(ids), dtype=np.int32)
    return index_of_code[codes], ids[order]


def _factorized(column: pd.Series, kind: str) -> tuple[Codes, pd.Index]:
    """(n_rows,) the code of each row, -1 if its id is missing, and the distinct ids."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes, used = _without_unused(column.cat.codes.to_numpy(), len(column.cat.categories))
        return codes, _checked_ids(column.cat.categories[used], kind)
    try:
        codes, uniques = pd.factorize(column)
    except TypeError as error:  # a list or another cell without a hash
        raise InputError(f"{kind} ids must be integers or strings ({error}); convert the column") from error
    return codes, _checked_ids(pd.Index(uniques), kind)


def _without_unused(codes: Codes, n_codes: int) -> tuple[Codes, npt.NDArray[np.bool_]]:
    """Codes in 0 … n_codes - 1, or -1, renumbered without those that no row has, and (n_codes,) which are used."""
    used = np.zeros(n_codes + 1, dtype=bool)
    used[codes] = True  # code -1 uses the last place
    if not used[:-1].all():
        codes = np.append(np.cumsum(used[:-1]) - 1, -1)[codes]
    return codes, used[:-1]


def _checked_ids(ids: pd.Index, kind: str) -> pd.Index:
    return ids if ids.dtype == np.int64 else id_index(_plain(each, kind) for each in ids.tolist())


def _plain(cell: object, kind: str) -> Id:
    if isinstance(cell, str):
        return str(cell)
    if isinstance(cell, (int, np.integer)) and not isinstance(cell, bool):
        return operator.index(cell)
    raise InputError(
        f"{kind} ids must be integers or strings (got {cell!r}, a {type(cell).__name__}); convert the column"
    )


def is_plain_integer(text: str) -> bool:
    """Whether text is an integer of 64 bits in the one form that `str` writes."""
    return _PLAIN_INTEGER.fullmatch(text) is not None and -(2**63) <= int(text) < 2**63


class IdCodes:
    """Numbers for the distinct ids of a column that comes in batches, in the order in which they come.

    The distinct ids are held in memory.

    Args:
        kind: "user" or "item", for messages.

    Attributes:
        n_missing: the number of rows without an id so far.
    """

    def __init__(self, kind: str) -> None:
        self.kind, self.n_missing = kind, 0
        self._codes: dict[Id, int] = {}

    def __len__(self) -> int:
        return len(self._codes)

    def add(self, column: pd.Series) -> npt.NDArray[np.int32]:
        """(n_rows,) the code of each row's id; of a batch with missing ids, -1 everywhere.

        Raises:
            InputError: an id is neither an integer nor a string.
        """
        missing = int(column.isna().sum())
        self.n_missing += missing
        if missing:  # pandas makes floats of the other ids
            return np.full(len(column), -1, dtype=np.int32)
        codes, ids = _factorized(column, self.kind)
        numbers = (self._codes.setdefault(id, len(self._codes)) for id in ids.tolist())
        return np.fromiter(numbers, np.int32, len(ids))[codes]

    def ids(self, *, is_text: bool) -> pd.Series:
        """The id of each code; of text, integers if no text changes by it."""
        ids = list(self._codes)
        return ids_from_text(pd.Series(ids, dtype=object)) if is_text else pd.Series(id_index(ids))


def require_ids(kind: str, n_missing: int, n_rows: int) -> None:
    """Check that all rows have an id.

    Raises:
        InputError: some have none.
    """
    if n_missing:
        raise InputError(f"{kind} ids must be complete ({n_missing:,} of {n_rows:,} rows have none); drop or fill them")


def ids_from_text(texts: pd.Series) -> pd.Series:
    """A categorical column of ids from text: integers if no text changes by it ("007" stays text)."""
    codes, uniques = pd.factorize(texts)
    return ids_of_codes(codes, [str(text) for text in uniques])


def ids_of_codes(codes: Codes, texts: Sequence[str]) -> pd.Series:
    """`ids_from_text` of the column texts[codes], for distinct texts; those that no row has are left out."""
    codes, used = _without_unused(codes, len(texts))
    texts = [text for text, is_used in zip(texts, used.tolist(), strict=True) if is_used]
    integers = _integers(texts)
    ids = pd.Index(texts, dtype=object) if integers is None else pd.Index(integers, dtype=np.int64)
    return pd.Series(pd.Categorical.from_codes(codes, categories=ids))


def text_ids(codes: Codes, texts: Sequence[Any]) -> pd.Series:
    """The column texts[codes] as a categorical column of text, without the texts that no row has."""
    codes, used = _without_unused(np.asarray(codes), len(texts))
    categories = [str(text) for text, is_used in zip(texts, used.tolist(), strict=True) if is_used]
    return pd.Series(pd.Categorical.from_codes(codes, categories=pd.Index(categories, dtype=object)))


def _integers(texts: list[str]) -> list[int] | None:
    """The texts as integers of 64 bits, if `str` writes each back as it was; else None."""
    try:
        integers = list(map(int, texts))
    except ValueError:
        return None
    is_plain = list(map(str, integers)) == texts and all(-(2**63) <= number < 2**63 for number in integers)
    return integers if is_plain else None


def has_integer_ids(column: pd.Series) -> bool:
    """Whether a column of ids, categorical or not, has an integer type."""
    values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
    return bool(pd.api.types.is_integer_dtype(values))


def ids_like(texts: Iterable[str], integers: bool) -> list[Id]:
    """Ids from text to match another column: integers if that column has integers and the text is one."""
    return [int(text) if integers and is_plain_integer(text) else text for text in texts]


def concatenated_ids(columns: Sequence[pd.Series], kind: str) -> pd.Series:
    """Columns of ids from several files, one after another: integers if all are, else text.

    A column from a text file has integers only if `str` writes them as they were, so that text restores the original.

    Args:
        kind: "user" or "item", for messages.

    Raises:
        InputError: an id is neither an integer nor a string.
    """
    if all(map(has_integer_ids, columns)):
        return pd.concat([_without_categories(column) for column in columns], ignore_index=True)
    return pd.concat([_as_text(column, kind) for column in columns], ignore_index=True)


def _without_categories(column: pd.Series) -> pd.Series:
    plain = column.dtype == np.int64 or (isinstance(column.dtype, pd.CategoricalDtype) and not column.isna().any())
    return column.astype(np.int64 if plain else object)


def _as_text(column: pd.Series, kind: str) -> pd.Series:
    codes, distinct = _factorized(column, kind)
    texts = np.array([*map(str, distinct), None], dtype=object)  # code -1, a missing id, picks None
    return pd.Series(texts[codes], dtype=object)


def find_id(ids: pd.Index, typed: Id) -> int | None:
    """The index of an id as a person types it: "31" also finds the integer 31; None if there is none.

    Examples:
        >>> ids = id_index([1, 31, 1029])
        >>> find_id(ids, 31), find_id(ids, "31"), find_id(ids, "031")
        (1, 1, None)
    """
    candidates: list[Id] = [typed, str(typed)]
    if isinstance(typed, str) and is_plain_integer(typed):
        candidates.insert(1, int(typed))
    # `get_loc` keeps its hash table; `get_indexer` would make an index of objects of all ids for each call.
    for candidate in candidates:
        with contextlib.suppress(KeyError):
            position = ids.get_loc(candidate)
            assert isinstance(position, int), "ids are distinct"
            return position
    return None


def indices_of(ids: pd.Index, typed: pd.Series) -> npt.NDArray[np.int64]:
    """(n_rows,) the index of each id of a column, found as by `find_id`, and -1 for an unknown id."""
    indices = ids.get_indexer(pd.Index(typed, dtype=object))
    absent = indices < 0
    if absent.any():
        texts = pd.Index([str(each) for each in ids], dtype=object)
        indices[absent] = texts.get_indexer(pd.Index([str(each) for each in typed[absent]], dtype=object))
    return indices.astype(np.int64)

"""Lookup: the index of a user or an item by id or title, and what to suggest if there is none."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pandas as pd

from mfrec.data.ids import Id, find_id, indices_of
from mfrec.errors import InputError


class Lookup:
    """Finds users or items by their ids, and by their titles in any case.

    Args:
        kind: "user" or "item", for messages.
        dataset: the name of the dataset, for messages.
        ids: the id at each index.
        titles: the title at each index; users have none.

    Examples:
        >>> items = Lookup("item", "films", pd.Index([7, 8, 9]), ["Dumbo (1941)", "Hamlet (1990)", "Hamlet (1990)"])
        >>> items.index("8"), items.index("dumbo (1941)")
        (1, 0)
        >>> items.indices(pd.Series([9, "Dumbo (1941)", "Hamlet (1990)"])).tolist()  # a title of two items is ambiguous
        [2, 0, -1]
    """

    def __init__(self, kind: str, dataset: str, ids: pd.Index, titles: Iterable[str] = ()) -> None:
        self._kind, self._dataset, self._ids, self._titles = kind, dataset, ids, list(titles)
        self._by_title: dict[str, list[int]] = {}
        for index, title in enumerate(self._titles):
            self._by_title.setdefault(_folded(title), []).append(index)

    def index(self, id_or_title: Id) -> int:
        """The index of an id, as an integer or as typed, or of a title.

        Raises:
            InputError: there is none, or several have the title; the message suggests ids or near titles.
        """
        index = find_id(self._ids, id_or_title)
        if index is not None:
            return index
        text = str(id_or_title)
        indices = self._by_title.get(_folded(text), [])
        if len(indices) == 1:
            return indices[0]
        if indices:
            ids = ", ".join(str(self._ids[n]) for n in indices)
            raise InputError(f"{len(indices)} {self._kind}s have the title {text!r}; give one of their ids ({ids})")
        near = self._near(text)
        examples = ", ".join(map(str, self._ids[:2]))
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else ""
        hint = hint or f"{self._dataset} has {len(self._ids):,} {self._kind}s (e.g. {examples})"
        raise InputError(f"unknown {self._kind} {text!r}; {hint}")

    def indices(self, column: pd.Series) -> npt.NDArray[np.int64]:
        """(n_rows,) the index of each id or unique title of a column, -1 for an unknown one."""
        indices = indices_of(self._ids, column)
        for row in np.flatnonzero(indices < 0) if self._by_title else ():
            same_title = self._by_title.get(_folded(str(column.iloc[row])), [])
            indices[row] = same_title[0] if len(same_title) == 1 else -1
        return indices

    def _near(self, text: str) -> list[str]:
        """At most three titles that contain the text, those that begin with it first, or else resemble it."""
        text, folded = _folded(text), list(self._by_title)
        near = sorted((t for t in folded if text in t), key=lambda t: t.find(text)) if len(text) > 2 else []
        near = near or difflib.get_close_matches(text, folded, n=3)
        return [self._titles[self._by_title[title][0]] for title in near[:3]]


def _folded(title: str) -> str:
    return title.strip().casefold()

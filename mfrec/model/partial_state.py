"""States whose tables have some rows, from and to the states with all rows that checkpoints have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.model.entity import ITEM, entity_of

# A function of an entity and a table of its rows, (n_rows, …), that returns what takes the table's place.
TableMap = Callable[[int, Tensor], Any]


def map_model_state(state: Mapping[str, Tensor], change: TableMap) -> dict[str, Any]:
    """The state of a model without features, with each table of users' or items' rows changed."""
    return {
        name: table if (entity := _entity_of(name, table)) is None else change(entity, table)
        for name, table in state.items()
    }


def map_pair(tables: Sequence[Tensor], change: TableMap) -> list[Any]:
    """A table of users' and one of items' rows, changed."""
    return [change(entity, table) for entity, table in enumerate(tables)]


def gathering(ratings: Ratings) -> TableMap:
    """A `TableMap` that gathers the rows of all processes in a table of all rows, in the first process.

    With partial tables, the others get None.  All processes must call it for the same tables in the same order.  A
    table that occurs several times is gathered once.
    """
    gathered: dict[int, tuple[Tensor, Tensor | None]] = {}

    def gather(entity: int, table: Tensor) -> Tensor | None:
        if id(table) not in gathered:
            # A table that is kept cannot give its identity to another.
            gathered[id(table)] = table, ratings.complete(entity, table)
        return gathered[id(table)][1]

    return gather


def _entity_of(name: str, table: Tensor) -> int | None:
    """Whose rows a tensor of a model without features has."""
    return ITEM if name == "offset" and table.ndim else entity_of(name)

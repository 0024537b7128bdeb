"""The state of a model that holds some rows: from and to that of the model of all rows, which checkpoints have."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.model.entity import ITEM, entity_of


def complete_state(state: Mapping[str, Tensor], ratings: Ratings) -> dict[str, Tensor]:
    """The state of the model of all rows, from the states of all processes; those but the first lack tables in it."""
    complete = {}
    for name, table in state.items():
        entity = _entity_of(name, table)
        rows = table if entity is None else ratings.complete(entity, table)
        if rows is not None:
            complete[name] = rows
    return complete


def held_state(state: Mapping[str, Tensor], ratings: Ratings) -> dict[str, Tensor]:
    """The state of the model of this process, from that of the model of all rows."""
    return {
        name: table if (entity := _entity_of(name, table)) is None else ratings.held_of(entity, table)
        for name, table in state.items()
    }


def _entity_of(name: str, table: Tensor) -> int | None:
    """Whose rows a tensor of a model without features has."""
    return ITEM if name == "offset" and table.ndim else entity_of(name)

"""Split files: training, validation and test ratings that come in files of their own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from mfrec.data.ids import concatenated_ids, has_integer_ids
from mfrec.data.raw_tables import RawTables


def concatenated(parts: Mapping[int, RawTables]) -> tuple[RawTables, npt.NDArray[np.uint8]]:
    """The tables of several files as one, and (n_ratings,) the split label of each rating.

    Ids are integers only if they are integers in every file.  Timestamps are kept if every file has them.  An earlier
    file's row of a user or an item counts before a later file's.  The rating range is that of the first file.

    Args:
        parts: raw tables by split label: TRAIN, VALID or TEST.

    Raises:
        InputError: an id is neither an integer nor a string.
    """
    raws = list(parts.values())
    frames = [raw.ratings for raw in raws]
    columns = ["rating", *(["timestamp"] if all("timestamp" in frame for frame in frames) else [])]
    ratings = pd.concat([frame[columns] for frame in frames], ignore_index=True)
    tables = {}
    for kind in ("user", "item"):
        id_columns = [frame[kind] for frame in frames]
        ratings[kind] = concatenated_ids(id_columns, kind)
        tables[kind] = stacked([raw.users if kind == "user" else raw.items for raw in raws], kind, id_columns)
    labels = np.repeat(np.array(list(parts), dtype=np.uint8), [len(frame) for frame in frames])
    return RawTables(ratings, tables["user"], tables["item"], raws[0].rating_range), labels


def stacked(tables: list[pd.DataFrame | None], kind: str, id_columns: list[pd.Series]) -> pd.DataFrame | None:
    """User or item tables one below another, with ids as text unless those of the ratings are integers in every file.

    Args:
        kind: "user" or "item".
        id_columns: ids of each file's ratings.
    """
    present = [table for table in tables if table is not None]
    if not present:
        return None
    table = pd.concat(present, ignore_index=True)
    integers = all(map(has_integer_ids, id_columns))
    return table if integers else table.assign(**{kind: [str(id) for id in table[kind]]})

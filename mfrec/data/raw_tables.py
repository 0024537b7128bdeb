"""Raw tables: ratings, users and items as a reader finds them, before ids become indices."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

RatingRange = tuple[float, float]


@dataclass(frozen=True, eq=False)
class RawTables:
    """The tables of one source.

    Attributes:
        ratings: columns user, item, rating and, if available, timestamp; one row for each rating, in the file's order.
        users: column user (its id), and any further columns, such as age (nullable Int64) or occupation; or None.
        items: column item (its id), and any of title, year (nullable Int64), genres (tuple of str) and further columns;
            or None.
        rating_range: lowest and highest possible rating, if the format declares them.
        official_splits: for each split, (n_ratings,) a mask over the rows of `ratings`, True for a test rating.
    """

    ratings: pd.DataFrame
    users: pd.DataFrame | None = None
    items: pd.DataFrame | None = None
    rating_range: RatingRange | None = None
    official_splits: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)

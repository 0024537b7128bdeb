"""`mfrec data`: counts, ratings and most rated items of a data set."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mfrec.cli.options import DataPath, Plugins, Switch
from mfrec.experiments.config import ReadingConfig

if TYPE_CHECKING:
    from torch import Tensor

    from mfrec.data.dataset import Dataset

MOST_RATED = 10
# Values that a histogram shows at most one by one, and the number of its intervals if there are more.
MOST_BARS, INTERVALS = 20, 10


@dataclass(frozen=True, kw_only=True)
class Data(ReadingConfig):
    """Show a data set: counts, density, ratings, most rated titles."""

    data: DataPath = field()
    json: Switch = False
    """Print JSON instead of tables."""
    plugin: Plugins = ()

    def __call__(self) -> int:
        from mfrec.cli import report
        from mfrec.data.loading import load_dataset

        summary = summarize(load_dataset(**self.reading()))
        if self.json:
            print(json.dumps(summary, indent=2))
        else:
            report.print_dataset(summary)
        return 0


def summarize(dataset: Dataset) -> dict[str, Any]:
    """A summary of a data set, in types that JSON has."""
    import pandas as pd
    import torch

    ratings = dataset.ratings
    most_rated = torch.argsort(ratings.item_counts, descending=True, stable=True)[:MOST_RATED].tolist()
    means = torch.zeros(ratings.n_items).index_add_(0, ratings.items, ratings.values) / ratings.item_counts
    summary: dict[str, Any] = {
        "dataset": dataset.name,
        "n_users": ratings.n_users,
        "n_items": ratings.n_items,
        "n_ratings": len(ratings),
        "density": len(ratings) / (ratings.n_users * ratings.n_items),
        "rating_mean": float(ratings.values.mean()),
    }
    if ratings.timestamps is not None:
        first, last = (pd.Timestamp(int(t), unit="s") for t in (ratings.timestamps.min(), ratings.timestamps.max()))
        summary |= {"first_rating": f"{first:%Y-%m-%d}", "last_rating": f"{last:%Y-%m-%d}"}
    if dataset.official_splits:
        summary["official_splits"] = ", ".join(dataset.official_splits)
    summary["rating_histogram"] = histogram(ratings.values)
    summary["most_rated"] = [
        {
            "ratings": int(ratings.item_counts[i]),
            "mean": float(means[i]),
            "id": str(dataset.item_ids[i]),
            "title": dataset.title(i),
        }
        for i in most_rated
    ]
    return summary


def histogram(values: Tensor) -> dict[str, int]:
    """The number of ratings of each value; of each interval, if there are more than `MOST_BARS` values.

    Examples:
        >>> import torch
        >>> histogram(torch.tensor([1.0, 4.5, 4.5]))
        {'1': 1, '4.5': 2}
    """
    import torch

    distinct, counts = torch.unique(values, return_counts=True)
    if len(distinct) <= MOST_BARS:
        return {f"{value:g}": count for value, count in zip(distinct.tolist(), counts.tolist(), strict=True)}
    bars, edges = torch.histogram(values, bins=INTERVALS)
    names = [f"{low:.3g}–{high:.3g}" for low, high in itertools.pairwise(edges.tolist())]
    return {name: int(count) for name, count in zip(names, bars.tolist(), strict=True)}

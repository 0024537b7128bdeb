"""`mfrec data`: counts, ratings and most rated items of a data set."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from mfrec.cli.options import Plugins, Switch

if TYPE_CHECKING:
    from mfrec.data.dataset import Dataset

MOST_RATED = 10


@dataclass(frozen=True, kw_only=True)
class Data:
    """Show a data set: counts, density, ratings, most rated titles."""

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME_OR_PATH")]
    """A named data set, or a folder, zip or file."""
    columns: str | None = None
    """Columns of your own CSV, TSV or parquet file: user,item,rating[,timestamp]."""
    rating_range: Annotated[tuple[float, float] | None, tyro.conf.arg(metavar="LOW HIGH")] = None
    """Lowest and highest possible rating; by default as the format declares, else as found in the data."""
    duplicates: Literal["last", "first", "mean", "error"] = "last"
    """Which rating counts if a user rated an item more than once."""
    json: Switch = False
    """Print JSON instead of tables."""
    plugin: Plugins = ()

    def __call__(self) -> int:
        from mfrec.cli import report
        from mfrec.data.loading import load_dataset

        dataset = load_dataset(
            self.data, columns=self.columns, rating_range=self.rating_range, duplicates=self.duplicates
        )
        summary = summarize(dataset)
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
    values, counts = torch.unique(ratings.values, return_counts=True)
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
    summary["rating_histogram"] = {f"{v:g}": c for v, c in zip(values.tolist(), counts.tolist(), strict=True)}
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

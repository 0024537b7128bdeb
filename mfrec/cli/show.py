"""The verbs that show what there is: data and solvers."""

from __future__ import annotations

import dataclasses
import inspect
import json
import tempfile
from typing import Annotated, Any, Literal

import pandas as pd
import torch
import tyro

from mfrec.cli import report
from mfrec.cli.options import Switch
from mfrec.cli.train_arguments import parse_train
from mfrec.data.dataset import Dataset
from mfrec.data.loading import load
from mfrec.solvers.base import SOLVERS


@dataclasses.dataclass(frozen=True)
class Data:
    """Show what a data set holds: counts, density, ratings, most rated titles."""

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME_OR_PATH")]
    """A named set, or a folder, zip or file."""
    columns: str | None = None
    """Columns of a CSV, TSV or parquet file of your own: user,item,rating[,timestamp]."""
    rating_scale: tuple[float, float] | None = None
    """Lowest and highest possible rating."""
    duplicates: Literal["last", "first", "mean", "error"] = "last"
    """Which rating counts where a user rated an item more than once."""
    json: Switch = False
    """Print JSON instead of tables."""

    def __call__(self) -> int:
        dataset = load(self.data, columns=self.columns, scale=self.rating_scale, duplicates=self.duplicates)
        summary = summarize(dataset)
        if self.json:
            print(json.dumps(summary, indent=2))
        else:
            report.print_dataset(summary)
        return 0


@dataclasses.dataclass(frozen=True)
class Solvers:
    """Compare the solvers: what each does, what it needs tuned and what it takes."""

    measure: Switch = False
    """Train each with its defaults on the embedded data, and show its test RMSE and time: half a minute in all."""
    json: Switch = False
    """Print JSON instead of a table."""

    def __call__(self) -> int:
        rows = []
        for name, kind in SOLVERS.items():
            # The rank is everybody's to choose.
            tuned = [option for option in getattr(kind, "space", ("?",)) if option != "rank"]
            takes = getattr(kind, "takes", ("?",))
            row: dict[str, Any] = {
                "solver": name,
                "what it does": (inspect.getdoc(kind) or "").splitlines()[0].rstrip("."),
                "to tune": ", ".join(tuned) or "nothing",
                "takes": ", ".join(takes) or "-",
            }
            rows.append(row | self._measured(name) if self.measure else row)
        if self.json:
            print(json.dumps(rows, indent=2))
            return 0
        title = "solvers, with their figures on the embedded data at seed 0" if self.measure else "solvers"
        report.print_table(title, list(rows[0]), [list(row.values()) for row in rows])
        if not self.measure:
            print("mfrec solvers --measure trains each on the embedded data and adds its test RMSE and seconds")
        return 0

    def _measured(self, solver: str) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            metrics = parse_train([solver, "--run-dir", folder, "--log-every", "0"]).train().metrics
        if metrics is None:
            raise KeyboardInterrupt
        return {"RMSE": metrics["test"]["rmse"], "seconds": metrics["fit_seconds"]}


def summarize(dataset: Dataset) -> dict[str, Any]:
    """What a data set holds, as plain values."""
    ratings = dataset.ratings
    values, counts = torch.unique(ratings.values, return_counts=True)
    most = torch.argsort(ratings.item_counts, descending=True, stable=True)[:10].tolist()
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
        for i in most
    ]
    return summary

"""The verbs that ask something of a run or of a data set: evaluate, recommend, similar, data."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import json
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import torch
import tyro

from mfrec.cli import report
from mfrec.cli.options import Device, Switch, pick_device
from mfrec.cli.train import parse_train
from mfrec.datasets import Dataset, load
from mfrec.errors import InputError
from mfrec.metrics import evaluate_parts, with_coverage
from mfrec.objective import Objective
from mfrec.recommend import recommended_items, similar_items, similar_users
from mfrec.runs import Run, split_parts
from mfrec.solvers import SOLVERS

RunPath = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
Count = Annotated[int, tyro.conf.arg(aliases=["-n"])]


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure a run's model on its train, valid and test parts."""

    run: RunPath
    """Run folder."""
    device: Device = "auto"
    """Where to compute."""
    json: Switch = False
    """Print JSON instead of a table."""

    def __call__(self) -> int:
        run, device = Run.open(self.run), pick_device(self.device)
        config, (model, dataset, part, posterior) = run.config(), run.trained(device)
        objective = Objective(config["l2"], config["bias_l2"], config["scaling"])
        parts = split_parts(dataset.ratings.to(device), part)
        measured = with_coverage(evaluate_parts(model, objective, parts), parts, model, posterior)
        if self.json:
            print(json.dumps({"run": str(run.path), **measured}, indent=2))
        else:
            report.print_errors(f"{run.path}, {config['solver']} on {dataset.name}", measured)
        return 0


@dataclasses.dataclass(frozen=True)
class Recommend:
    """Recommend items that a user has not rated."""

    run: RunPath
    """Run folder."""
    user: str
    """Id of the user, as the data has it."""
    number: Count = 10
    """How many items."""
    min_ratings: int = 5
    """Leave out items with fewer ratings: a film with a single 5-star rating has nothing else to be judged by."""
    json: Switch = False
    """Print JSON instead of tables."""

    def __call__(self) -> int:
        run = Run.open(self.run)
        model, dataset, _, posterior = run.trained()
        user = dataset.user_index(self.user)
        found = recommended_items(dataset, model, user, self.number, self.min_ratings, posterior)
        if self.json:
            _print_json(found)
        else:
            report.print_recommendations(dataset, user, found)
        return 0


@dataclasses.dataclass(frozen=True)
class Similar:
    """Find the items, or the users, most similar to one, by the cosine of their factors."""

    run: RunPath
    """Run folder."""
    item: str | None = None
    """Id or title of the item to compare."""
    user: str | None = None
    """Id of the user to compare, instead of an item."""
    number: Count = 10
    """How many."""
    min_ratings: int = 20
    """Leave out those with fewer ratings: little is known of where their factors point."""
    json: Switch = False
    """Print JSON instead of a table."""

    def __call__(self) -> int:
        run = Run.open(self.run)
        model, dataset, _, _ = run.trained()
        if self.item is not None and self.user is None:
            item = dataset.item_index(self.item)
            name, found = dataset.title(item), similar_items(dataset, model, item, self.number, self.min_ratings)
        elif self.user is not None and self.item is None:
            user = dataset.user_index(self.user)
            name, found = f"user {self.user}", similar_users(dataset, model, user, self.number, self.min_ratings)
        else:
            raise InputError("similar compares one item or one user; give either --item or --user")
        if self.json:
            _print_json(found)
        else:
            report.print_items(f"similar to {name}", found)
        return 0


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
            tuned, takes = (getattr(kind, attribute, ("?",)) for attribute in ("tuned", "takes"))
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
            with contextlib.redirect_stdout(io.StringIO()):
                parse_train([solver, "--run-dir", folder, "--name", "run"])()
            metrics = Run.open(Path(folder) / "run").metrics()
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


def _print_json(frame: pd.DataFrame) -> None:
    print(frame.to_json(orient="records", indent=2, force_ascii=False))

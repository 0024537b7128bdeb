"""What a person sees on the terminal: the progress line of a fit, and tables of results."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pandas as pd
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from mfrec.data.dataset import Dataset
from mfrec.data.new_rows import YOU
from mfrec.evaluation.ranking import RankingReport
from mfrec.experiments import loop as fit
from mfrec.experiments.loop import Epoch
from mfrec.inference.recommend import item_frame
from mfrec.inference.trained_model import BY_PREDICTION
from mfrec.posteriors.posterior import NINETY


@contextmanager
def epoch_progress(
    solver: str, epochs: int, done: fit.Progress, n_ratings: int, *, quiet: bool = False
) -> Iterator[Callable[[Epoch], None]]:
    """A line on stderr that follows the fit: epoch, RMSE, cost, ratings per second and the time that is left at most.

    Silent where stderr is no terminal.

    Args:
        done: what was done of these epochs before.
        n_ratings: how many the solver goes over in an epoch.
    """
    console = Console(stderr=True)
    line = TextColumn("{task.fields[line]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
    with Progress(line, BarColumn(bar_width=12), console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("", total=epochs, completed=done.epoch, line=f"{solver} epoch {done.epoch}/{epochs}")
        began, first, train = time.monotonic(), done.epoch, ""

        def report(news: Epoch) -> None:
            nonlocal train
            if news.train is not None:
                train = f"train {news.train['rmse']:.4f} cost {news.train['cost']:,.0f} "
            # The most wanted first: a narrow terminal cuts the end off.
            valid = "" if news.valid is None else f"valid {news.valid['rmse']:.4f} "
            line = f"{solver} epoch {news.number}/{epochs} RMSE {valid}{train}"
            if news.number > first:
                pace = (time.monotonic() - began) / (news.number - first)
                left = timedelta(seconds=round(pace * (epochs - news.number)))
                line += f"{left} left, {n_ratings / pace / 1e6:.1f}M ratings/s"
            bar.update(task, completed=news.number, line=line)

        yield report


@contextmanager
def count_progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr that fills as so many more are done.  Silent where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.completed:,}/{task.total:,} {task.description}"), BarColumn(bar_width=24))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, advance=done)


# How each kind of number is written, by the name of its column; anything else as it is.
FORMATS = {
    "rating": ".1f",
    "predicted": ".2f",
    "deviation": ".2f",
    "n_ratings": ",",
    "rmse": ".4f",
    "mae": ".4f",
    "cosine": ".3f",
    "l2": ".3g",
    "lr": ".3g",
    "lr_decay": ".3g",
    "relaxation": ".2f",
    "RMSE": ".4f",
    "MAE": ".4f",
    "mean": ".2f",
    "seconds": ".1f",
}
WRAPPED = ("run", "title", "genres", "what it does", "to tune", "takes", "because")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on stdout, numbers to the right; where it is narrow titles and other long texts are wrapped."""
    table = Table(box=SIMPLE_HEAD, show_header=any(columns))
    for position, name in enumerate(columns):
        numeric = all(isinstance(row[position], int | float) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=name not in WRAPPED, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(name, value) for name, value in zip(columns, row, strict=True)))
    console = Console()
    console.print(title, style="bold", highlight=False, markup=False, soft_wrap=True)
    console.print(table)


def _cell(column: str, value: object) -> str:
    if isinstance(value, float) and math.isnan(value):
        return "-"
    return format(value, FORMATS.get(column, ".4f" if isinstance(value, float) else ""))


def print_frame(title: str, frame: pd.DataFrame) -> None:
    """A frame of any columns, what is missing as a dash."""
    rows = [[math.nan if one is None else one for one in row] for row in frame.itertuples(index=False, name=None)]
    print_table(title, list(frame.columns), rows)


def print_errors(title: str, measured: Mapping[str, Mapping[str, float]]) -> None:
    """RMSE and MAE, a row a name, and how many ratings are within their 90 % intervals where there are any."""
    print_table(title, ("", "RMSE", "MAE"), [(name, v["rmse"], v["mae"]) for name, v in measured.items()])
    for name, values in measured.items():
        if "coverage_90" in values:
            print(f"{name}: 90 % intervals hold {values['coverage_90']:.1%} of the ratings")


def print_items(title: str, items: pd.DataFrame) -> None:
    """A frame as `item_frame` gives it; the year stands in the title already; or one of users."""
    if not len(items):
        print(f"{title}: nothing is left to show; fewer --min-ratings leave more")
        return
    shown = items.drop(columns="year", errors="ignore").astype({"id": str})
    if "genres" in shown:
        shown["genres"] = shown["genres"].str.replace("|", ", ")
    print_table(title, list(shown.columns), list(shown.itertuples(index=False, name=None)))


def print_recommendations(dataset: Dataset, user: int, recommended: pd.DataFrame) -> None:
    """What the user rated highest, and under it what is recommended, a frame of `Trained.recommend`."""
    own = dataset.ratings.select(dataset.ratings.users == user)
    liked = torch.argsort(own.values, descending=True, stable=True)[:5]
    name = "you" if dataset.user_ids[user] == YOU else f"user {dataset.user_ids[user]}"
    if len(own):
        rated = item_frame(dataset, own.items[liked], rating=own.values[liked])
        print_items(f"{name} rated highest, of {len(own):,} rating{'' if len(own) == 1 else 's'}", rated)
    print_items(
        f"recommended to {name}", _with_reasons(dataset, recommended) if "because" in recommended else recommended
    )
    if recommended.attrs.get("ranked by", BY_PREDICTION) != BY_PREDICTION:
        print(f"ranked by {recommended.attrs['ranked by']}")


def _with_reasons(dataset: Dataset, recommended: pd.DataFrame) -> pd.DataFrame:
    """A line for each reason, and in place of deviations the 90 % interval of the rating."""
    shown = recommended.drop(columns="genres", errors="ignore")
    if "deviation" in shown:
        half, (low, high) = NINETY * shown.pop("deviation"), dataset.scale
        ends = zip((shown["predicted"] - half).clip(low), (shown["predicted"] + half).clip(upper=high), strict=True)
        shown.insert(1, "90 % interval", [f"{first:.1f}–{last:.1f}" for first, last in ends])
    lines = [[f"{r.share:+.2f}  {r.title}" for r in reasons] for reasons in shown["because"]]
    return shown.assign(because=["\n".join(found) for found in lines])


def print_breakdown(title: str, errors: pd.DataFrame, most: int) -> None:
    """A frame of `metrics.errors_by`; of more groups than are shown, the first."""
    shown = errors.head(most) if len(errors) > 2 * most else errors
    kept = shown if errors.columns[0] == "rating" else shown.astype({errors.columns[0]: str})
    print_table(title, list(kept.columns), list(kept.itertuples(index=False, name=None)))
    if len(shown) < len(errors):
        print(f"{len(shown)} of {len(errors):,}, the largest RMSE first; --json prints all")


def print_ranking(title: str, lists: RankingReport) -> None:
    """Each metric's mean over users, with its 95 % interval."""
    rows = [
        (name.replace("_", " "), mean, "–".join(f"{end:.4f}" for end in lists.intervals[name]))
        for name, mean in lists.means.items()
    ]
    print_table(title, ("metric", f"@{lists.n}", "95 % interval"), rows)
    print(
        f"relevant is a rating of {lists.threshold:g} or more; means over {lists.n_users:,} users who gave one, "
        f"without {lists.n_left_out:,} who gave none"
    )
    print(f"recommended to someone: {lists.catalogue_coverage:.1%} of the items; novelty {lists.novelty:.2f} bits")


def print_dataset(summary: Mapping[str, Any]) -> None:
    """What a data set holds, from `ask.summarize`."""
    facts = {key.removeprefix("n_").replace("_", " "): value for key, value in summary.items() if key != "dataset"}
    rows = [(key, _fact(value)) for key, value in facts.items() if not isinstance(value, dict | list)]
    print_table(summary["dataset"], ("", ""), rows)
    histogram: dict[str, int] = summary["rating_histogram"]
    most = max(histogram.values())
    bars = [(value, f"{count:,}", "█" * round(40 * count / most)) for value, count in histogram.items()]
    print_table("ratings", ("value", "count", ""), bars)
    top: list[dict[str, Any]] = summary["most_rated"]
    print_table("most rated", ("ratings", "mean", "id", "title"), [tuple(row.values()) for row in top])


def _fact(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)

"""Tables of results: metrics, items, recommendations, errors by group, ranking metrics, probabilities, data sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch

from mfrec.cli.tables import FORMATS, print_table
from mfrec.data.dataset import Dataset
from mfrec.data.new_rows import YOU
from mfrec.evaluation.metrics import COVERAGE, METRICS
from mfrec.evaluation.probabilities import ProbabilityReport
from mfrec.evaluation.ranking import RankingReport
from mfrec.inference.explore import BY_PREDICTION
from mfrec.inference.recommend import item_frame
from mfrec.posteriors.base import Z_90

# How many of a user's ratings to show, the highest first.
LIKED = 5
BAR_WIDTH = 40


def metric_formats() -> dict[str, str]:
    """The formats of columns that may be metrics, by name, by label, or by split and label as in "valid RMSE"."""
    metrics = {
        column: metric.format
        for name, metric in METRICS.items()
        for column in (name, metric.label, f"valid {metric.label}", f"test {metric.label}")
    }
    return {**metrics, **FORMATS}


def print_frame(title: str, frame: pd.DataFrame, formats: Mapping[str, str] | None = None) -> None:
    """Print a frame with any columns."""
    rows = list(frame.itertuples(index=False, name=None))
    print_table(title, list(frame.columns), rows, metric_formats() if formats is None else formats)


def print_metrics(title: str, measured: Mapping[str, Mapping[str, float]]) -> None:
    """Print the metrics of models or of splits, one row each, and the coverage of the 90 % intervals."""
    rows = [(name, *(values[metric] for metric in METRICS)) for name, values in measured.items()]
    print_table(title, ("", *(metric.label for metric in METRICS.values())), rows, metric_formats())
    for name, values in measured.items():
        if COVERAGE in values:
            print(f"{name}: 90 % intervals contain {values[COVERAGE]:.1%} of the ratings")


def print_items(title: str, items: pd.DataFrame) -> None:
    """Print a frame of items, whose titles include the year, or of users."""
    if not len(items):
        print(f"{title}: no items match; lower --min-ratings or drop a filter")
        return
    shown = items.drop(columns="year", errors="ignore").astype({"id": str})
    if "genres" in shown:
        shown["genres"] = shown["genres"].str.replace("|", ", ")
    print_frame(title, shown)


def print_recommendations(dataset: Dataset, user: int, recommended: pd.DataFrame) -> None:
    """Print a user's highest ratings, and below them a frame of `TrainedModel.recommend`."""
    ratings = dataset.ratings.select(dataset.ratings.users == user)
    liked = torch.argsort(ratings.values, descending=True, stable=True)[:LIKED]
    name = "you" if dataset.user_ids[user] == YOU else f"user {dataset.user_ids[user]}"
    if len(ratings):
        frame = item_frame(dataset, ratings.items[liked], rating=ratings.values[liked])
        print_items(f"{name} rated highest, of {len(ratings):,} rating{'' if len(ratings) == 1 else 's'}", frame)
    print_items(
        f"recommended to {name}", _with_reasons(dataset, recommended) if "because" in recommended else recommended
    )
    if recommended.attrs.get("ranked by", BY_PREDICTION) != BY_PREDICTION:
        print(f"ranked by {recommended.attrs['ranked by']}")


def _with_reasons(dataset: Dataset, recommended: pd.DataFrame) -> pd.DataFrame:
    """The same recommendations with a line for each reason, and 90 % intervals instead of standard deviations."""
    shown = recommended.drop(columns="genres", errors="ignore")
    if "std" in shown:
        half, (low, high) = Z_90 * shown.pop("std"), dataset.rating_range
        ends = zip((shown["predicted"] - half).clip(low), (shown["predicted"] + half).clip(upper=high), strict=True)
        shown.insert(1, "90 % interval", [f"{first:.1f}–{last:.1f}" for first, last in ends])
    lines = [[f"{reason.share:+.2f}  {reason.title}" for reason in reasons] for reasons in shown["because"]]
    return shown.assign(because=["\n".join(reasons) for reasons in lines])


def print_breakdown(title: str, errors: pd.DataFrame, n: int) -> None:
    """Print a frame of `errors_by`; the first n groups if there are far more."""
    shown = errors.head(n) if len(errors) > 2 * n else errors
    print_frame(title, shown if errors.columns[0] == "rating" else shown.astype({errors.columns[0]: str}))
    if len(shown) < len(errors):
        print(f"{len(shown)} of {len(errors):,}, the largest RMSE first; --json prints all")


def print_ranking(title: str, lists: RankingReport) -> None:
    """Print each ranking metric's mean over users, with its 95 % interval."""
    rows = [
        (name.replace("_", " "), mean, "–".join(f"{end:.4f}" for end in lists.intervals[name]))
        for name, mean in lists.means.items()
    ]
    print_table(title, ("metric", f"@{lists.n}", "95 % interval"), rows)
    print(
        f"relevant items are rated {lists.threshold:g} or more; means are over the {lists.n_users:,} users with some, "
        f"without the {lists.n_left_out:,} users with none"
    )
    print(f"recommended at least once: {lists.catalogue_coverage:.1%} of the items; novelty {lists.novelty:.2f} bits")


def print_probabilities(title: str, solver: str, report: ProbabilityReport, shares: ProbabilityReport | None) -> None:
    """Print scores, the calibration of each level, and the coverage of intervals; of continuous ratings, the last only.

    Args:
        solver: the name of the solver.
        shares: the report on the training ratings' shares of the levels, for comparison; None if continuous.
    """
    if shares is None:
        print(f"{title}: the training ratings have too many distinct values for probabilities of each")
    else:
        rows = [
            (name, scores.log_likelihood, scores.ranked_probability_score)
            for name, scores in ((solver, report), ("shares in training", shares))
        ]
        print_table(title, ("", "log-likelihood", "RPS"), rows)
        columns = {"rating": "g", "predicted": ".2%", "observed": ".2%", "difference": "+.2%", "ECE": ".2%"}
        columns["ECE by chance"] = ".2%"
        calibrations = [
            (x.level, x.predicted, x.observed, x.predicted - x.observed, x.error, x.chance) for x in report.levels
        ]
        print_table("share of each rating, and expected calibration error (ECE)", list(columns), calibrations, columns)
        if report.n_between:
            print(
                f"{report.n_between:,} of {report.n_ratings:,} ratings have a value that no training rating has; each "
                "counts as the nearest"
            )
    rows = [(f"{interval:.0%}", inside, inside - interval) for interval, inside in report.coverage.items()]
    formats = {"ratings inside": ".1%", "difference": "+.1%"}
    print_table("coverage of central intervals", ("interval", *formats), rows, formats)


def print_dataset(summary: Mapping[str, Any]) -> None:
    """Print what `cli.data.summarize` returns."""
    facts = {key.removeprefix("n_").replace("_", " "): value for key, value in summary.items() if key != "dataset"}
    rows = [(key, _fact(value)) for key, value in facts.items() if not isinstance(value, dict | list)]
    print_table(summary["dataset"], ("", ""), rows)
    histogram: dict[str, int] = summary["rating_histogram"]
    highest = max(histogram.values())
    bars = [(value, f"{count:,}", "█" * round(BAR_WIDTH * count / highest)) for value, count in histogram.items()]
    print_table("ratings", ("value", "count", ""), bars)
    rows = [tuple(row.values()) for row in summary["most_rated"]]
    print_table("most rated", ("ratings", "mean", "id", "title"), rows)


def _fact(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "-"
    return f"{value:,}" if isinstance(value, int) else str(value)

"""Test RMSE and fit seconds of the solvers and of other packages: the tables of docs/results.md.

    python benchmarks/accuracy.py [--shared ../shared/data] [--seeds 0 1 2] [--tables embedded ml-100k ml-1m …]

Each figure is the mean ± standard deviation over the seeds, or over the folds u1 … u5 with seed 0.  A seed determines
the split if it is random, the initial factors and the order of the ratings.  Our rows are trainings with defaults,
except for the options shown.  Other packages (`peers.py`; install them with the [bench] extra) train on the same
training set.  The row of a package that is not installed is left out.

The table "ledger" measures the entries of `mfrec.experiments.ledger` whose data are in `shared`.  The table "half" uses
the first 487,650 ratings of ML-1M, the ones whose timestamps are available.

All defaults were chosen on validation sets, taken from the training ratings.  No choice looked at a test set.  Run it
alone on the machine: about an hour on two cores, most of it for the samplers.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from myfm_peer import timesvd_flipped
from peer import Point, Split
from peers import PEERS
from record import SHARED, Figure, Report

from mfrec.data.dataset import Dataset
from mfrec.data.ids import indices_of
from mfrec.data.loading import load_dataset
from mfrec.evaluation.baselines import biases_only
from mfrec.evaluation.metrics import rmse
from mfrec.evaluation.probabilities import evaluate_probabilities
from mfrec.experiments.config import EMBEDDED_DATA, ExperimentConfig
from mfrec.experiments.ledger import LEDGER, TASKS, TIMES, Entry, Predictions, Training, reproduce, task_dataset
from mfrec.experiments.training import train
from mfrec.posteriors.levels import rating_levels

Options = dict[str, Any]
Table = Literal[
    "ledger", "half", "likelihood", "embedded", "ml-100k", "ml-1m", "cold", "times", "refit", "peers", "folds"
]

POINT_ESTIMATES = ("sgd", "block-sgd", "als", "optim", "quasi-newton", "gd")
HALF = "ratings-with-timestamps-first-487650.dat"
ITEM_FEATURES: Options = {"item_features": "genres,year"}
IMPLICIT: Options = {"implicit": "both"}
ALL_FEATURES: Options = {**IMPLICIT, "user_features": "age,gender,occupation", **ITEM_FEATURES}


def main(
    shared: Path = SHARED,
    seeds: tuple[int, ...] = (0, 1, 2),
    tables: tuple[Table, ...] = typing.get_args(Table),
) -> dict[str, Figure]:
    """Print the tables, each row as soon as it is measured.

    Args:
        shared: folder that contains ml-100k and ml-1m.
        seeds: seeds of the runs.
        tables: which tables to print.
    """
    small: Options = {"data": str(shared / "ml-100k")}
    large: Options = {"data": str(shared / "ml-1m")}
    by_seed: list[Options] = [{"seed": seed} for seed in seeds]
    folds: list[Options] = [{"split": f"u{fold}"} for fold in range(1, 6)]
    bayesian: list[tuple[str, Options]] = [("vb", {}), ("gibbs", {}), ("gibbs", IMPLICIT)]
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, seeds {' '.join(map(str, seeds))}")
    report = Report()
    if "ledger" in tables:
        ledger_table(report, shared)
    if "half" in tables:
        half_table(report, shared / "ml-1m", seeds)
    if "likelihood" in tables:
        likelihood_table(report, shared)
    if "embedded" in tables:
        header(report, "ml-latest-small, 80/10/10 (vb and gibbs: 90/10)")
        for solver, options in [(name, {}) for name in POINT_ESTIMATES] + bayesian:
            row(report, solver, options, by_seed)
    if "ml-100k" in tables:
        solvers = [("sgd", {}), ("block-sgd", {}), ("als", {}), *bayesian, ("gibbs", ALL_FEATURES)]
        header(report, "ML-100K, u1")
        for solver, options in solvers:
            row(report, solver, options, [small | {"split": "u1"} | seed for seed in by_seed])
        header(report, "ML-100K, mean of u1 … u5")
        for solver, options in solvers:
            row(report, solver, options, [small | fold for fold in folds])
    if "ml-1m" in tables:
        header(report, "ML-1M, random 90/10")
        for solver, options in [(name, {}) for name in POINT_ESTIMATES] + bayesian:
            row(report, solver, options, [large | seed for seed in by_seed])
        row(report, "gibbs", {"rank": 64, **ALL_FEATURES}, [large | seed for seed in by_seed])
    if "cold" in tables:
        cold_tables(report, small, large, seeds)
    if "times" in tables:
        times_table(report, small)
    if "refit" in tables:
        for title, data in (("ml-latest-small", {}), ("ML-100K, u1", small | {"split": "u1"}), ("ML-1M", large)):
            header(report, f"without and with a refit, {title}")
            for solver in ("sgd", "als", "optim"):
                for options in ({}, {"refit": True}):
                    row(report, solver, options, [data | seed for seed in by_seed])
    if "peers" in tables:
        for title, path, split in (("ML-100K, u1", "ml-100k", "u1"), ("ML-1M, random 90/10", "ml-1m", "random")):
            header(report, f"other packages, {title}")
            dataset = load_dataset(shared / path)
            for name in PEERS:
                peer_row(report, name, dataset, [(split, seed) for seed in seeds])
    if "folds" in tables:
        header(report, "other packages, ML-100K, mean of u1 … u5")
        dataset = load_dataset(shared / "ml-100k")
        for name in PEERS:
            peer_row(report, name, dataset, [(f"u{fold}", 0) for fold in range(1, 6)])
    return report.figures


def ledger_table(report: Report, shared: Path) -> None:
    """The entries whose data are available, and "not run" for the others."""
    columns = ("`mfrec reproduce …`", "test sets", "sees besides ratings", "test RMSE", "fit seconds")
    report.table("ledger", *columns, n_texts=3)
    trained: dict[str, Predictions] = {}
    for name, entry in LEDGER.items():
        task = TASKS[entry.task]
        path = shared / str(task.data)
        figures: tuple[Figure | str, ...] = ("not run", "")
        data = task.data if task.data == EMBEDDED_DATA else str(path) if path.exists() else None
        if data is not None and (data == EMBEDDED_DATA or has_times(data) or TIMES not in entry.sees):
            measured = reproduce(entry, task_dataset(entry, data), trained=trained)
            figures = error([m.rmse for m in measured]), Figure.mean([m.seconds for m in measured], 0, "s")
        report.row(f"`{name}`", task.description, entry.sees, *figures)


def has_times(data: str) -> bool:
    """Whether the ratings of a data set have timestamps."""
    return load_dataset(data).ratings.timestamps is not None


def half_table(report: Report, folder: Path, seeds: tuple[int, ...]) -> None:
    """mfrec and myFM with the same rank and sweeps, on the ratings of ML-1M whose timestamps are available."""
    header(report, "first 487,650 ratings of ML-1M, random 90/10, rank 32, 100 sweeps")
    whole, dataset = load_dataset(folder), load_dataset(folder / HALF)
    users, items = (
        table.iloc[indices_of(ids, kept.to_series())].reset_index(drop=True)
        for table, ids, kept in (
            (whole.users, whole.user_ids, dataset.user_ids),
            (whole.items, whole.item_ids, dataset.item_ids),
        )
    )
    dataset = dataclasses.replace(dataset, users=users, items=items)
    sweeps: Options = {"rank": 32, "epochs": 100, "burn_in": 20}
    blind = Training("gibbs", {**sweeps, **ALL_FEATURES})
    timed = Training("gibbs", {**blind.options, "sessions": True})
    without_tables = Training("gibbs", {**sweeps, **IMPLICIT, "sessions": True})
    probit = Training("gibbs", {**timed.options, "likelihood": "ordinal"})
    trained: dict[str, Predictions] = {}
    for trainings in ((blind,), (timed,), (without_tables,), (probit,), (timed, probit)):
        entry, repeats = Entry("ml-1m", trainings), [{"seed": seed} for seed in seeds]
        measured = reproduce(entry, dataset, repeats=repeats, trained=trained)
        names = " and ".join(f"`{training.command()}`" for training in trainings)
        report.row(names, error([m.rmse for m in measured]), "100", fit_seconds([m.seconds for m in measured]))
    for ordinal in (False, True):
        points = [
            tested(dataset, "random", seed, functools.partial(timesvd_flipped, rank=32, sweeps=100, ordinal=ordinal))
            for seed in seeds
        ]
        name = f"myFM, timeSVD++ flipped, {'ordered probit' if ordinal else 'regression'}"
        rmses, times = zip(*points, strict=True)
        report.row(name, error(rmses), "100", fit_seconds(times))


def likelihood_table(report: Report, shared: Path) -> None:
    """Gaussian and ordinal likelihoods: the log-likelihood of test ratings, and the calibration of each level."""
    tasks: dict[str, Options] = {
        "ML-100K, u1": {"data": str(shared / "ml-100k"), "split": "u1", **ALL_FEATURES},
        "ml-latest-small (half stars)": {**IMPLICIT, **ITEM_FEATURES},
        "ML-1M, without features": {"data": str(shared / "ml-1m")},
    }
    for title, data in tasks.items():
        columns = ("likelihood", "test RMSE", "log-likelihood", "RPS", "largest difference of a level's share")
        report.table(f"probabilities of levels, {title}", *columns)
        for likelihood in ("gaussian", "ordinal"):
            config = ExperimentConfig.create("gibbs", **data, rank=16, likelihood=likelihood, run_dir=None)
            result = train(config)
            test, train_ratings = result.splits["test"], result.splits["train"]
            probabilities = evaluate_probabilities(result.predictive, test, rating_levels(train_ratings))
            assert result.metrics is not None
            assert probabilities.log_likelihood is not None
            assert probabilities.ranked_probability_score is not None
            difference = max(abs(level.predicted - level.observed) for level in probabilities.levels)
            report.row(
                f"{likelihood}, rank 16",
                error([result.metrics["test"]["rmse"]]),
                Figure.mean([probabilities.log_likelihood], 4, "nats"),
                Figure.mean([probabilities.ranked_probability_score], 4, "RPS"),
                Figure.mean([100 * difference], 1, "points"),
            )


def header(report: Report, title: str) -> None:
    """Begin a table."""
    report.table(title, "command", "test RMSE", "epochs", "fit seconds")


def error(values: Sequence[float]) -> Figure:
    """RMSE."""
    return Figure.mean(values, 4, "RMSE")


def fit_seconds(values: Sequence[float]) -> Figure:
    """Seconds of fit."""
    return Figure.mean(values, 1, "s")


def row(report: Report, solver: str, options: Options, variants: list[Options], dataset: Dataset | None = None) -> None:
    """Train with each of the variants' options, and print the row."""
    metrics = [measure(solver, options | variant, dataset) for variant in variants]
    report.row(
        f"`{Training(solver, options).command()}`",
        error([m["test"]["rmse"] for m in metrics]),
        Figure.mean([m["epochs"] for m in metrics], 0, "epochs"),
        fit_seconds([m["fit_seconds"] for m in metrics]),
    )


def measure(solver: str, options: Options, dataset: Dataset | None = None) -> Options:
    """The metrics of one training, with the logs of a usual run."""
    with tempfile.TemporaryDirectory() as folder:
        result = train(ExperimentConfig.create(solver, **options, run_dir=folder), dataset)
    assert result.metrics is not None
    return result.metrics


def cold_tables(report: Report, small: Options, large: Options, seeds: tuple[int, ...]) -> None:
    """All ratings of a tenth of the items are held out."""
    for name, data in (("ml-latest-small", {}), ("ML-100K", small), ("ML-1M", large)):
        header(report, f"all ratings of a tenth of the items held out, {name}")
        biases_row(report, load_dataset(data.get("data", name)), seeds)
        for solver, options in (
            ("block-sgd", {**ITEM_FEATURES, "item_ids": False}),
            ("block-sgd", ITEM_FEATURES),
            ("gibbs", ITEM_FEATURES),
        ):
            row(report, solver, options, [data | {"split": "cold-items", "seed": seed} for seed in seeds])


def biases_row(report: Report, dataset: Dataset, seeds: tuple[int, ...]) -> None:
    """The row of a model with biases only, which predicts items without ratings from the user's bias."""
    errors = []
    for seed in seeds:
        mask = dataset.test_mask("cold-items", 0.1, torch.Generator().manual_seed(seed))
        training, test = dataset.ratings.split(mask)
        predictions = biases_only(training, dataset.rating_range).predict_observed(test, clip=True)
        errors.append(rmse(predictions, test.values))
    report.row("biases only", error(errors), "", "")


def times_table(report: Report, small: Options) -> None:
    """Splits by time: with and without recent biases, and other packages."""
    splits, half_lives = ("time", "per-user-time"), (0, 10)
    columns = [f"`{split}`{', recent bias' if half_life else ''}" for split in splits for half_life in half_lives]
    for name, data in (("ML-100K", small), ("ml-latest-small", {})):
        report.table(f"splits by time, {name}", "", *columns)
        for solver, options in (("vb", {}), ("gibbs", {"epochs": 100}), ("gibbs", {"epochs": 100, **IMPLICIT})):
            measured = (
                measure(solver, {**options, **data, "split": split, "recent_bias": half_life})
                for split in splits
                for half_life in half_lives
            )
            figures = [error([metrics["test"]["rmse"]]) for metrics in measured]
            report.row(f"`{Training(solver, options).command()}`", *figures)
        dataset = load_dataset(data.get("data", EMBEDDED_DATA))
        for peer in ("Surprise SVD", "cornac MF", "myFM", "myFM, implicit"):
            errors = [error([tested(dataset, split, 0, PEERS[peer].trained)[0]]) for split in splits]
            report.row(peer, errors[0], "", errors[1], "")


def peer_row(report: Report, name: str, dataset: Dataset, splits: list[tuple[str, int]]) -> None:
    """Train another package on the training set of each split and seed, and print its row."""
    epochs = str(PEERS[name].settings(len(dataset.ratings))["epochs"])
    try:
        points = [tested(dataset, split, seed, PEERS[name].trained) for split, seed in splits]
    except ImportError as missing:
        report.row(f"{name}: {missing}", "", "", "")
        return
    errors, seconds = zip(*points, strict=True)
    report.row(name, error(errors), epochs, fit_seconds(seconds))


def tested(dataset: Dataset, split: str, seed: int, trained: Callable[[Split], Point]) -> tuple[float, float]:
    """The test RMSE of another package on a split, and its seconds."""
    mask = dataset.test_mask(split, 0.1, torch.Generator().manual_seed(seed))
    training, test = dataset.ratings.split(mask)
    point = trained(Split.of(training, test, dataset.rating_range, seed))
    return rmse(torch.as_tensor(point.predictions, dtype=test.values.dtype), test.values), point.seconds


if __name__ == "__main__":
    tyro.cli(main)

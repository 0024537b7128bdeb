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
import statistics
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

ROOT = Path(__file__).parents[1]
Options = dict[str, Any]
Table = Literal["ledger", "half", "likelihood", "embedded", "ml-100k", "ml-1m", "cold", "refit", "peers", "folds"]

POINT_ESTIMATES = ("sgd", "block-sgd", "als", "optim", "quasi-newton", "gd")
HALF = "ratings-with-timestamps-first-487650.dat"
ITEM_FEATURES: Options = {"item_features": "genres,year"}
IMPLICIT: Options = {"implicit": "both"}
ALL_FEATURES: Options = {**IMPLICIT, "user_features": "age,gender,occupation", **ITEM_FEATURES}


def main(
    shared: Path = ROOT.parent / "shared" / "data",
    seeds: tuple[int, ...] = (0, 1, 2),
    tables: tuple[Table, ...] = typing.get_args(Table),
) -> None:
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
    if "ledger" in tables:
        ledger_table(shared)
    if "half" in tables:
        half_table(shared / "ml-1m", seeds)
    if "likelihood" in tables:
        likelihood_table(shared)
    if "embedded" in tables:
        header("ml-latest-small, 80/10/10 (vb and gibbs: 90/10)")
        for solver, options in [(name, {}) for name in POINT_ESTIMATES] + bayesian:
            row(solver, options, by_seed)
    if "ml-100k" in tables:
        solvers = [("sgd", {}), ("block-sgd", {}), ("als", {}), *bayesian, ("gibbs", ALL_FEATURES)]
        header("ML-100K, u1")
        for solver, options in solvers:
            row(solver, options, [small | {"split": "u1"} | seed for seed in by_seed])
        header("ML-100K, mean of u1 … u5")
        for solver, options in solvers:
            row(solver, options, [small | fold for fold in folds])
    if "ml-1m" in tables:
        header("ML-1M, random 90/10")
        for solver, options in [(name, {}) for name in POINT_ESTIMATES] + bayesian:
            row(solver, options, [large | seed for seed in by_seed])
        row("gibbs", {"rank": 64, **ALL_FEATURES}, [large | seed for seed in by_seed])
    if "cold" in tables:
        cold_tables(small, large, seeds)
    if "refit" in tables:
        for title, data in (("ml-latest-small", {}), ("ML-100K, u1", small | {"split": "u1"}), ("ML-1M", large)):
            header(f"without and with a refit, {title}")
            for solver in ("sgd", "als", "optim"):
                for options in ({}, {"refit": True}):
                    row(solver, options, [data | seed for seed in by_seed])
    if "peers" in tables:
        for title, path, split in (("ML-100K, u1", "ml-100k", "u1"), ("ML-1M, random 90/10", "ml-1m", "random")):
            header(f"other packages, {title}")
            dataset = load_dataset(shared / path)
            for name in PEERS:
                peer_row(name, dataset, [(split, seed) for seed in seeds])
    if "folds" in tables:
        header("other packages, ML-100K, mean of u1 … u5")
        dataset = load_dataset(shared / "ml-100k")
        for name in PEERS:
            peer_row(name, dataset, [(f"u{fold}", 0) for fold in range(1, 6)])


def ledger_table(shared: Path) -> None:
    """The entries whose data are available, and "not run" for the others."""
    print("\n| `mfrec reproduce …` | test sets | sees besides ratings | test RMSE | fit seconds |", flush=True)
    print("|---|---|---|---:|---:|")
    trained: dict[str, Predictions] = {}
    for name, entry in LEDGER.items():
        task = TASKS[entry.task]
        path, figures = shared / str(task.data), ("not run", "")
        data = task.data if task.data == EMBEDDED_DATA else str(path) if path.exists() else None
        if data is not None and (data == EMBEDDED_DATA or has_times(data) or TIMES not in entry.sees):
            measured = reproduce(entry, task_dataset(entry, data), trained=trained)
            figures = spread([m.rmse for m in measured], 4), spread([m.seconds for m in measured], 0)
        print(f"| `{name}` | {task.description} | {entry.sees} | {' | '.join(figures)} |", flush=True)


def has_times(data: str) -> bool:
    """Whether the ratings of a data set have timestamps."""
    return load_dataset(data).ratings.timestamps is not None


def half_table(folder: Path, seeds: tuple[int, ...]) -> None:
    """mfrec and myFM with the same rank and sweeps, on the ratings of ML-1M whose timestamps are available."""
    header("first 487,650 ratings of ML-1M, random 90/10, rank 32, 100 sweeps")
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
    probit = Training("gibbs", {**timed.options, "likelihood": "ordinal"})
    trained: dict[str, Predictions] = {}
    for trainings in ((blind,), (timed,), (probit,), (timed, probit)):
        entry, repeats = Entry("ml-1m", trainings), [{"seed": seed} for seed in seeds]
        measured = reproduce(entry, dataset, repeats=repeats, trained=trained)
        names = " and ".join(f"`{training.command()}`" for training in trainings)
        errors, seconds = spread([m.rmse for m in measured], 4), spread([m.seconds for m in measured], 1)
        print(f"| {names} | {errors} | 100 | {seconds} |", flush=True)
    for ordinal in (False, True):
        points = [
            tested(dataset, "random", seed, functools.partial(timesvd_flipped, rank=32, sweeps=100, ordinal=ordinal))
            for seed in seeds
        ]
        name = f"myFM, timeSVD++ flipped, {'ordered probit' if ordinal else 'regression'}"
        rmses, times = zip(*points, strict=True)
        print(f"| {name} | {spread(rmses, 4)} | 100 | {spread(times, 1)} |", flush=True)


def likelihood_table(shared: Path) -> None:
    """Gaussian and ordinal likelihoods: the log-likelihood of test ratings, and the calibration of each level."""
    tasks: dict[str, Options] = {
        "ML-100K, u1": {"data": str(shared / "ml-100k"), "split": "u1", **ALL_FEATURES},
        "ml-latest-small (half stars)": {**IMPLICIT, **ITEM_FEATURES},
        "ML-1M, without features": {"data": str(shared / "ml-1m")},
    }
    for title, data in tasks.items():
        print(f"\nprobabilities of levels, {title}\n")
        print("| likelihood | test RMSE | log-likelihood | RPS | largest difference of a level's share |")
        print("|---|---:|---:|---:|---:|", flush=True)
        for likelihood in ("gaussian", "ordinal"):
            config = ExperimentConfig.create("gibbs", **data, rank=16, likelihood=likelihood, run_dir=None)
            result = train(config)
            test, train_ratings = result.splits["test"], result.splits["train"]
            report = evaluate_probabilities(result.predictive, test, rating_levels(train_ratings))
            assert result.metrics is not None
            difference = max(abs(level.predicted - level.observed) for level in report.levels)
            rps = report.ranked_probability_score
            figures = f"{result.metrics['test']['rmse']:.4f} | {report.log_likelihood:.4f} | {rps:.4f}"
            print(f"| {likelihood}, rank 16 | {figures} | {100 * difference:.1f} points |", flush=True)


def header(title: str) -> None:
    """Begin a table."""
    print(f"\n{title}\n\n| command | test RMSE | epochs | fit seconds |\n|---|---:|---:|---:|", flush=True)


def row(solver: str, options: Options, variants: list[Options], dataset: Dataset | None = None) -> None:
    """Train with each of the variants' options, and print the row."""
    metrics = [measure(solver, options | variant, dataset) for variant in variants]
    errors = spread([m["test"]["rmse"] for m in metrics], 4)
    epochs = f"{statistics.mean(m['epochs'] for m in metrics):.0f}"
    seconds = spread([m["fit_seconds"] for m in metrics], 1)
    print(f"| `{Training(solver, options).command()}` | {errors} | {epochs} | {seconds} |", flush=True)


def measure(solver: str, options: Options, dataset: Dataset | None = None) -> Options:
    """The metrics of one training, with the logs of a usual run."""
    with tempfile.TemporaryDirectory() as folder:
        result = train(ExperimentConfig.create(solver, **options, run_dir=folder), dataset)
    assert result.metrics is not None
    return result.metrics


def cold_tables(small: Options, large: Options, seeds: tuple[int, ...]) -> None:
    """All ratings of a tenth of the items are held out."""
    for name, data in (("ml-latest-small", {}), ("ML-100K", small), ("ML-1M", large)):
        header(f"all ratings of a tenth of the items held out, {name}")
        biases_row(load_dataset(data.get("data", name)), seeds)
        for solver, options in (
            ("block-sgd", {**ITEM_FEATURES, "item_ids": False}),
            ("block-sgd", ITEM_FEATURES),
            ("gibbs", ITEM_FEATURES),
        ):
            row(solver, options, [data | {"split": "cold-items", "seed": seed} for seed in seeds])


def biases_row(dataset: Dataset, seeds: tuple[int, ...]) -> None:
    """The row of a model with biases only, which predicts items without ratings from the user's bias."""
    errors = []
    for seed in seeds:
        mask = dataset.test_mask("cold-items", 0.1, torch.Generator().manual_seed(seed))
        training, test = dataset.ratings.split(mask)
        predictions = biases_only(training, dataset.rating_range).predict_observed(test, clip=True)
        errors.append(rmse(predictions, test.values))
    print(f"| biases only | {spread(errors, 4)} | | |", flush=True)


def peer_row(name: str, dataset: Dataset, splits: list[tuple[str, int]]) -> None:
    """Train another package on the training set of each split and seed, and print its row."""
    epochs = PEERS[name].settings(len(dataset.ratings))["epochs"]
    try:
        points = [tested(dataset, split, seed, PEERS[name].trained) for split, seed in splits]
    except ImportError as error:
        print(f"| {name}: {error} | | | |", flush=True)
        return
    errors, seconds = zip(*points, strict=True)
    print(f"| {name} | {spread(errors, 4)} | {epochs} | {spread(seconds, 1)} |", flush=True)


def tested(dataset: Dataset, split: str, seed: int, trained: Callable[[Split], Point]) -> tuple[float, float]:
    """The test RMSE of another package on a split, and its seconds."""
    mask = dataset.test_mask(split, 0.1, torch.Generator().manual_seed(seed))
    training, test = dataset.ratings.split(mask)
    point = trained(Split.of(training, test, dataset.rating_range, seed))
    return rmse(torch.as_tensor(point.predictions, dtype=test.values.dtype), test.values), point.seconds


def spread(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation."""
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {std:.{digits}f}"


if __name__ == "__main__":
    tyro.cli(main)

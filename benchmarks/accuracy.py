"""Test RMSE and fit seconds of the solvers and of other packages: the tables of docs/results.md.

    python benchmarks/accuracy.py [--shared ../shared/data] [--seeds 0 1 2] [--tables embedded ml-100k ml-1m …]

Each figure is the mean ± standard deviation over the seeds, or over the folds u1 … u5 with seed 0.  A seed determines
the split if it is random, the initial factors and the order of the ratings.  Our rows are trainings with defaults,
except for the options shown.  Other packages (`peers.py`; install them with the [bench] extra) train on the same
training set.  The row of a package that is not installed is left out.

All defaults were chosen on validation sets, taken from the training ratings.  No choice looked at a test set.  Run it
alone on the machine: about an hour on two cores, most of it for the samplers.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from peer import Split
from peers import PEERS

from mfrec.data.dataset import Dataset
from mfrec.data.loading import load_dataset
from mfrec.evaluation.baselines import biases_only
from mfrec.evaluation.metrics import rmse
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.training import train

ROOT = Path(__file__).parents[1]
Options = dict[str, Any]
Table = Literal["embedded", "ml-100k", "ml-1m", "cold", "refit", "peers"]

POINT_ESTIMATES = ("sgd", "block-sgd", "als", "optim", "quasi-newton", "gd")
ITEM_FEATURES: Options = {"item_features": "genres,year"}
IMPLICIT: Options = {"implicit": "both"}
ALL_FEATURES: Options = {**IMPLICIT, "user_features": "age,gender,occupation", **ITEM_FEATURES}


def main(
    shared: Path = ROOT.parent / "shared" / "data",
    seeds: tuple[int, ...] = (0, 1, 2),
    tables: tuple[Table, ...] = ("embedded", "ml-100k", "ml-1m", "cold", "refit", "peers"),
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
                peer_row(name, dataset, split, seeds)


def header(title: str) -> None:
    """Begin a table."""
    print(f"\n{title}\n\n| command | test RMSE | epochs | fit seconds |\n|---|---:|---:|---:|", flush=True)


def row(solver: str, options: Options, variants: list[Options]) -> None:
    """Train with each of the variants' options, and print the row."""
    metrics = [measure(solver, options | variant) for variant in variants]
    errors = spread([m["test"]["rmse"] for m in metrics], 4)
    epochs = f"{statistics.mean(m['epochs'] for m in metrics):.0f}"
    seconds = spread([m["fit_seconds"] for m in metrics], 1)
    print(f"| `{command(solver, options)}` | {errors} | {epochs} | {seconds} |", flush=True)


def measure(solver: str, options: Options) -> Options:
    """The metrics of one training, with the logs of a usual run."""
    with tempfile.TemporaryDirectory() as folder:
        result = train(ExperimentConfig.create(solver, **options, run_dir=folder))
    assert result.metrics is not None
    return result.metrics


def command(solver: str, options: Options) -> str:
    """The options as on a command line.

    Examples:
        >>> command("sgd", {"item_features": "genres,year", "item_ids": False})
        'sgd --item-features genres,year --no-item-ids'
    """
    words = [solver]
    for name, value in options.items():
        flag = name.replace("_", "-")
        words.append(f"--{'no-' * (value is False)}{flag}")
        words += [] if isinstance(value, bool) else [str(value)]
    return " ".join(words)


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


def peer_row(name: str, dataset: Dataset, split: str, seeds: tuple[int, ...]) -> None:
    """Train another package on each seed's training set, and print its row."""
    errors, seconds = [], []
    for seed in seeds:
        mask = dataset.test_mask(split, 0.1, torch.Generator().manual_seed(seed))
        training, test = dataset.ratings.split(mask)
        split_ratings = Split.of(training, test, dataset.rating_range, seed)
        try:
            point = PEERS[name].trained(split_ratings)
        except ImportError as error:
            print(f"| {name}: {error} | | | |", flush=True)
            return
        errors.append(rmse(torch.as_tensor(point.predictions, dtype=test.values.dtype), test.values))
        seconds.append(point.seconds)
    print(f"| {name} | {spread(errors, 4)} | {point.epochs} | {spread(seconds, 1)} |", flush=True)


def spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation."""
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {std:.{digits}f}"


if __name__ == "__main__":
    tyro.cli(main)

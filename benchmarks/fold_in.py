"""Fold-in: users who were not in training, against training with them.

    python benchmarks/fold_in.py [--shared ../shared/data] [--data ml-1m] [--seeds 0 1 2]

A tenth of the users is held out entirely, and a random half of their ratings is hidden.  Each solver trains without
these users, folds them in by the visible half, and predicts the hidden half; and trains once more with the visible half
among the training ratings.  RMSE of either is on the hidden half; milliseconds are of folding in all of these users at
once, for each, and of one alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from mfrec.data import loading as datasets
from mfrec.data.dataset import Dataset
from mfrec.data.ratings import Ratings, per_user_split, random_split
from mfrec.evaluation.metrics import rmse
from mfrec.experiments.loop import answer, fit, posterior_of
from mfrec.experiments.training import make_solver
from mfrec.inference.fold_in import fold_in_user
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.features import implicit_features
from mfrec.solvers.base import SOLVERS, Solver

# What each is trained with beside its defaults.
WAYS: dict[str, dict[str, Any]] = {
    "sgd": {}, "als": {}, "vb": {}, "gibbs": {}, "gibbs --implicit both": {"implicit": "both"},
}  # fmt: skip


def main(
    shared: Path = Path("../shared/data"),
    data: str = "ml-1m",
    seeds: tuple[int, ...] = (0, 1, 2),
    ways: tuple[str, ...] = ("sgd", "als", "vb", "gibbs"),
) -> None:
    """Print the table.

    Args:
        shared: folder of the data sets.
        data: the name of one.
        seeds: of the users and ratings held out, and of training.
        ways: solvers, or "gibbs --implicit both".
    """
    dataset = datasets.load(shared / data)
    about = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    table = Table(title=f"{data}: a tenth of the users folded in — {about}")
    columns = ("", "RMSE, folded in", "RMSE, trained with", "difference", "ms a user, of many", "ms, one alone")
    for column in columns:
        table.add_column(column, justify="left" if not column else "right")
    for way in ways:
        rows = [measured(dataset, way, seed) for seed in seeds]
        table.add_row(way, *(spread([row[n] for row in rows], digits) for n, digits in enumerate((4, 4, 4, 2, 1))))
    Console(width=110).print(table)


def measured(dataset: Dataset, way: str, seed: int) -> tuple[float, ...]:
    """The table's figures at a seed."""
    generator = torch.Generator().manual_seed(seed)
    ratings = dataset.ratings
    held_out = torch.zeros(ratings.n_users, dtype=torch.bool)
    held_out[torch.randperm(ratings.n_users, generator=generator)[: ratings.n_users // 10]] = True
    new, half = held_out[ratings.users.long()], per_user_split(ratings, 0.5, generator)
    hidden, number = ratings.select(new & half), held_out.cumsum(0) - 1
    visible = of_new_users(ratings.select(new & ~half), number, int(held_out.sum()))

    without, together = (trained(dataset, ratings.select(kept), way, seed) for kept in (~new, ~(new & half)))
    model, law = answer(without), posterior_of(without) or without.objective

    def fold_in(some: Ratings) -> MatrixFactorization:
        features = {"implicit": implicit_features(some, "users")} if WAYS[way] else {}
        return fold_in_user(model, some, law, features=features, generator=torch.Generator().manual_seed(seed)).model

    folded = rmse(fold_in(visible).predict(number[hidden.users.long()], hidden.items, clip=True), hidden.values)
    joint = rmse(answer(together).predict(hidden.users, hidden.items, clip=True), hidden.values)
    one = of_new_users(visible.select(visible.users == 0), torch.zeros(1, dtype=torch.long), 1)
    many, alone = (statistics.median(seconds(fold_in, some) for _ in range(5)) * 1e3 for some in (visible, one))
    return folded, joint, folded - joint, many / visible.n_users, alone


def of_new_users(ratings: Ratings, number: torch.Tensor, n_users: int) -> Ratings:
    """The ratings with each user's number among the new ones as its index."""
    return Ratings(number[ratings.users.long()], ratings.items, ratings.values, n_users, ratings.n_items)


def trained(dataset: Dataset, ratings: Ratings, way: str, seed: int) -> Solver:
    """By the solver's defaults, with a twentieth for validation where it needs one."""
    name, generator = way.split()[0], torch.Generator().manual_seed(seed)
    defaults = SOLVERS[name].defaults
    train, valid = ratings.split(random_split(ratings, defaults.get("valid_fraction", 0.05), generator))
    options = {key: defaults[key] for key in ("rank", "l2", "bias_l2", "scaling") if key in defaults} | WAYS[way]
    solver = make_solver(name, dataset, train, generator=generator, **options)
    fit(solver, valid if len(valid) else None, epochs=defaults.get("epochs", 100), patience=defaults.get("patience", 8))
    return solver


def seconds(call: Callable[[Ratings], object], argument: Ratings) -> float:
    began = time.perf_counter()
    call(argument)
    return time.perf_counter() - began


def spread(values: list[float], digits: int) -> str:
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


if __name__ == "__main__":
    tyro.cli(main)

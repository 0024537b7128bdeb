"""Fold-in: users who were not in training, compared with training on their ratings.

    python benchmarks/fold_in.py [--shared ../shared/data] [--data ml-1m] [--seeds 0 1 2]

A tenth of the users is held out entirely, and a random half of their ratings is hidden.  Each solver trains without
these users, folds them in by the visible half, and predicts the hidden half.  Then it trains with the visible half
among the training ratings.  Both RMSEs are on the hidden half.  Milliseconds are for folding in all of these users at
once, per user, and for one alone.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from pathlib import Path
from typing import Any

import torch
import tyro
from record import SHARED, Figure, Report, seconds

from mfrec.data.dataset import Dataset
from mfrec.data.features import IMPLICIT_BLOCK, implicit_features
from mfrec.data.loading import load_dataset
from mfrec.data.ratings import Ratings
from mfrec.data.splits import TEST, TRAIN, VALID, per_user_split, random_split
from mfrec.evaluation.metrics import rmse
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.training import VALID_FRACTION, train
from mfrec.inference.fold_in import fold_in_users
from mfrec.posteriors.base import Posterior

# Names of rows, and the options besides a solver's defaults.
WAYS: dict[str, dict[str, Any]] = {
    "sgd": {}, "als": {}, "vb": {}, "gibbs": {}, "gibbs --implicit both": {"implicit": "both"},
}  # fmt: skip


def main(
    shared: Path = SHARED,
    data: str = "ml-1m",
    seeds: tuple[int, ...] = (0, 1, 2),
    ways: tuple[str, ...] = ("sgd", "als", "vb", "gibbs"),
) -> dict[str, Figure]:
    """Print the table.

    Args:
        shared: folder of the data sets.
        data: name of one of them.
        seeds: seeds of the users and ratings held out, and of training.
        ways: solvers, or "gibbs --implicit both".
    """
    dataset = load_dataset(shared / data)
    report = Report()
    title = f"{data}: a tenth of the users folded in, {torch.get_num_threads()} threads, torch {torch.__version__}"
    columns = ("RMSE, folded in", "RMSE, trained with", "difference", "ms per user, of many", "ms, one alone")
    report.table(title, "", *columns)
    for way in ways:
        columns_of_values = zip(*(measured(dataset, way, seed) for seed in seeds), strict=True)
        kinds = zip(columns_of_values, (4, 4, 4, 2, 1), ("RMSE", "RMSE", "RMSE", "ms", "ms"), strict=True)
        report.row(way, *(Figure.mean(values, digits, unit) for values, digits, unit in kinds))
    return report.figures


def measured(dataset: Dataset, way: str, seed: int) -> tuple[float, ...]:
    """The row's figures for a seed."""
    generator = torch.Generator().manual_seed(seed)
    ratings = dataset.ratings
    held_out = torch.zeros(ratings.n_users, dtype=torch.bool)
    held_out[torch.randperm(ratings.n_users, generator=generator)[: ratings.n_users // 10]] = True
    is_new, half = held_out[ratings.users.long()], per_user_split(ratings, 0.5, generator)
    hidden, position = ratings.select(is_new & half), held_out.cumsum(0) - 1
    visible = of_new_users(ratings.select(is_new & ~half), position, int(held_out.sum()))
    without, together = (posterior(dataset, kept, way, seed) for kept in (~is_new, ~(is_new & half)))

    def fold_in(new_ratings: Ratings) -> Posterior:
        features = {IMPLICIT_BLOCK: implicit_features(new_ratings, "users")} if WAYS[way] else {}
        return fold_in_users(without, new_ratings, features=features, generator=torch.Generator().manual_seed(seed))

    folded = fold_in(visible).mean_model().predict(position[hidden.users.long()], hidden.items, clip=True)
    joint = together.mean_model().predict(hidden.users, hidden.items, clip=True)
    errors = rmse(folded, hidden.values), rmse(joint, hidden.values)
    first = of_new_users(visible.select(visible.users == 0), torch.zeros(1, dtype=torch.long), 1)
    many, alone = (
        statistics.median(seconds(functools.partial(fold_in, some)) for _ in range(5)) * 1e3
        for some in (visible, first)
    )
    return *errors, errors[0] - errors[1], many / visible.n_users, alone


def of_new_users(ratings: Ratings, position: torch.Tensor, n_users: int) -> Ratings:
    """The ratings with each user's position among the new users as index."""
    return Ratings(position[ratings.users.long()], ratings.items, ratings.values, n_users, ratings.n_items)


def posterior(dataset: Dataset, kept: torch.Tensor, way: str, seed: int) -> Posterior:
    """The posterior of a training on the kept ratings, a twentieth of them for validation if the solver needs it."""
    config = ExperimentConfig.create(way.split()[0], **WAYS[way], seed=seed, run_dir=None)
    fraction = VALID_FRACTION if config.data.valid_fraction is None else config.data.valid_fraction
    positions = kept.nonzero()[:, 0]
    mask = random_split(dataset.ratings.select(kept), fraction, torch.Generator().manual_seed(seed))
    labels = torch.full((len(dataset.ratings),), TEST, dtype=torch.uint8)
    labels[positions] = torch.where(mask, VALID, TRAIN).to(torch.uint8)
    return train(config, dataclasses.replace(dataset, split_labels=labels)).posterior


if __name__ == "__main__":
    tyro.cli(main)

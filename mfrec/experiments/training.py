"""Experiments from plain arguments: which ratings train, validate and test, and a solver with a model of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mfrec.data.dataset import Dataset
from mfrec.data.ratings import Ratings, random_split
from mfrec.errors import InputError, unknown
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.features import dataset_features
from mfrec.model.objective import LOSSES, Objective
from mfrec.solvers.base import SOLVERS, Solver

TRAIN, VALID, TEST = 0, 1, 2
PARTS = {"train": TRAIN, "valid": VALID, "test": TEST}


def draw_parts(
    dataset: Dataset, split: str, test_fraction: float, valid_fraction: float, generator: torch.Generator
) -> Tensor:
    """(n_ratings,) TRAIN, VALID or TEST: a test part by a split's name, and of what is left a random validation part.

    Raises:
        InputError: the dataset has no such split, or nothing is left to train on.
    """
    part = torch.full((len(dataset.ratings),), TRAIN, dtype=torch.uint8)
    test = dataset.test_mask(split, test_fraction, generator)
    part[test] = TEST
    training = dataset.ratings.select(~test)
    part[(~test).nonzero().squeeze(1)[random_split(training, valid_fraction, generator)]] = VALID
    if not bool((part == TRAIN).any()):
        raise InputError(
            f"none of the {len(part):,} ratings of {dataset.name} is left to train on; "
            "lower --test-fraction and --valid-fraction"
        )
    return part


def split_parts(ratings: Ratings, part: Tensor) -> dict[str, Ratings]:
    """The ratings of each part by name, of part numbers, (n_ratings,); a part without ratings is left out."""
    part = part.to(ratings.device)
    return {name: ratings.select(part == number) for name, number in PARTS.items() if bool((part == number).any())}


def make_solver(
    name: str,
    dataset: Dataset,
    train: Ratings,
    *,
    generator: torch.Generator,
    rank: int = 64,
    biases: bool = True,
    offset: str = "global",
    damping: float = 5.0,
    implicit: str = "none",
    user_features: str = "",
    item_features: str = "",
    item_ids: bool = True,
    nonnegative: bool = False,
    init: str = "scaled-normal",
    l2: float = 1.0,
    bias_l2: float | None = None,
    scaling: str = "sqrt",
    loss: str = "squared",
    **knobs: Any,
) -> Solver:
    """A solver of `SOLVERS` with its model and objective, at the start of training on these ratings of the dataset.

    Args:
        user_features, item_features: columns of the dataset's tables, as "genres,year".
        loss: a name in `LOSSES`.
        knobs: the solver's own.

    The others are those of `MatrixFactorization.from_ratings`, `dataset_features` and `Objective`.

    Raises:
        InputError: the solver or the loss is unknown, or something else is refused by what takes it.

    Examples:
        >>> from mfrec.data.loading import synthetic
        >>> generator = torch.Generator().manual_seed(0)
        >>> dataset = synthetic(n_users=20, n_items=10, n_ratings=100, generator=generator)
        >>> solver = make_solver("gd", dataset, dataset.ratings, generator=generator, rank=4, l2=2.0, lr=0.001)
        >>> solver.model.rank, solver.objective.l2, solver.epoch()
        (4, 2.0, {'lr': 0.001})
    """
    if name not in SOLVERS:
        raise unknown("solver", name, SOLVERS)
    if loss not in LOSSES:
        raise unknown("loss", loss, LOSSES)
    users, items = dataset_features(dataset, train, implicit, user_features, item_features)
    model = MatrixFactorization.from_ratings(
        train,
        rank,
        biases=biases,
        offset=offset,
        damping=damping,
        scale=dataset.scale,
        user_features=users,
        item_features=items,
        item_ids=item_ids,
        nonnegative=nonnegative,
        init=init,
        generator=generator,
    )
    return SOLVERS[name](model, train, Objective(l2, bias_l2, scaling, LOSSES[loss]), generator=generator, **knobs)

"""Fold-in: rows for users and items that were not in training, with everything else as it was trained.

Each kind of posterior knows the distribution of a new row given its ratings (`mfrec.posteriors`); fold-in solves it
for each set of trained parameters, which is the training step for that row.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mfrec.data.features import Features
from mfrec.data.ratings import Ratings
from mfrec.model.entity import ITEM, USER
from mfrec.posteriors.base import Posterior
from mfrec.posteriors.new_rows import NewRows


@torch.no_grad()
def fold_in_users(
    posterior: Posterior,
    ratings: Ratings,
    *,
    features: Mapping[str, Features] | None = None,
    generator: torch.Generator | None = None,
) -> Posterior:
    """The posterior of new users, one or many, given their ratings of the model's items.

    Args:
        posterior: what the training inferred; it stays as it is.
        ratings: n new users × all items of the model.
        features: the new users' rows of the user features that the model was trained with, by name; moved to its
            device and dtype.
        generator: the source of samples, on the CPU; seeded with 0 by default.

    Returns:
        A posterior of the same kind over the new users and all items, without features.  New items are folded into
        the trained posterior, not into this one, which has no features.

    Raises:
        InputError: the ratings are of another number of items, features are not the model's, the posterior has no
            samples yet, or it minimizes another loss than the squared error.

    Examples:
        >>> from mfrec.model.factorization import MatrixFactorization
        >>> from mfrec.model.objective import Objective
        >>> from mfrec.posteriors.point_estimate import PointEstimate
        >>> users, items, rating_range = torch.zeros(1, 1), torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 5.0])
        >>> model = MatrixFactorization.from_augmented_factors(
        ...     users, items, biases=False, offset=None, rating_range=rating_range
        ... )
        >>> ratings = Ratings(torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([2.0, 4.0]))
        >>> folded = fold_in_users(PointEstimate(model, Objective(l2=5.0)), ratings)
        >>> round(folded.mean_model().user_factors.weight.item(), 4)  # (1·2 + 2·4) / (1² + 2² + 5)
        1.0
    """
    return _fold_in(posterior, NewRows(USER, posterior.model, ratings, features), generator)


@torch.no_grad()
def fold_in_items(
    posterior: Posterior,
    ratings: Ratings,
    *,
    features: Mapping[str, Features] | None = None,
    offset: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Posterior:
    """The posterior of new items, one or many, given the model's users' ratings of them.

    The mirror image of `fold_in_users`.

    Args:
        ratings: all users of the model × n new items.
        offset: (n,) the offset of each new item, if the model has one for each item.

    Returns:
        A posterior of the same kind over all users and the new items, without features.

    Raises:
        InputError: as for `fold_in_users`, or the offset is not one number for each new item.
    """
    return _fold_in(posterior, NewRows(ITEM, posterior.model, ratings, features, offset), generator)


def _fold_in(posterior: Posterior, new_rows: NewRows, generator: torch.Generator | None) -> Posterior:
    conditionals = posterior.conditionals(new_rows, generator)
    return posterior.folded(new_rows, (conditional.solve() for conditional in conditionals))

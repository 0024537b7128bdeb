"""What a model has to beat: predictors without factors, as models of rank 0 that everything else can evaluate."""

from __future__ import annotations

import torch

from mfrec.data.ratings import Ratings
from mfrec.model.factorization import MatrixFactorization
from mfrec.sparse import matmul


def baselines(ratings: Ratings, scale: tuple[float, float]) -> dict[str, MatrixFactorization]:
    """The baselines fitted to these ratings, by the name they are reported under; scale: lowest and highest rating.

    Examples:
        >>> ratings = Ratings(torch.tensor([0, 1, 0]), torch.tensor([0, 0, 1]), torch.tensor([5.0, 4.0, 3.0]))
        >>> model = baselines(ratings, scale=(1, 5))["global mean"]
        >>> model.predict_observed(ratings).tolist()
        [4.0, 4.0, 4.0]
    """
    return {
        "global mean": MatrixFactorization.from_ratings(ratings, 0, biases=False, offset="global", scale=scale),
        "item mean": MatrixFactorization.from_ratings(ratings, 0, biases=False, offset="item", scale=scale),
        "biases only": biases_only(ratings, scale),
    }


@torch.no_grad()
def biases_only(ratings: Ratings, scale: tuple[float, float], l2: float = 5.0, sweeps: int = 10) -> MatrixFactorization:
    """ŷ = μ + b_j + b_i, by alternating ridge regressions: b_j = Σ_i (y_ij − μ − b_i) / (n_j + l2), b_i likewise.

    Args:
        l2: λ of a row, the same whatever its number of ratings; 5 is as good as five ratings without a bias.
        sweeps: how often users and then items are gone over.
    """
    model = MatrixFactorization.from_ratings(ratings, 0, biases=True, offset="global", scale=scale)
    users, items = model.get_parameter("user_bias.weight"), model.get_parameter("item_bias.weight")
    targets = model.targets(ratings)
    sides = (
        (ratings.by_user, targets, users, items),
        (ratings.by_item, targets.index_select(0, ratings.item_order), items, users),
    )
    for _ in range(sweeps):
        for pattern, y, own, other in sides:
            residuals = y - other.index_select(0, pattern.col).squeeze(1)
            sums = matmul(pattern, residuals, torch.ones_like(other))
            own.copy_(sums / (pattern.counts[:, None] + l2))
    return model

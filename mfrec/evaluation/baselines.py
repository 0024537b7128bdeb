"""Baselines: models without factors that every trained model should beat."""

from __future__ import annotations

import torch

from mfrec.data.ratings import Ratings
from mfrec.model.factorization import MatrixFactorization
from mfrec.sparse import spmm


def baselines(ratings: Ratings, rating_range: tuple[float, float]) -> dict[str, MatrixFactorization]:
    """The baselines fitted to these ratings, by their names in tables.

    Examples:
        >>> ratings = Ratings(torch.tensor([0, 1, 0]), torch.tensor([0, 0, 1]), torch.tensor([5.0, 4.0, 3.0]))
        >>> model = baselines(ratings, rating_range=(1, 5))["global mean"]
        >>> model.predict_observed(ratings).tolist()
        [4.0, 4.0, 4.0]
    """

    def means(offset: str) -> MatrixFactorization:
        return MatrixFactorization.from_ratings(ratings, 0, biases=False, offset=offset, rating_range=rating_range)

    return {
        "global mean": means("global"),
        "item mean": means("item"),
        "biases only": biases_only(ratings, rating_range),
    }


@torch.no_grad()
def biases_only(
    ratings: Ratings, rating_range: tuple[float, float], l2: float = 5.0, sweeps: int = 10
) -> MatrixFactorization:
    """ŷ = μ + b_j + b_i, by alternating ridge regressions: b_j = Σ_i (y_ij − μ − b_i) / (n_j + l2), b_i likewise.

    Args:
        l2: λ of every row; 5 shrinks a bias as much as five ratings at the mean would.
        sweeps: how often to update the users' and then the items' biases.
    """
    model = MatrixFactorization.from_ratings(ratings, 0, biases=True, offset="global", rating_range=rating_range)
    assert model.user_bias is not None
    assert model.item_bias is not None
    user_bias, item_bias = model.user_bias.weight, model.item_bias.weight
    pattern, targets = ratings.pattern, model.targets(ratings)
    half_sweeps = (
        (pattern, targets, user_bias, item_bias),
        (pattern.T, targets.index_select(0, pattern.transpose_order), item_bias, user_bias),
    )
    for _ in range(sweeps):
        for rows, y, bias, partner_bias in half_sweeps:
            residuals = y - partner_bias.index_select(0, rows.col).squeeze(1)
            sums = spmm(rows, residuals, torch.ones_like(partner_bias))
            bias.copy_(sums / (rows.counts[:, None] + l2))
    return model

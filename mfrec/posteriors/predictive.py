"""The model that predicts held-out ratings: the posterior's mean, with other rows for some users.

**The average user.**  A user j without training ratings has the mean row of the U users with training ratings:

    θ̃_j = 1/U Σ_{n_l > 0} θ̃_l

The prior's mean would be unlike them: their mean bias need not be 0, and all of them have implicit features.  Users
with features of another kind, such as an age, keep the product of these features, and the mean is that of everything
else.  The mean of samples is a product without features: there, such users keep their rows.

**Recent bias.**  The errors of a user's latest ratings move the user's bias, for ratings that follow soon:

    δ_j = Σ_n 2^(−m_n/h) w_n e_n / (Σ_n 2^(−m_n/h) w_n + h)

e_n are the errors of the mean model on the user's training ratings, and w_n their weights.  m_n is the number of newer
ratings of the user, and h a half-life in ratings.  The h in the denominator damps the mean of few ratings.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mfrec.data.features import IMPLICIT_BLOCK
from mfrec.data.ratings import Ratings
from mfrec.data.splits import newer_ratings
from mfrec.errors import OptionError
from mfrec.model.entity import ITEM, USER
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.ordinal import BUFFERS, OrdinalFactorization
from mfrec.posteriors.base import Posterior, without_features
from mfrec.sparse import spmm


@torch.no_grad()
def predictive_model(
    posterior: Posterior, train: Ratings, recent_bias: int = 0, *, mean_model: MatrixFactorization | None = None
) -> MatrixFactorization:
    """The model that predicts held-out ratings of the trained users; see the module's docstring.

    Args:
        train: the training ratings, on the model's device.
        recent_bias: the half-life h in ratings; 0 leaves user biases as they are.
        mean_model: `posterior.mean_model()`, if the caller has it.

    Returns:
        The mean model itself, if every user has ratings and there is no recent bias; else a copy without features.

    Raises:
        InputError: recent biases need a model with user biases, or ratings with timestamps.
    """
    model = posterior.mean_model() if mean_model is None else mean_model
    shift = recent_biases(model, train, recent_bias) if recent_bias else None
    return with_predictive_users(model, train.user_counts > 0, has_side_features(posterior.model), shift, train)


@torch.no_grad()
def with_predictive_users(
    model: MatrixFactorization,
    rated: Tensor,
    described: Tensor,
    shift: Tensor | None = None,
    train: Ratings | None = None,
) -> MatrixFactorization:
    """The model with average rows for users without ratings, and shifted user biases.

    Args:
        rated: (n_users,) bool, which users have training ratings; at least one has.
        described: (n_users,) bool, which users have features other than implicit ones.
        shift: (n_users,) δ, in stars, or None.
        train: the training ratings, if several processes may have the model's rows.
    """
    rated, described = rated.to(model.device), described.to(model.device)
    lacks_some = not bool(rated.all())
    if not (lacks_some if train is None else train.any(lacks_some)) and shift is None:
        return model

    def mean(rows: Tensor) -> Tensor:
        return rows[rated].mean(0) if train is None else train.row_mean(USER, rows, rated)

    rows, side = model.entity_factors(USER).detach(), _side_rows(model)
    # Without the part of its features, the row of a user who has some is the best there is.
    of_described = rows if side is None else mean(rows - side) + side
    replaced = of_described.where(described[:, None], mean(rows))
    rows = rows.where(rated[:, None], replaced)
    if shift is not None:
        rows[:, model.rank] += shift.to(rows)
    return with_user_rows(model, rows)


def has_side_features(model: MatrixFactorization) -> Tensor:
    """(n_users,) bool, which users have features other than implicit ones."""
    described = torch.zeros(model.n_users, dtype=torch.bool, device=model.device)
    for name, block in model.users.feature_blocks.items():
        if name != IMPLICIT_BLOCK:
            described |= block.features.matrix.pattern.counts.to(model.device) > 0
    return described


def recent_biases(model: MatrixFactorization, train: Ratings, half_life: int) -> Tensor:
    """(n_users,) δ, the damped mean error of each user's latest ratings, in stars; 0 for users without ratings.

    Args:
        half_life: h, the number of newer ratings that halves a rating's weight; at least 1.

    Raises:
        InputError: the model has no user biases, or the ratings have no timestamps.
    """
    if not model.biases:
        raise OptionError("recent_bias", "needs a model with biases; turn biases on, or leave it out")
    if train.timestamps is None:
        raise OptionError("recent_bias", "needs timestamps, which these ratings lack; leave it out")
    errors = train.values - model.predict_observed(train)
    weights = train.weighted(0.5 ** (newer_ratings(train, train.timestamps).to(errors) / half_life))
    ones = torch.ones(train.n_items, 1, dtype=errors.dtype, device=errors.device)
    sums, totals = (spmm(train.pattern, values, ones)[:, 0] for values in (weights * errors, weights))
    return sums / (totals + half_life)


def with_user_rows(model: MatrixFactorization, rows: Tensor, user_scales: Tensor | None = None) -> MatrixFactorization:
    """A model like this one with these augmented factors of users, (n, k), and without features.

    Args:
        user_scales: (n, 1) the precision scales of an ordinal model's users; by default the model's.
    """
    scores = without_features(model, rows, model.entity_factors(ITEM).detach())
    if not isinstance(model, OrdinalFactorization):
        return scores
    buffers = {name: getattr(model, name) for name in BUFFERS}
    return OrdinalFactorization(scores, **buffers | ({} if user_scales is None else {"user_scales": user_scales}))


def _side_rows(model: MatrixFactorization) -> Tensor | None:
    """(n_users, k) the part of features other than implicit ones in the rows of users; None if the model has none."""
    terms = [term for term in model.terms(USER) if term.features is not None]
    parts = [
        term.product(model.weights(term)).detach()
        for name, term in zip(model.users.feature_blocks, terms, strict=True)
        if name != IMPLICIT_BLOCK
    ]
    return sum(parts[1:], parts[0]) if parts else None

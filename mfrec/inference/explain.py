"""Explanations: how much each of a user's ratings adds to a prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mfrec.data.features import IMPLICIT_BLOCK, Features
from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.model.entity import USER
from mfrec.model.pair_products import check_indices
from mfrec.posteriors.base import Posterior
from mfrec.posteriors.new_rows import Conditional, NewRows

if TYPE_CHECKING:
    from mfrec.inference.trained_model import TrainedModel


class Reason(NamedTuple):
    """A rating of the user that speaks for a recommendation, and how much it adds to the prediction, in stars."""

    title: str
    rating: float
    share: float


@torch.no_grad()
def explain(
    posterior: Posterior,
    ratings: Ratings,
    items: Tensor,
    *,
    features: Mapping[str, Features] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(n_items, n_ratings) how much each rating of one user adds to the prediction of each of these items, in stars.

    The user's row is linear in the residuals, so the prediction of item t is a sum over the ratings,

        θ · x̃_t = Σ_i τ w r_i (x̃_iᵀ H⁻¹ x̃_t) + the prior's part

    A rating above expectation speaks for items like its own and against those unlike it.  (Hu, Koren & Volinsky 2008,
    "Collaborative filtering for implicit feedback datasets", eq. 7.)  With implicit features, the fact that i was rated
    adds its share of the base, F_i W̃_i · x̃_t.

    Args:
        posterior: what the training inferred.
        ratings: one user's, of the model's items.
        items: (n_items,) indices.
        features: the user's row of the user features that the model was trained with, by name.
        generator: the source of samples, on the CPU; seeded with 0 by default.

    Raises:
        InputError: the ratings are of several users, an item is not in the model, implicit features are of other
            ratings, or the model is non-negative, so that its rows are not linear in the ratings.
    """
    new_rows = NewRows(USER, posterior.model, ratings, features)
    if new_rows.n_rows != 1:
        raise InputError(f"ratings to explain must be of one user (got {new_rows.n_rows:,} users)")
    if not posterior.explainable:
        raise InputError("cannot explain an ordinal likelihood; train with the Gaussian one to get reasons")
    if posterior.model.nonnegative:
        raise InputError("cannot explain a non-negative model; train without nonnegative to get reasons")
    check_indices("item", items, posterior.model.n_items)
    items, implicit = items.to(posterior.model.device), new_rows.features.get(IMPLICIT_BLOCK)
    if implicit is not None and not torch.equal(implicit.matrix.pattern.col.long(), new_rows.ratings.items.long()):
        raise InputError("implicit features must be those of the ratings to explain; make them with implicit_features")
    conditionals = posterior.conditionals(new_rows, generator)
    return torch.stack([_shares(conditional, items) for conditional in conditionals]).mean(0)


def _shares(conditional: Conditional, items: Tensor) -> Tensor:
    """(n_items, n_ratings) the shares, given one set of trained parameters."""
    new_rows, partners = conditional.new_rows, conditional.partners
    columns, rated = new_rows.columns, new_rows.ratings.items.long()
    # The residuals are then less the session biases, and the rows given these have this τ.
    tau = None if conditional.sessions is None else conditional.solve().precision_scales
    (statistics,) = conditional.statistics()
    tau = conditional.solve_block(statistics).precision_scales if tau is None else tau
    _, factor = statistics.minimum(tau, conditional.ridge(statistics.rows, tau))
    towards = torch.cholesky_solve(partners[items][:, columns].mT, factor[0])
    residuals = conditional.residuals * tau[0]
    if conditional.view.weights is not None:
        residuals = residuals * conditional.view.weights
    shares = (partners[rated][:, columns] @ towards).mT * residuals
    implicit = new_rows.features.get(IMPLICIT_BLOCK)
    if implicit is not None:
        weights = new_rows.feature_weights(conditional.parameters)[IMPLICIT_BLOCK][rated]
        shares += partners[items] @ weights.mT * implicit.matrix.values
    return shares


def reasons(
    trained: TrainedModel, user: int, items: Tensor, n: int, generator: torch.Generator | None = None
) -> list[list[Reason]]:
    """For each of these items, at most n ratings of the user that add most to its prediction, best first.

    Args:
        user: a user index of the trained model.
        items: (n_items,) item indices.

    Raises:
        InputError: `explain` refuses the model.
    """
    train = trained.train
    rated = train.select(train.users == user)
    indices = torch.zeros_like(rated.users), rated.items
    ratings = Ratings(*indices, rated.values, 1, rated.n_items, rated.timestamps, rated.weights)
    features = trained.origin.features_of(USER, ratings, trained.dataset.users.iloc[[user]])
    shares = explain(trained.origin.posterior, ratings, items, features=features, generator=generator)
    titles, values = [trained.dataset.title(item) for item in ratings.items.tolist()], ratings.values.tolist()
    listed = []
    for row in shares:
        best = row.argsort(descending=True, stable=True)[:n].tolist()
        listed.append([Reason(titles[k], values[k], float(row[k])) for k in best if float(row[k]) > 0])
    return listed

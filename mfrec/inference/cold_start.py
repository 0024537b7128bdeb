"""Cold start: predictions and recommendations for users and items without ratings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.data.side_information import SIDE_INFORMATION_BLOCK, entity_features
from mfrec.model.entity import ITEM, USER
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.offsets import centring_offset
from mfrec.model.ordinal import OrdinalFactorization
from mfrec.posteriors.base import Posterior
from mfrec.posteriors.predictive import with_user_rows

if TYPE_CHECKING:
    from mfrec.inference.trained_model import TrainedModel


def unknown_row(trained: TrainedModel, entity: int) -> Posterior:
    """One user or item without ratings and features, and all rows of the other entity.

    Raises:
        InputError: the posterior has no samples yet.
    """
    sizes = (1, trained.model.n_items) if entity == USER else (trained.model.n_users, 1)
    no_index = torch.zeros(0, dtype=torch.long)
    return trained.fold_in_rows(entity, Ratings(no_index, no_index, torch.zeros(0), *sizes), pd.DataFrame(index=[0]))


def average_user(trained: TrainedModel) -> Posterior:
    """One user without ratings and features, predicted as the mean of the users with training ratings, and all items.

    Raises:
        InputError: the posterior has no samples yet.
    """
    posterior = unknown_row(trained, USER)
    # The average is that of the trained users, not of folded-in ones; the items are the same.
    model = (trained.origin if trained.folded == USER else trained).posterior.mean_model()
    with torch.no_grad():
        average = model.entity_factors(USER)[trained.origin.train.user_counts > 0].mean(0, keepdim=True)
    folded = posterior.mean_model()
    scales = folded.user_scales if isinstance(folded, OrdinalFactorization) else None
    return posterior.predicting_by(with_user_rows(model, average, scales))


def users_with_evidence(trained: TrainedModel) -> Tensor:
    """(n_users,) bool, which users have training ratings or features to recommend by; on the CPU."""
    raters = trained.origin if trained.folded == ITEM else trained
    evidence = raters.train.user_counts.cpu() > 0
    if trained.user_features.strip(" ,"):
        features = entity_features(
            "users", trained.origin.dataset, raters.train, "none", trained.user_features, raters.dataset.users
        )
        evidence = evidence | (features[SIDE_INFORMATION_BLOCK].matrix.pattern.counts.cpu() > 0)
    return evidence


def popularity_model(trained: TrainedModel) -> MatrixFactorization:
    """The model that predicts each item's damped mean rating for every user."""
    rated = trained.train if trained.folded == ITEM else trained.origin.train
    means, model = centring_offset(rated, "item", trained.damping, trained.mean_rating), trained.model
    no_factors = [torch.zeros(n, 0, dtype=model.dtype, device=model.device) for n in (model.n_users, model.n_items)]
    return model.from_augmented_factors(*no_factors, biases=False, offset=means, rating_range=model.rating_range)

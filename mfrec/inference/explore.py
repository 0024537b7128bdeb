"""Exploration: rank items by what their ratings may turn out to be, instead of by the prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mfrec.errors import unknown
from mfrec.posteriors.base import Z_90

if TYPE_CHECKING:
    from mfrec.inference.trained_model import TrainedModel

Explore = Literal["none", "upper", "thompson"]
BY_PREDICTION = "predicted rating"
# The quantity that each way to explore ranks by.
EXPLORE: dict[Explore, str] = {
    "none": BY_PREDICTION,
    "upper": "the 95 % quantile of the expected rating",
    "thompson": "one draw of the expected rating",
}


def check_explore(trained: TrainedModel, explore: str) -> None:
    """Check that a model can be explored in this way.

    Raises:
        InputError: the way is unknown, or the model has no standard deviations.
    """
    if explore not in EXPLORE:
        raise unknown("way to explore", explore, EXPLORE)
    if explore != "none":
        trained.posterior.require_std()


def ranking_scores(
    trained: TrainedModel, user: int, explore: Explore, generator: torch.Generator | None
) -> Tensor | None:
    """(n_items,) the scores to rank a user's items by; None for the predictions.

    Args:
        user: a user index.
        generator: the source of the draw of "thompson".
    """
    if explore == "none":
        return None
    model = trained.model if explore == "upper" else trained.posterior.sample(generator)
    items = torch.arange(model.n_items, device=model.device)
    users = torch.full_like(items, user)
    scores = model.predict(users, items)
    if explore == "upper":
        scores = scores + Z_90 * trained.posterior.std(users, items, include_noise=False)
    return scores

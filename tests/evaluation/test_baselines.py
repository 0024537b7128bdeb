"""Baselines: two means, and biases at the minimum of their cost."""

import pytest
import torch

from mfrec.data.ratings import Ratings
from mfrec.evaluation.baselines import baselines, biases_only
from mfrec.model.objective import Objective


@pytest.fixture
def ratings() -> Ratings:
    generator = torch.Generator().manual_seed(0)
    observed = torch.rand(13, 11, generator=generator) < 0.5
    stars = torch.randint(1, 6, (13, 11), generator=generator).double()
    return Ratings.from_dense(stars, observed)


def test_the_mean_baselines_predict_means(ratings):
    models = baselines(ratings, (1.0, 5.0))
    assert list(models) == ["global mean", "item mean", "biases only"]
    mean = float(ratings.values.mean())
    assert models["global mean"].predict_observed(ratings).unique().tolist() == [pytest.approx(mean)]
    items = models["item mean"].predict_observed(ratings)
    assert len(items.unique()) > 5
    assert all(len(items[ratings.items == i].unique()) <= 1 for i in range(13))


def test_the_biases_end_where_the_gradient_of_their_cost_is_zero(ratings):
    model = biases_only(ratings, (1.0, 5.0), l2=3.0, sweeps=200)
    gradients = Objective(3.0).gradients(model, ratings)
    assert {"users.bias.weight", "items.bias.weight"} <= set(gradients)
    for gradient in gradients.values():
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)

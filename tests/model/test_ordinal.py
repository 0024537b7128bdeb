"""The ordinal model: expected ratings and probabilities of levels from scores."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mfrec.data.ratings import Ratings
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.ordinal import OrdinalFactorization

N_USERS, N_ITEMS = 5, 7
USERS, ITEMS = torch.cartesian_prod(torch.arange(N_USERS), torch.arange(N_ITEMS)).T
LEVELS = torch.tensor([0.5, 1.0, 3.0, 5.0], dtype=torch.float64)


def scores_model(offset: float | None = None, biases: bool = True) -> MatrixFactorization:
    centre = None if offset is None else torch.tensor(offset, dtype=torch.float64)
    model = MatrixFactorization(
        N_USERS, N_ITEMS, 2, biases=biases, offset=centre, rating_range=(0.5, 5.0), dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def ordinal(model: MatrixFactorization, spread: float = 0.3) -> OrdinalFactorization:
    generator = torch.Generator().manual_seed(1)
    user_scales, item_scales = (
        0.5 + torch.rand(n, 1, generator=generator, dtype=torch.float64) for n in (N_USERS, N_ITEMS)
    )
    return OrdinalFactorization(
        model,
        levels=LEVELS,
        cutpoints=torch.tensor([-0.7, 0.1, 1.2], dtype=torch.float64),
        user_scales=user_scales,
        item_scales=item_scales,
        spread=spread,
    )


def every_rating() -> Ratings:
    return Ratings(USERS, ITEMS, LEVELS[(USERS + ITEMS) % 4], N_USERS, N_ITEMS)


def probabilities(model: OrdinalFactorization) -> Tensor:
    scores = model.scores_model().predict(USERS, ITEMS)
    return model.level_probabilities(scores, USERS, ITEMS)


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("offset", [None, 0.4])
def test_predictions_are_expected_ratings_under_the_probabilities_of_the_levels(biases, offset):
    scores = scores_model(offset, biases)
    model = ordinal(scores)
    m = scores.predict(USERS, ITEMS)
    sigma = (1 / (model.user_scales[USERS, 0] * model.item_scales[ITEMS, 0]) + 0.3).sqrt()
    normal = torch.distributions.Normal(m, sigma)
    below = torch.stack([m * 0, *(normal.cdf(cutpoint) for cutpoint in model.cutpoints), m * 0 + 1])
    assert_close(probabilities(model), below.diff(dim=0).T)
    assert_close(model.predict(USERS, ITEMS), below.diff(dim=0).T @ LEVELS)


def test_pairs_of_indices_and_observed_ratings_are_predicted_alike():
    model = ordinal(scores_model())
    expected = model.predict(USERS, ITEMS)
    assert_close(model.predict_observed(every_rating()), expected)
    assert_close(model(USERS, ITEMS), expected)
    assert float(expected.min()) > 0.5
    assert float(expected.max()) < 5.0


def test_the_spread_makes_them_the_mean_over_normal_scores():
    model, generator, n = ordinal(scores_model(), spread=0.0), torch.Generator().manual_seed(0), 40_000
    m = model.scores_model().predict(USERS[:4], ITEMS[:4])
    scores = m + math.sqrt(0.3) * torch.randn(n, 4, generator=generator, dtype=torch.float64)
    mean = model.to_ratings(scores, USERS[:4], ITEMS[:4]).mean(0)
    expected = ordinal(scores_model(), spread=0.3).predict(USERS[:4], ITEMS[:4])
    assert_close(mean, expected, rtol=0, atol=0.03)
    shares = model.level_probabilities(m, USERS[:4], ITEMS[:4], variance=torch.full((4,), 0.3, dtype=torch.float64))
    assert_close(shares @ LEVELS, expected)


def test_scores_of_any_shape_are_mapped_with_indices_that_broadcast():
    model = ordinal(scores_model())
    scores = model.scores_model().predict(USERS, ITEMS).view(N_USERS, N_ITEMS)
    users, items = torch.arange(N_USERS)[:, None], torch.arange(N_ITEMS)
    expected = model.predict(USERS, ITEMS).view(N_USERS, N_ITEMS)
    assert_close(model.to_ratings(scores, users, items), expected)
    assert_close(model.level_probabilities(scores, users, items) @ LEVELS, expected)


def test_probabilities_add_up_to_1_and_none_is_0_in_the_tails():
    model = ordinal(scores_model())
    zero = torch.zeros(1, dtype=torch.long)
    for score in (-60.0, -15.0, 0.0, 15.0, 60.0):
        shares = model.level_probabilities(torch.tensor([score]), zero, zero)
        assert shares.dtype == torch.float64
        assert float(shares.min()) > 0
        assert float(shares.sum()) == pytest.approx(1, abs=1e-14)


def test_the_gradient_of_predictions_reaches_the_parameters():
    model = ordinal(scores_model())
    model(USERS, ITEMS).sum().backward()
    assert model.user_factors.weight.grad is not None
    assert float(model.user_factors.weight.grad.abs().min()) > 0


def test_a_stored_state_predicts_the_same():
    model, buffer = ordinal(scores_model(offset=0.2)), io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    loaded = OrdinalFactorization.from_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(loaded.predict(USERS, ITEMS), model.predict(USERS, ITEMS))


def test_other_factors_make_a_plain_model():
    model = ordinal(scores_model())
    assert type(model.scores_model()) is MatrixFactorization
    assert_close(model.scores_model().predict(USERS, ITEMS), scores_model().predict(USERS, ITEMS))


def test_it_has_the_type_of_the_scores():
    model = ordinal(scores_model()).to(torch.float32)
    assert model.dtype == model.predict(USERS, ITEMS).dtype == torch.float32
    assert_close(model.predict(USERS, ITEMS).double(), ordinal(scores_model()).predict(USERS, ITEMS), atol=1e-5, rtol=0)

"""Session biases: their effect and gradients by plain loops and autograd, and the steps that minimize J in them."""

from __future__ import annotations

import itertools

import pytest
import torch
from session_examples import with_times
from torch.testing import assert_close

from mfrec.data.ratings import Ratings
from mfrec.data.sessions import Sessions
from mfrec.errors import InputError
from mfrec.model.entity import ENTITY_NAMES
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.losses import LOSSES
from mfrec.model.objective import L2_SCALINGS, Objective
from mfrec.model.session_biases import SESSION_BIAS, prior_variances

GAPS = (0, 3, 20)


@pytest.fixture(scope="module")
def ratings(weighted_ratings: Ratings) -> Ratings:
    return with_times(weighted_ratings)


def make_model(ratings: Ratings, gaps: tuple[int, ...] = GAPS, offset: str = "item", **options) -> MatrixFactorization:
    """A model with sessions whose parameters are all drawn."""
    generator = torch.Generator().manual_seed(1)
    sessions = Sessions(ratings, gaps)
    model = MatrixFactorization.from_ratings(
        ratings, 3, offset=offset, sessions=sessions, generator=generator, **options
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def looped_effect(model: MatrixFactorization, users: torch.Tensor, timestamps: torch.Tensor) -> torch.Tensor:
    """Σ_l b(l, g_l(n)), rating by rating and gap by gap."""
    numbers = model.sessions.sessions.at(users, timestamps).T.tolist()
    bias = model.sessions.bias.weight[:, 0]
    zero = torch.zeros((), dtype=bias.dtype)
    return torch.stack([sum((bias[g] for g in row if g >= 0), zero) for row in numbers])


def test_the_effect_is_the_sum_of_the_biases_of_a_rating_s_sessions(ratings):
    model = make_model(ratings)
    sessions = model.sessions
    assert_close(sessions.effect(ratings), looped_effect(model, ratings.users, ratings.timestamps))
    held_out = with_times(ratings, seed=5)
    expected = looped_effect(model, held_out.users, held_out.timestamps)
    assert 0 < int((expected == 0).sum()) < len(held_out)
    assert_close(sessions.effect(held_out), expected)
    assert_close(sessions.at(held_out.users, held_out.timestamps), expected)
    bias = torch.arange(len(sessions.sessions)).double()[:, None]
    assert_close(sessions.effect(held_out, bias), sessions.at(held_out.users, held_out.timestamps, bias))
    assert_close(sessions.with_bias(bias).effect(held_out), sessions.effect(held_out, bias))


def test_sums_are_the_transpose_of_the_effect(ratings):
    sessions = make_model(ratings).sessions
    S = torch.stack([sessions.effect(ratings, unit[:, None]) for unit in torch.eye(len(sessions.sessions)).double()], 1)
    values = torch.arange(len(ratings)).double()
    assert_close(sessions.sums(ratings, values), S.T @ values[:, None])
    for level, rows in enumerate(sessions.sessions.slices):
        assert_close(sessions.gap_sums(ratings, level, values), S.T[rows] @ values[:, None])
        bias = sessions.bias.weight[rows]
        assert_close(sessions.gap_effect(ratings, level, bias), S[:, rows] @ bias[:, 0])
    assert torch.autograd.gradcheck(lambda b: sessions.effect(ratings, b), sessions.bias.weight)


def plain_cost(objective: Objective, model: MatrixFactorization, ratings: Ratings) -> torch.Tensor:
    """J by embeddings and loops, for torch's autograd."""
    products = model(ratings.users, ratings.items)
    losses = objective.loss(products + looped_effect(model, ratings.users, ratings.timestamps), ratings.values)[0]
    cost = (ratings.weights * losses).sum()
    power = {"row": 0.0, "sqrt": 0.5, "rating": 1.0}[objective.l2_scaling]
    counts = {"users": ratings.user_counts.double(), "items": ratings.item_counts.double()}
    for name, parameter in model.named_parameters():
        if name == SESSION_BIAS:
            cost = cost + 0.5 * objective.session_l2 * parameter.square().sum()
        else:
            l2 = objective.bias_l2 if "bias" in name else objective.l2
            cost = cost + 0.5 * (l2 * counts[name.split(".")[0]][:, None] ** power * parameter.square()).sum()
    return cost


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("l2_scaling", L2_SCALINGS)
@pytest.mark.parametrize("offset", ["none", "global", "item"])
@pytest.mark.parametrize("session_l2", [0.0, 2.5])
def test_cost_and_gradients_are_those_of_the_plain_formula(ratings, loss, l2_scaling, offset, session_l2):
    model, objective = make_model(ratings, offset=offset), Objective(1.3, 0.4, l2_scaling, loss, session_l2)
    expected = plain_cost(objective, model, ratings)
    names, parameters = zip(*model.named_parameters(), strict=True)
    by_autograd = dict(zip(names, torch.autograd.grad(expected, parameters), strict=True))
    cost, gradients = objective.cost_and_gradients(model, ratings)
    assert_close(cost, expected.detach())
    assert_close(objective.cost(model, ratings), expected.detach())
    assert_close(gradients, by_autograd)
    (3 * objective(model, ratings)).backward()
    for name, gradient in by_autograd.items():
        assert_close(model.get_parameter(name).grad, 3 * gradient)


def test_only_a_penalty_on_session_biases_is_counted_too(ratings):
    model, objective = make_model(ratings), Objective(0.0, session_l2=3.0)
    assert_close(objective.penalty(model, ratings), 1.5 * model.sessions.bias.weight.square().sum())


@pytest.mark.parametrize("entity", ENTITY_NAMES)
def test_the_cost_of_a_row_counts_its_session_biases(ratings, entity):
    model, objective = make_model(ratings), Objective(1.3, 0.4, "sqrt", session_l2=2.0)
    n_rows = {"user": ratings.n_users, "item": ratings.n_items}[entity]
    total = sum(getattr(objective, f"{entity}_cost")(model, ratings, row) for row in range(n_rows))
    weights = objective.penalty_weights(model, ratings)
    penalties = [
        0.5 * (weights[name] * parameter.square()).sum()
        for name, parameter in model.named_parameters()
        if not name.startswith(entity)
    ]
    assert_close(total, objective.cost(model, ratings) - sum(penalties))


def test_targets_are_ratings_less_offset_and_session_biases(ratings):
    model = make_model(ratings)
    effect = looped_effect(model, ratings.users, ratings.timestamps)
    assert_close(model.targets(ratings), ratings.values - model.offset[ratings.items] - effect.detach())


# The step of solvers that do not follow all gradients at once.


@pytest.mark.parametrize("session_l2", [0.0, 2.5])
def test_minimizing_sessions_of_one_gap_makes_their_gradient_zero(ratings, session_l2):
    model, objective = make_model(ratings, gaps=(3,)), Objective(1.3, session_l2=session_l2)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    objective.minimize_sessions(model, ratings)
    gradient = objective.gradients(model, ratings)[SESSION_BIAS]
    assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name != SESSION_BIAS)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_minimizing_sessions_never_raises_the_cost_and_ends_at_the_minimum(ratings, loss):
    model, objective = make_model(ratings), Objective(1.3, loss=loss, session_l2=0.5)
    costs = [float(objective.cost(model, ratings))]
    for _ in range(400):
        objective.minimize_sessions(model, ratings)
        costs.append(float(objective.cost(model, ratings)))
    assert all(after <= before * (1 + 1e-14) for before, after in itertools.pairwise(costs))
    gradient = objective.gradients(model, ratings)[SESSION_BIAS]
    assert_close(gradient, torch.zeros_like(gradient), atol=1e-8, rtol=0)


# Predictions.


@torch.no_grad()
def test_predictions_with_timestamps_are_those_of_ratings_at_these_times(ratings):
    model = make_model(ratings)
    held_out = with_times(ratings, seed=5)
    for some in (ratings, held_out):
        pairs = some.users.long(), some.items.long()
        expected = model.predict(*pairs) + looped_effect(model, some.users, some.timestamps)
        assert_close(model.predict(*pairs, timestamps=some.timestamps), expected)
        assert_close(model.predict_observed(some), expected)
        assert_close(model(*pairs, some.timestamps), expected)
        low, high = model.rating_range
        assert_close(model.predict(*pairs, timestamps=some.timestamps, clip=True), expected.clamp(low, high))


@torch.no_grad()
def test_without_timestamps_predictions_are_those_of_a_model_without_sessions(ratings):
    model = make_model(ratings)
    plain = {name: value for name, value in model.state_dict().items() if name != SESSION_BIAS}
    pairs = ratings.users.long(), ratings.items.long()
    assert torch.equal(model.predict(*pairs), MatrixFactorization.from_state_dict(plain).predict(*pairs))


def test_ratings_without_timestamps_are_refused(weighted_ratings, ratings):
    model = make_model(ratings)
    with pytest.raises(InputError, match="sessions need timestamps, which these ratings lack"):
        model.predict_observed(weighted_ratings)
    with pytest.raises(InputError, match="sessions need timestamps, which these ratings lack"):
        Objective(1.0).cost(model, weighted_ratings)


@torch.no_grad()
def test_a_model_is_restored_from_its_state_and_its_sessions(ratings):
    model = make_model(ratings)
    again = MatrixFactorization.from_state_dict(model.state_dict(), sessions=model.sessions.sessions)
    assert torch.equal(again.predict_observed(ratings), model.predict_observed(ratings))
    assert "sessions by gaps of 0, 3, 20 s" in repr(again)


def test_the_variance_of_the_prior_is_that_of_its_distribution():
    precision = torch.tensor([0.5, 2.0, 8.0])
    assert_close(prior_variances(precision, None), 1 / precision)
    distribution = torch.distributions.StudentT(4.5, scale=precision.rsqrt())
    assert_close(prior_variances(precision, 4.5), distribution.variance)

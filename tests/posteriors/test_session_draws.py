"""Draws of session biases have the moments of their conditionals, and standard deviations those of their draws."""

from __future__ import annotations

import itertools

import pytest
import torch
from posterior_examples import a_model, assert_moments, ratings_of, seeded
from session_examples import samples_with_sessions, with_times
from torch import Tensor
from torch.testing import assert_close

from mfrec.data.ratings import Ratings
from mfrec.data.sessions import Sessions
from mfrec.model.session_biases import SESSION_BIAS, SessionBiases, prior_variances
from mfrec.posteriors.base import PRIOR_RATE, PRIOR_SHAPE
from mfrec.posteriors.session_draws import SessionDraws

N_DRAWS = 1500
GAPS = (0, 6)
FREEDOMS = pytest.mark.parametrize("freedom", [None, 4.0], ids=["gaussian", "t"])
ALPHA = 1.7


@pytest.fixture(scope="module")
def ratings() -> Ratings:
    """Weighted ratings of 3 users × 8 items in sessions of one to several ratings."""
    return with_times(ratings_of(3, 8))


def make_draws(ratings: Ratings, freedom: float | None, gaps: tuple[int, ...] = GAPS) -> SessionDraws:
    """Session biases in the middle of a chain."""
    biases, generator = SessionBiases(Sessions(ratings, gaps), torch.float64), seeded(6)
    draws = SessionDraws(biases, ratings, freedom)
    with torch.no_grad():
        biases.bias.weight.copy_(torch.randn(biases.bias.weight.shape, generator=generator).double())
    draws.precision = torch.linspace(0.6, 2.0, len(gaps)).double()
    if freedom is not None:
        draws.scales = 0.5 + torch.rand(draws.scales.shape, generator=generator).double()
    return draws


class Data:
    """Errors without session biases, the ratings' weights, and S as a dense matrix."""

    def __init__(self, draws: SessionDraws, ratings: Ratings) -> None:
        generator, n = seeded(7), len(ratings)
        self.plain = torch.randn(n, generator=generator).double()
        self.weights = ratings.weights * (0.5 + torch.rand(n, generator=generator).double())
        numbers = draws.biases.sessions.at(ratings.users, ratings.timestamps)
        self.S = torch.zeros(n, len(draws.biases.sessions)).double()
        for level in numbers:
            self.S[torch.arange(n), level] = 1

    def errors(self, bias: Tensor) -> Tensor:
        return self.plain - self.S @ bias[:, 0]


@FREEDOMS
@torch.no_grad()
def test_a_draw_has_the_moments_of_its_conditionals(freedom, ratings):
    """Of one gap: b, then ω given b, then λ given both, each by the plain formula."""
    draws, generator = make_draws(ratings, freedom, gaps=(6,)), seeded(8)
    data, bias = Data(draws, ratings), draws.biases.bias.weight
    start, precision, scales = bias.clone(), draws.precision.clone(), draws.scales.clone()
    drawn = []
    for _ in range(N_DRAWS):
        bias.copy_(start)
        draws.precision, draws.scales = precision.clone(), scales.clone()
        draws.draw(data.errors(start), data.weights, ALPHA, generator)
        drawn.append((bias[:, 0].clone(), draws.scales[:, 0].clone(), draws.precision.clone()))
    b, ω, λ = (torch.stack(column) for column in zip(*drawn, strict=True))

    p = ALPHA * data.S.T @ data.weights + precision * scales[:, 0]
    assert_moments(b, ALPHA * data.S.T @ (data.weights * data.plain) / p, torch.diag(1 / p))
    if freedom is None:
        assert bool((ω == 1).all())
    else:
        assert_gammas(ω, torch.tensor((freedom + 1) / 2), (freedom + precision * b.square()) / 2)
    rate = PRIOR_RATE + 0.5 * (ω * b.square()).sum(1, keepdim=True)
    assert_gammas(λ, torch.tensor(PRIOR_SHAPE + 0.5 * len(bias)), rate)


def assert_gammas(draws: Tensor, shape: Tensor, rates: Tensor) -> None:
    """Draws, (n, d), standardized by the moments of their Gammas, are alike and independent."""
    standard = (draws - shape / rates) * rates / shape.sqrt()
    d = draws.shape[1]
    # The fourth moment of a Gamma adds to the variance of its second.
    n = len(draws)
    assert float(standard.mean(0).abs().max()) < 5 / n**0.5
    kurtosis = 3 + 6 / float(shape)
    assert float((standard.var(0) - 1).abs().max()) < 5 * ((kurtosis - 1) / n) ** 0.5
    off_diagonal = standard.T.cov().reshape(d, d) - torch.diag(standard.var(0))
    assert float(off_diagonal.abs().max()) < 5 / n**0.5


@FREEDOMS
@torch.no_grad()
def test_the_gaps_of_a_draw_see_each_other_s_new_biases(freedom, ratings):
    draws, generator = make_draws(ratings, freedom), seeded(8)
    data, bias = Data(draws, ratings), draws.biases.bias.weight
    start, precision, scales = bias.clone(), draws.precision.clone(), draws.scales.clone()
    starts, drawn = draws.biases.sessions.starts, []
    for _ in range(N_DRAWS):
        bias.copy_(start)
        draws.precision, draws.scales = precision.clone(), scales.clone()
        draws.draw(data.errors(start), data.weights, ALPHA, generator)
        drawn.append(bias[:, 0].clone())
    b = torch.stack(drawn)
    without = start.clone()
    without[starts[0] : starts[1]] = 0
    e = data.errors(without)[None] + 0 * b[:, :1]
    for level, (first, end) in enumerate(itertools.pairwise(starts)):
        S = data.S[:, first:end]
        p = ALPHA * S.T @ data.weights + precision[level] * scales[first:end, 0]
        mean = ALPHA * (data.weights * e) @ S / p
        size = end - first
        assert_moments((b[:, first:end] - mean) * p.sqrt(), torch.zeros(size).double(), torch.eye(size).double())
        # The second gap's errors are less the biases just drawn of the first.
        e = data.plain - b[:, first:end] @ S.T


@FREEDOMS
@torch.no_grad()
def test_the_prior_s_precision_stays_for_new_users_and_without_evidence_draws_are_of_the_prior(freedom, ratings):
    draws, generator = make_draws(ratings, freedom, gaps=(6,)), seeded(8)
    precision, zeros = draws.precision.clone(), torch.zeros(len(ratings)).double()
    b = []
    for _ in range(2000):
        draws.draw(zeros, zeros, ALPHA, generator, learn=False)
        b.append(draws.biases.bias.weight[:, 0].clone())
    assert torch.equal(draws.precision, precision)
    # The quartiles of the t distribution with 4 degrees of freedom are at ±0.7407, of the Gaussian at ±0.6745.
    quartile = (0.6745 if freedom is None else 0.7407) / float(precision) ** 0.5
    inside = float((torch.stack(b).abs() < quartile).double().mean())
    assert inside == pytest.approx(0.5, abs=0.02)


@torch.no_grad()
def test_a_state_is_restored_and_does_not_change_with_the_draws(ratings):
    draws = make_draws(ratings, 4.0)
    state = draws.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    zeros = torch.zeros(len(ratings)).double()
    draws.draw(zeros, zeros + 1, ALPHA, seeded(0))
    for name, tensor in state.items():
        assert torch.equal(tensor, before[name])
    again = make_draws(ratings, 4.0)
    again.load_state_dict(draws.state_dict())
    assert torch.equal(again.precision, draws.precision)
    assert torch.equal(again.scales, draws.scales)


# Standard deviations.


@FREEDOMS
@torch.no_grad()
def test_standard_deviations_have_the_spread_of_session_biases_and_the_prior_s_variance_of_others(freedom, ratings):
    model = a_model(3, 8, sessions=Sessions(ratings, GAPS))
    samples = samples_with_sessions(model, 4, freedom=freedom)
    users, items = torch.tensor([0, 0, 0, 2]), torch.tensor([2, 5, 7, 0])
    start = int(ratings.timestamps[ratings.users == 0].min())
    # In both sessions, in that of the larger gap alone, and in none.
    times = torch.tensor([start, start - 4, start - 1000, start + 10**6])
    numbers = model.sessions.sessions.at(users, times).T.tolist()
    assert [sum(g >= 0 for g in row) for row in numbers] == [2, 1, 0, 0]

    def expected(with_sessions: bool, include_noise: bool) -> Tensor:
        predictions, variance = [], torch.zeros(4).double()
        for draw in samples.draws:
            theta, x = model.augmented_factors(draw.parameters)
            prediction = (theta[users] * x[items]).sum(1)
            prior = prior_variances(draw.session_precision, freedom)
            for n, row in enumerate(numbers if with_sessions else [[-1, -1]] * 4):
                for level, g in enumerate(row):
                    if g >= 0:
                        prediction[n] += draw.parameters[SESSION_BIAS][g, 0]
                    elif with_sessions or include_noise:
                        variance[n] += prior[level] / len(samples.draws)
            predictions.append(prediction)
            if include_noise:
                tau = draw.precision_scales[0][users, 0] * draw.precision_scales[1][items, 0]
                variance += 1 / (draw.alpha * tau) / len(samples.draws)
        return (torch.stack(predictions).var(0) + variance).sqrt()

    for include_noise in (True, False):
        assert_close(samples.std(users, items, include_noise=include_noise), expected(False, include_noise))
        std = samples.std(users, items, timestamps=times, include_noise=include_noise)
        assert_close(std, expected(True, include_noise))


@torch.no_grad()
def test_the_mean_of_draws_has_the_mean_of_their_session_biases(ratings):
    model = a_model(3, 8, sessions=Sessions(ratings, GAPS))
    samples = samples_with_sessions(model, 3)
    pairs = ratings.users.long(), ratings.items.long()
    predictions = []
    for draw in samples.draws:
        theta, x = model.augmented_factors(draw.parameters)
        effect = model.sessions.effect(ratings, draw.parameters[SESSION_BIAS])
        predictions.append(3.0 + (theta[pairs[0]] * x[pairs[1]]).sum(1) + effect)
    assert_close(samples.mean_model().predict_observed(ratings), torch.stack(predictions).mean(0))
    for expected, (drawn, _) in zip(predictions, samples.trace(), strict=True):
        assert_close(drawn.predict_observed(ratings), expected)
    assert any(torch.allclose(samples.sample(seeded(0)).predict_observed(ratings), each) for each in predictions)

"""Ordinal samples: mean probabilities, standard deviations and new rows of a likelihood of levels."""

from __future__ import annotations

import math

import pytest
import torch
from posterior_examples import a_model, ordinal_samples_of, ratings_of, repeated, scrambled, seeded
from torch import Tensor
from torch.testing import assert_close

from mfrec.data.ratings import Ratings
from mfrec.data.sessions import Sessions
from mfrec.errors import InputError
from mfrec.inference.fold_in import fold_in_items, fold_in_users
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.session_biases import prior_variances
from mfrec.posteriors.base import PRECISION_SCALE_SHAPE
from mfrec.posteriors.ordinal_samples import N_PAIRS, OrdinalSamples, random_pairs
from mfrec.posteriors.registry import posterior_from_state

DOUBLE = torch.float64
USERS, ITEMS = torch.cartesian_prod(torch.arange(6), torch.arange(8)).T
CUTPOINTS = torch.tensor([1.5, 2.5, 3.5, 4.5], dtype=DOUBLE)
LEVELS = torch.arange(1, 6).double()


def samples(model: MatrixFactorization, max_draws: int = 4, **options) -> OrdinalSamples:
    pairs = torch.stack([USERS, ITEMS])
    return OrdinalSamples(model, max_draws, levels=LEVELS, cutpoints=CUTPOINTS, pairs=pairs, **options)


def drawn(n: int, shifts: Tensor | None = None, max_draws: int = 4) -> tuple[OrdinalSamples, Tensor, Tensor, Tensor]:
    """n draws of everything; scores less shift, (n, pairs), 1/(τ τ), (n, pairs), and cutpoints less shift, (n, 4)."""
    model, generator = a_model(), seeded(0)
    posterior, scores, variances, cutpoints = samples(model, max_draws), [], [], []
    for draw in range(n):
        scrambled(model, generator)
        γ = CUTPOINTS + 0.1 * torch.randn(4, generator=generator, dtype=DOUBLE)
        tau = [0.5 + torch.rand(size, 1, generator=generator, dtype=DOUBLE) for size in (6, 8)]
        scores.append(model.predict(USERS, ITEMS))
        variances.append(1 / (tau[0][USERS, 0] * tau[1][ITEMS, 0]))
        cutpoints.append(γ)
        shift = 0.0 if shifts is None else float(shifts[draw])
        with torch.no_grad():
            model.user_bias.weight.add_(shift)
        posterior.add(1.0, tau, [], cutpoints=γ + shift)
    return posterior, torch.stack(scores), torch.stack(variances), torch.stack(cutpoints)


def test_the_mean_model_has_the_mean_scores_cutpoints_and_scales_and_the_spread_of_the_scores():
    posterior, scores, _, cutpoints = drawn(9)
    model = posterior.mean_model()
    assert_close(model.scores_model().predict(USERS, ITEMS), scores.mean(0))
    assert_close(model.cutpoints, cutpoints.mean(0))
    centred = scores - cutpoints.mean(1, keepdim=True)
    assert_close(model.spread, centred.var(0).mean())
    assert_close(1 / model.user_scales, posterior.variance_sums[0] / 9)
    assert_close(model.predict(USERS, ITEMS), posterior.level_probabilities(USERS, ITEMS) @ LEVELS)


def test_a_constant_in_scores_and_cutpoints_of_a_draw_changes_nothing():
    shifts = torch.linspace(-3, 3, 7)
    posterior, shifted = drawn(7)[0], drawn(7, shifts)[0]
    assert_close(shifted.level_probabilities(USERS, ITEMS), posterior.level_probabilities(USERS, ITEMS))
    for include_noise in (True, False):
        expected = posterior.std(USERS, ITEMS, include_noise=include_noise)
        assert_close(shifted.std(USERS, ITEMS, include_noise=include_noise), expected)


def test_the_mean_models_probabilities_are_near_the_mean_over_draws_that_are_near_each_other():
    posterior = ordinal_samples_of(a_model(), n=40)
    scores = [model.scores_model().predict(USERS, ITEMS) for model, _ in posterior.trace()]
    exact = torch.stack(
        [
            model.level_probabilities(score, USERS, ITEMS)
            for score, (model, _) in zip(scores, posterior.trace(), strict=True)
        ]
    ).mean(0)
    assert_close(posterior.level_probabilities(USERS, ITEMS), exact, rtol=0, atol=1e-3)


def test_standard_deviations_are_those_of_the_levels_and_of_the_draws_expected_ratings():
    posterior = drawn(4)[0]
    probabilities = posterior.level_probabilities(USERS, ITEMS)
    variance = probabilities @ LEVELS.square() - (probabilities @ LEVELS).square()
    assert_close(posterior.std(USERS, ITEMS), variance.sqrt())
    expected = torch.stack([model.predict(USERS, ITEMS) for model, _ in posterior.trace()])
    assert_close(posterior.std(USERS, ITEMS, include_noise=False), expected.std(0))


def test_probabilities_of_other_levels_count_each_rating_as_the_nearest():
    posterior = drawn(3)[0]
    probabilities = posterior.level_probabilities(USERS, ITEMS)
    more = posterior.level_probabilities(USERS, ITEMS, torch.tensor([1.0, 1.5, 2.0, 3.0, 4.0, 5.0]))
    assert_close(more, torch.cat([probabilities[:, :1], probabilities[:, :1] * 0, probabilities[:, 1:]], 1))
    fewer = posterior.level_probabilities(USERS, ITEMS, torch.tensor([1.2, 4.8]))
    assert_close(fewer, torch.stack([probabilities[:, :3].sum(1), probabilities[:, 3:].sum(1)], 1))


def test_without_draws_predictions_are_those_of_the_samplers_state():
    model = a_model()
    posterior = samples(model)
    before = posterior.mean_model().predict(USERS, ITEMS)
    posterior.set_state(CUTPOINTS + 1, [torch.full((n, 1), 4.0) for n in (6, 8)])
    after = posterior.mean_model()
    assert float((before - after.predict(USERS, ITEMS)).min()) > 0
    assert_close(after.scores_model().predict(USERS, ITEMS), model.predict(USERS, ITEMS))
    for call in (lambda: posterior.std(USERS, ITEMS), lambda: posterior.level_probabilities(USERS, ITEMS)):
        with pytest.raises(InputError, match="kept no samples"):
            call()


def test_loaded_samples_continue_like_the_saved_ones():
    posterior, *_ = drawn(9)
    model = a_model()
    model.load_state_dict(posterior.model.state_dict())
    loaded = posterior_from_state(posterior.state_dict(), model, None)
    assert isinstance(loaded, OrdinalSamples)
    ones = [torch.ones(n, 1, dtype=DOUBLE) for n in (6, 8)]
    for both in (posterior, loaded):
        both.add(1.0, ones, [], cutpoints=CUTPOINTS + 0.3)
    assert torch.equal(loaded.level_probabilities(USERS, ITEMS), posterior.level_probabilities(USERS, ITEMS))
    assert torch.equal(loaded.std(USERS, ITEMS, include_noise=False), posterior.std(USERS, ITEMS, include_noise=False))


@pytest.mark.parametrize(("n", "max_draws"), [(3, 4), (5, 4), (23, 4), (23, 5)])
def test_every_kept_draw_has_its_cutpoints(n, max_draws):
    posterior, scores, _, cutpoints = drawn(n, max_draws=max_draws)
    for position, (model, noise_std) in enumerate(posterior.trace()):
        assert_close(model.cutpoints, cutpoints[position * posterior.stride])
        assert_close(model.scores_model().predict(USERS, ITEMS), scores[position * posterior.stride])
        assert noise_std == 1.0


def test_random_pairs_are_users_and_items_of_ratings():
    ratings = ratings_of(6, 8)
    users, items = random_pairs(ratings)
    assert len(users) == len(items) == N_PAIRS
    assert set(users.tolist()) == set(ratings.users.tolist())
    assert set(items.tolist()) == set(ratings.items.tolist())
    assert torch.equal(random_pairs(ratings), torch.stack([users, items]))


def test_a_rating_in_no_session_has_the_variance_of_the_prior():
    rated = ratings_of(6, 8)
    times = torch.arange(len(rated)) * 1000
    rated = Ratings(rated.users, rated.items, rated.values, 6, 8, timestamps=times)
    model = a_model(sessions=Sessions(rated, (10, 100)))
    posterior, precision = samples(model, session_freedom=4.0), torch.tensor([5.0, 2.0], dtype=DOUBLE)
    tau = [torch.ones(n, 1, dtype=DOUBLE) for n in (6, 8)]
    posterior.add(1.0, tau, [], session_precision=precision, cutpoints=CUTPOINTS)
    at_times = posterior.level_probabilities(rated.users, rated.items, timestamps=times)
    mean = posterior.mean_model()
    assert_close(at_times @ LEVELS, mean.predict_observed(rated))
    assert_close(at_times @ LEVELS, mean.predict(rated.users, rated.items, timestamps=times))
    variance = prior_variances(precision, 4.0).sum()
    scores = mean.scores_model().predict(rated.users, rated.items)
    expected = mean.level_probabilities(scores, rated.users, rated.items, variance)
    assert_close(posterior.level_probabilities(rated.users, rated.items), expected)


def same_draws(n: int, homoscedastic: bool) -> OrdinalSamples:
    """n draws with the same parameters, of a model of rank 1 with biases."""
    model, generator = a_model(rank=1), seeded(4)
    posterior = samples(model, n, homoscedastic=homoscedastic)
    tau = [0.5 + torch.rand(size, 1, generator=generator, dtype=DOUBLE) for size in (6, 8)]
    prior = torch.tensor([1.5, 2.5, 1.0], dtype=DOUBLE), torch.tensor([0.4, -0.3, 0.2], dtype=DOUBLE)
    for _ in range(n):
        posterior.add(1.0, tau, [prior, prior], cutpoints=CUTPOINTS)
    return posterior


def log_likelihoods(eta: Tensor, v: Tensor, stars: int) -> Tensor:
    """(m,) the logarithm of the probability of a rating for m scores and precisions."""
    end = torch.tensor([math.inf], dtype=DOUBLE)
    low, high = torch.cat([-end, CUTPOINTS, end])[stars - 1 : stars + 1]
    return (torch.special.ndtr(v.sqrt() * (high - eta)) - torch.special.ndtr(v.sqrt() * (low - eta))).log()


def assert_draws_of(draws: Tensor, points: Tensor, log_density: Tensor) -> None:
    """Draws, (n,), have the mean and the standard deviation of points, (m,), with this log-density."""
    shares = (log_density - log_density.max()).exp()
    shares = shares / shares.sum()
    mean = shares @ points
    std = (shares @ (points - mean).square()).sqrt()
    assert float((draws.mean() - mean).abs()) <= 5 * float(std) / len(draws) ** 0.5
    assert_close(draws.std(), std, rtol=0.06, atol=0)


@pytest.mark.parametrize("homoscedastic", [True, False])
def test_new_rows_have_their_exact_distribution(homoscedastic):
    # Many users with the same ratings, and enough draws for τ and latents to forget their start.
    posterior, single = same_draws(8, homoscedastic), ratings_of(1, 8, seed=2)
    folded = fold_in_users(posterior, repeated(single, 3000))
    model = list(folded.trace())[-1][0]
    axis, scales = torch.linspace(-5, 5, 81, dtype=DOUBLE), torch.linspace(0.2, 2.5, 24, dtype=DOUBLE)
    theta, bias, tau = torch.cartesian_prod(axis, axis, torch.ones(1).double() if homoscedastic else scales).T
    (precision, mean), partner = posterior.draws[0].priors[0], posterior.model
    value = -0.5 * (precision[0] * (theta - mean[0]).square() + precision[1] * (bias - mean[1]).square())
    value += (PRECISION_SCALE_SHAPE - 1) * tau.log() - PRECISION_SCALE_SHAPE * tau
    for item, stars, weight in zip(single.items.long(), single.values.long(), single.weights, strict=True):
        factor, item_bias = partner.item_factors.weight[item, 0].detach(), partner.item_bias.weight[item, 0].detach()
        v = tau * posterior.draws[0].precision_scales[1][item, 0] * weight
        value += log_likelihoods(theta * factor + bias + item_bias + 3.0, v, stars)
    assert_draws_of(model.user_factors.weight[:, 0].detach(), theta, value)
    assert_draws_of(model.user_bias.weight[:, 0].detach(), bias, value)
    new_tau = folded.draws[-1].precision_scales[0][:, 0]
    if homoscedastic:
        assert torch.equal(new_tau, torch.ones(3000).double())
    else:
        assert_draws_of(new_tau, tau, value)


def test_new_users_have_the_exact_distribution_of_rows_and_session_biases():
    rated, n, times = ratings_of(6, 8), 1500, torch.tensor([0, 1, 100, 101])
    rated = Ratings(rated.users, rated.items, rated.values, 6, 8, timestamps=torch.arange(len(rated)))
    model = a_model(rank=0, sessions=Sessions(rated, (10,)))
    posterior, tau = samples(model, 8, homoscedastic=True), [torch.ones(size, 1, dtype=DOUBLE) for size in (6, 8)]
    prior = torch.tensor([1.5, 1.0], dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE)
    for _ in range(8):
        posterior.add(1.0, tau, [prior, prior], session_precision=torch.tensor([2.0]).double(), cutpoints=CUTPOINTS)
    users, items, stars = torch.arange(n).repeat_interleave(4), torch.arange(4).repeat(n), (5, 5, 1, 3)
    new = Ratings(users, items, torch.tensor(stars * n).double(), n, 8, timestamps=times.repeat(n))
    folded = fold_in_users(posterior, new)
    axis = torch.linspace(-4, 4, 51, dtype=DOUBLE)
    bias, *sessions = torch.cartesian_prod(axis, axis, axis).T
    value = -0.5 * (1.5 * bias.square() + 2 * sessions[0].square() + 2 * sessions[1].square())
    for item in range(4):
        score = bias + sessions[item // 2] + model.item_bias.weight[item, 0].detach() + 3.0
        value += log_likelihoods(score, torch.ones_like(score), stars[item])
    drawn_model = list(folded.trace())[-1][0]
    assert_draws_of(drawn_model.user_bias.weight[:, 0].detach(), bias, value)
    for n_session in range(2):
        assert_draws_of(drawn_model.sessions.bias.weight[n_session::2, 0].detach(), sessions[n_session], value)


def test_rows_of_high_ratings_have_higher_probabilities_of_high_levels():
    posterior, everything = ordinal_samples_of(a_model()), torch.arange(8)
    items, zeros = everything, torch.zeros(8, dtype=torch.long)
    shares = []
    for stars in (1.0, 5.0):
        ratings = Ratings(zeros, items, torch.full((8,), stars, dtype=DOUBLE), 1, 8)
        shares.append(fold_in_users(posterior, ratings).level_probabilities(zeros, items))
    assert float((shares[1][:, 4] - shares[0][:, 4]).min()) > 0
    assert float((shares[0][:, 0] - shares[1][:, 0]).min()) > 0


def test_a_new_rating_that_is_not_a_level_is_refused():
    zero = torch.zeros(1, dtype=torch.long)
    ratings = Ratings(zero, zero, torch.tensor([3.5], dtype=DOUBLE), 1, 8)
    with pytest.raises(InputError, match=r"must be one of 1, 2, 3, 4, 5, as in training \(got 3\.5\)"):
        fold_in_users(ordinal_samples_of(a_model()), ratings)


def test_folding_in_refuses_without_draws():
    with pytest.raises(InputError, match="kept no samples"):
        fold_in_users(samples(a_model()), ratings_of(1, 8))


def test_new_items_may_have_an_offset_each():
    model = MatrixFactorization(6, 8, 2, offset=torch.linspace(2, 4, 8, dtype=DOUBLE), dtype=DOUBLE)
    posterior = ordinal_samples_of(scrambled(model, seeded(1)))
    zeros, users = torch.zeros(6, dtype=torch.long), torch.arange(6)
    means = []
    for offset in (1.0, 5.0):
        ratings = Ratings(users, zeros, torch.full((6,), 3.0, dtype=DOUBLE), 6, 1)
        folded = fold_in_items(posterior, ratings, offset=torch.tensor([offset]))
        means.append(float(folded.mean_model().predict(users, zeros).mean()))
    # The item's bias makes up for most of the offset.
    assert means[0] < means[1] < means[0] + 1.5
    assert not posterior.explainable

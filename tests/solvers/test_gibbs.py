"""Gibbs sampling: every draw has the distribution that the module's docstring states."""

from __future__ import annotations

import pytest
import torch
from conftest import features_of
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.model.entity import ITEM, USER
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.model.ridge import ratings_views, reweighted
from mfrec.posteriors.base import PRECISION_SCALE_SHAPE
from mfrec.solvers import gibbs as gibbs_module
from mfrec.solvers.gibbs import Gibbs
from mfrec.solvers.registry import SOLVERS

N_DRAWS = 900
DOUBLE = torch.float64


def make_sampler(ratings: Ratings, rank: int = 2, features: bool = True, **options) -> Gibbs:
    """A sampler of a model with user features whose parameters are all drawn; it solves to convergence."""
    generator = torch.Generator().manual_seed(0)
    F = torch.randn(ratings.n_users, 3, generator=torch.Generator().manual_seed(5), dtype=DOUBLE)
    blocks = {"dense": features_of(torch.where(F > -0.3, F, 0.0))} if features else {}
    model = MatrixFactorization.from_ratings(ratings, rank, user_features=blocks, generator=generator, offset="none")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=DOUBLE))
    options = {"cg_steps": 8, "feature_steps": 24} | options
    sampler = SOLVERS["gibbs"](model, ratings, Objective(), generator=generator, **options)
    assert isinstance(sampler, Gibbs)
    return sampler


@pytest.fixture
def ratings() -> Ratings:
    """21 weighted ratings of 6 users × 5 items."""
    generator = torch.Generator().manual_seed(3)
    users, items = (torch.rand(6, 5, generator=generator) < 0.7).nonzero(as_tuple=True)
    values = torch.randn(len(users), generator=generator, dtype=DOUBLE)
    weights = torch.rand(len(users), generator=generator, dtype=DOUBLE) + 0.5
    return Ratings(users, items, values, 6, 5, weights=weights)


def assert_moments(draws: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Draws, (n, d), have this mean and covariance to within six standard errors."""
    n = len(draws)
    std = covariance.diagonal().sqrt()
    assert float(((draws.mean(0) - mean).abs() / std).max()) < 6 / n**0.5
    sizes = (std[:, None] * std) + covariance.abs()
    assert float(((draws.T.cov() - covariance).abs() / sizes).max()) < 6 / n**0.5


@pytest.mark.parametrize("n", [0, 1, 2], ids=["users", "user features", "items"])
@torch.no_grad()
def test_a_draw_of_weights_has_the_mean_and_covariance_of_its_conditional(ratings, n):
    sampler = make_sampler(ratings)
    sampler.alpha = 1.7
    tau = [torch.rand(size, 1, dtype=DOUBLE, generator=sampler.generator) + 0.5 for size in (6, 5)]
    sampler.precision_scales = tau
    sampler.views = reweighted(sampler.views, tau)
    term, model = sampler.terms[n], sampler.model
    k = model.rank + 2
    free = sampler.views[term.entity].free[0].nonzero()[:, 0]
    precision, mean = torch.linspace(0.5, 2.0, k, dtype=DOUBLE), torch.linspace(-1.0, 1.0, k, dtype=DOUBLE)

    # The conditional of all numbers w of the term: y = A w + constant + noise.
    weights, factors = model.weights(term), model.augmented_factors()
    n_rows = len(weights)
    F = torch.eye(n_rows, dtype=DOUBLE)
    F = F if term.features is None else term.features.matrix @ F
    indices = (ratings.users.long(), ratings.items.long())
    partners = factors[1 - term.entity][indices[1 - term.entity]]
    A = torch.einsum("nf,nk->nfk", F[indices[term.entity]], partners)[:, :, free].flatten(1)
    constant = (factors[USER][indices[USER]] * factors[ITEM][indices[ITEM]]).sum(1) - A @ weights[:, free].flatten()
    v = sampler.alpha * ratings.weights * (tau[USER][indices[USER]] * tau[ITEM][indices[ITEM]])[:, 0]
    prior = torch.diag(precision[free].repeat(n_rows))
    covariance = torch.linalg.inv(A.T @ (v[:, None] * A) + prior)
    expected = covariance @ (A.T @ (v * (ratings.values - constant)) + prior @ mean[free].repeat(n_rows))

    draws = []
    for _ in range(N_DRAWS):
        sampler._draw_weights(term, precision, mean)
        draws.append(model.weights(term)[:, free].flatten())
        model.assign(term, weights)
    assert_moments(torch.stack(draws), expected, covariance)


@torch.no_grad()
def test_a_draw_by_few_steps_converges_to_the_exact_draw_of_the_same_noise(ratings):
    def drawn(steps: int, n: int) -> Tensor:
        sampler = make_sampler(ratings, rank=4, cg_steps=steps, feature_steps=steps)
        sampler._draw_weights(sampler.terms[n], *sampler.priors[n])
        return sampler.model.weights(sampler.terms[n])

    for n in range(3):
        exact = drawn(80, n)
        errors = [float((drawn(steps, n) - exact).norm() / exact.norm()) for steps in (1, 3, 6, 40)]
        assert errors == sorted(errors, reverse=True)
        assert errors[0] > 1e-3
        assert errors[-1] < 1e-8


@torch.no_grad()
def test_priors_and_the_noise_have_the_moments_of_their_conditionals(ratings):
    sampler, shape = make_sampler(ratings), gibbs_module.PRIOR_SHAPE
    # Few rows with a large mean, so that m is far from p̄.
    rows = torch.randn(5, 3, generator=sampler.generator, dtype=DOUBLE) * 0.5 + 3
    drawn = [sampler._draw_prior(rows) for _ in range(4 * N_DRAWS)]
    precision, mean = (torch.stack(column) for column in zip(*drawn, strict=True))
    a, p = shape + 2.5, rows.mean(0)
    b = gibbs_module.PRIOR_RATE + 0.5 * (rows - p).square().sum(0) + 0.5 * 5 / 6 * p.square()
    assert_moments(precision, a / b, torch.diag(a / b.square()))
    # m is a t distribution about n p̄/(n+1), with the variance E[1/λ]/(n+1) = b/(a−1)/(n+1).
    assert_moments(mean, 5 / 6 * p, torch.diag(b / (a - 1) / 6))

    drawn = [sampler._draw_precision(rows) for _ in range(N_DRAWS)]
    b = gibbs_module.PRIOR_RATE + 0.5 * rows.square().sum(0)
    assert_moments(torch.stack([precision for precision, _ in drawn]), a / b, torch.diag(a / b.square()))
    assert not any(bool(mean.any()) for _, mean in drawn)

    errors = ratings.values - sampler.model.predict_observed(ratings)
    draws = []
    for _ in range(N_DRAWS):
        sampler.precision_scales = [torch.full((n, 1), 1.3, dtype=DOUBLE) for n in (6, 5)]
        sampler._draw_noise()
        draws.append(torch.tensor([sampler.alpha]))
    a = shape + 0.5 * len(ratings)
    b = gibbs_module.PRIOR_RATE + 0.5 * 1.3**2 * float((ratings.weights * errors.square()).sum())
    assert_moments(torch.stack(draws), torch.tensor([a / b]), torch.tensor([[a / b**2]]))


@torch.no_grad()
def test_precision_scales_have_the_moments_of_their_conditionals(ratings):
    sampler, c = make_sampler(ratings), PRECISION_SCALE_SHAPE
    squares = ratings.weights * (ratings.values - sampler.model.predict_observed(ratings)).square()
    alpha, users, items = [], [], []
    for _ in range(N_DRAWS):
        sampler.precision_scales = [torch.full((n, 1), t, dtype=DOUBLE) for n, t in ((6, 1.0), (5, 0.7))]
        sampler._draw_noise()
        alpha.append(sampler.alpha)
        users.append(sampler.precision_scales[USER][:, 0])
        items.append(sampler.precision_scales[ITEM][:, 0])

    def assert_gamma(tau: Tensor, counts: Tensor, sums: Tensor) -> None:
        # Given α, and the τ of the users, each τ is a Gamma; standardized by its moments, all draws are alike.
        shape, rate = c + 0.5 * counts.double(), c + 0.5 * torch.tensor(alpha, dtype=DOUBLE)[:, None] * sums
        standard = (tau - shape / rate) / (shape.sqrt() / rate)
        n = tau.shape[1]
        assert_moments(standard, torch.zeros(n, dtype=DOUBLE), torch.eye(n, dtype=DOUBLE))

    def sums(scaled: Tensor, indices: Tensor, n: int) -> Tensor:
        return torch.zeros(len(scaled), n, dtype=DOUBLE).index_add_(1, indices.long(), scaled)

    tau = torch.stack(users)
    assert_gamma(tau, ratings.user_counts, sums(0.7 * squares[None], ratings.users, 6))
    weighted = tau[:, ratings.users.long()] * squares
    assert_gamma(torch.stack(items), ratings.item_counts, sums(weighted, ratings.items, 5))


def test_a_homoscedastic_sampler_keeps_all_precision_scales_at_one(ratings):
    sampler = make_sampler(ratings, homoscedastic=True, burn_in=0)
    for _ in range(3):
        sampler.epoch()
    for draw in sampler.inference().draws:
        assert all(tau.unique().tolist() == [1] for tau in draw.precision_scales)


def test_draws_begin_after_the_burn_in_and_their_number_is_bounded(ratings):
    sampler, n_draws = make_sampler(ratings, burn_in=2, samples=3), []
    for _ in range(9):
        sampler.epoch()
        n_draws.append(len(sampler.inference().draws))
    assert n_draws[:4] == [0, 0, 1, 2]
    assert max(n_draws) == 3
    assert sampler.inference().mean.n == 7


def batch_errors(values: Tensor, n_batches: int = 40) -> tuple[Tensor, Tensor]:
    """The mean of a chain, (n, d), and its standard error, from the means of batches longer than the chain's memory."""
    means = torch.stack([batch.mean(0) for batch in values.chunk(n_batches)])
    return means.mean(0), means.std(0) / n_batches**0.5


@torch.no_grad()
def test_the_chain_and_the_prior_have_the_same_joint_distribution(monkeypatch):
    """The joint distribution test of Geweke 2004, "Getting it right".

    Parameters and data drawn by turns, each given the other, are draws of the joint distribution.  So are parameters
    drawn from the prior with data drawn from them.  An error in any conditional, or in their order, moves some moment.
    """
    monkeypatch.setattr(gibbs_module, "PRIOR_SHAPE", 6.0)
    monkeypatch.setattr(gibbs_module, "PRIOR_RATE", 5.0)
    users, items = torch.cartesian_prod(torch.arange(4), torch.arange(3))[torch.arange(12) % 5 != 3].T
    empty = Ratings(users, items, torch.zeros(len(users), dtype=DOUBLE), 4, 3)
    sampler = make_sampler(empty, rank=1, cg_steps=3, feature_steps=8, burn_in=10**9)
    generator, model = sampler.generator, sampler.model

    def drawn_data() -> Tensor:
        tau = (sampler.precision_scales[USER][users] * sampler.precision_scales[ITEM][items])[:, 0]
        noise = torch.randn(len(users), generator=generator, dtype=DOUBLE)
        return model.predict_observed(empty) + (sampler.alpha * tau).rsqrt() * noise

    def moments(y: Tensor) -> Tensor:
        values = [y.mean(), y.square().mean().clamp(max=60)]
        for term, (precision, mean) in zip(sampler.terms, sampler.priors, strict=True):
            weights, kept = model.weights(term), [0, 1] if term.entity == USER else [0, 2]
            values += [*weights[:, kept].mean(0), *weights[:, kept].square().mean(0)]
            values += [*precision[kept].log(), *mean[kept]]
        values += [torch.tensor(sampler.alpha).log(), *(tau.log().mean() for tau in sampler.precision_scales)]
        return torch.stack([value.double() for value in values])

    def from_the_prior() -> Tensor:
        sampler.alpha = float(sampler._gamma(torch.tensor(6.0), torch.tensor(5.0)))
        c = torch.tensor(PRECISION_SCALE_SHAPE)
        sampler.precision_scales = [sampler._gamma(c.expand(n, 1), c) for n in (4, 3)]
        for n, term in enumerate(sampler.terms):
            k = len(sampler.priors[n][0])
            precision = sampler._gamma(torch.full((k,), 6.0), torch.full((k,), 5.0, dtype=DOUBLE))
            normal = torch.randn(k, generator=generator, dtype=DOUBLE)
            mean = normal * precision.rsqrt() if term.features is None else torch.zeros(k, dtype=DOUBLE)
            shape = model.weights(term).shape
            model.assign(term, mean + torch.randn(shape, generator=generator, dtype=DOUBLE) * precision.rsqrt())
            sampler.priors[n] = precision, mean
        return moments(drawn_data())

    expected = torch.stack([from_the_prior() for _ in range(1200)])
    chain = []
    for _ in range(1200):
        sampler.ratings = Ratings(users, items, drawn_data(), 4, 3)
        views = ratings_views(model, sampler.ratings)
        sampler.views = reweighted(views, sampler.precision_scales)
        sampler.epoch()
        chain.append(moments(sampler.ratings.values))
    (prior_mean, prior_error), (mean, error) = batch_errors(expected), batch_errors(torch.stack(chain)[120:])
    # The prior mean of feature weights is 0 and does not vary.
    variance = prior_error.square() + error.square()
    z = (prior_mean - mean).abs() / variance.sqrt().where(variance > 0, torch.ones_like(variance))
    assert float(z.max()) < 4.5, z

"""Gibbs sampling: every draw has the distribution that the module's docstring states."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import features_of
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.data.sessions import Sessions
from mfrec.model.entity import ITEM, USER
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.model.ratings_view import reweighted
from mfrec.posteriors import session_draws
from mfrec.posteriors.base import PRECISION_SCALE_SHAPE, PRIOR_RATE, PRIOR_SHAPE
from mfrec.posteriors.session_draws import SessionDraws
from mfrec.solvers import gibbs_chain
from mfrec.solvers.gibbs import Gibbs
from mfrec.solvers.gibbs_chain import Chain
from mfrec.solvers.registry import SOLVERS

N_DRAWS = 900
GAPS = (0, 5)
OWN_FACTORS = ("users.factors.weight", "items.factors.weight")
DOUBLE = torch.float64


def make_sampler(ratings: Ratings, rank: int = 2, features: bool = True, **options) -> Gibbs:
    """A sampler of a model with user features whose parameters are all drawn; it solves to convergence.

    Ratings with timestamps have sessions.
    """
    generator = torch.Generator().manual_seed(0)
    F = torch.randn(ratings.n_users, 3, generator=torch.Generator().manual_seed(5), dtype=DOUBLE)
    blocks = {"dense": features_of(torch.where(F > -0.3, F, 0.0))} if features else {}
    sessions = None if ratings.timestamps is None else Sessions(ratings, GAPS)
    model = MatrixFactorization.from_ratings(
        ratings, rank, user_features=blocks, sessions=sessions, generator=generator, offset="none"
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=DOUBLE))
    options = {"cg_steps": 8, "feature_steps": 24} | options
    sampler = SOLVERS["gibbs"](model, ratings, Objective(), generator=generator, **options)
    assert isinstance(sampler, Gibbs)
    return sampler


def make_chain(ratings: Ratings, **options) -> Chain:
    (chain,) = make_sampler(ratings, **options).chains
    return chain


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
    chain = make_chain(ratings)
    chain.alpha = 1.7
    tau = [torch.rand(size, 1, dtype=DOUBLE, generator=chain.generator) + 0.5 for size in (6, 5)]
    chain.precision_scales = tau
    chain.views = reweighted(chain.views, tau)
    term, model = chain.terms[n], chain.model
    k = model.rank + 2
    free = chain.views[term.entity].free[0].nonzero()[:, 0]
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
    v = chain.alpha * ratings.weights * (tau[USER][indices[USER]] * tau[ITEM][indices[ITEM]])[:, 0]
    prior = torch.diag(precision[free].repeat(n_rows))
    covariance = torch.linalg.inv(A.T @ (v[:, None] * A) + prior)
    expected = covariance @ (A.T @ (v * (ratings.values - constant)) + prior @ mean[free].repeat(n_rows))

    draws = []
    for _ in range(N_DRAWS):
        chain._draw_weights(term, precision, mean)
        draws.append(model.weights(term)[:, free].flatten())
        model.assign(term, weights)
    assert_moments(torch.stack(draws), expected, covariance)


@torch.no_grad()
def test_a_draw_by_few_steps_converges_to_the_exact_draw_of_the_same_noise(ratings):
    def drawn(steps: int, n: int) -> Tensor:
        chain = make_chain(ratings, rank=4, cg_steps=steps, feature_steps=steps)
        chain._draw_weights(chain.terms[n], *chain.priors[n])
        return chain.model.weights(chain.terms[n])

    for n in range(3):
        exact = drawn(80, n)
        errors = [float((drawn(steps, n) - exact).norm() / exact.norm()) for steps in (1, 3, 6, 40)]
        assert errors == sorted(errors, reverse=True)
        assert errors[0] > 1e-3
        assert errors[-1] < 1e-8


@torch.no_grad()
def test_priors_and_the_noise_have_the_moments_of_their_conditionals(ratings):
    chain, shape = make_chain(ratings), PRIOR_SHAPE
    # Few rows with a large mean, so that m is far from p̄.
    rows = torch.randn(5, 3, generator=chain.generator, dtype=DOUBLE) * 0.5 + 3
    drawn = [chain._draw_prior(ITEM, rows) for _ in range(4 * N_DRAWS)]
    precision, mean = (torch.stack(column) for column in zip(*drawn, strict=True))
    a, p = shape + 2.5, rows.mean(0)
    b = PRIOR_RATE + 0.5 * (rows - p).square().sum(0) + 0.5 * 5 / 6 * p.square()
    assert_moments(precision, a / b, torch.diag(a / b.square()))
    # m is a t distribution about n p̄/(n+1), with the variance E[1/λ]/(n+1) = b/(a−1)/(n+1).
    assert_moments(mean, 5 / 6 * p, torch.diag(b / (a - 1) / 6))

    drawn = [chain._draw_precision(rows) for _ in range(N_DRAWS)]
    b = PRIOR_RATE + 0.5 * rows.square().sum(0)
    assert_moments(torch.stack([precision for precision, _ in drawn]), a / b, torch.diag(a / b.square()))
    assert not any(bool(mean.any()) for _, mean in drawn)

    errors = ratings.values - chain.model.predict_observed(ratings)
    draws = []
    for _ in range(N_DRAWS):
        chain.precision_scales = [torch.full((n, 1), 1.3, dtype=DOUBLE) for n in (6, 5)]
        chain._draw_noise()
        draws.append(torch.tensor([chain.alpha]))
    a = shape + 0.5 * len(ratings)
    b = PRIOR_RATE + 0.5 * 1.3**2 * float((ratings.weights * errors.square()).sum())
    assert_moments(torch.stack(draws), torch.tensor([a / b]), torch.tensor([[a / b**2]]))


@torch.no_grad()
def test_precision_scales_have_the_moments_of_their_conditionals(ratings):
    chain, c = make_chain(ratings), PRECISION_SCALE_SHAPE
    squares = ratings.weights * (ratings.values - chain.model.predict_observed(ratings)).square()
    alpha, users, items = [], [], []
    for _ in range(N_DRAWS):
        chain.precision_scales = [torch.full((n, 1), t, dtype=DOUBLE) for n, t in ((6, 1.0), (5, 0.7))]
        chain._draw_noise()
        alpha.append(chain.alpha)
        users.append(chain.precision_scales[USER][:, 0])
        items.append(chain.precision_scales[ITEM][:, 0])

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


class Joint:
    """Draws of the joint distribution of parameters and data, and their moments.

    Gamma priors have the shape 6 and the rate 5, so that moments have a variance.
    """

    def __init__(self, freedom: float | None, has_sessions: bool) -> None:
        users, items = torch.cartesian_prod(torch.arange(4), torch.arange(3))[torch.arange(12) % 5 != 3].T
        seconds = torch.arange(len(users)) ** 2 // 4 if has_sessions else None
        self.ratings = Ratings(users, items, torch.zeros(len(users), dtype=DOUBLE), 4, 3, seconds)
        prior = {"session_prior": "gaussian"} if freedom is None else {"session_freedom": freedom}
        self.chain = make_chain(self.ratings, rank=1, cg_steps=3, feature_steps=8, **prior)
        self.generator, self.freedom = self.chain.generator.manual_seed(3), freedom

    def gamma(self, shape: float, rate: float, *size: int) -> Tensor:
        return self.chain._gamma(torch.full(size, shape, dtype=DOUBLE), torch.tensor(rate, dtype=DOUBLE))

    def normal(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator, dtype=DOUBLE)

    def draw_data(self) -> None:
        """Draw the ratings given the parameters."""
        tau, r = self.chain.precision_scales, self.ratings
        scales = (tau[USER][r.users.long()] * tau[ITEM][r.items.long()])[:, 0]
        noise = (self.chain.alpha * scales).rsqrt() * self.normal(len(r))
        r.values.copy_(self.chain.model.predict_observed(r) + noise)
        self.chain._retarget()

    def draw_prior(self) -> None:
        """Draw the parameters from their prior."""
        chain = self.chain
        chain.alpha = float(self.gamma(6, 5))
        chain.precision_scales = [self.gamma(PRECISION_SCALE_SHAPE, PRECISION_SCALE_SHAPE, n, 1) for n in (4, 3)]
        for n, term in enumerate(chain.terms):
            shape = chain.model.weights(term).shape
            precision = self.gamma(6, 5, shape[1])
            is_own = term.features is None
            mean = self.normal(shape[1]) * precision.rsqrt() if is_own else torch.zeros(shape[1], dtype=DOUBLE)
            chain.model.assign(term, mean + self.normal(*shape) * precision.rsqrt())
            chain.priors[n] = precision, mean
        if chain.sessions is not None:
            self.draw_prior_of(chain.sessions)

    def draw_prior_of(self, sessions: SessionDraws) -> None:
        """Draw session biases from their prior."""
        bias, starts = sessions.biases.bias.weight, sessions.biases.sessions.starts
        sessions.precision = self.gamma(6, 5, len(GAPS))
        if self.freedom is not None:
            sessions.scales = self.gamma(0.5 * self.freedom, 0.5 * self.freedom, len(bias), 1)
        precision = sessions.precision.repeat_interleave(torch.tensor(starts).diff())[:, None] * sessions.scales
        bias.copy_(self.normal(len(bias), 1) * precision.rsqrt())

    def moments(self) -> Tensor:
        chain, y = self.chain, self.ratings.values
        values = [y.mean(), y.square().mean().clamp(max=60)]
        for term, (precision, mean) in zip(chain.terms, chain.priors, strict=True):
            weights, kept = chain.model.weights(term), [0, 1] if term.entity == USER else [0, 2]
            values += [*weights[:, kept].mean(0), *weights[:, kept].square().mean(0)]
            values += [*precision[kept].log(), *mean[kept]]
        values += [torch.tensor(chain.alpha).log(), *(tau.log().mean() for tau in chain.precision_scales)]
        if chain.sessions is not None:
            starts, bias = chain.sessions.biases.sessions.starts, chain.sessions.biases.bias.weight[:, 0]
            for first, end in itertools.pairwise(starts):
                b, scales = bias[first:end], chain.sessions.scales[first:end]
                values += [b.mean(), b.square().mean().clamp(max=30), scales.log().mean()]
            values += [*chain.sessions.precision.log()]
        return torch.stack([value.double() for value in values])


@pytest.mark.parametrize(("has_sessions", "freedom"), [(False, None), (True, 5.0)], ids=["plain", "sessions"])
@torch.no_grad()
def test_the_chain_and_the_prior_have_the_same_joint_distribution(has_sessions, freedom, monkeypatch):
    """The joint distribution test of Geweke 2004, "Getting it right".

    Parameters and data drawn by turns, each given the other, are draws of the joint distribution.  So are parameters
    drawn from the prior with data drawn from them.  An error in any conditional, or in their order, moves some moment.
    """
    for module in (gibbs_chain, session_draws):
        monkeypatch.setattr(module, "PRIOR_SHAPE", 6.0)
        monkeypatch.setattr(module, "PRIOR_RATE", 5.0)
    joint, expected, drawn = Joint(freedom, has_sessions), [], []
    for _ in range(1200):
        joint.draw_prior()
        joint.draw_data()
        expected.append(joint.moments())
    for _ in range(1200):
        joint.chain.sweep()
        joint.draw_data()
        drawn.append(joint.moments())
    (prior_mean, prior_error), (mean, error) = batch_errors(torch.stack(expected)), batch_errors(torch.stack(drawn))
    # Some numbers do not vary, such as the prior mean of feature weights.
    variance = prior_error.square() + error.square()
    z = (prior_mean - mean).abs() / variance.sqrt().where(variance > 0, torch.ones_like(variance))
    assert float(z.max()) < 4.5, z


# Chains.


@torch.no_grad()
def test_after_a_sweep_the_targets_are_less_the_new_session_biases(ratings):
    ratings = timed(ratings)
    chain = make_chain(ratings)
    for _ in range(2):
        before = chain.views[USER].targets
        chain.sweep()
        expected = ratings.values - chain.model.sessions.effect(ratings)
        assert not torch.equal(expected, before)
        assert torch.equal(chain.views[USER].targets, expected)
        assert torch.equal(chain.views[ITEM].targets, expected[ratings.pattern.transpose_order])


def timed(ratings: Ratings) -> Ratings:
    """The ratings with times."""
    r, seconds = ratings, torch.arange(len(ratings)) ** 2 // 8
    return Ratings(r.users, r.items, r.values, r.n_users, r.n_items, seconds, r.weights)


def run_sampler(ratings: Ratings, epochs: int = 6, **options) -> Gibbs:
    sampler = make_sampler(ratings, **({"burn_in": 2} | options))
    for _ in range(epochs):
        sampler.epoch()
    return sampler


@torch.no_grad()
def test_predictions_and_draws_are_of_all_chains(ratings):
    ratings = timed(ratings)
    sampler, predictions = make_sampler(ratings, burn_in=1, chains=2), []
    for epoch in range(5):
        sampler.epoch()
        if epoch >= 1:
            predictions += [chain.model.predict_observed(ratings) for chain in sampler.chains]
    samples = sampler.inference()
    assert (len(samples.draws), samples.mean.n) == (8, 8)
    torch.testing.assert_close(samples.mean_model().predict_observed(ratings), torch.stack(predictions).mean(0))
    for draw, chain in zip(samples.draws[-2:], sampler.chains, strict=True):
        assert draw.alpha == chain.alpha
        assert torch.equal(draw.session_precision, chain.sessions.precision)
        for name, parameter in chain.model.named_parameters():
            assert torch.equal(draw.parameters[name], parameter)


@torch.no_grad()
def test_chains_start_apart_and_the_first_is_the_solver_s_model(ratings):
    sampler = make_sampler(timed(ratings), chains=3)
    assert sampler.chains[0].model is sampler.model
    models = [chain.model for chain in sampler.chains]
    for name, parameter in models[0].named_parameters():
        for model in models[1:]:
            assert torch.equal(model.get_parameter(name).abs(), parameter.abs())
            assert torch.equal(model.get_parameter(name), parameter) == (name not in OWN_FACTORS)
    assert not torch.equal(models[1].user_factors.weight, models[2].user_factors.weight)


@pytest.mark.parametrize("has_sessions", [False, True])
def test_the_same_seed_gives_all_chains_the_same_bits(ratings, has_sessions):
    ratings = timed(ratings) if has_sessions else ratings
    first, second = (run_sampler(ratings, chains=2).inference() for _ in range(2))
    for a, b in zip(first.draws, second.draws, strict=True):
        assert a.alpha == b.alpha
        for name, parameter in a.parameters.items():
            assert torch.equal(parameter, b.parameters[name]), name
    assert not torch.equal(*(draw.parameters["items.factors.weight"] for draw in first.draws[:2]))


def test_chains_of_a_posterior_that_is_explored_agree(ratings):
    """A plain problem: without factors the posterior of all other parameters has one mode."""
    sampler = run_sampler(ratings, epochs=120, rank=0, features=False, chains=2, burn_in=20)
    diagnostics = sampler.diagnostics()
    assert diagnostics["r_hat"] < 1.15
    assert 20 < diagnostics["effective_samples"] <= 200
    assert run_sampler(ratings, epochs=6).diagnostics() == {}

"""The sampler draws what its page says it draws."""

from __future__ import annotations

import pytest
import torch

from mfrec.data.ratings import Ratings
from mfrec.model.factorization import ITEM, USER, MatrixFactorization
from mfrec.model.features import Features
from mfrec.model.objective import Objective
from mfrec.model.ridge import sides_of, weighed_by
from mfrec.solvers.base import gibbs as gibbs_module
from mfrec.solvers.gibbs import Gibbs

N_DRAWS = 900


def dense_features(n_rows: int, n_features: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    F = torch.randn(n_rows, n_features, generator=generator, dtype=torch.float64)
    rows, columns = (F > -0.3).nonzero(as_tuple=True)
    return Features(rows, columns, F[rows, columns], n_rows, [f"f{n}" for n in range(n_features)])


def a_sampler(ratings: Ratings, rank: int = 2, seed: int = 0, features: bool = True, **knobs) -> Gibbs:
    generator = torch.Generator().manual_seed(seed)
    side = {"side": dense_features(ratings.n_users, 3, 5)} if features else {}
    model = MatrixFactorization.from_ratings(ratings, rank, user_features=side, generator=generator, offset="none")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return Gibbs(model, ratings, Objective(), generator=generator, **{"cg_steps": 40, "feature_steps": 60} | knobs)


@pytest.fixture
def ratings() -> Ratings:
    generator = torch.Generator().manual_seed(3)
    users, items = (torch.rand(6, 5, generator=generator) < 0.7).nonzero(as_tuple=True)
    values = torch.randn(len(users), generator=generator, dtype=torch.float64)
    weights = torch.rand(len(users), generator=generator, dtype=torch.float64) + 0.5
    return Ratings(users, items, values, 6, 5, weights=weights)


def assert_moments(draws: torch.Tensor, mean: torch.Tensor, covariance: torch.Tensor) -> None:
    """Draws, (n, d), have this mean and covariance to within six standard errors."""
    n = len(draws)
    scale = covariance.diagonal().sqrt()
    assert float(((draws.mean(0) - mean).abs() / scale).max()) < 6 / n**0.5
    sizes = (scale[:, None] * scale) + covariance.abs()
    assert float(((draws.T.cov() - covariance).abs() / sizes).max()) < 6 / n**0.5


@pytest.mark.parametrize("term_number", [0, 1, 2], ids=["users", "user features", "items"])
@torch.no_grad()
def test_a_draw_of_a_table_has_the_mean_and_covariance_of_its_conditional(ratings, term_number):
    sampler = a_sampler(ratings)
    sampler.alpha = 1.7
    sampler.noise = [torch.rand(n, 1, dtype=torch.float64, generator=sampler.generator) + 0.5 for n in (6, 5)]
    sampler.sides = weighed_by(sampler.sides, ratings, sampler.noise)
    term, model = sampler.terms[term_number], sampler.model
    k = model.rank + 2
    free = sampler.sides[term.side].free[0].nonzero()[:, 0]
    precision = torch.linspace(0.5, 2.0, k, dtype=torch.float64)
    mean = torch.linspace(-1.0, 1.0, k, dtype=torch.float64)

    # The conditional, number by number of the table: y = A w + rest + noise.
    table, tables = model.table(term), model.tables()
    n_rows = len(table)
    F = torch.eye(n_rows, dtype=torch.float64) if term.features is None else term.features(torch.eye(n_rows).double())
    rows, columns = (ratings.users, ratings.items) if term.side == USER else (ratings.items, ratings.users)
    other = tables[1 - term.side][columns.long()]
    A = torch.einsum("nf,nk->nfk", F[rows.long()], other)[:, :, free].flatten(1)
    rest = (tables[USER][ratings.users.long()] * tables[ITEM][ratings.items.long()]).sum(1)
    rest = rest - A @ table[:, free].flatten()
    v = (
        sampler.alpha
        * ratings.weights
        * (sampler.noise[0][ratings.users.long()] * sampler.noise[1][ratings.items.long()])[:, 0]
    )
    prior = torch.diag(precision[free].repeat(n_rows))
    covariance = torch.linalg.inv(A.T @ (v[:, None] * A) + prior)
    expected = covariance @ (A.T @ (v * (ratings.values - rest)) + prior @ mean[free].repeat(n_rows))

    draws = []
    for _ in range(N_DRAWS):
        sampler._draw_table(term, precision, mean)
        draws.append(model.table(term)[:, free].flatten())
        model.assign(term, table)
    assert_moments(torch.stack(draws), expected, covariance)


@torch.no_grad()
def test_a_draw_by_few_steps_converges_to_the_exact_one_of_the_same_noise(ratings):
    def drawn(steps: int, term_number: int) -> torch.Tensor:
        sampler = a_sampler(ratings, rank=4, cg_steps=steps, feature_steps=steps)
        term = sampler.terms[term_number]
        sampler._draw_table(term, *sampler.priors[term_number])
        return sampler.model.table(term)

    for term_number in range(3):
        exact = drawn(80, term_number)
        errors = [float((drawn(steps, term_number) - exact).norm() / exact.norm()) for steps in (1, 3, 6, 40)]
        assert errors == sorted(errors, reverse=True)
        assert errors[0] > 1e-3
        assert errors[-1] < 1e-8


@torch.no_grad()
def test_priors_and_noise_have_the_moments_of_their_conditionals(ratings):
    sampler, shape = a_sampler(ratings), gibbs_module.PRIOR_SHAPE
    rows = torch.randn(40, 3, generator=sampler.generator, dtype=torch.float64) * 0.5 + 0.4
    drawn = [sampler._draw_prior(rows) for _ in range(N_DRAWS)]
    precision, mean = (torch.stack(column) for column in zip(*drawn, strict=True))
    a, p = shape + 20, rows.mean(0)
    b = gibbs_module.PRIOR_RATE + 0.5 * (rows - p).square().sum(0) + 0.5 * 40 / 41 * p.square()
    assert_moments(precision, a / b, torch.diag(a / b.square()))
    # m is a t distribution about n p̄/(n+1), with the variance E[1/λ]/(n+1) = b/(a−1)/(n+1).
    assert_moments(mean, 40 / 41 * p, torch.diag(b / (a - 1) / 41))

    weights = torch.stack([sampler._draw_precision(rows)[0] for _ in range(N_DRAWS)])
    b = gibbs_module.PRIOR_RATE + 0.5 * rows.square().sum(0)
    assert_moments(weights, a / b, torch.diag(a / b.square()))

    errors = ratings.values - sampler.model.predict_observed(ratings)
    draws = []
    for _ in range(N_DRAWS):
        sampler.noise = [torch.full((n, 1), 1.3, dtype=torch.float64) for n in (6, 5)]
        sampler._draw_noise()
        draws.append(torch.tensor([sampler.alpha]))
    a = shape + 0.5 * len(ratings)
    b = gibbs_module.PRIOR_RATE + 0.5 * 1.3**2 * float((ratings.weights * errors.square()).sum())
    assert_moments(torch.stack(draws), torch.tensor([a / b]), torch.tensor([[a / b**2]]))


@torch.no_grad()
def test_noise_factors_have_the_moments_of_their_conditional(ratings):
    sampler = a_sampler(ratings)
    squares = ratings.weights * (ratings.values - sampler.model.predict_observed(ratings)).square()
    draws = []
    for _ in range(N_DRAWS):
        sampler.noise = [torch.full((n, 1), t, dtype=torch.float64) for n, t in ((6, 1.0), (5, 0.7))]
        sampler._draw_noise()
        draws.append(torch.cat([sampler.noise[USER][:, 0] * 0 + sampler.alpha, sampler.noise[USER][:, 0]]))
    alpha, tau = torch.stack(draws).split(6, dim=1)
    c = gibbs_module.NOISE_SHAPE
    sums = torch.zeros(6, dtype=torch.float64).index_add_(0, ratings.users.long(), 0.7 * squares)
    shape, rate = c + 0.5 * ratings.user_counts.double(), c + 0.5 * alpha * sums
    # Given α each τ is a Gamma: standardized by its own mean and deviation, all draws are alike.
    standard = (tau - shape / rate) / (shape.sqrt() / rate)
    assert_moments(standard, torch.zeros(6).double(), torch.eye(6).double())


def batch_errors(values: torch.Tensor, n_batches: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of a chain, (n, d), and the standard error of it, from the means of batches longer than its memory."""
    means = torch.stack([batch.mean(0) for batch in values.chunk(n_batches)])
    return means.mean(0), means.std(0) / n_batches**0.5


@torch.no_grad()
def test_the_chain_and_the_prior_have_the_same_joint_distribution(monkeypatch):
    """Geweke 2004, "Getting it right": draws of parameters and data by turns, each given the other, are draws of the
    joint distribution, as are parameters drawn from the prior with data drawn from them.  Any error in any conditional,
    or in the order in which they follow each other, moves some moment."""
    monkeypatch.setattr(gibbs_module, "PRIOR_SHAPE", 6.0)
    monkeypatch.setattr(gibbs_module, "PRIOR_RATE", 5.0)
    users, items = torch.cartesian_prod(torch.arange(4), torch.arange(3))[torch.arange(12) % 5 != 3].T
    ratings = Ratings(users, items, torch.zeros(len(users), dtype=torch.float64), 4, 3)
    sampler = a_sampler(ratings, rank=1, cg_steps=6, feature_steps=12, burn_in=10**9)
    generator, model = sampler.generator, sampler.model

    def data() -> torch.Tensor:
        noise = (sampler.noise[0][users] * sampler.noise[1][items])[:, 0]
        deviation = (sampler.alpha * noise).rsqrt()
        return model.predict_observed(ratings) + deviation * torch.randn(
            len(users), generator=generator, dtype=torch.float64
        )

    def moments(y: torch.Tensor) -> torch.Tensor:
        tables, found = [model.table(term) for term in sampler.terms], [y.mean(), y.square().mean().clamp(max=60)]
        for table, (precision, mean) in zip(tables, sampler.priors, strict=True):
            kept = [0, 1] if table is not tables[-1] else [0, 2]
            found += [*table[:, kept].mean(0), *table[:, kept].square().mean(0), *precision[kept].log(), *mean[kept]]
        found += [torch.tensor(sampler.alpha).log(), *(tau.log().mean() for tau in sampler.noise)]
        return torch.stack([value.double() for value in found])

    def forward() -> torch.Tensor:
        sampler.alpha = float(sampler._gamma(torch.tensor(6.0), torch.tensor(5.0)))
        c = torch.tensor(gibbs_module.NOISE_SHAPE)
        sampler.noise = [sampler._gamma(c.expand(n, 1), c) for n in (4, 3)]
        for n, term in enumerate(sampler.terms):
            k = len(sampler.priors[n][0])
            precision = sampler._gamma(torch.full((k,), 6.0), torch.full((k,), 5.0, dtype=torch.float64))
            normal = torch.randn(k, generator=generator, dtype=torch.float64)
            mean = normal * precision.rsqrt() if term.features is None else torch.zeros(k, dtype=torch.float64)
            shape = model.table(term).shape
            model.assign(term, mean + torch.randn(shape, generator=generator, dtype=torch.float64) * precision.rsqrt())
            sampler.priors[n] = precision, mean
        return moments(data())

    expected = torch.stack([forward() for _ in range(1200)])
    chain = []
    for _ in range(1200):
        ratings.values = data()
        sampler.sides = sides_of(model, ratings)
        sampler.sides = weighed_by(sampler.sides, ratings, sampler.noise)
        sampler.epoch()
        chain.append(moments(ratings.values))
    (one, error), (other, other_error) = batch_errors(expected), batch_errors(torch.stack(chain)[120:])
    fixed = (error + other_error) == 0
    z = (one - other).abs() / (error.square() + other_error.square()).sqrt().where(~fixed, torch.ones_like(error))
    assert float(z.max()) < 4.5, z

"""A mean field: standard deviations of drawn Gaussians, and new rows at the fixed point of variational Bayes."""

from __future__ import annotations

import pytest
import torch
from posterior_examples import a_mean_field, a_model, ratings_of, seeded
from torch import Tensor
from torch.testing import assert_close

from mfrec.data.ratings import Ratings
from mfrec.inference.fold_in import fold_in_items, fold_in_users
from mfrec.model.entity import ITEM, USER
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.model.ridge import ratings_views, reweighted
from mfrec.posteriors.base import PRECISION_SCALE_SHAPE
from mfrec.posteriors.mean_field import MeanFieldPosterior
from mfrec.solvers.registry import SOLVERS
from mfrec.solvers.variational import VariationalBayes


@torch.no_grad()
def test_the_standard_deviation_is_that_of_drawn_gaussians_and_of_the_noise():
    model, generator = a_model(12, 9), seeded(0)
    factors, free = model.augmented_factors(), model.free_columns()
    variances = [0.3 * torch.rand(t.shape, generator=generator, dtype=torch.float64) * f
                 for t, f in zip(factors, free, strict=True)]  # fmt: skip
    tau = [torch.full((n, 1), t, dtype=torch.float64) for n, t in ((12, 0.8), (9, 1.25))]
    posterior = MeanFieldPosterior(model, variances, free, 4.0, tau)
    users, items = torch.cartesian_prod(torch.arange(12), torch.arange(9)).T
    squares = torch.zeros(len(users), dtype=torch.float64)
    for _ in range(4000):
        drawn = [t + torch.randn(t.shape, generator=generator, dtype=torch.float64) * v.sqrt()
                 for t, v in zip(factors, variances, strict=True)]  # fmt: skip
        errors = (drawn[USER][users] * drawn[ITEM][items]).sum(1) - (factors[USER][users] * factors[ITEM][items]).sum(1)
        squares += errors.square()
    assert_close(posterior.std(users, items), (squares / 4000 + 0.25).sqrt(), rtol=0.06, atol=0)
    assert_close(posterior.std(users, items, include_noise=False), (squares / 4000).sqrt(), rtol=0.06, atol=0)


@pytest.fixture(scope="module")
def converged() -> VariationalBayes:
    """After enough sweeps that another changes nothing; user 30 has no rating."""
    generator, n = seeded(0), 420
    pairs = torch.cartesian_prod(torch.arange(30), torch.arange(25))
    users, items = pairs[torch.randperm(750, generator=generator)[:n]].T

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    # With planted biases, since factors that explain nothing shrink ever more slowly.
    values = 3 + normal(31)[users] * normal(25)[items] + 0.7 * (normal(31)[users] + normal(25)[items])
    values += 0.05 * (4 + users % 10) * normal(n)
    weights = 0.5 + torch.rand(n, generator=generator, dtype=torch.float64)
    ratings = Ratings(users, items, values, 31, 25, weights=weights)
    model = MatrixFactorization.from_ratings(ratings, 1, generator=generator)
    solver = SOLVERS["vb"](model, ratings, Objective(), cg_steps=2)
    for _ in range(500):
        solver.epoch()
    assert isinstance(solver, VariationalBayes)
    return solver


@pytest.mark.parametrize("entity", [USER, ITEM])
def test_a_converged_mean_field_folds_its_own_rows_in_again(converged, entity):
    model, posterior = converged.model, converged.inference()
    parts = (*model.augmented_factors(), *posterior.variances, *posterior.precision_scales)
    before = [tensor.detach().clone() for tensor in parts]
    folded = (fold_in_users, fold_in_items)[entity](posterior, converged.ratings)
    after = (*folded.mean_model().augmented_factors(), *folded.variances, *folded.precision_scales)
    converged.epoch()
    moved = (*model.augmented_factors(), *converged.variances, *converged.inference().precision_scales)
    for trained, epoch_later, again in zip(before, moved, after, strict=True):
        assert_close(epoch_later, trained, atol=1e-9, rtol=0, msg=lambda m: f"has not converged: {m}")
        assert_close(again, trained, atol=1e-7, rtol=0)
    assert float(posterior.precision_scales[entity].std()) > 0.05, "the noise of these rows does not differ"
    assert_close(
        folded.std(converged.ratings.users, converged.ratings.items),
        posterior.std(converged.ratings.users, converged.ratings.items),
    )


@torch.no_grad()
def test_another_sweep_does_not_change_new_rows():
    ratings, trained = ratings_of(5, 8), a_mean_field(a_model(rank=3))
    folded = fold_in_users(trained, ratings)
    model, tau = folded.mean_model(), folded.precision_scales
    solver = SOLVERS["vb"](model, ratings, Objective(), cg_steps=12)
    solver.alpha, solver.precision, solver.variances = trained.alpha, list(trained.precision), list(folded.variances)
    solver.gammas = [torch.stack([scale, torch.ones_like(scale)]) for scale in tau]
    solver.views = reweighted(ratings_views(model, ratings), tau)
    sums = solver._expected_squares(USER) / tau[USER]
    shape = PRECISION_SCALE_SHAPE + 0.5 * ratings.user_counts[:, None]
    assert_close(tau[USER], shape / (PRECISION_SCALE_SHAPE + 0.5 * trained.alpha * sums))
    before = model.augmented_factors()[USER]
    solver.epoch()
    assert_close(model.augmented_factors()[USER], before)
    assert_close(solver.variances[USER], folded.variances[USER])

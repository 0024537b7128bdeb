"""A mean field: standard deviations of drawn Gaussians, and new rows at the fixed point of variational Bayes."""

from __future__ import annotations

import pytest
import torch
from conftest import features_of
from posterior_examples import a_mean_field, a_model, mirrored, ratings_of, seeded, with_new_rows
from torch import Tensor
from torch.testing import assert_close

from mfrec.data.ratings import Ratings
from mfrec.inference.fold_in import fold_in_items, fold_in_users
from mfrec.model.entity import ITEM, USER
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.model.ratings_view import ratings_views, reweighted
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
    solver._update_terms(USER)
    assert_close(model.augmented_factors()[USER], before)
    assert_close(solver.variances[USER], folded.variances[USER])


KINDS = {USER: torch.tensor([0, 1, 1, 2, 0, 2]), ITEM: torch.tensor([0, 0, 1, 1, 0, 1, 0, 1])}


def with_features() -> MeanFieldPosterior:
    """A mean field of users and items with one-hot features, all of whose numbers have a variance."""
    blocks = {e: features_of(torch.eye(3).double()[kinds]) for e, kinds in KINDS.items()}
    model = a_model(user_features={"kind": blocks[USER]}, item_features={"kind": blocks[ITEM]})
    plain, generator, free = a_mean_field(model), seeded(9), model.free_columns()
    u = [{"kind": 0.2 * torch.rand(3, f.shape[1], generator=generator, dtype=torch.float64) * f} for f in free]
    return MeanFieldPosterior(model, plain.own_variances, plain.precision, 2.0, plain.precision_scales, u)


@torch.no_grad()
def test_the_variances_of_features_add_to_those_of_rows():
    posterior, generator, n = with_features(), seeded(0), 2000
    model = posterior.model
    weights = [model.weights(model.terms(entity)[1]) for entity in (USER, ITEM)]
    users, items = torch.cartesian_prod(torch.arange(6), torch.arange(8)).T
    rows = []
    for entity, kinds in KINDS.items():
        means, constant = model.weights(model.terms(entity)[0]), 1 - model.free_columns()[entity]
        P = means + torch.randn(n, *means.shape, generator=generator).double() * posterior.own_variances[entity].sqrt()
        W, u = weights[entity], posterior.feature_variances[entity]["kind"]
        W = W + torch.randn(n, *W.shape, generator=generator).double() * u.sqrt()
        rows.append(P + constant + W[:, kinds])
    drawn = (rows[USER][:, users] * rows[ITEM][:, items]).sum(2) + 3.0
    sampled = torch.stack([posterior.sample(generator).predict(users, items) for _ in range(n)])
    std = posterior.std(users, items, include_noise=False)
    for predictions in (drawn, sampled):
        assert_close(predictions.std(0), std, rtol=0.1, atol=0)
        assert float(((predictions.mean(0) - posterior.mean_model().predict(users, items)) / std).abs().max()) < 0.11
    # Users 1 and 2 share the draw of their feature's weights, users 0 and 1 do not.
    together = [(s.T.corrcoef()[8 * 1, 8 * 2], s.T.corrcoef()[8 * 0, 8 * 1]) for s in (drawn, sampled)]
    assert_close(torch.tensor(together[0]), torch.tensor(together[1]), atol=0.08, rtol=0)


def test_a_stored_state_keeps_the_variances_of_features():
    posterior = with_features()
    again = MeanFieldPosterior.from_state(posterior.state_dict(), posterior.model, Objective())
    for entity in (USER, ITEM):
        assert torch.equal(again.variances[entity], posterior.variances[entity])
        assert torch.equal(again.feature_variances[entity]["kind"], posterior.feature_variances[entity]["kind"])
        assert torch.equal(again.own_variances[entity], posterior.own_variances[entity])


@pytest.mark.parametrize("entity", [USER, ITEM])
@torch.no_grad()
def test_new_rows_with_features_are_where_another_sweep_leaves_them(entity):
    trained = with_features()
    new = ratings_of(4, 8) if entity == USER else mirrored(ratings_of(4, 6))
    features = {"kind": features_of(torch.eye(3).double()[[2, 0, 1, 1]])}
    folded = (fold_in_users, fold_in_items)[entity](trained, new, features=features)
    # In the model with features, the new rows' own part is what their features do not add.
    model = with_new_rows(trained.model, entity, 4, features, folded.mean_model().offset)
    term, feature = model.terms(entity)
    model.assign(term, folded.mean_model().augmented_factors()[entity] - model.entity_factors(entity))
    solver = SOLVERS["vb"](model, new, Objective(), cg_steps=40)
    tau = folded.precision_scales
    solver.alpha, solver.gammas = trained.alpha, [torch.stack([scale, torch.ones_like(scale)]) for scale in tau]
    solver.views = reweighted(ratings_views(model, new), tau)
    numbers = {(t.entity, t.features is None): n for n, t in enumerate(solver.terms)}
    u = trained.feature_variances[entity]["kind"]
    own_variances = folded.variances[entity] - features["kind"].matmul_squared(u)
    solver.term_variances[numbers[entity, False]], solver.term_variances[numbers[entity, True]] = u, own_variances
    solver.variances = list(folded.variances)
    solver.precision[numbers[entity, True]] = trained.precision[entity]
    counts = (new.user_counts, new.item_counts)[entity][:, None]
    rate = PRECISION_SCALE_SHAPE + 0.5 * trained.alpha * solver._expected_squares(entity) / tau[entity]
    assert_close(tau[entity], (PRECISION_SCALE_SHAPE + 0.5 * counts) / rate)
    before = model.weights(term)
    solver._update_term(numbers[entity, True], None)
    assert_close(model.weights(term), before, atol=1e-8, rtol=0)
    assert_close(solver.term_variances[numbers[entity, True]], own_variances)
    assert feature.features is not None


@torch.no_grad()
def test_a_new_row_without_ratings_has_the_variance_of_its_features_and_of_the_prior():
    trained, features = with_features(), {"kind": features_of(torch.eye(3).double()[[2, 0, 1, 1]])}
    nothing = ratings_of(4, 8).select(torch.zeros(len(ratings_of(4, 8)), dtype=torch.bool))
    folded = fold_in_users(trained, nothing, features=features)
    free = trained.model.free_columns()[USER]
    prior = free / trained.precision[USER] + trained.feature_variances[USER]["kind"][[2, 0, 1, 1]]
    assert_close(folded.variances[USER], prior)
    weights = trained.model.weights(trained.model.terms(USER)[1])[[2, 0, 1, 1]]
    assert_close(folded.mean_model().augmented_factors()[USER], weights + 1 - free)


@torch.no_grad()
def test_items_of_features_alone_have_the_variances_of_their_features():
    ratings, kinds = ratings_of(6, 8), torch.eye(3).double()[KINDS[ITEM]]
    model = MatrixFactorization.from_ratings(ratings, 2, item_features={"kind": features_of(kinds)}, item_ids=False)
    solver = SOLVERS["vb"](model, ratings, Objective())
    for _ in range(8):
        solver.epoch()
    posterior = solver.inference()
    u = posterior.feature_variances[ITEM]["kind"]
    assert_close(posterior.variances[ITEM], u[KINDS[ITEM]])
    assert not bool(posterior.own_variances[ITEM].any())
    new = mirrored(ratings_of(2, 6))
    folded = fold_in_items(posterior, new, features={"kind": features_of(torch.eye(3).double()[[1, 0]])})
    assert_close(folded.variances[ITEM], u[[1, 0]])

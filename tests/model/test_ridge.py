"""Ridge problems of half-sweeps: the Hessian, right-hand side and minimum are those of dense least squares."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from conftest import DenseFeatures
from torch import Tensor
from torch.testing import assert_close

from mfrec.data.ratings import Ratings
from mfrec.model import ridge
from mfrec.model.entity import ITEM, USER
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.model.ratings_view import ratings_views, reweighted
from mfrec.model.ridge import (
    RidgeProblem,
    cholesky,
    minimize_by_cg,
    minimize_by_columns,
    minimize_exactly,
    normal_matrices,
    ridge_problem,
)

OBJECTIVE = Objective(0.7, 0.2, "sqrt")
# Users' rows, two blocks of user features, then the same of items.
TERMS = range(6)


def make_model(ratings: Ratings, features: DenseFeatures | None = None, **options) -> MatrixFactorization:
    """A model of rank 2 whose parameters are all drawn, with features if there are any."""
    generator = torch.Generator().manual_seed(1)
    options |= features.options() if features else {}
    model = MatrixFactorization.from_ratings(ratings, 2, offset="item", generator=generator, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


class DenseProblem(NamedTuple):
    """The least squares ‖√w (design · x − residuals)‖² + x ∘ ridge ∘ x in the change x of a term's free numbers.

    design: (n_ratings, n_weights · n_free); residuals, weights: (n_ratings,); ridge, start: (n_weights · n_free,).
    """

    design: Tensor
    residuals: Tensor
    weights: Tensor
    ridge: Tensor
    start: Tensor

    @property
    def hessian(self) -> Tensor:
        return self.design.T @ (self.weights[:, None] * self.design) + torch.diag(self.ridge)

    @property
    def rhs(self) -> Tensor:
        return self.design.T @ (self.weights * self.residuals) - self.ridge * self.start


@torch.no_grad()
def dense_problem(model: MatrixFactorization, ratings: Ratings, features: DenseFeatures | None, n: int) -> DenseProblem:
    """The regression of term n, by a row of the design matrix for each rating, in the order of the users' view."""
    term = model.all_terms[n]
    names = [None, *(features.user if features else {}), None, *(features.item if features else {})]
    dense = getattr(features, ("user", "item")[term.entity])[names[n]] if term.features is not None else None
    F = torch.eye(model.entities[term.entity].n_rows, dtype=torch.float64) if dense is None else dense
    indices = (ratings.users.long(), ratings.items.long())
    factors = [matrix[index] for matrix, index in zip(model.augmented_factors(), indices, strict=True)]
    free = model.free_columns()[term.entity][0] > 0
    design = torch.einsum("nf,nk->nfk", F[indices[term.entity]], factors[1 - term.entity][:, free]).flatten(1)
    weights = torch.ones(len(ratings), dtype=torch.float64) if ratings.weights is None else ratings.weights
    return DenseProblem(
        design,
        model.targets(ratings) - (factors[USER] * factors[ITEM]).sum(1),
        weights,
        OBJECTIVE.ridge(model, ratings, term)[:, free].flatten(),
        model.weights(term)[:, free].flatten(),
    )


def problem_of(model: MatrixFactorization, ratings: Ratings, n: int, **options) -> RidgeProblem:
    term = model.all_terms[n]
    view = ratings_views(model, ratings)[term.entity]
    return ridge_problem(model, term, view, OBJECTIVE.ridge(model, ratings, term), **options)


def free_numbers(problem: RidgeProblem, values: Tensor) -> Tensor:
    """The free columns of a tensor laid out like the weights, flat; checks that the others are 0."""
    free = problem.view.free[0] > 0
    assert not bool(values[:, ~free].any())
    return values[:, free].flatten()


@pytest.mark.parametrize("n", TERMS)
@pytest.mark.parametrize("weighted", [False, True])
@torch.no_grad()
def test_the_hessian_and_the_right_hand_side_are_those_of_dense_least_squares(
    odd_ratings, weighted_ratings, odd_features, n, weighted
):
    ratings = weighted_ratings if weighted else odd_ratings
    model = make_model(ratings, odd_features)
    problem, dense = problem_of(model, ratings, n), dense_problem(model, ratings, odd_features, n)
    assert_close(free_numbers(problem, problem.rhs), dense.rhs)
    columns = []
    for index in range(len(dense.start)):
        change = torch.zeros_like(problem.weights)
        free = (problem.view.free.expand_as(change) > 0).nonzero()[index]
        change[free[0], free[1]] = 1
        columns.append(free_numbers(problem, problem.hessian(change)))
    assert_close(torch.stack(columns, 1), dense.hessian)
    diagonal = problem.diagonal[problem.view.free.expand_as(problem.diagonal) > 0]
    expected = dense.hessian.diagonal()
    assert_close(diagonal, torch.where(expected > 0, expected, 1))
    assert bool((problem.diagonal[:, problem.view.free[0] == 0] == 1).all())


@pytest.mark.parametrize("n", TERMS)
@torch.no_grad()
def test_the_right_hand_side_is_the_negative_gradient(weighted_ratings, odd_features, n):
    model = make_model(weighted_ratings, odd_features)
    term, rhs = model.all_terms[n], problem_of(model, weighted_ratings, n).rhs
    gradients = OBJECTIVE.gradients(model, weighted_ratings)
    for name, columns in term.split(rhs).items():
        assert_close(columns, -gradients[name])


@pytest.mark.parametrize("n", TERMS)
@pytest.mark.parametrize("shifted", [False, True])
@torch.no_grad()
def test_conjugate_gradients_reach_the_minimum_of_the_regression(weighted_ratings, odd_features, n, shifted):
    model, generator = make_model(weighted_ratings, odd_features), torch.Generator().manual_seed(4)
    dense = dense_problem(model, weighted_ratings, odd_features, n)
    term, options, rhs = model.all_terms[n], {}, dense.rhs
    if shifted:
        # The perturbation is in the order of the view, the dense problem in that of the users.
        noise = torch.randn(len(weighted_ratings), generator=generator, dtype=torch.float64)
        ridge = OBJECTIVE.ridge(model, weighted_ratings, term)
        shift = ridge * torch.randn(ridge.shape, generator=generator, dtype=torch.float64)
        order = weighted_ratings.pattern.transpose_order.long() if term.entity == ITEM else slice(None)
        options = {"perturbation": noise[order], "rhs_shift": shift}
        free = model.free_columns()[term.entity][0] > 0
        rhs = rhs + dense.design.T @ (dense.weights * noise) + shift[:, free].flatten()
    problem = problem_of(model, weighted_ratings, n, **options)
    minimum = dense.start + torch.linalg.lstsq(dense.hessian, rhs[:, None], driver="gelsd").solution[:, 0]
    assert_close(free_numbers(problem, minimize_by_cg(problem, 80)), minimum, atol=1e-8, rtol=0)
    if term.features is None:
        assert_close(free_numbers(problem, minimize_exactly(problem)), minimum, atol=1e-8, rtol=0)


@pytest.mark.parametrize("n", TERMS)
@pytest.mark.parametrize("steps", [5, 50, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_conjugate_gradients_stay_finite_without_a_penalty(odd_ratings, odd_features, n, steps, dtype):
    # Some rows have fewer ratings than columns: their Hessian is singular.
    ratings = odd_ratings.to(dtype=dtype)
    model = make_model(ratings, odd_features)
    term, view = model.all_terms[n], ratings_views(model, ratings)[model.all_terms[n].entity]
    problem = ridge_problem(model, term, view, 0 * view.free)
    weights = minimize_by_cg(problem, steps)
    assert float((weights - problem.weights).abs().max()) < 1e3
    before = float(Objective().cost(model, ratings))
    model.assign(term, weights)
    assert float(Objective().cost(model, ratings)) < before
    residual = ridge_problem(model, term, view, 0 * view.free).rhs
    if steps > 5:
        assert float(residual.norm()) < torch.finfo(dtype).eps ** 0.5 * float(problem.rhs.norm())


@pytest.mark.parametrize("n", TERMS)
@torch.no_grad()
def test_each_step_of_conjugate_gradients_lowers_the_cost(weighted_ratings, odd_features, n):
    model = make_model(weighted_ratings, odd_features)
    problem, term, costs = problem_of(model, weighted_ratings, n), model.all_terms[n], []
    for steps in range(6):
        model.assign(term, minimize_by_cg(problem, steps))
        costs.append(float(OBJECTIVE.cost(model, weighted_ratings)))
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < costs[0]


@pytest.mark.parametrize("entity", [USER, ITEM])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("numbers", [1, 60, 2**24])
@torch.no_grad()
def test_normal_matrices_are_sums_of_outer_products_in_blocks_of_any_size(
    odd_ratings, weighted_ratings, entity, weighted, numbers, monkeypatch
):
    ratings = weighted_ratings if weighted else odd_ratings
    monkeypatch.setattr(ridge, "NORMAL_NUMBERS", numbers)
    model = make_model(ratings)
    view, partners = ratings_views(model, ratings)[entity], model.augmented_factors()[1 - entity]
    blocks = list(normal_matrices(view, partners))
    n_rows = view.pattern.shape[0]
    assert [row for rows, _ in blocks for row in range(n_rows)[rows]] == list(range(n_rows))
    expected = torch.zeros(n_rows, 3, 3, dtype=torch.float64)
    free = partners[:, view.free[0] > 0]
    for n, (row, col) in enumerate(zip(view.pattern.row.tolist(), view.pattern.col.tolist(), strict=True)):
        expected[row] += (1.0 if view.weights is None else view.weights[n]) * torch.outer(free[col], free[col])
    assert_close(torch.cat([normal for _, normal in blocks]), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_singular_matrix_without_penalty_has_cholesky_factors(dtype):
    # A row without ratings, and one with fewer ratings than columns.
    normal = torch.zeros(2, 3, 3, dtype=dtype)
    normal[1] = torch.outer(*[torch.tensor([1.0, 2.0, 3.0], dtype=dtype)] * 2)
    factors = cholesky(normal, torch.zeros(2, 3, dtype=dtype))
    assert bool(torch.isfinite(factors).all())
    assert_close(factors @ factors.mT, normal, atol=20 * torch.finfo(dtype).eps, rtol=0)
    ridge = torch.tensor([[1.0, 2.0, 3.0]] * 2, dtype=dtype)
    factors = cholesky(normal, ridge)
    assert_close(factors @ factors.mT, normal + torch.diag_embed(ridge))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_any_singular_matrix_has_cholesky_factors_and_regular_ones_do_not_change(dtype, size):
    generator = torch.Generator().manual_seed(0)
    roots = size * torch.randn(200, 12, 5, generator=generator, dtype=dtype)
    normal, ridge = roots @ roots.mT, torch.zeros(200, 12, dtype=dtype)
    ridge[::2] = size
    factors = cholesky(normal, ridge)
    expected = normal + torch.diag_embed(ridge)
    error = (factors @ factors.mT - expected).abs().amax((1, 2)) / expected.abs().amax((1, 2)).clamp_min(1)
    assert float(error.max()) < 1e3 * torch.finfo(dtype).eps
    assert torch.equal(cholesky(normal[::2], ridge[::2]), factors[::2])


def test_a_matrix_that_is_not_finite_has_no_cholesky_factors():
    with pytest.raises(torch.linalg.LinAlgError):
        cholesky(torch.full((1, 2, 2), torch.nan), torch.ones(1, 2))


@pytest.mark.parametrize("minimize", [lambda problem: minimize_by_cg(problem, 50), minimize_exactly])
@torch.no_grad()
def test_a_row_without_ratings_goes_to_zero_and_without_penalty_stays(odd_ratings, minimize):
    model, ratings = make_model(odd_ratings), odd_ratings
    term, view = model.all_terms[0], ratings_views(model, ratings)[USER]
    free = view.free[0] > 0
    penalized = minimize(ridge_problem(model, term, view, view.free.expand(11, -1)))
    assert_close(penalized[[3, 10]][:, free], torch.zeros(2, 3, dtype=torch.float64))
    plain = minimize(ridge_problem(model, term, view, 0 * view.free))
    assert_close(plain[[3, 10]], model.weights(term)[[3, 10]])
    assert bool(torch.isfinite(plain).all())


@torch.no_grad()
def test_views_hold_targets_and_weights_in_the_order_of_each_entitys_rows(weighted_ratings):
    ratings, model = weighted_ratings, make_model(weighted_ratings)
    users, items = ratings_views(model, ratings)
    assert users.pattern is ratings.pattern
    assert items.pattern is ratings.pattern.T
    assert_close(users.targets, ratings.values - model.offset[ratings.items.long()])
    for name in ("targets", "weights"):
        dense = torch.zeros(11, 13, dtype=torch.float64)
        dense[ratings.users.long(), ratings.items.long()] = getattr(users, name)
        assert torch.equal(dense[items.pattern.col.long(), items.pattern.row.long()], getattr(items, name))
    for view in (users, items):
        assert torch.equal(view.weighted(view.targets), view.weights * view.targets)
    assert [view.free.tolist() for view in (users, items)] == [[[1, 1, 1, 0]], [[1, 1, 0, 1]]]


@pytest.mark.parametrize("weighted", [False, True])
@torch.no_grad()
def test_precision_scales_multiply_the_weights_of_both_views(odd_ratings, weighted_ratings, weighted):
    ratings = weighted_ratings if weighted else odd_ratings
    generator, model = torch.Generator().manual_seed(0), make_model(ratings)
    tau = [torch.rand(n, 1, generator=generator, dtype=torch.float64) for n in (11, 13)]
    original = ratings_views(model, ratings)
    views = reweighted(original, tau)
    for entity, (view, before) in enumerate(zip(views, original, strict=True)):
        rows, cols = view.pattern.row.long(), view.pattern.col.long()
        expected = (tau[entity][rows] * tau[1 - entity][cols])[:, 0]
        assert_close(view.weights, expected if before.weights is None else expected * before.weights)
        assert view.targets is before.targets


@pytest.mark.parametrize("n", [0, 1])
@torch.no_grad()
def test_repeated_passes_over_columns_reach_the_non_negative_minimum(weighted_ratings, n):
    model = make_model(weighted_ratings)
    term = model.all_terms[n]
    for _ in range(300):
        model.assign(term, minimize_by_columns(problem_of(model, weighted_ratings, n), model.rank))
    problem, weights = problem_of(model, weighted_ratings, n), model.weights(term)
    factors = weights[:, :2]
    assert bool((factors >= 0).all())
    assert bool((factors == 0).any())
    # Karush–Kuhn–Tucker: no slope where a number is free, and an upward one where it is at its bound.
    gradient = -problem.rhs
    at_bound = torch.zeros_like(gradient, dtype=torch.bool)
    at_bound[:, :2] = factors == 0
    assert float(gradient[~at_bound].abs().max()) < 1e-8
    assert bool((gradient[at_bound] > -1e-8).all())


@pytest.mark.parametrize("n", [0, 1])
@torch.no_grad()
def test_passes_over_free_columns_alone_reach_the_exact_minimum(weighted_ratings, n):
    model = make_model(weighted_ratings)
    term, exact = model.all_terms[n], minimize_exactly(problem_of(model, weighted_ratings, n))
    for _ in range(300):
        model.assign(term, minimize_by_columns(problem_of(model, weighted_ratings, n), rank=0))
    assert_close(model.weights(term), exact, atol=1e-9, rtol=0)

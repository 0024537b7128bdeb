"""The kernels of half-sweeps agree with their plain definitions, on any number of threads to the same bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import features_of
from torch import Tensor
from torch.testing import assert_close

from mfrec.data.ratings import Ratings
from mfrec.kernels import gram as gram_kernels
from mfrec.kernels import long_rows
from mfrec.kernels import ridge as ridge_kernels
from mfrec.kernels import squares as square_kernels
from mfrec.kernels.normals import TAIL, standard_normals
from mfrec.model import ridge, squared_errors
from mfrec.model.entity import ITEM, USER
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.ratings_view import RatingsView, ratings_views, reweighted
from mfrec.model.ridge import minimize, minimize_by_cg, normal_matrices

# Tolerances of each type; float32 is summed in another order.
CLOSE = {torch.float64: {"atol": 1e-10, "rtol": 1e-9}, torch.float32: {"atol": 2e-4, "rtol": 2e-4}}


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    dtype: torch.dtype = request.param
    return dtype


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of few ratings, and rows of more than 4 in segments."""
    for module in (ridge_kernels, gram_kernels, square_kernels):
        monkeypatch.setattr(module, "CHUNK", 5)
    monkeypatch.setattr(ridge_kernels, "LONGEST", 4)
    monkeypatch.setattr(long_rows, "SEGMENT", 3)


def make_ratings(dtype: torch.dtype, weighted: bool) -> Ratings:
    """Ratings of 12 × 9, from none to all 9 of a user; user 3 and item 4 have none."""
    generator = torch.Generator().manual_seed(1)
    rated = torch.rand(12, 9, generator=generator) < torch.linspace(0.1, 1.1, 12)[:, None]
    rated[3], rated[:, 4] = False, False
    users, items = rated.nonzero(as_tuple=True)
    values = torch.randn(len(users), generator=generator, dtype=dtype)
    weights = torch.rand(len(users), generator=generator, dtype=dtype) + 0.5 if weighted else None
    return Ratings(users, items, values, 12, 9, weights=weights)


def make_model(ratings: Ratings, rank: int = 3, biases: bool = True) -> MatrixFactorization:
    return scrambled(MatrixFactorization.from_ratings(ratings, rank, biases=biases))


def scrambled(model: MatrixFactorization) -> MatrixFactorization:
    """The model with random parameters."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def make_views(model: MatrixFactorization, ratings: Ratings, scaled: bool) -> tuple[RatingsView, RatingsView]:
    views, generator = ratings_views(model, ratings), torch.Generator().manual_seed(3)
    if not scaled:
        return views
    tau = [torch.rand(n, 1, generator=generator, dtype=model.dtype) + 0.5 for n in (ratings.n_users, ratings.n_items)]
    return reweighted(views, tau)


def definition(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Tensor | tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What a function returns where there are no kernels."""
    with monkeypatch.context() as patch:
        patch.setattr(ridge, "has_kernel", lambda tensor: False)
        patch.setattr(squared_errors, "has_kernel", lambda tensor: False)
        result = call()
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("entity", [USER, ITEM])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("pieces", ["whole rows", "segments"])
@torch.no_grad()
def test_rows_are_solved_as_by_the_sparse_products(dtype, entity, weighted, scaled, pieces, request, monkeypatch):
    if pieces == "segments":
        request.getfixturevalue("small_pieces")
    ratings = make_ratings(dtype, weighted)
    for rank, biases in ((0, True), (1, False), (3, True), (6, False)):
        model = make_model(ratings, rank, biases)
        # Entries of other processes may come before these.
        term, view = model.terms(entity)[0], replace(make_views(model, ratings, scaled)[entity], first=10**9)
        weights, generator = model.weights(term), torch.Generator().manual_seed(4)
        shift = torch.randn(weights.shape, generator=generator, dtype=dtype)
        variances = torch.rand(model.entities[1 - entity].n_rows, weights.shape[1], generator=generator, dtype=dtype)
        for steps, ridges, options in (
            (0, 0.7 * view.free, {}),
            (1, 0.7 + torch.rand(weights.shape, generator=generator, dtype=dtype), {}),
            (3, 0.7 * view.free, {"rhs_shift": shift, "variances": variances, "noise_std": 0.8, "seed": 2**62 - 1}),
        ):
            actual = minimize(model, term, view, ridges, steps, **options)
            call = lambda: minimize(model, term, view, ridges, steps, **options)  # noqa: B023, E731
            for result, expected in zip(actual, definition(monkeypatch, call), strict=True):
                assert_close(result, expected, **CLOSE[dtype])


@pytest.mark.parametrize("entity", [USER, ITEM])
@pytest.mark.parametrize("pieces", ["whole rows", "segments"])
@torch.no_grad()
def test_variances_of_partners_penalize_what_features_add_to_rows(dtype, entity, pieces, request, monkeypatch):
    if pieces == "segments":
        request.getfixturevalue("small_pieces")
    ratings, generator = make_ratings(dtype, weighted=True), torch.Generator().manual_seed(8)
    name, n = ("user_features", "item_features")[entity], (12, 9)[entity]
    features = {name: {"kind": features_of(torch.eye(3, dtype=dtype)[torch.arange(n) % 3])}}
    model = scrambled(MatrixFactorization.from_ratings(ratings, 3, **features))
    term, view = model.terms(entity)[0], make_views(model, ratings, scaled=True)[entity]
    variances = torch.rand(model.entity_factors(1 - entity).shape, generator=generator, dtype=dtype)
    actual = minimize(model, term, view, 0.7 * view.free, 2, variances=variances)
    call = lambda: minimize(model, term, view, 0.7 * view.free, 2, variances=variances)  # noqa: E731
    for result, expected in zip(actual, definition(monkeypatch, call), strict=True):
        assert_close(result, expected, **CLOSE[dtype])


@pytest.mark.parametrize("steps", [1, 3])
@torch.no_grad()
def test_long_rows_have_the_same_bits_whatever_the_blocks_and_the_tasks(dtype, steps, threads, monkeypatch):
    monkeypatch.setattr(ridge_kernels, "LONGEST", 100)
    monkeypatch.setattr(long_rows, "SEGMENT", 150)
    generator = torch.Generator().manual_seed(5)
    items, users = (torch.rand(5, 500, generator=generator) < 0.7).nonzero(as_tuple=True)
    ratings = Ratings(users, items, torch.randn(len(users), generator=generator, dtype=dtype), 500, 5)
    model = make_model(ratings)
    term, view = model.terms(ITEM)[0], make_views(model, ratings, scaled=True)[ITEM]
    noise = {"noise_std": 0.8, "seed": 7, "variances": torch.rand(500, 5, generator=generator, dtype=dtype)}

    def solved() -> tuple[Tensor, ...]:
        return minimize(model, term, view, 0.7 * view.free, steps, **noise)

    expected = solved()
    for result, plain in zip(expected, definition(monkeypatch, solved), strict=True):
        assert_close(result, plain, **CLOSE[dtype])
    for n_bytes, n_tasks in ((1, 1), (1000, 2), (5000, 7)):
        monkeypatch.setattr(long_rows, "BLOCK_BYTES", n_bytes)
        monkeypatch.setattr(long_rows, "TASKS", n_tasks)
        assert all(torch.equal(*pair) for pair in zip(solved(), expected, strict=True))


@pytest.mark.parametrize("steps", [5, 60])
@torch.no_grad()
def test_rows_without_penalty_stay_finite_and_reach_the_minimum(dtype, steps, monkeypatch):
    # Some rows have fewer ratings than columns: their Hessian is singular.
    ratings = make_ratings(dtype, weighted=False)
    model = make_model(ratings, rank=6)
    term, view = model.terms(USER)[0], ratings_views(model, ratings)[USER]
    weights, _ = minimize(model, term, view, 0 * view.free, steps)
    assert float((weights - model.weights(term)).abs().max()) < 1e3
    assert torch.equal(weights[3], model.weights(term)[3])
    model.assign(term, weights)
    problem = ridge.ridge_problem(model, term, view, 0 * view.free)
    if steps > 5:
        assert float(problem.rhs.abs().max()) < 20 * torch.finfo(dtype).eps ** 0.5


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@torch.no_grad()
def test_diverged_partners_make_diverged_rows(value):
    ratings = make_ratings(torch.float64, weighted=False)
    model = make_model(ratings)
    model.item_factors.weight[0, 0] = value
    term, view = model.terms(USER)[0], ratings_views(model, ratings)[USER]
    weights, _ = minimize(model, term, view, view.free, 2)
    assert bool((~torch.isfinite(weights[ratings.users[ratings.items == 0].long()])).any(1).all())
    assert bool(torch.isfinite(weights[3]).all())


def normals(seed: int, first: int, n: int) -> np.ndarray:
    out, uniforms, tails = np.empty(n), np.empty(n), np.empty(n + 1, np.int64)
    with np.errstate(over="ignore"):
        standard_normals(np.uint64(seed), first, n, out, uniforms, tails)
    assert np.abs(uniforms).max() < 0.5
    return out


@pytest.mark.parametrize("entity", [USER, ITEM])
@pytest.mark.parametrize("pieces", ["whole rows", "segments"])
@torch.no_grad()
def test_the_noise_of_a_rating_is_the_normal_number_of_its_position(entity, pieces, request):
    if pieces == "segments":
        request.getfixturevalue("small_pieces")
    ratings = make_ratings(torch.float64, weighted=True)
    model = make_model(ratings)
    term, view = model.terms(entity)[0], make_views(model, ratings, scaled=True)[entity]
    weights, _ = minimize(model, term, view, view.free, 3, noise_std=0.8, seed=7)
    noise = 0.8 * torch.from_numpy(normals(7, 0, len(ratings))) * view.weights.rsqrt()
    problem = ridge.ridge_problem(model, term, view, view.free, noise)
    assert_close(weights, minimize_by_cg(problem, 3))
    again, _ = minimize(model, term, view, view.free, 3, noise_std=0.8, seed=8)
    assert float((again - weights).abs().max()) > 0.01


def test_normal_numbers_have_a_normal_distribution_and_are_independent():
    n = 20000
    draws = [normals(seed, 0, n) for seed in (0, 1, 2**62 - 1)]
    for z in draws:
        # Each within 4.5 standard errors: four moments, and the largest distance of the distribution functions.
        assert abs(z.mean()) < 4.5 / n**0.5
        assert abs((z**2).mean() - 1) < 4.5 * (2 / n) ** 0.5
        assert abs((z**3).mean()) < 4.5 * (15 / n) ** 0.5
        assert abs((z**4).mean() - 3) < 4.5 * (96 / n) ** 0.5
        below = torch.special.ndtr(torch.from_numpy(np.sort(z))).numpy()
        assert np.abs(below - (np.arange(n) + 0.5) / n).max() < 2 / n**0.5
        for lag in (1, 2, 3, 64, 128):
            assert abs((z[lag:] * z[:-lag]).mean()) < 4.5 / n**0.5
            assert abs((z[lag:] ** 2 * z[:-lag] ** 2).mean() - 1) < 4.5 * (8 / n) ** 0.5
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs((draws[a] * draws[b]).mean()) < 4.5 / n**0.5


def test_normal_numbers_are_the_quantiles_of_uniform_ones():
    n = 2000
    out, uniforms, tails = np.empty(n), np.empty(n), np.empty(n + 1, np.int64)
    with np.errstate(over="ignore"):
        standard_normals(np.uint64(5), 2**33, n, out, uniforms, tails)
    assert (np.abs(uniforms) > 0.5 - TAIL).sum() > 50
    exact = torch.special.ndtri(torch.from_numpy(uniforms + 0.5))
    assert_close(torch.from_numpy(out), exact, atol=0, rtol=2e-9)


def test_a_normal_number_depends_on_its_position_alone():
    whole = normals(11, 0, 100)
    assert np.array_equal(np.concatenate([normals(11, 0, 7), normals(11, 7, 1), normals(11, 8, 92)]), whole)


@pytest.mark.parametrize("entity", [USER, ITEM])
@pytest.mark.parametrize("weighted", [False, True])
@torch.no_grad()
def test_normal_matrices_are_those_of_the_sparse_products(dtype, entity, weighted, small_pieces, monkeypatch):
    ratings = make_ratings(dtype, weighted)
    for rank in (1, 3, 6):
        model = make_model(ratings, rank)
        view, partners = ratings_views(model, ratings)[entity], model.augmented_factors()[1 - entity]
        ((_, actual),) = normal_matrices(view, partners)
        ((_, expected),) = definition(monkeypatch, lambda: tuple(normal_matrices(view, partners)))  # noqa: B023
        assert_close(actual, expected, **CLOSE[dtype])


@pytest.mark.parametrize("weighted", [False, True])
@torch.no_grad()
def test_squared_errors_and_their_sums_are_those_of_the_sparse_products(dtype, weighted, small_pieces, monkeypatch):
    ratings = make_ratings(dtype, weighted)
    for rank in (0, 1, 6):
        model, generator = make_model(ratings, rank), torch.Generator().manual_seed(5)
        view, factors = ratings_views(model, ratings)[USER], model.augmented_factors()
        variances = [torch.rand(rows.shape, generator=generator, dtype=dtype) for rows in factors]
        tau = [torch.rand(len(rows), 1, generator=generator, dtype=dtype) for rows in factors]
        squares = squared_errors.squared_errors(view, *factors, variances)
        for call in (
            lambda: squared_errors.squared_errors(view, *factors),  # noqa: B023
            lambda: squared_errors.squared_errors(view, *factors, variances),  # noqa: B023
            lambda: squared_errors.row_sums(ratings.pattern, squares, tau[ITEM]),  # noqa: B023
            lambda: squared_errors.column_sums(ratings.pattern, squares, tau[USER]),  # noqa: B023
        ):
            (expected,) = definition(monkeypatch, call)
            assert call().shape == expected.shape
            assert_close(call(), expected, **CLOSE[dtype])


@torch.no_grad()
def test_any_number_of_threads_gives_the_same_bits(threads, small_pieces):
    ratings = make_ratings(torch.float32, weighted=True)
    model = make_model(ratings)
    views, factors = make_views(model, ratings, scaled=True), model.augmented_factors()
    results = []
    for n in (threads, 1):
        torch.set_num_threads(n)
        tensors: list[Tensor] = []
        for entity in (USER, ITEM):
            term, view = model.terms(entity)[0], views[entity]
            minimum = minimize(model, term, view, view.free, 2, noise_std=0.5, seed=6)
            tensors += [*minimum, *(a for _, a in normal_matrices(view, factors[1 - entity]))]
        squares = squared_errors.squared_errors(views[USER], *factors, factors)
        tensors += [
            squares,
            squared_errors.row_sums(ratings.pattern, squares, factors[ITEM][:, :1]),
            squared_errors.column_sums(ratings.pattern, squares, factors[USER][:, :1]),
        ]
        results.append(tensors)
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], again, strict=True))

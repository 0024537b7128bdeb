"""The kernel of squared errors and their gradient against sddmm and spmm, by which they are defined."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mfrec.kernels import gradient as kernels
from mfrec.kernels.gradient import loss_and_gradient
from mfrec.model import objective as objective_module
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.losses import log_cosh
from mfrec.model.objective import DataCost, Objective
from mfrec.sparse import CSRPattern, csr_pattern, sddmm, spmm

COUNTS = {
    "no entries": [0, 0, 0],
    "one entry": [0, 1, 0],
    "empty rows": [0, 3, 0, 0, 11, 4, 0],
    "a long row": [2, 0, 300, 5, 1],
    "many rows": [n % 14 for n in range(60)],
}
TOLERANCES = {torch.float64: {"rtol": 1e-12, "atol": 1e-12}, torch.float32: {"rtol": 1e-4, "atol": 1e-4}}


@pytest.fixture(params=["one tile", "tiles"])
def small_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 7 entries, or more with tiles of about 16 columns, so that small examples have many of both."""
    monkeypatch.setattr(kernels, "CHUNK", 7)
    if request.param == "tiles":
        monkeypatch.setattr(kernels, "TILE_BYTES", 1024)


@pytest.fixture
def always_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective_module, "KERNEL_RATINGS", 0)


def example(counts: list[int], k: int, dtype: torch.dtype) -> tuple[CSRPattern, Tensor, Tensor, Tensor, Tensor]:
    """Pattern, values, weights, rows and partners; rows have these numbers of entries."""
    generator = torch.Generator().manual_seed(len(counts))
    n_cols = max(*counts, 40)
    cols = torch.cat([torch.randperm(n_cols, generator=generator)[:n] for n in counts])
    rows = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    pattern, _ = csr_pattern(rows, cols, (len(counts), n_cols))
    values, weights = torch.rand(2, len(cols), generator=generator, dtype=torch.float64).to(dtype)
    A, B = (torch.randn(n, k, generator=generator, dtype=torch.float64).to(dtype) for n in pattern.shape)
    return pattern, values, weights, A, B


def by_kernel(
    pattern: CSRPattern, values: Tensor, weights: Tensor | None, A: Tensor, B: Tensor
) -> tuple[float, Tensor]:
    arrays = (values.numpy(), None if weights is None else weights.numpy(), A.numpy(), B.numpy())
    loss, rows = loss_and_gradient(pattern.crow.long().numpy(), pattern.col.numpy(), *arrays)
    return loss, torch.from_numpy(rows)


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("k", [0, 1, 8, 19])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_kernel_agrees_with_the_two_products(small_chunks, counts, k, dtype, weighted):
    pattern, values, weights, A, B = example(counts, k, dtype)
    errors = sddmm(pattern, A, B) - values
    weighted_errors = errors * weights if weighted else errors
    loss, rows = by_kernel(pattern, values, weights if weighted else None, A, B)
    assert loss == pytest.approx(float(0.5 * (weighted_errors * errors).double().sum()), rel=1e-5)
    assert_close(rows, spmm(pattern, weighted_errors, B), **TOLERANCES[dtype])


def test_indices_of_64_bits_agree_with_those_of_32(small_chunks):
    pattern, *tensors = example(COUNTS["many rows"], 8, torch.float64)
    long = pattern.apply(Tensor.long)
    assert pattern.col.dtype == torch.int32
    for actual, expected in zip(by_kernel(long, *tensors), by_kernel(pattern, *tensors), strict=True):
        assert_close(actual, expected, rtol=0, atol=0)


def test_the_number_of_threads_does_not_change_a_bit(small_chunks, threads):
    pattern, *tensors = example(COUNTS["a long row"] + COUNTS["many rows"], 8, torch.float32)
    loss, rows = by_kernel(pattern, *tensors)
    torch.set_num_threads(1)
    expected_loss, expected_rows = by_kernel(pattern, *tensors)
    assert loss == expected_loss
    assert torch.equal(rows, expected_rows)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("entry", [0, 3, 299])
def test_an_error_that_is_not_finite_reaches_the_loss_and_its_row(small_chunks, value, entry):
    pattern, values, _, A, B = example(COUNTS["a long row"], 8, torch.float32)
    row, col = int(pattern.row[entry]), int(pattern.col[entry])
    B[col] = value
    loss, rows = by_kernel(pattern, values, None, A, B)
    assert not np.isfinite(loss)
    assert not rows[row].isfinite().any()
    untouched = torch.ones(len(A), dtype=torch.bool)
    untouched[pattern.row[pattern.col == col].long()] = False
    assert rows[untouched].isfinite().all()


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("offset", ["none", "global", "item"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_objective_has_the_numbers_of_its_definition(
    odd_ratings, weighted_ratings, odd_features, monkeypatch, biases, offset, weighted, dtype
):
    ratings = (weighted_ratings if weighted else odd_ratings).to(dtype=dtype)
    model = MatrixFactorization.from_ratings(ratings, 5, biases=biases, offset=offset, **odd_features.options())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(3))
    objective = Objective(1.3, 0.4)
    cost, gradients = objective.cost_and_gradients(model, ratings)
    monkeypatch.setattr(objective_module, "KERNEL_RATINGS", 0)
    monkeypatch.setattr(objective_module, "sddmm", None)  # so that only the kernel can have computed what follows
    compiled_cost, compiled_gradients = objective.cost_and_gradients(model, ratings)
    assert_close(compiled_cost, cost)
    assert_close(compiled_gradients, gradients, **TOLERANCES[dtype])
    (2 * objective(model, ratings)).backward()
    for name, gradient in gradients.items():
        assert_close(model.get_parameter(name).grad, 2 * gradient, **TOLERANCES[dtype])


def test_the_compiled_cost_passes_gradcheck(always_compiled, weighted_ratings):
    model = MatrixFactorization.from_ratings(weighted_ratings, 3, offset="item")
    U, V = (factors.detach().clone().requires_grad_() for factors in model.augmented_factors())
    targets, constants = weighted_ratings.values, (weighted_ratings, Objective(), model.offset)
    assert torch.autograd.gradcheck(lambda u, v: DataCost.apply(u, v, targets, *constants), (U, V))
    assert torch.autograd.gradcheck(lambda u: DataCost.apply(u, V.detach(), targets, *constants), (U,))
    assert torch.autograd.gradcheck(lambda v: DataCost.apply(U.detach(), v, targets, *constants), (V,))


def test_a_second_backward_pass_adds_the_same_gradient(always_compiled, odd_ratings):
    model, objective = MatrixFactorization.from_ratings(odd_ratings, 3), Objective(0.7)
    cost = objective(model, odd_ratings)
    cost.backward(retain_graph=True)
    cost.backward()
    for name, gradient in objective.gradients(model, odd_ratings).items():
        assert_close(model.get_parameter(name).grad, 2 * gradient)


def test_a_derivative_of_the_gradient_is_refused(always_compiled, odd_ratings):
    model = MatrixFactorization.from_ratings(odd_ratings, 3)
    U, V = (factors.detach().requires_grad_() for factors in model.augmented_factors())
    cost = DataCost.apply(U, V, odd_ratings.values, odd_ratings, Objective())
    (gradient,) = torch.autograd.grad(cost.square(), U, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_without_autograd_the_cost_needs_no_gradient(always_compiled, odd_ratings):
    model, objective = MatrixFactorization.from_ratings(odd_ratings, 3), Objective(0.7)
    with torch.no_grad():
        cost = objective(model, odd_ratings)
    assert not cost.requires_grad
    assert_close(cost, objective(model, odd_ratings).detach())


def test_losses_without_a_kernel_use_the_products(always_compiled, odd_ratings, monkeypatch):
    monkeypatch.setattr(kernels, "loss_and_gradient", None)
    model = MatrixFactorization.from_ratings(odd_ratings, 3)
    assert Objective(loss=log_cosh).cost_and_gradients(model, odd_ratings)[0].isfinite()


def test_few_ratings_do_not_import_numba():
    code = """
import sys, torch
from mfrec.data.ratings import Ratings
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
ratings = Ratings(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([5.0, 3.0]))
Objective().gradients(MatrixFactorization.from_ratings(ratings, 2), ratings)
print("numba" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout == "False\n"


def test_the_kernel_works_without_compilation():
    code = """
import numpy as np
from mfrec.kernels.gradient import loss_and_gradient
crow, col = np.array([0, 2, 2, 7]), np.array([0, 4, 0, 1, 2, 3, 4], np.int32)
loss, gradient = loss_and_gradient(crow, col, np.ones(7), np.full(7, 2.0), np.ones((3, 2)), np.ones((5, 2)))
print(loss, gradient.tolist())
"""
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert result.stdout == "7.0 [[4.0, 4.0], [0.0, 0.0], [10.0, 10.0]]\n"

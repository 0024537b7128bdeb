"""The two products: torch's sparse kernels, the gathers beside them, and the dense definition give the same numbers."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfrec import sparse
from mfrec.data.ratings import Ratings

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def random_ratings(n_users: int, n_items: int, density: float, seed: int) -> Ratings:
    generator = torch.Generator().manual_seed(seed)
    observed = torch.rand(n_items, n_users, generator=generator) < density
    return Ratings.from_dense(torch.randn(n_items, n_users, generator=generator, dtype=torch.float64), observed)


def assert_products_agree(ratings: Ratings, rank: int, dtype: torch.dtype, device: str, tolerance: float) -> None:
    def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)

    generator = torch.Generator().manual_seed(1)
    U = torch.randn(ratings.n_users, rank, generator=generator, dtype=dtype).to(device)
    V = torch.randn(ratings.n_items, rank, generator=generator, dtype=dtype).to(device)
    ratings = ratings.to(device, dtype)
    users, items = ratings.users.long(), ratings.items.long()
    dense = torch.zeros(ratings.n_users, ratings.n_items, dtype=dtype, device=device)
    dense[users, items] = ratings.values

    expected = (U @ V.T)[users, items]
    for product in (sparse.sampled_dot, sparse.gathered_sampled_dot):
        assert_close(product(ratings.by_user, U, V), expected)
    for product in (sparse.matmul, sparse.gathered_matmul):
        assert_close(product(ratings.by_user, ratings.values, V), dense @ V)
        assert_close(product(ratings.by_item, ratings.values[ratings.item_order.long()], U), dense.T @ U)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("rank", [1, 7, 33])
def test_sparse_and_gathered_products_are_the_dense_ones_at_the_observed_entries(device, dtype, tolerance, rank):
    assert_products_agree(random_ratings(23, 41, 0.2, 0), rank, dtype, device, tolerance)


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.integers(0, 3), st.integers(0, 2**31))
def test_products_agree_for_any_shape_empty_rows_and_empty_patterns_included(n_users, n_items, density, rank, seed):
    assert_products_agree(random_ratings(n_users, n_items, density, seed), rank, torch.float64, "cpu", 1e-12)


def test_the_gathers_take_over_where_torch_lacks_a_product(monkeypatch):
    ratings = random_ratings(9, 5, 0.5, 0)
    U, V = torch.randn(9, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    dots, product = sparse.sampled_dot(ratings.by_user, U, V), sparse.matmul(ratings.by_user, ratings.values, V)
    monkeypatch.setattr(sparse, "torch_has_products", lambda device, dtype: False)
    monkeypatch.setattr(sparse, "BLOCK", 4)
    torch.testing.assert_close(sparse.sampled_dot(ratings.by_user, U, V), dots)
    torch.testing.assert_close(sparse.matmul(ratings.by_user, ratings.values, V), product)


def test_a_device_without_sparse_kernels_is_found_out(monkeypatch, caplog):
    def lacking(*arguments, **options):
        raise NotImplementedError("no kernel")

    monkeypatch.setattr(torch.sparse, "sampled_addmm", lacking)
    assert not sparse.torch_has_products.__wrapped__("cpu", torch.float32)
    assert "more slowly" in caplog.text


def test_the_pattern_of_a_small_matrix_has_32_bit_indices():
    pattern = random_ratings(9, 5, 0.5, 0).by_item
    assert pattern.crow.dtype == pattern.col.dtype == torch.int32


def test_the_products_warn_of_nothing():
    # torch says that sparse CSR is beta once a process: look at a fresh one.
    code = (
        "import torch; from mfrec.data.ratings import Ratings; from mfrec.sparse import matmul\n"
        "ratings = Ratings.from_dense(torch.ones(2, 3))\n"
        "matmul(ratings.by_user, ratings.values, torch.ones(2, 1))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""

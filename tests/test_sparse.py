"""Sparse matrices and the two products: torch's kernels, the gathers and dense matrices give the same numbers."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from mfrec import sparse
from mfrec.errors import InputError
from mfrec.sparse import CSRPattern, SparseMatrix, csr_pattern, entry_order, row_products, sddmm, spmm

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def random_matrix(n_rows: int, n_cols: int, density: float, seed: int = 0) -> SparseMatrix:
    """A matrix in float64 whose entries are given in random order."""
    generator = torch.Generator().manual_seed(seed)
    rows, cols = (torch.rand(n_rows, n_cols, generator=generator) < density).nonzero(as_tuple=True)
    order = torch.randperm(len(rows), generator=generator)
    values = torch.randn(len(rows), generator=generator, dtype=torch.float64)
    return SparseMatrix.from_entries(rows[order], cols[order], values, (n_rows, n_cols))


def dense(matrix: SparseMatrix) -> Tensor:
    """The matrix as a dense one, by its rows, columns and values."""
    out = matrix.values.new_zeros(matrix.shape)
    out[matrix.pattern.row.long(), matrix.pattern.col.long()] = matrix.values
    return out


matrices = st.builds(
    random_matrix, st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.integers(0, 2**31)
)  # some have no entry, and many an empty row


def assert_products_agree(
    matrix: SparseMatrix, rank: int, dtype: torch.dtype = torch.float64, device: str = "cpu", tolerance: float = 1e-12
) -> None:
    def assert_near(result: Tensor, expected: Tensor) -> None:
        assert_close(result, expected, atol=tolerance, rtol=tolerance)

    generator = torch.Generator().manual_seed(1)
    A, B = (torch.randn(n, rank, generator=generator, dtype=dtype).to(device) for n in matrix.shape)
    matrix = matrix.to(device, dtype)
    pattern, D = matrix.pattern, dense(matrix)
    at_entries = (A @ B.T)[pattern.row.long(), pattern.col.long()]
    for product in (sddmm, sparse.gathered_sddmm):
        assert_near(product(pattern, A, B), at_entries)
    for product in (spmm, sparse.gathered_spmm):
        assert_near(product(pattern, matrix.values, B), D @ B)
        assert_near(product(pattern.T, matrix.values[pattern.transpose_order.long()], A), D.T @ A)
    for weights in (None, matrix.values):
        values = at_entries if weights is None else at_entries * weights
        assert_near(row_products(pattern, weights, A, B), dense(matrix.with_values(values)) @ B)
    assert_near(matrix.sddmm(A, B), at_entries)
    assert_near(matrix @ B, D @ B)
    assert_near(matrix.T @ A, D.T @ A)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("rank", [1, 7, 33])
def test_sparse_and_gathered_products_equal_dense_ones_at_the_entries(device, dtype, tolerance, rank):
    assert_products_agree(random_matrix(23, 41, 0.2), rank, dtype, device, tolerance)


@given(matrices, st.integers(0, 3))
def test_products_agree_for_any_shape_with_empty_rows_and_without_entries(matrix, rank):
    assert_products_agree(matrix, rank)


def test_gathers_replace_a_product_that_torch_lacks(monkeypatch):
    matrix = random_matrix(9, 5, 0.5)
    A, B = torch.randn(9, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    dots, product = matrix.sddmm(A, B), matrix @ B
    monkeypatch.setattr(sparse, "torch_has_products", lambda device, dtype: False)
    monkeypatch.setattr(sparse, "BLOCK", 4)
    monkeypatch.delattr(torch.sparse, "sampled_addmm")
    monkeypatch.delattr(torch, "sparse_csr_tensor")
    assert_close(matrix.sddmm(A, B), dots)
    assert_close(matrix @ B, product)


@pytest.mark.parametrize("error", [NotImplementedError, RuntimeError])
def test_a_device_without_sparse_kernels_is_detected_and_reported(monkeypatch, caplog, error):
    def lacking(*arguments, **options):
        raise error("no kernel")

    monkeypatch.setattr(torch.sparse, "sampled_addmm", lacking)
    assert not sparse.torch_has_products.__wrapped__("cpu", torch.float32)
    assert "torch.float32 on cpu; falling back to slower gathers" in caplog.text


def test_a_full_memory_is_not_mistaken_for_a_missing_kernel(monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(torch.sparse, "sampled_addmm", full)
    with pytest.raises(torch.OutOfMemoryError):
        sparse.torch_has_products.__wrapped__("cpu", torch.float32)


def test_the_first_product_of_a_process_prints_no_warning():
    # torch warns once per process that sparse CSR is beta, so this needs a new process.
    code = (
        "import torch; from mfrec.sparse import SparseMatrix\n"
        "ones = torch.ones(1, dtype=torch.int64)\n"
        "SparseMatrix.from_entries(ones, ones, torch.ones(1), (2, 3)) @ torch.ones(3, 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


# CSR patterns


@given(matrices)
def test_crow_counts_and_rows_describe_the_same_pattern(matrix):
    pattern, counts = matrix.pattern, (dense(matrix) != 0).sum(1)
    assert pattern.n_entries == len(pattern.col) == int(counts.sum())
    assert pattern.counts.tolist() == counts.tolist()
    assert pattern.crow.tolist() == [0, *counts.cumsum(0).tolist()]
    # Without the rows that it was made of, a pattern computes them.
    again = CSRPattern(pattern.crow, pattern.col, pattern.shape)
    assert torch.equal(again.row, pattern.row)
    assert again.row.dtype == pattern.row.dtype
    pairs = list(zip(pattern.row.tolist(), pattern.col.tolist(), strict=True))
    assert pairs == sorted(set(pairs))


@given(matrices)
def test_the_transpose_of_the_transpose_is_the_matrix(matrix):
    pattern, transposed = matrix.pattern, matrix.T
    assert transposed.shape == matrix.shape[::-1]
    assert torch.equal(dense(transposed), dense(matrix).T)
    assert torch.equal(matrix.values[pattern.transpose_order.long()], transposed.values)
    assert torch.equal(pattern.row[pattern.transpose_order.long()], pattern.T.col)
    again = pattern.T.T
    assert torch.equal(again.crow, pattern.crow)
    assert torch.equal(again.col, pattern.col)
    back = pattern.transpose_order.long()[pattern.T.transpose_order.long()]
    assert torch.equal(back, torch.arange(pattern.n_entries))


def test_a_transpose_is_computed_once():
    matrix = random_matrix(9, 5, 0.5)
    assert matrix.T is matrix.T
    assert matrix.pattern.T is matrix.T.pattern
    assert matrix.pattern.transpose_order is matrix.pattern.transpose_order


@given(matrices, st.data())
def test_a_row_block_holds_its_rows_alone(matrix, data):
    first = data.draw(st.integers(0, matrix.shape[0]))
    end = data.draw(st.integers(first, matrix.shape[0]))
    pattern, crow = matrix.pattern.row_block(first, end), matrix.pattern.crow
    assert pattern.shape == (end - first, matrix.shape[1])
    assert torch.equal(dense(SparseMatrix(pattern, matrix.values[crow[first] : crow[end]])), dense(matrix)[first:end])


@given(matrices, st.integers(1, 10))
def test_row_blocks_hold_all_rows_once(matrix, n_rows):
    blocks = list(matrix.pattern.row_blocks(n_rows))
    assert all(1 <= rows.stop - rows.start <= n_rows for rows, _, _ in blocks)
    parts = [dense(SparseMatrix(pattern, matrix.values[entries])) for _, entries, pattern in blocks]
    assert torch.equal(torch.cat(parts), dense(matrix))
    assert [row for rows, _, _ in blocks for row in range(rows.start, rows.stop)] == list(range(matrix.shape[0]))


@given(matrices)
def test_the_order_of_the_entries_does_not_change_a_matrix(matrix):
    pattern = matrix.pattern
    reverse = torch.arange(pattern.n_entries).flip(0)
    again = SparseMatrix.from_entries(pattern.row[reverse], pattern.col[reverse], matrix.values[reverse], matrix.shape)
    assert torch.equal(again.values, matrix.values)
    assert torch.equal(again.pattern.col, pattern.col)
    assert torch.equal(again.pattern.crow, pattern.crow)


def test_entries_that_are_sorted_need_no_order():
    rows, cols = torch.tensor([0, 0, 2]), torch.tensor([0, 2, 1])
    pattern, order = csr_pattern(rows, cols, (3, 3))
    assert order is None
    assert pattern.counts.tolist() == [2, 0, 1]
    _, order = csr_pattern(rows.flip(0), cols.flip(0), (3, 3))
    assert order.tolist() == [2, 1, 0]


@pytest.mark.parametrize("is_sorted", [True, False])
def test_repeated_entries_are_counted_and_refused(is_sorted):
    rows, cols = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([1, 1, 0, 0, 0])
    rows, cols = (rows, cols) if is_sorted else (rows.flip(0), cols.flip(0))
    with pytest.raises(InputError, match=r"^entries must be distinct \(got 3 repeats\); keep one of each$"):
        csr_pattern(rows, cols, (2, 2))
    with pytest.raises(InputError, match=r"^\(row, feature\) entries must be distinct \(got 3 repeats\)"):
        SparseMatrix.from_entries(rows, cols, torch.ones(5), (2, 2), "(row, feature) entries")


@pytest.mark.parametrize("is_sorted", [True, False])
def test_later_changes_of_the_callers_tensors_do_not_reach_a_matrix(is_sorted):
    rows, cols, values = torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([2.0, 3.0])
    if not is_sorted:
        rows, cols, values = rows.flip(0), cols.flip(0), values.flip(0)
    for dtype in (torch.int32, torch.int64):
        arguments = rows.to(dtype), cols.to(dtype), values.clone()
        matrix = SparseMatrix.from_entries(*arguments, (2, 2))
        for tensor in arguments:
            tensor.fill_(1)
        assert dense(matrix).tolist() == [[2, 0], [0, 3]]


def test_indices_have_32_bits_where_the_counts_fit_and_64_elsewhere():
    pattern = random_matrix(9, 5, 0.5).pattern
    assert {t.dtype for t in (pattern.crow, pattern.col, pattern.row, pattern.T.crow, pattern.T.col)} == {torch.int32}
    wide, _ = csr_pattern(torch.tensor([1]), torch.tensor([2**31 - 1]), (2, 2**31))
    assert wide.crow.dtype == wide.col.dtype == torch.int64
    assert wide.col.tolist() == [2**31 - 1]


@given(matrices, st.data())
def test_selected_entries_stay_in_their_rows(matrix, data):
    n = matrix.pattern.n_entries
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=torch.bool)
    chosen = matrix.select(mask.nonzero().squeeze(1))
    assert chosen.shape == matrix.shape
    assert chosen.pattern.crow.dtype == chosen.pattern.col.dtype == torch.int32
    for part in ("row", "col"):
        assert torch.equal(getattr(chosen.pattern, part), getattr(matrix.pattern, part)[mask])
    assert torch.equal(chosen.values, matrix.values[mask])


# Sorting by counting, for many entries on the CPU


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_counting_and_torch_sort_alike(n_rows, n_cols, data):
    entries = data.draw(st.lists(st.tuples(st.integers(0, n_rows - 1), st.integers(0, n_cols - 1)), max_size=40))
    rows, cols = (
        torch.tensor(list(each), dtype=torch.int32) for each in ([r for r, _ in entries], [c for _, c in entries])
    )
    shape = n_rows, n_cols
    results = []
    for threshold in (0, 2**40):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sparse, "COUNTED", threshold)
            order = entry_order(rows, cols, shape)
            sorted_rows, sorted_cols = (rows, cols) if order is None else (rows[order], cols[order])
            pattern = CSRPattern.from_sorted(sorted_rows, sorted_cols, shape)
            tensors = [order, pattern.crow, pattern.transpose_order, pattern.T.crow, pattern.T.col]
            results.append([None if t is None else (t.dtype, t.tolist()) for t in tensors])
    assert results[0] == results[1]
    ascending = sorted(range(len(entries)), key=entries.__getitem__)
    is_sorted = all(a < b for a, b in pairwise(entries))
    assert results[0][0] == (None if is_sorted else (torch.int32, ascending))


def test_repeats_are_refused_by_counting_too(monkeypatch):
    monkeypatch.setattr(sparse, "COUNTED", 0)
    for rows in ([0, 0, 1], [1, 0, 0]):
        with pytest.raises(InputError, match=r"^entries must be distinct \(got 1 repeats\)"):
            csr_pattern(torch.tensor(rows), torch.zeros(3, dtype=torch.int64), (2, 2))


@pytest.mark.parametrize("size", [2, 3, 100])
def test_an_order_is_checked_across_blocks(monkeypatch, size):
    monkeypatch.setattr(sparse, "CHECKED", size)
    rows, cols = torch.tensor([0, 0, 0, 1, 1, 3, 3]), torch.tensor([0, 1, 4, 0, 2, 2, 3])
    assert entry_order(rows, cols, (4, 5)) is None
    for n in range(6):
        swapped = torch.arange(7)
        swapped[[n, n + 1]] = swapped[[n + 1, n]]
        assert entry_order(rows[swapped], cols[swapped], (4, 5)).tolist() == swapped.tolist()


def test_few_entries_are_sorted_without_numba():
    code = (
        "import sys, torch; from mfrec.sparse import SparseMatrix\n"
        "SparseMatrix.from_entries(torch.arange(9), torch.arange(9).flip(0), torch.ones(9), (9, 9)).T\n"
        "assert 'numba' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_other_values_share_the_pattern():
    matrix = random_matrix(9, 5, 0.5)
    doubled = matrix.with_values(2 * matrix.values)
    assert doubled.pattern is matrix.pattern
    assert torch.equal(dense(doubled), 2 * dense(matrix))


def test_apply_changes_each_tensor_and_to_changes_the_type_of_values_only():
    matrix, changed = random_matrix(9, 5, 0.5), []
    clone = matrix.apply(lambda tensor: changed.append(tensor) or tensor.clone())
    assert len(changed) == 3
    assert torch.equal(dense(clone), dense(matrix))
    assert all(
        a.data_ptr() != b.data_ptr() for a, b in ((clone.values, matrix.values), (clone.pattern.col, changed[1]))
    )
    single = matrix.to(dtype=torch.float32)
    assert single.values.dtype == torch.float32
    assert single.pattern.crow.dtype == single.pattern.col.dtype == torch.int32
    assert_close(dense(single), dense(matrix).float())
    assert matrix.to(torch.device("meta")).values.device.type == "meta"

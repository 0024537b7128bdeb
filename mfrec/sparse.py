"""Sparse matrices and the two products that every solver is made of; only this file knows how a device computes them.

Over the entries (r, c) of a pattern:

    sddmm(pattern, A, B)[n] = A[row n] · B[col n]            predictions, half of a Hessian product
    spmm(pattern, v, B)[r]  = Σ_{n in row r} v[n] B[col n]   gradients, right-hand sides, the other half

Neither builds anything of shape (rows × cols) or (entries × rank).  Each reads the pattern once and the factors of
every entry's column once: at rank k a product moves about 4·k bytes per entry from the cache that holds the smaller
matrix.  `torch.sparse` computes both on CPU and CUDA.  If a build or device lacks one, blocked gathers give the same
numbers more slowly.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import cache, cached_property

import torch
from torch import Tensor

from mfrec.errors import InputError

logger = logging.getLogger("mfrec.sparse")

# Entries gathered at a time if torch.sparse lacks a product: 2^16 at rank 64 in float32 are 16 MiB per operand.
BLOCK = 2**16


class CSRPattern:
    """The positions of the entries of an n_rows × n_cols matrix, in compressed-sparse-row order.

    Args:
        crow: (n_rows + 1,) where each row's entries begin.
        col: (n_entries,) the column of each entry, ascending within a row.
        shape: (n_rows, n_cols).
        row: (n_entries,) the row of each entry; by default computed when needed.

    Both index tensors are int32 if the counts fit, which halves the traffic of the products.
    """

    def __init__(self, crow: Tensor, col: Tensor, shape: tuple[int, int], row: Tensor | None = None) -> None:
        self.crow, self.col, self.shape = crow, col, shape
        self._row = row

    @classmethod
    def from_sorted(cls, rows: Tensor, cols: Tensor, shape: tuple[int, int]) -> CSRPattern:
        """The pattern of entries sorted by row, then column; rows and cols are (n_entries,)."""
        crow = torch.zeros(shape[0] + 1, dtype=rows.dtype, device=rows.device)
        crow[1:] = torch.bincount(rows, minlength=shape[0]).cumsum(0)
        return cls(crow, cols, shape, rows)

    @property
    def n_entries(self) -> int:
        """The number of entries."""
        return len(self.col)

    @property
    def row(self) -> Tensor:
        """(n_entries,) the row of each entry."""
        if self._row is None:
            rows = torch.arange(self.shape[0], dtype=self.col.dtype, device=self.col.device)
            self._row = torch.repeat_interleave(rows, self.counts)
        return self._row

    @cached_property
    def counts(self) -> Tensor:
        """(n_rows,) the number of entries in each row."""
        return self.crow.diff()

    @cached_property
    def transpose_order(self) -> Tensor:
        """(n_entries,) positions that sort the entries by column: `values[transpose_order]` belongs to `T`."""
        return torch.argsort(self.col, stable=True).to(self.col.dtype)

    @cached_property
    def T(self) -> CSRPattern:
        """The pattern of the transposed matrix."""
        order = self.transpose_order
        crow = torch.zeros(self.shape[1] + 1, dtype=self.col.dtype, device=self.col.device)
        crow[1:] = torch.bincount(self.col, minlength=self.shape[1]).cumsum(0)
        return CSRPattern(crow, self.row.index_select(0, order), (self.shape[1], self.shape[0]))

    def row_block(self, first: int, end: int) -> CSRPattern:
        """The pattern of rows first … end-1 alone."""
        crow = self.crow[first : end + 1]
        return CSRPattern(crow - crow[0], self.col[int(crow[0]) : int(crow[-1])], (len(crow) - 1, self.shape[1]))

    def apply(self, change: Callable[[Tensor], Tensor]) -> CSRPattern:
        """The pattern with each of its tensors changed, such as moved to another device."""
        return CSRPattern(change(self.crow), change(self.col), self.shape)


def csr_pattern(
    rows: Tensor, cols: Tensor, shape: tuple[int, int], entries: str = "entries"
) -> tuple[CSRPattern, Tensor | None]:
    """The pattern of entries in any order, and the order that sorts them, (n_entries,); None if they are sorted.

    Args:
        rows, cols: (n_entries,) non-negative integers below the shape.
        entries: the word for entries in messages.

    Raises:
        InputError: an entry occurs more than once.

    Examples:
        >>> pattern, order = csr_pattern(torch.tensor([1, 0]), torch.tensor([0, 2]), (2, 3))
        >>> pattern.row.tolist(), pattern.col.tolist(), order.tolist()
        ([0, 1], [2, 0], [1, 0])
    """
    key, order = rows.long() * shape[1] + cols.long(), None
    if bool((key.diff() <= 0).any()):
        key, order = torch.sort(key)
        rows, cols = rows[order], cols[order]
        repeated = int((key.diff() == 0).sum())
        if repeated:
            raise InputError(f"{entries} must be distinct (got {repeated:,} repeats); keep one of each")
    dtype = torch.int32 if max(len(rows), *shape) < 2**31 else torch.int64
    # Copies, so that the caller's later changes of its tensors cannot pass the checks.
    return CSRPattern.from_sorted(rows.to(dtype, copy=True), cols.to(dtype, copy=True), shape), order


class SparseMatrix:
    """A sparse matrix: a pattern and the value of each entry.

    Args:
        pattern: where the entries are.
        values: (n_entries,) in the order of the pattern.

    Examples:
        >>> F = SparseMatrix.from_entries(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([2.0, 3.0]), (2, 2))
        >>> (F @ torch.eye(2)).tolist(), (F.T @ torch.eye(2)).tolist()
        ([[0.0, 2.0], [3.0, 0.0]], [[0.0, 3.0], [2.0, 0.0]])
    """

    def __init__(self, pattern: CSRPattern, values: Tensor) -> None:
        self.pattern, self.values = pattern, values

    @classmethod
    def from_entries(
        cls, rows: Tensor, cols: Tensor, values: Tensor, shape: tuple[int, int], entries: str = "entries"
    ) -> SparseMatrix:
        """The matrix with these entries, (n_entries,) each, in any order.

        Raises:
            InputError: an entry occurs more than once.
        """
        pattern, order = csr_pattern(rows, cols, shape, entries)
        return cls(pattern, values.clone() if order is None else values[order])

    @property
    def shape(self) -> tuple[int, int]:
        """(n_rows, n_cols)."""
        return self.pattern.shape

    @cached_property
    def T(self) -> SparseMatrix:
        """The transposed matrix."""
        return SparseMatrix(self.pattern.T, self.values.index_select(0, self.pattern.transpose_order))

    def with_values(self, values: Tensor) -> SparseMatrix:
        """The matrix with other values, (n_entries,), at the same entries."""
        return SparseMatrix(self.pattern, values)

    def __matmul__(self, B: Tensor) -> Tensor:
        return spmm(self.pattern, self.values, B)

    def sddmm(self, A: Tensor, B: Tensor) -> Tensor:
        """(n_entries,) A[row] · B[col] at every entry; the values do not matter."""
        return sddmm(self.pattern, A, B)

    def row_block(self, first: int, end: int) -> SparseMatrix:
        """Rows first … end-1 alone."""
        entries = slice(int(self.pattern.crow[first]), int(self.pattern.crow[end]))
        return SparseMatrix(self.pattern.row_block(first, end), self.values[entries])

    def apply(self, change: Callable[[Tensor], Tensor]) -> SparseMatrix:
        """The matrix with each of its tensors changed, such as moved to another device."""
        return SparseMatrix(self.pattern.apply(change), change(self.values))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SparseMatrix:
        """The matrix on another device, or with values of another floating-point type."""
        device = self.values.device if device is None else torch.device(device)
        return self.apply(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))


def sddmm(pattern: CSRPattern, A: Tensor, B: Tensor) -> Tensor:
    """(n_entries,) A[row] · B[col] at every entry; A is (n_rows, k), B is (n_cols, k).

    Examples:
        >>> diagonal = CSRPattern(torch.tensor([0, 1, 2]), torch.tensor([0, 1]), (2, 2))
        >>> A, B = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> sddmm(diagonal, A, B).tolist()  # of A Bᵀ = [[1, 3], [3, 7]]
        [1.0, 7.0]
    """
    if torch_has_products(A.device.type, A.dtype):
        zeros = _csr(pattern, torch.zeros(pattern.n_entries, dtype=A.dtype, device=A.device))
        out: Tensor = torch.sparse.sampled_addmm(zeros, A, B.mT, beta=0.0)
        return out.values()
    return gathered_sddmm(pattern, A, B)


def spmm(pattern: CSRPattern, values: Tensor, B: Tensor) -> Tensor:
    """(n_rows, k): the matrix with these values, (n_entries,), at the entries of the pattern, times B, (n_cols, k).

    Examples:
        >>> diagonal = CSRPattern(torch.tensor([0, 1, 2]), torch.tensor([0, 1]), (2, 2))
        >>> spmm(diagonal, torch.tensor([10.0, 100.0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
        [[10.0, 20.0], [300.0, 400.0]]
    """
    if torch_has_products(B.device.type, B.dtype):
        return _csr(pattern, values) @ B
    return gathered_spmm(pattern, values, B)


def gathered_sddmm(pattern: CSRPattern, A: Tensor, B: Tensor) -> Tensor:
    """`sddmm` by gathers, a block of entries at a time."""
    out = torch.empty(pattern.n_entries, dtype=A.dtype, device=A.device)
    for start in range(0, len(out), BLOCK):
        block = slice(start, start + BLOCK)
        out[block] = (A.index_select(0, pattern.row[block]) * B.index_select(0, pattern.col[block])).sum(1)
    return out


def gathered_spmm(pattern: CSRPattern, values: Tensor, B: Tensor) -> Tensor:
    """`spmm` by gathers, a block of entries at a time."""
    out = torch.zeros(pattern.shape[0], B.shape[1], dtype=B.dtype, device=B.device)
    for start in range(0, len(values), BLOCK):
        block = slice(start, start + BLOCK)
        out.index_add_(0, pattern.row[block], values[block, None] * B.index_select(0, pattern.col[block]))
    return out


@cache
def torch_has_products(device: str, dtype: torch.dtype) -> bool:
    """Whether this torch build computes both products on a type of device ("cpu", "cuda"); tried once for each."""
    index = torch.tensor([0, 1], dtype=torch.int32, device=device)
    unit = torch.ones(1, 1, dtype=dtype, device=device)
    pattern = CSRPattern(index, index[:1], (1, 1))
    try:
        with warnings.catch_warnings():
            # torch warns once per process that sparse CSR is in beta: let that happen here, where it is expected.
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
            zeros = _csr(pattern, unit[0])
            torch.sparse.sampled_addmm(zeros, unit, unit, beta=0.0)
            zeros @ unit
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError):
        logger.warning("torch has no sparse products of %s on %s; falling back to slower gathers", dtype, device)
        return False
    return True


def _csr(pattern: CSRPattern, values: Tensor) -> Tensor:
    return torch.sparse_csr_tensor(pattern.crow, pattern.col, values, pattern.shape, check_invariants=False)

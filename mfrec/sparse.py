"""Sparse matrices and the two products that every solver is made of; only this file knows how a device computes them.

Over the entries (r, c) of a pattern:

    sddmm(pattern, A, B)[n] = A[row n] · B[col n]            predictions, half of a Hessian product
    spmm(pattern, v, B)[r]  = Σ_{n in row r} v[n] B[col n]   gradients, right-hand sides, the other half

Neither builds anything of shape (rows × cols) or (entries × rank).  Each reads the pattern once and the factors of
every entry's column once: at rank k a product moves about 4·k bytes per entry from the cache that holds the smaller
matrix.  `torch.sparse` computes both on CPU and CUDA.  If a build or device lacks one, blocked gathers give the same
numbers more slowly.  Programs in Triton (`mfrec.kernels.triton_products`) do so where `TRITON_DEVICES` asks for them.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mfrec.errors import InputError

if TYPE_CHECKING:
    from mfrec.kernels.triton_products import Segments

logger = logging.getLogger("mfrec.sparse")

# Entries gathered at a time if torch.sparse lacks a product: 2^16 at rank 64 in float32 are 16 MiB per operand.
BLOCK = 2**16

# Entries whose order is checked at a time.
CHECKED = 2**20

# Entries from which sorting them by counting, on the CPU, repays the third of a second in which numba is imported.  To
# sort 2^23 entries and transpose them takes torch .67 s on one thread, counting .35 s; for 25 million 2.8 s and 1.4 s.
COUNTED = 2**23


# Types of devices, such as "cuda", whose products Triton computes and not torch: none, until a GPU has measured them.
TRITON_DEVICES: set[str] = set()


class CSRPattern:
    """The positions of the entries of an n_rows × n_cols matrix, in compressed-sparse-row order.

    Args:
        crow: (n_rows + 1,) where each row's entries begin.
        col: (n_entries,) the column of each entry, ascending within a row.
        shape: (n_rows, n_cols).

    Both index tensors are int32 if the counts fit, which halves the traffic of the products.
    """

    def __init__(self, crow: Tensor, col: Tensor, shape: tuple[int, int]) -> None:
        self.crow, self.col, self.shape = crow, col, shape

    @classmethod
    def from_sorted(cls, rows: Tensor, cols: Tensor, shape: tuple[int, int]) -> CSRPattern:
        """The pattern of entries sorted by row, then column; rows and cols are (n_entries,)."""
        return cls(_starts(rows, shape[0]), cols, shape)

    @property
    def n_entries(self) -> int:
        """The number of entries."""
        return len(self.col)

    @cached_property
    def row(self) -> Tensor:
        """(n_entries,) the row of each entry; made when first needed, and kept."""
        rows = torch.arange(self.shape[0], dtype=self.col.dtype, device=self.col.device)
        return torch.repeat_interleave(rows, self.counts)

    @cached_property
    def counts(self) -> Tensor:
        """(n_rows,) the number of entries in each row."""
        return self.crow.diff()

    @property
    def transpose_order(self) -> Tensor:
        """(n_entries,) positions that sort the entries by column: `values[transpose_order]` belongs to `T`."""
        return self._transposed[0]

    @property
    def T(self) -> CSRPattern:
        """The pattern of the transposed matrix."""
        return self._transposed[1]

    @cached_property
    def _transposed(self) -> tuple[Tensor, CSRPattern]:
        if _is_counted(self.col):
            from mfrec.kernels.layout import transpose

            arrays = transpose(self.crow.numpy(), self.col.numpy(), self.shape[1])
            order, crow, rows = map(torch.from_numpy, arrays)
        else:
            order = stable_order(self.col, self.shape[1])
            crow, rows = _starts(self.col.index_select(0, order), self.shape[1]), self.row.index_select(0, order)
        return order, CSRPattern(crow, rows, (self.shape[1], self.shape[0]))

    @cached_property
    def segments(self) -> Segments:
        """Pieces of rows, for the programs in Triton."""
        from mfrec.kernels.triton_products import segments  # Triton is imported where it runs

        return segments(self.crow, self.col)

    def select(self, entries: Tensor) -> CSRPattern:
        """The pattern of these entries alone, (n,) int64 positions in ascending order."""
        crow = torch.searchsorted(entries, self.crow.long()).to(self.crow.dtype)
        return CSRPattern(crow, self.col.index_select(0, entries), self.shape)

    def entries_of(self, rows: slice) -> slice:
        """The entries of a range of rows."""
        return slice(int(self.crow[rows.start]), int(self.crow[rows.stop]))

    def row_block(self, first: int, end: int) -> CSRPattern:
        """The pattern of rows first … end-1 alone."""
        crow, entries = self.crow[first : end + 1], self.entries_of(slice(first, end))
        return CSRPattern(crow - crow[0], self.col[entries], (len(crow) - 1, self.shape[1]))

    def row_blocks(self, n_rows: int) -> Iterator[tuple[slice, slice, CSRPattern]]:
        """Blocks of up to n_rows rows: the rows, their entries, and the pattern of these rows alone."""
        # A GPU is waited for once for all blocks.
        starts = [*self.crow[:-1:n_rows].tolist(), self.n_entries]
        for block, (first, end) in enumerate(pairwise(starts)):
            rows = slice(block * n_rows, min((block + 1) * n_rows, self.shape[0]))
            crow = self.crow[rows.start : rows.stop + 1] - first
            yield rows, slice(first, end), CSRPattern(crow, self.col[first:end], (len(crow) - 1, self.shape[1]))

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
    dtype = torch.int32 if max(len(rows), *shape) < 2**31 else torch.int64
    # Columns are copied, so that the caller's later changes of its tensors cannot pass the checks.
    rows, cols = rows.to(dtype), cols.to(dtype, copy=True)
    order = entry_order(rows, cols, shape)
    if order is not None:
        rows, cols = rows.index_select(0, order), cols.index_select(0, order)
        if not _is_ascending(rows, cols):
            repeated = int(((rows.diff() == 0) & (cols.diff() == 0)).sum())
            raise InputError(f"{entries} must be distinct (got {repeated:,} repeats); keep one of each")
    return CSRPattern.from_sorted(rows, cols, shape), order


def entry_order(rows: Tensor, cols: Tensor, shape: tuple[int, int]) -> Tensor | None:
    """The order that sorts entries by row, then column, (n_entries,); None if they are sorted and distinct.

    Repeated entries keep their order.

    Args:
        rows, cols: (n_entries,) int32 or int64 in the shape, of one type, which is the order's type too.
    """
    if _is_ascending(rows, cols):
        return None
    if not _is_counted(cols):
        return torch.argsort(rows.long() * shape[1] + cols, stable=True).to(cols.dtype)
    by_col = stable_order(cols, shape[1])
    return by_col.index_select(0, stable_order(rows.index_select(0, by_col), shape[0]))


def _is_ascending(rows: Tensor, cols: Tensor) -> bool:
    """Whether entries are sorted by row, then column, and distinct; block by block, up to the first that is not."""
    for start in range(0, len(rows), CHECKED):
        block = slice(start, start + CHECKED + 1)
        step = rows[block].diff()
        if not bool(((step > 0) | ((step == 0) & (cols[block].diff() > 0))).all()):
            return False
    return True


def stable_order(keys: Tensor, n_keys: int) -> Tensor:
    """(n,) the positions that sort keys, (n,) in 0 … n_keys - 1; equal keys keep their order.

    Args:
        keys: int32 or int64, which is the order's type too.
    """
    if _is_counted(keys):
        from mfrec.kernels.layout import counting_order

        return torch.from_numpy(counting_order(keys.numpy(), n_keys)[0])
    return torch.argsort(keys, stable=True).to(keys.dtype)


def _is_counted(keys: Tensor) -> bool:
    """Whether kernels sort these keys, by counting; torch's sort defines the same order."""
    return keys.device.type == "cpu" and keys.dtype == torch.int32 and len(keys) >= COUNTED


def _starts(keys: Tensor, n_keys: int) -> Tensor:
    """(n_keys + 1,) where each key begins among sorted keys, (n,) in 0 … n_keys - 1; the last is n."""
    bounds = torch.arange(n_keys + 1, dtype=keys.dtype, device=keys.device)
    return torch.searchsorted(keys, bounds, out_int32=keys.dtype == torch.int32)


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
        return cls(pattern, values.clone() if order is None else values.index_select(0, order))

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

    def select(self, entries: Tensor) -> SparseMatrix:
        """The matrix of these entries alone, (n,) int64 positions in ascending order."""
        return SparseMatrix(self.pattern.select(entries), self.values.index_select(0, entries))

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
    return products_on(A.device.type, A.dtype).sddmm(pattern, A, B)


def spmm(pattern: CSRPattern, values: Tensor, B: Tensor) -> Tensor:
    """(n_rows, k): the matrix with these values, (n_entries,), at the entries of the pattern, times B, (n_cols, k).

    Examples:
        >>> diagonal = CSRPattern(torch.tensor([0, 1, 2]), torch.tensor([0, 1]), (2, 2))
        >>> spmm(diagonal, torch.tensor([10.0, 100.0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
        [[10.0, 20.0], [300.0, 400.0]]
    """
    return products_on(B.device.type, B.dtype).spmm(pattern, values, B)


def row_products(pattern: CSRPattern, weights: Tensor | None, A: Tensor, B: Tensor) -> Tensor:
    """(n_rows, k) Σ weight (A[row] · B[col]) B[col] over each row: `spmm` of weighted values of `sddmm`.

    Args:
        weights: (n_entries,), or None if all are 1.
        A, B: (n_rows, k) and (n_cols, k).
    """
    products = products_on(B.device.type, B.dtype)
    if products.row_products is not None:
        return products.row_products(pattern, weights, A, B)
    values = products.sddmm(pattern, A, B)
    return products.spmm(pattern, values if weights is None else values * weights, B)


def has_kernel(tensor: Tensor) -> bool:
    """Whether kernels compute with tensors like this one."""
    return tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64)


class Products(NamedTuple):
    """One way to compute `sddmm` and `spmm`, and `row_products` if it needs one pass and not two."""

    sddmm: Callable[[CSRPattern, Tensor, Tensor], Tensor]
    spmm: Callable[[CSRPattern, Tensor, Tensor], Tensor]
    row_products: Callable[[CSRPattern, Tensor | None, Tensor, Tensor], Tensor] | None = None


def products_on(device: str, dtype: torch.dtype) -> Products:
    """The products of a type of device, "cpu" or "cuda"."""
    if device in TRITON_DEVICES:
        from mfrec.kernels import triton_products as programs

        return Products(
            lambda pattern, A, B: programs.sddmm(pattern.segments, A, B),
            lambda pattern, values, B: programs.spmm(pattern.segments, values, B),
            lambda pattern, weights, A, B: programs.row_products(pattern.segments, weights, A, B),
        )
    if torch_has_products(device, dtype):
        return Products(_torch_sddmm, _torch_spmm)
    return Products(gathered_sddmm, gathered_spmm)


def _torch_sddmm(pattern: CSRPattern, A: Tensor, B: Tensor) -> Tensor:
    zeros = _csr(pattern, torch.zeros(pattern.n_entries, dtype=A.dtype, device=A.device))
    # Into the zeros: a new matrix would get copies of the indices.
    torch.sparse.sampled_addmm(zeros, A, B.mT, beta=0.0, out=zeros)
    return zeros.values()


def _torch_spmm(pattern: CSRPattern, values: Tensor, B: Tensor) -> Tensor:
    return _csr(pattern, values) @ B


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

"""The two sparse products that every solver is made of; the only file that knows how a device computes them.

Over the observed entries (r, c) of a pattern:

    sampled_dot(pattern, A, B)[n] = A[row n] · B[col n]         SDDMM: predictions, half of a Hessian product
    matmul(pattern, v, B)[r]      = Σ_{n in row r} v[n] B[col n]  SpMM: gradients, right-hand sides, the other half

Neither builds anything of shape (rows × cols) or (entries × rank).  Each reads the pattern once and the factors of
every entry's column once, so at rank k a product moves about 4·k bytes an entry from the cache that holds the smaller
table.  `torch.sparse` computes both on CPU and CUDA; where a build or device lacks one, blocked gathers give the same
numbers more slowly.
"""

from __future__ import annotations

import logging
import warnings
from functools import cache

import torch
from torch import Tensor

from mfrec.data.ratings import Pattern

logger = logging.getLogger("mfrec.sparse")

# Entries gathered at a time where torch.sparse lacks a product: 2^16 at rank 64 in float32 is 16 MiB a table.
BLOCK = 2**16


def sampled_dot(pattern: Pattern, A: Tensor, B: Tensor) -> Tensor:
    """(n_entries,) A[row] · B[col] at every observed entry; A is (n_rows, k), B is (n_cols, k).

    Examples:
        >>> diagonal = Pattern(torch.tensor([0, 1, 2]), torch.tensor([0, 1]), (2, 2))
        >>> A, B = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> sampled_dot(diagonal, A, B).tolist()  # of A Bᵀ = [[1, 3], [3, 7]]
        [1.0, 7.0]
    """
    if torch_has_products(A.device.type, A.dtype):
        zeros = _csr(pattern, torch.zeros(len(pattern.col), dtype=A.dtype, device=A.device))
        out: Tensor = torch.sparse.sampled_addmm(zeros, A, B.mT, beta=0.0)
        return out.values()
    return gathered_sampled_dot(pattern, A, B)


def matmul(pattern: Pattern, values: Tensor, B: Tensor) -> Tensor:
    """(n_rows, k): the matrix with these values, (n_entries,), at the observed entries, times B, (n_cols, k).

    Examples:
        >>> diagonal = Pattern(torch.tensor([0, 1, 2]), torch.tensor([0, 1]), (2, 2))
        >>> matmul(diagonal, torch.tensor([10.0, 100.0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
        [[10.0, 20.0], [300.0, 400.0]]
    """
    if torch_has_products(B.device.type, B.dtype):
        return _csr(pattern, values) @ B
    return gathered_matmul(pattern, values, B)


def gathered_sampled_dot(pattern: Pattern, A: Tensor, B: Tensor) -> Tensor:
    """`sampled_dot` by gathers, a block of entries at a time."""
    out = torch.empty(len(pattern.col), dtype=A.dtype, device=A.device)
    for start in range(0, len(out), BLOCK):
        block = slice(start, start + BLOCK)
        out[block] = (A.index_select(0, pattern.row[block]) * B.index_select(0, pattern.col[block])).sum(1)
    return out


def gathered_matmul(pattern: Pattern, values: Tensor, B: Tensor) -> Tensor:
    """`matmul` by gathers, a block of entries at a time."""
    out = torch.zeros(pattern.shape[0], B.shape[1], dtype=B.dtype, device=B.device)
    for start in range(0, len(values), BLOCK):
        block = slice(start, start + BLOCK)
        out.index_add_(0, pattern.row[block], values[block, None] * B.index_select(0, pattern.col[block]))
    return out


@cache
def torch_has_products(device: str, dtype: torch.dtype) -> bool:
    """Whether this torch build computes both products on this type of device ("cpu", "cuda"), tried once of each."""
    index = torch.tensor([0, 1], dtype=torch.int32, device=device)
    one = torch.ones(1, 1, dtype=dtype, device=device)
    pattern = Pattern(index, index[:1], (1, 1))
    try:
        with warnings.catch_warnings():
            # torch says once a process that sparse CSR is beta: let it say so here, where it is known.
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
            zeros = _csr(pattern, one[0])
            torch.sparse.sampled_addmm(zeros, one, one, beta=0.0)
            zeros @ one
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError):
        logger.warning("torch has no sparse products of %s on %s; gathers take their place, more slowly", dtype, device)
        return False
    return True


def _csr(pattern: Pattern, values: Tensor) -> Tensor:
    return torch.sparse_csr_tensor(pattern.crow, pattern.col, values, pattern.shape, check_invariants=False)

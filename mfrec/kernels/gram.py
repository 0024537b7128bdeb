"""Normal matrices A = Σ v x xᵀ of rows, (k, k) each, from one gather of their partners' factors.

The plain definition is `mfrec.model.ridge.normal_matrices` by sparse products.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mfrec.kernels.compiled import kernel, parallel, row_chunks

Array = npt.NDArray[Any]

# Ratings of a chunk of rows, which one thread sums at a time.
CHUNK = 2**13
# Ratings gathered at a time: at rank 64 in float32 both transposed copies fit a level-2 cache.
TILE = 256
# Ratings are padded with zeros to a multiple of this, the length of the longest vectors.
LANES = 16
# Rows and columns of a block of the matrix, which is held in registers.
BLOCK = 4


def padded(k: int) -> int:
    """The smallest multiple of BLOCK that is not below k."""
    return -(-k // BLOCK) * BLOCK


def normal_matrices(crow: Array, col: Array, weights: Array, partners: Array) -> Array:
    """(n_rows, k, k) Σ w x xᵀ over each row's entries.

    Args:
        crow: (n_rows + 1,) int64, from 0, as in `CSRPattern`.
        col: (n_entries,) the partner of each entry.
        weights: (n_entries,), or empty if all are 1.
        partners: (n_cols, k).
    """
    k = partners.shape[1]
    out = np.empty((len(crow) - 1, k, k), partners.dtype)
    chunks = row_chunks(crow, CHUNK)

    def sum_chunk(task: int) -> None:
        sum_rows(chunks[task], chunks[task + 1], crow, col, weights, partners, out)

    parallel(sum_chunk, len(chunks) - 1)
    return out


@kernel
def sum_rows(first: int, end: int, crow: Array, col: Array, weights: Array, partners: Array, out: Array) -> None:
    """The normal matrices of rows first … end − 1."""
    k, dtype = partners.shape[1], partners.dtype
    size = (k + BLOCK - 1) // BLOCK * BLOCK
    buffer, v = np.empty((TILE, k), dtype), np.empty(TILE, dtype)
    columns, weighted = np.zeros((size, TILE), dtype), np.zeros((size, TILE), dtype)
    gram = np.empty((size, size), dtype)
    for row in range(first, end):
        gram[:] = 0
        for tile in range(crow[row], crow[row + 1], TILE):
            n = min(TILE, crow[row + 1] - tile)
            for e in range(n):
                partner = col[tile + e]
                for c in range(k):
                    buffer[e, c] = partners[partner, c]
                v[e] = weights[tile + e] if len(weights) else 1
            add_gram(columns, weighted, transpose(buffer, v, n, columns, weighted), gram)
        for a in range(k):
            for b in range(a + 1):
                out[row, a, b] = gram[a, b]
                out[row, b, a] = gram[a, b]


@kernel
def transpose(buffer: Array, v: Array, n: int, columns: Array, weighted: Array) -> int:
    """Write the buffer's first n rows x as columns, and v x to `weighted`; returns n rounded up to LANES.

    Zeros fill the columns up to there.
    """
    m = (n + LANES - 1) // LANES * LANES
    for c in range(buffer.shape[1]):
        for e in range(n):
            columns[c, e] = buffer[e, c]
            weighted[c, e] = buffer[e, c] * v[e]
        for e in range(n, m):
            columns[c, e] = weighted[c, e] = 0
    return m


@kernel
def add_gram(columns: Array, weighted: Array, n: int, gram: Array) -> None:
    """Add Σ (v x) xᵀ over the first n columns to the matrix, in its blocks on and below the diagonal."""
    zero = gram.dtype.type(0)
    for a in range(0, len(gram), 4):
        for b in range(0, a + 1, 4):
            s00, s01, s02, s03 = zero, zero, zero, zero
            s10, s11, s12, s13 = zero, zero, zero, zero
            s20, s21, s22, s23 = zero, zero, zero, zero
            s30, s31, s32, s33 = zero, zero, zero, zero
            for e in range(n):
                v0, v1, v2, v3 = weighted[a, e], weighted[a + 1, e], weighted[a + 2, e], weighted[a + 3, e]
                x0, x1, x2, x3 = columns[b, e], columns[b + 1, e], columns[b + 2, e], columns[b + 3, e]
                s00, s01, s02, s03 = s00 + v0 * x0, s01 + v0 * x1, s02 + v0 * x2, s03 + v0 * x3
                s10, s11, s12, s13 = s10 + v1 * x0, s11 + v1 * x1, s12 + v1 * x2, s13 + v1 * x3
                s20, s21, s22, s23 = s20 + v2 * x0, s21 + v2 * x1, s22 + v2 * x2, s23 + v2 * x3
                s30, s31, s32, s33 = s30 + v3 * x0, s31 + v3 * x1, s32 + v3 * x2, s33 + v3 * x3
            for i, row in enumerate(
                ((s00, s01, s02, s03), (s10, s11, s12, s13), (s20, s21, s22, s23), (s30, s31, s32, s33))
            ):
                for j in range(4):
                    gram[a + i, b + j] += row[j]

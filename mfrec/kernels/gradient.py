"""Squared errors and their gradient in one entity's rows: one pass over the ratings, which gathers each partner once.

Over the entries n of an n_rows × n_cols pattern, with e_n = a_row(n) · b_col(n) − value_n and weights w_n,

    loss = ½ Σ_n w_n e_n²        gradient[r] = Σ_{n in row r} w_n e_n b_col(n)

`sddmm` and `spmm` define both.  The gradient in the partners is a second pass, over the entries in their order, with
the errors computed anew: they cost less than to bring the errors of the first pass into that order.

A pass goes over chunks with a fixed number of entries, which may begin and end within a row.  If the partners exceed
the cache, a chunk goes over tiles of columns: it finishes all its entries in a tile before it turns to the next.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mfrec.kernels.compiled import kernel, parallel

Array = npt.NDArray[Any]

# Bytes of partners that stay in the cache while many rows use them: a share of the last level's.
TILE_BYTES = 3 * 2**20
# Entries of a chunk; or the number of chunks with several tiles, if those are longer: the more rows of a chunk share a
# tile, the more often its partners are still in the cache.
CHUNK, TILED_CHUNKS = 2**15, 24


def loss_and_gradient(
    crow: Array, col: Array, values: Array, weights: Array | None, rows: Array, partners: Array
) -> tuple[float, Array]:
    """(½ Σ w e², its gradient in `rows`, (n_rows, k)).

    Args:
        crow, col: the pattern, as in `CSRPattern`; crow is int64.
        values: (n_entries,) what the products predict.
        weights: (n_entries,), or None if all are 1.
        rows, partners: (n_rows, k) and (n_cols, k), of the type of the values.  Multiples of 8 columns are fastest:
            add columns of zeros.
    """
    tile = max(1, TILE_BYTES // max(1, partners[:1].nbytes))
    size = CHUNK if tile >= len(partners) else max(CHUNK, len(col) // TILED_CHUNKS)
    starts = np.arange(0, len(col), size)
    # The row that each chunk begins in, and the chunk's part of its gradient if the row began in an earlier chunk.
    first_rows = np.searchsorted(crow, starts, side="right") - 1
    heads = np.zeros((len(starts), rows.shape[1]), rows.dtype)
    gradient, losses = np.zeros_like(rows), np.zeros(len(starts))
    weights = values[:0] if weights is None else weights

    def task(chunk: int) -> None:
        entries = int(starts[chunk]), min(int(starts[chunk]) + size, len(col))
        losses[chunk] = add_chunk(
            crow, col, values, weights, rows, partners, tile, *entries, first_rows[chunk], gradient, heads[chunk]
        )

    parallel(task, len(starts))
    for chunk in np.flatnonzero(crow[first_rows] < starts):
        gradient[first_rows[chunk]] += heads[chunk]
    return float(losses.sum()), gradient


@kernel
def add_chunk(
    crow: Array,
    col: Array,
    values: Array,
    weights: Array,
    rows: Array,
    partners: Array,
    tile: int,
    start: int,
    end: int,
    first_row: int,
    gradient: Array,
    head: Array,
) -> float:
    """½ Σ w e² of entries start … end-1; adds to `gradient` in their rows, and to `head` in a row that began before.

    Four entries at a time, so that each number of the row and of its gradient is read once for four.
    """
    k, n_cols, loss = rows.shape[1], len(partners), 0.0
    end_row = np.searchsorted(crow, end, side="left")
    position = np.maximum(crow[first_row:end_row], start)
    for tile_end in range(tile, n_cols + tile, tile):
        for row in range(first_row, end_row):
            n, stop = position[row - first_row], min(crow[row + 1], end)
            if tile_end < n_cols:
                row_end, stop = stop, n
                while stop < row_end and col[stop] < tile_end:
                    stop += 1
                position[row - first_row] = stop
            sums = gradient[row] if crow[row] >= start else head
            while n + 4 <= stop:
                i0, i1, i2, i3 = col[n], col[n + 1], col[n + 2], col[n + 3]
                e0, e1, e2, e3 = -values[n], -values[n + 1], -values[n + 2], -values[n + 3]
                for c in range(k):
                    x = rows[row, c]
                    e0 += x * partners[i0, c]
                    e1 += x * partners[i1, c]
                    e2 += x * partners[i2, c]
                    e3 += x * partners[i3, c]
                s0, s1, s2, s3 = e0, e1, e2, e3
                if len(weights):
                    s0, s1, s2, s3 = weights[n] * e0, weights[n + 1] * e1, weights[n + 2] * e2, weights[n + 3] * e3
                loss += float(s0 * e0 + s1 * e1) + float(s2 * e2 + s3 * e3)
                for c in range(k):
                    sums[c] += s0 * partners[i0, c] + s1 * partners[i1, c] + s2 * partners[i2, c] + s3 * partners[i3, c]
                n += 4
            while n < stop:
                i, e = col[n], -values[n]
                for c in range(k):
                    e += rows[row, c] * partners[i, c]
                s = weights[n] * e if len(weights) else e
                loss += float(s * e)
                for c in range(k):
                    sums[c] += s * partners[i, c]
                n += 1
    return 0.5 * loss

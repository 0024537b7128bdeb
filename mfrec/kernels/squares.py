"""Squared errors of ratings, and their weighted sums over rows and columns.

`mfrec.model.squared_errors` has their plain definitions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mfrec.kernels.compiled import kernel, parallel, prefetch, row_chunks
from mfrec.kernels.gather import AHEAD

Array = npt.NDArray[Any]

# Ratings of a chunk of rows, which one thread reads at a time.
CHUNK = 2**14
# Parts of the ratings whose sums over columns are apart, so that threads do not meet: (PARTS, n_cols) numbers.
PARTS = 16


def squared_errors(
    crow: Array,
    col: Array,
    targets: Array,
    weights: Array,
    rows: Array,
    partners: Array,
    row_variances: Array,
    partner_variances: Array,
) -> Array:
    """(n_entries,) w e², or w E[e²] unless the variances, (n_rows, k) and (n_cols, k), are empty.

    Args:
        crow, col: as in `CSRPattern`, crow in int64.
        targets, weights: (n_entries,); empty weights are ones.
        rows, partners: (n_rows, k) and (n_cols, k) augmented factors.
    """
    out, chunks = np.empty_like(targets), row_chunks(crow, CHUNK)
    factors = (rows, partners, row_variances, partner_variances)

    def task(number: int) -> None:
        chunk_squares(chunks[number], chunks[number + 1], crow, col, targets, weights, *factors, out)

    parallel(task, len(chunks) - 1)
    return out


def row_sums(crow: Array, col: Array, values: Array, scales: Array) -> Array:
    """(n_rows,) float64 Σ scale · value over each row's entries, scales by column, (n_cols,)."""
    out, chunks = np.empty(len(crow) - 1), row_chunks(crow, CHUNK)
    parallel(lambda task: add_rows(chunks[task], chunks[task + 1], crow, col, values, scales, out), len(chunks) - 1)
    return out


def column_sums(crow: Array, col: Array, values: Array, scales: Array, n_cols: int) -> Array:
    """(n_cols,) float64 Σ scale · value over each column's entries, scales by row, (n_rows,)."""
    chunks = row_chunks(crow, max(CHUNK, -(-len(col) // PARTS)))
    parts = np.zeros((len(chunks) - 1, n_cols))
    parallel(
        lambda task: add_columns(chunks[task], chunks[task + 1], crow, col, values, scales, parts[task]), len(parts)
    )
    total: Array = parts.sum(0)
    return total


@kernel
def chunk_squares(
    first: int,
    end: int,
    crow: Array,
    col: Array,
    targets: Array,
    weights: Array,
    rows: Array,
    partners: Array,
    row_variances: Array,
    partner_variances: Array,
    out: Array,
) -> None:
    """Squared errors of the ratings of rows first … end − 1."""
    k, zero, last = rows.shape[1], rows.dtype.type(0), len(col) - 1
    for row in range(first, end):
        for e in range(crow[row], crow[row + 1], 4):
            for ahead in range(e + AHEAD, e + AHEAD + 4):
                prefetch(partners, col[min(ahead, last)])
            i0, i1, i2, i3 = col[e], col[min(e + 1, last)], col[min(e + 2, last)], col[min(e + 3, last)]
            t0, t1, t2, t3 = zero, zero, zero, zero
            for c in range(k):
                theta = rows[row, c]
                t0 += theta * partners[i0, c]
                t1 += theta * partners[i1, c]
                t2 += theta * partners[i2, c]
                t3 += theta * partners[i3, c]
            products = (t0, t1, t2, t3)
            for i in range(min(4, crow[row + 1] - e)):
                out[e + i] = (targets[e + i] - products[i]) ** 2
        if len(row_variances):
            for e in range(crow[row], crow[row + 1]):
                prefetch(partners, col[min(e + AHEAD, last)])
                prefetch(partner_variances, col[min(e + AHEAD, last)])
                i, total = col[e], zero
                for c in range(k):
                    theta, x, s, v = rows[row, c], partners[i, c], row_variances[row, c], partner_variances[i, c]
                    total += (theta * theta + s) * v + s * (x * x)
                out[e] += total
        if len(weights):
            for e in range(crow[row], crow[row + 1]):
                out[e] *= weights[e]


@kernel
def add_rows(first: int, end: int, crow: Array, col: Array, values: Array, scales: Array, out: Array) -> None:
    """The sums of rows first … end − 1."""
    for row in range(first, end):
        total = 0.0
        for e in range(crow[row], crow[row + 1]):
            total += values[e] * scales[col[e]]
        out[row] = total


@kernel
def add_columns(first: int, end: int, crow: Array, col: Array, values: Array, scales: Array, out: Array) -> None:
    """Add the entries of rows first … end − 1 to the sums of their columns."""
    for row in range(first, end):
        scale = np.float64(scales[row])
        for e in range(crow[row], crow[row + 1]):
            out[col[e]] += scale * values[e]

"""The ridge regressions of all rows of an identity term, each solved from one gather of its partners' factors.

`mfrec.model.ridge` defines the regressions; `minimize_by_cg` there is the plain definition of what `minimize` computes.
The two sparse products fetch the partners' factors from memory in every conjugate-gradient step.  Here the partners of
a row are copied once to a buffer that fits a cache; the right-hand side, the diagonal and all steps read the buffer.

Rows of more than `LONGEST` ratings are solved by `mfrec.kernels.long_rows`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mfrec.kernels.compiled import kernel, parallel, row_chunks
from mfrec.kernels.descent import begin, move, prepare
from mfrec.kernels.gather import (
    GROUP,
    add_noise,
    add_products,
    add_sums,
    add_variances,
    gather,
    squared_length,
    weigh,
)
from mfrec.kernels.long_rows import minimize_long_rows

Array = npt.NDArray[Any]

# Ratings of a chunk of rows, which one thread solves at a time: a fraction of a millisecond.
CHUNK = 2**13
# The most ratings of a row whose partners are copied: at rank 64 in float32, a level-2 cache holds them.
LONGEST = 2**12


class Entries(NamedTuple):
    """The ratings in the order of the rows; an empty array of weights or scales stands for ones.

    crow: (n_rows + 1,) int64, as in `CSRPattern`.
    col: (n_entries,) the partner of each rating.
    targets, weights: (n_entries,).
    row_scales, partner_scales: (n_rows,) and (n_cols,) factors that multiply the weights.
    """

    crow: Array
    col: Array
    targets: Array
    weights: Array
    row_scales: Array
    partner_scales: Array


class Regressions(NamedTuple):
    """The rows' regressions, besides their ratings; optional arrays are empty where they are left out.

    rows: (n_rows, k) the augmented factors; the term is one of their summands.
    start: (n_rows, k) the term's W̃.
    partners: (n_cols, k) the augmented factors of the fixed entity.
    variances: (n_cols, k), optional; their weighted sum over a row's ratings penalizes the whole row.
    ridge: (1, k) or (n_rows, k).
    rhs_shift: (n_rows, k), optional; added to the right-hand side.
    free: (k,) 1 in the columns to solve for, 0 in that of the constant 1.
    tiny, eps: those of the floating-point type.
    noise_std: normal noise of standard deviation noise_std / √weight is added to the targets, unless it is 0.
    seed: of the noise, uint64.
    """

    rows: Array
    start: Array
    partners: Array
    variances: Array
    ridge: Array
    rhs_shift: Array
    free: Array
    tiny: Any
    eps: Any
    noise_std: Any
    seed: Any


def minimize(entries: Entries, problem: Regressions, steps: int) -> tuple[Array, Array]:
    """W̃ after `steps` conjugate-gradient steps from `start`, and the diagonal of H, (n_rows, k) each."""
    weights, diagonal = np.empty_like(problem.start), np.empty_like(problem.start)
    chunks = row_chunks(entries.crow, CHUNK)

    def solve_chunk(task: int) -> None:
        with np.errstate(all="ignore"):  # without compilation, numpy warns of hashes and of diverged factors
            solve_rows(chunks[task], chunks[task + 1], entries, problem, steps, LONGEST, weights, diagonal)

    parallel(solve_chunk, len(chunks) - 1)
    long_rows = np.flatnonzero(np.diff(entries.crow) > LONGEST)
    if len(long_rows):
        minimize_long_rows(long_rows, entries, problem, steps, weights, diagonal)
    return weights, diagonal


@kernel
def solve_rows(
    first: int,
    end: int,
    entries: Entries,
    problem: Regressions,
    steps: int,
    longest: int,
    weights: Array,
    diagonals: Array,
) -> None:
    """Solve rows first … end − 1, without those of more than `longest` ratings."""
    crow, col, targets, rating_weights, row_scales, partner_scales = entries
    rows, start, partners, variances, ridges, rhs_shift, free, tiny, eps, noise_std, seed = problem
    k, dtype, size = rows.shape[1], rows.dtype, 0
    for row in range(first, end):
        n = crow[row + 1] - crow[row]
        size = n if size < n <= longest else size
    size = (size + GROUP - 1) // GROUP * GROUP
    x, v, shift = np.empty((size, k), dtype), np.empty(size, dtype), np.empty(size, dtype)
    r, ridge, diagonal = np.empty(k, dtype), np.empty(k, dtype), np.empty(k, dtype)
    p, h = np.empty(k, dtype), np.empty(k, dtype)
    noise = np.empty(size if noise_std > 0 else 0), np.empty(size if noise_std > 0 else 0), np.empty(size + 1, np.int64)
    for row in range(first, end):
        begin, n = crow[row], crow[row + 1] - crow[row]
        if n > longest:
            continue
        for c in range(k):
            r[c] = ridge[c] = diagonal[c] = 0
        m = gather(col, begin, n, partners, x, v, shift)
        weigh(row, begin, n, col, targets, rating_weights, row_scales, partner_scales, v, shift)
        if noise_std > 0:
            add_noise(seed, begin, n, noise_std, v, shift, *noise)
        if len(variances):
            add_variances(col, begin, n, variances, v, ridge)
        add_sums(x, m, v, shift, rows, row, r, diagonal)
        prepare(row, rows, start, ridges, rhs_shift, free, r, ridge, diagonal)
        solve(row, start, free, tiny, eps, x, m, v, r, ridge, diagonal, p, h, steps, weights)
        for c in range(k):
            diagonals[row, c] = diagonal[c]


@kernel
def solve(
    row: int,
    start: Array,
    free: Array,
    tiny: Any,
    eps: Any,
    x: Array,
    m: int,
    v: Array,
    r: Array,
    ridge: Array,
    diagonal: Array,
    p: Array,
    h: Array,
    steps: int,
    weights: Array,
) -> None:
    """Conjugate gradients on one row's regression; the ratings' part of H is that of the first m rows x."""
    zero, nothing = r.dtype.type(0), h[:0]
    rz = begin(row, start, r, diagonal, p, weights)
    for _ in range(1, steps):
        for c in range(len(h)):
            h[c] = ridge[c] * p[c]
        add_products(x, m, v, p, h)
        rz = move(row, rz, zero, h, ridge, free, tiny, eps, diagonal, r, p, weights)
        if rz < 0:
            return
    if steps:
        move(row, rz, squared_length(x, m, v, p), nothing, ridge, free, tiny, eps, diagonal, r, p, weights)

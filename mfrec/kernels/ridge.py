"""The ridge regressions of all rows of an identity term, each solved from one gather of its partners' factors.

`mfrec.model.ridge` defines the regressions; `minimize_by_cg` there is the plain definition of what `minimize` computes.
The two sparse products fetch the partners' factors from memory in every conjugate-gradient step.  Here the partners of
a row are copied once to a buffer that fits a cache; the right-hand side, the diagonal and all steps read the buffer.

Rows of more than `LONGEST` ratings are solved by `mfrec.kernels.long_rows`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mfrec.kernels.compiled import kernel, parallel, row_chunks
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
from mfrec.kernels.regressions import Entries, Regressions, cg_start, cg_step, complete_sums

Array = npt.NDArray[Any]

# Ratings of a chunk of rows, which one thread solves at a time: a fraction of a millisecond.
CHUNK = 2**13
# The most ratings of a row whose partners are copied: at rank 64 in float32, a level-2 cache holds them.
LONGEST = 2**12


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
        first_entry, n = crow[row], crow[row + 1] - crow[row]
        if n > longest:
            continue
        for c in range(k):
            r[c] = ridge[c] = diagonal[c] = 0
        m = gather(col, first_entry, n, partners, x, v, shift)
        weigh(row, first_entry, n, col, targets, rating_weights, row_scales, partner_scales, v, shift)
        if noise_std > 0:
            add_noise(seed, first_entry, n, noise_std, v, shift, *noise)
        if len(variances):
            add_variances(col, first_entry, n, variances, v, ridge)
        add_sums(x, m, v, shift, rows, row, r, diagonal)
        complete_sums(row, rows, start, ridges, rhs_shift, free, r, ridge, diagonal)
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
    rz = cg_start(row, start, r, diagonal, p, weights)
    for step in range(1, steps + 1):
        square, product = zero, h
        if step == steps:
            square, product = squared_length(x, m, v, p), nothing
        else:
            for c in range(len(h)):
                h[c] = ridge[c] * p[c]
            add_products(x, m, v, p, h)
        rz = cg_step(row, rz, square, product, ridge, free, tiny, eps, diagonal, r, p, weights)
        if rz < 0:
            return

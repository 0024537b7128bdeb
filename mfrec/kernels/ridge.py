"""The ridge regressions of all rows of an identity term, each solved from one gather of its partners' factors.

`mfrec.model.ridge` defines the regressions; `minimize_by_cg` there is the plain definition of what `minimize` computes.
The two sparse products fetch the partners' factors from memory in every conjugate-gradient step.  Here the partners of
a row are copied once to a buffer that fits a cache; the right-hand side, the diagonal and all steps read the buffer.

A row of more than `SEGMENT` ratings is cut into segments, which threads share.  Each segment makes its part of the
row's normal matrix; steps on their sum need no buffer.  For shorter rows the buffer is faster at the usual one to three
steps: at rank 64 a rating's part of a normal matrix costs as much as ten of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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
from mfrec.kernels.gram import add_gram, padded, transpose

Array = npt.NDArray[Any]

# Ratings of a chunk of rows, which one thread solves at a time: a fraction of a millisecond.
CHUNK = 2**13
# Ratings of a row that one thread solves alone, and of each segment of a longer row.
SEGMENT = 2**14
# Ratings of a segment gathered at a time: at rank 64 in float32, a level-2 cache holds all copies.
TILE = 256


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
            solve_rows(chunks[task], chunks[task + 1], entries, problem, steps, SEGMENT, weights, diagonal)

    parallel(solve_chunk, len(chunks) - 1)
    long_rows = np.flatnonzero(np.diff(entries.crow) > SEGMENT)
    if len(long_rows):
        minimize_long_rows(long_rows, entries, problem, steps, weights, diagonal)
    return weights, diagonal


def minimize_long_rows(
    long_rows: Array, entries: Entries, problem: Regressions, steps: int, weights: Array, diagonal: Array
) -> None:
    """Solve rows of more than `SEGMENT` ratings; writes to their weights and diagonal."""
    crow, (_, k), dtype = entries.crow, problem.start.shape, problem.start.dtype
    # The segments of long row n are first[n] … first[n + 1] − 1.
    n_segments = -(-np.diff(crow)[long_rows] // SEGMENT)
    first = np.concatenate([[0], np.cumsum(n_segments)])
    owner = np.repeat(np.arange(len(long_rows)), n_segments)
    grams = np.zeros((len(owner), padded(k), padded(k)), dtype)
    sums = np.zeros((len(owner), 3, k), dtype)

    def sum_one(task: int) -> None:
        with np.errstate(all="ignore"):
            row = long_rows[owner[task]]
            begin = crow[row] + (task - first[owner[task]]) * SEGMENT
            end = min(begin + SEGMENT, crow[row + 1])
            sum_segment(row, begin, end, entries, problem, grams[task], *sums[task])

    def solve_one(task: int) -> None:
        segments = slice(first[task], first[task + 1])
        with np.errstate(all="ignore"):
            solve_long_row(long_rows[task], grams[segments], sums[segments], problem, steps, weights, diagonal)

    parallel(sum_one, len(owner))
    parallel(solve_one, len(long_rows))


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
    z, p, h = np.empty(k, dtype), np.empty(k, dtype), np.empty(k, dtype)
    noise = np.empty(size if noise_std > 0 else 0), np.empty(size if noise_std > 0 else 0), np.empty(size + 1, np.int64)
    no_gram = np.empty((0, 0), dtype)
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
        solve(row, start, free, tiny, eps, x, m, v, no_gram, r, ridge, diagonal, z, p, h, steps, weights)
        for c in range(k):
            diagonals[row, c] = diagonal[c]


@kernel
def prepare(
    row: int,
    rows: Array,
    start: Array,
    ridges: Array,
    rhs_shift: Array,
    free: Array,
    rhs: Array,
    ridge: Array,
    diagonal: Array,
) -> None:
    """From sums over a row's ratings to its right-hand side, its ridge, and the diagonal of H."""
    ridge_row = row if len(ridges) > 1 else 0
    for c in range(len(rhs)):
        # V, in `ridge` until now, penalizes the whole row and not the term alone.
        rhs[c] -= ridge[c] * rows[row, c] + ridges[ridge_row, c] * start[row, c]
        ridge[c] += ridges[ridge_row, c]
    if len(rhs_shift):
        for c in range(len(rhs)):
            rhs[c] += rhs_shift[row, c]
    for c in range(len(rhs)):
        rhs[c] *= free[c]
        diagonal[c] += ridge[c]
        # Entries without data or penalty have a zero diagonal and a zero right-hand side; use 1.
        if not (free[c] > 0 and diagonal[c] > 0):
            diagonal[c] = 1


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
    gram: Array,
    r: Array,
    ridge: Array,
    diagonal: Array,
    z: Array,
    p: Array,
    h: Array,
    steps: int,
    weights: Array,
) -> None:
    """Conjugate gradients on one row's regression, as in `minimize_by_cg`.

    The data's part of H is that of the first m rows x, or a normal matrix unless that is empty.
    """
    k, zero = len(r), r.dtype.type(0)
    rz = zero
    for c in range(k):
        weights[row, c] = start[row, c]
        z[c] = p[c] = r[c] / diagonal[c]
        rz += r[c] * z[c]
    for step in range(1, steps + 1):
        curvature, bound = zero, zero
        if step == steps and not len(gram):  # the length of the last step needs p · H(p) only
            curvature = squared_length(x, m, v, p)
            for c in range(k):
                curvature += ridge[c] * p[c] * p[c]
                bound += diagonal[c] * p[c] * p[c]
        else:
            for c in range(k):
                h[c] = ridge[c] * p[c]
            for a in range(len(gram)):
                for c in range(k):
                    h[c] += gram[a, c] * p[a]
            add_products(x, m, v, p, h)
            for c in range(k):
                h[c] *= free[c]
                curvature += p[c] * h[c]
                bound += diagonal[c] * p[c] * p[c]
        if not curvature > eps * bound:
            if not np.isfinite(curvature):
                weights[row] = np.nan
            return
        size = rz / max(curvature, tiny)
        for c in range(k):
            weights[row, c] += size * p[c]
        if step == steps:
            return
        before, rz = rz, zero
        for c in range(k):
            r[c] -= size * h[c]
            z[c] = r[c] / diagonal[c]
            rz += r[c] * z[c]
        turn = rz / max(before, tiny)
        for c in range(k):
            p[c] = z[c] + turn * p[c]


@kernel
def sum_segment(
    row: int,
    first: int,
    end: int,
    entries: Entries,
    problem: Regressions,
    gram: Array,
    rhs: Array,
    diagonal: Array,
    spread: Array,
) -> None:
    """Add the sums over a long row's ratings first … end − 1 to zeros."""
    _, col, targets, rating_weights, row_scales, partner_scales = entries
    k, dtype = problem.start.shape[1], problem.start.dtype
    x, v, shift = np.empty((TILE, k), dtype), np.empty(TILE, dtype), np.empty(TILE, dtype)
    columns, weighted = np.zeros((len(gram), TILE), dtype), np.zeros((len(gram), TILE), dtype)
    normals, uniforms, tails = np.empty(TILE), np.empty(TILE), np.empty(TILE + 1, np.int64)
    for tile in range(first, end, TILE):
        n = min(TILE, end - tile)
        m = gather(col, tile, n, problem.partners, x, v, shift)
        weigh(row, tile, n, col, targets, rating_weights, row_scales, partner_scales, v, shift)
        if problem.noise_std > 0:
            add_noise(problem.seed, tile, n, problem.noise_std, v, shift, normals, uniforms, tails)
        if len(problem.variances):
            add_variances(col, tile, n, problem.variances, v, spread)
        add_sums(x, m, v, shift, problem.rows, row, rhs, diagonal)
        add_gram(columns, weighted, transpose(x, v, m, columns, weighted), gram)


@kernel
def solve_long_row(
    row: int, grams: Array, sums: Array, problem: Regressions, steps: int, weights: Array, diagonals: Array
) -> None:
    """Solve a row, given the sums over its segments."""
    k, dtype = problem.start.shape[1], problem.start.dtype
    gram, x, v = np.zeros((k, k), dtype), np.empty((0, k), dtype), np.empty(0, dtype)
    r, diagonal, ridge = np.zeros(k, dtype), np.zeros(k, dtype), np.zeros(k, dtype)
    z, p, h = np.empty(k, dtype), np.empty(k, dtype), np.empty(k, dtype)
    for segment in range(len(grams)):
        r += sums[segment, 0]
        diagonal += sums[segment, 1]
        ridge += sums[segment, 2]
        for a in range(k):
            for b in range(a + 1):
                gram[a, b] += grams[segment, a, b]
    for a in range(k):
        for b in range(a):
            gram[b, a] = gram[a, b]
    prepare(row, problem.rows, problem.start, problem.ridge, problem.rhs_shift, problem.free, r, ridge, diagonal)
    constants = problem.start, problem.free, problem.tiny, problem.eps
    solve(row, *constants, x, 0, v, gram, r, ridge, diagonal, z, p, h, steps, weights)
    diagonals[row] = diagonal

"""The ridge regressions of rows with many ratings, by passes over all of them.

The partners of such a row do not fit a cache.  Its ratings are cut into segments, so that threads share them.  Each
conjugate-gradient step reads all ratings again.  Partners are visited in blocks that fit a cache.  Each block is used
for all rows of a task before the next one is loaded.  A segment's sums are made in the order of its ratings, so that
their bits depend neither on the blocks nor on the tasks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from mfrec.kernels.compiled import kernel, parallel
from mfrec.kernels.gather import add_noise, add_products, add_sums, add_variances, gather, squared_length, weigh
from mfrec.kernels.regressions import Entries, Regressions, cg_start, cg_step, complete_sums

Array = npt.NDArray[Any]

# Ratings of a segment.
SEGMENT = 2**14
# Ratings gathered at a time: a level-1 cache holds their partners' factors.
TILE = 64
# Bytes of a block of partners' factors.
BLOCK_BYTES = 2**22
# Tasks for each thread.
TASKS = 2
# The kinds of sums that a pass adds up.
SUMS, PRODUCTS, SQUARES = 0, 1, 2


class Descents(NamedTuple):
    """The state of conjugate gradients on each long row.

    rows: (n_long_rows,) the rows.
    first: (n_long_rows + 1,) the segments of long row n are first[n] … first[n + 1] − 1.
    r, diagonal, ridge, p: (n_long_rows, k), as in `mfrec.kernels.regressions`.
    rz: (n_long_rows,) r · z; −1 after the last step of a row.
    """

    rows: Array
    first: Array
    r: Array
    diagonal: Array
    ridge: Array
    p: Array
    rz: Array


def minimize_long_rows(
    long_rows: Array, entries: Entries, problem: Regressions, steps: int, weights: Array, diagonal: Array
) -> None:
    """Solve some rows; writes to their weights and diagonal."""
    crow, (_, k), dtype = entries.crow, problem.start.shape, problem.start.dtype
    n_segments = -(-np.diff(crow)[long_rows] // SEGMENT)
    first = np.concatenate([[0], np.cumsum(n_segments)])
    number = np.repeat(np.arange(len(long_rows)), n_segments)
    begins = crow[long_rows][number] + (np.arange(len(number)) - first[number]) * SEGMENT
    segments = np.stack(
        [number, long_rows[number], begins, np.minimum(begins + SEGMENT, crow[long_rows + 1][number])], 1
    )
    r, h_diagonal, ridge, p = np.zeros((4, len(long_rows), k), dtype)
    descents = Descents(long_rows, first, r, h_diagonal, ridge, p, rz=np.zeros(len(long_rows), dtype))

    def add_up(kind: int) -> Array:
        return segment_sums(kind, segments, entries, problem, descents.p)

    with np.errstate(all="ignore"):  # without compilation, numpy warns of hashes and of diverged factors
        start_rows(add_up(SUMS), problem, descents, weights, diagonal)
        for step in range(1, steps + 1):
            kind = SQUARES if step == steps else PRODUCTS
            step_rows(kind, add_up(kind), problem, descents, weights)


def segment_sums(kind: int, segments: Array, entries: Entries, problem: Regressions, directions: Array) -> Array:
    """(n_segments, 3, k) sums over the ratings of each segment; see `add_segment_sums`."""
    k, dtype = problem.start.shape[1], problem.start.dtype
    sums = np.zeros((len(segments), 3, k), dtype)
    n_tasks = min(len(segments), TASKS * torch.get_num_threads())
    block = max(1, BLOCK_BYTES // (problem.partners[:1].nbytes + problem.variances[:1].nbytes))

    def run(task: int) -> None:
        with np.errstate(all="ignore"):
            add_segment_sums(kind, task, n_tasks, segments, block, entries, problem, directions, sums)

    parallel(run, n_tasks)
    return sums


@kernel
def add_segment_sums(
    kind: int,
    task: int,
    n_tasks: int,
    segments: Array,
    block: int,
    entries: Entries,
    problem: Regressions,
    directions: Array,
    sums: Array,
) -> None:
    """Add sums over the ratings of each segment of a task to zeros, (n_segments, 3, k).

    The partners of a row's ratings must ascend.

    Args:
        kind: SUMS for the right-hand side, the diagonal of H and the variances, in this order; PRODUCTS for H(p), which
            is sums[:, 0]; SQUARES for p · H(p), which is sums[:, 0, 0].
        task: the first of its segments; the others follow at intervals of n_tasks, so that all tasks take as long.
        segments: (n_segments, 4) the number of the long row, its row, and the range of its ratings.
        block: partners whose ratings are visited before those of others.
        directions: (n_long_rows, k) p.
    """
    _, col, targets, rating_weights, row_scales, partner_scales = entries
    rows, partners, variances, noise_std = problem.rows, problem.partners, problem.variances, problem.noise_std
    k, dtype = rows.shape[1], rows.dtype
    x, v, shift = np.empty((TILE, k), dtype), np.empty(TILE, dtype), np.empty(TILE, dtype)
    normals, uniforms, tails = np.empty(TILE), np.empty(TILE), np.empty(TILE + 1, np.int64)
    position, limit, is_left = segments[:, 2].copy(), 0, True
    while is_left:
        limit += block
        is_left = False
        for s in range(task, len(segments), n_tasks):
            number, row, end = segments[s, 0], segments[s, 1], segments[s, 3]
            tile = position[s]
            while tile < end and col[tile] < limit:
                n = min(TILE, end - tile)
                m = gather(col, tile, n, partners, x, v, shift)
                weigh(row, tile, n, col, targets, rating_weights, row_scales, partner_scales, v, shift)
                if kind == PRODUCTS:
                    add_products(x, m, v, directions[number], sums[s, 0])
                elif kind == SQUARES:
                    sums[s, 0, 0] += squared_length(x, m, v, directions[number])
                else:
                    if noise_std > 0:
                        add_noise(problem.seed, tile, n, noise_std, v, shift, normals, uniforms, tails)
                    if len(variances):
                        add_variances(col, tile, n, variances, v, sums[s, 2])
                    add_sums(x, m, v, shift, rows, row, sums[s, 0], sums[s, 1])
                tile += TILE
            position[s] = tile
            is_left = is_left or tile < end


@kernel
def start_rows(sums: Array, problem: Regressions, descents: Descents, weights: Array, diagonals: Array) -> None:
    """Set the state of each long row from the sums over its segments."""
    long_rows, first, r, diagonal, ridge, p, rz = descents
    rows, start, ridges, rhs_shift, free = problem.rows, problem.start, problem.ridge, problem.rhs_shift, problem.free
    for n in range(len(long_rows)):
        row = long_rows[n]
        for s in range(first[n], first[n + 1]):
            r[n] += sums[s, 0]
            diagonal[n] += sums[s, 1]
            ridge[n] += sums[s, 2]
        complete_sums(row, rows, start, ridges, rhs_shift, free, r[n], ridge[n], diagonal[n])
        rz[n] = cg_start(row, start, r[n], diagonal[n], p[n], weights)
        diagonals[row] = diagonal[n]


@kernel
def step_rows(kind: int, sums: Array, problem: Regressions, descents: Descents, weights: Array) -> None:
    """A step of each long row that has not converged.

    Args:
        kind: PRODUCTS, or SQUARES in the last step.
    """
    long_rows, first, r, diagonal, ridge, p, rz = descents
    free, tiny, eps = problem.free, problem.tiny, problem.eps
    h, nothing, zero = np.empty(r.shape[1], r.dtype), np.empty(0, r.dtype), r.dtype.type(0)
    for n in range(len(long_rows)):
        if rz[n] < 0:
            continue
        square = zero
        h[:] = ridge[n] * p[n]
        for s in range(first[n], first[n + 1]):
            if kind == SQUARES:
                square += sums[s, 0, 0]
            else:
                h += sums[s, 0]
        product, row = nothing if kind == SQUARES else h, long_rows[n]
        rz[n] = cg_step(row, rz[n], square, product, ridge[n], free, tiny, eps, diagonal[n], r[n], p[n], weights)

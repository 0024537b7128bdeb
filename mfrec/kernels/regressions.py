"""Ridge regressions of rows: the arrays that kernels take, and conjugate gradients on one row.

The kernels add up the products with a row's ratings, each in its own way.  `mfrec.model.ridge.minimize_by_cg` is the
plain definition.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mfrec.kernels.compiled import kernel

Array = npt.NDArray[Any]


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


@kernel
def complete_sums(
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
def cg_start(row: int, start: Array, r: Array, diagonal: Array, p: Array, weights: Array) -> Any:
    """Set the row's weights to the start, and p to the first direction z = r / diagonal; returns r · z."""
    rz = r.dtype.type(0)
    for c in range(len(r)):
        weights[row, c] = start[row, c]
        p[c] = r[c] / diagonal[c]
        rz += r[c] * p[c]
    return rz


@kernel
def cg_step(
    row: int,
    rz: Any,
    square: Any,
    h: Array,
    ridge: Array,
    free: Array,
    tiny: Any,
    eps: Any,
    diagonal: Array,
    r: Array,
    p: Array,
    weights: Array,
) -> Any:
    """A step along p; returns r · z for the next step, or −1 after the last.

    Args:
        rz: r · z.
        square: in the last step, the ratings' part of p · H(p), which is all that its length needs; else 0.
        h: H(p) before the fixed columns are set to 0; empty in the last step.
        r, p: changed to those of the next step.
    """
    k, zero, ended, is_last = len(r), r.dtype.type(0), r.dtype.type(-1), not len(h)
    curvature, bound = square, zero
    for c in range(len(h)):
        h[c] *= free[c]
        curvature += p[c] * h[c]
    for c in range(k):
        bound += diagonal[c] * p[c] * p[c]
        if is_last:
            curvature += ridge[c] * p[c] * p[c]
    if not curvature > eps * bound:
        if not np.isfinite(curvature):
            weights[row] = np.nan
        return ended
    size = rz / max(curvature, tiny)
    for c in range(k):
        weights[row, c] += size * p[c]
    if is_last:
        return ended
    before, rz = rz, zero
    for c in range(k):
        r[c] -= size * h[c]
        rz += r[c] * (r[c] / diagonal[c])
    turn = rz / max(before, tiny)
    for c in range(k):
        p[c] = r[c] / diagonal[c] + turn * p[c]
    return rz

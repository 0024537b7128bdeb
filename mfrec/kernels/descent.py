"""Conjugate gradients on one row's regression, apart from the products with the row's ratings.

`mfrec.model.ridge.minimize_by_cg` is the plain definition.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mfrec.kernels.compiled import kernel

Array = npt.NDArray[Any]


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
def begin(row: int, start: Array, r: Array, diagonal: Array, p: Array, weights: Array) -> Any:
    """Set the row's weights to the start, and p to the first direction z = r / diagonal; returns r · z."""
    rz = r.dtype.type(0)
    for c in range(len(r)):
        weights[row, c] = start[row, c]
        p[c] = r[c] / diagonal[c]
        rz += r[c] * p[c]
    return rz


@kernel
def move(
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
    """A step along p; returns r · z for the next one, or −1 if there is none.

    Args:
        rz: r · z.
        square: in the last step, whose length needs p · H(p) only, the ratings' part of it.
        h: H(p) but for the columns that are not free; empty in the last step.
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

"""Gathering of the partners of a row's ratings, and sums over them: the parts of the kernels `ridge` and `long_rows`.

The functions take plain arrays.  Passing a tuple on counts the references to all its arrays, which takes as long as a
row of ten ratings.  Sums take GROUP rows at a time, so that a vector is loaded once for all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mfrec.kernels.compiled import kernel, prefetch
from mfrec.kernels.normals import standard_normals

Array = npt.NDArray[Any]

# Buffers are padded with zeros to a multiple of this many rows.
GROUP = 4
# How many ratings ahead a partner is loaded into the cache: loading takes as long as copying a few others.
AHEAD = 16


@kernel
def gather(col: Array, first: int, n: int, partners: Array, x: Array, v: Array, shift: Array) -> int:
    """Copy the partners of n ratings to x; returns n rounded up to a GROUP, up to where x, v and shift become 0."""
    last = len(col) - 1
    for e in range(n):
        prefetch(partners, col[min(first + e + AHEAD, last)])
        partner = col[first + e]
        for c in range(partners.shape[1]):
            x[e, c] = partners[partner, c]
    m = (n + GROUP - 1) // GROUP * GROUP
    for e in range(n, m):
        v[e] = shift[e] = 0
        for c in range(partners.shape[1]):
            x[e, c] = 0
    return m


@kernel
def weigh(
    row: int,
    first: int,
    n: int,
    col: Array,
    targets: Array,
    weights: Array,
    row_scales: Array,
    partner_scales: Array,
    v: Array,
    shift: Array,
) -> None:
    """Set v to the weights of n ratings, and shift to v ∘ targets."""
    scale = row_scales[row] if len(row_scales) else v.dtype.type(1)
    # Slices have positions that are not negative, which loops must be sure of to be vectorized.
    targets = targets[first : first + n]
    for e in range(n):
        v[e] = scale
    if len(weights):
        weights = weights[first : first + n]
        for e in range(n):
            v[e] *= weights[e]
    if len(partner_scales):
        for e in range(n):
            v[e] *= partner_scales[col[first + e]]
    for e in range(n):
        shift[e] = v[e] * targets[e]


@kernel
def add_noise(
    seed: Any, first: int, n: int, std: Any, v: Array, shift: Array, normals: Array, uniforms: Array, tails: Array
) -> None:
    """Add std √v z to shift, with standard normal z; the others are buffers of `standard_normals`."""
    standard_normals(seed, first, n, normals, uniforms, tails)
    for e in range(n):
        shift[e] += std * np.sqrt(v[e]) * v.dtype.type(normals[e])


@kernel
def add_variances(col: Array, first: int, n: int, variances: Array, v: Array, total: Array) -> None:
    """Add Σ v s over the rows s of the variances of n ratings' partners to total; v is padded with zeros."""
    last, end = first + n - 1, len(col) - 1
    for e in range(0, n, 4):
        for ahead in range(first + e + AHEAD, first + e + AHEAD + 4):
            prefetch(variances, col[min(ahead, end)])
        i0, i1 = col[first + e], col[min(first + e + 1, last)]
        i2, i3 = col[min(first + e + 2, last)], col[min(first + e + 3, last)]
        v0, v1, v2, v3 = v[e], v[e + 1], v[e + 2], v[e + 3]
        for c in range(len(total)):
            pair = v0 * variances[i0, c] + v1 * variances[i1, c]
            total[c] += pair + (v2 * variances[i2, c] + v3 * variances[i3, c])


@kernel
def add_sums(x: Array, m: int, v: Array, shift: Array, rows: Array, row: int, rhs: Array, diagonal: Array) -> None:
    """Add Σ (shift − v θ·x) x to rhs and Σ v x ∘ x to the diagonal, over the first m rows x."""
    k, zero = len(rhs), rhs.dtype.type(0)
    for e in range(0, m, 4):
        t0, t1, t2, t3 = zero, zero, zero, zero
        for c in range(k):
            theta = rows[row, c]
            t0 += x[e, c] * theta
            t1 += x[e + 1, c] * theta
            t2 += x[e + 2, c] * theta
            t3 += x[e + 3, c] * theta
        v0, v1, v2, v3 = v[e], v[e + 1], v[e + 2], v[e + 3]
        t0, t1, t2, t3 = shift[e] - v0 * t0, shift[e + 1] - v1 * t1, shift[e + 2] - v2 * t2, shift[e + 3] - v3 * t3
        for c in range(k):
            x0, x1, x2, x3 = x[e, c], x[e + 1, c], x[e + 2, c], x[e + 3, c]
            rhs[c] += (t0 * x0 + t1 * x1) + (t2 * x2 + t3 * x3)
            diagonal[c] += (v0 * x0 * x0 + v1 * x1 * x1) + (v2 * x2 * x2 + v3 * x3 * x3)


@kernel
def add_products(x: Array, m: int, v: Array, p: Array, h: Array) -> None:
    """Add Σ v (x·p) x over the first m rows x to h."""
    k, zero = len(p), p.dtype.type(0)
    for e in range(0, m, 4):
        t0, t1, t2, t3 = zero, zero, zero, zero
        for c in range(k):
            t0 += x[e, c] * p[c]
            t1 += x[e + 1, c] * p[c]
            t2 += x[e + 2, c] * p[c]
            t3 += x[e + 3, c] * p[c]
        t0, t1, t2, t3 = v[e] * t0, v[e + 1] * t1, v[e + 2] * t2, v[e + 3] * t3
        for c in range(k):
            h[c] += (t0 * x[e, c] + t1 * x[e + 1, c]) + (t2 * x[e + 2, c] + t3 * x[e + 3, c])


@kernel
def squared_length(x: Array, m: int, v: Array, p: Array) -> Any:
    """Σ v (x·p)² over the first m rows x."""
    k, zero = len(p), p.dtype.type(0)
    total = zero
    for e in range(0, m, 4):
        t0, t1, t2, t3 = zero, zero, zero, zero
        for c in range(k):
            t0 += x[e, c] * p[c]
            t1 += x[e + 1, c] * p[c]
            t2 += x[e + 2, c] * p[c]
            t3 += x[e + 3, c] * p[c]
        total += (v[e] * t0 * t0 + v[e + 1] * t1 * t1) + (v[e + 2] * t2 * t2 + v[e + 3] * t3 * t3)
    return total

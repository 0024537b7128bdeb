"""Gamma numbers that are a function of a seed and a position, so that any thread or process draws any of them.

A normal number z makes a candidate d v for a draw from Gamma(a, 1):

    v = (1 + c z)³,  d = a − 1/3,  c = 1/√(9 d)      accepted with the probability min(1, exp(½ z² + d − d v + d log v))

    Marsaglia & Tsang 2000, "A simple method for generating gamma variables"

The negative logarithm of a uniform number has the distribution of ½ (z₁² + z₂²), so that each attempt takes three
normal numbers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from mfrec.kernels.compiled import kernel, parallel
from mfrec.kernels.normals import normal_at

Array = npt.NDArray[Any]

# Normal numbers that a position may take: 85 attempts.  At a ≥ 1, more than 95 in 100 attempts are accepted.
NORMALS = 256
# Numbers that one thread draws at a time.
CHUNK = 2**12


def set_gammas(seed: int, positions: Array, shapes: Array, out: Array) -> None:
    """Set `out`, (n,) float64, to numbers from Gamma(shape, 1) at some positions, for shapes of at least 1.

    Args:
        positions: (n,) int64, up to 2^55.
        shapes: (n,) float64.
    """

    def set_chunk(task: int) -> None:
        part = slice(task * CHUNK, (task + 1) * CHUNK)
        with np.errstate(all="ignore"):  # without compilation, numpy warns of hashes
            gammas(np.uint64(seed), positions[part], shapes[part], out[part])

    parallel(set_chunk, -(-len(out) // CHUNK))


@kernel
def gammas(seed: Any, positions: Array, shapes: Array, out: Array) -> None:
    """`set_gammas` of one thread; the seed is uint64."""
    for n in range(len(out)):
        d = shapes[n] - 1 / 3
        c = 1 / math.sqrt(9 * d)
        position = positions[n] * NORMALS
        while True:
            z = normal_at(seed, position)
            v = (1 + c * z) ** 3
            threshold = 0.5 * (normal_at(seed, position + 1) ** 2 + normal_at(seed, position + 2) ** 2)
            position += 3
            if v > 0 and threshold > -(0.5 * z * z + d - d * v + d * math.log(v)):
                break
        out[n] = d * v

"""Normal numbers that are a function of a seed and a position, so that any thread draws any of them.

SplitMix64 is a counter whose values are hashed (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number
generators"): its n-th number needs no other.  The inverse of the normal distribution function turns uniform numbers
into normal ones.  Acklam's rational approximations of it, one in the middle and one in the tails, have a relative
error below 1.2e-9 (P. J. Acklam 2003, "An algorithm for computing the inverse normal cumulative distribution
function").  The one in the middle has no branches, so that a loop over it is vectorized.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from mfrec.kernels.compiled import kernel, parallel

Array = npt.NDArray[Any]

INCREMENT, FIRST_MULTIPLIER, SECOND_MULTIPLIER = (
    np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
FIRST_SHIFT, SECOND_SHIFT, THIRD_SHIFT, TO_52_BITS = (np.uint64(bits) for bits in (30, 27, 31, 12))

# The probability of each tail.
TAIL = 0.02425
# Numbers that one thread draws at a time; they stay in a level-2 cache.
CHUNK = 2**14


def set_normals(seed: int, first: int, out: Array) -> None:
    """Set `out`, (n,), to the normal numbers of positions first … first + n − 1; `mfrec.draws` has their definition."""
    n = len(out)

    def set_chunk(task: int) -> None:
        start = task * CHUNK
        size = min(CHUNK, n - start)
        normals, uniforms, tails = np.empty(size), np.empty(size), np.empty(size + 1, np.int64)
        with np.errstate(all="ignore"):  # without compilation, numpy warns of hashes
            standard_normals(np.uint64(seed), first + start, size, normals, uniforms, tails)
        out[start : start + size] = normals

    parallel(set_chunk, -(-n // CHUNK))


@kernel
def standard_normals(seed: Any, first: int, n: int, out: Array, uniforms: Array, tails: Array) -> None:
    """Set the first n numbers of `out` to the normal numbers of positions first … first + n − 1.

    Args:
        seed: uint64.
        out, uniforms: float64, of n numbers or more; the uniform numbers, less ½, are left there.
        tails: (n + 1,) or more int64, for the numbers in the tails.
    """
    for e in range(n):
        uniforms[e] = uniform_at(seed, first + e)
    n_tails = 0
    for e in range(n):
        out[e] = middle_normal(uniforms[e])
    for e in range(n):
        tails[n_tails] = e
        n_tails += abs(uniforms[e]) > 0.5 - TAIL
    for i in range(n_tails):
        out[tails[i]] = tail_normal(uniforms[tails[i]])


@kernel
def normal_at(seed: Any, position: int) -> float:
    """The normal number of a position."""
    q = uniform_at(seed, position)
    return tail_normal(q) if abs(q) > 0.5 - TAIL else middle_normal(q)


@kernel
def uniform_at(seed: Any, position: int) -> float:
    """The uniform number of a position, less ½: in (−½, ½), symmetric and without its ends."""
    number = seed + np.uint64(position) * INCREMENT
    number = (number ^ (number >> FIRST_SHIFT)) * FIRST_MULTIPLIER
    number = (number ^ (number >> SECOND_SHIFT)) * SECOND_MULTIPLIER
    number = number ^ (number >> THIRD_SHIFT)
    return float((np.float64(np.int64(number >> TO_52_BITS)) + 0.5) * 2.0**-52 - 0.5)


@kernel
def middle_normal(q: float) -> float:
    """The normal number with the probability ½ + q below it, between the tails."""
    r = q * q
    top = ((-3.969683028665376e01 * r + 2.209460984245205e02) * r - 2.759285104469687e02) * r + 1.383577518672690e02
    top = (top * r - 3.066479806614716e01) * r + 2.506628277459239
    low = ((-5.447609879822406e01 * r + 1.615858368580409e02) * r - 1.556989798598866e02) * r + 6.680131188771972e01
    return q * top / ((low * r - 1.328068155288572e01) * r + 1)


@kernel
def tail_normal(q: float) -> float:
    """The normal number with the probability ½ + q below it, in either tail."""
    r = math.sqrt(-2 * math.log(0.5 - abs(q)))
    top = ((-7.784894002430293e-03 * r - 3.223964580411365e-01) * r - 2.400758277161838) * r - 2.549732539343734
    top = (top * r + 4.374664141464968) * r + 2.938163982698783
    low = ((7.784695709041462e-03 * r + 3.224671290700398e-01) * r + 2.445134137142996) * r + 3.754408661907416
    return math.copysign(top / (low * r + 1), q)

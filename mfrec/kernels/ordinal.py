"""Levels of ratings as intervals of a normal latent: log-likelihood, derivatives and draws, a rating at a time.

`mfrec.model.level_likelihood` has their plain definitions and the meaning of the sums.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from mfrec.kernels.compiled import kernel, parallel

Array = npt.NDArray[Any]

# Ratings that one thread reads at a time; their sums are apart, so that threads do not meet.
CHUNK = 2**14
# Beyond this many standard deviations, tails of the normal distribution are below any probability that counts.
FAR = 38.0
ROOT_TWO_PI = 2.5066282746310002
# Probabilities below this count as this, so that their logarithms are finite.
TINY = 1e-290


def level_sums(scale: float, n_columns: int, eta: Array, v: Array, level: Array, bounds: Array) -> Array:
    """(K, n_columns) the sums of each level, in the order of `mfrec.model.level_likelihood.LevelSums`.

    Args:
        scale: multiplies the scores.
        eta, v: (n,) scores and precisions.
        level: (n,) int8.
        bounds: (K + 1,) float64 cutpoints between two numbers that are far below and far above all scores.
    """
    parts = np.zeros((-(-len(eta) // CHUNK), len(bounds) - 1, n_columns))

    def task(number: int) -> None:
        first = number * CHUNK
        add_level_sums(first, min(first + CHUNK, len(eta)), eta, v, level, bounds, scale, parts[number])

    parallel(task, len(parts))
    total: Array = parts.sum(0)
    return total


def log_likelihood(scale: float, eta: Array, v: Array, level: Array, bounds: Array) -> float:
    """Σ log P of all ratings; the arguments are those of `level_sums`."""
    parts = np.zeros(-(-len(eta) // CHUNK))

    def task(number: int) -> None:
        first = number * CHUNK
        parts[number] = chunk_likelihood(first, min(first + CHUNK, len(eta)), eta, v, level, bounds, scale)

    parallel(task, len(parts))
    return float(parts.sum())


def truncated_normals(eta: Array, v: Array, level: Array, bounds: Array, uniforms: Array) -> Array:
    """(n,) draws from N(η, 1/v) between the bounds of each level, from uniform numbers in (0, 1)."""
    out = np.empty_like(eta)

    def task(number: int) -> None:
        first = number * CHUNK
        draw_chunk(first, min(first + CHUNK, len(eta)), eta, v, level, bounds, uniforms, out)

    parallel(task, -(-len(eta) // CHUNK))
    return out


@kernel
def tail(x: float, density: float) -> float:
    """Φ(−|x|), given exp(−x²/2).

    J. F. Hart's approximation 5666 (Hart et al. 1968, "Computer approximations"), with a continued fraction in the
    far tail (West 2005, "Better approximations to cumulative normal functions").
    """
    x = abs(x)
    if x < 7.07106781186547:
        top = ((3.52624965998911e-02 * x + 0.700383064443688) * x + 6.37396220353165) * x + 33.912866078383
        top = ((top * x + 112.079291497871) * x + 221.213596169931) * x + 220.206867912376
        low = ((8.83883476483184e-02 * x + 1.75566716318264) * x + 16.064177579207) * x + 86.7807322029461
        low = (((low * x + 296.564248779674) * x + 637.333633378831) * x + 793.826512519948) * x + 440.413735824752
        return density * top / low
    if x > FAR:
        return 0.0
    fraction = x + 1 / (x + 2 / (x + 3 / (x + 4 / (x + 5 / (x + 6 / (x + 7 / (x + 8 / (x + 9 / (x + 0.65)))))))))
    return density / (fraction * ROOT_TWO_PI)


@kernel
def between(a: float, b: float, lower_tail: float, upper_tail: float) -> float:
    """Φ(b) − Φ(a), given Φ(−|a|) and Φ(−|b|), without cancellation in the tails."""
    if a >= 0:
        return lower_tail - upper_tail
    if b <= 0:
        return upper_tail - lower_tail
    return 1 - lower_tail - upper_tail


@kernel
def add_level_sums(
    first: int, end: int, eta: Array, v: Array, level: Array, bounds: Array, scale: float, sums: Array
) -> None:
    """Add ratings first … end − 1 to the sums of their levels."""
    for n in range(first, end):
        k, score, precision = level[n], scale * eta[n], np.float64(v[n])
        root = math.sqrt(precision)
        a, b = root * (bounds[k] - score), root * (bounds[k + 1] - score)
        density_a, density_b = math.exp(-0.5 * a * a), math.exp(-0.5 * b * b)
        p = max(between(a, b, tail(a, density_a), tail(b, density_b)), TINY)
        inverse = 1 / (ROOT_TWO_PI * p)
        ra, rb = density_a * inverse, density_b * inverse
        A, B, C = precision * (b * rb + rb * rb), precision * ra * rb, precision * (ra * ra - a * ra)
        sums[k, 0] += math.log(p)
        sums[k, 1] += root * rb
        sums[k, 2] += root * ra
        sums[k, 3] += A
        sums[k, 4] += B
        sums[k, 5] += C
        sums[k, 6] += root * score * (ra - rb)
        sums[k, 7] += score * (A - B)
        sums[k, 8] += score * (C - B)
        sums[k, 9] += score * score * (A - 2 * B + C)


@kernel
def chunk_likelihood(first: int, end: int, eta: Array, v: Array, level: Array, bounds: Array, scale: float) -> float:
    """Σ log P of ratings first … end − 1."""
    total, product = 0.0, 1.0
    for n in range(first, end):
        k, score, root = level[n], scale * eta[n], math.sqrt(np.float64(v[n]))
        a, b = root * (bounds[k] - score), root * (bounds[k + 1] - score)
        p = between(a, b, tail(a, math.exp(-0.5 * a * a)), tail(b, math.exp(-0.5 * b * b)))
        # One logarithm of many probabilities; a product of any two of 1e-150 or more is above 1e-300.
        if p < 1e-150:
            total += math.log(max(p, TINY))
        else:
            product *= p
        if product < 1e-150:
            total += math.log(product)
            product = 1.0
    return total + math.log(product)


@kernel
def draw_chunk(
    first: int, end: int, eta: Array, v: Array, level: Array, bounds: Array, uniforms: Array, out: Array
) -> None:
    """Draws for ratings first … end − 1."""
    for n in range(first, end):
        k, root = level[n], math.sqrt(np.float64(v[n]))
        a, b, sign = root * (bounds[k] - eta[n]), root * (bounds[k + 1] - eta[n]), 1.0
        if a > 0:  # mirrored: Φ has all its digits below 0
            a, b, sign = -b, -a, -1.0
        below, above = tail(a, math.exp(-0.5 * a * a)), tail(b, math.exp(-0.5 * b * b))
        if b > 0:
            above = 1 - above
        # So far in the tail, the distance from its bound is exponential.
        is_far = above <= TINY
        t = b - math.log(uniforms[n]) / b if is_far else normal_quantile(below + uniforms[n] * (above - below))
        out[n] = eta[n] + sign * min(max(t, a), b) / root


@kernel
def normal_quantile(p: float) -> float:
    """Φ⁻¹(p), to about 16 digits (Wichura 1988, algorithm AS 241, "The percentage points of the normal")."""
    q = p - 0.5
    if abs(q) <= 0.425:
        r = 0.180625 - q * q
        top = ((2509.0809287301226727 * r + 33430.575583588128105) * r + 67265.770927008700853) * r
        top = (((top + 45921.953931549871457) * r + 13731.693765509461125) * r + 1971.5909503065514427) * r
        top = (top + 133.14166789178437745) * r + 3.3871328727963666080
        low = ((5226.4952788528545610 * r + 28729.085735721942674) * r + 39307.895800092710610) * r
        low = (((low + 21213.794301586595867) * r + 5394.1960214247511077) * r + 687.18700749205790830) * r
        low = (low + 42.313330701600911252) * r + 1.0
        return q * top / low
    r = math.sqrt(-math.log(max(min(p, 1 - p), TINY)))
    if r <= 5.0:
        r -= 1.6
        top = ((7.74545014278341407640e-4 * r + 2.27238449892691845833e-2) * r + 2.41780725177450611770e-1) * r
        top = (((top + 1.27045825245236838258) * r + 3.64784832476320460504) * r + 5.76949722146069140550) * r
        top = (top + 4.63033784615654529590) * r + 1.42343711074968357734
        low = ((1.05075007164441684324e-9 * r + 5.47593808499534494600e-4) * r + 1.51986665636164571966e-2) * r
        low = (((low + 1.48103976427480074590e-1) * r + 6.89767334985100004550e-1) * r + 1.67638483018380384940) * r
        low = (low + 2.05319162663775882187) * r + 1.0
    else:
        r -= 5.0
        top = ((2.01033439929228813265e-7 * r + 2.71155556874348757815e-5) * r + 1.24266094738807843860e-3) * r
        top = (((top + 2.65321895265761230930e-2) * r + 2.96560571828504891230e-1) * r + 1.78482653991729133580) * r
        top = (top + 5.46378491116411436990) * r + 6.65790464350110377720
        low = ((2.04426310338993978564e-15 * r + 1.42151175831644588870e-7) * r + 1.84631831751005468180e-5) * r
        low = (((low + 7.86869131145613259100e-4) * r + 1.48753612908506148525e-2) * r + 1.36929880922735805310e-1) * r
        low = (low + 5.99832206555887937690e-1) * r + 1.0
    return math.copysign(top / low, q)

"""The likelihood of levels: each rating is the interval that its normal latent falls in.

    z_n ~ N(η_n, 1/v_n)        y_n is level k where γ_{k−1} < z_n < γ_k,  γ_0 = −∞, γ_K = ∞
    P(y_n = level k) = Φ(b) − Φ(a)        a = √v (γ_{k−1} − η),  b = √v (γ_k − η)

η are scores, v precisions, and γ the K − 1 cutpoints.  Let u be the logarithm of the scale of the scores, so that
∂η/∂u = η.  With r_a = φ(a)/P and r_b = φ(b)/P, a rating of level k has the derivatives

    ∂ log P/∂γ_k = √v r_b        ∂ log P/∂γ_{k−1} = −√v r_a        ∂ log P/∂u = √v η (r_a − r_b)

and, with A = v (b r_b + r_b²), B = v r_a r_b, C = v (r_a² − a r_a), the curvatures (second derivatives, negated)

    γ_k, γ_k: A        γ_{k−1}, γ_{k−1}: C        γ_{k−1}, γ_k: −B
    γ_k, u: −η (A − B)        γ_{k−1}, u: −η (C − B)        u, u: η² (A − 2B + C)

where the last leaves out ∂ log P/∂u, which is small where the likelihood of all ratings is largest.  The curvatures
are those of a concave function: log P is concave in (a, b), which are linear in γ and in the scale.

(Albert & Chib 1993, "Bayesian analysis of binary and polychotomous response data".)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mfrec.model.ridge import array_of
from mfrec.sparse import has_kernel

# Stands for γ_K, and −END for γ_0: finite, so that products with 0 are 0.
END = 1e30
# Ratings computed at a time without kernels.
BLOCK = 2**20
# Probabilities below this count as this, so that their logarithms are finite.
TINY = 1e-290


class LevelSums(NamedTuple):
    """Sums over the ratings of each level, (K,) each: log P, its derivatives, and its curvatures.

    The names are those of the module's docstring: `upper` and `lower` are Σ √v r_b and Σ √v r_a.
    """

    log_p: Tensor
    upper: Tensor
    lower: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    u: Tensor
    upper_u: Tensor
    lower_u: Tensor
    uu: Tensor

    def __add__(self, others: object) -> LevelSums:
        """The sums of both sets of ratings."""
        assert isinstance(others, LevelSums)
        return LevelSums(*(a + b for a, b in zip(self, others, strict=True)))

    def weighted(self, weights: Tensor) -> LevelSums:
        """The sums if each rating of level k counted weights[k] times."""
        return LevelSums(*(column * weights for column in self))


def level_sums(eta: Tensor, v: Tensor, level: Tensor, cutpoints: Tensor, scale: float = 1.0) -> LevelSums:
    """Sums over the ratings of each level, in float64 on the CPU.

    Args:
        eta: (n,) scores η, each multiplied by the scale.
        v: (n,) precisions.
        level: (n,) int8 in 0 … K − 1, the position of each rating's level.
        cutpoints: (K − 1,) γ, ascending.
    """
    if has_kernel(eta):
        from mfrec.kernels import ordinal  # numba is imported where a kernel runs

        arrays = [array_of(tensor) for tensor in (eta, v, level, _bounds(cutpoints))]
        table = torch.from_numpy(ordinal.level_sums(scale, len(LevelSums._fields), *arrays))
        return LevelSums(*table.unbind(1))
    n_levels = len(cutpoints) + 1
    table = torch.zeros(len(LevelSums._fields), n_levels, dtype=torch.float64, device=eta.device)
    for block in range(0, len(eta), BLOCK):
        part = slice(block, block + BLOCK)
        columns = _rating_terms(scale * eta[part].double(), v[part].double(), level[part].long(), cutpoints)
        is_level = torch.nn.functional.one_hot(level[part].long(), n_levels).double()
        table += torch.stack(columns) @ is_level
    return LevelSums(*table.cpu())


def _rating_terms(eta: Tensor, v: Tensor, level: Tensor, cutpoints: Tensor) -> list[Tensor]:
    """(n,) tensors that `LevelSums` sums, in its order."""
    root = v.sqrt()
    a, b = _intervals(eta, root, level, cutpoints)
    p = interval_probability(a, b)
    ra, rb = ((-0.5 * x.square()).exp() / (math.sqrt(2 * math.pi) * p) for x in (a, b))
    A, B, C = v * (b * rb + rb.square()), v * ra * rb, v * (ra.square() - a * ra)
    u = root * eta * (ra - rb)
    return [p.log(), root * rb, root * ra, A, B, C, u, eta * (A - B), eta * (C - B), eta.square() * (A - 2 * B + C)]


def log_likelihood(eta: Tensor, v: Tensor, level: Tensor, cutpoints: Tensor, scale: float = 1.0) -> float:
    """Σ log P of all ratings; the arguments are those of `level_sums`."""
    if has_kernel(eta):
        from mfrec.kernels import ordinal  # numba is imported where a kernel runs

        arrays = [array_of(tensor) for tensor in (eta, v, level, _bounds(cutpoints))]
        return ordinal.log_likelihood(scale, *arrays)
    return float(level_sums(eta, v, level, cutpoints, scale).log_p.sum())


def truncated_normals(
    eta: Tensor, v: Tensor, level: Tensor, cutpoints: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """(n,) latents z drawn from N(η, 1/v) within the intervals of the ratings' levels.

    A uniform number between Φ(a) and Φ(b) is mapped by Φ⁻¹, in float64; an interval above the mean is mirrored, since
    Φ has all its digits below 0.  Where both are below `TINY`, z is exponential.

    Args:
        eta, v, level, cutpoints: as in `level_sums`.
        generator: the source of the uniform numbers, on the CPU, so that all devices draw alike.
    """
    # From [0, 1) to (0, 1).
    uniforms = torch.rand(len(eta), generator=generator, dtype=torch.float64).add_(2.0**-54).to(eta.device)
    if has_kernel(eta):
        from mfrec.kernels import ordinal  # numba is imported where a kernel runs

        arrays = [array_of(tensor) for tensor in (eta, v, level, _bounds(cutpoints), uniforms)]
        return torch.from_numpy(ordinal.truncated_normals(*arrays))
    parts = (tensor.split(BLOCK) for tensor in (eta.double(), v.double(), level.long(), uniforms))
    drawn = [_truncated(cutpoints, *part) for part in zip(*parts, strict=True)]
    return torch.cat(drawn).to(eta.dtype) if drawn else eta.clone()


def _truncated(cutpoints: Tensor, eta: Tensor, v: Tensor, level: Tensor, uniforms: Tensor) -> Tensor:
    root = v.sqrt()
    a, b = _intervals(eta, root, level, cutpoints)
    is_above = a > 0
    a, b = torch.where(is_above, -b, a), torch.where(is_above, -a, b)
    below, above = normal_cdf(a), normal_cdf(b)
    t = torch.special.ndtri((below + uniforms * (above - below)).clamp_min(TINY))
    t = torch.where(above > TINY, t, b - uniforms.log() / b)
    t = torch.minimum(torch.maximum(t, a), b)
    return eta + torch.where(is_above, -t, t) / root


def _bounds(cutpoints: Tensor) -> Tensor:
    """(K + 1,) γ_0 … γ_K in float64."""
    end = cutpoints.new_tensor([END], dtype=torch.float64)
    return torch.cat([-end, cutpoints.double(), end])


def _intervals(eta: Tensor, root: Tensor, level: Tensor, cutpoints: Tensor) -> tuple[Tensor, Tensor]:
    bounds = _bounds(cutpoints).to(eta.device)
    return root * (bounds[level] - eta), root * (bounds[level + 1] - eta)


def interval_probability(a: Tensor, b: Tensor) -> Tensor:
    """Φ(b) − Φ(a), at least `TINY`, with all digits in both tails; an interval above 0 is mirrored."""
    is_above = a > 0
    a, b = torch.where(is_above, -b, a), torch.where(is_above, -a, b)
    return (normal_cdf(b) - normal_cdf(a)).clamp_min(TINY)


def normal_cdf(x: Tensor) -> Tensor:
    """Φ(x); `torch.special.ndtr` is 0 below −12."""
    cdf: Tensor = 0.5 * torch.special.erfc(x * -(0.5**0.5))
    return cdf

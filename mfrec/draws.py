"""Random draws that are the same on all devices.

Draws by a generator are made on the CPU.  Draws by a counter are made where they are used: each is a function of a seed
and a position (`mfrec.kernels.normals`, whose numbers these are), so that nothing travels to a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# SplitMix64's constants as signed numbers, whose products have the same bits.
INCREMENT, FIRST_MULTIPLIER, SECOND_MULTIPLIER = (
    number - 2**64 for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
# Numerator and denominator of Acklam's approximations, from the highest power: in r = q², and in r = √(−2 log p).
MIDDLE = (
    (-3.969683028665376e01, 2.209460984245205e02, -2.759285104469687e02, 1.383577518672690e02, -3.066479806614716e01,
     2.506628277459239),
    (-5.447609879822406e01, 1.615858368580409e02, -1.556989798598866e02, 6.680131188771972e01, -1.328068155288572e01,
     1.0),
)  # fmt: skip
TAILS = (
    (-7.784894002430293e-03, -3.223964580411365e-01, -2.400758277161838, -2.549732539343734, 4.374664141464968,
     2.938163982698783),
    (7.784695709041462e-03, 3.224671290700398e-01, 2.445134137142996, 3.754408661907416, 1.0),
)  # fmt: skip
# The probability of each tail.
TAIL = 0.02425
# Positions at a time: 32 MiB for each of a few temporary tensors.
BLOCK = 2**22


def standard_normal(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws from N(0, 1) with the dtype and device of `like`, made on the CPU, so that all devices draw alike."""
    return on_device(torch.randn(tuple(shape), generator=generator, dtype=like.dtype), like.device)


def standard_gamma(shape: Tensor, generator: torch.Generator, device: torch.device | None = None) -> Tensor:
    """A draw from Gamma(shape, 1) for each number of `shape`, in float64, on a device, by default that of `shape`.

    Args:
        shape: best on the CPU, where the draws are made.
    """
    # torch draws gammas from its global generator alone; numpy takes a seed.
    seed = int(torch.randint(2**62, (), generator=generator))
    numpy_generator = np.random.default_rng(seed)
    drawn = numpy_generator.standard_gamma(shape.cpu().numpy())
    return on_device(torch.as_tensor(drawn, dtype=torch.float64), shape.device if device is None else device)


def on_device(drawn: Tensor, device: torch.device) -> Tensor:
    """Draws copied to a device; to a GPU from pinned memory, without waiting."""
    return (drawn.pin_memory() if device.type == "cuda" else drawn).to(device, non_blocking=True)


def counter_normals(seed: int, first: int, n: int, like: Tensor) -> Tensor:
    """(n,) the draws from N(0, 1) of positions first … first + n − 1, with the dtype and device of `like`.

    They depend on the seed and the position alone.  Devices agree to a relative error of 1e-12 in float64.

    Args:
        seed: from 0 to 2^62, such as a draw of `torch.randint`.

    Examples:
        >>> like = torch.zeros(0)
        >>> torch.equal(counter_normals(5, 3, 5, like), counter_normals(5, 0, 8, like)[3:])
        True
    """
    out = torch.empty(n, dtype=like.dtype, device=like.device)
    if like.device.type == "cpu":
        from mfrec.kernels.normals import set_normals  # numba is imported where a kernel runs

        set_normals(seed, first, out.numpy())
        return out
    for start in range(0, n, BLOCK):
        end = min(start + BLOCK, n)
        out[start:end] = portable_normals(seed, torch.arange(first + start, first + end, device=like.device))
    return out


def counter_gammas(seed: int, positions: Tensor, shapes: Tensor) -> Tensor:
    """(n,) float64 draws from Gamma(shape, 1), each a function of the seed, its position and its shape.

    Args:
        seed: from 0 to 2^62.
        positions: (n,) int64 on the CPU, where the draws are made.
        shapes: (n,) float64 of at least 1, likewise.
    """
    from mfrec.kernels.gammas import set_gammas  # numba is imported where a kernel runs

    out = torch.empty(len(positions), dtype=torch.float64)
    set_gammas(seed, positions.numpy(), shapes.numpy(), out.numpy())
    return out


def portable_normals(seed: int, positions: Tensor) -> Tensor:
    """(n,) float64 normal numbers of positions, (n,) int64, in torch's operations: the kernel's definition."""
    number = positions * INCREMENT + seed
    number = (number ^ _shifted(number, 30)) * FIRST_MULTIPLIER
    number = (number ^ _shifted(number, 27)) * SECOND_MULTIPLIER
    number = number ^ _shifted(number, 31)
    # In (−½, ½), symmetric and without its ends.
    q = (_shifted(number, 12).double() + 0.5) * 2.0**-52 - 0.5
    middle = q * _ratio(MIDDLE, q.square())
    tails = torch.copysign(_ratio(TAILS, (-2 * (0.5 - q.abs()).log()).sqrt()), q)
    # Both for every number: to choose first would need their count, which a GPU would have to be waited for.
    return torch.where(q.abs() > 0.5 - TAIL, tails, middle)


def _shifted(number: Tensor, bits: int) -> Tensor:
    """int64 shifted to the right as if unsigned."""
    return (number >> bits).bitwise_and((1 << 64 - bits) - 1)


def _ratio(polynomials: tuple[Sequence[float], Sequence[float]], r: Tensor) -> Tensor:
    return _horner(polynomials[0], r) / _horner(polynomials[1], r)


def _horner(coefficients: Sequence[float], r: Tensor) -> Tensor:
    value = torch.full_like(r, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * r + coefficient
    return value

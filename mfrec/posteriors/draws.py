"""Random draws that are the same on all devices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def standard_normal(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws from N(0, 1) with the dtype and device of `like`, made on the CPU, so that all devices draw alike."""
    return torch.randn(tuple(shape), generator=generator, dtype=like.dtype).to(like.device)


def standard_gamma(shape: Tensor, generator: torch.Generator) -> Tensor:
    """A draw from Gamma(shape, 1) for each number of `shape`, in float64, on its device."""
    # torch draws gammas from its global generator alone; numpy takes a seed.
    seed = int(torch.randint(2**62, (), generator=generator))
    numpy_generator = np.random.default_rng(seed)
    drawn = numpy_generator.standard_gamma(shape.cpu().numpy())
    return torch.as_tensor(drawn, dtype=torch.float64).to(shape.device)

"""Bootstrap intervals of means over users."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

# Resampled numbers held at a time: 2^22 in float64 are 32 MiB, and the positions drawn for them at most as much.
RESAMPLED = 2**22


def bootstrap_intervals(
    values: Mapping[str, Tensor], resamples: int = 1000, generator: torch.Generator | None = None
) -> dict[str, tuple[float, float]]:
    """(low, high) of each metric's mean over users: the 95 % percentile interval over users drawn with replacement.

    All metrics share the draws of users.  The interval does not cover the variation between splits or between training
    runs.  (Efron & Tibshirani 1993, "An introduction to the bootstrap", section 13.3.)

    Args:
        values: (n_users,) for each metric, the same users in each.
        resamples: how often to draw the users.
        generator: the source of randomness, on the CPU; seeded with 0 by default.

    Returns:
        the interval of each metric, NaN for fewer than two users.
    """
    import scipy.stats  # takes a third of a second, which only this function needs

    numbers = torch.stack(list(values.values())).double().cpu().numpy()
    if numbers.shape[1] < 2:
        return dict.fromkeys(values, (float("nan"), float("nan")))
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    interval = scipy.stats.bootstrap(
        (numbers,),
        np.mean,
        axis=-1,
        n_resamples=resamples,
        batch=max(1, RESAMPLED // numbers.size),
        confidence_level=0.95,
        method="percentile",
        # The argument's name in scipy before 1.15, which later versions accept too.
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return dict(zip(values, zip(interval.low.tolist(), interval.high.tolist(), strict=True), strict=True))

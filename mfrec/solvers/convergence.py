"""Convergence of Markov chains: the potential scale reduction R̂, and the effective sample size.

Each chain is cut in halves, so that m sequences of n draws also show the drift of a single chain.  With B/n the
variance between the means of the sequences and W the mean variance within them:

    var⁺ = (n − 1)/n W + B/n        R̂ = √(var⁺ / W)        near 1 once the sequences cover the same distribution
    n_eff = m n / (1 + 2 Σ_t ρ_t)   ρ_t = 1 − (W − mean autocovariance at lag t) / var⁺

The sum over ρ_t ends at the first pair of lags whose sum is not positive, and the pairs are made to descend.

    Geyer 1992, "Practical Markov chain Monte Carlo"

    Gelman, Carlin, Stern, Dunson, Vehtari & Rubin 2013, "Bayesian data analysis", section 11.4 and 11.5
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# The fewest draws of a chain whose halves have a variance and an autocorrelation worth looking at.
MIN_DRAWS = 8

Values = npt.NDArray[np.float64]


class Traces:
    """Some numbers of each draw of each chain.

    Attributes:
        draws: (n_chains, n_numbers) for each sweep.
    """

    def __init__(self) -> None:
        self.draws: list[Tensor] = []

    def diagnostics(self) -> dict[str, float]:
        """{"r_hat": the largest R̂, "effective_samples": the smallest n_eff} over the numbers; empty at first."""
        if len(self.draws) < MIN_DRAWS:
            return {}
        traces = torch.stack(self.draws).double().numpy()
        sequences = split_halves(traces)
        return {
            "r_hat": float(scale_reduction(sequences).max()),
            "effective_samples": float(effective_samples(sequences).min()),
        }

    def state_dict(self) -> dict[str, Any]:
        """The draws as one tensor, if there are any."""
        return {"draws": torch.stack(self.draws) if self.draws else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict()`."""
        self.draws = [] if state["draws"] is None else list(state["draws"].cpu())


def split_halves(traces: Values) -> Values:
    """(n // 2, 2 m, k) the halves of m chains of n draws of k numbers, (n, m, k), without the middle of an odd n."""
    n = len(traces) // 2
    halves: Values = np.concatenate([traces[:n], traces[len(traces) - n :]], axis=1)
    return halves


def scale_reduction(sequences: Values) -> Values:
    """(k,) R̂ of m sequences of n draws, (n, m, k); 1 for numbers that never change.

    Examples:
        >>> apart = np.array([[0.0, 9.0], [1.0, 10.0]])[:, :, None]
        >>> scale_reduction(apart).round(2).tolist()  # W = 0.5, B/n = 40.5
        [9.03]
    """
    within, total = _variances(sequences)
    ratio: Values = np.sqrt(np.divide(total, within, out=np.ones_like(total), where=within > 0))
    return ratio


def effective_samples(sequences: Values) -> Values:
    """(k,) n_eff of m sequences of n draws, (n, m, k); at most m n."""
    n, m, _ = sequences.shape
    within, total = _variances(sequences)
    padded = np.fft.rfft(sequences - sequences.mean(0), 2 * n, axis=0)
    covariances = np.fft.irfft(np.abs(padded) ** 2, axis=0)[:n].mean(1) / n
    changes = total > 0
    correlations = 1 - np.divide(within - covariances, total, out=np.zeros_like(covariances), where=changes)
    correlations[0] = 1
    pairs = correlations[: n - n % 2].reshape(n // 2, 2, -1).sum(1)
    # From the first pair that is not positive on, all count as 0.
    pairs = np.where(np.logical_and.accumulate(pairs > 0), pairs, 0)
    time = 2 * np.minimum.accumulate(pairs, axis=0).sum(0) - 1
    sizes: Values = np.where(changes, m * n / np.maximum(time, 1), m * n)
    return sizes


def _variances(sequences: Values) -> tuple[Values, Values]:
    """(k,) W and var⁺."""
    n = len(sequences)
    within = sequences.var(0, ddof=1).mean(0)
    between = sequences.mean(0).var(0, ddof=1)
    return within, (n - 1) / n * within + between

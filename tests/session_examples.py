"""Ratings in sessions and draws of session biases, for the tests of posteriors, fold-in and solvers."""

from __future__ import annotations

import torch
from posterior_examples import samples_of, seeded

from mfrec.data.ratings import Ratings
from mfrec.model.factorization import MatrixFactorization
from mfrec.posteriors.samples import PosteriorSamples


def with_times(ratings: Ratings, seed: int = 4) -> Ratings:
    """The ratings at seconds 0 to 59, with ties and gaps."""
    r, seconds = ratings, torch.randint(0, 60, (len(ratings),), generator=seeded(seed))
    return Ratings(r.users, r.items, r.values, r.n_users, r.n_items, seconds, r.weights)


def samples_with_sessions(
    model: MatrixFactorization, n: int = 3, homoscedastic: bool = False, freedom: float | None = 4.0
) -> PosteriorSamples:
    """n draws that have nothing in common, of a model with sessions."""
    assert model.sessions is not None
    samples, n_gaps = samples_of(model, n, homoscedastic), len(model.sessions.sessions.gaps)
    samples.session_freedom = freedom
    precision = 0.5 + torch.rand(n, n_gaps, generator=seeded(9)).double()
    samples.draws = [
        draw._replace(session_precision=of_gaps) for draw, of_gaps in zip(samples.draws, precision, strict=True)
    ]
    return samples

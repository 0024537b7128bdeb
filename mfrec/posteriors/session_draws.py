"""Draws of session biases and of their prior, in a Gibbs sampler.

    e_n ~ N(Σ_l b(l, g_l(n)), 1/(α v_n))        the errors of the ratings without the effect of the sessions
    b_g ~ N(0, 1/(λ_l ω_g))                     a session with the l-th gap
    ω_g ~ Gamma(ν/2, ν/2)                       so that b_g ~ t with ν degrees of freedom and scale λ_l^−½, given λ_l
    λ_l ~ Gamma(a, b)

Most sessions say nothing beyond the bias of their user, and a few say much, hence the t distribution.  It is a scale
mixture of Gaussians (Geweke 1993, "Bayesian treatment of the independent Student-t linear model").
With G_l sessions by the l-th gap, and e_n less the effect of the other gaps, the conditionals are

    b_g ~ N(α Σ v e / p_g, 1/p_g),    p_g = α Σ_{n∈g} v_n + λ_l ω_g
    ω_g ~ Gamma((ν + 1)/2, (ν + λ_l b_g²)/2)
    λ_l ~ Gamma(a + G_l/2, b + ½ Σ_g ω_g b_g²)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.draws import standard_gamma, standard_normal
from mfrec.model.session_biases import SessionBiases
from mfrec.posteriors.base import PRIOR_RATE, PRIOR_SHAPE
from mfrec.sums import ordered_sum


class SessionDraws:
    """The session biases of a chain with their prior.

    Args:
        biases: whose parameter `draw` changes in place.
        ratings: the training ratings.
        freedom: ν, above 2; None for Gaussian biases, ω = 1.
        std: of the ratings, in stars, to start from.

    Attributes:
        precision: λ of each gap, (n_gaps,).
        scales: ω of each session, (n_sessions, 1).
    """

    def __init__(self, biases: SessionBiases, ratings: Ratings, freedom: float | None, std: float = 1.0) -> None:
        self.biases, self.ratings, self.freedom = biases, ratings, freedom
        weight = biases.bias.weight
        self.precision = torch.full((len(biases.sessions.gaps),), 20 / std**2, dtype=weight.dtype, device=weight.device)
        self.scales = torch.ones_like(weight, requires_grad=False)

    @torch.no_grad()
    def draw(
        self, errors: Tensor, weights: Tensor, alpha: float, generator: torch.Generator, *, learn: bool = True
    ) -> None:
        """Draw b and ω of the sessions of one gap after another, and λ of the gap.

        Args:
            errors: (n_ratings,) ratings less offset, products and session biases.
            weights: (n_ratings,) v.
            learn: whether to draw λ; new users' sessions have the λ of the training.
        """
        for level, rows in enumerate(self.biases.sessions.slices):
            bias = self.biases.bias.weight[rows]
            seen = alpha * self.biases.gap_sums(self.ratings, level, weights)
            pull = alpha * self.biases.gap_sums(self.ratings, level, weights * errors)
            precision = seen + self.precision[level] * self.scales[rows]
            mean = (pull + seen * bias) / precision
            drawn = mean + standard_normal(mean.shape, mean, generator) * precision.rsqrt()
            errors = errors - self.biases.gap_effect(self.ratings, level, drawn - bias)
            bias.copy_(drawn)
            self._draw_scales(level, drawn.double(), rows, generator)
            if learn:
                self._draw_precision(level, drawn.double(), rows, generator)

    def _draw_scales(self, level: int, bias: Tensor, rows: slice, generator: torch.Generator) -> None:
        if self.freedom is not None:
            rate = 0.5 * (self.freedom + self.precision[level].double() * bias.square())
            shape = torch.full(rate.shape, 0.5 * (self.freedom + 1), dtype=torch.float64)
            self.scales[rows] = (standard_gamma(shape, generator, rate.device) / rate).to(self.scales.dtype)

    def _draw_precision(self, level: int, bias: Tensor, rows: slice, generator: torch.Generator) -> None:
        squares = ordered_sum(self.scales[rows].double() * bias.square())
        shape = torch.tensor(PRIOR_SHAPE + 0.5 * len(bias), dtype=torch.float64)
        drawn = standard_gamma(shape, generator, squares.device) / (PRIOR_RATE + 0.5 * squares)
        self.precision[level] = drawn.to(self.precision.dtype)

    @torch.no_grad()
    def rescale(self, scale: float) -> None:
        """Multiply the biases by a number, and their standard deviation in the prior too."""
        self.biases.bias.weight *= scale
        self.precision = self.precision / scale**2

    def state_dict(self) -> dict[str, Any]:
        """λ and ω; b belongs to the model."""
        return {"precision": self.precision.clone(), "scales": self.scales.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict()`, on the device of the biases."""
        device = self.scales.device
        self.precision, self.scales = state["precision"].to(device).clone(), state["scales"].to(device).clone()

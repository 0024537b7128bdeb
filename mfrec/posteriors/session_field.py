"""The mean field of session biases, in variational Bayes.

The model is that of `mfrec.posteriors.session_draws`, with Gaussian biases (ω = 1) or t-distributed ones.  Independent
Gaussians b_g ~ N(m_g, s_g) and Gammas ω_g ~ Gamma(A, B_g) approximate the posterior.  With e_n the mean errors, less
those of the other gaps, each update maximizes the bound L (`mfrec.solvers.variational`) with all else fixed:

    s_g = 1/(α Σ_{n∈g} v_n + λ_l w_g),    m_g = α s_g Σ v e       w_g = E ω_g = A/B_g
    A = (ν + 1)/2,    B_g = (ν + λ_l (m_g² + s_g))/2
    λ_l = G_l / Σ_g w_g (m_g² + s_g)

E[e²] of a rating has the variances s of its sessions more, and L has

    ½ Σ_g (log λ_l + E log ω_g − λ_l w_g (m_g² + s_g) + log s_g + 1) − Σ_g KL(Gamma(A, B_g) ‖ Gamma(ν/2, ν/2))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.model.session_biases import SessionBiases, prior_variances
from mfrec.sums import ordered_sum


class SessionField:
    """Independent Gaussians whose means are the session biases, and their prior.

    Args:
        biases: the means, changed in place.
        freedom: ν, above 2; None for Gaussian biases.
        precision: λ of each gap, (n_gaps,).

    Attributes:
        variances: s, (n_sessions, 1).
        rates: B, (n_sessions, 1).
    """

    def __init__(self, biases: SessionBiases, freedom: float | None, precision: Tensor) -> None:
        self.biases, self.freedom, self.precision = biases, freedom, precision
        weight = biases.bias.weight.detach()
        self.variances = 1 / self._of_sessions(precision)
        self.rates = torch.full_like(weight, 1.0 if freedom is None else 0.5 * (freedom + 1))

    def _of_sessions(self, of_gaps: Tensor) -> Tensor:
        """(n_sessions, 1) the number of each session's gap, given one for each gap, (n_gaps,)."""
        slices = self.biases.sessions.slices
        parts = [number.expand(rows.stop - rows.start) for number, rows in zip(of_gaps, slices, strict=True)]
        return torch.cat(parts)[:, None]

    @property
    def _shape(self) -> float:
        """A."""
        return 1.0 if self.freedom is None else 0.5 * (self.freedom + 1)

    @property
    def scales(self) -> Tensor:
        """(n_sessions, 1) E ω; 1 for Gaussian biases."""
        return self._shape / self.rates

    @torch.no_grad()
    def update(self, ratings: Ratings, errors: Tensor, weights: Tensor, alpha: float) -> None:
        """Maximize L in the biases of one gap after another, and in ω.

        Args:
            ratings: those that the sessions are of.
            errors: (n_ratings,) ratings less their mean predictions.
            weights: (n_ratings,) v.
        """
        evidence = alpha * self.biases.sums(ratings, weights)
        self.variances = 1 / (evidence + self._of_sessions(self.precision) * self.scales)
        for level, rows in enumerate(self.biases.sessions.slices):
            means = self.biases.bias.weight[rows]
            pull = alpha * self.biases.gap_sums(ratings, level, weights * errors) + evidence[rows] * means
            change = self.variances[rows] * pull - means
            errors = errors - self.biases.gap_effect(ratings, level, change)
            means += change
        if self.freedom is not None:
            self.rates = 0.5 * (self.freedom + self._of_sessions(self.precision) * self._squares())

    def _squares(self) -> Tensor:
        """(n_sessions, 1) m² + s."""
        return self.biases.bias.weight.detach().square() + self.variances

    @torch.no_grad()
    def learn(self) -> None:
        """Maximize L in λ."""
        squares = (self.scales * self._squares()).double()[:, 0]
        parts = [squares[rows] for rows in self.biases.sessions.slices]
        self.precision = torch.stack([len(part) / ordered_sum(part).clamp_min(1e-12) for part in parts]).to(
            self.precision
        )

    def effect_variances(self, ratings: Ratings) -> Tensor:
        """(n_ratings,) the variance that the session biases add to each rating's prediction."""
        return self.biases.effect(ratings, self.variances)

    def variances_at(self, users: Tensor, timestamps: Tensor | None) -> Tensor:
        """(n,) the variance that the session biases add to a rating by each user at each time; in no session, or
        without a time, that of the prior.
        """
        prior = prior_variances(self.precision, self.freedom)
        if timestamps is None or not len(self.variances):
            return prior.sum().expand(len(users))
        sessions = self.biases.sessions.at(users, timestamps).to(prior.device)
        variances = self.variances[sessions.clamp_min(0), 0]
        return torch.where(sessions >= 0, variances, prior[:, None]).sum(0)

    @torch.no_grad()
    def bound(self) -> Tensor:
        """() the part of L that belongs to the session biases and their prior, in float64."""
        λ, s = self._of_sessions(self.precision).double(), self.variances.double()
        terms = λ.log() - λ * (self.scales * self._squares()).double() + s.log() + 1
        bound = 0.5 * ordered_sum(terms)
        if self.freedom is None:
            return bound
        shape, half, rates = s.new_full((), self._shape), s.new_full((), 0.5 * self.freedom), self.rates.double()
        bound = bound + 0.5 * ordered_sum(torch.digamma(shape) - rates.log())
        # A GPU would have to be waited for to check the arguments.
        scales = torch.distributions.Gamma(shape, rates, validate_args=False)
        prior = torch.distributions.Gamma(half, half, validate_args=False)
        return bound - ordered_sum(torch.distributions.kl_divergence(scales, prior))

    def state_dict(self) -> dict[str, Any]:
        """λ, s, B and ν; the means are the model's."""
        return {
            "freedom": self.freedom,
            "precision": self.precision.clone(),
            "variances": self.variances.clone(),
            "rates": self.rates.clone(),
        }

    @classmethod
    def from_state(cls, biases: SessionBiases, state: Mapping[str, Any]) -> SessionField:
        """The field that returned this `state_dict()`, around its means."""
        device = biases.bias.weight.device
        field = cls(biases, state["freedom"], state["precision"].to(device).clone())
        field.variances, field.rates = state["variances"].to(device).clone(), state["rates"].to(device).clone()
        return field

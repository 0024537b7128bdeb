"""Session biases: what the ratings of a session have in common, an effect on the targets.

    ŷ(n) = θ̃_j · x̃_i + μ_i + Σ_l b(l, g_l(n))

g_l(n) is the session of rating n with the l-th gap (`mfrec.data.sessions`).  S_l is the pattern of ratings × sessions
by this gap, and S has the columns of all.  The effect of all ratings is S b, and the gradient in b is Sᵀ of the errors.
Solvers subtract S b from the targets, so that the products of the factors stay as they are.  A rating in no session has
the effect 0, the prior's mean.

(Koren 2010, "Collaborative filtering with temporal dynamics", has a bias for each user and day.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mfrec.data.ratings import Ratings
from mfrec.data.sessions import Sessions
from mfrec.model.entity import embedding
from mfrec.sparse import CSRPattern, spmm

# The name of the parameter in a `MatrixFactorization`.
SESSION_BIAS = "sessions.bias.weight"


class SessionBiases(nn.Module):
    """A bias for each session.

    Args:
        sessions: those of the training ratings; they do not belong to the module's state.

    Attributes:
        bias: embedding of shape (n_sessions, 1), initially 0.
    """

    def __init__(self, sessions: Sessions, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.sessions = sessions
        self.bias = embedding(torch.zeros(len(sessions), 1, dtype=dtype))

    def with_bias(self, bias: Tensor) -> SessionBiases:
        """The same sessions with other biases, (n_sessions, 1)."""
        biases = SessionBiases(self.sessions, bias.dtype).to(bias.device)
        with torch.no_grad():
            biases.bias.weight.copy_(bias)
        return biases

    def extra_repr(self) -> str:
        return f"{len(self.sessions):,} sessions by gaps of {', '.join(map(str, self.sessions.gaps))} s"

    def effect(self, ratings: Ratings, bias: Tensor | None = None) -> Tensor:
        """(n_ratings,) S b; differentiable in b.

        Args:
            bias: b, (n_sessions, 1), instead of the module's.

        Raises:
            InputError: the ratings have no timestamps.
        """
        bias = self.bias.weight if bias is None else bias
        effects = [self.gap_effect(ratings, level, bias[rows]) for level, rows in enumerate(self.sessions.slices)]
        return sum(effects[1:], effects[0])

    def gap_effect(self, ratings: Ratings, level: int, bias: Tensor) -> Tensor:
        """(n_ratings,) S_l b: the effect of the sessions of one gap, whose biases are (n_sessions of the gap, 1)."""
        pattern = self.sessions.patterns(ratings)[level]
        effect: Tensor = _SessionProduct.apply(bias, pattern)  # type: ignore[no-untyped-call]
        return effect

    def sums(self, ratings: Ratings, values: Tensor) -> Tensor:
        """(n_sessions, 1) Sᵀ v: the sum of values, (n_ratings,), over the ratings of each session."""
        return torch.cat([_sums(pattern, values) for pattern in self.sessions.patterns(ratings)])

    def gap_sums(self, ratings: Ratings, level: int, values: Tensor) -> Tensor:
        """(n_sessions of the gap, 1) S_lᵀ v: the sums over the sessions of one gap."""
        return _sums(self.sessions.patterns(ratings)[level], values)

    def at(self, users: Tensor, timestamps: Tensor, bias: Tensor | None = None) -> Tensor:
        """(n,) the effect on a rating by each user, (n,) indices, at each time, (n,) seconds since 1970."""
        weight = self.bias.weight if bias is None else bias
        sessions = self.sessions.at(users, timestamps).to(weight.device)
        return weight[sessions.clamp_min(0), 0].where(sessions >= 0, 0).sum(0)


def prior_variances(precision: Tensor, freedom: float | None) -> Tensor:
    """(n_gaps,) the variance of a session's bias under the prior: ν/((ν − 2) λ), or 1/λ if it is Gaussian.

    Args:
        precision: λ of each gap, (n_gaps,).
        freedom: ν, the degrees of freedom of a t distribution, above 2; None for a Gaussian.
    """
    return (1.0 if freedom is None else freedom / (freedom - 2)) / precision


def _sums(pattern: CSRPattern, values: Tensor) -> Tensor:
    return spmm(pattern.T, values.new_ones(pattern.n_entries), values[:, None])


class _SessionProduct(torch.autograd.Function):
    """S_l b; its backward pass is S_lᵀ."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, pattern: CSRPattern) -> Tensor:
        ctx.pattern = pattern
        return spmm(pattern, bias.new_ones(pattern.n_entries), bias)[:, 0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _sums(ctx.pattern, grad), None

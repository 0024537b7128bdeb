"""A model of ordinal ratings: its scores lie on the scale of a normal latent, and its predictions are expected ratings.

    P(y = level k) = Φ((γ_k − m)/σ) − Φ((γ_{k−1} − m)/σ)        m = θ̃_j · x̃_i + effects,  σ² = 1/(τ_j τ_i) + V
    E[y] = Σ_k level_k P(y = level k) = level_K − Σ_{k<K} (level_{k+1} − level_k) Φ((γ_k − m)/σ)

γ are cutpoints, with γ_0 = −∞ and γ_K = ∞.  τ are the precision scales of the user and the item, and V is the mean
variance of the scores in the posterior.  If m and V are the moments of a normal score, then these are the mean
probabilities over its draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mfrec.model.factorization import MatrixFactorization
from mfrec.model.level_likelihood import interval_probability, normal_cdf

# Its state besides that of `MatrixFactorization`.
BUFFERS = ("levels", "cutpoints", "user_scales", "item_scales", "spread")


class OrdinalFactorization(MatrixFactorization):
    """A factorization whose scores are mapped to expected ratings.

    Args:
        model: the scores' model, whose parameters are shared.
        levels: (K,) the possible ratings, ascending.
        cutpoints: (K − 1,) γ, ascending.
        user_scales, item_scales: τ of users and of items, (n_users, 1) and (n_items, 1).
        spread: V, the mean variance of the scores.
    """

    levels: Tensor
    cutpoints: Tensor
    user_scales: Tensor
    item_scales: Tensor
    spread: Tensor

    def __init__(
        self,
        model: MatrixFactorization,
        *,
        levels: Tensor,
        cutpoints: Tensor,
        user_scales: Tensor,
        item_scales: Tensor,
        spread: Tensor | float,
    ) -> None:
        super().__init__(
            model.n_users,
            model.n_items,
            0,
            biases=False,
            offset=model.offset,
            nonnegative=model.nonnegative,
            init="zeros",
            dtype=model.dtype,
        )
        self.rank, self.biases, self.rating_range = model.rank, model.biases, model.rating_range
        self.users, self.items, self.sessions = model.users, model.items, model.sessions
        for name, value in zip(BUFFERS, (levels, cutpoints, user_scales, item_scales, spread), strict=True):
            self.register_buffer(name, torch.as_tensor(value).to(self.device, self.dtype))

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], **options: Any) -> OrdinalFactorization:
        """The model with this `state_dict()`; options are those of `MatrixFactorization.from_state_dict`."""
        scores = {name: tensor for name, tensor in state.items() if name not in BUFFERS}
        return cls(MatrixFactorization.from_state_dict(scores, **options), **{name: state[name] for name in BUFFERS})

    @classmethod
    def from_augmented_factors(cls, users: Tensor, items: Tensor, **options: Any) -> MatrixFactorization:
        """A `MatrixFactorization`, not ordinal: other factors need other precision scales."""
        return MatrixFactorization.from_augmented_factors(users, items, **options)

    def scores_model(self) -> MatrixFactorization:
        """The model without features that predicts the scores m."""
        return self.from_augmented_factors(
            *self.augmented_factors(),
            biases=self.biases,
            offset=self.offset,
            rating_range=self.rating_range,
            sessions=self.sessions,
        )

    def to_ratings(self, scores: Tensor, users: Tensor, items: Tensor) -> Tensor:
        """E[y] of scores of any shape; indices of users and items broadcast to it."""
        inverse = self._variances(users, items).rsqrt()
        ratings = self.levels[-1]
        for cutpoint, gap in zip(self.cutpoints, self.levels.diff(), strict=True):
            ratings = ratings - gap * normal_cdf((cutpoint - scores) * inverse)
        return ratings

    def level_probabilities(
        self, scores: Tensor, users: Tensor, items: Tensor, variance: Tensor | float = 0.0
    ) -> Tensor:
        """(…, K) the probability of each level for scores of any shape, in float64; they add up to 1.

        Args:
            users, items: indices that broadcast to the scores.
            variance: of the scores, besides V; broadcasts to them.
        """
        std = (self._variances(users, items).double() + variance).sqrt()
        z = (self.cutpoints.double() - scores.double()[..., None]) / std[..., None]
        end = torch.full_like(z[..., :1], torch.inf)
        return interval_probability(torch.cat([-end, z], -1), torch.cat([z, end], -1))

    def _variances(self, users: Tensor, items: Tensor) -> Tensor:
        """σ² of pairs of indices."""
        return 1 / (self.user_scales[users, 0] * self.item_scales[items, 0]) + self.spread

"""A Markov chain with an ordinal likelihood: a sweep of the Gaussian one, with latents in place of the ratings.

The mathematics of cutpoints, latents and the scale of all scores are those of `mfrec.solvers.ordinal`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.model.entity import USER, Term
from mfrec.model.factorization import MatrixFactorization
from mfrec.solvers.gibbs_chain import Chain
from mfrec.solvers.ordinal import OrdinalLatents
from mfrec.solvers.registry import GibbsOptions
from mfrec.sparse import sddmm


class OrdinalChain(Chain):
    """A chain whose targets are latents z, with α = 1.

    Args:
        model: its offset is removed: the cutpoints take its place.

    Attributes:
        latents: the levels, the cutpoints, and their draws.
    """

    def __init__(
        self, model: MatrixFactorization, ratings: Ratings, options: GibbsOptions, generator: torch.Generator
    ) -> None:
        model.offset = None
        super().__init__(model, ratings, options, generator)
        self.latents = OrdinalLatents(ratings.values, generator)
        self.z = torch.zeros_like(ratings.values)

    def _starting_std(self) -> float:
        return 1.0

    def _observed(self) -> Tensor:
        return self.z

    def _draw_alpha(self, squares: Tensor) -> float:
        return 1.0

    @torch.no_grad()
    def sweep(self) -> None:
        """Draw the cutpoints with the scale of the scores, the latents, and then all that a Gaussian chain draws."""
        eta, weights = self._scores(), self._weights()
        scale = self.latents.draw_cutpoints(eta, weights, list(self._precisions()))
        if scale != 1:
            self._rescale(scale)
            eta = scale * eta
        self.z = self.latents.draw_latents(eta, weights).to(eta.dtype)
        self._retarget()
        super().sweep()

    def traced(self, users: Tensor, items: Tensor) -> Tensor:
        """(n,) the scores less the mean cutpoint, since a constant in both changes no probability."""
        scores = super().traced(users, items)
        return scores - float(self.latents.cutpoints.mean())

    def _scores(self) -> Tensor:
        """(n_ratings,) η."""
        scores, sessions = sddmm(self.views[USER].pattern, *self.model.augmented_factors()), self.model.sessions
        return scores if sessions is None else scores + sessions.effect(self.ratings).detach()

    def _precisions(self) -> Iterator[tuple[Tensor, float]]:
        """The precisions λ of all columns, with the power p by which λ changes as s^(−p)."""
        for term, (precision, _) in zip(self.terms, self.priors, strict=True):
            for columns, power in _powers(term):
                yield precision[columns], power
        if self.sessions is not None:
            yield self.sessions.precision, 2.0

    def _rescale(self, scale: float) -> None:
        """Multiply all scores by s: see `mfrec.solvers.ordinal`."""
        for n, term in enumerate(self.terms):
            precision, mean = (tensor.clone() for tensor in self.priors[n])
            weights = self.model.weights(term).clone()
            for columns, power in _powers(term):
                weights[:, columns] *= scale ** (power / 2)
                mean[columns] *= scale ** (power / 2)
                precision[columns] *= scale**-power
            self.model.assign(term, weights)
            self.priors[n] = precision, mean
        if self.sessions is not None:
            self.sessions.rescale(scale)

    def state_dict(self) -> dict[str, Any]:
        """The state besides the model's parameters."""
        return super().state_dict() | {"latents": self.latents.state_dict(), "z": self.z}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict()`, to the same bits; the model's parameters are those of that state."""
        self.latents.load_state_dict(state["latents"])
        self.z = state["z"].to(self.ratings.device)
        super().load_state_dict(state)


def _powers(term: Term) -> Iterator[tuple[slice, float]]:
    """The columns of a term's factors and of its bias, with their powers p: scores are bilinear in factors."""
    for name, columns in term.columns.items():
        yield columns, 1.0 if name == term.factors else 2.0

"""Alternating least squares: users with the items fixed, then items with the users fixed, each a ridge regression.

With X̃ fixed, J splits into one problem per user, quadratic in θ̃_j.  Its minimum is where the gradient is zero, in the
free columns (all but the constant 1):

    (Σ_{i: r(i,j)=1} x̃_i x̃_iᵀ + Λ_j) θ̃_j = Σ_{i: r(i,j)=1} (y_ij − μ_i) x̃_i

`mfrec.model.ridge` solves all rows' problems at once.  With features, the weights of one block after another come
first, and the rows' own factors last, each with all else fixed: effects that features can explain go to the features,
which new rows depend on.

From small factors the strongest directions grow first, and early stopping picks the sweep at which the weak ones,
mostly noise, have not grown yet.  A full solve passes that point within a sweep or two.  Going part of the way,
x + η (x* − x), stops nearer to it, and ends in the same minimum if training goes on.  (On ML-1M the best validation
RMSE is 0.8395 with η = 0.5 and one conjugate-gradient step, 0.844 with full solves, on the same J.)
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from mfrec.errors import InputError
from mfrec.model.entity import ITEM, USER, Term
from mfrec.model.ratings_view import RatingsView, ratings_views, retargeted, solve_term, targets
from mfrec.model.ridge import minimize, minimize_by_columns, minimize_exactly, ridge_problem
from mfrec.solvers.base import Solver
from mfrec.solvers.registry import SOLVERS, ALSOptions


class ALS(Solver):
    """Alternating least squares.

    An epoch moves each entity's rows, and its feature weights, towards the minimum of J with all else fixed.

    Raises:
        InputError: the model has features and is non-negative.
    """

    options: ALSOptions

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if self.model.nonnegative and self.model.has_features:
            needed = {"features", "non-negative"}
            names = [n for n, spec in SOLVERS.items() if spec.supports >= needed and spec.options is not ALSOptions]
            raise InputError(f"als does not support features in a non-negative model; use {', '.join(names)}")
        self.views = ratings_views(self.model, self.ratings)
        self.terms = [
            (term, self.objective.ridge(self.model, self.ratings, term))
            for entity in (USER, ITEM)
            for term in reversed(self.model.terms(entity))
        ]

    @torch.no_grad()
    def epoch(self) -> dict[str, float]:
        for term, ridge in self.terms:
            solve = partial(self._moved, term, ridge)
            (moved,) = solve_term(self.ratings, term, self.views[term.entity], solve)
            self.model.assign(term, moved)
        if self.model.sessions is not None:
            self.objective.minimize_sessions(self.model, self.ratings)
            self.views = retargeted(self.views, *targets(self.model, self.ratings))
        return {}

    def _moved(self, term: Term, ridge: Tensor, view: RatingsView) -> tuple[Tensor]:
        """The rows of the view, or the feature weights, on their way to the minimum."""
        before = self.model.weights(term)
        if self.model.nonnegative:
            weights = minimize_by_columns(ridge_problem(self.model, term, view, ridge), self.model.rank)
        elif self.options.solve == "cholesky" and term.features is None:
            weights = minimize_exactly(ridge_problem(self.model, term, view, ridge))
        else:
            weights, _ = minimize(self.model, term, view, ridge, self.options.cg_steps)
        before = before if term.features is not None else view.of_rows(before)
        return (torch.lerp(before, weights, self.options.relaxation),)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.views = retargeted(self.views, *targets(self.model, self.ratings))

"""A point estimate: the parameters that minimize an objective.

A new row is where the gradient of J in it is zero, with all else fixed: R = Λ for the row's number of ratings, τ = 1
and m = 0.  In a non-negative model it is the minimum over factors of 0 or above, found by passes over the columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mfrec.errors import InputError
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.losses import squared_error
from mfrec.model.objective import Objective
from mfrec.model.ridge import RidgeProblem, minimize_by_columns
from mfrec.model.session_biases import SessionBiases
from mfrec.posteriors.base import Posterior
from mfrec.posteriors.new_rows import Conditional, NewRows, RowStatistics, SolvedRows
from mfrec.sparse import sddmm

# The most passes over the columns of non-negative rows, and the largest change that ends them.
MAX_PASSES, TOLERANCE = 500, 1e-6


class PointEstimate(Posterior):
    """One model, without standard deviations.

    Args:
        model: the estimate.
        objective: the cost that the model minimizes.
    """

    kind: ClassVar[str] = "point-estimate"

    def __init__(self, model: MatrixFactorization, objective: Objective) -> None:
        self.model, self.objective = model, objective

    def mean_model(self) -> MatrixFactorization:
        """The model itself."""
        return self.model

    def conditionals(self, new_rows: NewRows, generator: torch.Generator | None = None) -> Iterator[Conditional]:
        """The minimum of J over the new rows.

        Raises:
            InputError: the objective has another loss than the squared error.
        """
        if self.objective.loss is not squared_error and len(new_rows.view.targets):
            raise InputError("fold-in solves least squares; train with the squared error to fold in new ratings")
        solver = NonNegativeMinimum if self.model.nonnegative else Minimum
        yield solver(new_rows, self.objective)

    def folded(self, new_rows: NewRows, solved: Iterable[SolvedRows]) -> PointEstimate:
        """The point estimate of the new rows and their partners."""
        (rows,) = solved
        return PointEstimate(new_rows.model(rows.mean, rows.partners, rows.session_bias), self.objective)

    def state_dict(self) -> dict[str, Any]:
        """The kind alone: the parameters are the model's state."""
        return {"kind": self.kind}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], model: MatrixFactorization, objective: Objective) -> PointEstimate:
        """The estimate around its model."""
        return cls(model, objective)


class Minimum(Conditional):
    """New rows at the minimum of J."""

    def __init__(self, new_rows: NewRows, objective: Objective) -> None:
        sessions = None if new_rows.sessions is None else SessionBiases(new_rows.sessions, new_rows.trained.dtype)
        super().__init__(new_rows, sessions=None if sessions is None else sessions.to(new_rows.trained.device))
        self.session_l2 = objective.session_l2
        term = new_rows.empty_model.terms(new_rows.entity)[0]
        self.penalties = objective.ridge(new_rows.empty_model, new_rows.ratings, term)

    def ridge(self, rows: slice, tau: Tensor) -> Tensor:
        """Λ of the rows."""
        return self.penalties[rows, self.new_rows.columns]

    def solve_block(self, statistics: RowStatistics) -> SolvedRows:
        """θ = (A + Λ)⁻¹ b."""
        tau = torch.ones_like(statistics.squares)
        theta, _ = statistics.minimum(tau, self.ridge(statistics.rows, tau))
        return SolvedRows(theta, theta, torch.zeros_like(theta), tau, self.partners)

    @torch.no_grad()
    def solve_sessions(self, errors: Tensor, tau: Tensor) -> None:
        """b = Σ w e / (Σ w + λ_s) over a session's ratings, for the sessions of one gap after another."""
        assert self.sessions is not None
        ratings, weights = self.new_rows.ratings, self.view.weighted(torch.ones_like(errors))
        for level, rows in enumerate(self.sessions.sessions.slices):
            bias = self.sessions.bias.weight[rows]
            sums = self.sessions.gap_sums(ratings, level, self.view.weighted(errors)) - self.session_l2 * bias
            change = sums / (self.sessions.gap_sums(ratings, level, weights) + self.session_l2)
            errors = errors - self.sessions.gap_effect(ratings, level, change)
            bias += change


class NonNegativeMinimum(Minimum):
    """New rows at the minimum of J over factors of 0 or above."""

    def solve_rows(self) -> SolvedRows:
        """All new rows, by passes over their columns."""
        if not self.has_own_rows:
            return super().solve_rows()
        theta = torch.zeros_like(self.base)
        for _ in range(MAX_PASSES):
            residuals = self.residuals - sddmm(self.view.pattern, theta, self.partners)
            problem = RidgeProblem(self.view, residuals, theta, self.partners, self.penalties)
            before, theta = theta, minimize_by_columns(problem, self.new_rows.trained.rank)
            if float((theta - before).abs().max()) < TOLERANCE:
                break
        rows, zeros = self.base + theta, torch.zeros_like(theta)
        return SolvedRows(rows, rows, zeros, zeros[:, :1] + 1, self.partners)

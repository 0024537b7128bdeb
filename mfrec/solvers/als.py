"""Alternating least squares: users with the items fixed, then items with the users fixed, each a ridge regression.

With X̃ fixed, J falls apart into one problem a user (the texts' "cost of one user with the items fixed"), quadratic in
θ̃_j.  Its minimum is where the gradient is zero, in the free columns (all but the constant 1):

    (Σ_{i: r(i,j)=1} x̃_i x̃_iᵀ + Λ_j) θ̃_j = Σ_{i: r(i,j)=1} (y_ij − μ_i) x̃_i

`ridge.py` solves all rows' problems at once.  With features, the weights of one block after another come first, and the
rows' own factors last, each with all else fixed: what features can explain is theirs, which is what new rows live on.

From small factors the strongest directions grow first, and early stopping picks the sweep at which the weak ones,
mostly noise, have not grown yet.  A full solve passes that point within a sweep or two; going part of the way,
x + η (x* − x), stops nearer to it, and ends in the same minimum if it is let.  (On ML-1M the best validation RMSE is
0.8395 with η = 0.5 and one conjugate-gradient step, 0.844 with full solves, on the same J: what SGD has over ALS is
that it is slow.)
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError, unknown
from mfrec.model.factorization import ITEM, USER, MatrixFactorization
from mfrec.model.objective import Objective, squared_error
from mfrec.model.ridge import minimize_by_cg, minimize_by_columns, minimize_exactly, problem, sides_of


class ALS:
    """Alternating least squares.

    An epoch brings each side's rows, and feature weights, to the minimum of J while all else is fixed.

    Args:
        solve: cg, or cholesky, which solves rows exactly (feature weights are always solved by cg).
        cg_steps: conjugate-gradient steps a half-sweep; each costs what half a gradient does.
        relaxation: η in (0, 1], how much of the way to the minimum is gone; 1 goes all of it.

    Raises:
        InputError: solve is unknown, cg_steps or relaxation are out of range, the loss is not the squared error, or
            feature weights are to stay non-negative.
    """

    space: ClassVar[dict[str, tuple[float, float, str]]] = {
        "l2": (0.3, 4.0, "log"),
        "relaxation": (0.2, 1.0, "linear"),
        "rank": (8, 128, "log"),
    }
    takes: ClassVar[tuple[str, ...]] = ("features", "non-negative")
    defaults: ClassVar[dict[str, Any]] = {"l2": 1.1, "epochs": 40, "patience": 5}

    def __init__(
        self,
        model: MatrixFactorization,
        ratings: Ratings,
        objective: Objective,
        *,
        generator: torch.Generator | None = None,
        solve: Literal["cg", "cholesky"] = "cg",
        cg_steps: int = 1,
        relaxation: float = 0.5,
    ) -> None:
        if objective.loss is not squared_error:
            raise InputError("als solves least squares, not other losses; use sgd, gd or optim")
        if solve not in ("cg", "cholesky"):
            raise unknown("way to solve", solve, ("cg", "cholesky"))
        if cg_steps < 1:
            raise InputError(f"cg_steps {cg_steps} leave nothing to do; give 1 or more")
        if not 0 < relaxation <= 1:
            raise InputError(f"relaxation {relaxation:g} is not in (0, 1]; 1 goes all the way to the minimum")
        if model.nonnegative and model.featured:
            raise InputError("als keeps factors non-negative, but not the weights of features; use gd or sgd for them")
        self.model, self.ratings, self.objective = model, ratings, objective
        self.solve, self.cg_steps, self.relaxation = solve, cg_steps, relaxation
        self.sides = sides_of(model, ratings)
        self.terms = [
            (term, objective.penalty_table(model, ratings, term))
            for side in (USER, ITEM)
            for term in reversed(model.terms(side))
        ]

    @torch.no_grad()
    def epoch(self) -> dict[str, float]:
        for term, ridge in self.terms:
            regression = problem(self.model, term, self.sides[term.side], self.model.tables(), ridge)
            if self.model.nonnegative:
                table = minimize_by_columns(regression, self.model.rank)
            elif self.solve == "cholesky" and term.features is None:
                table = minimize_exactly(regression)
            else:
                table = minimize_by_cg(regression, self.cg_steps)
            self.model.assign(term, torch.lerp(regression.own, table, self.relaxation))
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

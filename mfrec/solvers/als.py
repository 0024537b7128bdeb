"""Alternating least squares: users with the items fixed, then items with the users fixed, each a ridge regression.

With X̃ fixed, J falls apart into one problem a user (the texts' "cost of one user with the items fixed"), quadratic in
θ̃_j.  Its minimum is where the gradient is zero, in the free columns (all but the constant 1):

    (Σ_{i: r(i,j)=1} x̃_i x̃_iᵀ + Λ_j) θ̃_j = Σ_{i: r(i,j)=1} (y_ij − μ_i) x̃_i

    "cg"         conjugate gradients on every row at once, each row with its own step length; the Hessian times p is
                 matmul(R, sampled_dot(R, p, X̃), X̃) + Λ ∘ p, two products and no k × k matrix; a few steps from where
                 the last sweep ended (Takács, Pilászy & Tikk 2011)
    "cholesky"   the k × k matrices of a block of rows at a time, k sparse products each, solved exactly
                 (Zhou, Wilkinson, Schreiber & Pan 2008, eq. 3)
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mfrec.errors import InputError, unknown
from mfrec.model import MatrixFactorization
from mfrec.objective import Objective, squared_error
from mfrec.ratings import Pattern, Ratings
from mfrec.sparse import matmul, sampled_dot

# Numbers of normal matrices held at a time by cholesky: 2^24 in float32 are 64 MiB.
NORMAL_NUMBERS = 2**24


class ALS:
    """Alternating least squares: each side's rows at the minimum of J while the other side is fixed.

    Args:
        solve: cg or cholesky.
        cg_steps: conjugate-gradient steps a half-sweep; each costs what half a gradient does.
    """

    defaults: ClassVar[dict[str, Any]] = {"epochs": 40, "patience": 3}

    def __init__(
        self,
        model: MatrixFactorization,
        ratings: Ratings,
        objective: Objective,
        *,
        generator: torch.Generator | None = None,
        solve: Literal["cg", "cholesky"] = "cg",
        cg_steps: int = 2,
    ) -> None:
        if objective.loss is not squared_error:
            raise InputError("als solves least squares, not other losses; use sgd, gd or optim")
        if solve not in ("cg", "cholesky"):
            raise unknown("way to solve", solve, ("cg", "cholesky"))
        if cg_steps < 1:
            raise InputError(f"cg_steps {cg_steps} leave nothing to do; give 1 or more")
        self.model, self.ratings, self.solve, self.cg_steps = model, ratings, solve, cg_steps
        targets = model.targets(ratings)
        self.targets = (targets, targets.index_select(0, ratings.item_order))
        self.ridge = objective.penalty_tables(model, ratings)
        self.free = model.free_columns()

    @torch.no_grad()
    def epoch(self) -> dict[str, float]:
        tables = list(self.model.tables())
        for side, pattern in enumerate((self.ratings.by_user, self.ratings.by_item)):
            problem = (pattern, self.targets[side], tables[1 - side], self.ridge[side], self.free[side])
            if self.solve == "cholesky":
                tables[side] = solve_exactly(*problem, tables[side])
            else:
                tables[side] = solve_by_cg(*problem, tables[side], self.cg_steps)
        for name, columns in self.model.columns(*tables).items():
            self.model.get_parameter(name).copy_(columns)
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def solve_by_cg(
    pattern: Pattern, targets: Tensor, other: Tensor, ridge: Tensor, free: Tensor, start: Tensor, steps: int
) -> Tensor:
    """Every row's ridge regression by conjugate gradients from `start`, all rows at once.

    Args:
        pattern: the rows' observed entries; targets: (n_entries,) what row · other is to match there.
        other: (n_cols, k) the fixed side; ridge: (n_rows, k) λ of each number.
        free: (1, k) 1 where a column is solved for, 0 where it stays as in `start`, (n_rows, k).
    """
    table = start
    r = (matmul(pattern, targets - sampled_dot(pattern, table, other), other) - ridge * table) * free
    p, rr = r, r.square().sum(1, keepdim=True)
    for _ in range(steps):
        Ap = (matmul(pattern, sampled_dot(pattern, p, other), other) + ridge * p) * free
        # A row that has converged, or has no ratings, has p = 0 and must not divide by it.
        step = rr / (p * Ap).sum(1, keepdim=True).clamp_min(torch.finfo(r.dtype).tiny)
        table, r = table + step * p, r - step * Ap
        before, rr = rr, r.square().sum(1, keepdim=True)
        p = r + rr / before.clamp_min(torch.finfo(r.dtype).tiny) * p
    return table


def solve_exactly(
    pattern: Pattern, targets: Tensor, other: Tensor, ridge: Tensor, free: Tensor, start: Tensor
) -> Tensor:
    """Every row's ridge regression by the Cholesky factors of its normal matrix, a block of rows at a time.

    Column a of all normal matrices at once is matmul(R, 1, x̃_a ∘ X̃): nothing of shape (entries × k) is gathered.
    """
    columns = free[0].nonzero()[:, 0]
    fixed = sampled_dot(pattern, start * (1 - free), other)
    right = matmul(pattern, targets - fixed, other)[:, columns, None]
    own, ridge, k = other[:, columns], ridge[:, columns], len(columns)
    table = start.clone()
    size = max(1, NORMAL_NUMBERS // (k * k))
    for first in range(0, len(table), size):
        block, rows = pattern.row_block(first, first + size), slice(first, first + size)
        ones = torch.ones(len(block.col), dtype=own.dtype, device=own.device)
        normal = torch.stack([matmul(block, ones, own * own[:, a, None]) for a in range(k)], 2)
        # Without penalty a row with fewer ratings than columns has many minima: the last digit of ridge picks one.
        diagonal = normal.diagonal(dim1=1, dim2=2)
        diagonal.add_(ridge[rows])
        diagonal.add_(torch.finfo(own.dtype).eps * diagonal.amax(1, keepdim=True).clamp_min(1))
        table[rows, columns] = torch.cholesky_solve(right[rows], torch.linalg.cholesky(normal))[..., 0]
    return table

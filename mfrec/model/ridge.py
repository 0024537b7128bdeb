"""The ridge regressions of half a sweep: one term of one side's table at its minimum, with all else fixed.

With X̃ fixed and Θ̃ = F W̃ + the other terms, J is quadratic in W̃ (F is the identity for the rows' own table), and the
change D that minimizes it solves the normal equations, in the free columns (all but the constant 1):

    H(D) = Fᵀ (w ∘ ((F D) X̃ᵀ)_observed) X̃ + Λ ∘ D  =  Fᵀ (w ∘ residuals) X̃ − Λ ∘ W̃ + push

Residuals are y − μ − θ̃ᵀx̃ at the observed entries, w their weights, and push is zero but for solvers that sample.  H(D)
is `matmul(R, w ∘ sampled_dot(R, F D, X̃), X̃)` and Fᵀ of it: no k × k matrix is formed.

    minimize_by_cg   preconditioned conjugate gradients.  Rows of an identity term are independent problems, each with
                     its own step length, all at once; the weights of features are one problem, since a row with two
                     features couples them.  The preconditioner is the diagonal of H, (F∘F)ᵀ (R (X̃∘X̃)) + Λ, without
                     which the biases, whose partner is 1 and not 0.1, would take all the steps.
                     (Takács, Pilászy & Tikk 2011, "Applications of the conjugate gradient method for implicit feedback
                     collaborative filtering")
    minimize_exactly the k × k matrices of a block of rows at a time, k sparse products each, solved by Cholesky
                     (Zhou, Wilkinson, Schreiber & Pan 2008, eq. 3)
    minimize_by_columns   one column after another, each number at its minimum while the others are fixed, or at 0 where
                     that is negative (Hsieh & Dhillon 2011, "Fast coordinate descent methods with variable selection
                     for non-negative matrix factorization"): what non-negative factors need
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from mfrec.data.ratings import Pattern, Ratings
from mfrec.model.factorization import ITEM, USER, MatrixFactorization, Term
from mfrec.model.features import Features
from mfrec.sparse import matmul, sampled_dot

# Numbers of normal matrices held at a time by minimize_exactly: 2^24 in float32 are 64 MiB.
NORMAL_NUMBERS = 2**24


class Side(NamedTuple):
    """The ratings as one side's rows see them: (n_entries,) centred targets and weights in the order of the pattern.

    free: (1, k), 1 in the columns that are solved for, 0 in that of the constant 1.
    """

    pattern: Pattern
    targets: Tensor
    weights: Tensor | None
    free: Tensor


def sides_of(model: MatrixFactorization, ratings: Ratings) -> tuple[Side, Side]:
    """The users' and the items' view of the ratings."""
    targets, free = model.targets(ratings), model.free_columns()
    transposed = targets.index_select(0, ratings.item_order)
    return (
        Side(ratings.by_user, targets, ratings.weights, free[USER]),
        Side(ratings.by_item, transposed, ratings.by_item_weights, free[ITEM]),
    )


def weighed_by(sides: tuple[Side, Side], ratings: Ratings, noise: Sequence[Tensor]) -> tuple[Side, Side]:
    """The sides with the weights τ_j τ_i w, where w are the ratings' own and τ the users' and items', (n, 1) each."""
    weights = ratings.weighted(sampled_dot(ratings.by_user, noise[USER], noise[ITEM]))
    transposed = weights.index_select(0, ratings.item_order)
    return sides[USER]._replace(weights=weights), sides[ITEM]._replace(weights=transposed)


class Problem:
    """One term's ridge regression.

    Args:
        side: the ratings as the rows see them.
        residuals: (n_entries,) what the prediction lacks at each entry.
        own: (n_rows or n_features, k) the term's table W̃; other: (n_cols, k) the fixed side.
        ridge: λ of each number, broadcast to `own`.
        features: F, or None for the identity.
        push: added to the right-hand side, like `own`.
    """

    def __init__(
        self,
        side: Side,
        residuals: Tensor,
        own: Tensor,
        other: Tensor,
        ridge: Tensor,
        features: Features | None = None,
        push: Tensor | None = None,
    ) -> None:
        self.side, self.own, self.other, self.ridge, self.features = side, own, other, ridge, features
        right = self._pull(matmul(side.pattern, self.weighted(residuals), other)) - ridge * own
        self.right = (right if push is None else right + push) * side.free
        self.residuals = residuals

    def weighted(self, numbers: Tensor) -> Tensor:
        """Numbers of the entries, each times its weight."""
        return numbers if self.side.weights is None else numbers * self.side.weights

    def _pull(self, rows: Tensor) -> Tensor:
        return rows if self.features is None else self.features.pull(rows)

    def hessian(self, change: Tensor) -> Tensor:
        """H(D), shaped like the table, of a change D of it whose other than free columns are 0."""
        rows = change if self.features is None else self.features(change)
        seen = self.weighted(sampled_dot(self.side.pattern, rows, self.other))
        return (self._pull(matmul(self.side.pattern, seen, self.other)) + self.ridge * change) * self.side.free

    @cached_property
    def diagonal(self) -> Tensor:
        """The diagonal of H, shaped like the table; 1 where a column is not free."""
        ones = self.weighted(torch.ones(len(self.side.pattern.col), dtype=self.own.dtype, device=self.own.device))
        rows = matmul(self.side.pattern, ones, self.other.square())
        pulled = rows if self.features is None else self.features.pull_squares(rows)
        diagonal = pulled + self.ridge
        # A number that nothing speaks of, and that has no penalty, has a diagonal of 0 and a right side of 0.
        return torch.where((self.side.free > 0) & (diagonal > 0), diagonal, 1)


def problem(
    model: MatrixFactorization,
    term: Term,
    side: Side,
    tables: tuple[Tensor, Tensor],
    ridge: Tensor,
    noise: Tensor | None = None,
    push: Tensor | None = None,
) -> Problem:
    """The ridge regression of a term of a model whose composed tables these are; noise is added to the residuals."""
    residuals = side.targets - sampled_dot(side.pattern, tables[term.side], tables[1 - term.side])
    residuals = residuals if noise is None else residuals + noise
    return Problem(side, residuals, model.table(term), tables[1 - term.side], ridge, term.features, push)


def minimize_by_cg(problem: Problem, steps: int) -> Tensor:
    """The term's table after so many preconditioned conjugate-gradient steps from where it is."""
    inverse = problem.diagonal.reciprocal()

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(1, keepdim=True) if problem.features is None else (a * b).sum()

    tiny = torch.finfo(problem.own.dtype).tiny
    table, r = problem.own, problem.right
    z = r * inverse
    p, rz = z, dot(r, z)
    for _ in range(steps):
        Hp = problem.hessian(p)
        # A row that has converged, or has no ratings, has p = 0 and must not divide by it.
        step = rz / dot(p, Hp).clamp_min(tiny)
        table, r = table + step * p, r - step * Hp
        z = r * inverse
        before, rz = rz, dot(r, z)
        p = z + rz / before.clamp_min(tiny) * p
    return table


def minimize_exactly(problem: Problem) -> Tensor:
    """The term's table at the minimum, by the Cholesky factors of each row's normal matrix; identity terms only."""
    columns = problem.side.free[0].nonzero()[:, 0]
    right, ridge = problem.right[:, columns], problem.ridge.expand_as(problem.own)[:, columns]
    table = problem.own.clone()
    for rows, normal in normal_matrices(problem.side, problem.other):
        change = torch.cholesky_solve(right[rows, :, None], cholesky(normal, ridge[rows]))
        table[rows, columns] += change[..., 0]
    return table


def normal_matrices(side: Side, other: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """A = Σ w x̃ x̃ᵀ in the free columns, a block of rows after another: (rows, (n_rows, k, k)).

    Column a of all of a block at once is matmul(R, w, x̃_a ∘ X̃): nothing of shape (entries × k) is gathered.
    """
    own = other[:, side.free[0] > 0]
    k, n_rows = own.shape[1], side.pattern.shape[0]
    size = max(1, NORMAL_NUMBERS // (k * k))
    for first in range(0, n_rows, size):
        end = min(first + size, n_rows)
        entries = slice(int(side.pattern.crow[first]), int(side.pattern.crow[end]))
        weights = own.new_ones(entries.stop - entries.start) if side.weights is None else side.weights[entries]
        block = side.pattern.row_block(first, end)
        yield slice(first, end), torch.stack([matmul(block, weights, own * own[:, a, None]) for a in range(k)], 2)


def cholesky(normal: Tensor, ridge: Tensor) -> Tensor:
    """The Cholesky factors of A + Λ, (n, k, k), for diagonals Λ, (n, k)."""
    penalized = normal + torch.diag_embed(ridge)
    # Without penalty a row with fewer ratings than columns has many minima: the last digit of ridge picks one.
    diagonal = penalized.diagonal(dim1=1, dim2=2)
    diagonal.add_(torch.finfo(normal.dtype).eps * diagonal.amax(1, keepdim=True).clamp_min(1))
    factors: Tensor = torch.linalg.cholesky(penalized)
    return factors


def minimize_by_columns(problem: Problem, rank: int) -> Tensor:
    """The term's table after one pass over its columns, with the first `rank` kept at 0 or above; identity terms only.

    With g the gradient and h = Σ w x̃_a² + λ the curvature in θ_a, each number goes to max(0, θ_a − g / h).
    """
    side, other = problem.side, problem.other
    table, residuals = problem.own.clone(), problem.residuals
    ridge, curvature = problem.ridge.expand_as(table), problem.diagonal
    for a in side.free[0].nonzero()[:, 0].tolist():
        partner = other[:, a : a + 1]
        gradient = ridge[:, a] * table[:, a] - matmul(side.pattern, problem.weighted(residuals), partner)[:, 0]
        new = table[:, a] - gradient / curvature[:, a]
        new = new.clamp_min(0) if a < rank else new
        change = (new - table[:, a])[:, None]
        residuals = residuals - sampled_dot(side.pattern, change, partner)
        table[:, a] = new
    return table

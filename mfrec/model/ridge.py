"""The ridge regressions of a half-sweep: the minimum of J over one term of one entity, with all else fixed.

With X̃ fixed and Θ̃ = F W̃ + the other terms, J is quadratic in W̃ (F is the identity for the rows' own factors).  The
change D that minimizes it solves the normal equations, in the free columns (all but the constant 1):

    H(D) = Fᵀ (w ∘ ((F D) X̃ᵀ)_observed) X̃ + Λ ∘ D  =  Fᵀ (w ∘ residuals) X̃ − Λ ∘ W̃ + rhs_shift

Residuals are y − μ − θ̃ᵀx̃ at the observed entries, w their weights, and rhs_shift is zero except for solvers that
sample.  H(D) is `spmm(R, w ∘ sddmm(R, F D, X̃), X̃)` and Fᵀ of it: no k × k matrix is formed.  If the partners have
variances v, each row has another penalty, V = Σ w v, on the whole of θ̃: V ∘ F D joins the product before Fᵀ, and
−V ∘ Θ̃ the residuals' part of the right-hand side.

    minimize         a few steps of minimize_by_cg.  On the CPU a kernel gathers each row's partners once for all steps.
                     With `normal_sums`, terms of one entity share the rows' k × k matrices instead of products.
    minimize_by_cg   preconditioned conjugate gradients.  Rows of an identity term are independent problems, each with
                     its own step length, all solved at once; feature weights are one problem, since a row with two
                     features couples them.  The preconditioner is the diagonal of H, (F∘F)ᵀ (R (X̃∘X̃)) + Λ, without
                     which the biases, whose partner is 1 and not 0.1, would take all the steps.
                     (Takács, Pilászy & Tikk 2011, "Applications of the conjugate gradient method for implicit feedback
                     collaborative filtering")
    minimize_exactly the k × k matrices of a block of rows at a time, k sparse products each, solved by Cholesky
                     (Zhou, Wilkinson, Schreiber & Pan 2008, eq. 3)
    minimize_by_columns   one column after another, each number at its minimum while the others are fixed, or at 0 if
                     the minimum is negative (Hsieh & Dhillon 2011, "Fast coordinate descent methods with variable
                     selection for non-negative matrix factorization"): for non-negative factors
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mfrec.data.features import Features
from mfrec.draws import counter_normals
from mfrec.model.entity import Term
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.ratings_view import RatingsView
from mfrec.sparse import CSRPattern, has_kernel, row_products, sddmm, spmm
from mfrec.sums import ordered_sum

if TYPE_CHECKING:
    from mfrec.model.normal_sums import NormalSums

# Numbers of normal matrices held at a time by minimize_exactly: 2^24 in float32 are 64 MiB.
NORMAL_NUMBERS = 2**24
# How often a singular row's ridge grows, each time to more than four times its size, until its matrix has factors.
MAX_RIDGES = 10


class RidgeProblem:
    """The ridge regression of one term.

    Args:
        view: the ratings in the order of the entity's rows.
        residuals: (n_entries,) target minus prediction at each entry.
        weights: (n_rows or n_features, k) the term's W̃.
        partners: (n_cols, k) the augmented factors of the fixed entity.
        ridge: Λ, broadcast to `weights`.
        features: F, or None for the identity.
        rhs_shift: added to the right-hand side, shaped like `weights`.
        spread: V and Θ̃, (n_rows, k) each, or None if the partners have no variances.
    """

    def __init__(
        self,
        view: RatingsView,
        residuals: Tensor,
        weights: Tensor,
        partners: Tensor,
        ridge: Tensor,
        features: Features | None = None,
        rhs_shift: Tensor | None = None,
        spread: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.view, self.weights, self.partners, self.ridge, self.features = view, weights, partners, ridge, features
        self.residuals, self.spread = residuals, spread[0] if spread else None
        rows = spmm(view.pattern, view.weighted(residuals), partners)
        self.rhs = self._rhs(rows if spread is None else rows - spread[0] * spread[1], rhs_shift)

    def _rhs(self, rows: Tensor, rhs_shift: Tensor | None) -> Tensor:
        """The right-hand side, from the ratings' part in the rows, (n_rows, k)."""
        rhs = self._rmatmul(rows) - self.ridge * self.weights
        return (rhs if rhs_shift is None else rhs + rhs_shift) * self.view.free

    def _matmul(self, weights: Tensor) -> Tensor:
        return weights if self.features is None else self.features.matrix @ weights

    def _rmatmul(self, rows: Tensor) -> Tensor:
        return rows if self.features is None else self.view.total(self.features.rmatmul(rows))

    def row_products(self, rows: Tensor) -> Tensor:
        """(n_rows, k) the ratings' part of H in the rows, for changes of the rows."""
        products = row_products(self.view.pattern, self.view.weights, rows, self.partners)
        return products if self.spread is None else products + self.spread * rows

    def row_diagonal(self) -> Tensor:
        """(n_rows, k) the diagonal of the ratings' part of H in the rows."""
        diagonal = self.view.sums(self.partners.square())
        return diagonal if self.spread is None else diagonal + self.spread

    def row_squares(self, rows: Tensor) -> Tensor:
        """() the sum of D ∘ H(D) without the penalty Λ, for changes F D of the rows."""
        squares = ordered_sum(self.view.weighted(sddmm(self.view.pattern, rows, self.partners).square()))
        return squares if self.spread is None else squares + ordered_sum(self.spread * rows.square())

    def hessian(self, change: Tensor) -> Tensor:
        """H(D), shaped like `weights`, for a change D that is 0 outside the free columns."""
        return (self._rmatmul(self.row_products(self._matmul(change))) + self.ridge * change) * self.view.free

    def curvature(self, change: Tensor) -> Tensor:
        """() the sum of D ∘ H(D), which needs half of the products of H(D)."""
        squares = self.row_squares(self._matmul(change))
        squares = squares if self.features is None else self.view.total(squares)
        return squares + ordered_sum(self.ridge * change.square())

    @cached_property
    def diagonal(self) -> Tensor:
        """The diagonal of H, shaped like `weights`; 1 outside the free columns."""
        rows = self.row_diagonal()
        data = rows if self.features is None else self.view.total(self.features.rmatmul_squared(rows))
        diagonal = data + self.ridge
        # Entries without data or penalty have a zero diagonal and a zero right-hand side; use 1.
        return torch.where((self.view.free > 0) & (diagonal > 0), diagonal, 1)


def ridge_problem(
    model: MatrixFactorization,
    term: Term,
    view: RatingsView,
    ridge: Tensor,
    perturbation: Tensor | None = None,
    rhs_shift: Tensor | None = None,
    variances: Tensor | None = None,
) -> RidgeProblem:
    """The ridge regression of a term of a model as it is, for the rows of the view.

    Args:
        view: the ratings in the order of the term's entity.
        ridge: as in `RidgeProblem`, for all rows.
        perturbation: (n_entries,) added to the residuals.
        rhs_shift: as in `RidgeProblem`, for the rows of the view.
        variances: (n_cols, k) v of the partners.
    """
    factors = model.augmented_factors()
    rows, partners = view.of_rows(factors[term.entity]), factors[1 - term.entity]
    residuals = view.targets - sddmm(view.pattern, rows, partners)
    residuals = residuals if perturbation is None else residuals + perturbation
    spread = None if variances is None else (view.sums(variances), rows)
    if term.features is not None:
        return RidgeProblem(view, residuals, model.weights(term), partners, ridge, term.features, rhs_shift, spread)
    weights, ridge = view.of_rows(model.weights(term)), view.of_rows(ridge)
    return RidgeProblem(view, residuals, weights, partners, ridge, None, rhs_shift, spread)


def minimize(
    model: MatrixFactorization,
    term: Term,
    view: RatingsView,
    ridge: Tensor,
    steps: int,
    *,
    rhs_shift: Tensor | None = None,
    variances: Tensor | None = None,
    noise_std: float = 0.0,
    seed: int = 0,
    sums: NormalSums | None = None,
) -> tuple[Tensor, Tensor]:
    """The term's W̃ after `steps` conjugate-gradient steps from its current value, and the diagonal of H.

    Of an identity term, only the rows of the view are solved.

    Args:
        view: the ratings in the order of the term's entity.
        ridge: as in `RidgeProblem`, for all rows.
        rhs_shift: as in `RidgeProblem`, for the rows of the view.
        variances: (n_cols, k) v of the partners; V, its weighted sum over a row's ratings, penalizes the row.
        noise_std: each target is perturbed by a draw from N(0, noise_std² / weight).
        seed: of the noise of each rating, which is a function of the seed and of the rating's position, on all devices.
        sums: `normal_sums` of the view, the partners and the variances as they are now; replaces the products.
    """
    if term.features is None and sums is None and has_kernel(ridge):
        return _minimize_rows(model, term, view, ridge, steps, rhs_shift, variances, (noise_std, seed))
    perturbation = None
    if noise_std:
        perturbation = counter_normals(seed, view.first, len(view.targets), ridge).mul_(noise_std)
        perturbation = perturbation if view.weights is None else perturbation * view.weights.rsqrt()
    if sums is None:
        problem = ridge_problem(model, term, view, ridge, perturbation, rhs_shift, variances)
    else:
        problem = sums.problem(model, term, view, ridge, perturbation, rhs_shift)
    return minimize_by_cg(problem, steps), problem.diagonal


def _minimize_rows(
    model: MatrixFactorization,
    term: Term,
    view: RatingsView,
    ridge: Tensor,
    steps: int,
    rhs_shift: Tensor | None,
    variances: Tensor | None,
    noise: tuple[float, int],
) -> tuple[Tensor, Tensor]:
    """`minimize` by the kernel; noise is its standard deviation and its seed."""
    from mfrec.kernels import ridge as kernels  # numba is imported where a kernel runs
    from mfrec.kernels.normals import INCREMENT
    from mfrec.kernels.regressions import Entries, Regressions

    factors, start = model.augmented_factors(), view.of_rows(model.weights(term))
    nothing, no_rows = start.new_empty(0), start.new_empty(0, start.shape[1])
    scales = (nothing, nothing) if view.scales is None else (view.scales[0][:, 0], view.scales[1][:, 0])
    entries = Entries(
        crow=array_of(view.pattern.crow.long()),
        col=array_of(view.pattern.col),
        targets=array_of(view.targets),
        weights=array_of(nothing if view.rating_weights is None else view.rating_weights),
        row_scales=array_of(scales[0]),
        partner_scales=array_of(scales[1]),
    )
    scalar, limits = array_of(start).dtype.type, torch.finfo(start.dtype)
    problem = Regressions(
        rows=array_of(view.of_rows(factors[term.entity])),
        start=array_of(start),
        partners=array_of(factors[1 - term.entity]),
        variances=array_of(no_rows if variances is None else variances),
        ridge=array_of(view.of_rows(ridge).expand(-1, start.shape[1])),
        rhs_shift=array_of(no_rows if rhs_shift is None else rhs_shift),
        free=array_of(view.free[0]),
        tiny=scalar(limits.tiny),
        eps=scalar(limits.eps),
        noise_std=scalar(noise[0]),
        # Positions count from the first entry of all processes.
        seed=np.uint64((noise[1] + view.first * int(INCREMENT)) % 2**64),
    )
    minimum, diagonal = kernels.minimize(entries, problem, steps)
    return torch.from_numpy(minimum), torch.from_numpy(diagonal)


def array_of(tensor: Tensor) -> npt.NDArray[Any]:
    """The contiguous numbers of a tensor on the CPU, for a kernel."""
    array: npt.NDArray[Any] = tensor.detach().contiguous().numpy()
    return array


def minimize_by_cg(problem: RidgeProblem, steps: int) -> Tensor:
    """The term's W̃ after `steps` preconditioned conjugate-gradient steps from its current value."""
    inverse = problem.diagonal.reciprocal()

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(1, keepdim=True) if problem.features is None else ordered_sum(a * b)

    tiny, eps = torch.finfo(problem.weights.dtype).tiny, torch.finfo(problem.weights.dtype).eps
    weights, r = problem.weights, problem.rhs
    z = r * inverse
    p, rz = z, dot(r, z)
    for number in range(1, steps + 1):
        # The last step needs no new residual, and so no H(p): features have a cheaper curvature.
        Hp = None if number == steps and problem.features is not None else problem.hessian(p)
        curvature = problem.curvature(p) if Hp is None else dot(p, Hp)
        # Without a penalty H may be singular: rounding leads a converged row to a flat direction, where it must stop.
        is_curved = curvature > eps * dot(p, problem.diagonal * p)
        # A row that has converged, or has no ratings, has p = 0 and must not divide by it.
        step = torch.where(is_curved, rz / curvature.clamp_min(tiny), 0)
        weights = weights + step * p
        if Hp is not None:
            r = torch.where(is_curved, r - step * Hp, 0)
            z = r * inverse
            before, rz = rz, dot(r, z)
            p = z + rz / before.clamp_min(tiny) * p
    return weights


def minimize_exactly(problem: RidgeProblem) -> Tensor:
    """The term's W̃ at the minimum, by the Cholesky factors of each row's normal matrix; identity terms only."""
    columns = problem.view.columns
    rhs, ridge = problem.rhs[:, columns], problem.ridge.expand_as(problem.weights)[:, columns]
    weights = problem.weights.clone()
    for rows, normal in normal_matrices(problem.view, problem.partners):
        change = torch.cholesky_solve(rhs[rows, :, None], cholesky(normal, ridge[rows]))
        weights[rows, columns] += change[..., 0]
    return weights


def normal_matrices(view: RatingsView, partners: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """A = Σ w x̃ x̃ᵀ in the free columns, one block of rows after another: (rows, (n_rows, k, k)).

    Column a of all matrices of a block is spmm(R, w, x̃_a ∘ X̃): nothing of shape (entries × k) is gathered.
    """
    free = partners[:, view.columns]
    size = max(1, NORMAL_NUMBERS // free.shape[1] ** 2)
    for rows, entries, pattern in view.pattern.row_blocks(size):
        weights = None if view.weights is None else view.weights[entries]
        yield rows, _normal_matrices(pattern, weights, free)


def _normal_matrices(pattern: CSRPattern, weights: Tensor | None, partners: Tensor) -> Tensor:
    """(n_rows, k, k) Σ w x̃ x̃ᵀ over the entries of each row of a pattern."""
    if has_kernel(partners):
        from mfrec.kernels.gram import normal_matrices  # numba is imported where a kernel runs

        tensors = (pattern.crow.long(), pattern.col, partners.new_empty(0) if weights is None else weights, partners)
        return torch.from_numpy(normal_matrices(*(array_of(tensor) for tensor in tensors)))
    weights = partners.new_ones(pattern.n_entries) if weights is None else weights
    return torch.stack([spmm(pattern, weights, partners * column[:, None]) for column in partners.T], 2)


def cholesky(normal: Tensor, ridge: Tensor) -> Tensor:
    """The Cholesky factors of A + Λ, (n, k, k), for diagonals Λ, (n, k)."""
    penalized = normal + torch.diag_embed(ridge)
    # Without a penalty, a row with fewer ratings than columns is singular; an eps-sized ridge keeps it solvable.
    diagonal = penalized.diagonal(dim1=1, dim2=2)
    smallest = torch.finfo(normal.dtype).eps * diagonal.amax(1, keepdim=True).clamp_min(1)
    diagonal.add_(smallest)
    factors: Tensor
    for _ in range(MAX_RIDGES):
        factors, failures = torch.linalg.cholesky_ex(penalized)
        if not bool(failures.any()):
            return factors
        # Rounding made these rows indefinite.
        smallest = 4 * smallest
        diagonal.add_(smallest * (failures > 0)[:, None])
    factors = torch.linalg.cholesky(penalized)
    return factors


def minimize_by_columns(problem: RidgeProblem, rank: int) -> Tensor:
    """The term's W̃ after one pass over its columns, with the first `rank` kept at 0 or above; identity terms only.

    With g the gradient and h = Σ w x̃_a² + λ the curvature in θ_a, each number moves to max(0, θ_a − g / h).
    """
    view, pattern = problem.view, problem.view.pattern
    weights, residuals = problem.weights.clone(), problem.residuals
    ridge, curvature = problem.ridge.expand_as(weights), problem.diagonal
    for a in view.columns.tolist():
        partner = problem.partners[:, a : a + 1]
        gradient = ridge[:, a] * weights[:, a] - spmm(pattern, view.weighted(residuals), partner)[:, 0]
        minimum = weights[:, a] - gradient / curvature[:, a]
        minimum = minimum.clamp_min(0) if a < rank else minimum
        change = (minimum - weights[:, a])[:, None]
        residuals = residuals - sddmm(pattern, change, partner)
        weights[:, a] = minimum
    return weights

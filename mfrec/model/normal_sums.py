"""Sums over each row's ratings, from which all terms of an entity are solved without another look at the ratings.

While the partners and the weights stay fixed, the ratings enter the regressions of `mfrec.model.ridge` only through

    A_j = Σ w x̃ x̃ᵀ        b_j = Σ w (y − μ) x̃        V_j = Σ w v

The ratings' part of H(D) is Fᵀ (A_j (F D)_j + V_j ∘ (F D)_j).  That of the right-hand side is
Fᵀ (b_j − A_j θ̃_j − V_j ∘ θ̃_j).  Both take one k × k product for each row.  With n ratings, A takes n k²/2
multiplications, and the two products of a conjugate-gradient step 2 n k.  Sums pay if the terms of an entity take more
than k/4 steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mfrec.model.entity import Term
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.ratings_view import RatingsView
from mfrec.model.ridge import RidgeProblem
from mfrec.sparse import spmm
from mfrec.sums import ordered_sum

# Numbers of the matrices A that may be held: 2^27 in float32 are 512 MiB.
MAX_NUMBERS = 2**27
# Columns of outer products multiplied at a time: with 4,000 partners in float32, a level-2 cache holds them.
COLUMNS = 136


@dataclass(frozen=True, eq=False)
class NormalSums:
    """The sums over each row's ratings.

    normal: A, (n_rows, k, k); rhs: b, (n_rows, k); spread: V, (n_rows, k), or None if the partners have no variances.
    partners: (n_cols, k), for perturbed targets.
    """

    normal: Tensor
    rhs: Tensor
    spread: Tensor | None
    partners: Tensor

    def products(self, rows: Tensor) -> Tensor:
        """(n_rows, k) A_j r_j + V_j ∘ r_j for rows r."""
        products = torch.bmm(self.normal, rows[..., None])[..., 0]
        return products if self.spread is None else products.addcmul_(self.spread, rows)

    def diagonal(self) -> Tensor:
        """(n_rows, k) the diagonal of A_j plus V_j."""
        diagonal = self.normal.diagonal(dim1=1, dim2=2)
        return diagonal if self.spread is None else diagonal + self.spread

    def problem(
        self,
        model: MatrixFactorization,
        term: Term,
        view: RatingsView,
        ridge: Tensor,
        perturbation: Tensor | None = None,
        rhs_shift: Tensor | None = None,
    ) -> RidgeProblem:
        """`mfrec.model.ridge.ridge_problem` of a term of the entity whose sums these are."""
        rhs = self.rhs
        if perturbation is not None:
            rhs = rhs + spmm(view.pattern, view.weighted(perturbation), self.partners)
        rhs = rhs - self.products(model.entity_factors(term.entity))
        return _SummedProblem(self, rhs, view, model.weights(term), ridge, term, rhs_shift)


class _SummedProblem(RidgeProblem):
    """A ridge regression whose ratings are summed; `rows` is their part of the right-hand side, (n_rows, k)."""

    def __init__(
        self,
        sums: NormalSums,
        rows: Tensor,
        view: RatingsView,
        weights: Tensor,
        ridge: Tensor,
        term: Term,
        rhs_shift: Tensor | None,
    ) -> None:
        self.sums, self.view, self.weights, self.ridge, self.features = sums, view, weights, ridge, term.features
        self.rhs = self._rhs(rows, rhs_shift)

    def row_products(self, rows: Tensor) -> Tensor:
        return self.sums.products(rows)

    def row_diagonal(self) -> Tensor:
        return self.sums.diagonal()

    def row_squares(self, rows: Tensor) -> Tensor:
        return ordered_sum(rows * self.sums.products(rows))


def normal_sums(view: RatingsView, partners: Tensor, variances: Tensor | None = None) -> NormalSums | None:
    """The sums over the ratings of each row of a view, or None if they take too much memory.

    Args:
        partners: (n_cols, k) the augmented factors of the fixed entity.
        variances: (n_cols, k) v of the partners.
    """
    n_rows, k = view.pattern.shape[0], partners.shape[1]
    if n_rows * k * k > MAX_NUMBERS:
        return None
    rhs = spmm(view.pattern, view.weighted(view.targets), partners)
    spread = None if variances is None else view.sums(variances)
    return NormalSums(_normal_matrices(view, partners), rhs, spread, partners)


def _normal_matrices(view: RatingsView, partners: Tensor) -> Tensor:
    """(n_rows, k, k) A, from sparse products with the partners' outer products, on and below the diagonal alone."""
    k = partners.shape[1]
    first, second = torch.tril_indices(k, k, device=partners.device)
    halves = [
        view.sums(partners[:, a] * partners[:, b])
        for a, b in zip(first.split(COLUMNS), second.split(COLUMNS), strict=True)
    ]
    place = torch.empty(k, k, dtype=torch.long, device=partners.device)
    place[first, second] = place[second, first] = torch.arange(len(first), device=partners.device)
    half = torch.cat(halves, 1) if len(halves) > 1 else halves[0]
    return half.index_select(1, place.flatten()).view(-1, k, k)

"""Features: descriptions of users and items besides their ratings, as sparse rows × features matrices F.

An entity's factors become Θ = P + F W.  The row P_j is the user's own, and W has a row of factors for each feature;
biases likewise.  One mechanism covers all of these:

    F_u = which items a user rated, scaled by 1/√n    SVD++ (Koren 2008, "Factorization meets the neighborhood", eq. 15)
    F_i = which users rated an item, scaled by 1/√n   its mirror image
    genres, years, ages, occupations                  side information
    F_i alone, without P                              content-based filtering

A row of F with unit length (one-hot, or 1/√n at each of n features) lets W be regularized like the factors it adds to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError, unknown
from mfrec.sparse import SparseMatrix

# The name of the feature block that says who rated what.
IMPLICIT_BLOCK = "implicit"


@dataclass(frozen=True, eq=False)
class Features:
    """A sparse matrix F of n_rows × n_features, and the features' names.

    Attributes:
        matrix: F; a row for each user or item, a column for each feature.
        names: the name of each feature, such as "genres Drama".

    Raises:
        InputError: there is not one name for each feature, or a value is not finite.
    """

    matrix: SparseMatrix
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.names) != self.matrix.shape[1]:
            raise InputError(f"each of {self.matrix.shape[1]:,} features needs a name (got {len(self.names):,})")
        if not bool(torch.isfinite(self.matrix.values).all()):
            raise InputError("feature values must be finite; drop or replace NaN and infinite values")

    @classmethod
    def from_entries(cls, rows: Tensor, columns: Tensor, values: Tensor, n_rows: int, names: Sequence[str]) -> Features:
        """Features from the entries of F, (n_entries,) rows, columns and values in any order.

        Raises:
            InputError: an entry is outside the matrix, repeated or not finite.
        """
        for kind, indices, size in (("row", rows, n_rows), ("feature", columns, len(names))):
            wrong = indices[(indices < 0) | (indices >= size)]
            if len(wrong):
                raise InputError(f"{kind} indices of features must be in 0 … {size - 1:,} (got {int(wrong[0])})")
        values = values if values.dtype == torch.float64 else values.float()
        shape = n_rows, len(names)
        return cls(SparseMatrix.from_entries(rows, columns, values, shape, "(row, feature) entries"), tuple(names))

    @property
    def n_rows(self) -> int:
        """The number of users or items, including rows without a feature."""
        return self.matrix.shape[0]

    @property
    def n_features(self) -> int:
        """The number of columns of F, and of rows of its weights W."""
        return self.matrix.shape[1]

    def __repr__(self) -> str:
        entries = self.matrix.pattern.n_entries
        return f"Features({self.n_rows:,} rows × {self.n_features:,} features, {entries:,} entries)"

    def rmatmul(self, rows: Tensor) -> Tensor:
        """Fᵀ G, (n_features, k), for G of shape (n_rows, k): the gradient with respect to W, given that in the rows."""
        return self.matrix.T @ rows

    def rmatmul_squared(self, rows: Tensor) -> Tensor:
        """(F ∘ F)ᵀ G, (n_features, k), for G of shape (n_rows, k)."""
        return self._squared.T @ rows

    def matmul_squared(self, weights: Tensor) -> Tensor:
        """(F ∘ F) U, (n_rows, k), for U of shape (n_features, k)."""
        return self._squared @ weights

    @cached_property
    def _squared(self) -> SparseMatrix:
        return self.matrix.with_values(self.matrix.values.square())

    def gram_bound(self, curvatures: Tensor) -> Tensor:
        """(n_features, 1) a diagonal matrix that bounds Fᵀ diag(n) F from above, for n ≥ 0 of shape (n_rows, 1).

        Σ_r |F_rf| ‖F_r‖₁ n_r: steps that are safe for each feature alone stay safe when all features step at once.
        """
        transposed, sizes = self.matrix.T, self.matrix.values.abs()
        ones = torch.ones(self.n_features, 1, dtype=sizes.dtype, device=sizes.device)
        return transposed.with_values(transposed.values.abs()) @ ((self.matrix.with_values(sizes) @ ones) * curvatures)

    def apply(self, change: Callable[[Tensor], Tensor]) -> Features:
        """The features with each tensor changed, such as moved to another device."""
        return Features(self.matrix.apply(change), self.names)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Features:
        """The features on another device, or with values of another floating-point type."""
        return Features(self.matrix.to(device, dtype), self.names)

    def select(self, rows: Tensor) -> Features:
        """The features of these rows, (n,) distinct indices, in this order."""
        pattern = self.matrix.pattern
        position = torch.full((self.n_rows,), -1, dtype=torch.long, device=rows.device)
        position[rows] = torch.arange(len(rows), device=rows.device)
        selected = position[pattern.row.long()]
        kept = selected >= 0
        entries = selected[kept], pattern.col[kept], self.matrix.values[kept]
        return Features.from_entries(*entries, len(rows), self.names)


def implicit_features(ratings: Ratings, entity: str) -> Features:
    """Features of who rated what: 1/√n at each of n places.

    The features come from these ratings alone: give the training set, and no held-out rating is seen.

    Args:
        entity: "users", for which items each user rated, or "items", for which users rated each item.

    Raises:
        InputError: the entity is neither.

    Examples:
        >>> ratings = Ratings(torch.tensor([0, 0, 0, 0, 1]), torch.arange(5), torch.ones(5))
        >>> features = implicit_features(ratings, "users")
        >>> features.names[:2]
        ('rated item 0', 'rated item 1')
        >>> features.matrix.values.tolist()  # 1/√4 for each of the first user's four ratings, 1/√1 for the second's one
        [0.5, 0.5, 0.5, 0.5, 1.0]
    """
    if entity == "users":
        pattern, names = ratings.pattern, [f"rated item {i}" for i in range(ratings.n_items)]
    elif entity == "items":
        pattern, names = ratings.pattern.T, [f"rated by user {j}" for j in range(ratings.n_users)]
    else:
        raise unknown("entity for implicit features", entity, ("users", "items"))
    scaled = pattern.counts.clamp_min(1).to(ratings.values.dtype).rsqrt()
    return Features(SparseMatrix(pattern, scaled.index_select(0, pattern.row)), tuple(names))


def joined(blocks: Sequence[Features]) -> Features:
    """Feature blocks as one, scaled so that a row of unit length in each of m blocks has unit length.

    Raises:
        InputError: the blocks differ in their number of rows, or there are none.
    """
    counts = {block.n_rows for block in blocks}
    if len(counts) != 1:
        raise InputError(f"feature blocks must have equal row counts (got {', '.join(map(str, counts)) or 'no block'})")
    starts = np.cumsum([0, *(block.n_features for block in blocks)])
    return Features.from_entries(
        torch.cat([block.matrix.pattern.row for block in blocks]),
        torch.cat([block.matrix.pattern.col + int(start) for block, start in zip(blocks, starts, strict=False)]),
        torch.cat([block.matrix.values for block in blocks]) / len(blocks) ** 0.5,
        blocks[0].n_rows,
        [name for block in blocks for name in block.names],
    )

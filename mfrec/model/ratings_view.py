"""Views: the ratings in the order of the users' rows, and in that of the items' rows, for the regressions of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from mfrec.data.partition import PartitionedRatings
from mfrec.data.ratings import Ratings
from mfrec.model.entity import ITEM, USER, Term
from mfrec.model.factorization import MatrixFactorization
from mfrec.sparse import CSRPattern, sddmm, spmm


def itself(tensor: Tensor) -> Tensor:
    """The sum over a single process."""
    return tensor


@dataclass(frozen=True, eq=False)
class RatingsView:
    """The ratings in the order of one entity's rows.

    pattern: rows × partners.
    targets: (n_entries,) ratings less the offset.
    rating_weights: w, (n_entries,), or None if all are 1.
    free: (1, k), 1 in the columns to solve for, 0 in that of the constant 1.
    scales: τ of the rows and of the partners, (n_rows, 1) and (n_cols, 1), or None if all are 1.
    first: the position of the first entry among those of all processes, for draws that belong to entries.
    rows: the entity's rows that are those of the pattern; by default all.
    total: the sum of a tensor over the processes that share the ratings, for sums over all ratings.
    """

    pattern: CSRPattern
    targets: Tensor
    rating_weights: Tensor | None
    free: Tensor
    scales: tuple[Tensor, Tensor] | None = None
    first: int = 0
    rows: slice | None = None
    total: Callable[[Tensor], Tensor] = itself

    @cached_property
    def weights(self) -> Tensor | None:
        """(n_entries,) τ τ w, or None if all are 1."""
        if self.scales is None:
            return self.rating_weights
        scales = sddmm(self.pattern, *self.scales)
        return scales if self.rating_weights is None else scales * self.rating_weights

    @cached_property
    def columns(self) -> Tensor:
        """The indices of the free columns."""
        return self.free[0].nonzero()[:, 0]

    def weighted(self, values: Tensor) -> Tensor:
        """(n_entries,) values, each multiplied by its weight."""
        return values if self.weights is None else values * self.weights

    def sums(self, partners: Tensor) -> Tensor:
        """(n_rows, k) the weighted sum of the partners' rows over each row's ratings, for partners of (n_cols, k)."""
        weights = partners.new_ones(self.pattern.n_entries) if self.weights is None else self.weights
        return spmm(self.pattern, weights, partners)

    def of_rows(self, table: Tensor) -> Tensor:
        """The rows of the pattern, of a table with a row for each of the entity's; a single row stands for all."""
        return table if self.rows is None or len(table) == 1 else table[self.rows]

    def block(self, rows: slice) -> RatingsView:
        """The view of a range of rows alone."""
        entries = self.pattern.entries_of(rows)
        return RatingsView(
            self.pattern.row_block(rows.start, rows.stop),
            self.targets[entries],
            None if self.rating_weights is None else self.rating_weights[entries],
            self.free,
            None if self.scales is None else (self.scales[0][rows], self.scales[1]),
            self.first + entries.start,
            rows,
        )


def solve_term(
    ratings: Ratings, term: Term, view: RatingsView, solve: Callable[[RatingsView], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """What `solve` returns for the view of all rows: tables with a row for each of the term's W̃.

    Each process solves its own rows, one block after another, and sends a block while it solves the next.  Feature
    weights are solved by all processes together, from sums over their ratings.
    """
    if not isinstance(ratings, PartitionedRatings) or term.row_entity is None:
        return solve(view)
    return ratings.share_blocks(term.row_entity, lambda rows: solve(view.block(rows)))


def ratings_views(model: MatrixFactorization, ratings: Ratings) -> tuple[RatingsView, RatingsView]:
    """The ratings in the order of the users, and in the order of the items."""
    (by_user, by_item), free, weights = targets(model, ratings), model.free_columns(), ratings.weights
    first_of_users, first_of_items = ratings.first_entries
    return (
        RatingsView(ratings.pattern, by_user, weights, free[USER], first=first_of_users, total=ratings.total),
        RatingsView(
            ratings.pattern.T, by_item, ratings.weights_by_item, free[ITEM], first=first_of_items, total=ratings.total
        ),
    )


def targets(model: MatrixFactorization, ratings: Ratings) -> tuple[Tensor, Tensor]:
    """(n_ratings,) the ratings less the effects, in the order of the users, and in that of the items."""
    by_user, offset = model.targets(ratings), model.offset
    if model.sessions is not None:
        return by_user, by_user.index_select(0, ratings.pattern.transpose_order)
    values = ratings.values_by_item
    if offset is not None and offset.ndim:
        offset = offset.repeat_interleave(ratings.pattern.T.counts)
    return by_user, values if offset is None else values - offset


def retargeted(
    views: tuple[RatingsView, RatingsView], by_user: Tensor, by_item: Tensor | None = None
) -> tuple[RatingsView, RatingsView]:
    """The views with other targets, (n_ratings,) in each order; by default, those of the items are the same."""
    if by_item is None:
        by_item = by_user.index_select(0, views[USER].pattern.transpose_order)
    return replace(views[USER], targets=by_user), replace(views[ITEM], targets=by_item)


def reweighted(
    views: tuple[RatingsView, RatingsView], precision_scales: Sequence[Tensor]
) -> tuple[RatingsView, RatingsView]:
    """The views with weights τ_j τ_i w: w are the ratings' own, τ the users' and items' precision scales, (n, 1)."""
    users, items = precision_scales
    return replace(views[USER], scales=(users, items)), replace(views[ITEM], scales=(items, users))

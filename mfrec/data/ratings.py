"""Ratings: the observed entries of the ratings matrix.

A rating y(i, j) of item i by user j is one entry of a matrix in which nearly everything is missing.  `Ratings` holds
the observed entries only, sorted by (user, item), so that the order of a file's rows never changes a result.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from mfrec.errors import InputError
from mfrec.sparse import CSRPattern, SparseMatrix, csr_pattern
from mfrec.sums import column_totals, ordered_sum

if TYPE_CHECKING:
    import scipy.sparse

T = TypeVar("T")


class HeldIndices(NamedTuple):
    """Some rows of a table: the number of all rows, and the indices of some, (n,) ascending."""

    n_all: int
    indices: Tensor


class Ratings:
    """Observed ratings of n_items items by n_users users, sorted by (user, item).

    Args:
        users, items: (n_ratings,) integer user and item indices, in any order.
        values: (n_ratings,) finite ratings; converted to float32 unless they are float64.
        n_users, n_items: the number of users and items; by default just large enough for the indices.
        timestamps: (n_ratings,) int64 seconds since 1970, if available.
        weights: (n_ratings,) positive weight of each rating in the objective; 1 by default.

    Attributes:
        matrix: the ratings as a sparse matrix, users × items.
        timestamps, weights: (n_ratings,), in the same order, or None.

    Raises:
        InputError: lengths differ, an index is out of range, a value is not finite, a weight is not positive, or a
            (user, item) pair repeats.

    Examples:
        >>> ratings = Ratings(users=torch.tensor([1, 0]), items=torch.tensor([0, 2]), values=torch.tensor([4.0, 5.0]))
        >>> ratings
        Ratings(2 of 2 users × 3 items, cpu)
        >>> ratings.users.tolist(), ratings.values.tolist()
        ([0, 1], [5.0, 4.0])
    """

    def __init__(
        self,
        users: Tensor,
        items: Tensor,
        values: Tensor,
        n_users: int | None = None,
        n_items: int | None = None,
        timestamps: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        users, items = torch.as_tensor(users), torch.as_tensor(items)
        values = torch.as_tensor(values)
        values = values if values.dtype == torch.float64 else values.float()
        if not len(users) == len(items) == len(values):
            raise InputError(
                f"users, items and values must have equal lengths (got {len(users)}, {len(items)}, {len(values)})"
            )
        if timestamps is not None and len(timestamps) != len(values):
            raise InputError(f"timestamps must have one value per rating: {len(values)} (got {len(timestamps)})")
        if weights is not None:
            weights = checked_weights(torch.as_tensor(weights).to(values.dtype), len(values))
        shape = _n_indices("user", users, n_users), _n_indices("item", items, n_items)
        if not bool(torch.isfinite(values).all()):
            bad = int((~torch.isfinite(values)).sum())
            raise InputError(f"ratings must be finite ({bad:,} of {len(values):,} are not); drop or replace them")
        pattern, order = csr_pattern(users, items, shape, "(user, item) pairs")

        def in_order(tensor: Tensor) -> Tensor:
            return tensor.clone() if order is None else tensor.index_select(0, order)

        self.matrix = SparseMatrix(pattern, in_order(values))
        self.timestamps = None if timestamps is None else in_order(timestamps).long()
        self.weights = None if weights is None else in_order(weights)

    @classmethod
    def of_matrix(
        cls, matrix: SparseMatrix, timestamps: Tensor | None = None, weights: Tensor | None = None
    ) -> Ratings:
        """Ratings of a matrix, users × items, with finite values; nothing is checked or copied."""
        ratings = cls.__new__(cls)
        ratings.matrix, ratings.timestamps, ratings.weights = matrix, timestamps, weights
        return ratings

    @classmethod
    def from_dense(cls, Y: Tensor | np.ndarray, R: Tensor | np.ndarray | None = None) -> Ratings:
        """Ratings from a dense matrix Y, items × users, and a matrix R that is not 0 where Y holds a rating.

        Without R, every entry that is not NaN is a rating.

        Raises:
            InputError: Y and R differ in shape, or a rating is not finite.
        """
        Y = torch.as_tensor(Y)
        observed = ~torch.isnan(Y) if R is None else torch.as_tensor(R) != 0
        if observed.shape != Y.shape:
            raise InputError(f"Y and R must have the same shape (got {tuple(Y.shape)} and {tuple(observed.shape)})")
        items, users = observed.nonzero(as_tuple=True)
        return cls(users, items, Y[items, users], n_users=Y.shape[1], n_items=Y.shape[0])

    @classmethod
    def from_scipy(cls, matrix: scipy.sparse.sparray | scipy.sparse.spmatrix) -> Ratings:
        """Ratings from a scipy sparse matrix, users × items; every stored entry is a rating, stored zeros too."""
        coo = matrix.tocoo()
        users, items = (torch.from_numpy(index.astype(np.int64)) for index in (coo.row, coo.col))
        return cls(users, items, torch.from_numpy(coo.data), n_users=coo.shape[0], n_items=coo.shape[1])

    def __len__(self) -> int:
        return self.pattern.n_entries

    def __repr__(self) -> str:
        return f"Ratings({len(self):,} of {self.n_users:,} users × {self.n_items:,} items, {self.device})"

    @property
    def pattern(self) -> CSRPattern:
        """The positions of the ratings, users × items; `pattern.T` is items × users."""
        return self.matrix.pattern

    @property
    def users(self) -> Tensor:
        """(n_ratings,) the user index of each rating."""
        return self.pattern.row

    @property
    def items(self) -> Tensor:
        """(n_ratings,) the item index of each rating."""
        return self.pattern.col

    @property
    def values(self) -> Tensor:
        """(n_ratings,) the ratings, in stars."""
        return self.matrix.values

    @property
    def n_users(self) -> int:
        """The number of users, including users without a rating."""
        return self.pattern.shape[0]

    @property
    def n_items(self) -> int:
        """The number of items, including items without a rating."""
        return self.pattern.shape[1]

    @property
    def n_ratings(self) -> int:
        """The number of ratings, also `len(ratings)`; of the ratings of all processes, if they are partitioned."""
        return len(self)

    @property
    def device(self) -> torch.device:
        """The device of all tensors."""
        return self.values.device

    @cached_property
    def user_counts(self) -> Tensor:
        """(n_users,) int64 number of ratings of each user."""
        return self.pattern.counts.long()

    @cached_property
    def item_counts(self) -> Tensor:
        """(n_items,) int64 number of ratings of each item."""
        return torch.bincount(self.items, minlength=self.n_items)

    @property
    def is_partitioned(self) -> bool:
        """Whether several processes hold the ratings, each its own; see `mfrec.data.partition`."""
        return False

    @property
    def held_rows(self) -> tuple[HeldIndices, HeldIndices] | None:
        """The users and the items that tables have a row for; None if that is all of them."""
        return None

    @property
    def n_all(self) -> tuple[int, int]:
        """The numbers of all users and of all items; tables have fewer rows if there are `held_rows`."""
        return self.matrix.shape

    @property
    def local_pattern(self) -> CSRPattern:
        """The positions of this process's ratings, users × items, with a transpose of just these ratings."""
        return self.pattern

    def row_indices(self, entity: int) -> Tensor:
        """(n_rows,) int64, on the CPU, the index of each row of a table among all users or items."""
        return torch.arange(self.matrix.shape[entity])

    @property
    def values_by_item(self) -> Tensor:
        """(n_ratings,) the ratings in the order of the items."""
        return self.values.index_select(0, self.pattern.transpose_order)

    @property
    def weights_by_item(self) -> Tensor | None:
        """(n_ratings,) the weights of the ratings in the order of the items, or None."""
        return None if self.weights is None else self.weights.index_select(0, self.pattern.transpose_order)

    @property
    def first_entries(self) -> tuple[int, int]:
        """The positions of the first rating among those of all processes, by user and by item."""
        return 0, 0

    def total(self, values: Tensor) -> Tensor:
        """The sum of the values, of any shape, over the processes; the values, unless the ratings are partitioned.

        With the methods below, the same lines train in one process and in several.
        """
        return values

    def share(self, entity: int, table: Tensor) -> Tensor:
        """The table, (n_rows, …) of users or items, with the rows that each process computed, in all processes."""
        return table

    def complete(self, entity: int, table: Tensor) -> Tensor | None:
        """A table with all rows of users or items, from the rows of each process; None in a process that lacks some."""
        return table

    def held_of(self, entity: int, table: Tensor) -> Tensor:
        """The rows of `held_rows`, of a table with all rows of users or items."""
        return table

    def row_sum(self, entity: int | None, table: Tensor, add_up: Callable[[Tensor], Tensor] = ordered_sum) -> Tensor:
        """The sum of a table, (n_rows, …), with each row of users or items counted once among the processes.

        Args:
            entity: None if the table's rows are neither users nor items.
            add_up: the sum of the rows of a table, by default () of all its numbers.
        """
        return add_up(table)

    def sum_tables(self, entity: int, table: Tensor) -> Tensor:
        """The sum of the tables of all processes, (n_rows, …); each holds partial sums of its rows."""
        return table

    def rows_at(self, entity: int, table: Tensor, indices: Tensor) -> Tensor:
        """(n, …) the rows of a table at indices, (n,), among all users or items."""
        return table[indices]

    def row_mean(self, entity: int, rows: Tensor, is_counted: Tensor) -> Tensor:
        """(k,) the mean of a table's rows, (n_rows, k), at which a mask, (n_rows,) bool, is True in any process."""
        is_counted = is_counted[:, None].to(rows.device)
        total = self.row_sum(entity, rows * is_counted, column_totals)
        return total / self.row_sum(entity, is_counted.double()).to(rows)

    def gathered(self, values: Tensor) -> Tensor:
        """(n_ratings,) the values of the ratings of all processes, from those of this one."""
        return values

    def mean(self, values: Tensor) -> Tensor:
        """() the mean of the values of the ratings of all processes, from those of this one, (n,), in float64."""
        return self.total(ordered_sum(values, torch.float64)) / self.n_ratings

    def std(self, values: Tensor) -> float:
        """The standard deviation of the values, as for `mean`."""
        return float(self.mean((values - self.mean(values)).square_()).sqrt())

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any of the processes."""
        return flag

    def from_first(self, value: T) -> T:
        """The value that the first of the processes passed: tensors on the CPU, numbers, strings, lists and dicts."""
        return value

    def pairs_at(self, positions: Tensor) -> Tensor:
        """(2, n) int64 users and items of the ratings at these positions, (n,), among those of all processes."""
        return torch.stack([self.users[positions].long(), self.items[positions].long()])

    def weighted(self, values: Tensor) -> Tensor:
        """(n_ratings,) values in the order of the ratings, each multiplied by the weight of its rating."""
        return values if self.weights is None else values * self.weights

    def select(self, mask: Tensor) -> Ratings:
        """The ratings at which the mask, (n_ratings,) bool, is True; the numbers of users and items stay.

        Raises:
            InputError: the mask has another shape or type.
        """
        if mask.dtype != torch.bool or mask.shape != (len(self),):
            raise InputError(f"the mask must be ({len(self)},) bool (got {tuple(mask.shape)} {mask.dtype})")
        kept = mask.to(self.device).nonzero().squeeze(1)
        return self._changed(self.matrix.select(kept), lambda tensor: tensor.index_select(0, kept))

    def split(self, held_out: Tensor) -> tuple[Ratings, Ratings]:
        """(kept, held out) by a mask, (n_ratings,) bool, such as the functions of `SPLITS` return.

        Examples:
            >>> ratings = Ratings(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), torch.tensor([5.0, 3.0, 4.0]))
            >>> kept, held_out = ratings.split(torch.tensor([False, True, False]))
            >>> kept.values.tolist(), held_out.values.tolist()
            ([5.0, 4.0], [3.0])
        """
        return self.select(~held_out), self.select(held_out)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Ratings:
        """These ratings on another device, or with values of another type (float32 or float64)."""
        device = self.device if device is None else torch.device(device)

        def change(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else None)

        if dtype in (None, self.values.dtype):
            return self._changed(self.matrix.apply(change), change)
        # Rounding may leave a rating infinite or a weight 0, which the constructor refuses.
        timestamps, weights = (None if t is None else change(t) for t in (self.timestamps, self.weights))
        indices = change(self.users), change(self.items)
        return Ratings(*indices, change(self.values), *self.matrix.shape, timestamps, weights)

    def _changed(self, matrix: SparseMatrix, change: Callable[[Tensor], Tensor]) -> Ratings:
        """Ratings with this matrix, and with the other tensors changed alike."""
        return Ratings.of_matrix(matrix, *(None if t is None else change(t) for t in (self.timestamps, self.weights)))


def checked_weights(weights: Tensor, n_ratings: int) -> Tensor:
    """The weights of n_ratings ratings.

    Raises:
        InputError: there is not one for each rating, or one is not positive and finite.
    """
    if len(weights) != n_ratings:
        raise InputError(f"weights must have one value per rating: {n_ratings} (got {len(weights)})")
    wrong = weights[~((weights > 0) & torch.isfinite(weights))]
    if len(wrong):
        raise InputError(f"weights must be positive and finite (got {float(wrong[0]):g}); leave out such ratings")
    return weights


def _n_indices(kind: str, indices: Tensor, declared: int | None) -> int:
    if indices.is_floating_point():
        raise InputError(f"{kind} indices must be integers (got {indices.dtype}); Dataset maps ids to indices")
    low, high = (int(indices.min()), int(indices.max())) if len(indices) else (0, -1)
    size = high + 1 if declared is None else declared
    if low < 0 or high >= size:
        raise InputError(f"{kind} indices must be in 0 … {size - 1:,} (got {low if low < 0 else high})")
    return size

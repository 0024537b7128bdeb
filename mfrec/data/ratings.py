"""Ratings: the observed entries of the ratings matrix, and how to split them.

A rating y(i, j) of item i by user j is one entry of a matrix of which nearly everything is missing.  `Ratings` keeps
the observed entries only, in coordinate form, sorted by (user, item), so that the order of a file's rows never changes
a result.  `by_user` and `by_item` are the two compressed-sparse-row views that the sparse products read.

A split is a boolean mask over the ratings: True for the part held out.  `ratings.split(mask)` gives the two parts,
disjoint and complete by construction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from mfrec.errors import InputError


@dataclass(frozen=True, eq=False)
class Pattern:
    """Which entries of an n_rows × n_cols matrix are observed, in compressed-sparse-row order.

    crow: (n_rows + 1,) where each row's entries begin; col: (n_entries,) the column of each entry.  Both are int32
    where the counts fit, which halves the traffic of the sparse products.
    """

    crow: Tensor
    col: Tensor
    shape: tuple[int, int]

    @cached_property
    def row(self) -> Tensor:
        """The row of each entry, (n_entries,)."""
        rows = torch.arange(self.shape[0], dtype=self.col.dtype, device=self.col.device)
        return torch.repeat_interleave(rows, self.counts)

    @cached_property
    def counts(self) -> Tensor:
        """The number of observed entries in each row, (n_rows,)."""
        return self.crow.diff()

    def row_block(self, first: int, end: int) -> Pattern:
        """The pattern of rows first … end-1 alone."""
        crow = self.crow[first : end + 1]
        return Pattern(crow - crow[0], self.col[int(crow[0]) : int(crow[-1])], (len(crow) - 1, self.shape[1]))


def pattern_of_sorted(rows: Tensor, cols: Tensor, shape: tuple[int, int]) -> Pattern:
    """The pattern of entries already sorted by row, (n_entries,) rows and columns."""
    crow = torch.zeros(shape[0] + 1, dtype=rows.dtype, device=rows.device)
    crow[1:] = torch.bincount(rows, minlength=shape[0]).cumsum(0)
    return Pattern(crow, cols, shape)


class Ratings:
    """Observed ratings of n_items items by n_users users, sorted by (user, item).

    Args:
        users, items: (n_ratings,) integer indices into the user and item tables, in any order.
        values: (n_ratings,) finite ratings; float32 unless they are float64.
        n_users, n_items: table sizes; by default just large enough for the indices given.
        timestamps: (n_ratings,) int64 seconds since 1970, where they are known.
        weights: (n_ratings,) how much each rating counts, above 0; without them each counts 1.

    Attributes:
        users, items: (n_ratings,) indices, int32 where all counts fit, else int64.
        values, timestamps, weights: (n_ratings,), in the same order; the last two None where not known.

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
        if values.dtype != torch.float64:
            values = values.float()
        if not len(users) == len(items) == len(values):
            raise InputError(f"users, items and values differ in length: {len(users)}, {len(items)}, {len(values)}")
        if timestamps is not None and len(timestamps) != len(values):
            raise InputError(f"{len(timestamps)} timestamps for {len(values)} ratings")
        if weights is not None:
            weights = torch.as_tensor(weights).to(values.dtype)
            if len(weights) != len(values):
                raise InputError(f"{len(weights)} weights for {len(values)} ratings")
            wrong = weights[~((weights > 0) & torch.isfinite(weights))]
            if len(wrong):
                raise InputError(
                    f"weight {float(wrong[0]):g} is not above 0 and finite; leave out ratings that do not count"
                )
        self.n_users = _table_size("user", users, n_users)
        self.n_items = _table_size("item", items, n_items)
        if not bool(torch.isfinite(values).all()):
            bad = int((~torch.isfinite(values)).sum())
            raise InputError(f"{bad:,} of {len(values):,} ratings are NaN or infinite; drop them or give them a value")

        key = users.long() * self.n_items + items.long()
        if bool((key.diff() <= 0).any()):
            key, order = torch.sort(key)
            users, items, values = users[order], items[order], values[order]
            timestamps = None if timestamps is None else timestamps[order]
            weights = None if weights is None else weights[order]
            repeated = int((key.diff() == 0).sum())
            if repeated:
                raise InputError(f"{repeated:,} (user, item) pairs occur more than once; keep one rating of each")
        index_dtype = torch.int32 if max(len(values), self.n_users, self.n_items) < 2**31 else torch.int64
        # Copies, so that what the caller does to its tensors later goes round no check.
        self.users, self.items = users.to(index_dtype, copy=True), items.to(index_dtype, copy=True)
        self.values = values.clone()
        self.timestamps = None if timestamps is None else timestamps.long()
        self.weights = None if weights is None else weights.clone()

    @classmethod
    def from_dense(cls, Y: Tensor | np.ndarray, R: Tensor | np.ndarray | None = None) -> Ratings:
        """From the texts' Y, movies × users, where R[i, j] = 1 marks a rating; without R, whatever is not NaN.

        Raises:
            InputError: Y and R differ in shape, or a rating that R marks is not finite.
        """
        Y = torch.as_tensor(Y)
        observed = ~torch.isnan(Y) if R is None else torch.as_tensor(R) != 0
        if observed.shape != Y.shape:
            raise InputError(f"Y is {tuple(Y.shape)} but R is {tuple(observed.shape)}; both are movies × users")
        items, users = observed.nonzero(as_tuple=True)
        return cls(users, items, Y[items, users], n_users=Y.shape[1], n_items=Y.shape[0])

    @classmethod
    def from_scipy(cls, matrix: scipy.sparse.sparray | scipy.sparse.spmatrix) -> Ratings:
        """From a users × items scipy sparse matrix; every stored entry is a rating, stored zeros too."""
        coo = matrix.tocoo()
        users, items = (torch.from_numpy(index.astype(np.int64)) for index in (coo.row, coo.col))
        return cls(users, items, torch.from_numpy(coo.data), n_users=coo.shape[0], n_items=coo.shape[1])

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"Ratings({len(self):,} of {self.n_users:,} users × {self.n_items:,} items, {self.device})"

    @property
    def device(self) -> torch.device:
        """Where all of its tensors are."""
        return self.values.device

    @property
    def n_ratings(self) -> int:
        """How many pairs are rated, which is `len()` of this too."""
        return len(self.values)

    @cached_property
    def user_counts(self) -> Tensor:
        """(n_users,) number of ratings of each user."""
        return torch.bincount(self.users, minlength=self.n_users)

    @cached_property
    def item_counts(self) -> Tensor:
        """(n_items,) number of ratings of each item."""
        return torch.bincount(self.items, minlength=self.n_items)

    @cached_property
    def by_user(self) -> Pattern:
        """Users × items; its entries are in the order of `values`."""
        return pattern_of_sorted(self.users, self.items, (self.n_users, self.n_items))

    @cached_property
    def item_order(self) -> Tensor:
        """(n_ratings,) positions that sort the ratings by (item, user): `values[item_order]` belongs to `by_item`."""
        return torch.argsort(self.items, stable=True).to(self.items.dtype)

    @cached_property
    def by_item(self) -> Pattern:
        """Items × users, the transpose of `by_user`; its entries are in the order of `values[item_order]`."""
        order = self.item_order
        rows, cols = self.items.index_select(0, order), self.users.index_select(0, order)
        return pattern_of_sorted(rows, cols, (self.n_items, self.n_users))

    @cached_property
    def by_item_weights(self) -> Tensor | None:
        """The weights in the order of `by_item`."""
        return None if self.weights is None else self.weights.index_select(0, self.item_order)

    def weighted(self, errors: Tensor) -> Tensor:
        """Numbers in the order of the ratings, (n_ratings,), each times its rating's weight."""
        return errors if self.weights is None else errors * self.weights

    def select(self, mask: Tensor) -> Ratings:
        """The ratings where mask, (n_ratings,) bool, is True; the tables keep their sizes."""
        return self._with(lambda tensor: tensor[mask])

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
        """These ratings on another device or with values of another dtype (float32 or float64)."""
        device = self.device if device is None else torch.device(device)
        return self._with(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    def _with(self, change: Callable[[Tensor], Tensor]) -> Ratings:
        timestamps, weights = (None if t is None else change(t) for t in (self.timestamps, self.weights))
        users, items, values = change(self.users), change(self.items), change(self.values)
        return Ratings(users, items, values, self.n_users, self.n_items, timestamps, weights)


def _table_size(kind: str, indices: Tensor, declared: int | None) -> int:
    if indices.is_floating_point():
        raise InputError(f"{kind} indices are {indices.dtype}; give integers (ids are mapped by Dataset)")
    low, high = (int(indices.min()), int(indices.max())) if len(indices) else (0, -1)
    size = high + 1 if declared is None else declared
    if low < 0 or high >= size:
        raise InputError(f"{kind} index {low if low < 0 else high} is outside the table of {size:,} {kind}s")
    return size


def random_split(ratings: Ratings, fraction: float, generator: torch.Generator) -> Tensor:
    """Hold out round(fraction · n_ratings) ratings drawn without replacement.

    Raises:
        InputError: the fraction is not in [0, 1).
    """
    held = torch.zeros(len(ratings), dtype=torch.bool)
    held[torch.randperm(len(ratings), generator=generator)[: _share(len(ratings), fraction)]] = True
    return held


def per_user_split(ratings: Ratings, fraction: float, generator: torch.Generator) -> Tensor:
    """Hold out round(fraction · n) of each user's n ratings, drawn without replacement.

    Raises:
        InputError: the fraction is not in [0, 1).
    """
    _share(0, fraction)
    shuffled = torch.rand(len(ratings), dtype=torch.float64, generator=generator)
    return _last_of_each_user(ratings, shuffled, (ratings.by_user.counts.cpu() * fraction).round())


def time_split(ratings: Ratings, fraction: float, generator: torch.Generator) -> Tensor:
    """Hold out the newest round(fraction · n_ratings) ratings; ties are drawn by lot.

    Raises:
        InputError: the ratings have no timestamps, or the fraction is not in [0, 1).
    """
    lot = torch.randperm(len(ratings), generator=generator)
    newest = lot[torch.argsort(_timestamps(ratings)[lot], descending=True, stable=True)]
    held = torch.zeros(len(ratings), dtype=torch.bool)
    held[newest[: _share(len(ratings), fraction)]] = True
    return held


def leave_last_out(ratings: Ratings, fraction: float, generator: torch.Generator) -> Tensor:
    """Hold out each user's newest rating (for whatever fraction), ties drawn by lot; a user's only rating is kept.

    Raises:
        InputError: the ratings have no timestamps.
    """
    lot = torch.randperm(len(ratings), generator=generator)
    rank = torch.empty(len(ratings), dtype=torch.float64)
    rank[lot[torch.argsort(_timestamps(ratings)[lot], stable=True)]] = torch.arange(len(ratings), dtype=torch.float64)
    return _last_of_each_user(ratings, rank, (ratings.by_user.counts.cpu() > 1).double())


def cold_items(ratings: Ratings, fraction: float, generator: torch.Generator) -> Tensor:
    """Hold out all ratings of round(fraction · n) of the n items that have any, drawn without replacement.

    Raises:
        InputError: the fraction is not in [0, 1).
    """
    rated = ratings.item_counts.cpu().nonzero()[:, 0]
    cold = torch.zeros(ratings.n_items, dtype=torch.bool)
    cold[rated[torch.randperm(len(rated), generator=generator)[: _share(len(rated), fraction)]]] = True
    return cold[ratings.items.cpu().long()]


def k_folds(ratings: Ratings, k: int, generator: torch.Generator) -> Tensor:
    """(n_ratings,) fold number 0 … k-1 of each rating, equal in size to within one; `folds == f` is a mask.

    Raises:
        InputError: k is below 2 or above the number of ratings.
    """
    if not 2 <= k <= len(ratings):
        raise InputError(f"{k} folds of {len(ratings):,} ratings; give from 2 to {len(ratings):,}")
    folds = torch.empty(len(ratings), dtype=torch.int64)
    folds[torch.randperm(len(ratings), generator=generator)] = torch.arange(len(ratings)) % k
    return folds


SPLITS: dict[str, Callable[[Ratings, float, torch.Generator], Tensor]] = {
    "random": random_split,
    "per-user": per_user_split,
    "time": time_split,
    "leave-last-out": leave_last_out,
    "cold-items": cold_items,
}


def _share(n: int, fraction: float) -> int:
    if not 0 <= fraction < 1:
        raise InputError(f"fraction {fraction:g} to hold out is not in [0, 1); 0.1 holds out a tenth")
    return round(n * fraction)


def _timestamps(ratings: Ratings) -> Tensor:
    if ratings.timestamps is None:
        raise InputError("these ratings have no timestamps; split them with random or per-user")
    return ratings.timestamps.cpu()


def _last_of_each_user(ratings: Ratings, key: Tensor, n_held: Tensor) -> Tensor:
    """Mask of the n_held[j] ratings of each user j with the largest keys."""
    users = ratings.users.cpu()
    by_key = torch.argsort(key)
    order = by_key[torch.argsort(users[by_key], stable=True)]
    from_the_end = ratings.by_user.crow.cpu()[1:][users[order]] - torch.arange(len(order))
    held = torch.zeros(len(ratings), dtype=torch.bool)
    held[order] = from_the_end <= n_held[users[order]]
    return held

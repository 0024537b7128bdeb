"""Partitioned ratings: those of one of several processes that train one model together.

A row's problem needs the row's own ratings and its partners' factors.  Each process owns a range of users and a range
of items, and holds the ratings of both: its users' rows of the ratings matrix R, and its items' rows of Rᵀ.  Other rows
are empty, so that every product over rows is right in the rows that the process owns, and costs nothing in others.
Factors travel after each half-sweep, `k` numbers a row; statistics, such as the k × k matrices of the rows, do not.

    total(values)          sums over processes: costs, squared errors of columns
    share(entity, table)   the rows that each process owns, in all processes: factors, gradients, sums over rows
    gathered(values)       predictions of all ratings, in the order of the users

By default, each process holds the tables of all rows, and they are alike after every epoch.  With partial tables, it
holds the rows that it owns and those that its ratings meet (`mfrec.data.held_rows`).  Its users and items then are
positions in these tables.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from mfrec.data.held_rows import Arrival, Block, HeldRows, NeededRows
from mfrec.data.ratings import HeldIndices, Ratings
from mfrec.data.splits import SPLIT_NAMES
from mfrec.processes import Processes, balanced
from mfrec.sparse import CSRPattern, SparseMatrix
from mfrec.sums import ordered_sum

T = TypeVar("T")

# Ratings at most, about, by which processes compare what they have read.
SAMPLED = 2**20


class PartitionedRatings(Ratings):
    """The ratings of the users and of the items that one process owns.

    `len(ratings)`, `values`, `users` and `items` are those of its users; `n_ratings`, `user_counts` and `item_counts`
    are those of all processes.  `select` returns ratings of this process alone.

    Args:
        processes: the processes that partition the ratings.
        by_user: users × items; rows that the process does not own are empty.
        by_item: items × users, likewise.
        held: the rows of users and of items that the process holds.
        timestamps: (n,) in the order of `by_user`, or None.
        weights: of the ratings in the order of `by_user` and in that of `by_item`, or None.
    """

    def __init__(
        self,
        processes: Processes,
        by_user: SparseMatrix,
        by_item: SparseMatrix,
        held: tuple[HeldRows, HeldRows],
        timestamps: Tensor | None = None,
        weights: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.processes, self.held = processes, held
        # No order of its entries makes by_item of by_user: only all processes together have the entries of both.
        no_order = by_user.pattern.col.new_empty(0)
        self.matrix = by_user
        self.matrix.T = by_item
        self.matrix.pattern._transposed = (no_order, by_item.pattern)
        self.timestamps = timestamps
        self.weights: Tensor | None
        self._weights_by_item: Tensor | None
        self.weights, self._weights_by_item = weights or (None, None)

    @cached_property
    def n_ratings(self) -> int:
        """The number of ratings of all processes."""
        return int(self.total(torch.tensor(len(self), device=self.device)))

    @cached_property
    def user_counts(self) -> Tensor:
        """(n_users,) int64 number of ratings of each user."""
        return self.share(0, self.pattern.counts.long())

    @cached_property
    def item_counts(self) -> Tensor:
        """(n_items,) int64 number of ratings of each item."""
        return self.share(1, self.pattern.T.counts.long())

    @property
    def is_partitioned(self) -> bool:
        return True

    @property
    def held_rows(self) -> tuple[HeldIndices, HeldIndices] | None:
        users, items = (held.indices for held in self.held)
        return None if users is None or items is None else (users, items)

    @property
    def n_all(self) -> tuple[int, int]:
        users, items = self.held
        return users.n_all, items.n_all

    @cached_property
    def local_pattern(self) -> CSRPattern:
        """The positions of this process's ratings, with a transpose of just these ratings."""
        return CSRPattern(self.pattern.crow, self.pattern.col, self.pattern.shape)

    def row_indices(self, entity: int) -> Tensor:
        held = self.held[entity].indices
        return super().row_indices(entity) if held is None else held.indices

    @property
    def values_by_item(self) -> Tensor:
        return self.matrix.T.values

    @property
    def weights_by_item(self) -> Tensor | None:
        return self._weights_by_item

    @cached_property
    def first_entries(self) -> tuple[int, int]:
        """The positions of the first rating among those of all processes, by user and by item."""
        counts = torch.tensor([len(self), len(self.values_by_item)])
        user, item = self.gathered(counts).view(-1, 2)[: self.processes.index].sum(0).tolist()
        return user, item

    def total(self, values: Tensor) -> Tensor:
        return self.processes.total(values)

    def share(self, entity: int, table: Tensor) -> Tensor:
        return self.held[entity].share(table.contiguous())

    def share_blocks(self, entity: int, solve: Callable[[slice], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Tables of all rows, from a function that makes the rows of a range; ranges travel while others are made.

        Args:
            solve: the rows of each table in a range that this process owns.
        """
        tables: list[Tensor] = []
        pending: list[Arrival] = []
        for block in self._blocks[entity]:
            made = solve(block.rows)
            if not tables:
                tables = [part.new_empty(self.held[entity].n, *part.shape[1:]) for part in made]
            for table, part in zip(tables, made, strict=True):
                table[block.rows] = part
                pending += block.start(table)
        for arrival in pending:
            arrival.wait()
        return tuple(tables)

    @cached_property
    def _blocks(self) -> tuple[Sequence[Block], Sequence[Block]]:
        """The blocks of rows of users and of items, balanced by ratings."""
        users, items = self.held
        return users.blocks(self.user_counts), items.blocks(self.item_counts)

    def complete(self, entity: int, table: Tensor) -> Tensor | None:
        return self.held[entity].complete(table)

    def held_of(self, entity: int, table: Tensor) -> Tensor:
        return self.held[entity].of_all(table)

    def row_sum(self, entity: int | None, table: Tensor, add_up: Callable[[Tensor], Tensor] = ordered_sum) -> Tensor:
        if entity is None or self.held[entity].indices is None:
            return add_up(table)
        total = self.total(add_up(table[self.held[entity].owned]))
        if not table.requires_grad:
            return total
        # The value counts each row once.  The gradient must reach every held row, since each process steps its copies.
        part = add_up(table)
        return total + (part - part.detach())

    def sum_tables(self, entity: int, table: Tensor) -> Tensor:
        return self.held[entity].sum_tables(table)

    def rows_at(self, entity: int, table: Tensor, indices: Tensor) -> Tensor:
        held = self.held[entity]
        if held.indices is None:
            return table[indices]
        places = indices - held.parts[self.processes.index].start + held.owned.start
        is_owned = (places >= held.owned.start) & (places < held.owned.stop)
        rows = table.new_zeros(len(indices), *table.shape[1:])
        rows[is_owned] = table[places[is_owned]]
        return self.total(rows)

    def gathered(self, values: Tensor) -> Tensor:
        return self.processes.gathered(values)

    def any(self, flag: bool) -> bool:
        return self.processes.any(flag)

    def from_first(self, value: T) -> T:
        return self.processes.from_first(value)

    def pairs_at(self, positions: Tensor) -> Tensor:
        places = positions - self.first_entries[0]
        is_here = (places >= 0) & (places < len(self))
        users, items = super().pairs_at(places[is_here])
        pairs = torch.stack([self.row_indices(0)[users.cpu()], self.row_indices(1)[items.cpu()]]).to(positions.device)
        filled = pairs.new_zeros(2, len(positions))
        filled[:, is_here] = pairs
        return self.total(filled)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> PartitionedRatings:
        matrix, transposed = self.matrix.to(device, dtype), self.matrix.T.to(device, dtype)
        timestamps = None if self.timestamps is None else self.timestamps.to(matrix.values.device)
        users, items = (held.to(matrix.values.device) for held in self.held)
        weights = None
        if self.weights is not None and self._weights_by_item is not None:
            weights = self.weights.to(matrix.values), self._weights_by_item.to(matrix.values)
        return PartitionedRatings(self.processes, matrix, transposed, (users, items), timestamps, weights)


def partitioned_splits(
    ratings: Ratings,
    labels: Tensor,
    processes: Processes,
    device: torch.device | str = "cpu",
    *,
    partial_tables: bool = False,
) -> dict[str, PartitionedRatings]:
    """The ratings of each split by name, of this process; splits without ratings are left out.

    The ranges of rows are balanced by all ratings, so that the splits have the same ones.

    Args:
        ratings: of all processes, on the CPU; only those of this process are read, and may be mapped from a file.
        labels: (n_ratings,) TRAIN, VALID or TEST.
        partial_tables: whether the process holds only the rows that its ratings meet, in any split.
    """
    matrix, order = ratings.matrix, ratings.pattern.transpose_order
    patterns = ratings.pattern, ratings.pattern.T
    parts = [balanced(pattern.counts, processes.count) for pattern in patterns]
    entries = [pattern.entries_of(owned[processes.index]) for pattern, owned in zip(patterns, parts, strict=True)]
    by_user, by_item = entries
    met = ratings.pattern.T.col[by_item], ratings.pattern.col[by_user]
    users, items = (
        NeededRows(processes, owned, rows) if partial_tables else HeldRows(processes, owned)
        for owned, rows in zip(parts, met, strict=True)
    )
    places = order[by_item].long()
    user_labels, item_labels = labels[by_user], labels[places]
    user_values, item_values = matrix.values[by_user], matrix.values.index_select(0, places)
    all_weights = None if (w := ratings.weights) is None else (w[by_user], w.index_select(0, places))
    splits = {}
    for name, label in SPLIT_NAMES.items():
        if not processes.any(bool((user_labels == label).any())):
            continue
        kept, kept_by_item = user_labels == label, item_labels == label
        timestamps = None if ratings.timestamps is None else ratings.timestamps[by_user][kept]
        weights = None if all_weights is None else (all_weights[0][kept], all_weights[1][kept_by_item])
        splits[name] = PartitionedRatings(
            processes,
            _owned_rows(ratings.pattern, kept, user_values[kept], users, items),
            _owned_rows(ratings.pattern.T, kept_by_item, item_values[kept_by_item], items, users),
            (users, items),
            timestamps,
            weights,
        ).to(device)
    return splits


def data_digests(ratings: Ratings, labels: Tensor) -> dict[str, bytes]:
    """Digests of ratings and of their split, by which processes compare what they have read.

    A data set that takes long to read is sampled.
    """
    sample = torch.arange(0, len(ratings), max(1, len(ratings) // SAMPLED))
    columns = [ratings.users, ratings.items, ratings.values]
    columns += [column for column in (ratings.timestamps, ratings.weights) if column is not None]
    digest = hashlib.sha256(repr((*ratings.matrix.shape, len(ratings), len(columns))).encode())
    for column in columns:
        digest.update(column[sample].numpy().tobytes())
    return {"ratings": digest.digest(), "split": hashlib.sha256(labels.to(torch.uint8).numpy().data).digest()}


def _owned_rows(pattern: CSRPattern, kept: Tensor, values: Tensor, rows: HeldRows, cols: HeldRows) -> SparseMatrix:
    """Held rows × held columns of a matrix: some entries of the rows that this process owns; other rows are empty.

    Args:
        pattern: of all rows.
        kept: (n,) bool, which entries of the owned rows.
        values: those of the kept entries.
    """
    part = rows.parts[rows.processes.index]
    entries = pattern.entries_of(part)
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), kept.cumsum(0)])
    crow = torch.zeros(rows.n + 1, dtype=torch.int64)
    crow[rows.owned.start : rows.owned.stop + 1] = ends[pattern.crow[part.start : part.stop + 1].long() - entries.start]
    crow[rows.owned.stop + 1 :] = len(values)
    col = cols.positions(pattern.col[entries][kept]).to(pattern.col.dtype)
    return SparseMatrix(CSRPattern(crow.to(pattern.crow.dtype), col, (rows.n, cols.n)), values)

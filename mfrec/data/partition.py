"""Partitioned ratings: those of one of several processes that train one model together.

A row's problem needs the row's own ratings and its partners' factors.  Each process owns a range of users and a range
of items, and holds the ratings of both: its users' rows of the ratings matrix R, and its items' rows of Rᵀ.  Other rows
are empty, so that every product over rows is right in the rows that the process owns, and costs nothing in others.
Factors travel after each half-sweep, `k` numbers a row; statistics, such as the k × k matrices of the rows, do not.

    total(values)          sums over processes: costs, squared errors of columns
    share(entity, table)   the rows that each process owns, in all processes: factors, gradients, sums over rows
    gathered(values)       predictions of all ratings, in the order of the users

The models of all processes are complete and alike after every epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.data.splits import SPLIT_NAMES
from mfrec.errors import InputError
from mfrec.processes import Processes, balanced
from mfrec.sparse import CSRPattern, SparseMatrix

T = TypeVar("T")

# Blocks in which rows are solved and sent: the last one alone is sent while nothing is solved.
BLOCKS = 4
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
        parts: the rows of each process, of the users and of the items.
        timestamps: (n,) in the order of `by_user`, or None.
    """

    def __init__(
        self,
        processes: Processes,
        by_user: SparseMatrix,
        by_item: SparseMatrix,
        parts: tuple[list[slice], list[slice]],
        timestamps: Tensor | None = None,
    ) -> None:
        self.processes, self.parts = processes, parts
        # No order of its entries makes by_item of by_user: only all processes together have the entries of both.
        no_order = by_user.pattern.col.new_empty(0)
        self.matrix = by_user
        self.matrix.T = by_item
        self.matrix.pattern._transposed = (no_order, by_item.pattern)
        self.timestamps, self.weights = timestamps, None

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
    def values_by_item(self) -> Tensor:
        return self.matrix.T.values

    @cached_property
    def first_entries(self) -> tuple[int, int]:
        """The positions of the first rating among those of all processes, by user and by item."""
        index = self.processes.index
        counts = zip((self.user_counts, self.item_counts), self.parts, strict=True)
        user, item = (int(count[: rows[index].start].sum()) for count, rows in counts)
        return user, item

    def total(self, values: Tensor) -> Tensor:
        return self.processes.total(values)

    def share(self, entity: int, table: Tensor) -> Tensor:
        return self.processes.share(table.contiguous(), self.parts[entity])

    def share_blocks(self, entity: int, solve: Callable[[slice], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Tables of all rows, from a function that makes the rows of a range; ranges travel while others are made.

        Args:
            solve: the rows of each table in a range that this process owns.
        """
        tables: list[Tensor] = []
        pending: list[dist.Work] = []
        for block in self._blocks[entity]:
            rows = block[self.processes.index]
            made = solve(rows)
            if not tables:
                tables = [part.new_empty(self.matrix.shape[entity], *part.shape[1:]) for part in made]
            for table, part in zip(tables, made, strict=True):
                table[rows] = part
                pending += self.processes.start_sharing(table, block)
        for work in pending:
            work.wait()
        return tuple(tables)

    @cached_property
    def _blocks(self) -> tuple[list[list[slice]], list[list[slice]]]:
        """For users and items, the blocks of rows, each with a range of every process, balanced by ratings."""
        users, items = (
            [_blocks_of(counts, rows) for rows in parts]
            for counts, parts in zip((self.user_counts, self.item_counts), self.parts, strict=True)
        )
        return [list(block) for block in zip(*users, strict=True)], [list(block) for block in zip(*items, strict=True)]

    def gathered(self, values: Tensor) -> Tensor:
        return self.processes.gathered(values)

    def std(self, values: Tensor) -> float:
        mean = self.total(values.double().sum()) / self.n_ratings
        return float((self.total((values.double() - mean).square().sum()) / self.n_ratings).sqrt())

    def any(self, flag: bool) -> bool:
        return self.processes.any(flag)

    def from_first(self, value: T) -> T:
        return self.processes.from_first(value)

    def pairs_at(self, positions: Tensor) -> Tensor:
        places = positions - self.first_entries[0]
        is_here = (places >= 0) & (places < len(self))
        pairs = super().pairs_at(places[is_here])
        filled = pairs.new_zeros(2, len(positions))
        filled[:, is_here] = pairs
        return self.total(filled)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> PartitionedRatings:
        matrix, transposed = self.matrix.to(device, dtype), self.matrix.T.to(device, dtype)
        timestamps = None if self.timestamps is None else self.timestamps.to(matrix.values.device)
        return PartitionedRatings(self.processes, matrix, transposed, self.parts, timestamps)


def partitioned_splits(
    ratings: Ratings, labels: Tensor, processes: Processes, device: torch.device | str = "cpu"
) -> dict[str, PartitionedRatings]:
    """The ratings of each split by name, of this process; splits without ratings are left out.

    The parts are balanced by all ratings, so that the splits have the same ones.

    Args:
        ratings: of all processes, on the CPU; only the parts of this process are read, and may be mapped from a file.
        labels: (n_ratings,) TRAIN, VALID or TEST.

    Raises:
        InputError: the ratings have weights.
    """
    if ratings.weights is not None:
        raise InputError("ratings with weights must be trained in one process; leave out the weights, or use one")
    matrix, order = ratings.matrix, ratings.pattern.transpose_order
    parts = balanced(ratings.pattern.counts, processes.count), balanced(ratings.pattern.T.counts, processes.count)
    users, items = (rows[processes.index] for rows in parts)
    by_user = ratings.pattern.entries_of(users)
    by_item = ratings.pattern.T.entries_of(items)
    places = order[by_item].long()
    user_labels, item_labels = labels[by_user], labels[places]
    item_values = matrix.values.index_select(0, places)
    splits = {}
    for name, label in SPLIT_NAMES.items():
        if not processes.any(bool((user_labels == label).any())):
            continue
        kept, kept_by_item = user_labels == label, item_labels == label
        timestamps = None if ratings.timestamps is None else ratings.timestamps[by_user][kept].to(device)
        splits[name] = PartitionedRatings(
            processes,
            _rows_of(ratings.pattern, users, kept, matrix.values[by_user][kept]).to(device),
            _rows_of(ratings.pattern.T, items, kept_by_item, item_values[kept_by_item]).to(device),
            parts,
            timestamps,
        )
    return splits


def data_digests(ratings: Ratings, labels: Tensor) -> dict[str, bytes]:
    """Digests of ratings and of their split, by which processes compare what they have read.

    A data set that takes long to read is sampled.
    """
    sample = torch.arange(0, len(ratings), max(1, len(ratings) // SAMPLED))
    columns = [ratings.users, ratings.items, ratings.values]
    columns += [] if ratings.timestamps is None else [ratings.timestamps]
    digest = hashlib.sha256(repr((*ratings.matrix.shape, len(ratings), len(columns))).encode())
    for column in columns:
        digest.update(column[sample].numpy().tobytes())
    return {"ratings": digest.digest(), "split": hashlib.sha256(labels.to(torch.uint8).numpy().data).digest()}


def _blocks_of(counts: Tensor, rows: slice) -> list[slice]:
    """The blocks of a range of rows, given the counts of all rows."""
    blocks = balanced(counts[rows], BLOCKS)
    return [slice(rows.start + block.start, rows.start + block.stop) for block in blocks]


def _rows_of(pattern: CSRPattern, rows: slice, kept: Tensor, values: Tensor) -> SparseMatrix:
    """The matrix of some entries of a range of rows; its other rows are empty.

    Args:
        kept: (n,) bool, which entries of these rows.
        values: those of the kept entries.
    """
    entries = pattern.entries_of(rows)
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), kept.cumsum(0)])
    crow = torch.zeros(pattern.shape[0] + 1, dtype=torch.int64)
    crow[rows.start : rows.stop + 1] = ends[pattern.crow[rows.start : rows.stop + 1].long() - entries.start]
    crow[rows.stop + 1 :] = len(values)
    return SparseMatrix(CSRPattern(crow.to(pattern.crow.dtype), pattern.col[entries][kept], pattern.shape), values)

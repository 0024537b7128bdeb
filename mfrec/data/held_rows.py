"""Held rows: which rows of the users' or the items' tables a process holds, and how rows travel between processes.

Each process owns a range of rows, and computes these.  It holds copies of rows that others own:

    HeldRows    of all rows; a block of rows is broadcast to every process
    NeededRows  of the rows that its ratings meet; a row is sent to the processes that need it, by fixed lists

The tables of a process have a row for each row that it holds, in the order of the rows' indices among all rows.  So the
rows that it owns are next to each other, and so are those of each other process.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from mfrec.data.ratings import HeldIndices
from mfrec.processes import Processes, balanced

# Blocks in which rows are solved and sent: the last one alone is sent while nothing is solved.
BLOCKS = 4


class Arrival(Protocol):
    """Rows on their way to a table."""

    def wait(self) -> object:
        """Wait until they are there; until then, the rows that were sent must not change."""


class Block(Protocol):
    """A range of the rows that each process owns; they travel together."""

    @property
    def rows(self) -> slice:
        """The positions of this process's range in its tables."""

    def start(self, table: Tensor) -> Sequence[Arrival]:
        """Send this range of a table, (n, …) contiguous, and begin to receive those of other processes."""


class HeldRows:
    """The rows of one entity that a process holds: all of them, unless a subclass holds fewer.

    Args:
        parts: the range that each process owns, among all rows.

    Attributes:
        n_all: the number of all rows.
        n: the number of rows that this process holds.
        owned: the positions of the rows that this process owns, in its tables.
        indices: the held rows among all rows; None if every process holds all.
    """

    indices: HeldIndices | None = None

    def __init__(self, processes: Processes, parts: Sequence[slice]) -> None:
        self.processes, self.parts = processes, list(parts)
        self.n_all = self.n = int(self.parts[-1].stop)
        self.owned = self.parts[processes.index]

    def to(self, device: torch.device) -> HeldRows:
        """The same, for tables on a device."""
        return self

    def positions(self, rows: Tensor) -> Tensor:
        """(n,) the positions of held rows in the tables, from their indices among all rows, (n,)."""
        return rows

    def of_all(self, table: Tensor) -> Tensor:
        """(n, …) the held rows of a table of all rows."""
        return table

    def complete(self, table: Tensor) -> Tensor | None:
        """A table of all rows, in the first process, from the rows that each owns; None if this one lacks rows."""
        return table

    def share(self, table: Tensor) -> Tensor:
        """The table, (n, …) contiguous, with the rows that other processes own; changed in place."""
        return self.processes.share(table, self.parts)

    def sum_tables(self, table: Tensor) -> Tensor:
        """The sum of the tables of all processes, (n, …); each holds partial sums of its rows."""
        return self.processes.total(table)

    def blocks(self, counts: Tensor) -> Sequence[Block]:
        """`BLOCKS` ranges of the owned rows with about as many ratings, from those of each held row, (n,)."""
        ranges = zip(*(_balanced_within(counts, part) for part in self.parts), strict=True)
        return [_Broadcast(self.processes, parts) for parts in ranges]


@dataclass(frozen=True)
class _Broadcast:
    """A block that every process receives.

    parts: the range of each process.
    """

    processes: Processes
    parts: Sequence[slice]

    @property
    def rows(self) -> slice:
        return self.parts[self.processes.index]

    def start(self, table: Tensor) -> Sequence[Arrival]:
        return self.processes.start_sharing(table, self.parts)


class NeededRows(HeldRows):
    """The rows that a process owns, and those that its ratings meet; all processes make theirs together.

    Args:
        met: (n_entries,) the row that each of its ratings meets, among all rows.

    Attributes:
        requested: for each process, the positions of the rows that it needs of this one, ascending.
    """

    def __init__(self, processes: Processes, parts: Sequence[slice], met: Tensor) -> None:
        super().__init__(processes, parts)
        owned, self.device = self.owned, torch.device("cpu")
        rows = needed_rows(self.n_all, owned, met)
        self.rows, self.n, self.indices = rows, len(rows), HeldIndices(self.n_all, rows)
        bounds = torch.searchsorted(rows, torch.tensor([*(part.start for part in self.parts), self.n_all]))
        # The positions of the rows that each process owns.
        self.held_parts = [slice(first, end) for first, end in pairwise(bounds.tolist())]
        self.owned = self.held_parts[processes.index]
        others = torch.cat([rows[: self.owned.start], rows[self.owned.stop :]])
        counts = torch.tensor([part.stop - part.start for part in self.held_parts])
        counts[processes.index] = 0
        requested = processes.exchanged(others, counts.tolist()) - owned.start + self.owned.start
        self.requested = requested.split(self._exchanged_counts(counts).tolist())

    def _exchanged_counts(self, counts: Tensor) -> Tensor:
        """(P, …) a row of numbers from each of P processes, for a row for each of them."""
        return self.processes.exchanged(counts, [1] * self.processes.count)

    def to(self, device: torch.device) -> NeededRows:
        moved = copy.copy(self)
        moved.device = device
        # Its lists are on the device before.
        vars(moved).pop("_all_at_once", None)
        return moved

    def positions(self, rows: Tensor) -> Tensor:
        return torch.searchsorted(self.rows, rows)

    def of_all(self, table: Tensor) -> Tensor:
        return table[self.rows.to(table.device)]

    def complete(self, table: Tensor) -> Tensor | None:
        return self.processes.gathered_by_first(table[self.owned], self.parts)

    def share(self, table: Tensor) -> Tensor:
        for arrival in self._all_at_once.start(table):
            arrival.wait()
        return table

    def sum_tables(self, table: Tensor) -> Tensor:
        # Partial sums go to the row's owner by the send lists, reversed.
        lists = self._all_at_once
        sums = table.detach().clone().contiguous()
        parts = sums.new_empty(len(lists.sent), *table.shape[1:])
        leaving = sums.index_select(0, lists.received)
        dist.all_to_all_single(parts, leaving, lists.sent_counts, lists.received_counts)
        # One process after another, so that the order of the sums is fixed.
        for rows, part in zip(lists.sent.split(lists.sent_counts), parts.split(lists.sent_counts), strict=True):
            sums[rows] += part
        return self.share(sums)

    @cached_property
    def _all_at_once(self) -> _SendLists:
        (block,) = self._send_lists([self.owned])
        return block

    def blocks(self, counts: Tensor) -> Sequence[Block]:
        return self._send_lists(_balanced_within(counts, self.owned))

    def _send_lists(self, ranges: Sequence[slice]) -> list[_SendLists]:
        """A block for each of consecutive ranges that cover the owned rows."""
        bounds = torch.tensor([ranges[0].start, *(rows.stop for rows in ranges)])
        # Where each range begins among the rows that a process needs, and where its own arrive.
        begins = torch.stack([torch.searchsorted(positions, bounds) for positions in self.requested])
        received = self._exchanged_counts(begins.diff())
        starts = torch.tensor([[part.start] for part in self.held_parts])
        arrivals = torch.cat([starts, starts + received.cumsum(1)], 1)
        lists = []
        for n, rows in enumerate(ranges):
            sent = [positions[a:b] for positions, (a, b) in zip(self.requested, begins[:, n : n + 2], strict=True)]
            arriving = [torch.arange(a, b) for a, b in arrivals[:, n : n + 2].tolist()]
            lists.append(_SendLists(rows, *_joined(sent, self.device), *_joined(arriving, self.device)))
        return lists


@dataclass(frozen=True)
class _SendLists:
    """A block whose rows go to the processes that need them.

    rows: the positions of the block in the tables.
    sent, sent_counts: the positions of the rows to send, by receiver, and their number for each.
    received, received_counts: those of the rows that arrive, by sender.
    """

    rows: slice
    sent: Tensor
    sent_counts: list[int]
    received: Tensor
    received_counts: list[int]

    def start(self, table: Tensor) -> Sequence[Arrival]:
        rows = table.index_select(0, self.sent)
        buffer = table.new_empty(len(self.received), *table.shape[1:])
        work = dist.all_to_all_single(buffer, rows, self.received_counts, self.sent_counts, async_op=True)
        return [_ReceivedRows(work, table, self.received, buffer, rows)]


@dataclass(frozen=True)
class _ReceivedRows:
    """Rows that arrive in a buffer.

    sent: kept until all have arrived.
    """

    work: dist.Work
    table: Tensor
    positions: Tensor
    buffer: Tensor
    sent: Tensor

    def wait(self) -> object:
        self.work.wait()
        return self.table.index_copy_(0, self.positions, self.buffer)


def needed_rows(n_all: int, owned: slice, met: Tensor) -> Tensor:
    """(n,) the rows that a process owns or that its ratings meet, (n_entries,), among n_all; ascending."""
    is_needed = torch.zeros(n_all, dtype=torch.bool)
    is_needed[owned] = True
    is_needed[met.long()] = True
    return is_needed.nonzero()[:, 0]


def _balanced_within(counts: Tensor, rows: slice) -> list[slice]:
    """`BLOCKS` ranges of rows with about as many ratings, from the ratings of all rows of a table, (n,)."""
    return [slice(rows.start + block.start, rows.start + block.stop) for block in balanced(counts[rows], BLOCKS)]


def _joined(parts: Sequence[Tensor], device: torch.device) -> tuple[Tensor, list[int]]:
    """The parts one after another on a device, and the length of each."""
    return torch.cat(list(parts)).to(device), [len(part) for part in parts]

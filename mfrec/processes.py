"""Processes that train one model together, by torch.distributed: gloo between CPUs, nccl between GPUs.

Every process runs the same program on its own part of the data, and all call the same collective operations in the
same order.  A process has an index here; torch calls it a rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import pairwise
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mfrec.errors import InputError

T = TypeVar("T")

# How long a collective operation may wait.  Processes may differ by minutes; `mfrec.experiments.watch` finds those that
# have died long before.
PATIENCE = timedelta(hours=1)


class Processes:
    """The processes of torch's default group, as one of them sees them.

    Attributes:
        index: the index of this process.
        count: the number of processes.
    """

    def __init__(self) -> None:
        self.index, self.count = dist.get_rank(), dist.get_world_size()

    def total(self, values: Tensor) -> Tensor:
        """The sum of each process's values, of any shape, in all processes; integers add up exactly."""
        summed = values.detach().clone().contiguous()
        dist.all_reduce(summed)
        return summed

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return bool(self.total(torch.tensor(int(flag))))

    def share(self, table: Tensor, parts: Sequence[slice]) -> Tensor:
        """The table with each process's rows in all processes; other rows do not matter.

        Each row crosses the network once for each process that lacks it.

        Args:
            table: (n, …), contiguous; changed in place.
            parts: the rows of each process, which cover the table.
        """
        for work in self.start_sharing(table, parts):
            work.wait()
        return table

    def start_sharing(self, table: Tensor, parts: Sequence[slice]) -> list[dist.Work]:
        """`share` that returns at once; the table is complete, and may be changed, after all that it returns ended."""
        return [dist.broadcast(table[rows], src, async_op=True) for src, rows in enumerate(parts) if _size(rows)]

    def gathered(self, values: Tensor) -> Tensor:
        """The values of all processes one after another, from (n,) in this process, n of any size."""
        sizes = torch.zeros(self.count + 1, dtype=torch.int64, device=values.device)
        sizes[self.index + 1] = len(values)
        ends = self.total(sizes).cumsum(0).tolist()
        parts = [slice(first, end) for first, end in pairwise(ends)]
        everything = values.new_empty(ends[-1])
        everything[parts[self.index]] = values
        return self.share(everything, parts)

    def gathered_by_first(self, rows: Tensor, parts: Sequence[slice]) -> Tensor | None:
        """The table of all rows, on the CPU of process 0, from each process's rows; None in the others.

        Args:
            rows: (n, …) those of this process.
            parts: the rows of each process, which cover the table.
        """
        rows = rows.cpu().contiguous()
        if self.index:
            if len(rows):
                dist.send(rows, 0)
            return None
        table = rows.new_empty(parts[-1].stop, *rows.shape[1:])
        table[parts[0]] = rows
        for sender, part in enumerate(parts):
            if sender and _size(part):
                dist.recv(table[part], sender)
        return table

    def from_first(self, value: T) -> T:
        """The value that process 0 passed, in all processes: tensors on the CPU, numbers, strings, lists and dicts."""
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def require_same(self, digests: Mapping[str, bytes]) -> None:
        """Check that all processes have the same digests, by the names of what they are digests of.

        Raises:
            InputError: they have not.
        """
        values = torch.frombuffer(bytearray(b"".join(digest[:8] for digest in digests.values())), dtype=torch.int64)
        different = self.gathered(values).view(self.count, -1) != values
        for name, index in zip(digests, different.T, strict=True):
            if bool(index.any()):
                process = int(index.int().argmax())
                raise InputError(
                    f"all processes must have the same {name} (processes {self.index} and {process} differ); give all "
                    "hosts the same files, options and versions"
                )

    def exchanged(self, rows: Tensor, counts: Sequence[int], arriving: Sequence[int] | None = None) -> Tensor:
        """The rows that the processes sent to this one, in the order of the senders.

        Args:
            rows: (n, …) contiguous, those for process 0 first.
            counts: the number of rows for each process.
            arriving: the number of rows from each process; by default, the processes exchange them too.
        """
        if arriving is None:
            n_sent = torch.tensor(counts)
            n_received = torch.empty_like(n_sent)
            dist.all_to_all_single(n_received, n_sent)
            arriving = n_received.tolist()
        received = rows.new_empty(sum(arriving), *rows.shape[1:])
        dist.all_to_all_single(received, rows, list(arriving), list(counts))
        return received


def _size(rows: slice) -> int:
    return int(rows.stop - rows.start)


def balanced(counts: Tensor, n_parts: int) -> list[slice]:
    """Consecutive rows for each part, with about the same sum of counts, (n_rows,).

    A row weighs its count and one more, since it takes some work without ratings too.

    Examples:
        >>> balanced(torch.tensor([5, 1, 1, 1, 2]), 2)
        [slice(0, 2, None), slice(2, 5, None)]
    """
    weights = counts.double() + 1
    # A row belongs to the part in which its middle lies.
    middles = weights.cumsum(0) - weights / 2
    targets = torch.arange(1, n_parts, device=weights.device) * weights.sum() / n_parts
    bounds = [0, *torch.searchsorted(middles, targets).tolist(), len(counts)]
    return [slice(first, end) for first, end in pairwise(bounds)]

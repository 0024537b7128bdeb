"""Sums with the same bits on any number of threads.

torch divides the sum over all numbers of a large tensor among its threads, so that its rounding depends on their
number.  A sum over one of several dimensions has a fixed order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

# Numbers that are added up at a time.  From twice as many on, torch divides a sum among threads.
BLOCK = 2**14
# Numbers that torch may copy at a time, to add them up in another type.
COPIED = 2**22


def ordered_sum(values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """() the sum of all numbers, in an order that depends on their count alone; differentiable.

    Args:
        dtype: the type to add up in, by default that of the values.

    Examples:
        >>> float(ordered_sum(torch.ones(300, 200)))
        60000.0
    """
    numbers = values.reshape(-1)
    n_blocks = len(numbers) // BLOCK
    if n_blocks < 2:
        return numbers.sum(dtype=dtype)
    blocks = numbers[: n_blocks * BLOCK].view(n_blocks, BLOCK).split(COPIED // BLOCK)
    sums = torch.cat([part.sum(1, dtype=dtype) for part in blocks])
    return ordered_sum(sums) + numbers[n_blocks * BLOCK :].sum(dtype=dtype)


def ordered_mean(values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """() the mean of all numbers, by `ordered_sum`; NaN without any."""
    return ordered_sum(values, dtype) / values.numel()


def column_totals(rows: Tensor) -> Tensor:
    """(k,) the sum of each column of (n, k) numbers."""
    return rows.sum(0) if rows.shape[1] > 1 else ordered_sum(rows)[None]


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use this many threads in a block of code: one, where a library sums in the order of its threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

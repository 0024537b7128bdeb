"""Sorting by counting: a stable order of integer keys, and the transpose of a sparse pattern, in two passes.

The first pass counts each key, the second writes every entry to its place.  A stable order is unique, so neither the
chunks nor the threads can change a result.  The definitions are torch's stable sort and gathers, in `mfrec.sparse`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mfrec.kernels.compiled import kernel, parallel, row_chunks

# Entries of a chunk at least, and chunks at most: each chunk holds a counter of every key.
CHUNK = 2**20
MAX_CHUNKS = 8

Ints = npt.NDArray[Any]


def counting_order(keys: Ints, n_keys: int) -> tuple[Ints, npt.NDArray[np.int64]]:
    """The positions that sort integer keys stably, and where each key begins among them.

    Args:
        keys: (n,) contiguous integers in 0 … n_keys - 1; not checked.

    Returns:
        order: (n,) `keys[order]` ascends, and equal keys keep their order; int32 if n is below 2^31, else int64.
        starts: (n_keys + 1,) the entries of key k are `order[starts[k] : starts[k + 1]]`.

    Examples:
        >>> order, starts = counting_order(np.array([1, 0, 1, 0], dtype=np.int32), 3)
        >>> order.tolist(), starts.tolist()
        ([1, 3, 0, 2], [0, 2, 4, 4])
    """
    bounds = np.linspace(0, len(keys), _n_chunks(len(keys), n_keys) + 1).astype(np.int64)
    places, starts = _places(keys, n_keys, bounds)
    order = np.empty(len(keys), dtype=np.int32 if len(keys) < 2**31 else np.int64)
    parallel(lambda chunk: _scatter(keys, bounds[chunk], bounds[chunk + 1], places[chunk], order), len(places))
    return order, starts


def transpose(crow: Ints, col: Ints, n_cols: int) -> tuple[Ints, Ints, Ints]:
    """A pattern's entries by column: their order, where each column begins, and their rows.

    Args:
        crow: (n_rows + 1,) where each row's entries begin.
        col: (n,) contiguous columns in 0 … n_cols - 1; not checked.

    Returns:
        order (n,) and starts (n_cols + 1,) from `counting_order`, and rows (n,); all in the columns' type.

    Examples:
        >>> order, starts, rows = transpose(np.array([0, 2, 3]), np.array([0, 2, 0], dtype=np.int32), 3)
        >>> order.tolist(), starts.tolist(), rows.tolist()
        ([0, 2, 1], [0, 2, 2, 3], [0, 1, 0])
    """
    crow = crow.astype(np.int64)
    chunks = row_chunks(crow, -(-len(col) // _n_chunks(len(col), n_cols)) or 1)
    places, starts = _places(col, n_cols, crow[chunks])
    order, rows = np.empty_like(col), np.empty_like(col)

    def scatter(chunk: int) -> None:
        _scatter_rows(crow, col, chunks[chunk], chunks[chunk + 1], places[chunk], order, rows)

    parallel(scatter, len(places))
    return order, starts.astype(col.dtype), rows


def _n_chunks(n_entries: int, n_keys: int) -> int:
    """How many chunks the entries are counted in: each should have several entries for each of its counters."""
    return min(MAX_CHUNKS, max(1, n_entries // max(CHUNK, 8 * n_keys)))


def _places(
    keys: Ints, n_keys: int, bounds: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(n_chunks, n_keys) the place of each chunk's first entry of each key, and (n_keys + 1,) of each key's first."""
    places = np.zeros((len(bounds) - 1, n_keys), dtype=np.int64)
    parallel(lambda chunk: _count(keys, bounds[chunk], bounds[chunk + 1], places[chunk]), len(places))
    starts = np.empty(n_keys + 1, dtype=np.int64)
    _accumulate(places, starts)
    return places, starts


@kernel
def _count(keys: Ints, first: int, end: int, counts: npt.NDArray[np.int64]) -> None:
    for n in range(first, end):
        counts[keys[n]] += 1


@kernel
def _accumulate(counts: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> None:
    """Replace each chunk's counts by its first places, and write the first place of each key."""
    total = 0
    for key in range(counts.shape[1]):
        starts[key] = total
        for chunk in range(counts.shape[0]):
            count = counts[chunk, key]
            counts[chunk, key] = total
            total += count
    starts[counts.shape[1]] = total


@kernel
def _scatter(keys: Ints, first: int, end: int, places: npt.NDArray[np.int64], order: Ints) -> None:
    for n in range(first, end):
        place = places[keys[n]]
        order[place] = n
        places[keys[n]] = place + 1


@kernel
def _scatter_rows(
    crow: npt.NDArray[np.int64],
    col: Ints,
    first: int,
    end: int,
    places: npt.NDArray[np.int64],
    order: Ints,
    rows: Ints,
) -> None:
    for row in range(first, end):
        for n in range(crow[row], crow[row + 1]):
            place = places[col[n]]
            order[place] = n
            rows[place] = row
            places[col[n]] = place + 1

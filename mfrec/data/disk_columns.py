"""Columns of numbers on the disk: appended in batches, read in blocks, and grouped by ranges of a key."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
# Rows that are in memory at a time, in passes over all of them.
BLOCK_ROWS = 2**22


class DiskColumns:
    """Columns of equal length in the files of a folder.

    Args:
        folder: a new folder.
        dtypes: the type of each column by name.
    """

    def __init__(self, folder: Path, dtypes: Mapping[str, Any]) -> None:
        folder.mkdir()
        self.folder, self.dtypes, self.n_rows = folder, {name: np.dtype(dtype) for name, dtype in dtypes.items()}, 0
        for name in self.dtypes:
            self._path(name).touch()

    def _path(self, name: str) -> Path:
        return self.folder / name

    def append(self, columns: Mapping[str, Array]) -> None:
        """Append a row of each array."""
        for name, dtype in self.dtypes.items():
            with self._path(name).open("ab") as file:
                file.write(np.ascontiguousarray(columns[name], dtype).data)
        self.n_rows += len(next(iter(columns.values())))

    def truncate(self, n_rows: int) -> None:
        """Remove all rows but the first."""
        for name, dtype in self.dtypes.items():
            os.truncate(self._path(name), n_rows * dtype.itemsize)
        self.n_rows = n_rows

    def discard(self, name: str) -> None:
        """Remove a column if there is one of this name."""
        self._path(name).unlink(missing_ok=True)
        self.dtypes.pop(name, None)

    def rows(self, first: int, end: int) -> dict[str, Array]:
        """Rows first … end-1 of all columns."""
        return {name: self.column(name, first, end) for name in self.dtypes}

    def column(self, name: str, first: int, end: int) -> Array:
        """Rows first … end-1 of a column."""
        dtype = self.dtypes[name]
        return np.fromfile(self._path(name), dtype, end - first, offset=first * dtype.itemsize)

    def blocks(self, name: str) -> Iterator[Array]:
        """A column in blocks of rows."""
        for first, end in blocks(self.n_rows):
            yield self.column(name, first, end)

    def grouped(self, folder: Path, key: str, groups: Callable[[Array], Array], starts: Array) -> DiskColumns:
        """The rows by group, in the order that they have within each.

        Args:
            folder: a new folder for them.
            key: the column that the group of a row depends on.
            groups: the group of each row, given a block of this column.
            starts: (n_groups + 1,) where each group begins among the sorted rows; the last is the number of rows.
        """
        grouped = DiskColumns(folder, self.dtypes)
        grouped.truncate(self.n_rows)
        places = starts.astype(np.int64)
        for first, end in blocks(self.n_rows):
            columns = self.rows(first, end)
            group = groups(columns[key])
            order = np.argsort(group, kind="stable")
            bounds = np.searchsorted(group[order], np.arange(len(starts)))
            for name, column in columns.items():
                grouped._write_groups(name, column[order], bounds, places)
            places[:-1] += np.diff(bounds)
        return grouped

    def _write_groups(self, name: str, column: Array, bounds: Array, places: Array) -> None:
        """Write the rows of each group, column[bounds[g] : bounds[g + 1]], to the group's place."""
        with self._path(name).open("r+b") as file:
            for group in np.flatnonzero(np.diff(bounds)):
                file.seek(places[group] * column.itemsize)
                file.write(column[bounds[group] : bounds[group + 1]].data)


class ArrayWriter:
    """Writes a one-dimensional array to a .npy file in pieces, with the bytes that `np.save` writes."""

    def __init__(self, path: Path, dtype: Any) -> None:
        self.dtype, self._n, self._file = np.dtype(dtype), 0, path.open("wb")
        self._write_header()

    def append(self, values: Array) -> None:
        """Append values."""
        self._file.write(np.ascontiguousarray(values, self.dtype).data)
        self._n += len(values)

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._file:
            self._file.seek(0)
            self._write_header()

    def _write_header(self) -> None:
        """Write the header, whose size does not depend on the length."""
        description = {"descr": self.dtype.str, "fortran_order": False, "shape": (self._n,)}
        np.lib.format.write_array_header_1_0(self._file, description)


def blocks(n_rows: int) -> Iterator[tuple[int, int]]:
    """Where blocks of rows begin and end."""
    for first in range(0, n_rows, BLOCK_ROWS):
        yield first, min(first + BLOCK_ROWS, n_rows)


def key_ranges(counts: Array, size: int) -> Array:
    """The first key of each range of keys that have at most `size` rows together, or of a single key; then n_keys.

    Args:
        counts: (n_keys,) the number of rows of each key.

    Examples:
        >>> key_ranges(np.array([3, 3, 9, 1, 1]), 6).tolist()
        [0, 2, 3, 5]
    """
    ends, firsts = np.cumsum(counts), [0]
    while firsts[-1] < len(counts):
        first = firsts[-1]
        before = ends[first - 1] if first else 0
        firsts.append(max(first + 1, int(np.searchsorted(ends, before + size, side="right"))))
    return np.array(firsts, dtype=np.int64)

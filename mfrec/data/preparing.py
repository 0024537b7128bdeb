"""Preparing: from files of any size to a prepared data set, in bounded memory.

The folder has the arrays that `load_dataset` makes of the same files, to the same bits:

1. The files are read in batches.  Ids become codes, in the order in which they come.  Columns of codes, ratings,
   timestamps and split labels go to the disk.
2. The rows are grouped by ranges of users, such that each group fits into memory.
3. Each group is sorted by (user, item) and appended to the arrays by user, one rating for each pair.
4. Ranges of items are picked from these, sorted, and appended to the arrays by item.

The distinct ids and the tables of users and items are held in memory, besides one batch or one group.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from mfrec.data.archives import Source
from mfrec.data.batches import RatingBatches
from mfrec.data.dataset import Dataset, pair_name
from mfrec.data.disk_columns import ArrayWriter, DiskColumns, blocks, key_ranges
from mfrec.data.frames import (
    FiniteNumbers,
    check_range,
    checked_timestamps,
    distinct_pairs,
    report_duplicates,
    require_duplicates,
    require_range,
)
from mfrec.data.ids import IdCodes, concatenated_ids, has_integer_ids, index_ids, require_ids
from mfrec.data.movielens_tables import read_items, read_users
from mfrec.data.named_splits import SharedPairs
from mfrec.data.prepared import finish, mapped, mapped_ratings, new_folder
from mfrec.data.raw_tables import RatingRange
from mfrec.data.split_files import stacked
from mfrec.data.tables import item_table, user_table
from mfrec.data.text import NotUTF8
from mfrec.errors import InputError
from mfrec.sparse import stable_order

Indices = npt.NDArray[np.int32]
# Called with a stage of the work and the fraction of it that is done.
OnProgress = Callable[[str, float], object]
READING, SORTING, BY_ITEM, CHECKSUMS = "reading", "sorting", "sorting by item", "checksums"

# Ratings of a group at most, unless a single user or item has more.
GROUP_ROWS = 2**24
MAX_RATINGS = 2**31 - 1
_COLUMNS: dict[str, Any] = {"user": np.int32, "item": np.int32, "rating": np.float64, "timestamp": np.int64}
# The array that each column becomes, and its type.
_ARRAYS: dict[str, tuple[str, Any]] = {
    "item": ("items", np.int32),
    "rating": ("values", np.float32),
    "timestamp": ("timestamps", np.int64),
    "label": ("split_labels", np.uint8),
}


@dataclass(frozen=True)
class _Part:
    """The ids and tables of one file; its rows are in the columns."""

    ids: dict[str, pd.Series]
    tables: dict[str, pd.DataFrame | None]
    rating_range: RatingRange | None


class _Rows:
    """The rows of all files on the disk, and the parts that the files are.

    Args:
        folder: a new folder.
        labelled: whether each file has a split label.
    """

    def __init__(self, folder: Path, *, labelled: bool) -> None:
        self.columns = DiskColumns(folder, {**_COLUMNS, **({"label": np.uint8} if labelled else {})})
        self.numbers = FiniteNumbers()
        self.n_missing = {"user": 0, "item": 0}
        self.parts: list[_Part] = []

    def read(self, batches: RatingBatches, source: Source, label: int) -> None:
        """Append the ratings in one file.

        Raises:
            InputError: the file is damaged, or there are too many ratings.
            NotUTF8: see `RatingBatches`; nothing was appended.
        """
        n_before, numbers_before = self.columns.n_rows, copy.copy(self.numbers)
        codes = {kind: IdCodes(kind) for kind in ("user", "item")}
        try:
            for frame in batches:
                self._append(frame, codes, label)
        except NotUTF8:
            self.columns.truncate(n_before)
            self.numbers = numbers_before
            raise
        for kind, kind_codes in codes.items():
            self.n_missing[kind] += kind_codes.n_missing
        ids = {kind: kind_codes.ids(is_text=batches.is_text) for kind, kind_codes in codes.items()}
        tables = {
            "user": read_users(source, has_integer_ids(ids["user"])),
            "item": read_items(source, has_integer_ids(ids["item"])),
        }
        self.parts.append(_Part(ids, tables, batches.rating_range))

    def _append(self, frame: pd.DataFrame, codes: dict[str, IdCodes], label: int) -> None:
        n_rows = self.columns.n_rows
        if n_rows + len(frame) > MAX_RATINGS:
            raise InputError(f"a data set may have {MAX_RATINGS:,} ratings at most; leave some out")
        frame.index = pd.RangeIndex(n_rows, n_rows + len(frame))  # for messages
        arrays: dict[str, npt.NDArray[Any]] = {
            "rating": self.numbers.add(frame["rating"]),
            "label": np.full(len(frame), label, dtype=np.uint8),
        }
        for kind, kind_codes in codes.items():
            # Codes of this file follow those of the files before.
            n_codes = sum(len(part.ids[kind]) for part in self.parts)
            arrays[kind] = kind_codes.add(frame[kind]) + np.int32(n_codes)
        if "timestamp" not in frame:  # timestamps are kept if every file has them
            self.columns.discard("timestamp")
        elif "timestamp" in self.columns.dtypes:
            arrays["timestamp"] = checked_timestamps(frame["timestamp"])
        self.columns.append(arrays)

    def check(self, rating_range: RatingRange | None) -> None:
        """Check the ratings and that all rows have ids.

        Raises:
            InputError: there are no ratings, one is not finite or out of range, or an id is missing.
        """
        self.numbers.check()
        if rating_range is not None:
            check_range(self.columns.blocks("rating"), rating_range)
        for kind, n_missing in self.n_missing.items():
            require_ids(kind, n_missing, self.columns.n_rows)

    def index(self, kind: str) -> tuple[Indices, pd.Index]:
        """The index of each code, (n_codes,), and the ids at the indices."""
        id_columns = [part.ids[kind] for part in self.parts]
        return index_ids(id_columns[0] if len(id_columns) == 1 else concatenated_ids(id_columns, kind), kind)

    def table(self, kind: str) -> pd.DataFrame | None:
        """The table of users or items of all files."""
        if len(self.parts) == 1:
            return self.parts[0].tables[kind]
        return stacked([part.tables[kind] for part in self.parts], kind, [part.ids[kind] for part in self.parts])


def prepare_in_batches(
    parts: Mapping[int, tuple[Source, str]],
    out: Path,
    name: str,
    *,
    wanted: list[str] | None,
    rating_range: RatingRange | None,
    duplicates: str,
    on_progress: OnProgress,
) -> Dataset:
    """Prepare the ratings in one file, or in a file for each split.

    Args:
        parts: a source, and the name of the file in it, by split label.
        out: a new folder.
        name: the name of the data set.
        wanted, rating_range, duplicates: as in `load_dataset`; `wanted` is a list.

    Raises:
        InputError: as `load_dataset`, or the folder exists or cannot be written.
    """
    require_duplicates(duplicates)
    if rating_range is not None:
        require_range(rating_range)
    with new_folder(out) as folder:
        work = folder / "work"
        work.mkdir()
        rows = _read(parts, work, wanted, on_progress)
        rating_range = rating_range or rows.parts[0].rating_range
        rows.check(rating_range)
        (users, user_ids), (items, item_ids) = rows.index("user"), rows.index("item")
        splits = SharedPairs()
        surplus = _write_by_user(folder, rows.columns, users, items, duplicates, splits, on_progress)
        splits.check(lambda pair: pair_name(user_ids, item_ids, pair))
        report_duplicates(surplus, rows.numbers.n_rows, duplicates)
        shutil.rmtree(work)
        _write_by_item(folder, len(item_ids), on_progress)
        files = {file.name for file in folder.iterdir()}
        ratings = mapped_ratings(folder, (len(user_ids), len(item_ids)), files)
        labels = torch.from_numpy(mapped(folder / "split_labels.npy")) if len(parts) > 1 else None
        if rating_range is None:
            rating_range = float(ratings.values.min()), float(ratings.values.max())
        tables = user_table(rows.table("user"), "user", user_ids), item_table(rows.table("item"), "item", item_ids)
        dataset = Dataset(name, ratings, user_ids, item_ids, *tables, rating_range, split_labels=labels)
        on_progress(CHECKSUMS, 0.0)
        finish(folder, dataset)
        on_progress(CHECKSUMS, 1.0)
    return dataset


def _read(
    parts: Mapping[int, tuple[Source, str]], work: Path, wanted: list[str] | None, on_progress: OnProgress
) -> _Rows:
    rows = _Rows(work / "rows", labelled=len(parts) > 1)
    for number, (label, (source, name)) in enumerate(parts.items()):

        def report(fraction: float, number: int = number) -> None:
            on_progress(READING, (number + fraction) / len(parts))

        try:
            rows.read(RatingBatches(source, name, wanted, work, is_latin1=False, on_progress=report), source, label)
        except NotUTF8:
            rows.read(RatingBatches(source, name, wanted, work, is_latin1=True, on_progress=report), source, label)
    return rows


def _write_by_user(
    folder: Path,
    columns: DiskColumns,
    users: Indices,
    items: Indices,
    duplicates: str,
    splits: SharedPairs,
    on_progress: OnProgress,
) -> int:
    """Write the arrays by user, then item; the number of rows that repeat a pair.

    Args:
        users, items: the index of each code.
        splits: gets the pairs with several split labels.
    """
    n_users, n_items = int(users.max()) + 1, int(items.max()) + 1
    counts = np.zeros(n_users, dtype=np.int64)
    for codes in columns.blocks("user"):
        counts += np.bincount(users[codes], minlength=n_users)
    ranges = key_ranges(counts, GROUP_ROWS)
    starts = np.append(0, counts.cumsum())[ranges]
    group_of_user = np.repeat(np.arange(len(ranges) - 1, dtype=np.int16), np.diff(ranges))
    groups = columns.grouped(
        columns.folder.parent / "groups", "user", lambda codes: group_of_user[users[codes]], starts
    )
    shutil.rmtree(columns.folder)
    surplus, kept_counts = 0, np.zeros(n_users, dtype=np.int64)
    with contextlib.ExitStack() as stack:
        writers = {
            name: stack.enter_context(ArrayWriter(folder / f"{file}.npy", dtype))
            for name, (file, dtype) in _ARRAYS.items()
            if name in columns.dtypes
        }
        for number, (first, end) in enumerate(itertools.pairwise(ranges.tolist())):
            rows = groups.rows(starts[number], starts[number + 1])
            row_users, row_items = users[rows["user"]], items[rows["item"]]
            if "label" in rows:
                splits.add(row_users.astype(np.int64) * n_items + row_items, rows["label"])
            row_users -= first
            shape = end - first, n_items
            distinct = distinct_pairs(row_users, row_items, shape, rows["rating"], rows.get("timestamp"), duplicates)
            surplus += distinct.surplus
            kept_counts[first:end] = np.bincount(row_users[distinct.kept], minlength=end - first)
            writers["item"].append(row_items[distinct.kept])
            writers["rating"].append(distinct.values)
            if distinct.timestamps is not None:
                writers["timestamp"].append(distinct.timestamps)
            if "label" in rows:
                writers["label"].append(rows["label"][distinct.kept])
            on_progress(SORTING, float(starts[number + 1] / starts[-1]))
    np.save(folder / "crow.npy", np.append(0, kept_counts.cumsum()).astype(np.int32))
    return surplus


def _write_by_item(folder: Path, n_items: int, on_progress: OnProgress) -> None:
    """Write the arrays by item, then user, from those by user."""
    crow, items = mapped(folder / "crow.npy"), mapped(folder / "items.npy")
    counts = np.zeros(n_items, dtype=np.int64)
    for first, end in blocks(len(items)):
        counts += np.bincount(items[first:end], minlength=n_items)
    ranges = key_ranges(counts, GROUP_ROWS)
    with (
        ArrayWriter(folder / "item_users.npy", np.int32) as users_writer,
        ArrayWriter(folder / "item_order.npy", np.int32) as order_writer,
    ):
        for number, (low, high) in enumerate(itertools.pairwise(ranges.tolist())):
            places = [
                np.flatnonzero((items[first:end] >= low) & (items[first:end] < high)).astype(np.int32) + np.int32(first)
                for first, end in blocks(len(items))
            ]
            positions = np.concatenate(places)
            users = (np.searchsorted(crow, positions, side="right") - 1).astype(np.int32)
            order = stable_order(torch.from_numpy(items[positions] - np.int32(low)), high - low).numpy()
            users_writer.append(users[order])
            order_writer.append(positions[order])
            on_progress(BY_ITEM, (number + 1) / (len(ranges) - 1))
    np.save(folder / "item_crow.npy", np.append(0, counts.cumsum()).astype(np.int32))

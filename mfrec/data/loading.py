"""Loading: a dataset from the name of a data set or from a path."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from mfrec.data.dataset import Dataset, Duplicates
from mfrec.data.downloads import DATASETS, local_file
from mfrec.data.raw_tables import RatingRange, RawTables
from mfrec.data.readers import read_raw_tables
from mfrec.data.split_files import concatenated
from mfrec.data.splits import TEST, TRAIN, VALID
from mfrec.errors import InputError, OptionError, unknown

logger = logging.getLogger("mfrec")


def load_dataset(
    data: str | Path,
    *,
    columns: str | Sequence[str] | None = None,
    rating_range: RatingRange | None = None,
    duplicates: Duplicates = "last",
    test_data: str | Path | None = None,
    valid_data: str | Path | None = None,
    cache: str | Path | None = None,
    base_url: str | None = None,
) -> Dataset:
    """A named data set, embedded or downloaded, or the ratings at a path.

    Args:
        data: a path in one of the formats of `readers.READERS`, or a key of `downloads.DATASETS`.  A string is a path
            if one exists, so that a folder ./ml-1m is read and not downloaded again.
        columns: the names of a table's user, item, rating and, if wanted, timestamp columns: "user,item,rating".
        rating_range: lowest and highest possible rating; by default as the format declares, else as found.
        duplicates: which rating to keep if a user rated an item more than once: "last", "first", "mean" or "error".
        test_data: the path of the test ratings, instead of a split of the data.  Ids and titles are shared with the
            data; ids that only the test ratings have are kept.
        valid_data: the path of the validation ratings; needs test_data.
        cache: the folder of downloads; by default $MFREC_CACHE, else the user's cache folder.
        base_url: the address of a mirror that has the files by their names.

    `columns`, `rating_range` and `duplicates` hold for all files.

    Raises:
        InputError: there is no such data set or path, a download fails, a file is damaged, or a (user, item) pair is
            in two of data, test_data and valid_data.

    Examples:
        >>> dataset = load_dataset("ml-latest-small")  # the embedded data set
        >>> dataset
        Dataset('ml-latest-small', Ratings(100,004 of 671 users × 9,066 items, cpu), rating range 0.5–5)
        >>> dataset.title(dataset.item_index(1))
        'Toy Story (1995)'
    """
    if valid_data is not None and test_data is None:
        raise OptionError("valid_data", "needs test_data")
    path = path_of(data, cache, base_url)
    parts: dict[int, RawTables] = {TRAIN: read_raw_tables(path, columns)}
    for label, file in ((VALID, valid_data), (TEST, test_data)):
        if file is not None:
            parts[label] = read_raw_tables(file, columns)
    raw, labels = concatenated(parts) if len(parts) > 1 else (parts[TRAIN], None)
    dataset = Dataset.from_frame(
        raw.ratings,
        users=raw.users,
        items=raw.items,
        rating_range=rating_range or raw.rating_range,
        duplicates=duplicates,
        name=path.stem if path.is_file() else path.resolve().name,
        official_splits=raw.official_splits,
        split_labels=labels,
    )
    _log_cold_start(dataset)
    return dataset


def path_of(data: str | Path, cache: str | Path | None = None, base_url: str | None = None) -> Path:
    """The path of a named data set, embedded or downloaded, or the path itself; see `load_dataset`.

    Raises:
        InputError: there is no such data set or path, or a download fails.
    """
    path, name = Path(data), str(data)
    if path.exists():
        return path
    if isinstance(data, Path) or path.name != name or path.suffix:
        names = ", ".join(DATASETS)
        raise InputError(f"there is no file, folder or zip at {data}; check the path, or name one of {names}")
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    return local_file(name, cache, base_url)


def _log_cold_start(dataset: Dataset) -> None:
    """Warn of users and items without a training rating."""
    if dataset.split_labels is None:
        return
    ratings = dataset.ratings
    train = dataset.split_labels == TRAIN
    absent = [
        n - len(torch.unique(indices[train]))
        for n, indices in ((ratings.n_users, ratings.users), (ratings.n_items, ratings.items))
    ]
    if any(absent):
        logger.warning(
            "%s of %s users and %s of %s items have no training rating; they are kept (cold start)",
            *(f"{n:,}" for n in (absent[0], ratings.n_users, absent[1], ratings.n_items)),
        )

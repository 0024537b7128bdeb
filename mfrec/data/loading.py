"""Loading: a dataset from the name of a data set or from a path, and prepared data sets from either."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from mfrec.data.archives import Source
from mfrec.data.dataset import Dataset, Duplicates
from mfrec.data.downloads import cache_folder, path_of
from mfrec.data.parsing import column_names
from mfrec.data.prepared import FORMAT, is_prepared, open_prepared, write_prepared
from mfrec.data.preparing import OnProgress, prepare_in_batches
from mfrec.data.progress import stage_progress
from mfrec.data.raw_tables import RatingRange, RawTables
from mfrec.data.readers import read_raw_tables, recognized
from mfrec.data.split_files import concatenated
from mfrec.data.splits import TEST, TRAIN, VALID
from mfrec.errors import InputError, OptionError

logger = logging.getLogger("mfrec")

# Bytes of ratings files, unpacked, from which they are prepared in the cache.
LARGE = 2**28


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

    A folder that `prepare` wrote is opened.  Files above `LARGE` bytes are prepared in the cache first, under a
    progress bar, and then opened from there until a file or an option changes.

    Args:
        data: a path in one of the formats of `readers.READERS`, a prepared folder, or a key of `downloads.DATASETS`.  A
            string is a path if one exists, so that a folder ./ml-1m is read and not downloaded again.
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
        InputError: there is no such data set or path, a download fails, a file is damaged, a (user, item) pair is in
            two of data, test_data and valid_data, or an option is given that a prepared folder has decided.

    Examples:
        >>> dataset = load_dataset("ml-latest-small")  # the embedded data set
        >>> dataset
        Dataset('ml-latest-small', Ratings(100,004 of 671 users × 9,066 items, cpu), rating range 0.5–5)
        >>> dataset.title(dataset.item_index(1))
        'Toy Story (1995)'
    """
    path = path_of(data, cache, base_url)
    if is_prepared(path):
        return _opened(path, columns, rating_range, duplicates, test_data, valid_data)
    files = _Files.of(path, test_data, valid_data, columns, rating_range, duplicates)
    return files.from_cache(cache_folder(cache)) if files.size >= LARGE else files.load()


def prepare(
    data: str | Path,
    out: str | Path,
    *,
    columns: str | Sequence[str] | None = None,
    rating_range: RatingRange | None = None,
    duplicates: Duplicates = "last",
    test_data: str | Path | None = None,
    valid_data: str | Path | None = None,
    cache: str | Path | None = None,
    base_url: str | None = None,
    on_progress: OnProgress = lambda stage, fraction: None,
) -> None:
    """Write the data set that `load_dataset` loads into a folder that opens in milliseconds; see `mfrec.data.prepared`.

    Files are read in batches.  Memory is needed for about 2^24 ratings, and for the ids and tables of all users and
    items, regardless of the number of ratings.  The formats of plugins, and ml-100k, are read whole.

    Args:
        out: a new folder.
        on_progress: called with the stage of the work and the fraction of it that is done.

    The other arguments are those of `load_dataset`.

    Raises:
        InputError: as `load_dataset`, or the folder exists or cannot be written.  Nothing is left of it then.
    """
    path = path_of(data, cache, base_url)
    if is_prepared(path):
        write_prepared(_opened(path, columns, rating_range, duplicates, test_data, valid_data), out)
    else:
        _Files.of(path, test_data, valid_data, columns, rating_range, duplicates).prepare(Path(out), on_progress)


def _opened(
    path: Path,
    columns: str | Sequence[str] | None,
    rating_range: RatingRange | None,
    duplicates: Duplicates,
    test_data: str | Path | None,
    valid_data: str | Path | None,
) -> Dataset:
    """Open a prepared folder, without options that it has decided."""
    dataset = open_prepared(path)
    refused = {"columns": columns, "test_data": test_data, "valid_data": valid_data}
    if duplicates != "last":
        refused["duplicates"] = duplicates
    if rating_range is not None and tuple(rating_range) != dataset.rating_range:
        refused["rating_range"] = f"{rating_range[0]:g} {rating_range[1]:g}"
    for option, value in refused.items():
        if value is not None:
            raise OptionError(option, f"cannot be used with prepared data (got {value}); prepare {path} again with it")
    return dataset


@dataclass(frozen=True)
class _Files:
    """The files of a data set, and the options to read them.

    Attributes:
        paths: by split label: TRAIN, VALID or TEST.
        sources: the sources at the paths, each with the name of the file that can be read in batches, or None.
    """

    paths: dict[int, Path]
    sources: dict[int, tuple[Source, str | None]]
    columns: list[str] | None
    rating_range: RatingRange | None
    duplicates: Duplicates

    @classmethod
    def of(
        cls,
        path: Path,
        test_data: str | Path | None,
        valid_data: str | Path | None,
        columns: str | Sequence[str] | None,
        rating_range: RatingRange | None,
        duplicates: Duplicates,
    ) -> _Files:
        """The files at these paths."""
        if valid_data is not None and test_data is None:
            raise OptionError("valid_data", "needs test_data")
        named = {TRAIN: path, VALID: valid_data, TEST: test_data}
        paths = {label: Path(file) for label, file in named.items() if file is not None}
        wanted, sources = column_names(columns), {}
        for label, file in paths.items():
            if is_prepared(file):
                option = "test_data" if label == TEST else "valid_data"
                raise OptionError(
                    option, f"must be a file of ratings (got prepared data, {file}); give the file itself"
                )
            source, reader = recognized(file)
            sources[label] = source, reader.ratings(source)
        return cls(paths, sources, wanted, rating_range, duplicates)

    @property
    def name(self) -> str:
        """The name of the data set."""
        path = self.paths[TRAIN]
        return path.stem if path.is_file() else path.resolve().name

    @property
    def size(self) -> int:
        """The bytes of the ratings; 0 if they cannot be read in batches."""
        named = self._named()
        return sum(source.members[name].size for source, name in (named or {}).values())

    def _named(self) -> dict[int, tuple[Source, str]] | None:
        named = {label: (source, name) for label, (source, name) in self.sources.items() if name is not None}
        return named if len(named) == len(self.sources) else None

    def load(self) -> Dataset:
        """Read the files into memory."""
        parts: dict[int, RawTables] = {label: read_raw_tables(path, self.columns) for label, path in self.paths.items()}
        raw, labels = concatenated(parts) if len(parts) > 1 else (parts[TRAIN], None)
        dataset = Dataset.from_frame(
            raw.ratings,
            users=raw.users,
            items=raw.items,
            rating_range=self.rating_range or raw.rating_range,
            duplicates=self.duplicates,
            name=self.name,
            official_splits=raw.official_splits,
            split_labels=labels,
        )
        _log_cold_start(dataset)
        return dataset

    def prepare(self, out: Path, on_progress: OnProgress) -> None:
        """Write them as a prepared data set."""
        named = self._named()
        if named is None:
            write_prepared(self.load(), out)
            return
        dataset = prepare_in_batches(
            named,
            out,
            self.name,
            wanted=self.columns,
            rating_range=self.rating_range,
            duplicates=self.duplicates,
            on_progress=on_progress,
        )
        _log_cold_start(dataset)

    def from_cache(self, cache: Path) -> Dataset:
        """Open them as prepared in a folder; prepare them unless they are there, as they are now."""
        folder = cache / "prepared"
        entry = folder / f"{self._prefix()}-{_digest(self._states())}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"large data are prepared in {folder}, which cannot be written ({error.strerror}); set MFREC_CACHE to "
                "another folder, or prepare the data with `mfrec prepare`"
            ) from error
        with FileLock(folder / f".{self._prefix()}.lock"):
            if not is_prepared(entry):
                self._replace(entry)
            try:
                return open_prepared(entry)
            except InputError as error:
                logger.warning("%s; it is prepared again", error)
                self._replace(entry)
                return open_prepared(entry)

    def _replace(self, entry: Path) -> None:
        """Prepare the files; entries of their former states, and of killed processes, are removed."""
        for path in entry.parent.iterdir():
            if path.is_dir() and path.name.removeprefix(".").startswith(f"{self._prefix()}-"):
                shutil.rmtree(path)
        with stage_progress(f"preparing {self.name} once") as on_progress:
            self.prepare(entry, on_progress)

    def _prefix(self) -> str:
        """The beginning of the entries in the cache for these paths and options."""
        paths = {label: str(path.resolve()) for label, path in self.paths.items()}
        options = self.columns, self.rating_range, self.duplicates
        return f"{self.name}-{_digest([FORMAT, paths, options])}"

    def _states(self) -> list[Any]:
        """The sizes and the times of change of the files."""
        files = [
            file
            for source, _ in self.sources.values()
            for file in ([member.path for member in source.members.values()] if source.path.is_dir() else [source.path])
            if file is not None
        ]
        return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _log_cold_start(dataset: Dataset) -> None:
    """Warn of users and items without a training rating."""
    if dataset.split_labels is None:
        return
    ratings = dataset.ratings
    train = dataset.split_labels == TRAIN
    absent = [
        int((torch.bincount(indices[train], minlength=n) == 0).sum())
        for n, indices in ((ratings.n_users, ratings.users), (ratings.n_items, ratings.items))
    ]
    if any(absent):
        logger.warning(
            "%s of %s users and %s of %s items have no training rating; they are kept (cold start)",
            *(f"{n:,}" for n in (absent[0], ratings.n_users, absent[1], ratings.n_items)),
        )

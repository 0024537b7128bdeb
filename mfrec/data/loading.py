"""Datasets: ratings with their ids, users and items, from a name, a file, a frame, or planted factors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mfrec.data.dataset import Dataset, Duplicates
from mfrec.data.downloads import GROUPLENS, NAMED, zip_of
from mfrec.data.new_rows import new_items, new_users
from mfrec.data.parsing import Scale
from mfrec.data.readers import read
from mfrec.data.synthetic import synthetic
from mfrec.errors import InputError, unknown

__all__ = ["NAMED", "Dataset", "load", "new_items", "new_users", "synthetic"]


def load(
    data: str | Path,
    *,
    columns: str | Sequence[str] | None = None,
    scale: Scale | None = None,
    duplicates: Duplicates = "last",
    cache: str | Path | None = None,
    base_url: str = GROUPLENS,
) -> Dataset:
    """A named data set, embedded or downloaded, or whatever `readers.read` reads at a path.

    Args:
        data: a path, or a key of `NAMED`.  A string is a path where one exists, so that a folder ./ml-1m is read
            rather than downloaded again.
        columns: names of a table's user, item, rating and perhaps timestamp columns, "user,item,rating".
        scale: lowest and highest possible rating, instead of what the format declares.
        duplicates: as in `Dataset.from_frame`.
        cache: the folder of downloads; by default $MFREC_CACHE, or else the user's cache folder.
        base_url: the address under which NAME.zip lies.

    Raises:
        InputError: there is nothing of that name, it cannot be downloaded, or it cannot be read.

    Examples:
        >>> dataset = load("ml-latest-small")  # the one that comes with the package
        >>> dataset
        Dataset('ml-latest-small', Ratings(100,004 of 671 users × 9,066 items, cpu), scale 0.5–5)
        >>> dataset.title(dataset.item_index(1))
        'Toy Story (1995)'
    """
    path, name = Path(data), str(data)
    if not path.exists():
        if isinstance(data, Path) or path.name != name or path.suffix:
            names = ", ".join(NAMED)
            raise InputError(f"there is no file, folder or zip at {data}; check the path, or name one of {names}")
        if name not in NAMED:
            raise unknown("data set", name, NAMED)
        path = zip_of(name, cache, base_url)
    raw = read(path, columns)
    return Dataset.from_frame(
        raw.ratings,
        users=raw.users,
        items=raw.items,
        scale=scale or raw.scale,
        duplicates=duplicates,
        name=path.stem if path.is_file() else path.resolve().name,
        official_splits=raw.official_splits,
    )

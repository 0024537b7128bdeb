"""Files, frames and checks that the tests of `mfrec.data` share."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from mfrec.data.dataset import Dataset
from mfrec.data.prepared import open_prepared, write_prepared
from mfrec.data.readers import read_raw_tables
from mfrec.errors import InputError

CSV = "userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n1,1029,3.0,1260759179\n2,31,4.5,835355493\n"
U_DATA = "196\t242\t3\t881250949\n186\t302\t3\t891717742\n196\t302\t1\t878887116\n"
FRAME = pd.DataFrame(
    {"user": ["b", "a", "b"], "item": [31, 31, 1029], "rating": [2.0, 4.5, 3.0], "timestamp": [7, 9, 8]}
)
MOVIES = pd.DataFrame(
    {
        "item": [1029, 31, 5],
        "title": ["Dumbo (1941)", "Hyena Road", "Unrated (2000)"],
        "genres": ["Animation|Children", (), "Drama"],
    }
)
READERS_TABLE = pd.DataFrame({"user": ["b", "z", "a"], "age": [31, 20, None], "job": ["clerk", "smith", None]})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def write_file(path: Path, content: str | bytes) -> Path:
    return write(path.parent, {path.name: content}) / path.name


def pack(path: Path, files: dict[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def ml_100k(extra: dict[str, str | bytes] | None = None) -> dict[str, str | bytes]:
    """The files of a small ml-100k."""
    items = "242|Kolya (1996)|24-Jan-1997||http://x|0|1|0\n302|Misérables, Les (1995)|||http://x|1|0|1\n"
    return {
        "u.data": U_DATA,
        "u.item": items.encode("latin-1"),
        "u.genre": "unknown|0\nAction|1\nComedy|2\n\n",
        "u1.test": "196\t302\t1\t878887116\n",
        **(extra or {}),
    }


def rows(frame: pd.DataFrame) -> list[tuple[object, ...]]:
    return [tuple(row) for row in frame.astype(object).itertuples(index=False)]


def through_a_file(dataset: Dataset) -> Dataset:
    """The dataset after it was written and opened; mapped files outlast their names."""
    with tempfile.TemporaryDirectory() as folder:
        write_prepared(dataset, Path(folder) / "prepared")
        return open_prepared(Path(folder) / "prepared")


def assert_same(a: Dataset, b: Dataset) -> None:
    assert (a.name, a.rating_range) == (b.name, b.rating_range)
    for column in ("users", "items", "values", "timestamps", "weights"):
        assert_same_tensor(getattr(a.ratings, column), getattr(b.ratings, column))
    assert_same_tensor(a.split_labels, b.split_labels)
    assert (a.ratings.n_users, a.ratings.n_items) == (b.ratings.n_users, b.ratings.n_items)
    pd.testing.assert_index_equal(a.user_ids, b.user_ids, exact=True)
    pd.testing.assert_index_equal(a.item_ids, b.item_ids, exact=True)
    pd.testing.assert_frame_equal(a.users, b.users)
    pd.testing.assert_frame_equal(a.items, b.items)


def assert_same_tensor(x: torch.Tensor | None, y: torch.Tensor | None) -> None:
    assert (x is None) == (y is None)
    if x is not None and y is not None:
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


def assert_refused(message: str, *arguments: Any, call: Any = Dataset.from_frame, **keywords: Any) -> None:
    """The call raises an InputError with the message in one line."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **keywords)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def assert_unreadable(path: Path, *parts: str, columns: str | None = None) -> None:
    """Reading the path raises an InputError with all these parts in one line."""
    with pytest.raises(InputError) as caught:
        read_raw_tables(path, columns)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message

"""Prepared data sets: a folder of arrays that are mapped into memory, so that opening them takes milliseconds.

    OUT/prepared.json          version of the format, name, sizes, rating range, content hash, and the files' checksums
        crow.npy items.npy     the ratings by user, then item: where each user's begin, and the item of each
        values.npy             the rating of each; likewise timestamps.npy and weights.npy, if available
        item_crow.npy          the same by item: where each item's begin, the user of each (item_users.npy), and its
        …                      position in the order by user (item_order.npy)
        user_ids.npy           ids at their indices; .arrow if they are strings.  Likewise item_ids
        users.arrow            the table of users, if it has columns.  Likewise items.arrow
        split_labels.npy       the split that the data come with, if any
        official_splits.npy    (n_splits, n_ratings) test masks, if any

The processes that open a folder share its pages.  They are mapped copy-on-write: a change of a tensor stays in its
process.  `prepared.json` has a checksum, which is verified at every opening.  The other files are verified at the first
opening, and whenever one may have changed since (see `checksums`).  The content hash is the same for equal arrays, ids
and tables, regardless of their name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow
import pyarrow.ipc
import torch
from torch import Tensor

from mfrec.data.checksums import STAMP, checksums, verify
from mfrec.data.dataset import Dataset, PreparedFolder
from mfrec.data.files import read_json, sync, unwritable, write_json
from mfrec.data.ratings import Ratings
from mfrec.data.tables import table_from_arrow, table_to_arrow
from mfrec.errors import InputError
from mfrec.sparse import CSRPattern, SparseMatrix

FORMAT = 1
HEADER = "prepared.json"
PREPARE_AGAIN = "prepare the data again"
# The errors of numpy, Arrow and torch if files do not fit each other.
_MISFITS = (KeyError, TypeError, ValueError, AttributeError, OSError)


def is_prepared(path: Path) -> bool:
    """Whether a path is the folder of a prepared data set."""
    return (path / HEADER).is_file()


def open_prepared(path: str | Path, remedy: str = PREPARE_AGAIN) -> Dataset:
    """Open a prepared data set.

    Files are verified when a folder is opened for the first time, also after it was copied.  See `checksums`.

    Args:
        remedy: how to make the folder again, for messages.

    Raises:
        InputError: a file is missing or damaged, or was written by another version.
    """
    path = Path(path)
    header = read_header(path, remedy)
    try:
        verify(path, header["files"], remedy)
        dataset = _mapped(path, header)
        object.__setattr__(dataset, "prepared", PreparedFolder(path.absolute(), header["content_hash"]))
    except InputError:
        raise
    except _MISFITS as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path / HEADER} does not fit its files ({reason}); restore it from a copy, or {remedy}"
        ) from error
    return dataset


def read_header(path: Path, remedy: str = PREPARE_AGAIN) -> dict[str, Any]:
    """What the header of a folder says: the sizes and the content hash, among others; reads no other file.

    Raises:
        InputError: the header is missing or damaged, or was written by another version.
    """
    return read_json(path / HEADER, FORMAT, remedy)


def content_hash(path: Path) -> str:
    """The hash of the data set in a folder.

    Raises:
        InputError: as `read_header`.
    """
    digest: str = read_header(path)["content_hash"]
    return digest


def write_prepared(dataset: Dataset, path: str | Path) -> None:
    """Write a data set into a new folder; of one that was opened by `open_prepared`, by hard links to its files.

    On another file system, the files are copied instead.

    Raises:
        InputError: the folder exists and is not empty, cannot be written, or a table has a column that cannot.
    """
    path = Path(path)
    if dataset.prepared is None or not _link(dataset.prepared, path):
        with new_folder(path) as folder:
            _write_arrays(folder, dataset)
            finish(folder, dataset)


def _link(source: PreparedFolder, path: Path) -> bool:
    """Link the files of a prepared data set into a new folder; False if they were replaced or removed."""
    try:
        header = read_header(source.path)
    except InputError:
        return False
    if header.get("content_hash") != source.content_hash:
        return False
    try:
        with new_folder(path) as folder:
            with contextlib.suppress(_Replaced):  # the stamp may be missing
                _link_file(source.path / STAMP, folder / STAMP)
            # The header last: if the folder is replaced meanwhile, the header is that of the other data.
            for name in (*header["files"], HEADER):
                _link_file(source.path / name, folder / name)
            if content_hash(folder) != source.content_hash:
                raise _Replaced
    except _Replaced:
        return False
    return True


class _Replaced(Exception):
    """A folder that was opened has been replaced or removed."""


def _link_file(source: Path, target: Path) -> None:
    try:
        try:
            os.link(source, target)
        except FileNotFoundError:
            raise
        except OSError:
            shutil.copyfile(source, target)
    except FileNotFoundError as error:
        raise _Replaced from error


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes the folder at a path once everything is in it, or is removed.

    Raises:
        InputError: the path exists and is not an empty folder, or the folder cannot be written.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise InputError(f"{path} must be a new folder (got one that exists); choose another path, or delete it")
    folder = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        yield folder
        for file in (*folder.iterdir(), folder):
            sync(file)
        os.replace(folder, path)
        sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_arrays(folder: Path, dataset: Dataset) -> None:
    """Write the ratings in both orders, and the splits."""
    ratings, pattern, by_item = dataset.ratings, dataset.ratings.pattern, dataset.ratings.pattern.T
    arrays = {
        "crow": pattern.crow,
        "items": pattern.col,
        "values": ratings.values,
        "item_crow": by_item.crow,
        "item_users": by_item.col,
        "item_order": pattern.transpose_order,
        "timestamps": ratings.timestamps,
        "weights": ratings.weights,
        "split_labels": None if dataset.split_labels is None else dataset.split_labels.to(torch.uint8),
        "official_splits": torch.stack([*dataset.official_splits.values()]) if dataset.official_splits else None,
    }
    for name, tensor in arrays.items():
        if tensor is not None:
            np.save(folder / f"{name}.npy", tensor.cpu().numpy())


def finish(folder: Path, dataset: Dataset) -> None:
    """Write the ids and tables of a data set whose arrays are in the folder already, and last the header."""
    for kind, ids, table in (("user", dataset.user_ids, dataset.users), ("item", dataset.item_ids, dataset.items)):
        if ids.dtype == np.int64:
            np.save(folder / f"{kind}_ids.npy", ids.to_numpy())
        else:
            is_integer = [isinstance(each, int) for each in ids]
            _write_arrow(folder / f"{kind}_ids.arrow", pd.DataFrame({"id": ids.map(str), "is_integer": is_integer}))
        if len(table.columns):
            _write_arrow(folder / f"{kind}s.arrow", table)
    ratings = dataset.ratings
    content = {
        "n_users": ratings.n_users,
        "n_items": ratings.n_items,
        "n_ratings": len(ratings),
        "rating_range": list(dataset.rating_range),
        "official_splits": list(dataset.official_splits),
        "files": checksums(sorted(folder.iterdir())),
    }
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    header = {"format": FORMAT, "name": dataset.name, "content_hash": f"sha256:{digest}", **content}
    write_json(folder / HEADER, header)


def _mapped(path: Path, header: Mapping[str, Any]) -> Dataset:
    """The data set in a folder, its arrays mapped."""
    shape, files = (header["n_users"], header["n_items"]), header["files"]
    ratings = mapped_ratings(path, shape, files)
    if len(ratings) != header["n_ratings"]:
        raise ValueError(f"there are {len(ratings)} ratings")
    user_ids, item_ids = _ids(path, "user", files), _ids(path, "item", files)
    if (len(user_ids), len(item_ids)) != shape:
        raise ValueError("the numbers of ids are wrong")
    tables = _table(path / "users.arrow", files, shape[0]), _table(path / "items.arrow", files, shape[1])
    low, high = header["rating_range"]
    masks, labels = (_tensor(path / f"{name}.npy", files) for name in ("official_splits", "split_labels"))
    splits = {} if masks is None else dict(zip(header["official_splits"], masks, strict=True))
    return Dataset(header["name"], ratings, user_ids, item_ids, *tables, (low, high), splits, labels)


def mapped_ratings(path: Path, shape: tuple[int, int], files: Container[str]) -> Ratings:
    """The ratings in a folder, users × items; the pattern by item is mapped too, and not made when first needed.

    Args:
        files: the names of the folder's files.

    Raises:
        OSError, ValueError: the files do not fit each other.
    """
    crow, items, item_crow, item_users, order, values = (
        torch.from_numpy(mapped(path / f"{name}.npy"))
        for name in ("crow", "items", "item_crow", "item_users", "item_order", "values")
    )
    by_user = CSRPattern(crow, items, shape)
    by_user._transposed = (order, CSRPattern(item_crow, item_users, (shape[1], shape[0])))
    optional = _tensor(path / "timestamps.npy", files), _tensor(path / "weights.npy", files)
    columns = [tensor for tensor in (items, item_users, order, values, *optional) if tensor is not None]
    if len(set(map(len, columns))) > 1 or (len(crow), len(item_crow)) != (shape[0] + 1, shape[1] + 1):
        raise ValueError("the lengths of arrays are wrong")
    return Ratings.of_matrix(SparseMatrix(by_user, values), *optional)


def mapped(path: Path) -> npt.NDArray[Any]:
    """The array in a .npy file, mapped copy-on-write."""
    array: npt.NDArray[Any] = np.load(path, mmap_mode="c", allow_pickle=False)
    return array


def _tensor(path: Path, files: Container[str]) -> Tensor | None:
    return torch.from_numpy(mapped(path)) if path.name in files else None


def _ids(path: Path, kind: str, files: Mapping[str, Any]) -> pd.Index:
    if f"{kind}_ids.npy" in files:
        ids: pd.Index = pd.Index(np.asarray(mapped(path / f"{kind}_ids.npy")))
        return ids
    table = _read_arrow(path / f"{kind}_ids.arrow")
    texts, is_integer = (table.column(name).to_pylist() for name in ("id", "is_integer"))
    return pd.Index([int(id) if flag else id for id, flag in zip(texts, is_integer, strict=True)], dtype=object)


def _table(path: Path, files: Mapping[str, Any], n_rows: int) -> pd.DataFrame:
    if path.name not in files:
        return pd.DataFrame(index=pd.RangeIndex(n_rows))
    table = _read_arrow(path)
    if len(table) != n_rows:
        raise ValueError(f"{path.name} has {len(table)} rows in place of {n_rows}")
    return table_from_arrow(table)


def _write_arrow(path: Path, frame: pd.DataFrame) -> None:
    table = table_to_arrow(frame)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _read_arrow(path: Path) -> Any:
    with pyarrow.memory_map(str(path)) as file:
        return pyarrow.ipc.open_file(file).read_all()

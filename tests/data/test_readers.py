"""Readers: each format is recognized by its files, and a plugin's reader is asked first."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from data_examples import CSV, U_DATA, assert_unreadable, ml_100k, pack, rows, write, write_file

from mfrec.data.archives import Source
from mfrec.data.loading import load_dataset
from mfrec.data.raw_tables import RawTables
from mfrec.data.readers import READERS, Reader, read_raw_tables


def test_ml_100k_comes_with_titles_genres_and_official_splits(tmp_path: Path) -> None:
    raw = read_raw_tables(write(tmp_path, ml_100k()))
    assert rows(raw.ratings)[0] == (196, 242, 3.0, 881250949)
    assert raw.items is not None
    assert raw.items["title"].tolist() == ["Kolya (1996)", "Misérables, Les (1995)"]
    assert raw.items["year"].tolist() == [1996, 1995]
    assert raw.items["genres"].tolist() == [("Action",), ("unknown", "Comedy")]
    assert raw.rating_range == (1, 5)
    assert {name: mask.tolist() for name, mask in raw.official_splits.items()} == {"u1": [False, False, True]}


def test_a_file_is_recognized_by_its_content_and_read_without_the_files_around_it(tmp_path: Path) -> None:
    raw = read_raw_tables(write(tmp_path, ml_100k({"anything": U_DATA})) / "anything")
    assert len(raw.ratings) == 3
    assert raw.users is None
    assert raw.items is None
    assert not raw.official_splits


@pytest.mark.parametrize(
    ("files", "content"),
    [
        ({}, "no files"),
        ({"README": "x"}, "README"),
        ({"u.item": "1|a", "u1.base": U_DATA, "u1.test": U_DATA}, "u.item, u1.base, u1.test"),
        ({"a.csv": CSV, "b.csv": CSV}, "a.csv, b.csv"),
    ],
)
def test_a_folder_or_zip_without_ratings_is_refused_with_its_content(
    tmp_path: Path, files: dict[str, str], content: str
) -> None:
    path = write(tmp_path / "folder", files)
    needs = f"{path} must hold ratings as u.data, ratings.dat, ratings.csv, a single .csv, .tsv, .parquet table"
    assert_unreadable(path, needs, f"(got {content})", "give the path of the ratings file itself")
    path = pack(tmp_path / "folder.zip", {**files, "more/deep": "x"} if files else {})
    assert_unreadable(path, f"{path} must hold ratings as u.data", "give the path")


def test_official_tests_must_be_in_the_data(tmp_path: Path) -> None:
    path = write(tmp_path, ml_100k({"u1.test": "196\t999\t1\t878887116\n"}))
    assert_unreadable(path, "u1.test has 1 ratings that u.data lacks", "remove u1.test")


# A reader of a plugin.


def read_json(source: Source, columns: list[str] | None) -> RawTables:
    """A list of objects; `columns` renames their keys."""
    frame = pd.read_json(io.BytesIO(source.read(next(iter(source.members)))))
    return RawTables(frame.rename(columns=dict(zip(columns or (), ("user", "item", "rating"), strict=False))))


def is_json(source: Source) -> bool:
    return source.only_file is not None and source.only_file.endswith(".json")


@pytest.mark.parametrize("packed", [False, True])
def test_one_row_adds_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    content = '[{"who": "ann", "what": 7, "stars": 4}, {"who": "bob", "what": 7, "stars": 2.5}]'
    path = pack(tmp_path / "x.zip", {"x.json": content}) if packed else write_file(tmp_path / "x.json", content)
    assert_unreadable(path, "must have the columns")
    monkeypatch.setitem(READERS, "json", Reader("a .json file", is_json, read_json))
    dataset = load_dataset(path, columns="who,what,stars")
    assert dataset.user_ids.tolist() == ["ann", "bob"]
    assert dataset.ratings.values.tolist() == [4.0, 2.5]
    assert dataset.rating_range == (2.5, 4.0)
    assert len(read_raw_tables(write(tmp_path / "folder", {"ratings.csv": CSV})).ratings) == 3
    assert_unreadable(write(tmp_path / "empty", {}), "must hold ratings as a .json file, u.data, ratings.dat")


def test_the_reader_added_last_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame({"user": [1], "item": [2], "rating": [3.0]})
    monkeypatch.setitem(READERS, "mine", Reader("mine", lambda source: True, lambda source, columns: RawTables(frame)))
    assert rows(read_raw_tables(write(tmp_path, ml_100k())).ratings) == [(1, 2, 3.0)]


# Real data.


@pytest.mark.parametrize(
    ("name", "n_ratings", "rating_range"),
    [("ml-100k", 100_000, (1, 5)), ("ml-1m", 1_000_209, (1, 5)), ("ml-latest-small", 100_836, (0.5, 5))],
)
def test_real_folders_have_their_sizes_ranges_and_splits(
    shared_data: Path, name: str, n_ratings: int, rating_range: tuple[float, float]
) -> None:
    raw = read_raw_tables(shared_data / name)
    assert len(raw.ratings) == n_ratings
    assert raw.rating_range == rating_range
    assert raw.items is not None
    assert raw.items["title"].iloc[0] == "Toy Story (1995)"
    sizes = {split: int(mask.sum()) for split, mask in raw.official_splits.items()}
    expected = {**dict.fromkeys(("u1", "u2", "u3", "u4", "u5"), 20_000), "ua": 9_430, "ub": 9_430}
    assert sizes == (expected if name == "ml-100k" else {})


def test_real_ratings_have_the_bits_that_python_reads(shared_data: Path) -> None:
    lines = (shared_data / "ml-latest-small" / "ratings.csv").read_text().splitlines()[1:]
    ratings = read_raw_tables(shared_data / "ml-latest-small").ratings
    assert ratings["rating"].tolist() == [float(line.split(",")[2]) for line in lines]
    assert ratings["timestamp"].tolist() == [int(line.split(",")[3]) for line in lines]

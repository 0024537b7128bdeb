"""A split in files: ids and titles are shared, ids of the test file are kept, and the files must be disjoint."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from data_examples import assert_refused, assert_same, generator, pack, through_a_file, write, write_file

from mfrec.data.dataset import Dataset
from mfrec.data.loading import load_dataset
from mfrec.data.splits import SPLIT_NAMES, TEST, TRAIN, VALID

TRAIN_CSV = "user,item,rating\n1,10,4\n2,20,5\n2,10,3\n"
TEST_CSV = "user,item,rating\n1,20,2\n3,30,1\n"
VALID_CSV = "user,item,rating\n1,30,5\n"


def labelled(dataset: Dataset) -> list[tuple[Any, Any, float, str]]:
    """User id, item id, rating and split of each rating, sorted."""
    assert dataset.split_labels is not None
    names = {label: name for name, label in SPLIT_NAMES.items()}
    ratings = dataset.ratings
    columns = (
        dataset.user_ids[ratings.users.numpy()].tolist(),
        dataset.item_ids[ratings.items.numpy()].tolist(),
        ratings.values.tolist(),
        [names[label] for label in dataset.split_labels.tolist()],
    )
    return sorted(zip(*columns, strict=True), key=str)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write(tmp_path, {"data.csv": TRAIN_CSV, "test.csv": TEST_CSV, "valid.csv": VALID_CSV})


def test_ids_are_shared_and_each_rating_keeps_the_label_of_its_file(files: Path) -> None:
    dataset = load_dataset(files / "data.csv", test_data=files / "test.csv", valid_data=files / "valid.csv")
    assert dataset.name == "data"
    assert labelled(dataset) == [
        (1, 10, 4.0, "train"),
        (1, 20, 2.0, "test"),
        (1, 30, 5.0, "valid"),
        (2, 10, 3.0, "train"),
        (2, 20, 5.0, "train"),
        (3, 30, 1.0, "test"),
    ]
    assert dataset.rating_range == (1, 5)
    assert_same(dataset, through_a_file(dataset))
    labels = dataset.split_labels_for("random", 0.5, 0.5, generator())
    assert dataset.split_labels is not None
    assert labels.equal(dataset.split_labels)


def test_a_dataset_without_split_files_has_no_split_labels(files: Path) -> None:
    assert load_dataset(files / "data.csv").split_labels is None


def test_users_and_items_without_a_training_rating_are_kept_and_counted(
    files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "mfrec"):
        dataset = load_dataset(files / "data.csv", test_data=files / "test.csv", valid_data=files / "valid.csv")
    assert "1 of 3 users and 1 of 3 items have no training rating; they are kept (cold start)" in caplog.text
    assert dataset.user_ids.tolist() == [1, 2, 3]
    caplog.clear()
    with caplog.at_level(logging.INFO, "mfrec"):
        load_dataset(files / "data.csv", test_data=write_file(files / "t.csv", "user,item,rating\n1,20,2\n"))
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("test", "ids"),
    [
        ("user,item,rating\n03,10,1\n", ["03", "1", "2"]),
        ("user,item,rating\nann,10,1\n", ["1", "2", "ann"]),
        ("user,item,rating\n3,10,1\n", [1, 2, 3]),
    ],
)
def test_ids_are_integers_only_if_they_are_in_every_file(tmp_path: Path, test: str, ids: list[Any]) -> None:
    data, test_data = write_file(tmp_path / "a.csv", TRAIN_CSV), write_file(tmp_path / "b.csv", test)
    for first, second in ((data, test_data), (test_data, data)):
        dataset = load_dataset(first, test_data=second)
        assert dataset.user_ids.tolist() == ids
        assert dataset.item_ids.tolist() == [10, 20]


@pytest.mark.parametrize("extra", ["", "1,tt9,3\n"])
def test_titles_and_user_columns_are_shared_by_integers_and_by_text(tmp_path: Path, extra: str) -> None:
    movies = "movieId,title,genres\n10,Alien (1979),Horror\n20,Brazil (1985),War\n30,Cats (2019),Musical\n"
    users = "1|24|M|writer|85711\n2|53|F|other|94043\n3|23|M|writer|32067\n"
    files = {"ratings.csv": TRAIN_CSV, "movies.csv": movies, "u.user": users}
    test_data = write_file(tmp_path / "test.csv", TEST_CSV + extra)
    for data in (write(tmp_path / "data", files), pack(tmp_path / "data.zip", dict(files))):
        dataset = load_dataset(data, test_data=test_data)
        assert dataset.name == "data"
        assert dataset.title(dataset.item_index(30)) == "Cats (2019)"
        assert dataset.users.loc[dataset.user_index(3), "age"] == 23
        assert dataset.title(dataset.item_index("alien (1979)")) == "Alien (1979)"


def test_the_first_file_with_a_row_describes_an_item(tmp_path: Path) -> None:
    first = {"ratings.csv": TRAIN_CSV, "movies.csv": "movieId,title\n10,First (2001)\n"}
    second = {"ratings.csv": TEST_CSV, "movies.csv": "movieId,title\n10,Second (2002)\n30,Third (2003)\n"}
    dataset = load_dataset(write(tmp_path / "a", first), test_data=write(tmp_path / "b", second))
    assert dataset.items["title"].tolist() == ["First (2001)", "20", "Third (2003)"]


def test_timestamps_are_kept_only_if_every_file_has_them(tmp_path: Path) -> None:
    stamped = write_file(tmp_path / "a.csv", "user,item,rating,timestamp\n1,1,3,70\n")
    test = write_file(tmp_path / "b.csv", "user,item,rating,timestamp\n1,2,3,80\n")
    timestamps = load_dataset(stamped, test_data=test).ratings.timestamps
    assert timestamps is not None
    assert timestamps.tolist() == [70, 80]
    assert load_dataset(stamped, test_data=write_file(tmp_path / "c.csv", TEST_CSV)).ratings.timestamps is None


def test_columns_rating_range_and_duplicates_hold_for_all_files(tmp_path: Path) -> None:
    header = "stars,who,what\n"
    data = write_file(tmp_path / "a.csv", f"{header}4,1,1\n2,1,1\n")
    test = write_file(tmp_path / "b.csv", f"{header}1,1,2\n9,1,2\n")
    arguments = {"columns": "who,what,stars", "test_data": test}
    dataset = load_dataset(data, duplicates="mean", rating_range=(0, 10), **arguments)
    assert labelled(dataset) == [(1, 1, 3.0, "train"), (1, 2, 5.0, "test")]
    assert dataset.rating_range == (0, 10)
    assert load_dataset(data, duplicates="first", **arguments).ratings.values.tolist() == [4.0, 1.0]
    assert load_dataset(data, **arguments).rating_range == (2, 9)
    message = "rating_range must hold every rating: 1 of 4 ratings are outside 1 to 5 (e.g. 9)"
    assert_refused(message, data, rating_range=(1, 5), call=load_dataset, **arguments)
    assert_refused("2 of 4 ratings repeat", data, duplicates="error", call=load_dataset, **arguments)


def test_a_pair_in_two_files_is_refused_and_counted(files: Path) -> None:
    test = write_file(files / "both.csv", TRAIN_CSV + "1,30,2\n")
    message = "must be disjoint: 3 (user, item) pairs are in more than one of them (e.g. user 1, item 10)"
    assert_refused(message, files / "data.csv", test_data=test, call=load_dataset)
    message = "must be disjoint: 1 (user, item) pairs are in more than one of them (e.g. user 1, item 30)"
    arguments = {"test_data": write_file(files / "t.csv", VALID_CSV), "valid_data": files / "valid.csv"}
    assert_refused(message, files / "data.csv", call=load_dataset, **arguments)


def test_validation_data_need_test_data(files: Path) -> None:
    assert_refused("valid_data needs test_data", files / "data.csv", valid_data=files / "valid.csv", call=load_dataset)


def test_a_test_file_that_cannot_be_read_is_named(files: Path) -> None:
    path = files / "nowhere.csv"
    assert_refused(f"no file, folder or zip at {path}", files / "data.csv", test_data=path, call=load_dataset)
    path = write_file(files / "bad.csv", "user,item,rating\n1,2,good\n")
    assert_refused(f"{path}, line 2: the rating", files / "data.csv", test_data=path, call=load_dataset)


def test_parquet_and_text_files_share_ids(tmp_path: Path) -> None:
    path = tmp_path / "test.parquet"
    pd.DataFrame({"user": [1, 3], "item": [20, 30], "rating": [2.0, 1.0]}).to_parquet(path)
    dataset = load_dataset(write_file(tmp_path / "data.csv", TRAIN_CSV), test_data=path)
    assert dataset.user_ids.tolist() == [1, 2, 3]
    pd.DataFrame({"user": ["1", "3"], "item": [20.5, 30], "rating": [2.0, 1.0]}).to_parquet(path)
    message = "item ids must be integers or strings (got 20.5, a float)"
    assert_refused(message, tmp_path / "data.csv", test_data=path, call=load_dataset)
    frame = pd.DataFrame({"user": pd.array([1, None], dtype="Int64"), "item": [20, 30], "rating": [2.0, 1.0]})
    frame.to_parquet(path)
    message = "user ids must be complete (1 of 5 rows have none)"
    assert_refused(message, tmp_path / "data.csv", test_data=path, call=load_dataset)


def test_official_test_files_of_ml_100k_give_its_official_split(shared_data: Path) -> None:
    folder = shared_data / "ml-100k"
    official = load_dataset(folder)
    dataset = load_dataset(folder / "u1.base", test_data=folder / "u1.test")
    assert dataset.split_labels is not None
    assert (dataset.split_labels == TEST).equal(official.official_splits["u1"])
    assert dataset.ratings.values.equal(official.ratings.values)
    assert dataset.rating_range == (1, 5)
    labels = dataset.split_labels_for("random", 0.1, 0.05, generator())
    assert labels.equal(official.split_labels_for("u1", 0.1, 0.05, generator()))
    assert {int(label) for label in labels.unique()} == {TRAIN, VALID, TEST}

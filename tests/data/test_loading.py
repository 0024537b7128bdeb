"""Loading: by path or by name, with the sizes of real data, and the embedded data set."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from data_examples import CSV, assert_refused, assert_same, through_a_file, write_file

from mfrec.data import downloads
from mfrec.data.loading import load_dataset


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("ml-100k", (943, 1682, 100_000)),
        ("ml-1m", (6040, 3706, 1_000_209)),
        ("ml-latest-small-2016", (671, 9066, 100_004)),
    ],
)
def test_real_data_have_their_published_sizes(shared_data: Path, name: str, shape: tuple[int, int, int]) -> None:
    dataset = load_dataset(shared_data / name)
    ratings = dataset.ratings
    assert (ratings.n_users, ratings.n_items, ratings.n_ratings) == shape
    assert (len(dataset.users), len(dataset.items)) == (ratings.n_users, ratings.n_items)
    assert dataset.name == name


@pytest.mark.parametrize("name", ["ml-100k", "ml-1m"])
def test_real_user_tables_are_complete_and_survive_the_round_trip(shared_data: Path, name: str) -> None:
    dataset = load_dataset(shared_data / name)
    assert not dataset.users.isna().any(axis=None)
    assert dataset.users["age"].dtype == "Int64"
    assert dataset.users["occupation"].nunique() == 21
    expected = {"ml-100k": (49, "M", "writer", "55105"), "ml-1m": (35, "F", "homemaker", "94587")}
    row = dataset.users.loc[dataset.user_index(196)]
    assert tuple(row[["age", "gender", "occupation", "zip_code"]]) == expected[name]
    assert_same(dataset, through_a_file(dataset))


def test_a_csv_by_path_keeps_its_ids_and_takes_a_rating_range(tmp_path: Path) -> None:
    path = write_file(tmp_path / "mine.csv", "who,what,stars\n007,a,9\n7,a,8\n")
    dataset = load_dataset(str(path), columns="who,what,stars", rating_range=(0, 10))
    assert dataset.user_ids.tolist() == ["007", "7"]
    assert (dataset.name, dataset.rating_range) == ("mine", (0, 10))


def test_a_headerless_table_of_ratings_from_1_to_10_has_the_range_found_in_it(tmp_path: Path) -> None:
    lines = "".join(f"{user}\t{item}\t{1 + (user * item) % 10}\t5\n" for user in range(1, 11) for item in range(1, 11))
    path = write_file(tmp_path / "mine.tsv", lines)
    assert load_dataset(path).rating_range == (1, 10)
    assert load_dataset(path, rating_range=(0, 10)).rating_range == (0, 10)


def test_a_rating_outside_a_declared_range_names_the_argument_that_widens_it(tmp_path: Path) -> None:
    path = write_file(tmp_path / "mine.csv", CSV + "3,3,7,1\n")
    message = "rating_range must hold every rating: 1 of 4 ratings are outside 0.5 to 5 (e.g. 7); widen it or drop them"
    assert_refused(message, path, call=load_dataset)
    assert load_dataset(path, rating_range=(0.5, 7)).rating_range == (0.5, 7)


def test_a_path_that_exists_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "ml-1m" / "ratings.csv", CSV)
    monkeypatch.chdir(tmp_path)
    assert len(load_dataset("ml-1m").ratings) == 3


def test_an_unknown_name_suggests_the_nearest_and_an_absent_path_the_names(tmp_path: Path) -> None:
    assert_refused("unknown data set 'ml1m'; did you mean 'ml-1m'?", "ml1m", call=load_dataset)
    for path in ("./ml-1m", "nowhere.csv", tmp_path / "none"):
        message = f"no file, folder or zip at {path}; check the path, or name one of ml-latest"
        assert_refused(message, path, call=load_dataset)


# The embedded data set.


def test_the_embedded_data_are_what_their_program_makes() -> None:
    folder = Path(downloads.__file__).parent / "ml_latest_small"
    spec = importlib.util.spec_from_file_location("make_ml_latest_small", folder / "make_ml_latest_small.py")
    assert spec is not None
    assert spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    with zipfile.ZipFile(folder / "ml-latest-small.zip") as archive:
        files = {name.removeprefix("ml-latest-small/"): archive.read(name) for name in archive.namelist()}
    assert make.sha256(files) == make.SHA256
    assert files["README.txt"] == (folder / "LICENSE.txt").read_bytes()


def test_the_embedded_data_need_no_network() -> None:
    dataset = load_dataset("ml-latest-small", cache="/nowhere")
    ratings = dataset.ratings
    assert (ratings.n_users, ratings.n_items, ratings.n_ratings) == (671, 9066, 100_004)
    assert (dataset.name, dataset.rating_range) == ("ml-latest-small", (0.5, 5))
    assert dataset.title(dataset.item_index("1")) == "Toy Story (1995)"
    assert dataset.items["title"].nunique() == 9064
    assert_same(dataset, through_a_file(dataset))


def test_the_embedded_data_are_the_original(shared_data: Path) -> None:
    original = load_dataset(shared_data / "ml-latest-small-2016")
    embedded = load_dataset("ml-latest-small")
    assert torch.equal(original.ratings.values, embedded.ratings.values)
    assert original.ratings.timestamps is not None
    assert embedded.ratings.timestamps is not None
    assert torch.equal(original.ratings.timestamps, embedded.ratings.timestamps)
    pd.testing.assert_index_equal(original.user_ids, embedded.user_ids)
    pd.testing.assert_index_equal(original.item_ids, embedded.item_ids)
    pd.testing.assert_frame_equal(original.items, embedded.items)

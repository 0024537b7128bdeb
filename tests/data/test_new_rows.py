"""New users and items: their ratings by ids or titles of a dataset, and their tables."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from data_examples import FRAME, MOVIES, READERS_TABLE, assert_refused

from mfrec.data.dataset import Dataset
from mfrec.data.new_rows import YOU, new_items, new_users
from mfrec.errors import InputError


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return Dataset.from_frame(FRAME, users=READERS_TABLE, items=MOVIES, rating_range=(1, 5))


def test_ratings_by_title_are_one_new_users_ratings_of_all_items(dataset: Dataset) -> None:
    new = new_users(dataset, {"hyena road": 4, 1029: 2.5})
    assert new.user_ids.tolist() == [YOU]
    assert new.item_ids.equals(dataset.item_ids)
    assert new.ratings.items.tolist() == [0, 1]
    assert new.ratings.values.tolist() == [4.0, 2.5]
    assert new.items is dataset.items
    assert new.rating_range == (1, 5)


def test_the_last_of_several_ratings_of_an_item_counts(dataset: Dataset) -> None:
    frame = pd.DataFrame({"user": "zoe", "item": [31, "Hyena Road", 1029], "rating": [1, 5, 2]})
    assert new_users(dataset, frame).ratings.values.tolist() == [5.0, 2.0]


def test_new_users_of_the_table_without_a_rating_are_included(dataset: Dataset) -> None:
    frame = pd.DataFrame({"user": ["zoe"], "item": [31], "rating": [3]})
    new = new_users(dataset, frame, users=pd.DataFrame({"user": ["kim", "zoe"], "age": [20, 30]}))
    assert new.user_ids.tolist() == ["kim", "zoe"]
    assert new.users["age"].tolist() == [20, 30]
    assert new.ratings.users.tolist() == [1]
    alone = new_users(dataset, {}, users=pd.DataFrame({"age": [40]}))
    assert (len(alone.ratings), alone.users["age"].tolist()) == (0, [40])


def test_new_items_have_ratings_by_the_datasets_users(dataset: Dataset) -> None:
    frame = pd.DataFrame({"user": ["b", "a"], "item": [7, 7], "rating": [3, 4]})
    new = new_items(dataset, frame, items=pd.DataFrame({"item": [7, 8], "title": ["Emma (1996)", "Jaws (1975)"]}))
    assert new.user_ids.equals(dataset.user_ids)
    assert new.item_ids.tolist() == [7, 8]
    assert new.ratings.values.tolist() == [4.0, 3.0]
    assert new.items["year"].tolist() == [1996, 1975]
    assert new.users is dataset.users


# Times.


def test_times_of_new_ratings_are_those_of_the_last_rating_of_an_item(dataset: Dataset) -> None:
    frame = pd.DataFrame({"user": "zoe", "item": [31, 1029, 31], "rating": [1, 2, 5], "when": [30, 20, 10]})
    ratings = new_users(dataset, frame, timestamp="when").ratings
    assert dict(zip(ratings.values.tolist(), ratings.timestamps.tolist(), strict=True)) == {5.0: 10, 2.0: 20}
    assert new_users(dataset, frame).ratings.timestamps is None
    assert new_users(dataset, frame.drop(columns="when"), timestamp="when").ratings.timestamps is None
    assert new_users(dataset, {31: 4}, timestamp="when").ratings.timestamps is None


def test_times_may_be_datetimes_and_new_items_have_them_too(dataset: Dataset) -> None:
    times = pd.to_datetime([3600, 7200], unit="s")
    frame = pd.DataFrame({"user": ["b", "a"], "item": [7, 7], "rating": [3, 4], "timestamp": times})
    ratings = new_items(dataset, frame, timestamp="timestamp").ratings
    assert ratings.timestamps.tolist() == [7200, 3600]
    assert new_items(dataset, frame).ratings.timestamps is None


def test_missing_times_of_new_ratings_are_refused(dataset: Dataset) -> None:
    frame = pd.DataFrame({"user": ["zoe", "zoe"], "item": [31, 1029], "rating": [3, 4], "timestamp": [5, None]})
    with pytest.raises(InputError, match="timestamp"):
        new_users(dataset, frame, timestamp="timestamp")


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ({"Hyena Rd": 4}, "unknown item 'Hyena Rd'; did you mean 'Hyena Road'?"),
        ({31: 9}, "ratings must be in 1 to 5, the rating range of frame (got 9)"),
        ({31: "good"}, "ratings must be finite numbers in float32 (got 'good' in row 0"),
        ([4, 5], "ratings must be a DataFrame or a dict from item to rating (got list)"),
        (pd.DataFrame({"user": [1], "rating": [3]}), "the ratings need a column 'item' (got user, rating)"),
        (
            pd.DataFrame({"user": [1], "item": [None], "rating": [3]}),
            "all ratings need an id in column 'item' (1 of 1 have none); drop or fill them",
        ),
    ],
)
def test_ratings_that_do_not_fit_the_dataset_are_refused(dataset: Dataset, ratings: Any, message: str) -> None:
    assert_refused(message, dataset, ratings, call=new_users)


def test_an_unknown_user_of_a_new_item_is_refused(dataset: Dataset) -> None:
    frame = pd.DataFrame({"user": ["zoe"], "item": [7], "rating": [3]})
    assert_refused("unknown user 'zoe'; frame has 2 users (e.g. a, b)", dataset, frame, call=new_items)

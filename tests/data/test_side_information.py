"""Side information: features from texts, tuples and numbers of a column, and the feature blocks of a dataset."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from features_examples import dense_of, lengths
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from mfrec.data.dataset import Dataset
from mfrec.data.features import joined
from mfrec.data.side_information import BINS, column_features, dataset_features, entity_features
from mfrec.errors import InputError


def test_texts_are_one_hot_and_a_missing_text_is_no_feature() -> None:
    features = column_features(pd.Series(["nurse", "cook", None, "nurse", np.nan, pd.NA], name="job", dtype=object))
    assert features.names == ("job cook", "job nurse")
    assert dense_of(features).tolist() == [[0, 1], [1, 0], [0, 0], [0, 1], [0, 0], [0, 0]]


def test_each_text_of_a_tuple_is_a_feature_once_in_rows_of_unit_length() -> None:
    column = pd.Series([("Drama", "War"), (), ("War", "War"), None, ("War", "Drama", "Noir")], name="genres")
    features = column_features(column)
    assert features.names == ("genres Drama", "genres Noir", "genres War")
    signs = [[1, 0, 1], [0, 0, 0], [0, 0, 1], [0, 0, 0], [1, 1, 1]]
    assert (dense_of(features) > 0).int().tolist() == signs
    assert lengths(features) == pytest.approx([1, 0, 1, 0, 1])
    assert dense_of(features)[4].tolist() == pytest.approx([3**-0.5] * 3)


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
@pytest.mark.parametrize("dtype", ["Int64", "Float64", object])
def test_few_numbers_are_one_hot_by_value(missing: object, dtype: Any) -> None:
    features = column_features(pd.Series([30, 20, missing, 30], name="age", dtype=dtype))
    assert features.names == ("age 20", "age 30")
    assert dense_of(features).tolist() == [[0, 1], [1, 0], [0, 0], [0, 1]]


@pytest.mark.parametrize("numbers", [[1_000_000_001, 1_000_000_002], [0.1234567, 0.1234568]])
def test_numbers_that_differ_in_a_late_digit_are_different_features(numbers: list[float]) -> None:
    assert dense_of(column_features(pd.Series(numbers, name="stamp"))).tolist() == [[1, 0], [0, 1]]


def test_many_numbers_are_cut_into_bins_with_equally_many_rows_named_by_their_ends() -> None:
    random = np.random.default_rng(0)
    column = pd.Series(random.permutation(100) + 100, name="age", dtype="Int64")
    features = column_features(column, n_bins=4)
    assert features.names == ("age 100 to 124", "age 125 to 149", "age 150 to 174", "age 175 to 199")
    F = dense_of(features)
    assert F.sum(0).tolist() == [25] * 4
    assert F.argmax(1).tolist() == ((column.to_numpy(int) - 100) // 25).tolist()


@given(
    st.lists(st.one_of(st.none(), st.integers(-3, 30), st.floats(-1e6, 1e6)), min_size=1, max_size=60),
    st.integers(1, 6),
)
def test_bins_are_disjoint_intervals_and_each_number_is_in_exactly_one(numbers: list[Any], n_bins: int) -> None:
    present = [number for number in numbers if number is not None]
    column = pd.Series(numbers, name="x", dtype="Float64")
    if not present:
        with pytest.raises(InputError, match="has no values"):
            column_features(column, n_bins)
        return
    F = dense_of(column_features(column, n_bins))
    assert F.shape[1] <= max(n_bins, 1)
    assert F.sum(1).tolist() == [float(number is not None) for number in numbers]
    bins = ([n for n, inside in zip(numbers, feature.tolist(), strict=True) if inside] for feature in F.T)
    intervals = sorted((min(members), max(members)) for members in bins)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(intervals))


def test_numbers_are_cut_only_if_there_are_more_than_bins() -> None:
    assert column_features(pd.Series(range(BINS), name="age")).n_features == BINS
    assert column_features(pd.Series(range(BINS + 1), name="age")).n_features <= BINS


def test_a_value_that_most_rows_have_is_in_one_bin() -> None:
    F = dense_of(column_features(pd.Series([0] * 50 + list(range(1, 11)), name="x"), n_bins=5))
    assert F.shape[1] < 5
    assert torch.equal(F[:50], F[:1].expand(50, -1))
    assert F.sum(1).tolist() == [1] * 60


@pytest.mark.parametrize("empty", [[None, None], [np.nan, np.nan], [pd.NA, pd.NA], [(), ()], []])
def test_a_column_without_values_is_refused_by_name(empty: list[Any]) -> None:
    with pytest.raises(InputError, match="column 'job' has no values; leave it out of the features"):
        column_features(pd.Series(empty, name="job", dtype=object))


def test_features_of_new_rows_are_those_of_the_column_they_are_like() -> None:
    ages = pd.Series([10, 20, 30, 40], name="age")
    new = column_features(pd.Series([25, None, -5, 99], name="age"), n_bins=2, like=ages)
    assert new.names == column_features(ages, n_bins=2).names
    assert dense_of(new).tolist() == [[0, 1], [0, 0], [1, 0], [0, 1]]
    jobs = column_features(pd.Series(["cook", "spy"], name="job"), like=pd.Series(["nurse", "cook"], name="job"))
    assert dense_of(jobs).tolist() == [[1, 0], [0, 0]]
    with pytest.raises(InputError, match=r"values of 'age' must be numbers, as in training \(got 'old'\)"):
        column_features(pd.Series(["old"], name="age"), like=ages)


def test_columns_are_joined_with_their_names() -> None:
    jobs = column_features(pd.Series(["nurse", "cook", None], name="job"))
    genres = column_features(pd.Series([("War", "Noir"), ("War",), ("Noir",)], name="genres"))
    both = joined([jobs, genres])
    assert both.names == ("job cook", "job nurse", "genres Noir", "genres War")
    assert_close(dense_of(both), torch.cat([dense_of(jobs), dense_of(genres)], 1) / 2**0.5)


# Datasets.


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """3 users with ages and jobs, and 2 films."""
    return Dataset.from_frame(
        pd.DataFrame({"user": [1, 1, 2, 3], "item": [7, 8, 7, 8], "rating": [1.0, 2.0, 3.0, 4.0]}),
        users=pd.DataFrame({"user": [1, 2, 3], "age": [30, 20, None], "occupation": ["cook", "nurse", "cook"]}),
        items=pd.DataFrame({"item": [7, 8], "title": ["Alien (1979)", "Brazil (1985)"], "genres": ["Horror", "War"]}),
    )


def test_features_of_a_dataset_come_from_the_training_ratings_and_the_named_columns(dataset: Dataset) -> None:
    train = dataset.ratings.select(torch.tensor([True, False, True, True]))
    users, items = dataset_features(dataset, train, "both", "age, occupation", ["genres", "year"])
    assert (list(users), list(items)) == (["implicit", "side_information"], ["implicit", "side_information"])
    assert dense_of(users["implicit"]).tolist() == [[1, 0], [1, 0], [0, 1]]
    assert users["side_information"].names == ("age 20", "age 30", "occupation cook", "occupation nurse")
    assert lengths(users["side_information"]) == pytest.approx([1, 1, 0.5**0.5])
    assert items["side_information"].names == ("genres Horror", "genres War", "year 1979", "year 1985")
    assert lengths(items["implicit"]) == pytest.approx([1, 1])


@pytest.mark.parametrize(("implicit", "blocks"), [
    ("none", ([], [])), ("users", (["implicit"], [])), ("items", ([], ["implicit"])),
])  # fmt: skip
def test_implicit_features_are_those_of_the_named_entity(
    dataset: Dataset, implicit: str, blocks: tuple[list[str], list[str]]
) -> None:
    assert tuple(map(list, dataset_features(dataset, dataset.ratings, implicit))) == blocks


def test_features_have_the_dtype_of_the_ratings(dataset: Dataset) -> None:
    doubles = dataset.ratings.to(dtype=torch.float64)
    for blocks in dataset_features(dataset, doubles, "both", "age", "year"):
        assert {block.matrix.values.dtype for block in blocks.values()} == {torch.float64}


def test_new_users_have_the_datasets_features_and_a_column_they_lack_is_missing(dataset: Dataset) -> None:
    new = pd.DataFrame({"occupation": ["nurse", "spy"]})
    ratings = dataset.ratings.select(dataset.ratings.users < 0)
    features = entity_features("users", dataset, ratings, "none", "age,occupation", new)["side_information"]
    assert features.names == ("age 20", "age 30", "occupation cook", "occupation nurse")
    assert (dense_of(features) > 0).int().tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize(("options", "message"), [
    ({"item_columns": "genre"}, "unknown column 'genre' in the item table; did you mean 'genres'"),
    ({"user_columns": ["ocupation"]}, "unknown column 'ocupation' in the user table; did you mean 'occupation'"),
    ({"user_columns": "genres,year"}, "unknown column 'genres' in the user table; choose from age, occupation"),
    ({"implicit": "user"}, "unknown value of implicit 'user'; did you mean 'users'"),
])  # fmt: skip
def test_an_unknown_column_or_value_is_refused_with_the_nearest(
    dataset: Dataset, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        dataset_features(dataset, dataset.ratings, **options)


def test_columns_of_a_dataset_without_a_table_are_refused() -> None:
    plain = Dataset.from_frame(pd.DataFrame({"user": [1, 2], "item": [7, 8], "rating": [1.0, 2.0]}), name="plain")
    with pytest.raises(InputError, match="plain has no user table, so no column 'age'; leave it out"):
        dataset_features(plain, plain.ratings, user_columns="age")

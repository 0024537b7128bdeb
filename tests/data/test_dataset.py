"""Datasets: sorted ids, aligned tables, duplicates, checked values, splits, lookup and a round trip."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from data_examples import FRAME, MOVIES, READERS_TABLE, assert_refused, assert_same, generator, through_a_file
from hypothesis import given
from hypothesis import strategies as st

from mfrec.data.dataset import Dataset
from mfrec.data.loading import load_dataset
from mfrec.data.splits import TEST, TRAIN, VALID

ids = st.one_of(st.text(max_size=5), st.integers(-(2**70), 2**70))


def test_ids_are_sorted_and_items_aligned_to_them() -> None:
    dataset = Dataset.from_frame(FRAME, items=MOVIES)
    assert dataset.user_ids.tolist() == ["a", "b"]
    assert dataset.item_ids.tolist() == [31, 1029]
    assert dataset.ratings.values.tolist() == [4.5, 2.0, 3.0]
    assert dataset.ratings.values.dtype == torch.float32
    assert dataset.ratings.timestamps is not None
    assert dataset.ratings.timestamps.tolist() == [9, 7, 8]
    assert dataset.items["title"].tolist() == ["Hyena Road", "Dumbo (1941)"]
    assert dataset.items["year"].tolist() == [pd.NA, 1941]
    assert dataset.items["genres"].tolist() == [(), ("Animation", "Children")]
    assert dataset.rating_range == (2.0, 4.5)


def test_id_columns_of_tables_have_the_names_in_the_ratings() -> None:
    names = {"user": "who", "item": "what"}
    frame, users, items = (table.rename(columns=names) for table in (FRAME, READERS_TABLE, MOVIES))
    dataset = Dataset.from_frame(frame, user="who", item="what", users=users, items=items)
    assert_same(dataset, Dataset.from_frame(FRAME, users=READERS_TABLE, items=MOVIES))


def test_strings_sort_as_text_and_integers_by_value() -> None:
    def item_ids(column: list[Any]) -> list[Any]:
        return Dataset.from_frame(pd.DataFrame({"user": 1, "item": column, "rating": 1.0})).item_ids.tolist()

    assert item_ids(["10", "9", "007"]) == ["007", "10", "9"]
    assert item_ids([10, 9, -1]) == [-1, 9, 10]


@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=20, unique=True), st.randoms(use_true_random=False))
def test_ids_survive_the_round_trip_in_any_order_of_rows(pairs: list[Any], random: Any) -> None:
    def made(rows: list[Any]) -> Dataset:
        columns = {
            "user": pd.Series([user for user, _ in rows], dtype=object),
            "item": pd.Series([item for _, item in rows], dtype=object),
        }
        return Dataset.from_frame(pd.DataFrame({**columns, "rating": [float(pairs.index(row)) for row in rows]}))

    dataset = made(pairs)
    assert_same(dataset, through_a_file(dataset))
    shuffled = list(pairs)
    random.shuffle(shuffled)
    assert_same(dataset, made(shuffled))
    ratings = dataset.ratings
    for user, item, value in zip(ratings.users.tolist(), ratings.items.tolist(), ratings.values.tolist(), strict=True):
        pair = dataset.user_ids[user], dataset.item_ids[item]
        assert pair == pairs[int(value)]
        assert [type(id) for id in map(_plain, pair)] == [type(id) for id in pairs[int(value)]]


def _plain(id: object) -> object:
    return int(id) if isinstance(id, np.integer) else id


def test_all_but_the_official_splits_survives_the_round_trip() -> None:
    masks = {"u1": np.array([True, False, False])}
    labels = np.array([TEST, TRAIN, VALID], dtype=np.uint8)
    dataset = Dataset.from_frame(
        FRAME, users=READERS_TABLE, items=MOVIES, rating_range=(0.5, 5), name="mine", official_splits=masks,
        split_labels=labels,
    )  # fmt: skip
    assert dataset.official_splits["u1"].tolist() == [False, True, False]
    assert dataset.split_labels is not None
    assert dataset.split_labels.tolist() == [TRAIN, TEST, VALID]
    assert_same(dataset, through_a_file(dataset))


@pytest.mark.parametrize(
    ("duplicates", "values", "stamps", "test"),
    [
        ("last", [1, 5], [1, 3], [False, False]),
        ("first", [2, 5], [2, 3], [True, False]),
        ("mean", [1.5, 5], [2, 3], [False, False]),
    ],
)
def test_duplicates_are_kept_as_asked_and_counted(
    duplicates: Any, values: list[float], stamps: list[int], test: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    df = pd.DataFrame({"user": [7, 8, 7], "item": [1, 1, 1], "rating": [2, 5, 1], "timestamp": [2, 3, 1]})
    masks = {"u1": np.array([True, False, False])}
    with caplog.at_level(logging.WARNING, "mfrec"):
        dataset = Dataset.from_frame(df, duplicates=duplicates, official_splits=masks)
    assert "1 of 3 ratings repeat a (user, item) pair" in caplog.text
    assert dataset.ratings.values.tolist() == values
    assert dataset.ratings.timestamps is not None
    assert dataset.ratings.timestamps.tolist() == stamps
    assert dataset.official_splits["u1"].tolist() == test


def test_duplicates_may_be_refused() -> None:
    df = pd.concat([FRAME, FRAME[:1]])
    message = "1 of 4 ratings repeat a (user, item) pair; remove them, or set duplicates to last, first or mean"
    assert_refused(message, df, duplicates="error")
    assert_refused("unknown value of duplicates 'lst'; did you mean 'last'?", df, duplicates="lst")


def test_timestamps_may_be_datetimes_or_whole_floats() -> None:
    days = pd.to_datetime(["1970-01-02 00:00:00", "1970-01-01 00:00:01", "1969-12-31 00:00:00"])
    for stamps in (days, days.tz_localize("UTC")):
        timestamps = Dataset.from_frame(FRAME.assign(timestamp=stamps)).ratings.timestamps
        assert timestamps is not None
        assert timestamps.tolist() == [1, 86_400, -86_400]
    for column in ([7.0, 9.0, 8.0], ["7", "9", "8"], pd.array([7, 9, 8], dtype="UInt64")):
        timestamps = Dataset.from_frame(FRAME.assign(timestamp=column)).ratings.timestamps
        assert timestamps is not None
        assert timestamps.tolist() == [9, 7, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rating": [1, "good", 3]}, "ratings must be finite numbers in float32 (got 'good' in row 1; 1 of 3 are not)"),
        ({"rating": [1, 2, np.nan]}, "ratings must be finite numbers in float32 (got nan in row 2"),
        ({"rating": [np.inf, 2, np.nan]}, "(got inf in row 0; 2 of 3 are not); drop or replace them"),
        ({"rating": [1, 1e300, 3]}, "(got 1e+300 in row 1; 1 of 3 are not)"),
        ({"rating": ["1", "1e3091955569", "3"]}, "(got '1e3091955569' in row 1"),
        ({"rating": pd.Series([1, 10**400, 3], dtype=object)}, "in row 1; 1 of 3 are not)"),
        ({"rating": [1, 1j, 3]}, "(got (1+0j) in row 0; 3 of 3 are not)"),
        ({"rating": [1, [2], 3]}, "(got [2] in row 1"),
        ({"user": ["a", None, "b"]}, "user ids must be complete (1 of 3 rows have none); drop or fill them"),
        ({"item": [1.5, 2, 3]}, "item ids must be integers or strings (got 1.5, a float); convert the column"),
        ({"item": [[1], 2, 3]}, "item ids must be integers or strings"),
        ({"timestamp": ["x", "1", "2"]}, "timestamps must be whole seconds since 1970 (got 'x' in row 0)"),
        ({"timestamp": pd.to_datetime(["2000-01-01", None, "2000-01-01"])}, "(got NaT in row 1); convert"),
        ({"timestamp": [1, 2.5, 3]}, "timestamps must be whole seconds since 1970 (got 2.5 in row 1)"),
        ({"timestamp": [1, np.inf, 3]}, "timestamps must be whole seconds since 1970 (got inf in row 1)"),
        ({"timestamp": [1, 1e30, 3]}, "timestamps must be whole seconds since 1970 (got 1e+30 in row 1)"),
        ({"timestamp": ["1", "1041e3091955569", "3"]}, "(got '1041e3091955569' in row 1)"),
        ({"timestamp": np.array([1, 2**64 - 1, 3], dtype=np.uint64)}, "(got 18446744073709551615 in row 1)"),
    ],
)
def test_an_invalid_value_in_a_frame_is_named_without_a_warning(change: dict[str, Any], message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_refused(message, FRAME.assign(**{name: pd.Series(column) for name, column in change.items()}))


def test_a_frame_without_a_column_or_rows_is_refused() -> None:
    message = "the ratings need a column 'stars' (got user, item, rating, timestamp); rename a column or name it"
    assert_refused(message, FRAME, rating="stars")
    assert_refused("the frame has no ratings; give one row for each rating", FRAME[:0])
    message = "the item table needs a column 'item' (got film); rename a column"
    assert_refused(message, FRAME, items=pd.DataFrame({"film": [1]}))
    message = "the user table needs a column 'user' (got name)"
    assert_refused(message, FRAME, users=pd.DataFrame({"name": [1]}))
    twice = pd.concat([READERS_TABLE, READERS_TABLE["age"]], axis=1)
    assert_refused("the user table has two columns 'age'; rename or drop a column", FRAME, users=twice)


@pytest.mark.parametrize("year", [1999.5, np.inf, 1e300, "1e3091955569", "early"])
def test_years_must_be_whole_numbers(year: object) -> None:
    items = MOVIES.assign(year=year)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_refused("years of the item table must be whole numbers", FRAME, items=items)


def test_ratings_must_lie_in_the_rating_range() -> None:
    message = (
        "rating_range must hold every rating: 2 of 3 ratings are outside 1 to 2.5 (e.g. 4.5); widen it or drop them"
    )
    assert_refused(message, FRAME, rating_range=(1, 2.5))
    for low, high in ((5, 1), (1, 1), (float("nan"), 5), (1, float("inf"))):
        message = f"rating_range must be the lowest and the highest rating (got {low:g} and {high:g})"
        assert_refused(message, FRAME, rating_range=(low, high))


def test_weights_come_from_a_column_stay_with_their_ratings_and_are_saved() -> None:
    dataset = Dataset.from_frame(FRAME.assign(trust=[0.5, 1.0, 2.0]), weight="trust")
    ratings = dataset.ratings
    assert ratings.weights is not None
    weights = dict(zip(ratings.values.tolist(), ratings.weights.tolist(), strict=True))
    assert weights == {2.0: 0.5, 4.5: 1.0, 3.0: 2.0}
    assert_same(through_a_file(dataset), dataset)
    assert Dataset.from_frame(FRAME).ratings.weights is None


@pytest.mark.parametrize(
    ("trust", "message"),
    [
        ([1.0, None, 1.0], "weights must be finite numbers in float32 (got nan in row 1"),
        ([1.0, 1.0, -1.0], "weights must be positive and finite (got -1)"),
    ],
)
def test_weights_must_be_positive_and_finite(trust: list[Any], message: str) -> None:
    assert_refused(message, FRAME.assign(trust=trust), weight="trust")


# Lookup.


def test_ids_are_found_as_typed() -> None:
    dataset = Dataset.from_frame(FRAME, items=MOVIES)
    assert dataset.item_index("31") == dataset.item_index(31) == dataset.item_index("hyena road") == 0
    assert dataset.user_index("b") == 1
    strings = Dataset.from_frame(FRAME.assign(item=["007", "7", "31"]))
    assert [strings.item_index(typed) for typed in ("007", "31", "7", 7)] == [0, 1, 2, 2]


def test_columns_of_ids_and_titles_are_found_and_unknown_and_ambiguous_ones_are_not() -> None:
    dataset = Dataset.from_frame(FRAME, items=MOVIES)
    assert dataset.item_indices(pd.Series([1029, "31", "DUMBO (1941)", "nothing", 5])).tolist() == [1, 0, 1, -1, -1]
    both = Dataset.from_frame(FRAME, items=MOVIES.assign(title="Hamlet (2000)"))
    assert both.item_indices(pd.Series(["Hamlet (2000)"])).tolist() == [-1]


def test_an_unknown_id_or_title_is_named_with_a_suggestion() -> None:
    dataset = Dataset.from_frame(FRAME, items=MOVIES)
    message = "unknown item '99999'; frame has 2 items (e.g. 31, 1029)"
    assert_refused(message, 99999, call=dataset.item_index)
    assert_refused("unknown user 'zoe'; frame has 2 users (e.g. a, b)", "zoe", call=dataset.user_index)
    assert_refused("unknown item 'Hyaena Road'; did you mean 'Hyena Road'?", "Hyaena Road", call=dataset.item_index)
    assert_refused("unknown item 'dumbo'; did you mean 'Dumbo (1941)'?", "dumbo", call=dataset.item_index)
    both = Dataset.from_frame(FRAME, items=MOVIES.assign(title="Hamlet (2000)"))
    message = "2 items have the title 'Hamlet (2000)'; give one of their ids (31, 1029)"
    assert_refused(message, "Hamlet (2000)", call=both.item_index)


# Splits.


def test_an_unknown_split_is_refused_with_the_splits_there_are() -> None:
    dataset = Dataset.from_frame(FRAME, official_splits={"ua": np.array([True, False, False])})
    assert int(dataset.test_mask("ua", 0.9, generator()).sum()) == 1
    assert int(dataset.test_mask("random", 0.33, generator()).sum()) == 1
    message = "no official split 'u1'; choose from ua, random, per-user, per-user-time, time, leave-last-out"
    assert_refused(message, "u1", 0.1, generator(), call=dataset.test_mask)
    message = "unknown split 'randm'; did you mean 'random'?"
    assert_refused(message, "randm", 0.1, generator(), call=dataset.test_mask)


def test_folds_are_disjoint_and_complete_and_counted_from_one() -> None:
    dataset = load_dataset("ml-latest-small")
    masks = [dataset.test_mask(f"fold-{n}-of-3", 0.5, generator()) for n in (1, 2, 3)]
    assert torch.stack(masks).sum(0).eq(1).all()
    message = "the fold must be in 1 … 3 (got fold-4-of-3)"
    assert_refused(message, "fold-4-of-3", 0.5, generator(), call=dataset.test_mask)
    for split in ("fold-0-of-3", "fold-1-of-", "fold-1-of-99999999999999999999999999"):
        assert_refused(f"unknown split '{split}'", split, 0.5, generator(), call=dataset.test_mask)
    message = "the number of folds must be in 2 … 100,004"
    assert_refused(message, "fold-1-of-9999999", 0.5, generator(), call=dataset.test_mask)


def test_split_labels_hold_out_the_test_split_and_then_a_fraction_of_the_other_ratings() -> None:
    dataset = load_dataset("ml-latest-small")
    labels = dataset.split_labels_for("random", 0.1, 0.05, generator())
    assert labels.dtype == torch.uint8
    n = len(dataset.ratings)
    assert int((labels == TEST).sum()) == round(n * 0.1)
    assert int((labels == VALID).sum()) == round((n - round(n * 0.1)) * 0.05)
    assert torch.equal(labels == TEST, dataset.test_mask("random", 0.1, generator()))
    assert torch.equal(labels, dataset.split_labels_for("random", 0.1, 0.05, generator()))


def test_split_labels_must_leave_ratings_to_train_on() -> None:
    dataset = Dataset.from_frame(FRAME)
    message = "none of the 3 ratings of frame is left to train on; lower test_fraction or valid_fraction"
    assert_refused(message, "random", 0.9, 0.1, generator(), call=dataset.split_labels_for)


def test_labels_that_come_with_the_data_decide_the_split() -> None:
    labels = np.array([TEST, TRAIN, VALID], dtype=np.uint8)
    masks = {"ua": np.array([False, False, True])}
    dataset = Dataset.from_frame(FRAME, split_labels=labels, official_splits=masks)
    for split in ("ua", "random", "u1", "anything"):
        assert dataset.test_mask(split, 0.9, generator()).tolist() == [False, True, False]
        assert dataset.split_labels_for(split, 0.9, 0.9, generator()).tolist() == [TRAIN, TEST, VALID]
    dataset.split_labels_for("random", 0.1, 0.1, generator()).zero_()
    assert dataset.split_labels is not None
    assert dataset.split_labels.tolist() == [TRAIN, TEST, VALID]


def test_a_validation_split_is_drawn_from_the_training_ratings_if_the_labels_have_none() -> None:
    frame = pd.DataFrame({"user": np.arange(20), "item": 1, "rating": 3.0})
    split_labels = np.where(np.arange(20) < 8, TEST, TRAIN).astype(np.uint8)
    dataset = Dataset.from_frame(frame, split_labels=split_labels)
    labels = dataset.split_labels_for("random", 0.9, 0.25, generator())
    assert labels[:8].tolist() == [TEST] * 8
    assert int((labels[8:] == VALID).sum()) == 3
    assert dataset.split_labels_for("random", 0.9, 0.0, generator()).tolist() == split_labels.tolist()


def test_a_pair_with_two_labels_is_refused_and_counted() -> None:
    frame = pd.DataFrame({"user": [1, 1, 2, 2, 2], "item": [7, 7, 7, 8, 8], "rating": [1.0, 2, 3, 4, 5]})
    labels = np.array([TRAIN, TEST, TEST, VALID, TRAIN], dtype=np.uint8)
    message = "must be disjoint: 2 (user, item) pairs are in more than one of them (e.g. user 1, item 7)"
    assert_refused(message, frame, split_labels=labels)
    same = np.array([TRAIN, TRAIN, TEST, VALID, VALID], dtype=np.uint8)
    dataset = Dataset.from_frame(frame, split_labels=same)
    assert dataset.split_labels is not None
    assert dataset.split_labels.tolist() == [TRAIN, TEST, VALID]


def test_a_selection_keeps_the_users_items_masks_and_labels_of_its_ratings() -> None:
    labels = np.array([TEST, TRAIN, VALID], dtype=np.uint8)
    masks = {"ua": np.array([False, False, True])}
    dataset = Dataset.from_frame(FRAME, items=MOVIES, split_labels=labels, official_splits=masks, rating_range=(1, 5))
    assert dataset.split_labels is not None
    selected = dataset.select(dataset.split_labels != TEST)
    assert selected.ratings.values.tolist() == [4.5, 3.0]
    assert selected.split_labels is not None
    assert selected.split_labels.tolist() == [TRAIN, VALID]
    assert selected.official_splits["ua"].tolist() == [False, True]
    assert (selected.ratings.n_users, selected.ratings.n_items) == (2, 2)
    assert selected.item_index("Dumbo (1941)") == 1
    assert selected.rating_range == (1, 5)


def test_official_splits_follow_the_ratings_when_they_are_sorted(shared_data: Path) -> None:
    dataset = load_dataset(shared_data / "ml-100k")
    kept, held = dataset.ratings.split(dataset.test_mask("u1", 0.5, generator()))
    names = ["user", "item", "rating", "timestamp"]
    test = pd.read_csv(shared_data / "ml-100k" / "u1.test", sep="\t", names=names).sort_values(["user", "item"])
    assert len(kept) == 80_000
    assert dataset.user_ids[held.users.numpy()].tolist() == test["user"].tolist()
    assert dataset.item_ids[held.items.numpy()].tolist() == test["item"].tolist()
    assert held.values.tolist() == test["rating"].tolist()
    assert held.timestamps is not None
    assert held.timestamps.tolist() == test["timestamp"].tolist()

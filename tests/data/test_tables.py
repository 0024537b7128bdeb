"""User and item tables: one row for each index, numbers, tuples or text, and a round trip through the state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from data_examples import FRAME, MOVIES, READERS_TABLE, assert_same, through_a_file
from hypothesis import given
from hypothesis import strategies as st

from mfrec.data.dataset import Dataset

cells = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.text(max_size=3), max_size=3),
    st.tuples(st.text(max_size=3)),
)


def test_an_item_without_a_title_is_titled_by_its_id() -> None:
    dataset = Dataset.from_frame(FRAME, items=MOVIES[1:])
    assert dataset.items["title"].tolist() == ["Hyena Road", "1029"]
    assert dataset.items["genres"].tolist() == [(), ()]
    assert Dataset.from_frame(FRAME, items=MOVIES[:0]).items["genres"].tolist() == [(), ()]
    bare = Dataset.from_frame(FRAME)
    assert bare.items.shape == (2, 0)
    assert bare.title(1) == "1029"


def test_users_are_aligned_to_their_indices() -> None:
    users = Dataset.from_frame(FRAME, users=READERS_TABLE).users
    assert users.columns.tolist() == ["age", "job"]
    assert users["age"].tolist() == [pd.NA, 31]
    assert users["age"].dtype == "Int64"
    assert users["job"].tolist() == [None, "clerk"]
    assert Dataset.from_frame(FRAME).users.shape == (2, 0)


def test_users_and_items_without_a_row_have_missing_values() -> None:
    extra = {"n": [1, 2, 3], "x": [0.5, 1.5, 2.5], "text": ["p", "q", "r"], "tags": [["p"], ["q"], ["r"]]}
    users = Dataset.from_frame(FRAME, users=READERS_TABLE[:2].assign(**{k: v[:2] for k, v in extra.items()})).users
    items = Dataset.from_frame(FRAME, items=MOVIES[:1].assign(**{k: v[:1] for k, v in extra.items()})).items
    for row in (users.loc[0], items.loc[0]):
        assert [row[column] for column in extra] == [pd.NA, pd.NA, None, ()]
    assert [users.loc[1, column] for column in extra] == [1, 0.5, "p", ("p",)]
    assert [items.loc[1, column] for column in extra] == [1, 0.5, "p", ("p",)]


@pytest.mark.parametrize(
    ("column", "dtype", "expected"),
    [
        ([1, 2, 3], "Int64", [3, 1]),
        ([1.0, None, 3.0], "Int64", [3, 1]),
        (pd.array([1, None, 2**62 + 1], dtype="Int64"), "Int64", [2**62 + 1, 1]),
        (pd.array([1, 2, None], dtype="UInt8"), "Int64", [pd.NA, 1]),
        ([1.5, 2, 3], "Float64", [3.0, 1.5]),
        ([1, 2.5, 3], "Float64", [3.0, 1.0]),
        ([1, 2, 2**70], "Float64", [2.0**70, 1.0]),
        (np.array([0.5, 2, np.inf], dtype=np.float32), "Float64", [np.inf, 0.5]),
        ([np.nan] * 3, "Int64", [pd.NA] * 2),
        ([None] * 3, "object", [None] * 2),
        (["p", None, ""], "object", ["", "p"]),
        (["p", 2, np.nan], "object", [None, "p"]),
        ([True, False, None], "object", [None, "True"]),
        (pd.Categorical(["p", "q", "r"]), "object", ["r", "p"]),
        (pd.to_datetime(["2000-01-01", None, "2000-01-03"]), "object", ["2000-01-03 00:00:00", "2000-01-01 00:00:00"]),
        ([("p", 1), [], None], "object", [(), ("p", "1")]),
        ([np.array(["p", None]), ["q"], ("r", "s")], "object", [("r", "s"), ("p",)]),
    ],
)
def test_further_columns_become_numbers_tuples_or_text(column: Any, dtype: str, expected: list[Any]) -> None:
    users = Dataset.from_frame(FRAME, users=READERS_TABLE.assign(extra=pd.Series(column))).users
    items = Dataset.from_frame(FRAME, items=MOVIES.assign(item=[1029, 5, 31], extra=pd.Series(column))).items
    for aligned in (users["extra"], items["extra"]):
        assert aligned.dtype == dtype
        assert aligned.tolist() == expected
        assert list(map(type, aligned.tolist())) == list(map(type, expected))


@given(st.lists(cells, min_size=3, max_size=3), st.sampled_from(["title", "genres", "year", "1"]))
def test_any_column_survives_the_round_trip(column: list[Any], name: str) -> None:
    values = pd.Series(column, dtype=object)
    items = MOVIES.assign(**{name: values}) if name == "1" else MOVIES
    dataset = Dataset.from_frame(FRAME, users=READERS_TABLE.assign(**{name: values}), items=items)
    assert_same(dataset, through_a_file(dataset))


def test_the_first_row_of_a_repeated_id_counts() -> None:
    users = pd.concat([READERS_TABLE, READERS_TABLE.assign(job="thief")])
    assert Dataset.from_frame(FRAME, users=users).users["job"].tolist() == [None, "clerk"]

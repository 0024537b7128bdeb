"""Ratings: sorted, distinct and finite, with weights and timestamps that stay with them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st
from ratings_examples import N_ITEMS, N_USERS, as_set, generator, some_ratings
from torch.testing import assert_close

from mfrec.data.ratings import Ratings
from mfrec.data.splits import random_split
from mfrec.errors import InputError
from mfrec.sparse import SparseMatrix


@given(some_ratings(), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(ratings: Ratings, random: Any) -> None:
    order = list(range(len(ratings)))
    random.shuffle(order)
    again = Ratings(ratings.users[order], ratings.items[order], ratings.values[order], N_USERS, N_ITEMS)
    assert torch.equal(again.users, ratings.users)
    assert torch.equal(again.items, ratings.items)
    assert torch.equal(again.values, ratings.values)


@given(some_ratings())
def test_both_views_are_the_same_matrix(ratings: Ratings) -> None:
    def dense(matrix: SparseMatrix) -> torch.Tensor:
        out = torch.zeros(matrix.shape)
        out[matrix.pattern.row.long(), matrix.pattern.col.long()] = matrix.values
        return out

    assert_close(dense(ratings.matrix), dense(ratings.matrix.T).T)
    order = ratings.pattern.transpose_order
    assert torch.equal(ratings.pattern.T.row, ratings.items[order])
    assert torch.equal(ratings.matrix.T.values, ratings.values[order])


@given(some_ratings())
def test_counts_are_the_numbers_of_ratings_of_each_user_and_item(ratings: Ratings) -> None:
    assert ratings.user_counts.tolist() == [int((ratings.users == user).sum()) for user in range(N_USERS)]
    assert ratings.item_counts.tolist() == [int((ratings.items == item).sum()) for item in range(N_ITEMS)]


def weights_of(ratings: Ratings) -> dict[tuple[int, int], float]:
    assert ratings.weights is not None
    pairs = zip(ratings.users.tolist(), ratings.items.tolist(), strict=True)
    return dict(zip(pairs, ratings.weights.tolist(), strict=True))


def with_weights(ratings: Ratings, order: list[int] | slice = slice(None)) -> Ratings:
    """The ratings in this order, each with a weight that identifies its pair."""
    users, items = ratings.users[order], ratings.items[order]
    weights = 1.0 + users * N_ITEMS + items
    return Ratings(users, items, ratings.values[order], N_USERS, N_ITEMS, weights=weights)


@given(some_ratings(), st.randoms(use_true_random=False), st.floats(0, 0.99))
def test_weights_stay_with_their_ratings_through_sorting_selecting_splitting_and_moving(
    ratings: Ratings, random: Any, fraction: float
) -> None:
    order = list(range(len(ratings)))
    random.shuffle(order)
    weighted = with_weights(ratings, order)
    expected = {(j, i): 1.0 + j * N_ITEMS + i for j, i, _ in as_set(ratings)}
    assert weights_of(weighted) == expected
    mask = random_split(ratings, fraction, generator())
    kept, held = weighted.split(mask)
    assert weights_of(kept) | weights_of(held) == expected
    assert len(weights_of(held)) == int(mask.sum())
    assert weights_of(weighted.select(weighted.values > 3)).items() <= expected.items()
    assert weights_of(weighted.to("cpu", torch.float64)) == expected


@given(some_ratings())
def test_values_are_multiplied_by_the_weights_in_the_order_of_the_ratings(ratings: Ratings) -> None:
    weighted = with_weights(ratings)
    expected = ratings.values * (1.0 + ratings.users * N_ITEMS + ratings.items)
    assert torch.equal(weighted.weighted(ratings.values), expected)
    assert torch.equal(ratings.weighted(ratings.values), ratings.values)
    assert ratings.weights is ratings.split(ratings.values > 3)[0].weights is None


def test_weights_have_the_dtype_of_the_values_and_are_a_copy() -> None:
    weights = torch.tensor([2.0, 3.0])
    ratings = Ratings(torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([3.0, 4.0]), weights=weights)
    weights.zero_()
    assert ratings.weights is not None
    assert ratings.weights.tolist() == [2, 3]
    assert ratings.weights.dtype == torch.float32
    moved = ratings.to(dtype=torch.float64).weights
    assert moved is not None
    assert moved.dtype == torch.float64


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 0.0], "weights must be positive and finite (got 0); leave out such ratings"),
        ([-1.5, 1.0], "weights must be positive and finite (got -1.5); leave out such ratings"),
        ([1.0, float("nan")], "weights must be positive and finite (got nan); leave out such ratings"),
        ([float("inf"), 1.0], "weights must be positive and finite (got inf); leave out such ratings"),
        ([1.0], "weights must have one value per rating: 2 (got 1)"),
    ],
)
def test_weights_must_be_positive_finite_and_one_for_each_rating(weights: list[float], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Ratings(torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([3.0, 4.0]), weights=torch.tensor(weights))
    assert str(caught.value) == message


def test_dense_and_scipy_matrices_give_the_same_ratings() -> None:
    Y = torch.tensor([[5.0, 0.0, 3.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    dense = Ratings.from_dense(Y, Y > 0)
    sparse = Ratings.from_scipy(scipy.sparse.csr_array(Y.numpy().T))
    assert as_set(dense) == as_set(sparse) == {(0, 0, 5.0), (2, 0, 3.0), (1, 1, 1.0)}
    assert as_set(Ratings.from_dense(np.where(Y > 0, Y, np.nan))) == as_set(dense)
    assert dense.values.dtype == torch.float64
    with pytest.raises(InputError, match=r"Y and R must have the same shape \(got \(2, 3\) and \(3, 2\)\)"):
        Ratings.from_dense(Y, Y.T)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 0], [1, 1], [3, 4]), "(user, item) pairs must be distinct (got 1 repeats); keep one of each"),
        (([0, 1], [1, 1], [3, float("nan")]), "ratings must be finite (1 of 2 are not); drop or replace them"),
        (([0, 1], [1, 1], [3, float("inf")]), "ratings must be finite (1 of 2 are not); drop or replace them"),
        (([0, 1], [1], [3, 4]), "users, items and values must have equal lengths (got 2, 1, 2)"),
        (([0, 5], [1, 1], [3, 4], 5), "user indices must be in 0 … 4 (got 5)"),
        (([0, 1], [-1, 1], [3, 4]), "item indices must be in 0 … 1 (got -1)"),
        (([0.0, 1.0], [1, 1], [3, 4]), "user indices must be integers (got torch.float32)"),
        (
            ([0, 1], [1, 1], [3, 4], None, None, torch.tensor([1])),
            "timestamps must have one value per rating: 2 (got 1)",
        ),
    ],
)
def test_invalid_ratings_are_refused_with_the_fault(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Ratings(*(torch.tensor(part) if isinstance(part, list) else part for part in arguments))
    assert message in str(caught.value)


def test_ratings_need_neither_pandas_nor_a_reader() -> None:
    code = (
        "import sys, mfrec.data.ratings, mfrec.data.splits, mfrec.data.features; "
        "assert not {'pandas', 'scipy', 'mfrec.data.readers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Masks and types


@given(some_ratings(), st.data())
def test_a_selection_is_what_the_constructor_makes_of_its_ratings(ratings: Ratings, data: st.DataObject) -> None:
    n = len(ratings)
    weighted = with_weights(ratings)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=torch.bool)
    chosen = weighted.select(mask)
    assert weighted.weights is not None
    parts = weighted.users[mask], weighted.items[mask], weighted.values[mask]
    again = Ratings(*parts, N_USERS, N_ITEMS, weights=weighted.weights[mask])
    assert torch.equal(chosen.pattern.crow, again.pattern.crow)
    assert torch.equal(chosen.items, again.items)
    assert torch.equal(chosen.values, again.values)
    assert weights_of(chosen) == weights_of(again)


@pytest.mark.parametrize("mask", [torch.tensor([True]), torch.tensor([1, 0]), torch.ones(2, 1, dtype=torch.bool)])
def test_a_mask_has_one_bool_for_each_rating(mask: torch.Tensor) -> None:
    ratings = Ratings(torch.tensor([0, 1]), torch.tensor([0, 1]), torch.ones(2))
    with pytest.raises(InputError, match=r"^the mask must be \(2,\) bool \(got \("):
        ratings.select(mask)


def test_rounding_to_float32_is_checked() -> None:
    pair = torch.tensor([0]), torch.tensor([0])
    huge = Ratings(*pair, torch.tensor([1e300], dtype=torch.float64))
    with pytest.raises(InputError, match="ratings must be finite"):
        huge.to(dtype=torch.float32)
    tiny = torch.tensor([1e-300], dtype=torch.float64)
    light = Ratings(*pair, torch.ones(1, dtype=torch.float64), weights=tiny)
    with pytest.raises(InputError, match="weights must be positive"):
        light.to(dtype=torch.float32)

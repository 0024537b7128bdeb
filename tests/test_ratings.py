"""Ratings: sorted, distinct, finite; splits disjoint, complete and of the stated sizes."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from mfrec.data.ratings import SPLITS, Ratings, k_folds, leave_last_out, per_user_split, random_split, time_split
from mfrec.errors import InputError

N_USERS, N_ITEMS = 7, 9


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def some_ratings(draw: st.DrawFn) -> Ratings:
    pairs = draw(st.lists(st.integers(0, N_USERS * N_ITEMS - 1), min_size=4, max_size=60, unique=True))
    keys = torch.tensor(pairs)
    stamps = draw(st.lists(st.integers(0, 9), min_size=len(pairs), max_size=len(pairs)))
    values = keys.remainder(5) + 1.0
    return Ratings(keys // N_ITEMS, keys % N_ITEMS, values, N_USERS, N_ITEMS, torch.tensor(stamps))


def as_set(ratings: Ratings) -> set[tuple[int, int, float]]:
    return set(zip(ratings.users.tolist(), ratings.items.tolist(), ratings.values.tolist(), strict=True))


@given(some_ratings(), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(ratings: Ratings, random) -> None:
    order = list(range(len(ratings)))
    random.shuffle(order)
    again = Ratings(ratings.users[order], ratings.items[order], ratings.values[order], N_USERS, N_ITEMS)
    assert torch.equal(again.users, ratings.users)
    assert torch.equal(again.items, ratings.items)
    assert torch.equal(again.values, ratings.values)


@given(some_ratings())
def test_both_views_are_the_same_matrix(ratings: Ratings) -> None:
    def dense(pattern, values):
        matrix = torch.zeros(pattern.shape)
        matrix[pattern.row.long(), pattern.col.long()] = values
        return matrix

    by_item = dense(ratings.by_item, ratings.values[ratings.item_order])
    assert_close(dense(ratings.by_user, ratings.values), by_item.T)
    assert torch.equal(ratings.by_item.row, ratings.items[ratings.item_order])


@pytest.mark.parametrize("name", SPLITS)
@given(ratings=some_ratings(), fraction=st.floats(0, 0.99), seed=st.integers(0, 99))
def test_a_split_is_disjoint_and_complete_and_the_seed_decides(name, ratings, fraction, seed) -> None:
    mask = SPLITS[name](ratings, fraction, generator(seed))
    kept, held = ratings.split(mask)
    assert as_set(kept).isdisjoint(as_set(held))
    assert as_set(kept) | as_set(held) == as_set(ratings)
    assert (kept.n_users, kept.n_items) == (held.n_users, held.n_items) == (N_USERS, N_ITEMS)
    assert torch.equal(mask, SPLITS[name](ratings, fraction, generator(seed)))


@given(some_ratings(), st.floats(0, 0.99))
def test_split_sizes_are_exact(ratings: Ratings, fraction: float) -> None:
    share = round(len(ratings) * fraction)
    assert int(random_split(ratings, fraction, generator()).sum()) == share
    assert int(time_split(ratings, fraction, generator()).sum()) == share
    _, held = ratings.split(per_user_split(ratings, fraction, generator()))
    assert torch.equal(held.by_user.counts, (ratings.by_user.counts * fraction).round().to(torch.int32))


@given(some_ratings())
def test_leave_last_out_holds_the_newest_of_each_user_who_has_two(ratings: Ratings) -> None:
    kept, held = ratings.split(leave_last_out(ratings, 0.5, generator()))
    for user in range(N_USERS):
        old, new = kept.timestamps[kept.users == user], held.timestamps[held.users == user]
        assert len(new) == (len(old) + len(new) > 1)
        assert not len(new) or int(new) >= int(old.max())


@given(some_ratings(), st.floats(0, 0.99))
def test_time_split_holds_the_newest(ratings: Ratings, fraction: float) -> None:
    kept, held = ratings.split(time_split(ratings, fraction, generator()))
    if len(held) and len(kept):
        assert int(held.timestamps.min()) >= int(kept.timestamps.max())


@given(some_ratings(), st.integers(2, 4))
def test_k_folds_are_even_and_the_seed_decides(ratings: Ratings, k: int) -> None:
    folds = k_folds(ratings, k, generator())
    sizes = torch.bincount(folds, minlength=k)
    assert int(sizes.max() - sizes.min()) <= 1
    assert int(sizes.sum()) == len(ratings)
    assert torch.equal(folds, k_folds(ratings, k, generator()))


def weights_of(ratings: Ratings) -> dict[tuple[int, int], float]:
    pairs = zip(ratings.users.tolist(), ratings.items.tolist(), strict=True)
    return dict(zip(pairs, ratings.weights.tolist(), strict=True))


def with_weights(ratings: Ratings, order: list[int] | slice = slice(None)) -> Ratings:
    """The ratings in this order, each with a weight that tells its pair."""
    users, items = ratings.users[order], ratings.items[order]
    weights = 1.0 + users * N_ITEMS + items
    return Ratings(users, items, ratings.values[order], N_USERS, N_ITEMS, weights=weights)


@given(some_ratings(), st.randoms(use_true_random=False), st.floats(0, 0.99))
def test_weights_stay_with_their_ratings_through_sorting_selecting_splitting_and_moving(
    ratings: Ratings, random, fraction: float
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
    by_item = (weighted.by_item.col.tolist(), weighted.by_item.row.tolist())
    assert dict(zip(zip(*by_item, strict=True), weighted.by_item_weights.tolist(), strict=True)) == expected


@given(some_ratings())
def test_weights_multiply_numbers_in_the_order_of_the_ratings_and_without_them_nothing(ratings: Ratings) -> None:
    weighted = with_weights(ratings)
    assert torch.equal(
        weighted.weighted(ratings.values), ratings.values * (1.0 + ratings.users * N_ITEMS + ratings.items)
    )
    assert torch.equal(ratings.weighted(ratings.values), ratings.values)
    assert ratings.weights is ratings.by_item_weights is ratings.split(ratings.values > 3)[0].weights is None


def test_weights_have_the_dtype_of_the_values_and_are_a_copy() -> None:
    given = torch.tensor([2.0, 3.0])
    ratings = Ratings(torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([3.0, 4.0]), weights=given)
    given.zero_()
    assert ratings.weights.tolist() == [2, 3]
    assert ratings.weights.dtype == torch.float32
    assert ratings.to(dtype=torch.float64).weights.dtype == torch.float64


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 0.0], "weight 0 is not above 0 and finite; leave out ratings that do not count"),
        ([-1.5, 1.0], "weight -1.5 is not above 0 and finite; leave out ratings that do not count"),
        ([1.0, float("nan")], "weight nan is not above 0 and finite; leave out ratings that do not count"),
        ([float("inf"), 1.0], "weight inf is not above 0 and finite; leave out ratings that do not count"),
        ([1.0], "1 weights for 2 ratings"),
    ],
)
def test_wrong_weights_are_refused_in_one_sentence(weights: list[float], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Ratings(torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([3.0, 4.0]), weights=torch.tensor(weights))
    assert str(caught.value) == message


def test_another_seed_is_another_split() -> None:
    dense = Ratings.from_dense(torch.ones(20, 20))
    for name in ("random", "per-user"):
        assert not torch.equal(SPLITS[name](dense, 0.5, generator(0)), SPLITS[name](dense, 0.5, generator(1)))


def test_dense_and_scipy_matrices_give_the_same_ratings() -> None:
    Y = torch.tensor([[5.0, 0.0, 3.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    dense = Ratings.from_dense(Y, Y > 0)
    sparse = Ratings.from_scipy(scipy.sparse.csr_array(Y.numpy().T))
    assert as_set(dense) == as_set(sparse) == {(0, 0, 5.0), (2, 0, 3.0), (1, 1, 1.0)}
    assert as_set(Ratings.from_dense(np.where(Y > 0, Y, np.nan))) == as_set(dense)
    assert dense.values.dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 0], [1, 1], [3, 4]), "1 (user, item) pairs occur more than once; keep one"),
        (([0, 1], [1, 1], [3, float("nan")]), "1 of 2 ratings are NaN or infinite; drop them"),
        (([0, 1], [1, 1], [3, float("inf")]), "1 of 2 ratings are NaN or infinite; drop them"),
        (([0, 1], [1], [3, 4]), "users, items and values differ in length: 2, 1, 2"),
        (([0, 5], [1, 1], [3, 4], 5), "user index 5 is outside the table of 5 users"),
        (([0, 1], [-1, 1], [3, 4]), "item index -1 is outside the table of 2 items"),
        (([0.0, 1.0], [1, 1], [3, 4]), "user indices are torch.float32; give integers"),
        (([0, 1], [1, 1], [3, 4], None, None, torch.tensor([1])), "1 timestamps for 2 ratings"),
    ],
)
def test_bad_ratings_are_refused_by_name(arguments, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Ratings(*(torch.tensor(one) if isinstance(one, list) else one for one in arguments))
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["time", "leave-last-out"])
def test_splits_by_time_need_timestamps(name: str) -> None:
    with pytest.raises(InputError, match="no timestamps; split them with random or per-user"):
        SPLITS[name](Ratings.from_dense(torch.ones(2, 2)), 0.5, generator())


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 20])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    for split in (random_split, per_user_split):
        with pytest.raises(InputError, match="to hold out is not in"):
            split(Ratings.from_dense(torch.ones(2, 2)), fraction, generator())


def test_folds_out_of_range_are_refused() -> None:
    for k in (1, 5):
        with pytest.raises(InputError, match="give from 2 to 4"):
            k_folds(Ratings.from_dense(torch.ones(2, 2)), k, generator())


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.9])
def test_cold_items_holds_out_all_ratings_of_a_share_of_the_rated_items(fraction: float) -> None:
    items = torch.tensor([0, 0, 1, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10])
    ratings = Ratings(torch.arange(13), items, torch.ones(13), n_items=12)  # items 2 and 11 have no rating
    kept, held = ratings.split(SPLITS["cold-items"](ratings, fraction, generator()))
    assert not set(kept.items.tolist()) & set(held.items.tolist())
    assert len(set(held.items.tolist())) == round(fraction * 10)

"""Splits: disjoint, complete, of the stated sizes, and decided by the seed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ratings_examples import N_ITEMS, N_USERS, as_set, generator, some_ratings

from mfrec.data.ratings import Ratings
from mfrec.data.splits import (
    SPLIT_NAMES,
    SPLITS,
    k_folds,
    leave_last_out,
    newer_ratings,
    per_user_split,
    per_user_time_split,
    random_split,
    split_by_labels,
    time_split,
)
from mfrec.errors import InputError


@pytest.mark.parametrize("name", SPLITS)
@given(ratings=some_ratings(), fraction=st.floats(0, 0.99), seed=st.integers(0, 99))
def test_a_split_is_disjoint_and_complete_and_the_seed_decides(
    name: str, ratings: Ratings, fraction: float, seed: int
) -> None:
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
    for split in (per_user_split, per_user_time_split):
        _, held = ratings.split(split(ratings, fraction, generator()))
        assert torch.equal(held.user_counts, (ratings.user_counts * fraction).round().to(torch.int64))


@given(some_ratings())
def test_leave_last_out_holds_the_newest_of_each_user_with_two_ratings(ratings: Ratings) -> None:
    kept, held = ratings.split(leave_last_out(ratings, 0.5, generator()))
    assert kept.timestamps is not None
    assert held.timestamps is not None
    for user in range(N_USERS):
        old, new = kept.timestamps[kept.users == user], held.timestamps[held.users == user]
        assert len(new) == (len(old) + len(new) > 1)
        assert not len(new) or int(new) >= int(old.max())


@given(some_ratings(), st.floats(0, 0.99))
def test_time_split_holds_the_newest_ratings(ratings: Ratings, fraction: float) -> None:
    kept, held = ratings.split(time_split(ratings, fraction, generator()))
    if len(held) and len(kept):
        assert held.timestamps is not None
        assert kept.timestamps is not None
        assert int(held.timestamps.min()) >= int(kept.timestamps.max())


@given(some_ratings(), st.floats(0, 0.99))
def test_per_user_time_split_holds_the_newest_ratings_of_each_user(ratings: Ratings, fraction: float) -> None:
    kept, held = ratings.split(per_user_time_split(ratings, fraction, generator()))
    assert kept.timestamps is not None
    assert held.timestamps is not None
    for user in set(kept.users.tolist()) & set(held.users.tolist()):
        assert int(held.timestamps[held.users == user].min()) >= int(kept.timestamps[kept.users == user].max())


@given(some_ratings())
def test_newer_ratings_are_counted_for_each_user_and_equal_times_by_their_order(ratings: Ratings) -> None:
    assert ratings.timestamps is not None
    newer = newer_ratings(ratings, ratings.timestamps).tolist()
    keys = [(time, n) for n, time in enumerate(ratings.timestamps.tolist())]
    for n, user in enumerate(ratings.users.tolist()):
        of_user = [keys[m] for m in range(len(ratings)) if int(ratings.users[m]) == user]
        assert newer[n] == sum(key > keys[n] for key in of_user)


@given(some_ratings(), st.integers(2, 4))
def test_folds_are_even_and_the_seed_decides(ratings: Ratings, k: int) -> None:
    folds = k_folds(ratings, k, generator())
    sizes = torch.bincount(folds, minlength=k)
    assert int(sizes.max() - sizes.min()) <= 1
    assert int(sizes.sum()) == len(ratings)
    assert torch.equal(folds, k_folds(ratings, k, generator()))


@given(some_ratings(), st.integers(1, 3))
def test_labels_divide_the_ratings_and_an_empty_split_is_left_out(ratings: Ratings, n: int) -> None:
    labels = torch.randint(0, n, (len(ratings),), generator=generator(), dtype=torch.uint8)
    splits = split_by_labels(ratings, labels)
    assert set(splits) == {name for name, label in SPLIT_NAMES.items() if label in labels.tolist()}
    assert sum(map(len, splits.values())) == len(ratings)
    for name, split in splits.items():
        assert as_set(split) == as_set(ratings.select(labels == SPLIT_NAMES[name]))


@pytest.mark.parametrize("name", ["random", "per-user"])
def test_a_different_seed_gives_a_different_split(name: str) -> None:
    dense = Ratings.from_dense(torch.ones(20, 20))
    assert not torch.equal(SPLITS[name](dense, 0.5, generator(0)), SPLITS[name](dense, 0.5, generator(1)))


@pytest.mark.parametrize("name", ["time", "per-user-time", "leave-last-out"])
def test_splits_by_time_need_timestamps(name: str) -> None:
    message = "this split needs timestamps, which these ratings lack; use random or per-user"
    with pytest.raises(InputError, match=message):
        SPLITS[name](Ratings.from_dense(torch.ones(2, 2)), 0.5, generator())


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 20])
@pytest.mark.parametrize("name", ["random", "per-user", "cold-items"])
def test_the_fraction_must_be_below_one_and_not_negative(name: str, fraction: float) -> None:
    with pytest.raises(InputError, match=r"the fraction to hold out must be in \[0, 1\)"):
        SPLITS[name](Ratings.from_dense(torch.ones(2, 2)), fraction, generator())


@pytest.mark.parametrize("k", [1, 5])
def test_the_number_of_folds_must_be_two_to_the_number_of_ratings(k: int) -> None:
    with pytest.raises(InputError, match=f"the number of folds must be in 2 … 4, the number of ratings .got {k}."):
        k_folds(Ratings.from_dense(torch.ones(2, 2)), k, generator())


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.9])
def test_cold_items_holds_out_all_ratings_of_a_fraction_of_the_rated_items(fraction: float) -> None:
    items = torch.tensor([0, 0, 1, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10])
    ratings = Ratings(torch.arange(13), items, torch.ones(13), n_items=12)  # items 2 and 11 have no rating
    kept, held = ratings.split(SPLITS["cold-items"](ratings, fraction, generator()))
    assert not set(kept.items.tolist()) & set(held.items.tolist())
    assert len(set(held.items.tolist())) == round(fraction * 10)

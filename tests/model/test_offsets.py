"""Offsets: the means that centring subtracts, plain and damped."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError, OptionError
from mfrec.model.offsets import OFFSETS, centring_offset


@pytest.fixture
def ratings() -> Ratings:
    """Items with the ratings 5 and 4, 1, none, and 2."""
    Y = torch.tensor([[5.0, 4.0, torch.nan], [torch.nan, 1.0, torch.nan], [torch.nan] * 3, [2.0, torch.nan, torch.nan]])
    return Ratings.from_dense(Y)


def test_the_global_offset_is_the_mean_and_the_item_offset_the_mean_of_each_item(ratings):
    assert centring_offset(ratings, "none") is None
    assert centring_offset(ratings, "global").tolist() == 3.0
    plain = centring_offset(ratings, "item", damping=0.0)
    assert plain.tolist() == [4.5, 1.0, 3.0, 2.0]  # item 2 has no rating: the global mean


def test_damping_counts_as_ratings_at_the_global_mean(ratings):
    damped = centring_offset(ratings, "item", damping=2.0)
    assert damped.tolist() == pytest.approx([(9 + 6) / 4, (1 + 6) / 3, 3.0, 8 / 3])


def test_another_mean_replaces_that_of_the_ratings(ratings):
    assert centring_offset(ratings, "global", mean=2.0).tolist() == 2.0
    damped = centring_offset(ratings, "item", damping=1.0, mean=2.0)
    assert damped.tolist() == pytest.approx([11 / 3, 1.5, 2.0, 2.0])


@pytest.mark.parametrize("kind", [kind for kind in OFFSETS if kind != "none"])
def test_an_offset_has_the_type_of_the_ratings_and_ignores_their_weights(weighted_ratings, kind):
    r = weighted_ratings
    offset = centring_offset(r, kind)
    assert offset.dtype == torch.float64
    assert centring_offset(r.to(dtype=torch.float32), kind).dtype == torch.float32
    assert_close(offset, centring_offset(Ratings(r.users, r.items, r.values, r.n_users, r.n_items), kind))


@pytest.mark.parametrize("kind", OFFSETS)
def test_no_ratings_are_centred_by_zero(kind):
    nothing = torch.tensor([], dtype=torch.long)
    offset = centring_offset(Ratings(nothing, nothing, torch.tensor([]), 2, 3), kind)
    assert offset is None if kind == "none" else offset.unique().tolist() == [0]


def test_negative_damping_and_unknown_offsets_are_refused(ratings):
    with pytest.raises(OptionError, match=r"^damping must be at least 0 \(got -1\)$"):
        centring_offset(ratings, "item", damping=-1.0)
    with pytest.raises(InputError, match=r"^unknown offset 'items'; did you mean 'item'\?$"):
        centring_offset(ratings, "items")

"""Features: F and Fᵀ as products, and what columns, tables and ratings become of them."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import features_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st
from torch import Tensor
from torch.testing import assert_close

from mfrec.data.dataset import Dataset
from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.model.features import BINS, Features, column_features, dataset_features, implicit_features, joined


def dense_of(features: Features) -> Tensor:
    """F by its own two views, which must be each other's transpose."""
    F = torch.zeros(features.n_rows, features.n_features, dtype=features.values.dtype)
    F[features.pattern.row.long(), features.col.long()] = features.values
    transposed = torch.zeros(F.shape[::-1], dtype=F.dtype)
    transposed[features.transposed.row.long(), features.col_t.long()] = features.values_t
    assert torch.equal(F, transposed.T)
    return F


def lengths(features: Features) -> list[float]:
    return dense_of(features).norm(dim=1).tolist()


def of_numbers(shape: tuple[int, ...], low: float = -9.0) -> st.SearchStrategy[Tensor]:
    return np_st.arrays(np.float64, shape, elements=st.floats(low, 9, width=32)).map(torch.from_numpy)


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """A matrix in which about half of the numbers, and some rows and columns, are 0."""
    n_rows, n_features = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    F = draw(of_numbers((n_rows, n_features)))
    mask = draw(np_st.arrays(np.bool_, F.shape))
    empty_rows, empty_columns = draw(np_st.arrays(np.bool_, n_rows)), draw(np_st.arrays(np.bool_, n_features))
    return F * torch.from_numpy(mask & ~empty_rows[:, None] & ~empty_columns)


@given(st.data(), matrices())
def test_the_products_are_those_of_the_dense_matrix(data, F):
    features = features_of(F)
    assert torch.equal(dense_of(features), F)
    W, G = data.draw(of_numbers((F.shape[1], 2))), data.draw(of_numbers((len(F), 2)))
    assert_close(features(W), F @ W)
    assert_close(features.pull(G), F.T @ G)
    assert_close(features.pull_squares(G), F.square().T @ G)


@given(st.data(), matrices())
def test_the_bound_is_diagonal_and_nowhere_below_the_weighted_square_of_f(data, F):
    n = data.draw(of_numbers((len(F), 1), low=0.0))
    bound = features_of(F).pull_bound(n)
    assert bound.shape == (F.shape[1], 1)
    square = F.T @ (n * F)
    gap = torch.linalg.eigvalsh(torch.diag(bound[:, 0]) - square)
    assert float(gap.min()) >= -1e-10 * max(1.0, float(square.abs().max()))


def test_the_bound_of_one_hot_features_is_tight():
    F, n = torch.eye(4, dtype=torch.float64)[[0, 2, 2, 1, 0]], torch.tensor([[3.0], [1], [4], [1], [5]]).double()
    assert_close(features_of(F).pull_bound(n), torch.diag(F.T @ (n * F))[:, None])


@given(st.data(), matrices())
def test_a_selection_is_those_rows_in_that_order(data, F):
    order = data.draw(st.permutations(range(len(F))))
    rows = torch.tensor(order[: data.draw(st.integers(1, len(F)))])
    features = features_of(F)
    part = features.select(rows)
    assert torch.equal(dense_of(part), F[rows])
    assert part.names == features.names


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_the_product_passes_gradcheck(density):
    generator = torch.Generator().manual_seed(0)
    F = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    features = features_of(F * (torch.rand(F.shape, generator=generator) < density))
    W = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(features, (W,))


def test_features_have_no_parameters_and_no_state_but_follow_a_model_to_its_dtype():
    features = features_of(torch.eye(3))
    assert list(features.parameters()) == []
    assert features.state_dict() == {}
    assert features.double()(torch.ones(3, 1, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(("rows", "columns", "message"), [
    ([0, 0], [1, 1], "pairs occur more than once"),
    ([0, 3], [1, 1], "index 3 is outside"),
    ([0, 1], [1, 2], "index 2 is outside"),
])  # fmt: skip
def test_entries_that_repeat_or_lie_outside_are_refused(rows, columns, message):
    with pytest.raises(InputError, match=message):
        Features(torch.tensor(rows), torch.tensor(columns), torch.ones(2), 3, ["a", "b"])


# Who rated what.


@pytest.mark.parametrize("side", ["users", "items"])
def test_implicit_features_are_the_rated_pairs_in_rows_of_unit_length(odd_ratings, side):
    F = dense_of(implicit_features(odd_ratings, side))
    rated = torch.zeros(odd_ratings.n_users, odd_ratings.n_items, dtype=torch.bool)
    rated[odd_ratings.users.long(), odd_ratings.items.long()] = True
    rated = rated if side == "users" else rated.T
    assert torch.equal(F > 0, rated)
    assert_close(F.norm(dim=1), rated.any(1).double())
    assert all(len(row[row > 0].unique()) <= 1 for row in F)


@pytest.mark.parametrize("side", ["users", "items"])
def test_implicit_features_see_nothing_of_the_ratings_that_were_held_out(odd_ratings, side):
    held_out = torch.arange(len(odd_ratings)) % 3 == 0
    kept, held = odd_ratings.split(held_out)
    names = implicit_features(kept, side).names
    assert names == implicit_features(odd_ratings, side).names
    F = dense_of(implicit_features(kept, side))
    pairs = (held.users, held.items) if side == "users" else (held.items, held.users)
    assert float(F[pairs[0].long(), pairs[1].long()].abs().max()) == 0


def test_a_misspelt_side_gets_the_near_one_suggested(odd_ratings):
    with pytest.raises(InputError, match="'user'; did you mean 'users'"):
        implicit_features(odd_ratings, "user")


# Columns.


def test_texts_are_one_hot_and_a_missing_one_is_no_feature():
    features = column_features(pd.Series(["nurse", "cook", None, "nurse", np.nan, pd.NA], name="job", dtype=object))
    assert features.names == ("job cook", "job nurse")
    assert dense_of(features).tolist() == [[0, 1], [1, 0], [0, 0], [0, 1], [0, 0], [0, 0]]


def test_tuples_are_a_feature_each_in_rows_of_unit_length_however_often_they_repeat_a_text():
    column = pd.Series([("Drama", "War"), (), ("War", "War"), None, ("War", "Drama", "Noir")], name="genres")
    features = column_features(column)
    assert features.names == ("genres Drama", "genres Noir", "genres War")
    signs = [[1, 0, 1], [0, 0, 0], [0, 0, 1], [0, 0, 0], [1, 1, 1]]
    assert (dense_of(features) > 0).int().tolist() == signs
    assert lengths(features) == pytest.approx([1, 0, 1, 0, 1])
    assert dense_of(features)[4].tolist() == pytest.approx([3**-0.5] * 3)


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
@pytest.mark.parametrize("dtype", ["Int64", "Float64", object])
def test_few_numbers_are_one_hot_by_value(missing, dtype):
    features = column_features(pd.Series([30, 20, missing, 30], name="age", dtype=dtype))
    assert features.names == ("age 20", "age 30")
    assert dense_of(features).tolist() == [[0, 1], [1, 0], [0, 0], [0, 1]]


@pytest.mark.parametrize("numbers", [[1_000_000_001, 1_000_000_002], [0.1234567, 0.1234568]])
def test_numbers_that_differ_late_are_features_of_their_own(numbers):
    assert dense_of(column_features(pd.Series(numbers, name="stamp"))).tolist() == [[1, 0], [0, 1]]


def test_many_numbers_are_cut_into_bins_of_as_many_rows_each_named_by_their_ends():
    generator = np.random.default_rng(0)
    column = pd.Series(generator.permutation(100) + 100, name="age", dtype="Int64")
    features = column_features(column, n_bins=4)
    assert features.names == ("age 100 to 124", "age 125 to 149", "age 150 to 174", "age 175 to 199")
    F = dense_of(features)
    assert F.sum(0).tolist() == [25] * 4
    assert F.argmax(1).tolist() == ((column.to_numpy(int) - 100) // 25).tolist()


@given(
    st.lists(st.one_of(st.none(), st.integers(-3, 30), st.floats(-1e6, 1e6)), min_size=1, max_size=60),
    st.integers(1, 6),
)
def test_bins_are_disjoint_intervals_of_which_each_number_has_one(numbers, n_bins):
    known = [number for number in numbers if number is not None]
    column = pd.Series(numbers, name="x", dtype="Float64")
    if not known:
        with pytest.raises(InputError, match="has no values"):
            column_features(column, n_bins)
        return
    F = dense_of(column_features(column, n_bins))
    assert F.shape[1] <= max(n_bins, 1)
    assert F.sum(1).tolist() == [float(number is not None) for number in numbers]
    ranges = sorted(
        (min(own), max(own))
        for own in ([n for n, has in zip(numbers, feature.tolist(), strict=True) if has] for feature in F.T)
    )
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ranges))


def test_values_as_many_as_bins_stay_a_feature_each_and_one_more_is_cut():
    assert column_features(pd.Series(range(BINS), name="age")).n_features == BINS
    assert column_features(pd.Series(range(BINS + 1), name="age")).n_features <= BINS


def test_a_value_that_most_rows_have_does_not_fall_into_several_bins():
    F = dense_of(column_features(pd.Series([0] * 50 + list(range(1, 11)), name="x"), n_bins=5))
    assert F.shape[1] < 5
    assert torch.equal(F[:50], F[:1].expand(50, -1))
    assert F.sum(1).tolist() == [1] * 60


@pytest.mark.parametrize("empty", [[None, None], [np.nan, np.nan], [pd.NA, pd.NA], [(), ()], []])
def test_a_column_without_values_is_refused_by_name(empty):
    with pytest.raises(InputError, match="column 'job' has no values; leave it out"):
        column_features(pd.Series(empty, name="job", dtype=object))


# Blocks.


def test_joined_blocks_stand_side_by_side_in_rows_of_unit_length():
    jobs = column_features(pd.Series(["nurse", "cook", None], name="job"))
    genres = column_features(pd.Series([("War", "Noir"), ("War",), ("Noir",)], name="genres"))
    both = joined([jobs, genres])
    assert both.names == ("job cook", "job nurse", "genres Noir", "genres War")
    assert_close(dense_of(both), torch.cat([dense_of(jobs), dense_of(genres)], 1) / 2**0.5)
    assert lengths(both) == pytest.approx([1, 1, 0.5**0.5])
    assert torch.equal(dense_of(joined([genres])), dense_of(genres))


def test_blocks_of_different_numbers_of_rows_are_refused():
    with pytest.raises(InputError, match="features of 2, 3 rows cannot stand in one row"):
        joined([features_of(torch.eye(2)), features_of(torch.eye(3))])


# Data sets.


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """3 users, whose ages and jobs are known, and 2 films."""
    return Dataset.from_frame(
        pd.DataFrame({"user": [1, 1, 2, 3], "item": [7, 8, 7, 8], "rating": [1.0, 2.0, 3.0, 4.0]}),
        users=pd.DataFrame({"user": [1, 2, 3], "age": [30, 20, None], "occupation": ["cook", "nurse", "cook"]}),
        items=pd.DataFrame({"item": [7, 8], "title": ["Alien (1979)", "Brazil (1985)"], "genres": ["Horror", "War"]}),
    )


def test_a_data_sets_features_are_of_the_training_ratings_and_the_columns_named(dataset):
    train = dataset.ratings.select(torch.tensor([True, False, True, True]))
    users, items = dataset_features(dataset, train, "both", "age, occupation", ["genres", "year"])
    assert (list(users), list(items)) == (["implicit", "side"], ["implicit", "side"])
    assert dense_of(users["implicit"]).tolist() == [[1, 0], [1, 0], [0, 1]]
    assert users["side"].names == ("age 20", "age 30", "occupation cook", "occupation nurse")
    assert lengths(users["side"]) == pytest.approx([1, 1, 0.5**0.5])
    assert items["side"].names == ("genres Horror", "genres War", "year 1979", "year 1985")
    assert lengths(items["implicit"]) == pytest.approx([1, 1])


@pytest.mark.parametrize(("implicit", "sides"), [
    ("none", ([], [])), ("users", (["implicit"], [])), ("items", ([], ["implicit"])),
])  # fmt: skip
def test_implicit_features_are_of_the_side_named(dataset, implicit, sides):
    assert tuple(map(list, dataset_features(dataset, dataset.ratings, implicit))) == sides


def test_features_have_the_dtype_of_the_ratings(dataset):
    doubles = dataset.ratings.to(dtype=torch.float64)
    for side in dataset_features(dataset, doubles, "both", "age", "year"):
        assert {block.values.dtype for block in side.values()} == {torch.float64}


@pytest.mark.parametrize(("options", "message"), [
    ({"item_columns": "genre"}, "unknown column of the items of frame 'genre'; did you mean 'genres'"),
    ({"user_columns": ["ocupation"]}, "unknown column of the users of frame 'ocupation'; did you mean 'occupation'"),
    ({"user_columns": "genres,year"}, "unknown column of the users of frame 'genres'; choose from age, occupation"),
    ({"implicit": "user"}, "unknown side of implicit features 'user'; did you mean 'users'"),
])  # fmt: skip
def test_what_is_not_there_is_refused_with_the_near_name(dataset, options, message):
    with pytest.raises(InputError, match=message):
        dataset_features(dataset, dataset.ratings, **options)


def test_features_of_users_of_whom_nothing_is_known_are_refused():
    plain = Dataset.from_frame(pd.DataFrame({"user": [1, 2], "item": [7, 8], "rating": [1.0, 2.0]}), name="plain")
    with pytest.raises(InputError, match="plain knows nothing of its users, so not their 'age'; leave it out"):
        dataset_features(plain, plain.ratings, user_columns="age")


def test_implicit_features_of_a_user_without_training_ratings_are_none():
    alone = Ratings(torch.tensor([0, 2]), torch.tensor([1, 1]), torch.tensor([3.0, 4.0]), 3, 2)
    assert lengths(implicit_features(alone, "users")) == [1, 0, 1]

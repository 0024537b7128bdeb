"""Features: F and Fᵀ as products, selections, blocks, and who rated what."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import features_of
from features_examples import dense_of, lengths
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st
from torch import Tensor
from torch.testing import assert_close

from mfrec.data.features import Features, implicit_features, joined
from mfrec.data.ratings import Ratings
from mfrec.errors import InputError


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
def test_the_products_are_those_of_the_dense_matrix(data: st.DataObject, F: Tensor) -> None:
    features = features_of(F)
    assert torch.equal(dense_of(features), F)
    W, G = data.draw(of_numbers((F.shape[1], 2))), data.draw(of_numbers((len(F), 2)))
    assert_close(features.matrix @ W, F @ W)
    assert_close(features.rmatmul(G), F.T @ G)
    assert_close(features.rmatmul_squared(G), F.square().T @ G)
    assert_close(features.matmul_squared(W), F.square() @ W)


@given(st.data(), matrices())
def test_the_gram_bound_is_diagonal_and_nowhere_below_the_weighted_gram_matrix(data: st.DataObject, F: Tensor) -> None:
    n = data.draw(of_numbers((len(F), 1), low=0.0))
    bound = features_of(F).gram_bound(n)
    assert bound.shape == (F.shape[1], 1)
    gram = F.T @ (n * F)
    gap = torch.linalg.eigvalsh(torch.diag(bound[:, 0]) - gram)
    assert float(gap.min()) >= -1e-10 * max(1.0, float(gram.abs().max()))


def test_the_gram_bound_of_one_hot_features_is_tight() -> None:
    F, n = torch.eye(4, dtype=torch.float64)[[0, 2, 2, 1, 0]], torch.tensor([[3.0], [1], [4], [1], [5]]).double()
    assert_close(features_of(F).gram_bound(n), torch.diag(F.T @ (n * F))[:, None])


@given(st.data(), matrices())
def test_a_selection_has_those_rows_in_that_order(data: st.DataObject, F: Tensor) -> None:
    order = data.draw(st.permutations(range(len(F))))
    rows = torch.tensor(order[: data.draw(st.integers(1, len(F)))])
    features = features_of(F)
    selected = features.select(rows)
    assert torch.equal(dense_of(selected), F[rows])
    assert selected.names == features.names


def test_features_move_to_another_dtype_and_keep_their_names() -> None:
    features = features_of(torch.eye(3)).to(dtype=torch.float64)
    assert (features.matrix @ torch.ones(3, 1, dtype=torch.float64)).dtype == torch.float64
    assert features.names == ("feature 0", "feature 1", "feature 2")
    assert (features.n_rows, features.n_features) == (3, 3)


@pytest.mark.parametrize(("rows", "columns", "values", "message"), [
    ([0, 0], [1, 1], [1, 1], r"\(row, feature\) entries must be distinct \(got 1 repeats\)"),
    ([0, 3], [1, 1], [1, 1], r"row indices of features must be in 0 … 2 \(got 3\)"),
    ([0, -1], [1, 1], [1, 1], r"row indices of features must be in 0 … 2 \(got -1\)"),
    ([0, 1], [1, 2], [1, 1], r"feature indices of features must be in 0 … 1 \(got 2\)"),
    ([0, 1], [1, 0], [1, float("nan")], r"feature values must be finite; drop or replace NaN"),
])  # fmt: skip
def test_entries_that_repeat_lie_outside_or_are_not_finite_are_refused(
    rows: list[int], columns: list[int], values: list[float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Features.from_entries(torch.tensor(rows), torch.tensor(columns), torch.tensor(values), 3, ["a", "b"])


def test_every_feature_needs_a_name() -> None:
    with pytest.raises(InputError, match=r"each of 3 features needs a name \(got 1\)"):
        Features(features_of(torch.eye(3)).matrix, ("a",))


# Blocks.


def test_joined_blocks_are_side_by_side_in_rows_of_unit_length() -> None:
    a, b = torch.eye(3)[[0, 1, 2]], torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    both = joined([features_of(a), features_of(b)])
    assert_close(dense_of(both), torch.cat([a, b], 1) / 2**0.5)
    assert lengths(both) == pytest.approx([1, 1, 0.5**0.5])
    assert torch.equal(dense_of(joined([features_of(a)])), a)
    assert both.names == ("feature 0", "feature 1", "feature 2", "feature 0", "feature 1")


def test_blocks_must_have_equal_row_counts() -> None:
    with pytest.raises(InputError, match=r"feature blocks must have equal row counts \(got 2, 3\)"):
        joined([features_of(torch.eye(2)), features_of(torch.eye(3))])
    with pytest.raises(InputError, match=r"feature blocks must have equal row counts \(got no block\)"):
        joined([])


# Who rated what.


@pytest.mark.parametrize("entity", ["users", "items"])
def test_implicit_features_are_the_rated_pairs_in_rows_of_unit_length(odd_ratings: Ratings, entity: str) -> None:
    F = dense_of(implicit_features(odd_ratings, entity))
    rated = torch.zeros(odd_ratings.n_users, odd_ratings.n_items, dtype=torch.bool)
    rated[odd_ratings.users.long(), odd_ratings.items.long()] = True
    rated = rated if entity == "users" else rated.T
    assert torch.equal(F > 0, rated)
    assert_close(F.norm(dim=1), rated.any(1).double())
    assert all(len(row[row > 0].unique()) <= 1 for row in F)


@pytest.mark.parametrize("entity", ["users", "items"])
def test_implicit_features_do_not_depend_on_held_out_ratings(odd_ratings: Ratings, entity: str) -> None:
    kept, held = odd_ratings.split(torch.arange(len(odd_ratings)) % 3 == 0)
    names = implicit_features(kept, entity).names
    assert names == implicit_features(odd_ratings, entity).names
    F = dense_of(implicit_features(kept, entity))
    pairs = (held.users, held.items) if entity == "users" else (held.items, held.users)
    assert float(F[pairs[0].long(), pairs[1].long()].abs().max()) == 0


def test_implicit_features_of_a_user_without_training_ratings_are_empty() -> None:
    alone = Ratings(torch.tensor([0, 2]), torch.tensor([1, 1]), torch.tensor([3.0, 4.0]), 3, 2)
    assert lengths(implicit_features(alone, "users")) == [1, 0, 1]


def test_a_misspelt_entity_is_refused_with_the_nearest(odd_ratings: Ratings) -> None:
    with pytest.raises(InputError, match="unknown entity for implicit features 'user'; did you mean 'users'"):
        implicit_features(odd_ratings, "user")

"""Top-N and similarity: what a brute-force ranking of the dense scores gives, block by block."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfrec import recommend
from mfrec.datasets import synthetic
from mfrec.errors import InputError
from mfrec.model import MatrixFactorization
from mfrec.objective import Objective
from mfrec.ratings import Ratings
from mfrec.recommend import item_frame, recommended_items, similar, similar_items, similar_users, top_n
from mfrec.solvers.gibbs import Gibbs


def a_model(n_users: int, n_items: int, seed: int) -> MatrixFactorization:
    generator = torch.Generator().manual_seed(seed)
    offset = torch.randn(n_items, generator=generator)
    model = MatrixFactorization(n_users, n_items, 3, offset=offset, scale=(-1.0, 1.0))
    with torch.no_grad():
        for parameter in model.parameters():
            # Few distinct values, so that ties occur.
            parameter.copy_(torch.randint(-1, 2, parameter.shape, generator=generator))
    return model


def some_ratings(n_users: int, n_items: int, seed: int) -> Ratings:
    observed = torch.rand(n_items, n_users, generator=torch.Generator().manual_seed(seed)) < 0.4
    return Ratings.from_dense(torch.ones(n_items, n_users), observed)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 10), st.integers(0, 10**6), st.integers(1, 40))
def test_top_n_is_the_head_of_the_sorted_predictions_without_what_was_seen(n_users, n_items, n, seed, scores_held):
    model, seen = a_model(n_users, n_items, seed), some_ratings(n_users, n_items, seed)
    users = torch.randperm(n_users)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recommend, "SCORES", scores_held)
        indices, predictions = top_n(model, users, n, exclude=seen)
    for row, user in enumerate(users.tolist()):
        scores = model.predict(torch.full((n_items,), user), torch.arange(n_items))
        left = sorted(set(range(n_items)) - set(seen.items[seen.users == user].tolist()))
        expected = [float(scores[i]) for i in sorted(left, key=lambda i: -float(scores[i]))[:n]]
        found = [i for i in indices[row].tolist() if i >= 0]
        assert set(found) <= set(left)
        assert len(found) == len(set(found)) == len(expected)
        assert [float(scores[i]) for i in found] == pytest.approx(expected, abs=1e-5)
        assert predictions[row, : len(found)].tolist() == pytest.approx(expected, abs=1e-5)


def test_predictions_are_ranked_before_they_are_clipped():
    model = a_model(4, 6, 0)
    with torch.no_grad():
        model.item_bias.weight.copy_(torch.arange(6.0)[:, None] * 10)
    indices, predictions = top_n(model, torch.arange(4), 3, clip=True)
    assert indices.tolist() == [[5, 4, 3]] * 4
    assert predictions.tolist() == [[1.0] * 3] * 4


def test_ties_go_to_the_lower_index():
    model = MatrixFactorization(1, 500, 2, biases=False)
    with torch.no_grad():
        model.item_factors.weight.fill_(1.0)
        model.item_factors.weight[400] = 2.0
        model.user_factors.weight.fill_(1.0)
    assert top_n(model, torch.tensor([0]), 5)[0].tolist() == [[400, 0, 1, 2, 3]]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_similar_is_the_head_of_the_sorted_cosines_without_the_row_itself(n_rows, n, seed):
    table = torch.randn(n_rows, 3, generator=torch.Generator().manual_seed(seed))
    indices, cosines = similar(table, torch.arange(n_rows), n)
    every = torch.nn.functional.cosine_similarity(table[:, None], table[None], dim=2)
    for row in range(n_rows):
        others = sorted((i for i in range(n_rows) if i != row), key=lambda i: -float(every[row, i]))[:n]
        found = [i for i in indices[row].tolist() if i >= 0]
        assert cosines[row, : len(found)].tolist() == pytest.approx(every[row, others].tolist(), abs=1e-5)
        assert row not in found


def test_only_candidates_are_similar():
    table = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    only = torch.tensor([True, False, True, False, False, False])
    assert set(similar(table, torch.tensor([5]), 4, only)[0][0].tolist()) == {0, 2, -1}


@pytest.mark.parametrize("call", [
    lambda model: top_n(model, torch.tensor([4])),
    lambda model: similar(model.item_factors.weight, torch.tensor([-1])),
])  # fmt: skip
def test_a_row_that_is_not_in_the_model_is_refused(call):
    with pytest.raises(InputError, match="is not in this model"):
        call(a_model(4, 5, 0))


def test_nothing_asked_for_is_refused():
    with pytest.raises(InputError, match="n 0 asks for nothing; give 1 or more"):
        top_n(a_model(4, 5, 0), torch.tensor([0]), 0)


def test_frames_carry_ids_titles_and_values_and_leave_unfilled_places_out():
    dataset = synthetic(30, 20, 200, generator=torch.Generator().manual_seed(0))
    frame = item_frame(dataset, torch.tensor([3, 0, -1]), predicted=torch.tensor([4.5, 4.0, -torch.inf]))
    assert frame["id"].tolist() == [dataset.item_ids[3], dataset.item_ids[0]]
    assert frame["predicted"].tolist() == [4.5, 4.0]


def test_recommended_items_are_new_to_the_user_and_similar_items_have_ratings_enough():
    dataset = synthetic(30, 20, 200, generator=torch.Generator().manual_seed(0))
    model = MatrixFactorization.from_ratings(dataset.ratings, 4, generator=torch.Generator().manual_seed(0))
    rated = {dataset.item_ids[i] for i in dataset.ratings.items[dataset.ratings.users == 7].tolist()}
    counts = dict(zip(dataset.item_ids, dataset.ratings.by_item.counts.tolist(), strict=True))
    recommended = recommended_items(dataset, model, 7, 5, min_ratings=8)
    assert len(recommended) == 5
    assert not rated & set(recommended["id"])
    assert all(counts[i] >= 8 for i in recommended["id"])
    alike = similar_items(dataset, model, 2, 20, min_ratings=10)["id"]
    assert len(alike)
    assert all(counts[i] >= 10 for i in alike)


def test_similar_users_have_ratings_enough_and_come_by_id():
    dataset = synthetic(30, 20, 200, generator=torch.Generator().manual_seed(0))
    model = MatrixFactorization.from_ratings(dataset.ratings, 4, generator=torch.Generator().manual_seed(0))
    found = similar_users(dataset, model, 7, 30, min_ratings=6)
    counts = dict(zip(dataset.user_ids, dataset.ratings.user_counts.tolist(), strict=True))
    assert set(found["id"]) == {user for user, count in counts.items() if count >= 6 and user != dataset.user_ids[7]}
    assert found["ratings"].tolist() == [counts[user] for user in found["id"]]
    first = torch.tensor([7, dataset.user_ids.get_loc(found["id"][0])])
    a, b = model.user_factors.weight[first].detach()
    assert found["cosine"][0] == pytest.approx(float(torch.cosine_similarity(a, b, dim=0)), abs=1e-6)
    assert found["cosine"].is_monotonic_decreasing


def test_recommendations_of_a_posterior_tell_their_deviations():
    generator = torch.Generator().manual_seed(0)
    dataset = synthetic(30, 20, 200, generator=generator)
    model = MatrixFactorization.from_ratings(dataset.ratings, 2, generator=generator)
    solver = Gibbs(model, dataset.ratings, Objective(), generator=generator, burn_in=1)
    for _ in range(6):
        solver.epoch()
    found = recommended_items(dataset, solver.posterior.mean_model(), 7, 5, 1, solver.posterior)
    items = torch.tensor([dataset.item_ids.get_loc(item) for item in found["id"]])
    expected = solver.posterior.deviation(torch.full((5,), 7), items)
    assert found["deviation"].tolist() == pytest.approx(expected.tolist())

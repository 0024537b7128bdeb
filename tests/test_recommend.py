"""Recommendations and similarities as frames: ids, titles and values, and nothing that was rated already."""

import pytest
import torch

from mfrec.data.loading import synthetic
from mfrec.inference.recommend import item_frame, recommended_items, similar_items, similar_users
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.solvers.gibbs import Gibbs


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

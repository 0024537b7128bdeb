"""Recommendations and similarities as frames: ids, titles and values, without items that were rated already."""

import pytest
import torch

from mfrec.data.synthetic import synthetic
from mfrec.errors import InputError
from mfrec.inference.recommend import (
    candidate_items,
    item_frame,
    recommended_items,
    similar_items,
    similar_users,
)
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.posteriors.point_estimate import PointEstimate
from mfrec.solvers.registry import SOLVERS


def test_frames_have_ids_titles_and_values_and_leave_unfilled_places_out():
    dataset = synthetic(30, 20, 200, generator=torch.Generator().manual_seed(0))
    frame = item_frame(dataset, torch.tensor([3, 0, -1]), predicted=torch.tensor([4.5, 4.0, -torch.inf]))
    assert frame["id"].tolist() == [dataset.item_ids[3], dataset.item_ids[0]]
    assert frame["predicted"].tolist() == [4.5, 4.0]


def test_recommended_items_are_new_to_the_user_and_similar_items_have_enough_ratings():
    dataset = synthetic(30, 20, 200, generator=torch.Generator().manual_seed(0))
    model = MatrixFactorization.from_ratings(dataset.ratings, 4, generator=torch.Generator().manual_seed(0))
    rated = {dataset.item_ids[i] for i in dataset.ratings.items[dataset.ratings.users == 7].tolist()}
    counts = dict(zip(dataset.item_ids, dataset.ratings.item_counts.tolist(), strict=True))
    recommended = recommended_items(dataset, model, 7, 5, min_ratings=8)
    assert len(recommended) == 5
    assert not rated & set(recommended["id"])
    assert all(counts[i] >= 8 for i in recommended["id"])
    alike = similar_items(dataset, model, 2, 20, min_ratings=10)["id"]
    assert len(alike)
    assert all(counts[i] >= 10 for i in alike)


def test_similar_users_have_enough_ratings_and_are_listed_by_id():
    dataset = synthetic(30, 20, 200, generator=torch.Generator().manual_seed(0))
    model = MatrixFactorization.from_ratings(dataset.ratings, 4, generator=torch.Generator().manual_seed(0))
    frame = similar_users(dataset, model, 7, 30, min_ratings=6)
    counts = dict(zip(dataset.user_ids, dataset.ratings.user_counts.tolist(), strict=True))
    assert set(frame["id"]) == {user for user, count in counts.items() if count >= 6 and user != dataset.user_ids[7]}
    assert frame["ratings"].tolist() == [counts[user] for user in frame["id"]]
    first = torch.tensor([7, dataset.user_ids.get_loc(frame["id"][0])])
    a, b = model.user_factors.weight[first].detach()
    assert frame["cosine"][0] == pytest.approx(float(torch.cosine_similarity(a, b, dim=0)), abs=1e-6)
    assert frame["cosine"].is_monotonic_decreasing


def test_recommendations_have_the_posterior_s_standard_deviations():
    generator = torch.Generator().manual_seed(0)
    dataset = synthetic(30, 20, 200, generator=generator)
    model = MatrixFactorization.from_ratings(dataset.ratings, 2, generator=generator)
    solver = SOLVERS["gibbs"](model, dataset.ratings, Objective(), generator=generator, burn_in=1)
    for _ in range(6):
        solver.epoch()
    posterior = solver.inference()
    frame = recommended_items(dataset, posterior.mean_model(), 7, 5, 1, posterior)
    items = torch.tensor([dataset.item_ids.get_loc(item) for item in frame["id"]])
    expected = posterior.std(torch.full((5,), 7), items)
    assert frame["std"].tolist() == pytest.approx(expected.tolist())


def test_recommendations_of_a_point_estimate_have_no_standard_deviations():
    dataset = synthetic(30, 20, 200, generator=torch.Generator().manual_seed(0))
    model = MatrixFactorization.from_ratings(dataset.ratings, 2)
    posterior = PointEstimate(model, Objective())
    assert "std" not in recommended_items(dataset, posterior.mean_model(), 7, 5, 1, posterior)


def test_genres_and_years_that_the_data_does_not_have_are_refused():
    dataset = synthetic(30, 20, 200, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="synthetic has no column 'genres' for its items"):
        candidate_items(dataset, genres=["Drama"])
    with pytest.raises(InputError, match="synthetic has no column 'year' for its items"):
        candidate_items(dataset, years=(1990, 1999))

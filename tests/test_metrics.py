"""Accuracy figures, where the errors are, and the baselines that the figures are held against."""

import math

import pytest
import torch

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.evaluation.baselines import baselines, biases_only
from mfrec.evaluation.metrics import GROUPS, errors_by, evaluate, evaluate_parts, mae, rmse
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective


@pytest.fixture
def ratings() -> Ratings:
    generator = torch.Generator().manual_seed(0)
    observed = torch.rand(13, 11, generator=generator) < 0.5
    stars = torch.randint(1, 6, (13, 11), generator=generator).double()
    return Ratings.from_dense(stars, observed)


def test_rmse_and_mae_of_known_errors():
    predictions, stars = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 4.0, 2.0])
    assert rmse(predictions, stars) == pytest.approx(math.sqrt(5 / 3))
    assert mae(predictions, stars) == pytest.approx(1.0)


def test_errors_are_of_clipped_predictions_and_the_cost_is_not(ratings):
    model = MatrixFactorization.from_ratings(ratings, 2, offset="none", scale=(1.0, 5.0))
    with torch.no_grad():
        model.item_bias.weight.fill_(9.0)
    measured = evaluate(model, ratings, Objective())
    assert measured["rmse"] == pytest.approx(rmse(torch.full_like(ratings.values, 5.0), ratings.values))
    assert measured["mae"] == pytest.approx(mae(torch.full_like(ratings.values, 5.0), ratings.values))
    assert measured["cost"] == pytest.approx(float(Objective().cost(model, ratings)))


def test_the_penalty_counts_in_the_cost_of_the_training_part_alone(ratings):
    model = MatrixFactorization.from_ratings(ratings, 2)
    measured = evaluate_parts(model, Objective(5.0), {"train": ratings, "test": ratings})
    penalty = float(Objective(5.0).penalty(model, ratings).detach())
    assert measured["train"]["cost"] - measured["test"]["cost"] == pytest.approx(penalty)


@pytest.fixture(scope="module")
def told_apart() -> tuple[torch.Tensor, Ratings, Ratings]:
    """Predictions of a part of 60 × 40 ratings; users 3 and 4 and items 0, 7 and 39 have no training rating."""
    generator = torch.Generator().manual_seed(0)
    stars = torch.randint(1, 11, (40, 60), generator=generator).double() / 2
    # Items from hardly ever to nearly always rated.
    ratings = Ratings.from_dense(stars, torch.rand(40, 60, generator=generator) < torch.linspace(0, 1, 40)[:, None])
    held_out = torch.rand(len(ratings), generator=generator) < 0.2
    train, part = ratings.split(held_out | torch.isin(ratings.users, torch.tensor([3, 4])))
    train, _ = train.split(torch.isin(train.items, torch.tensor([0, 7, 39])))
    return 1 + 4 * torch.rand(len(part), generator=generator, dtype=torch.float64), part, train


@pytest.mark.parametrize("by", GROUPS)
def test_the_errors_of_the_groups_add_up_to_those_of_the_part(told_apart, by):
    predictions, part, train = told_apart
    frame = errors_by(predictions, part, train, by)
    assert list(frame) == [by, "n_ratings", "rmse", "mae"]
    assert frame["n_ratings"].sum() == len(part)
    overall_rmse = math.sqrt((frame["n_ratings"] * frame["rmse"] ** 2).sum() / len(part))
    assert overall_rmse == pytest.approx(rmse(predictions, part.values), rel=1e-14)
    overall_mae = (frame["n_ratings"] * frame["mae"]).sum() / len(part)
    assert overall_mae == pytest.approx(mae(predictions, part.values), rel=1e-14)


@pytest.mark.parametrize("by", GROUPS)
def test_each_groups_errors_are_those_of_its_ratings_alone(told_apart, by):
    predictions, part, train = told_apart
    starts = {"0": 0, "1–4": 1, "5–19": 5, "20–99": 20, "100+": 100}

    def label(user: int, item: int, stars: float) -> object:
        of_user, of_item = int((train.users == user).sum()), int((train.items == item).sum())
        warmth = {(0, 0): "warm", (1, 0): "cold user", (0, 1): "cold item", (1, 1): "both cold"}
        return {
            "user": user,
            "item": item,
            "rating": stars,
            "popularity": [name for name, least in starts.items() if of_item >= least][-1],
            "warmth": warmth[of_user == 0, of_item == 0],
        }[by]

    columns = (part.users.tolist(), part.items.tolist(), part.values.tolist())
    labels = [label(*rating) for rating in zip(*columns, strict=True)]
    frame = errors_by(predictions, part, train, by)
    if by in ("user", "item", "rating"):
        assert frame[by].tolist() == sorted(set(labels))
    else:
        assert set(labels) <= set(frame[by])
    for group in frame.itertuples(index=False):
        own = torch.tensor([other == group[0] for other in labels])
        assert group.n_ratings == own.sum()
        assert group.rmse == pytest.approx(rmse(predictions[own], part.values[own]), nan_ok=True)
        assert group.mae == pytest.approx(mae(predictions[own], part.values[own]), nan_ok=True)


def test_popularity_and_warmth_have_a_row_for_groups_without_ratings_too(told_apart):
    predictions, part, train = told_apart
    popularity = errors_by(predictions, part, train, "popularity")
    assert popularity["popularity"].tolist() == ["0", "1–4", "5–19", "20–99", "100+"]
    # No item has 100 of 60 users' ratings.
    assert popularity["n_ratings"].tolist()[-1] == 0
    assert popularity[["rmse", "mae"]].iloc[-1].isna().all()
    assert (popularity["n_ratings"].iloc[:-1] > 0).all()
    warmth = errors_by(predictions, part, train, "warmth").set_index("warmth")["n_ratings"]
    assert (warmth > 0).all()
    cold_users = int(torch.isin(part.users, torch.tensor([3, 4])).sum())
    assert warmth["cold user"] + warmth["both cold"] == cold_users
    trained = errors_by(train.values, train, train, "warmth")
    assert trained["n_ratings"].tolist() == [len(train), 0, 0, 0]
    assert trained["rmse"].tolist() == pytest.approx([0, math.nan, math.nan, math.nan], nan_ok=True)


def test_an_unknown_grouping_and_too_few_predictions_are_refused(told_apart):
    predictions, part, train = told_apart
    with pytest.raises(InputError, match="unknown grouping of errors 'users'; did you mean 'user'"):
        errors_by(predictions, part, train, "users")
    with pytest.raises(InputError, match=r"3 predictions for \d+ ratings; give one of each"):
        errors_by(predictions[:3], part, train, "user")


def test_the_mean_baselines_predict_means(ratings):
    models = baselines(ratings, (1.0, 5.0))
    mean = float(ratings.values.mean())
    assert models["global mean"].predict_observed(ratings).unique().tolist() == [pytest.approx(mean)]
    items = models["item mean"].predict_observed(ratings)
    assert len(items.unique()) > 5
    assert all(len(items[ratings.items == i].unique()) <= 1 for i in range(13))


def test_the_biases_end_where_the_gradient_of_their_cost_is_zero(ratings):
    model = biases_only(ratings, (1.0, 5.0), l2=3.0, sweeps=200)
    for gradient in Objective(3.0).gradients(model, ratings).values():
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)

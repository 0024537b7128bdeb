"""Errors by group: each group's are those of its ratings alone, and together they are those of all."""

import math

import pytest
import torch

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.evaluation.error_groups import COLD_START, GROUPINGS, errors_by
from mfrec.evaluation.metrics import METRICS, Metric, mae, rmse

Split = tuple[torch.Tensor, Ratings, Ratings]


@pytest.fixture(scope="module")
def split() -> Split:
    """Predictions, held-out and training ratings; users 3 and 4 and items 0, 7 and 39 have no training rating."""
    generator = torch.Generator().manual_seed(0)
    stars = torch.randint(1, 11, (40, 60), generator=generator).double() / 2
    # Items from hardly ever to nearly always rated.
    ratings = Ratings.from_dense(stars, torch.rand(40, 60, generator=generator) < torch.linspace(0, 1, 40)[:, None])
    is_held_out = torch.rand(len(ratings), generator=generator) < 0.2
    train, held_out = ratings.split(is_held_out | torch.isin(ratings.users, torch.tensor([3, 4])))
    train, _ = train.split(torch.isin(train.items, torch.tensor([0, 7, 39])))
    return 1 + 4 * torch.rand(len(held_out), generator=generator, dtype=torch.float64), held_out, train


@pytest.mark.parametrize("by", GROUPINGS)
def test_the_errors_of_all_groups_add_up_to_those_of_the_split(split, by):
    predictions, held_out, train = split
    frame = errors_by(predictions, held_out, train, by)
    assert list(frame) == [by, "n_ratings", "rmse", "mae"]
    assert frame["n_ratings"].sum() == len(held_out)
    overall_rmse = math.sqrt((frame["n_ratings"] * frame["rmse"] ** 2).sum() / len(held_out))
    assert overall_rmse == pytest.approx(rmse(predictions, held_out.values), rel=1e-14)
    overall_mae = (frame["n_ratings"] * frame["mae"]).sum() / len(held_out)
    assert overall_mae == pytest.approx(mae(predictions, held_out.values), rel=1e-14)


@pytest.mark.parametrize("by", GROUPINGS)
def test_the_errors_of_a_group_are_those_of_its_ratings_alone(split, by):
    predictions, held_out, train = split
    starts = {"0": 0, "1–4": 1, "5–19": 5, "20–99": 20, "100+": 100}

    def label(user: int, item: int, stars: float) -> object:
        n_user, n_item = int((train.users == user).sum()), int((train.items == item).sum())
        return {
            "user": user,
            "item": item,
            "rating": stars,
            "popularity": [name for name, least in starts.items() if n_item >= least][-1],
            "cold_start": COLD_START[(n_user == 0) + 2 * (n_item == 0)],
        }[by]

    columns = (held_out.users.tolist(), held_out.items.tolist(), held_out.values.tolist())
    labels = [label(*rating) for rating in zip(*columns, strict=True)]
    frame = errors_by(predictions, held_out, train, by)
    if by in ("user", "item", "rating"):
        assert frame[by].tolist() == sorted(set(labels))
    else:
        assert set(labels) <= set(frame[by])
    for group in frame.itertuples(index=False):
        members = torch.tensor([label == group[0] for label in labels])
        assert group.n_ratings == members.sum()
        assert group.rmse == pytest.approx(rmse(predictions[members], held_out.values[members]), nan_ok=True)
        assert group.mae == pytest.approx(mae(predictions[members], held_out.values[members]), nan_ok=True)


def test_popularity_and_cold_start_have_a_row_for_empty_groups_too(split):
    predictions, held_out, train = split
    popularity = errors_by(predictions, held_out, train, "popularity")
    assert popularity["popularity"].tolist() == ["0", "1–4", "5–19", "20–99", "100+"]
    # No item has 100 of 60 users' ratings.
    assert popularity["n_ratings"].tolist()[-1] == 0
    assert popularity[["rmse", "mae"]].iloc[-1].isna().all()
    assert (popularity["n_ratings"].iloc[:-1] > 0).all()
    cold = errors_by(predictions, held_out, train, "cold_start").set_index("cold_start")["n_ratings"]
    assert cold.index.tolist() == ["none", "new user", "new item", "new user and item"]
    assert (cold > 0).all()
    n_new_users = int(torch.isin(held_out.users, torch.tensor([3, 4])).sum())
    assert cold["new user"] + cold["new user and item"] == n_new_users
    trained = errors_by(train.values, train, train, "cold_start")
    assert trained["n_ratings"].tolist() == [len(train), 0, 0, 0]
    assert trained["rmse"].tolist() == pytest.approx([0, math.nan, math.nan, math.nan], nan_ok=True)


def test_a_metric_added_to_the_table_is_a_column(split, monkeypatch):
    monkeypatch.setitem(METRICS, "bias", Metric("bias", lambda y, truth: float((y - truth).double().mean())))
    frame = errors_by(*split, "popularity")
    assert list(frame) == ["popularity", "n_ratings", "rmse", "mae", "bias"]
    predictions, held_out, _ = split
    overall = (frame["n_ratings"] * frame["bias"].fillna(0)).sum() / len(held_out)
    assert overall == pytest.approx(float((predictions - held_out.values).mean()))


def test_an_unknown_grouping_and_too_few_predictions_are_refused(split):
    predictions, held_out, train = split
    with pytest.raises(InputError, match="unknown grouping of errors 'users'; did you mean 'user'"):
        errors_by(predictions, held_out, train, "users")
    with pytest.raises(InputError, match=r"there must be one prediction per rating \(got 3 for \d+\)"):
        errors_by(predictions[:3], held_out, train, "user")

"""A trained model answers the same questions for users and items of the training and for new ones."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mfrec.data.loading import load_dataset
from mfrec.data.new_rows import new_items, new_users
from mfrec.data.side_information import dataset_features
from mfrec.data.splits import TEST, TRAIN, random_split
from mfrec.errors import InputError
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.run import load_run
from mfrec.experiments.training import train as train_experiment
from mfrec.inference.explain import Reason, explain
from mfrec.inference.recommend import candidate_items
from mfrec.inference.trained_model import TrainedModel
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.posteriors.base import Z_90
from mfrec.solvers.registry import SOLVERS

NAMES = ("als", "vb", "gibbs")
OPTIONS = {"als": {}, "vb": {}, "gibbs": {"burn_in": 2}}
Trainer = Callable[..., TrainedModel]


def train(
    folder: Path,
    solver: str,
    *,
    user_features: str = "",
    item_features: str = "",
    offset: str = "global",
    epochs: int = 12,
) -> TrainedModel:
    """A small model of a folder's ratings, one in ten held out."""
    dataset, generator = load_dataset(folder), torch.Generator().manual_seed(0)
    held_out = random_split(dataset.ratings, 0.1, generator)
    labels = torch.where(held_out, TEST, TRAIN)
    ratings = dataset.ratings.select(labels == TRAIN)
    users, items = dataset_features(dataset, ratings, "none", user_features, item_features)
    spec = SOLVERS[solver]
    objective = Objective(float(spec.defaults["l2"]), None, "sqrt")
    model = MatrixFactorization.from_ratings(
        ratings, 3, offset=offset, rating_range=dataset.rating_range, user_features=users, item_features=items
    )
    trainer = spec(model, ratings, objective, generator=generator, **OPTIONS[solver])
    for _ in range(epochs):
        trainer.epoch()
    return TrainedModel(
        solver, trainer.inference(), objective, dataset, labels,
        user_features=user_features, item_features=item_features,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained_by(tiny: Path) -> Trainer:
    """Trains on the tiny data, each solver with the same options once; read the results only."""
    cache: dict[str, TrainedModel] = {}

    def call(solver: str, **options: str) -> TrainedModel:
        key = f"{solver} {sorted(options.items())}"
        if key not in cache:
            cache[key] = train(tiny, solver, **options)
        return cache[key]

    return call


def ratings_of(trained: TrainedModel, user: int) -> pd.DataFrame:
    """A user's training ratings by ids."""
    ratings = trained.train.select(trained.train.users == user)
    return pd.DataFrame({"item": trained.dataset.item_ids[ratings.items.numpy()], "rating": ratings.values.numpy()})


@pytest.mark.parametrize("solver", NAMES)
def test_a_new_user_with_a_trained_user_s_ratings_is_predicted_alike(solver, trained_by):
    trained = trained_by(solver)
    twin = trained.fold_in_users(ratings_of(trained, 3))
    items = torch.arange(trained.model.n_items)
    original = trained.model.predict(torch.full_like(items, 3), items)
    folded = twin.model.predict(torch.zeros_like(items), items)
    # A sampled user is another draw, and als has not converged after twelve sweeps.
    assert float((original - folded).abs().mean()) < (0.15 if solver == "gibbs" else 0.05)
    assert float((folded - folded.mean()).abs().mean()) > 0.2


@pytest.mark.parametrize("solver", NAMES)
def test_new_users_get_recommendations_and_predictions_that_agree(solver, trained_by):
    trained = trained_by(solver)
    new = trained.fold_in_users({"Film 1 (1981)": 5, 2: 1, "3": 4})
    frame = new.recommend(n=4, candidates=candidate_items(trained.dataset, 1))
    assert len(frame) == 4
    assert not {1, 2, 3} & set(frame["id"])
    assert ("std" in frame) == trained.posterior.has_std
    pairs = new.predict_frame(pd.DataFrame({"user": ["you"] * 4, "item": frame["id"]}))
    assert pairs["prediction"].to_numpy() == pytest.approx(frame["predicted"].to_numpy(), abs=1e-5)
    if trained.posterior.has_std:
        assert pairs["std"].to_numpy() == pytest.approx(frame["std"].to_numpy(), abs=1e-5)


@pytest.mark.parametrize("solver", NAMES)
def test_reasons_are_the_user_s_ratings_with_the_largest_positive_shares(solver, trained_by):
    trained = trained_by(solver)
    new = trained.fold_in_users({"Film 1 (1981)": 5, 2: 1, "3": 4})
    every = torch.ones(30, dtype=torch.bool)
    frame = new.recommend(n=27, candidates=every, reasons=2)
    items = torch.from_numpy(new.dataset.item_ids.get_indexer(frame["id"]))
    shares = explain(trained.posterior, new.train, items)
    titles, values = ["Film 1 (1981)", "Film 2 (1982)", "Film 3 (1983)"], [5.0, 1.0, 4.0]
    assert shares.shape == (27, 3)
    for row, listed in zip(shares.tolist(), frame["because"], strict=True):
        positive = sorted((k for k in range(3) if row[k] > 0), key=lambda k: -row[k])[:2]
        assert [(reason.title, reason.rating) for reason in listed] == [(titles[k], values[k]) for k in positive]
        assert [reason.share for reason in listed] == pytest.approx([row[k] for k in positive], abs=1e-6)
        assert all(isinstance(reason, Reason) for reason in listed)
    counts = [len(listed) for listed in frame["because"]]
    assert max(counts) == 2
    assert sum(count > 0 for count in counts) > 13, "most items have a reason"
    assert sum(shares.flatten() < 0) > 0, "a rating can also speak against an item"


def test_fewer_than_zero_reasons_are_refused(trained_by):
    with pytest.raises(InputError, match=r"reasons must be at least 0 \(got -1\)"):
        trained_by("als").recommend(1, reasons=-1)


def test_many_users_are_folded_in_at_once_as_each_alone(trained_by):
    trained = trained_by("als")
    first, second = ratings_of(trained, 3), ratings_of(trained, 5)
    frame = pd.concat([first.assign(user="a"), second.assign(user="b")])
    both = trained.fold_in_users(frame)
    assert both.dataset.user_ids.tolist() == ["a", "b"]
    for row, ratings in enumerate((first, second)):
        alone = trained.fold_in_users(ratings).model.user_factors.weight[0]
        torch.testing.assert_close(both.model.user_factors.weight[row], alone)


def test_folding_in_again_starts_from_the_trained_model(trained_by):
    trained = trained_by("als")
    ratings = ratings_of(trained, 3)
    again = trained.fold_in_users({1: 5}).fold_in_users(ratings)
    assert again.origin is trained
    assert torch.equal(again.model.user_factors.weight, trained.fold_in_users(ratings).model.user_factors.weight)


@pytest.mark.parametrize("solver", NAMES)
def test_new_items_are_predicted_from_ratings_or_from_their_year_alone(solver, trained_by):
    options = {"item_features": "year"} if solver != "vb" else {}
    trained = trained_by(solver, **options)
    by = pd.DataFrame({"user": trained.dataset.user_ids[:6], "item": 901, "rating": [5.0, 5, 5, 4, 5, 5]})
    table = pd.DataFrame({"item": [901, 902], "title": ["Liked (1999)", "Unseen (1999)"], "year": [1999, 1999]})
    new = trained.fold_in_items(by, table)
    assert new.dataset.item_ids.tolist() == [901, 902]
    users = torch.arange(6)
    liked, unseen = (new.model.predict(users, torch.full_like(users, item)) for item in (0, 1))
    assert float(liked.mean()) > float(unseen.mean()) + 0.2
    assert torch.isfinite(unseen).all()


def test_per_item_offsets_of_new_items_are_their_damped_means(trained_by):
    trained = trained_by("als", offset="item")
    by = pd.DataFrame({"user": trained.dataset.user_ids[:2], "item": 901, "rating": [5.0, 4.0]})
    new = trained.fold_in_items(by, pd.DataFrame({"item": [902]}))
    mean = float(trained.train.values.double().mean())
    assert new.model.offset.tolist() == pytest.approx([(9 + 5 * mean) / 7, mean], abs=1e-5)


@pytest.mark.parametrize("solver", NAMES)
def test_without_ratings_items_are_ranked_by_their_damped_means(solver, trained_by):
    trained = trained_by(solver)
    new = trained.fold_in_users({})
    frame = new.recommend(n=30, candidates=candidate_items(trained.dataset, 0), reasons=2)
    counts, sums = (trained.train.item_counts.double(), torch.zeros(30, dtype=torch.float64))
    sums.index_add_(0, trained.train.items.long(), trained.train.values.double())
    mean = float(trained.train.values.double().mean())
    means = (sums + 5 * mean) / (counts + 5)
    expected = means[torch.from_numpy(trained.dataset.item_ids.get_indexer(frame["id"]))]
    assert frame["predicted"].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert frame["predicted"].is_monotonic_decreasing
    assert frame["because"].tolist() == [[]] * 30
    assert frame.attrs["ranked by"] == "mean rating, damped by 5 ratings (user has no training ratings and no features)"
    assert trained.recommend(trained.dataset.user_ids[0], 3).attrs["ranked by"] == "predicted rating"


def test_unknown_users_are_average_and_unknown_items_rows_without_ratings_and_both_are_counted(trained_by, caplog):
    trained = trained_by("als")
    known_user, known_item = trained.dataset.user_ids[0], trained.dataset.item_ids[0]
    pairs = pd.DataFrame({
        "note": list("abcd"), "user": [known_user, 888, known_user, 888], "item": [known_item, known_item, 999, 999],
    })  # fmt: skip
    with caplog.at_level(logging.WARNING):
        frame = trained.predict_frame(pairs)
    model = trained.model
    mu, b_user = (float(t.detach().flatten()[0]) for t in (model.offset, model.user_bias.weight))
    zero = torch.tensor([0])
    trained_pair = float(model.predict(zero, zero, clip=True)[0])
    users = (trained.train.user_counts > 0).nonzero()[:, 0]
    average = float(model.predict(users, torch.zeros_like(users)).mean())
    assert frame["prediction"].tolist() == pytest.approx([trained_pair, average, mu + b_user, mu], abs=1e-5)
    assert frame[["note", "user", "item"]].equals(pairs)
    assert "1 user id (888) is not among the model's 40 users" in caplog.text
    assert "1 item id (999) is not among the model's 30 items" in caplog.text
    assert "predicted 1 by the average user, 1 by the user's bias, 1 by the mean rating" in caplog.text
    with pytest.raises(InputError, match=r"1 user id \(888\) is not .* remove their 3 pairs, or predict them"):
        trained.predict_frame(pairs, unknown="error")


@pytest.mark.parametrize("solver", NAMES)
def test_an_unknown_item_is_predicted_by_the_bias_of_a_new_user(solver, trained_by):
    trained = trained_by(solver)
    high, low = (trained.fold_in_users(dict.fromkeys(range(1, 15), stars)) for stars in (5, 1))
    from_high, from_low = (
        float(new.predict_frame(pd.DataFrame({"user": ["you"], "item": [999]}))["prediction"].iloc[0])
        for new in (high, low)
    )
    assert from_high > from_low


def test_ids_are_accepted_as_numbers_and_as_text(trained_by):
    trained = trained_by("als")
    user, item = trained.dataset.user_ids[3], trained.dataset.item_ids[4]
    numbers = trained.predict_frame(pd.DataFrame({"user": [user], "item": [item]}), unknown="error")
    texts = trained.predict_frame(pd.DataFrame({"user": [str(user)], "item": [str(item)]}), unknown="error")
    assert numbers["prediction"].tolist() == texts["prediction"].tolist()


def test_pairs_keep_no_column_that_predictions_would_replace(trained_by):
    pairs = pd.DataFrame({"user": [1], "item": [1]})
    for column in ("prediction", "std"):
        with pytest.raises(InputError, match=f"pairs must not have a column '{column}'"):
            trained_by("als").predict_frame(pairs.assign(**{column: 0.0}))
    with pytest.raises(InputError, match=r"pairs must be a DataFrame with columns user and item \(got list\)"):
        trained_by("als").predict_frame([(1, 1)])
    with pytest.raises(InputError, match=r"^unknown must be 'mean' or 'error' \(got 'skip'\)$"):
        trained_by("als").predict_frame(pairs, unknown="skip")


@pytest.mark.parametrize("solver", ["vb", "gibbs"])
def test_standard_deviations_are_larger_for_unknown_users(solver, trained_by):
    trained = trained_by(solver)
    dataset, train = trained.dataset, trained.train
    pairs = pd.DataFrame({"user": dataset.user_ids[train.users], "item": dataset.item_ids[train.items]})
    # One pair may have a small variance by chance: ratings of some users and items are less noisy than those of others.
    means = [trained.predict_frame(frame)["std"].mean() for frame in (pairs, pairs.assign(user=888))]
    assert means[0] < means[1]
    (neither,) = trained.predict_frame(pd.DataFrame({"user": [888], "item": [999]}))["std"]
    assert neither == pytest.approx(float(train.values.double().std(correction=0)), abs=1e-5)


@pytest.mark.parametrize("solver", ["vb", "gibbs"])
def test_exploring_by_the_upper_end_ranks_by_mean_and_standard_deviation(solver, trained_by):
    trained = trained_by(solver)
    every = torch.ones(30, dtype=torch.bool)
    frame = trained.recommend(trained.dataset.user_ids[2], 99, candidates=every, explore="upper")
    items = torch.from_numpy(trained.dataset.item_ids.get_indexer(frame["id"]))
    users = torch.full_like(items, 2)
    upper = trained.model.predict(users, items) + Z_90 * trained.posterior.std(users, items, include_noise=False)
    assert upper.diff().max() <= 1e-5
    assert len(frame) == 30 - int(trained.dataset.ratings.user_counts[2])
    assert frame.attrs["ranked by"] == "the 95 % quantile of the expected rating"


@pytest.mark.parametrize("solver", ["vb", "gibbs"])
def test_thompson_sampling_draws_a_ranking_and_the_same_seed_draws_the_same(solver, trained_by):
    trained, user, every = trained_by(solver), 5, torch.ones(30, dtype=torch.bool)

    def ranking(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        frame = trained.recommend(user, 20, candidates=every, explore="thompson", generator=generator)
        return frame["id"].tolist()

    assert ranking(1) == ranking(1)
    assert len({tuple(ranking(seed)) for seed in range(6)}) > 2


def test_exploring_a_point_estimate_is_refused(trained_by):
    with pytest.raises(InputError, match="a point estimate has no standard deviations and no samples"):
        trained_by("als").recommend(1, explore="thompson")
    with pytest.raises(InputError, match="a point estimate has no standard deviations and no samples"):
        next(trained_by("als").recommend_blocks(explore="thompson"))
    with pytest.raises(InputError, match="unknown way to explore 'uper'; did you mean 'upper'"):
        trained_by("als").recommend(1, explore="uper")


def test_a_sampler_that_stopped_within_its_burn_in_predicts_and_explains_why_it_does_no_more(tiny):
    trained = train(tiny, "gibbs", epochs=1)
    frame = trained.predict_frame(pd.DataFrame({"user": [1], "item": [2]}))
    assert frame.columns.tolist() == ["user", "item", "prediction"]
    assert len(trained.recommend(1, 3)) == 3
    for call in (lambda: trained.fold_in_users({1: 5}), lambda: trained.recommend(1, explore="upper")):
        with pytest.raises(InputError, match="kept no samples: it stopped within its burn-in"):
            call()


def test_blocks_of_all_users_are_each_user_s_recommendations(trained_by):
    trained, every = trained_by("als"), torch.ones(30, dtype=torch.bool)
    frames = [frame for _, frame in trained.recommend_blocks(5, candidates=every, scores_held=97)]
    table = pd.concat(frames)
    assert len(frames) > 3
    for user in (1, 20, 40):
        alone = trained.recommend(user, 5, candidates=every)
        rows = table[table["user"] == user]
        assert rows["item"].tolist() == alone["id"].tolist()
        assert rows["rank"].tolist() == [1, 2, 3, 4, 5]
        assert rows["predicted"].to_numpy() == pytest.approx(alone["predicted"].to_numpy(), abs=1e-5)


def test_blocks_of_all_users_by_one_thompson_draw_show_the_mean_prediction(trained_by):
    trained, every = trained_by("gibbs"), torch.ones(30, dtype=torch.bool)

    def blocks(seed: int) -> pd.DataFrame:
        generator = torch.Generator().manual_seed(seed)
        frames = trained.recommend_blocks(5, candidates=every, explore="thompson", generator=generator)
        return pd.concat([frame for _, frame in frames])

    frame = blocks(0)
    users, items = (torch.from_numpy(ids.get_indexer(frame[column])) for ids, column in (
        (trained.dataset.user_ids, "user"), (trained.dataset.item_ids, "item")))  # fmt: skip
    expected = trained.model.predict(users, items, clip=True)
    assert frame["predicted"].to_numpy() == pytest.approx(expected.numpy(), abs=1e-5)
    assert frame["item"].tolist() != blocks(1)["item"].tolist()
    with pytest.raises(InputError, match=r"explore must be none or thompson for many users \(got upper\)"):
        next(trained.recommend_blocks(explore="upper"))


def test_new_items_are_recommended_to_trained_users(trained_by):
    trained = trained_by("als")
    by = pd.DataFrame({"user": trained.dataset.user_ids[[0, 1, 0]], "item": ["a", "a", "b"], "rating": [5.0, 4, 1]})
    new = trained.fold_in_items(by)
    every = torch.ones(2, dtype=torch.bool)
    assert new.recommend(trained.dataset.user_ids[5], candidates=every)["id"].tolist() == ["a", "b"]
    assert new.recommend(trained.dataset.user_ids[1], candidates=every)["id"].tolist() == ["b"]
    table = pd.concat([frame for _, frame in new.recommend_blocks(2, candidates=every)])
    assert len(table) == 40 * 2 - 3
    with pytest.raises(InputError, match="reasons exist only for items that were in training"):
        new.recommend(1, reasons=1)
    with pytest.raises(InputError, match=r"candidates must be a bool for each of 2 items \(got shape \(30,\)"):
        new.recommend(1, candidates=torch.ones(30, dtype=torch.bool))


def test_similar_items_of_a_model_with_new_users_are_those_of_the_trained_model(trained_by):
    trained = trained_by("als")
    folded, original = (
        pd.concat([frame for _, frame in model.similar_blocks(3)]) for model in (trained.fold_in_users({1: 5}), trained)
    )
    assert len(original)
    assert folded.equals(original)


def test_missing_ids_are_refused(trained_by):
    trained = trained_by("als")
    with pytest.raises(InputError, match=r"all pairs need an id in column 'user' \(1 of 2 have none\)"):
        trained.predict_frame(pd.DataFrame({"user": [1, None], "item": [1, 2]}))
    with pytest.raises(InputError, match=r"all ratings need an id in column 'item' \(1 of 2 have none\)"):
        trained.fold_in_users(pd.DataFrame({"item": [1, None], "rating": [4, 4]}))


def test_blocks_of_similar_items_leave_the_item_itself_out(trained_by):
    trained = trained_by("als")
    table = pd.concat([frame for _, frame in trained.similar_blocks(3, min_ratings=0, scores_held=31)])
    assert (table["item"] != table["similar"]).all()
    assert len(table) == 30 * 3
    assert set(table["rank"]) == {1, 2, 3}


def test_candidates_have_the_genres_and_years_and_are_not_excluded(trained_by):
    dataset = trained_by("als").dataset
    assert candidate_items(dataset, 0).all()
    years = dataset.items["year"]
    candidates = candidate_items(dataset, 0, years=(1990, 1999))
    assert candidates.tolist() == [bool(1990 <= year <= 1999) for year in years]
    assert candidate_items(dataset, 0, genres=["film-noir"]).all()
    assert int((~candidate_items(dataset, 0, exclude=["Film 1 (1981)", 2])).sum()) == 2
    counts = dataset.ratings.item_counts
    assert torch.equal(candidate_items(dataset, 20), counts >= 20)
    for message, options in (
        ("unknown genre 'dramma'; did you mean 'Drama'", {"genres": ["dramma"]}),
        (r"years must be the first year, then the last \(got 1999 1990\)", {"years": (1999, 1990)}),
        (r"did you mean 'Film 1 \(1981\)'", {"exclude": ["film 1 "]}),
    ):
        with pytest.raises(InputError, match=message):
            candidate_items(dataset, 0, **options)


def test_datasets_of_new_rows_share_the_trained_partners(trained_by):
    dataset = trained_by("als").dataset
    frame = pd.DataFrame({"user": ["x", "x", "y"], "item": [1, "Film 2 (1982)", "3"], "rating": [1, 2, 3]})
    users = new_users(dataset, frame, pd.DataFrame({"user": ["z", "x"], "age": [30, 20]}))
    assert users.user_ids.tolist() == ["x", "y", "z"]
    assert users.item_ids is dataset.item_ids
    assert users.ratings.user_counts.tolist() == [2, 1, 0]
    assert users.users["age"].tolist()[0] == 20
    again = new_users(dataset, pd.concat([frame, frame.assign(rating=5)]))
    assert again.ratings.values.tolist() == [5, 5, 5]
    items = new_items(dataset, pd.DataFrame({"user": dataset.user_ids[:2], "item": ["n", "n"], "rating": [4, 5]}))
    assert items.ratings.item_counts.tolist() == [2]
    assert items.ratings.n_users == 40


@pytest.mark.parametrize(("message", "ratings"), [
    ("range", {1: 7}),
    ("did you mean 'Film 1 \\(1981\\)'", {"Film 1": 4}),
    ("unknown item '777'", {777: 4}),
    ("nan", {1: float("nan")}),
    ("the ratings need a column 'rating'", pd.DataFrame({"item": [1]})),
])  # fmt: skip
def test_impossible_ratings_of_new_users_are_refused(message, ratings, trained_by):
    with pytest.raises(InputError, match=message):
        trained_by("als").fold_in_users(ratings)


def test_the_user_is_needed_if_there_are_several_and_new_items_need_trained_users(trained_by):
    with pytest.raises(InputError, match=r"^user must be the id of one of 40 users, e\.g\. .+ \(got None\)$"):
        trained_by("als").recommend()
    frame = pd.DataFrame({"user": [777], "item": ["n"], "rating": [4]})
    with pytest.raises(InputError, match="unknown user '777'"):
        trained_by("als").fold_in_items(frame)


def test_the_features_of_a_new_user_change_the_recommendations(tmp_path: Path):
    generator = np.random.default_rng(0)
    lines = [f"{user}\t{item}\t{5 if (user % 2) == (item % 2) else 1}\t9" for user in range(1, 31)
             for item in generator.permutation(range(1, 21))[:10]]  # fmt: skip
    (tmp_path / "u.data").write_text("\n".join(lines))
    (tmp_path / "u.user").write_text("\n".join(f"{u}|30|{'F' if u % 2 else 'M'}|writer|1" for u in range(1, 31)))
    trained, every = train(tmp_path, "als", user_features="gender", epochs=20), torch.ones(20, dtype=torch.bool)

    def preference_for_odd_items(gender: str) -> float:
        new = trained.fold_in_users({}, pd.DataFrame({"gender": [gender]}))
        assert new.recommend(n=3, candidates=every).attrs["ranked by"] == "predicted rating"
        scores = new.model.predict(torch.zeros(20, dtype=torch.long), torch.arange(20))
        return float(scores[::2].mean() - scores[1::2].mean())

    assert preference_for_odd_items("F") > 0.3
    assert preference_for_odd_items("M") < -0.3


@pytest.mark.parametrize("solver", NAMES)
def test_a_loaded_run_is_the_model_that_was_trained(solver, tiny, tmp_path):
    options = {"data": str(tiny), "run_dir": str(tmp_path), "rank": 3, "epochs": 6, "loggers": (), **OPTIONS[solver]}
    result = train_experiment(ExperimentConfig.create(solver, **options))
    trained, loaded = result.trained_model(), load_run(result.run.path)
    assert loaded.solver == solver
    assert torch.equal(loaded.split_labels, result.split_labels)
    assert loaded.dataset.item_ids.equals(result.dataset.item_ids)
    assert type(loaded.posterior) is type(trained.posterior)
    assert loaded.posterior.has_std == (solver != "als")
    assert len(loaded.train) == int((result.split_labels == TRAIN).sum())
    pairs = pd.DataFrame({"user": result.dataset.user_ids[:9], "item": [*result.dataset.item_ids[:8], 999]})
    assert loaded.predict_frame(pairs).equals(trained.predict_frame(pairs))

"""Recommender: scikit-learn can use it like its own estimators, and it trains as `train` does."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import torch

import mfrec
from mfrec.data.synthetic import synthetic
from mfrec.errors import InputError
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.training import train
from mfrec.solvers.registry import SOLVERS


@pytest.fixture(scope="module")
def dataset():
    return synthetic(40, 30, 600, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def frame(dataset) -> pd.DataFrame:
    r = dataset.ratings
    columns = {"user": dataset.user_ids[r.users.numpy()], "item": dataset.item_ids[r.items.numpy()]}
    return pd.DataFrame({**columns, "rating": r.values.numpy().astype(float)})


@pytest.mark.parametrize("solver", SOLVERS)
def test_it_predicts_what_train_does(solver, dataset, frame):
    options = {"rank": 3, "epochs": 4, "seed": 7} | ({"burn_in": 2} if solver == "gibbs" else {})
    model = mfrec.Recommender(solver, **options).fit(frame)
    valid_fraction = 0.0 if solver in ("vb", "gibbs") else 0.05
    everything = {"run_dir": None, "test_fraction": 0.0, "valid_fraction": valid_fraction}
    result = train(ExperimentConfig.create(solver, **everything, **options), dataset)
    expected = result.posterior.mean_model().predict_observed(dataset.ratings, clip=True)
    assert model.predict(frame) == pytest.approx(expected.numpy(), abs=1e-6)
    assert len(model.trained_.train) == round(600 * (1 - valid_fraction))


def test_it_writes_nothing(frame, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mfrec.Recommender("als", rank=2, epochs=2).fit(frame)
    assert not list(tmp_path.iterdir())


def test_it_clones_sets_and_gets_its_parameters_and_pickles(frame):
    base = pytest.importorskip("sklearn.base", reason="scikit-learn is not installed")
    model = mfrec.Recommender("als", rank=3, epochs=3, relaxation=0.7)
    twin = base.clone(model)
    assert twin.get_params() == model.get_params()
    assert not hasattr(twin, "trained_")
    assert repr(model) == "Recommender(solver='als', rank=3, epochs=3, relaxation=0.7)"
    assert repr(mfrec.Recommender(user="who")) == "Recommender(user='who')"
    assert twin.set_params(rank=5, seed=1).get_params() == model.get_params() | {"rank": 5, "seed": 1}
    fitted = model.fit(frame)
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.predict(frame), fitted.predict(frame))
    assert again.recommend(frame["user"][0], 3).equals(fitted.recommend(frame["user"][0], 3))


@pytest.mark.parametrize("solver", ["vb", "gibbs"])
def test_a_posterior_pickles_too(solver, frame):
    options = {"burn_in": 1, "implicit": "both"} if solver == "gibbs" else {}
    model = mfrec.Recommender(solver, rank=2, epochs=3, **options).fit(frame)
    again = pickle.loads(pickle.dumps(model))
    user = frame["user"][0]
    assert again.recommend(user, 3)["std"].equals(model.recommend(user, 3)["std"])


def test_it_can_be_searched_and_cross_validated(frame):
    selection = pytest.importorskip("sklearn.model_selection", reason="scikit-learn is not installed")
    model = mfrec.Recommender("vb", epochs=4)
    scores = selection.cross_val_score(model, frame, frame["rating"], cv=selection.KFold(3, shuffle=True))
    assert (scores < 0).all()
    search = selection.GridSearchCV(model, {"rank": np.array([1, 3])}, cv=selection.KFold(3, shuffle=True)).fit(frame)
    assert search.best_params_["rank"] in (1, 3)
    assert search.best_estimator_.trained_.model.rank == search.best_params_["rank"]


def test_the_score_is_the_negative_rmse_and_ratings_may_be_passed_as_y(frame):
    model = mfrec.Recommender("vb", rank=2).fit(frame[["user", "item"]], frame["rating"])
    errors = model.predict(frame) - frame["rating"].to_numpy()
    assert model.score(frame) == pytest.approx(-np.sqrt((errors**2).mean()))
    assert model.score(frame[["user", "item"]], frame["rating"]) == model.score(frame)


def test_ratings_are_fitted_by_their_indices_and_datasets_by_their_ids(dataset):
    by_index = mfrec.Recommender("vb", rank=2).fit(dataset.ratings)
    by_id = mfrec.Recommender("vb", rank=2).fit(dataset)
    pairs = pd.DataFrame({"user": [3, 4], "item": [5, 6]})
    ids = pd.DataFrame({"user": dataset.user_ids[[3, 4]], "item": dataset.item_ids[[5, 6]]})
    assert by_index.predict(pairs) == pytest.approx(by_id.predict(ids))


def test_other_column_names_are_set_once(frame):
    renamed = frame.rename(columns={"user": "who", "item": "what", "rating": "stars"})
    model = mfrec.Recommender("vb", rank=2, user="who", item="what", rating="stars").fit(renamed)
    assert np.array_equal(model.predict(renamed), mfrec.Recommender("vb", rank=2).fit(frame).predict(frame))


def test_a_fraction_is_held_out_for_early_stopping(frame):
    model = mfrec.Recommender("als", rank=4, l2=0.01, epochs=30, patience=1, valid_fraction=0.2).fit(frame)
    assert len(model.trained_.train) == 480
    assert 0 < model.progress_.best_epoch < model.progress_.epoch < 30


def test_a_metric_is_monitored_and_all_ratings_are_used_with_refit(frame):
    options = {"rank": 2, "epochs": 5, "valid_fraction": 0.2, "monitor": "mae"}
    model = mfrec.Recommender("als", **options).fit(frame)
    refitted = mfrec.Recommender("als", **options, refit=True).fit(frame)
    assert (
        model.progress_.best_value
        < mfrec.Recommender("als", **options | {"monitor": "rmse"}).fit(frame).progress_.best_value
    )
    assert (len(model.trained_.train), len(refitted.trained_.train)) == (480, 600)


@pytest.mark.parametrize(("message", "options"), [
    ("unknown solver 'alss'; did you mean 'als'", {"solver": "alss"}),
    ("unknown option 'rnk' in the options of als; did you mean 'rank'", {"solver": "als", "rnk": 3}),
    ("l2 cannot be set for vb, which learns it", {"solver": "vb", "l2": 3.0}),
    ("unknown option 'lr' in the options of als", {"solver": "als", "lr": 0.1}),
    ("unknown option 'run_dir' in the options of als", {"solver": "als", "run_dir": "runs"}),
    ("unknown option 'test_fraction' in the options of als", {"solver": "als", "test_fraction": 0.1}),
    ("unknown option 'usr' in the options of als; did you mean 'user'", {"solver": "als", "usr": "who"}),
    ("rank in the options must be int", {"solver": "als", "rank": "many"}),
])  # fmt: skip
def test_unknown_options_are_refused_by_the_constructor(message, options):
    with pytest.raises(InputError, match=message):
        mfrec.Recommender(**options)


def test_a_refused_change_changes_nothing():
    model = mfrec.Recommender("als", rank=3)
    with pytest.raises(InputError):
        model.set_params(rank=5, lr=3)
    assert model.get_params()["rank"] == 3


@pytest.mark.parametrize(("message", "options"), [
    (r"rank must be at least 1 \(got 0\)", {"rank": 0}),
    ("unknown metric to monitor 'rmsee'", {"monitor": "rmsee"}),
    (r"valid_fraction must be in \[0, 1\) \(got 1\)", {"valid_fraction": 1.0}),
])  # fmt: skip
def test_options_out_of_range_are_refused_by_fit(message, options, frame):
    with pytest.raises(InputError, match=message):
        mfrec.Recommender("als", **options).fit(frame)


def test_other_types_of_ratings_are_refused():
    with pytest.raises(InputError, match=r"X must be a DataFrame, Ratings or Dataset \(got list\)"):
        mfrec.Recommender("als").fit([("ann", "Emma", 5)])


def test_predicting_before_fitting_is_refused(frame):
    with pytest.raises(InputError, match="call fit"):
        mfrec.Recommender().predict(frame)


def test_the_package_has_its_public_names_and_no_others():
    assert {"Recommender", "load_run", "train"} <= set(mfrec.__all__)
    assert all(getattr(mfrec, name) is not None for name in mfrec.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = mfrec.nothing

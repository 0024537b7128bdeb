"""Recommender: what scikit-learn does with an estimator, it can do with this one; and it is the fit of the package."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import torch

import mfrec
from mfrec.data.loading import synthetic
from mfrec.errors import InputError
from mfrec.experiments.loop import answer, fit
from mfrec.experiments.training import make_solver
from mfrec.solvers.base import SOLVERS


@pytest.fixture(scope="module")
def dataset():
    return synthetic(40, 30, 600, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def frame(dataset) -> pd.DataFrame:
    r = dataset.ratings
    columns = {"user": dataset.user_ids[r.users.numpy()], "item": dataset.item_ids[r.items.numpy()]}
    return pd.DataFrame({**columns, "rating": r.values.numpy().astype(float)})


@pytest.mark.parametrize("solver", SOLVERS)
def test_it_predicts_what_the_solver_s_own_fit_does(solver, dataset, frame):
    options = {"rank": 3} | ({"burn_in": 2} if solver == "gibbs" else {})
    model = mfrec.Recommender(solver, epochs=4, valid_fraction=0.0, seed=7, **options).fit(frame)
    generator = torch.Generator().manual_seed(7)
    torch.randperm(len(dataset.ratings), generator=generator)  # what drawing an empty validation part takes
    defaults = {k: v for k, v in SOLVERS[solver].defaults.items() if k in ("l2", "bias_l2", "scaling")}
    own = make_solver(solver, dataset, dataset.ratings, generator=generator, **(defaults | options))
    fit(own, epochs=4)
    expected = answer(own).predict_observed(dataset.ratings, clip=True)
    assert model.predict(frame) == pytest.approx(expected.numpy(), abs=1e-6)


def test_it_clones_sets_and_gets_its_parameters_and_pickles(frame):
    base = pytest.importorskip("sklearn.base", reason="scikit-learn is not installed")
    model = mfrec.Recommender("als", rank=3, epochs=3, relaxation=0.7)
    twin = base.clone(model)
    assert twin.get_params() == model.get_params()
    assert not hasattr(twin, "trained_")
    assert repr(model) == "Recommender(solver='als', epochs=3, rank=3, relaxation=0.7)"
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
    assert again.recommend(user, 3)["deviation"].equals(model.recommend(user, 3)["deviation"])


def test_it_can_be_searched_and_cross_validated(frame):
    selection = pytest.importorskip("sklearn.model_selection", reason="scikit-learn is not installed")
    model = mfrec.Recommender("vb", epochs=4)
    scores = selection.cross_val_score(model, frame, frame["rating"], cv=selection.KFold(3, shuffle=True))
    assert (scores < 0).all()
    search = selection.GridSearchCV(model, {"rank": [1, 3]}, cv=selection.KFold(3, shuffle=True)).fit(frame)
    assert search.best_params_["rank"] in (1, 3)


def test_the_score_is_the_negative_rmse_and_ratings_may_be_given_apart(frame):
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


def test_columns_of_other_names_are_told_once(frame):
    renamed = frame.rename(columns={"user": "who", "item": "what", "rating": "stars"})
    model = mfrec.Recommender("vb", rank=2, user="who", item="what", rating="stars").fit(renamed)
    assert np.array_equal(model.predict(renamed), mfrec.Recommender("vb", rank=2).fit(frame).predict(frame))


def test_an_early_stop_withholds_a_share_for_validation(frame):
    model = mfrec.Recommender("als", rank=2, epochs=30, patience=1, valid_fraction=0.2).fit(frame)
    assert len(model.trained_.train) == 480
    assert 0 < model.progress_.best_epoch <= 30


@pytest.mark.parametrize(("message", "options"), [
    ("unknown solver 'alss'; did you mean 'als'", {"solver": "alss"}),
    ("unknown option of als 'rnk'; did you mean 'rank'", {"solver": "als", "rnk": 3}),
    ("vb needs no l2: it finds that out by itself", {"solver": "vb", "l2": 3.0}),
    ("unknown option of als 'lr'", {"solver": "als", "lr": 0.1}),
])  # fmt: skip
def test_an_option_that_is_not_there_is_refused_when_it_is_given(message, options):
    with pytest.raises(InputError, match=message):
        mfrec.Recommender(**options)


def test_a_refused_change_changes_nothing():
    model = mfrec.Recommender("als", rank=3)
    with pytest.raises(InputError):
        model.set_params(rank=5, lr=3)
    assert model.get_params()["rank"] == 3


def test_asking_before_fitting_is_refused(frame):
    with pytest.raises(InputError, match="call fit"):
        mfrec.Recommender().predict(frame)


def test_mfrec_has_what_it_says_and_nothing_else():
    assert mfrec.Recommender.__name__ == "Recommender"
    with pytest.raises(AttributeError, match="nothing"):
        _ = mfrec.nothing

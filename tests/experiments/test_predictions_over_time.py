"""Held-out ratings of the future: new users are average, and recent biases reach every answer of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mfrec.data.dataset import Dataset
from mfrec.errors import OptionError
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.run import load_run
from mfrec.experiments.training import TrainingResult, train
from mfrec.posteriors.predictive import predictive_model, recent_biases

OPTIONS = {"vb": {}, "als": {"valid_fraction": 0.1}, "gibbs": {"burn_in": 2, "implicit": "both"}}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """20 users with 12 of 15 items each: user 1 in the first hour, user 2 in the second, and so on."""
    generator = np.random.default_rng(0)
    rows = [
        (user, item, generator.integers(1, 6), 3600 * user + 60 * n)
        for user in range(1, 21)
        for n, item in enumerate(generator.permutation(15)[:12])
    ]
    frame = pd.DataFrame(rows, columns=["user", "item", "rating", "timestamp"])
    return Dataset.from_frame(frame, timestamp="timestamp", rating_range=(1, 5))


def trained(dataset: Dataset, solver: str, run_dir: Path | None = None, **options: object) -> TrainingResult:
    place = {"run_dir": None if run_dir is None else str(run_dir), "name": "run", "loggers": ()}
    config = ExperimentConfig.create(solver, rank=2, epochs=8, **OPTIONS[solver], **place)
    return train(config.updated(**options), dataset)


@pytest.mark.parametrize("solver", OPTIONS)
def test_new_users_of_a_split_by_time_are_average_in_the_metrics_and_in_the_loaded_run(
    solver: str, dataset: Dataset, tmp_path: Path
) -> None:
    result = trained(dataset, solver, tmp_path, split="time")
    assert result.metrics is not None
    test, rated = result.splits["test"], result.splits["train"].user_counts > 0
    assert set(test.users[~rated[test.users.long()]].tolist()) == {18, 19}
    mean = result.posterior.mean_model()
    users = rated.nonzero()[:, 0]
    expected = torch.stack([mean.predict(users, torch.full_like(users, int(item))).mean() for item in test.items])
    cold = ~rated[test.users.long()]
    model = result.predictive.mean_model()
    torch.testing.assert_close(model.predict_observed(test)[cold], expected[cold], atol=1e-5, rtol=0)
    loaded = load_run(tmp_path / "run")
    torch.testing.assert_close(loaded.model.predict_observed(test), model.predict_observed(test))
    errors = model.predict_observed(test, clip=True) - test.values
    assert result.metrics["test"]["rmse"] == pytest.approx(float(errors.double().square().mean().sqrt()))
    pairs = pd.DataFrame({"user": [19, 99], "item": 3})
    trained_user, unknown_user = loaded.predict_frame(pairs)["prediction"]
    assert trained_user == pytest.approx(unknown_user, abs=1e-5)


@pytest.mark.parametrize("solver", OPTIONS)
def test_recent_biases_are_in_the_metrics_and_in_the_answers_of_the_loaded_run(
    solver: str, dataset: Dataset, tmp_path: Path
) -> None:
    options = {"split": "per-user-time", "test_fraction": 0.2}
    plain = trained(dataset, solver, **options)
    result = trained(dataset, solver, tmp_path, recent_bias=4, **options)
    assert plain.metrics is not None
    assert result.metrics is not None
    assert result.metrics["train"] == plain.metrics["train"]
    test = result.splits["test"]
    shift = recent_biases(plain.posterior.mean_model(), plain.splits["train"], 4)
    shifted = plain.posterior.mean_model().predict_observed(test) + shift[test.users.long()]
    loaded = load_run(tmp_path / "run")
    torch.testing.assert_close(loaded.model.predict_observed(test), shifted, atol=1e-5, rtol=0)
    errors = plain.solver.model.clip(shifted) - test.values
    assert result.metrics["test"]["rmse"] == pytest.approx(float(errors.double().square().mean().sqrt()), abs=1e-6)
    pairs = pd.DataFrame({"user": [5, 5], "item": [2, 999]})
    before, after = (model.predict_frame(pairs)["prediction"] for model in (plain.trained_model(), loaded))
    assert (after - before).tolist() == pytest.approx([float(shift[4])] * 2, abs=1e-4)


def test_validation_uses_recent_biases_in_every_epoch(dataset: Dataset) -> None:
    result = trained(dataset, "als", split="per-user-time", recent_bias=4, patience=100)
    assert result.metrics is not None
    assert result.metrics["valid"]["rmse"] == result.progress.best_value
    valid, train_ratings = result.splits["valid"], result.splits["train"]
    model = predictive_model(result.posterior, train_ratings, 4)
    errors = model.predict_observed(valid, clip=True) - valid.values
    assert result.progress.best_value == pytest.approx(float(errors.double().square().mean().sqrt()))


def test_new_users_with_times_have_recent_biases_and_those_without_have_none(dataset: Dataset) -> None:
    plain, recent = (trained(dataset, "vb", recent_bias=h).trained_model() for h in (0, 4))
    ratings = pd.DataFrame({"item": [1, 2, 3, 4], "rating": [1, 1, 5, 5]})
    pairs = pd.DataFrame({"user": ["you"], "item": [7]})

    def predicted(model, **columns: object) -> float:
        return float(model.fold_in_users(ratings.assign(**columns)).predict_frame(pairs)["prediction"].iloc[0])

    assert predicted(recent) == predicted(plain)
    rising, falling = (predicted(recent, timestamp=times) for times in ([0, 1, 2, 3], [3, 2, 1, 0]))
    assert falling < predicted(plain) < rising


@pytest.mark.parametrize(
    ("solver", "options", "message"),
    [
        ("als", {"biases": False}, "recent_bias needs a model with biases; turn biases on"),
        ("gibbs", {"likelihood": "ordinal"}, "recent_bias needs a likelihood of ratings; make it gaussian"),
        ("als", {"recent_bias": -1}, "recent_bias must be"),
    ],
)
def test_recent_biases_are_refused_where_they_cannot_be(
    solver: str, options: dict[str, object], message: str, dataset: Dataset
) -> None:
    with pytest.raises(OptionError, match=message):
        trained(dataset, solver, **{"recent_bias": 4, **options})


def test_recent_biases_need_timestamps(dataset: Dataset) -> None:
    frame = pd.DataFrame({"user": [1, 1, 2, 2], "item": [1, 2, 1, 2], "rating": [1, 2, 3, 4]})
    with pytest.raises(OptionError, match="recent_bias needs timestamps, which these ratings lack; leave it out"):
        trained(Dataset.from_frame(frame), "als", recent_bias=4, test_fraction=0.25, valid_fraction=0.0)

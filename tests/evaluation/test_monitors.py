"""Monitored metrics: which names there are, which values are better, and their values on a validation set."""

import math

import pytest
import torch

from mfrec.data.ratings import Ratings
from mfrec.data.splits import random_split
from mfrec.data.synthetic import synthetic
from mfrec.errors import InputError
from mfrec.evaluation.metrics import METRICS, Metric, evaluate
from mfrec.evaluation.monitors import monitor
from mfrec.evaluation.ranking import evaluate_ranking
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective


@pytest.fixture(scope="module")
def trained() -> tuple[MatrixFactorization, Ratings, Ratings]:
    """A model, its training and its validation ratings from 1 to 5."""
    generator = torch.Generator().manual_seed(0)
    ratings = synthetic(80, 60, 1600, generator=generator, rounded=True).ratings
    train, valid = ratings.split(random_split(ratings, 0.2, generator))
    model = MatrixFactorization.from_ratings(train, 3, rating_range=(1.0, 5.0), generator=generator)
    return model, train, valid


@pytest.mark.parametrize("name", ["rmse", "mae"])
def test_an_error_metric_is_the_one_that_was_measured(trained, name):
    model, train, valid = trained
    monitored, measured = monitor(name), evaluate(model, valid, Objective())
    assert monitored.value(model, train, valid, measured) == measured[name]
    assert (monitored.name, monitored.label) == (name, name.upper())
    assert monitored.is_better(0.8, 0.9)
    assert not monitored.is_better(0.9, 0.9)
    assert not monitored.is_better(math.nan, 1e9)


@pytest.mark.parametrize("name", ["ndcg@10", "precision@5", "recall@20", "map@10", "mrr@10", "hit_rate@1", "ndcg@999"])
def test_a_ranking_metric_is_the_mean_over_users_with_relevant_ratings(trained, name):
    model, train, valid = trained
    monitored = monitor(name)
    metric, _, n = name.partition("@")
    report = evaluate_ranking(model, train, valid, 4.0, int(n))
    assert monitored.value(model, train, valid, {}) == pytest.approx(report.means[metric], rel=1e-12)
    assert report.means[metric] > 0
    assert monitored.is_better(0.3, 0.2)
    assert not monitored.is_better(0.2, 0.2)
    assert not monitored.is_better(math.nan, 0.0)


def test_a_metric_added_to_the_table_can_be_monitored(monkeypatch):
    monkeypatch.setitem(METRICS, "within_half", Metric("within ½", lambda predictions, ratings: 0.0, True, ".1%"))
    monitored = monitor("within_half")
    assert (monitored.label, monitored.higher_is_better, monitored.format) == ("within ½", True, ".1%")


@pytest.mark.parametrize(("name", "message"), [
    ("rsme", "unknown metric to monitor 'rsme'; did you mean 'rmse'"),
    ("ndcg", "unknown metric to monitor 'ndcg'; did you mean 'ndcg@10'"),
    ("ndgc@20", "unknown metric to monitor 'ndgc@20'; did you mean 'ndcg@20'"),
    ("ndcg@ten", "unknown metric to monitor 'ndcg@ten'; did you mean 'ndcg@10'"),
    ("ndcg@0", r"lists of ndcg@N must have at least 1 item \(got ndcg@0\)"),
    ("ndcg@" + "9" * 5000, "unknown metric to monitor"),
    ("rmse@10", "unknown metric to monitor 'rmse@10'"),
    ("", "unknown metric to monitor ''; choose from rmse, mae, precision@10"),
])  # fmt: skip
def test_unknown_names_are_refused_with_a_suggestion(name, message):
    with pytest.raises(InputError, match=message):
        monitor(name)


def test_a_ranking_monitor_without_relevant_ratings_is_refused(trained):
    model, train, valid = trained
    low = valid.select(valid.values < 4)
    with pytest.raises(InputError, match=r"at least one held-out rating must be 4 or more .*the highest is 3"):
        monitor("ndcg@10").value(model, train, low, {})

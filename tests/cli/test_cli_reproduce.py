"""`mfrec reproduce`: the ledger is listed, and an entry is measured as its command says."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from cli_checks import assert_refused
from conftest import Cli

from mfrec.data.loading import load_dataset
from mfrec.data.splits import TEST
from mfrec.errors import InputError
from mfrec.evaluation.metrics import rmse
from mfrec.experiments import ledger
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.ledger import LEDGER, TASKS, Entry, Task, Training, entry_named, reproduce
from mfrec.experiments.training import train
from mfrec.solvers.registry import SOLVERS

SHORT = Training("vb", {"rank": 2, "epochs": 2})
SECOND = Training("als", {"rank": 3, "epochs": 2})


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an entry that takes a moment: two short trainings, with two seeds."""
    repeats = tuple({"split": "random", "seed": seed} for seed in (0, 1))
    monkeypatch.setitem(TASKS, "short", Task("ml-latest-small", repeats, "random 90/10, seeds 0 and 1"))
    monkeypatch.setitem(LEDGER, "short/both", Entry("short", (SHORT, SECOND)))
    return "short/both"


def test_every_entry_of_the_ledger_can_be_configured():
    for entry in LEDGER.values():
        for training in entry.trainings:
            for repeat in TASKS[entry.task].repeats:
                config = ExperimentConfig.create(training.solver, **training.options, **repeat)
                config.check()
                assert training.solver in SOLVERS


def test_the_ledger_is_listed(cli: Cli):
    output = cli("reproduce")
    assert output.status == 0
    assert all(name in output.out for name in LEDGER)
    rows = json.loads(cli("reproduce", "--json").out)
    assert [row["name"] for row in rows] == list(LEDGER)


def test_an_entry_is_the_error_of_its_averaged_predictions(short: str):
    measured = reproduce(entry_named(short), load_dataset("ml-latest-small"))
    for seed, measurement in enumerate(measured):
        predictions = []
        for training in (SHORT, SECOND):
            config = ExperimentConfig.create(training.solver, **training.options, seed=seed, run_dir=None)
            result = train(config)
            test = result.splits["test"]
            predictions.append(result.posterior.mean_model().predict_observed(test, clip=True))
        assert measurement.rmse == pytest.approx(rmse(torch.stack(predictions).mean(0), test.values), rel=1e-6)


def test_the_command_prints_each_test_set_and_the_mean(cli: Cli, short: str):
    result = json.loads(cli("reproduce", short, "--json").out)
    errors = [row["rmse"] for row in result["test_sets"]]
    assert len(errors) == 2
    assert result["rmse"] == pytest.approx(sum(errors) / 2)
    output = cli("reproduce", short, "--first", "1")
    assert "mfrec train vb --rank 2 --epochs 2" in output.out
    assert f"test RMSE {errors[0]:.4f}" in output.out


def test_trainings_in_common_are_not_repeated(short: str, monkeypatch: pytest.MonkeyPatch):
    trained: dict[str, ledger.Predictions] = {}
    dataset = load_dataset("ml-latest-small")
    first = reproduce(entry_named(short), dataset, trained=trained)
    monkeypatch.setattr(ledger, "train", lambda *_: pytest.fail("trains again"))
    assert reproduce(entry_named(short), dataset, trained=trained) == first


def test_an_unknown_entry_and_missing_data_are_refused(cli: Cli):
    assert_refused(cli("reproduce", "ml-100k/gibbs"), "unknown entry")
    assert_refused(cli("reproduce", "netflix/gibbs"), "--data must be the path")
    assert_refused(cli("reproduce", "ml-latest-small/gibbs", "--first", "0"), "--first must be at least 1")
    with pytest.raises(InputError, match="did you mean"):
        entry_named("ml-1m/gibs")


def test_the_first_fold_is_that_of_scikit_learn():
    from sklearn.model_selection import KFold

    dataset = load_dataset("ml-latest-small")
    folded = ledger._with_first_fold(dataset, "ml-latest-small")
    _, rows = next(KFold(10, shuffle=True, random_state=0).split(np.arange(len(dataset.ratings))))
    assert int((folded.split_labels == TEST).sum()) == len(rows)
    # The embedded file is sorted by user, then item, as the ratings are.
    assert np.array_equal(np.flatnonzero((folded.split_labels == TEST).numpy()), np.sort(rows))
    assert dataclasses.replace(folded, split_labels=None).ratings is dataset.ratings

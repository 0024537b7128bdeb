"""`mfrec cv`: every rating is tested once, each fold is a run, and the mean is over the folds."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_checks import answer, assert_refused
from conftest import Cli

from mfrec.data.splits import TEST
from mfrec.experiments.run import Run

FAST = ("--rank", 2, "--epochs", 2, "--log-every", 0)


@pytest.fixture(scope="module")
def validated(cli: Cli, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON of three folds."""
    place = ("--data", tiny, "--run-dir", tmp_path_factory.mktemp("runs"), "--seed", 3)
    return answer(cli("cv", "als", "--folds", 3, *FAST, *place, "--json"))


def test_every_rating_is_in_one_test_set(validated: dict[str, Any]) -> None:
    tests = [Run.open(Path(validated["runs"]) / f"fold-{n}-of-3").dataset()[1] == TEST for n in (1, 2, 3)]
    assert torch.equal(sum(test.int() for test in tests), torch.ones(600, dtype=torch.int32))
    assert [int(test.sum()) for test in tests] == [200, 200, 200]


@pytest.mark.parametrize("metric", ["rmse", "mae"])
def test_the_mean_and_the_std_are_over_the_runs(metric: str, validated: dict[str, Any]) -> None:
    folder = Path(validated["runs"])
    values = [Run.open(folder / f"fold-{n}-of-3").metrics()["test"][metric] for n in (1, 2, 3)]
    assert [fold[metric] for fold in validated["folds"]] == pytest.approx(values, abs=1e-14)
    expected = {"mean": statistics.mean(values), "std": statistics.stdev(values)}
    assert validated[metric] == pytest.approx(expected, abs=1e-14)
    assert validated["seed"] == 3


def test_a_fold_is_a_training_on_that_split(validated: dict[str, Any], cli: Cli, tiny: Path, tmp_path: Path) -> None:
    place = ("--data", tiny, "--seed", 3, "--split", "fold-2-of-3", "--run-dir", tmp_path, "--name", "again")
    again = answer(cli("train", "als", *FAST, *place, "--json"))
    assert again["test"] == Run.open(Path(validated["runs"]) / "fold-2-of-3").metrics()["test"]


def test_the_folds_are_listed_with_the_mean_and_the_std(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    output = cli("cv", "vb", "--folds", 2, *FAST, "--data", tiny, "--run-dir", tmp_path, "--name", "mine")
    assert (output.status, output.err) == (0, "")
    errors = re.findall(r"^ +fold-\d-of-2 +(\d\.\d{4}) +(\d\.\d{4}) ", output.out, re.MULTILINE)
    assert len(errors) == 2
    for label in ("RMSE", "MAE"):
        assert re.search(rf"^{label} +\d\.\d{{4}} ± \d\.\d{{4}} \(mean ± std over 2 folds\)$", output.out, re.MULTILINE)
    assert f"tensorboard --logdir {tmp_path / 'mine'}" in output.out
    assert len(answer(cli("runs", tmp_path / "mine", "--json"))) == 2


def test_official_splits_are_folds(cli: Cli, tmp_path: Path, shared_data: Path) -> None:
    place = ("--data", shared_data / "ml-100k", "--run-dir", tmp_path, "--name", "official")
    result = answer(
        cli("cv", "als", "--split", "u1..u2", "--rank", 2, "--epochs", 1, "--log-every", 0, *place, "--json")
    )
    assert [fold["fold"] for fold in result["folds"]] == ["u1", "u2"]


def test_a_config_file_gives_the_options_of_the_folds(validated: dict[str, Any], cli: Cli, tmp_path: Path) -> None:
    config = Path(validated["runs"]) / "fold-1-of-3" / "config.json"
    again = answer(cli("cv", "--config", config, "--folds", 3, "--run-dir", tmp_path, "--json"))
    assert [fold["rmse"] for fold in again["folds"]] == [fold["rmse"] for fold in validated["folds"]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--folds", 1), "--folds must be in [2, 10000] (got 1)"),
        (("--folds", 3, "--split", "u1..u5"), "--folds and --split cannot be combined; give one of them"),
        (("--split", "random"), "--split must name several splits, such as u1..u5 (got random)"),
        (("--split", "u1..u5"), "no official split 'u1'"),
        (("--split", "u5..u1"), "--split must name several splits"),
        (("--split", "u1,u1"), "--split must name at least two different splits"),
        (("--test-fraction", 0.2), "--test-fraction cannot be used with cv: each fold is the test set"),
        (("--test-fraction", 0.1), "--test-fraction cannot be used with cv: each fold is the test set"),
        (("--test-data", "x.csv"), "--test-data cannot be used with cv: each fold is the test set"),
        (("als", "--folds", 1000), "(got 1000)"),
        (("als", "--rank", 0), "--rank must be at least 1 (got 0)"),
    ],
    ids=str,
)
def test_an_impossible_cross_validation_is_refused_and_leaves_nothing(
    arguments: tuple[object, ...], words: str, cli: Cli, tiny: Path, tmp_path: Path
) -> None:
    assert_refused(cli("cv", *arguments, "--data", tiny, "--run-dir", tmp_path), words)
    assert not list(tmp_path.iterdir())

"""`mfrec tune`: its options, what it prints, and its exit status; `tests/experiments` has the studies themselves."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_checks import answer, assert_refused
from conftest import Cli

from mfrec.experiments.run import Run
from mfrec.solvers.base import SearchRange
from mfrec.solvers.registry import SOLVERS

FAST = ("--epochs", 15, "--patience", 100, "--log-every", 0)


@pytest.fixture(scope="module")
def tuned(cli: Cli, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON of a study of three trials of als with a fixed rank."""
    place = ("--data", tiny, "--run-dir", tmp_path_factory.mktemp("runs"), "--name", "study")
    return answer(cli("tune", "als", "--trials", 3, "--rank", 4, *FAST, *place, "--json"))


def test_an_option_on_the_command_line_is_not_searched(tuned: dict[str, Any]) -> None:
    space = SOLVERS["als"].search_space
    assert len(tuned["trials"]) == 3
    for trial in tuned["trials"]:
        assert set(space) & set(trial) == set(space) - {"rank"}
        assert Run.open(Path(tuned["study"]) / f"trial-{trial['trial']}").config().model.rank == 4


@pytest.mark.parametrize("options", [("--relaxation", 0.5), ("--relaxation=0.5",)], ids=str)
def test_an_option_with_its_default_value_is_not_searched_either(
    options: tuple[object, ...], cli: Cli, tiny: Path, tmp_path: Path
) -> None:
    place = ("--data", tiny, "--run-dir", tmp_path, *FAST, "--trials", 2)
    study = answer(cli("tune", "als", *place, *options, "--json"))
    assert set(SOLVERS["als"].search_space) & set(study["trials"][0]) == {"l2", "rank"}


def test_the_options_of_a_config_file_are_searched_from_there(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"solver": "als", "model": {"rank": 9}, "objective": {"l2": 2.5}}))
    place = ("--data", tiny, "--run-dir", tmp_path / "runs", *FAST, "--trials", 1)
    (trial,) = answer(cli("tune", "--config", config, *place, "--json"))["trials"]
    assert (trial["rank"], trial["l2"]) == (9, 2.5)


def test_the_json_of_a_study_is_alone_on_stdout(tuned: dict[str, Any]) -> None:
    assert set(tuned) == {"study", "trials", "best", "valid_rmse", "run", "test"}
    errors = [trial["valid RMSE"] for trial in tuned["trials"]]
    assert errors == sorted(errors)
    assert tuned["valid_rmse"] == min(errors)
    assert tuned["test"] == Run.open(tuned["run"]).metrics()["test"]


def test_a_study_prints_its_trials_the_best_options_and_the_test_split_once(
    cli: Cli, tiny: Path, tmp_path: Path
) -> None:
    output = cli("tune", "vb", "--trials", 3, "--data", tiny, "--run-dir", tmp_path, "--name", "mine", *FAST)
    assert (output.status, output.err) == (0, "")
    assert re.match(r"trial 0   valid RMSE \d\.\d{4}  rank 14  the best so far$", output.out.splitlines()[0])
    assert "the best 3 of 3 trials" in output.out
    assert re.search(r"^best options  --rank \d+$", output.out, re.MULTILINE)
    assert output.out.count("test split") == 1
    test = r"^test split +RMSE \d\.\d{4}, MAE \d\.\d{4}, after \d+ epochs on the train and validation splits$"
    assert re.search(test, output.out, re.MULTILINE)
    assert f"tensorboard --logdir {tmp_path / 'mine'}" in output.out
    rows = answer(cli("runs", tmp_path / "mine", "--json"))
    assert {row["run"] for row in rows} >= {"trial-0", "trial-1", "trial-2"}
    assert sum(row["test RMSE"] is not None for row in rows) == 1


def test_a_study_is_tuned_by_the_monitored_metric(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    options = ("--monitor", "ndcg@5", "--valid-fraction", 0.3, "--trials", 3, *FAST)
    study = answer(cli("tune", "als", *options, "--data", tiny, "--run-dir", tmp_path, "--json"))
    values = [trial["valid NDCG@5"] for trial in study["trials"]]
    assert values == sorted(values, reverse=True)
    assert study["valid_ndcg@5"] == max(values)


def test_a_study_is_resumed_with_its_own_options(tuned: dict[str, Any], cli: Cli) -> None:
    again = answer(cli("tune", "--resume", tuned["study"], "--json"))
    assert again["trials"] == tuned["trials"]
    assert again["test"] == tuned["test"]
    folder = tuned["study"]
    for option, words in (
        (("--rank", 3), "--rank cannot be used with --resume: a study keeps its options"),
        (("--rank", 4), "--rank cannot be used with --resume: a study keeps its options"),
        (("--config", "x.json"), "--config cannot be used with --resume"),
        (("--trials", 0), "--trials must be at least 1 (got 0)"),
    ):
        assert_refused(cli("tune", "--resume", folder, *option), words)
    assert_refused(cli("tune", "sgd", "--resume", folder), "tunes als, not sgd; leave sgd out")


def test_no_trial_is_started_after_the_timeout(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    place = ("--data", tiny, "--run-dir", tmp_path, *FAST)
    study = answer(cli("tune", "als", "--trials", 1000, "--timeout", 1.0, *place, "--json"))
    assert 1 <= len(study["trials"]) < 1000
    assert study["test"]["rmse"] > 0


def test_a_diverged_trial_is_reported_on_stderr(
    cli: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = dataclasses.replace(SOLVERS["gd"], search_space={"lr": SearchRange(10.0, 100.0, "log")})
    monkeypatch.setitem(SOLVERS, "gd", spec)
    output = cli("tune", "gd", "--trials", 3, *FAST, "--data", tiny, "--run-dir", tmp_path, "--json")
    assert [trial["trial"] for trial in answer(output)["trials"]] == [0]
    assert re.findall(r"^trial (\d) diverged: the \w+ cost .*lr \d+", output.err, re.MULTILINE) == ["1", "2"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("als --trials 0", ["--trials must be at least 1 (got 0)"]),
        ("als --timeout -3", ["--timeout must be positive (got -3)"]),
        ("als --timeout nan", ["--timeout must be positive (got nan)"]),
        ("als --rank 0", ["--rank must be at least 1 (got 0)"]),
        ("als --refit", ["--refit cannot be used with tune, which always refits"]),
        ("vb --rank 3", ["every option that tune can search for vb is fixed", "rank"]),
        ("als --valid-fraction 0", ["--valid-fraction must be above 0"]),
        ("als --data nope", ["nope"]),
        ("als --item-features nope --data TINY", ["nope"]),
        ("--resume nowhere", ["nowhere", "study.db"]),
        ("--resume DAMAGED", ["study.db", "cannot be read"]),
        ("--resume DAMAGED --rank 3", ["study.db", "cannot be read"]),
    ],
)
def test_an_impossible_study_is_refused_and_leaves_nothing(
    arguments: str, words: list[str], cli: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "study.db").write_text("not a database" * 100)
    monkeypatch.chdir(tmp_path)
    output = cli("tune", *arguments.replace("TINY", str(tiny)).replace("DAMAGED", str(damaged)).split())
    assert_refused(output, *words)
    assert not list(tmp_path.glob("runs/*"))


def test_without_optuna_tune_says_how_to_install_it(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert_refused(cli("tune", "als"), 'pip install "mfrec[tune]"')

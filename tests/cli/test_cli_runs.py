"""`mfrec runs`: all runs of a folder in one table, and the differences between two."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pandas as pd
import pytest
from cli_checks import answer, assert_refused
from conftest import Cli, TrainRun

from mfrec.experiments.run import Run
from mfrec.solvers.registry import SOLVERS

FAST = ("--rank", 2, "--epochs", 2, "--log-every", 0)


@pytest.fixture(scope="module")
def folder(train_run: TrainRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of three solvers, and one of another version; read it only."""
    folder = tmp_path_factory.mktemp("runs")
    train_run(folder, "short", epochs=1)
    train_run(folder, "long", "--l2", 2, epochs=6)
    train_run(folder, "bayes", solver="vb")
    (train_run(folder, "old", epochs=1) / "config.json").write_text('{"format": 1}')
    (folder / "notes.txt").write_text("not a run")
    return folder


def test_runs_are_listed_by_validation_rmse_and_then_those_without_one(
    folder: Path, cli: Cli, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        rows = answer(cli("runs", folder, "--json"))
    assert "1 of 4 runs" in caplog.text
    assert {row["run"] for row in rows[:2]} == {"short", "long"}
    assert rows[0]["valid RMSE"] <= rows[1]["valid RMSE"]
    assert rows[2]["run"] == "bayes"
    assert (rows[2]["valid RMSE"], rows[2]["l2"]) == (None, None)
    metrics = Run.open(folder / rows[0]["run"]).metrics()
    assert rows[0]["test RMSE"] == pytest.approx(metrics["test"]["rmse"])
    assert rows[0]["test MAE"] == pytest.approx(metrics["test"]["mae"])
    assert rows[0]["seconds"] == metrics["fit_seconds"]


def test_the_table_and_the_csv_have_the_same_runs(folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown, csv = cli("runs", folder).out, pd.read_csv(io.StringIO(cli("runs", folder, "--csv").out))
    assert csv["run"].tolist()[2] == "bayes"
    lines = shown.splitlines()
    for _, row in csv.iterrows():
        (line,) = [line for line in lines if line.split()[:1] == [row["run"]]]
        assert f"{row['test RMSE']:.4f}" in line
    assert {"split", "folder"} <= set(csv)
    # The same for all runs.
    assert not {"split", "folder"} & set(lines[2].split())


def test_runs_of_studies_and_folds_are_listed_with_their_folder(
    tiny: Path, cli: Cli, train_run: TrainRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ("--data", tiny, "--run-dir", tmp_path / "runs")
    assert cli("tune", "als", "--trials", 2, *FAST, *place, "--name", "study").status == 0
    assert cli("cv", "als", "--folds", 2, *FAST, *place, "--name", "folds").status == 0
    train_run(tmp_path / "runs", "alone")
    rows = answer(cli("runs", tmp_path / "runs", "--json"))
    listed = {(row["folder"], row["run"]) for row in rows}
    assert {("study", "trial-0"), ("study", "trial-1"), ("folds", "fold-1-of-2"), ("folds", "fold-2-of-2")} < listed
    assert ("", "alone") in listed
    assert len(listed) == 6
    monkeypatch.setenv("COLUMNS", "200")
    table = cli("runs", tmp_path / "runs").out
    first_columns = {line.split()[0] for line in table.splitlines()[4:] if line.strip()}
    assert first_columns == {str(Path(folder, run)) for folder, run in listed}


def test_a_run_that_has_not_ended_is_listed_without_metrics(train_run: TrainRun, cli: Cli, tmp_path: Path) -> None:
    (train_run(tmp_path, "killed", epochs=1) / "metrics.json").unlink()
    (row,) = answer(cli("runs", tmp_path, "--json"))
    assert (row["run"], row["test RMSE"], row["epochs"]) == ("killed", None, None)
    assert "killed" in cli("runs", tmp_path).out


def test_diff_shows_the_options_and_metrics_that_differ_and_no_others(folder: Path, cli: Cli) -> None:
    rows = answer(cli("runs", "diff", folder / "short", folder / "long", "--json"))
    differences = {row["what"]: (row["short"], row["long"]) for row in rows}
    assert differences["l2"] == (SOLVERS["sgd"].defaults["l2"], 2.0)
    assert differences["epochs"] == (1, 6)
    assert "test rmse" in differences
    assert not {"rank", "solver", "name", "data"} & set(differences)
    shown = cli("runs", "diff", folder / "short", folder / "long").out
    assert f"{differences['test rmse'][0]:.4f}" in shown
    assert answer(cli("runs", "diff", folder / "long", folder / "long", "--json")) == []
    assert cli("runs", "diff", folder / "long", folder / "long").status == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "there is no folder nowhere"),
        (("empty",), "empty holds no runs"),
        ((), "there is no folder runs"),
        (("diff", "a"), "diff needs two runs (got 1); write mfrec runs diff A B"),
        (("diff", "a", "b"), "a is not a run folder"),
        (("a", "b"), "runs takes one folder (got a b)"),
        (("--json", "--csv"), "--json and --csv cannot be combined"),
    ],
    ids=str,
)
def test_an_impossible_comparison_is_refused(
    arguments: tuple[str, ...], words: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert_refused(cli("runs", *arguments), words)


def test_json_of_runs_is_a_list_of_objects(folder: Path, cli: Cli) -> None:
    rows = json.loads(cli("runs", folder, "--json").out)
    assert list(rows[0])[:3] == ["run", "folder", "solver"]

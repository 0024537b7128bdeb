"""`mfrec runs`: all runs of a folder in one table, and what two of them differ in."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pandas as pd
import pytest
from conftest import Mfrec, Train

from mfrec.solvers.base import SOLVERS


@pytest.fixture(scope="module")
def folder(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of three solvers, and one of another version; read it only."""
    folder = tmp_path_factory.mktemp("runs")
    train(folder, "short", epochs=1)
    train(folder, "long", "--l2", 2, epochs=6)
    train(folder, "bayes", solver="vb")
    (train(folder, "old", epochs=1) / "config.json").write_text('{"format": 1}')
    (folder / "notes.txt").write_text("not a run")
    return folder


def test_runs_are_listed_by_validation_rmse_and_then_those_without_one(
    folder: Path, mfrec: Mfrec, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        rows = json.loads(mfrec("runs", folder, "--json").out)
    assert "1 of 4 runs are damaged or of another version" in caplog.text
    assert {row["run"] for row in rows[:2]} == {"short", "long"}
    assert rows[0]["valid RMSE"] <= rows[1]["valid RMSE"]
    assert rows[2]["run"] == "bayes"
    assert (rows[2]["valid RMSE"], rows[2]["l2"]) == (None, None)
    metrics = json.loads((folder / rows[0]["run"] / "metrics.json").read_text())
    assert rows[0]["test RMSE"] == pytest.approx(metrics["test"]["rmse"])
    assert rows[0]["seconds"] == metrics["fit_seconds"]


def test_the_table_and_the_csv_hold_the_same_runs(folder: Path, mfrec: Mfrec) -> None:
    shown, csv = mfrec("runs", folder).out, pd.read_csv(io.StringIO(mfrec("runs", folder, "--csv").out))
    assert csv["run"].tolist()[2] == "bayes"
    for name in csv["run"]:
        assert name in shown
    assert "split" in csv
    assert "split" not in shown  # the same for all


def test_a_run_that_has_not_ended_is_listed_without_figures(train: Train, mfrec: Mfrec, tmp_path: Path) -> None:
    (train(tmp_path, "killed", epochs=1) / "metrics.json").unlink()
    (row,) = json.loads(mfrec("runs", tmp_path, "--json").out)
    assert (row["run"], row["test RMSE"], row["epochs"]) == ("killed", None, None)


def test_diff_shows_what_two_runs_differ_in_and_nothing_else(folder: Path, mfrec: Mfrec) -> None:
    rows = json.loads(mfrec("runs", "diff", folder / "short", folder / "long", "--json").out)
    named = {row["what"]: (row["short"], row["long"]) for row in rows}
    assert named["l2"] == (SOLVERS["sgd"].defaults["l2"], 2.0)
    assert named["epochs"] == (1, 6)
    assert "test rmse" in named
    assert not {"rank", "solver", "name", "data"} & set(named)
    assert "l2" in mfrec("runs", "diff", folder / "short", folder / "long").out
    assert json.loads(mfrec("runs", "diff", folder / "long", folder / "long", "--json").out) == []


@pytest.mark.parametrize(("arguments", "words"), [
    (("nowhere",), "there is no folder nowhere"),
    (("tests",), "holds no runs of this version"),
    (("diff", "a"), "diff compares two runs, not 1"),
    (("diff", "a", "b"), "a is not a run folder"),
    (("a", "b"), "are 2 folders; give one"),
    (("--json", "--csv"), "give one of them"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused(
    arguments: tuple[str, ...], words: str, mfrec: Mfrec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    said = mfrec("runs", *arguments)
    assert (said.status, said.out) == (2, "")
    assert words in said.err

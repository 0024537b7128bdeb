"""`mfrec solvers`: what each solver declares, and its results on the embedded data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cli_checks import answer
from conftest import Cli

from mfrec.solvers.registry import SOLVERS


def test_every_solver_is_listed_with_its_declaration(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {row["solver"]: row for row in answer(cli("solvers", "--json"))}
    assert list(rows) == list(SOLVERS)
    for name, spec in SOLVERS.items():
        assert rows[name]["summary"] == spec.summary.rstrip(".")
        assert set(rows[name]["supports"].split(", ")) == (set(spec.supports) or {"-"})
        tuned = [option.replace("_", "-") for option in spec.search_space if option != "rank"]
        assert rows[name]["to tune"] == (", ".join(tuned) or "rank only")
        assert "RMSE" not in rows[name]
    assert rows["gibbs"]["to tune"] == rows["vb"]["to tune"] == "rank only"
    monkeypatch.setenv("COLUMNS", "250")
    table = cli("solvers").out
    for name, row in rows.items():
        assert re.search(
            rf"^ +{name} +{re.escape(row['summary'])} +{row['to tune']} +{row['supports']}", table, re.MULTILINE
        )
    assert "mfrec solvers --measure" in table


def test_measured_solvers_have_the_metrics_that_train_gives(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # One solver instead of all: the command reads the table from its own module.
    monkeypatch.setattr("mfrec.cli.solvers.SOLVERS", {"als": SOLVERS["als"]})
    (row,) = answer(cli("solvers", "--measure", "--json"))
    test = answer(cli("train", "als", "--run-dir", tmp_path, "--json"))["test"]
    assert (row["RMSE"], row["MAE"]) == (test["rmse"], test["mae"])
    assert row["seconds"] > 0
    assert f"{test['rmse']:.4f}" in cli("solvers", "--measure").out

"""Data at the edge: one rating, one user, one item, equal ratings, nothing shared; for every solver."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_checks import ratings_text
from conftest import Cli

from mfrec.experiments.run import Run
from mfrec.solvers.registry import SOLVERS


@pytest.mark.parametrize(
    "rows",
    [
        ["1,2,3"],
        [f"1,{i},{1 + i % 5}" for i in range(30)],
        [f"{u},1,{1 + u % 5}" for u in range(30)],
        [f"{u},{i},4" for u in range(9) for i in range(9)],
        [f"{u},{u},{1 + u % 5}" for u in range(30)],
    ],
    ids=["one rating", "one user", "one item", "all ratings the same", "nothing shared"],
)
@pytest.mark.parametrize("solver", SOLVERS)
def test_data_at_the_edge_trains_and_predicts(solver: str, rows: list[str], cli: Cli, tmp_path: Path) -> None:
    path, run = tmp_path / "edge.csv", tmp_path / "run"
    path.write_bytes(ratings_text(*rows))
    user, item, _ = rows[0].split(",")
    # Figures depend on the kind of posterior alone, and take longer than the training: one solver of a kind draws them.
    loggers = () if solver in ("sgd", "vb", "gibbs") else ("--loggers", "jsonl")
    output = cli("train", solver, "--data", path, "--epochs", 30, "--run-dir", tmp_path, "--name", "run", *loggers)
    assert output.status == 0, output.err
    assert 0 <= Run.open(run).metrics()["train"]["rmse"] < 3
    for command in (("evaluate", run), ("recommend", run, "--user", user), ("similar", run, "--item", item)):
        asked = cli(*command)
        assert asked.status == 0, asked.err
        assert "nan" not in asked.out

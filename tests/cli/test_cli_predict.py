"""`mfrec predict`: a column of predictions for a table of users and items."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from cli_checks import answer, assert_refused
from conftest import Cli, TrainRun, write_csv

import mfrec


def test_predict_adds_a_column_and_keeps_the_others(trained_run: Path, cli: Cli, tmp_path: Path) -> None:
    pairs = write_csv(tmp_path / "pairs.csv", [("note", "userId", "movieId"), ("a", 7, 3), ("b", 8, 4)])
    output = cli("predict", trained_run, pairs)
    assert output.status == 0, output.err
    table = pd.read_csv(io.StringIO(output.out))
    assert table.columns.tolist() == ["note", "user", "item", "prediction"]
    frame = pd.DataFrame({"user": [7, 8], "item": [3, 4]})
    expected = mfrec.load_run(trained_run).predict_frame(frame)["prediction"]
    assert table["prediction"].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert [row["note"] for row in answer(cli("predict", trained_run, pairs, "--json"))] == ["a", "b"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_predictions_are_written_to_a_file(suffix: str, trained_run: Path, cli: Cli, tmp_path: Path) -> None:
    pairs, path = write_csv(tmp_path / "pairs.csv", [("user", "item"), (7, 3), (8, 4)]), tmp_path / f"out.{suffix}"
    output = cli("predict", trained_run, pairs, "--output", path)
    assert output == (0, f"2 predictions for 2 pairs in {path}\n", "")
    table = pd.read_csv(path) if suffix == "csv" else pd.read_parquet(path)
    expected = pd.read_csv(io.StringIO(cli("predict", trained_run, pairs).out))
    assert table["prediction"].tolist() == pytest.approx(expected["prediction"].tolist(), abs=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([path.name, "pairs.csv"])


def test_items_may_be_titles(trained_run: Path, cli: Cli, tmp_path: Path) -> None:
    by_title = write_csv(tmp_path / "titles.csv", [("user", "title"), (7, "film 3 (1983)")])
    by_id = write_csv(tmp_path / "ids.csv", [("user", "item"), (7, 3)])
    titles, ids = (pd.read_csv(io.StringIO(cli("predict", trained_run, path).out)) for path in (by_title, by_id))
    assert titles["prediction"].tolist() == ids["prediction"].tolist()


def test_a_bayesian_run_gives_standard_deviations(train_run: TrainRun, cli: Cli, tmp_path: Path) -> None:
    run = train_run(tmp_path, "vb", solver="vb", epochs=12)
    pairs = write_csv(tmp_path / "pairs.csv", [("user", "item"), (7, 3)])
    assert cli("predict", run, pairs).out.splitlines()[0] == "user,item,prediction,std"


def test_probabilities_have_a_column_for_each_rating(train_run: TrainRun, cli: Cli, tmp_path: Path) -> None:
    run = train_run(tmp_path, "vb", solver="vb", epochs=12)
    pairs = write_csv(tmp_path / "pairs.csv", [("user", "item", "timestamp"), (7, 3, "noon"), ("nobody", 3, "")])
    output = cli("predict", run, pairs, "--probabilities")
    assert output.out.splitlines()[0] == "user,item,timestamp,prediction,std,p_1,p_2,p_3,p_4,p_5", output.err
    table = pd.read_csv(io.StringIO(output.out))
    probabilities = table.filter(like="p_")
    assert probabilities.sum(axis=1).tolist() == pytest.approx([1, 1])
    (row, _) = answer(cli("predict", run, pairs, "--probabilities", "--json"))
    assert row["p_4"] == pytest.approx(table["p_4"][0])
    clash = write_csv(tmp_path / "more.csv", [("user", "item", "p_3"), (7, 3, 1)])
    assert cli("predict", run, clash).status == 0
    assert_refused(cli("predict", run, clash, "--probabilities"), "must not have a column 'p_3'")


def test_probabilities_of_a_point_estimate_are_refused(trained_run: Path, cli: Cli, tmp_path: Path) -> None:
    pairs = write_csv(tmp_path / "pairs.csv", [("user", "item"), (7, 3)])
    words = ("--probabilities needs standard deviations", "a point estimate", "train a Bayesian solver")
    assert_refused(cli("predict", trained_run, pairs, "--probabilities"), *words)


def test_unknown_ids_are_counted_or_refused(
    trained_run: Path, cli: Cli, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = write_csv(tmp_path / "pairs.csv", [("user", "item"), (7, 3), ("nobody", 3), (7, 555), (7, 556)])
    output = cli("predict", trained_run, pairs)
    assert output.status == 0
    assert pd.read_csv(io.StringIO(output.out))["prediction"].between(1, 5).tolist() == [True] * 4
    assert "nobody" in caplog.text
    assert "555" in caplog.text
    assert_refused(cli("predict", trained_run, pairs, "--unknown", "error"), "nobody")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("user", "item", "prediction"), (7, 3, 1)], ["'prediction'"]),
        ([("user", "item"), (7, 3), ("", 3)], ["'user'", "1 of 2 rows have none"]),
        ([("name", "item"), (7, 3)], ["name, item", "user"]),
        ([("user", "item")], ["no rows"]),
    ],
)
def test_a_table_that_cannot_be_predicted_is_refused(
    rows: list[tuple[object, ...]], words: list[str], trained_run: Path, cli: Cli, tmp_path: Path
) -> None:
    assert_refused(cli("predict", trained_run, write_csv(tmp_path / "pairs.csv", rows)), *words)


def test_an_impossible_output_is_refused_before_anything_is_read(trained_run: Path, cli: Cli, tmp_path: Path) -> None:
    for options, words in (
        (("--output", "x.txt"), "--output must end in .csv or .parquet (got x.txt)"),
        (("--output", tmp_path / "none" / "x.csv"), "--output must be in an existing folder"),
        (("--output", "x.csv", "--json"), "--json prints and --output writes a file; give one of them"),
    ):
        assert_refused(cli("predict", trained_run, "nowhere.csv", *options), words)
    assert_refused(cli("predict", trained_run, "nowhere.csv"), "nowhere.csv")

"""`mfrec prepare` and `mfrec synthetic`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from cli_checks import SMALL, answer, assert_refused, assert_usage_error, ratings_text
from conftest import Cli


def test_training_is_the_same_on_files_and_on_what_was_prepared_from_them(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "few.csv"
    assert cli("synthetic", "--users", 60, "--items", 30, "--ratings", 700, "--output", file).status == 0
    facts = answer(cli("prepare", file, tmp_path / "few", "--json"))
    assert (facts["n_users"], facts["n_items"], facts["n_ratings"]) == (60, 30, 700)
    assert facts["bytes"] > 0
    metrics = [
        answer(cli("train", "--data", data, *SMALL, "--run-dir", tmp_path / "runs", "--json"))["test"]
        for data in (file, tmp_path / "few")
    ]
    assert metrics[0] == metrics[1]


def test_prepare_says_what_is_in_the_folder_and_data_shows_it(cli: Cli, tmp_path: Path) -> None:
    output = cli("prepare", "ml-latest-small", tmp_path / "small")
    assert output.status == 0
    assert output.out.startswith(f"{tmp_path}/small: 100,004 ratings of 671 users × 9,066 items, ")
    assert "Forrest Gump (1994)" in cli("data", tmp_path / "small").out


def test_prepare_refuses_a_folder_that_exists_and_keeps_it(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(ratings_text("1,2,3"))
    assert_refused(cli("prepare", file, tmp_path), "must be a new folder")
    assert [each.name for each in tmp_path.iterdir()] == ["a.csv"]
    assert_refused(cli("prepare", tmp_path / "b.csv", tmp_path / "out"), "b.csv")
    assert_usage_error(cli("prepare", file), "OUT")


def test_prepare_takes_the_files_of_a_split(cli: Cli, tmp_path: Path) -> None:
    for name, rows in (("train", ("1,2,3", "2,2,4", "2,1,1")), ("test", ("1,1,3",))):
        (tmp_path / f"{name}.csv").write_bytes(ratings_text(*rows))
    test = ("--test-data", tmp_path / "test.csv")
    assert answer(cli("prepare", tmp_path / "train.csv", tmp_path / "out", *test, "--json"))["n_ratings"] == 4
    options = (*SMALL, "--run-dir", tmp_path / "runs", "--valid-fraction", 0, "--json")
    assert answer(cli("train", "--data", tmp_path / "out", *options))["test"]["rmse"] > 0
    assert_refused(cli("train", "--data", tmp_path / "out", *test, *options), "--test-data", "prepare")


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "many.csv"
    file.write_text("user,item,rating\n" + "".join(f"{n % 9973},{n // 9973},{n % 5}\n" for n in range(500_000)))
    process = subprocess.Popen(
        [sys.executable, "-m", "mfrec", "prepare", file, tmp_path / "out"], cwd=tmp_path, stderr=subprocess.PIPE
    )
    end = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*")) and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, b"")
    assert [each.name for each in tmp_path.iterdir()] == ["many.csv"]


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_synthetic_writes_distinct_pairs_the_same_for_the_same_seed(ending: str, cli: Cli, tmp_path: Path) -> None:
    size = ("--users", 50, "--items", 40, "--ratings", 500)
    frames = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        file = tmp_path / f"{name}{ending}"
        output = cli("synthetic", *size, "--seed", seed, "--output", file)
        assert output.out == f"500 ratings of 50 users × 40 items in {file}\n"
        frames.append(pd.read_parquet(file) if ending == ".parquet" else pd.read_csv(file))
    assert list(frames[0]) == ["user", "item", "rating"]
    assert not frames[0].duplicated(["user", "item"]).any()
    assert frames[0].equals(frames[1])
    assert not frames[0].equals(frames[2])


def test_synthetic_refuses_sizes_that_cannot_be_and_other_endings(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    assert_refused(cli("synthetic", "--users", 5, "--items", 4, "--ratings", 21, "--output", file), "5 … 20", 21)
    assert_refused(cli("synthetic", "--output", tmp_path / "a.txt"), "--output", ".parquet")
    assert_refused(cli("synthetic", "--ratings", 0, "--output", file), "--ratings")
    assert not list(tmp_path.iterdir())


def test_a_histogram_of_many_values_has_ten_bars(cli: Cli, tmp_path: Path) -> None:
    cli("synthetic", "--users", 50, "--items", 40, "--ratings", 500, "--output", tmp_path / "a.csv")
    bars = json.loads(cli("data", tmp_path / "a.csv", "--json").out)["rating_histogram"]
    assert len(bars) == 10
    assert sum(bars.values()) == 500

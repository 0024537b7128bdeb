"""`mfrec recommend`: to users of the run, to new users, and to all."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pandas as pd
import pytest
from cli_checks import SMALL, answer, assert_refused, ratings_text
from conftest import Cli, TrainRun, write_csv

import mfrec
from mfrec.experiments.run import Run

ALL = ("--min-ratings", 0)
RATED = ("--rate", "Film 1 (1981)=5", "--rate", "2=1", "--rate", "film 3 (1983)=4.5")


@pytest.fixture(scope="module")
def bayesian(train_run: TrainRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with standard deviations; read it only."""
    return train_run(tmp_path_factory.mktemp("runs"), "vb", solver="vb", epochs=12)


# Users of the run.


def test_rated_items_are_not_recommended(trained_run: Path, cli: Cli) -> None:
    dataset, _ = Run.open(trained_run).dataset()
    user = dataset.user_index("5")
    seen = {int(dataset.item_ids[i]) for i in dataset.ratings.items[dataset.ratings.users == user].tolist()}
    rows = answer(cli("recommend", trained_run, "--user", 5, "-n", 1000, "--json"))
    assert {row["id"] for row in rows} == set(range(1, 31)) - seen
    predicted = [row["predicted"] for row in rows]
    assert predicted == sorted(predicted, reverse=True)
    assert all(1 <= value <= 5 for value in predicted)


def test_there_are_as_many_recommendations_as_asked_for(trained_run: Path, cli: Cli) -> None:
    answers = [
        answer(cli("recommend", trained_run, "--user", 5, *count, "--json"))
        for count in ((), ("-n", 3), ("--number", 3))
    ]
    assert [len(rows) for rows in answers] == [10, 3, 3]
    assert answers[0][:3] == answers[1] == answers[2]


def test_recommendations_are_below_the_user_s_highest_ratings(trained_run: Path, cli: Cli) -> None:
    shown = cli("recommend", trained_run, "--user", 5, "-n", 3).out
    assert re.match(r"user 5 rated highest, of \d+ ratings$", shown.splitlines()[0])
    rows = answer(cli("recommend", trained_run, "--user", 5, "-n", 3, "--json"))
    table = shown[shown.index("recommended to user 5") :]
    for row in rows:
        assert re.search(rf"^ +{row['predicted']:.2f} +{row['id']} +{re.escape(row['title'])}", table, re.MULTILINE)


def test_genres_years_and_exclusions_narrow_the_list(trained_run: Path, cli: Cli, tmp_path: Path) -> None:
    narrow = ("recommend", trained_run, "--user", 7, *ALL, "-n", 99, "--json")
    every = answer(cli(*narrow))
    nineties = answer(cli(*narrow, "--years", 1990, 1999))
    assert [row["id"] for row in nineties] == [row["id"] for row in every if 1990 <= row["year"] <= 1999]
    first, second = every[0], every[1]
    listed = tmp_path / "seen.txt"
    listed.write_text(f"{second['title']}\n\n")
    left = answer(cli(*narrow, "--exclude", first["id"], "--exclude", listed))
    assert [row["id"] for row in left] == [row["id"] for row in every[2:]]
    assert len(answer(cli(*narrow, "--genres", "drama"))) == len(every)
    assert_refused(cli(*narrow, "--genres", "Dramma"), "Dramma", "did you mean 'Drama'")


def test_reasons_are_ratings_of_the_user(trained_run: Path, bayesian: Path, cli: Cli) -> None:
    for run in (trained_run, bayesian):
        rows = answer(cli("recommend", run, *RATED, *ALL, "--why", "--json"))
        titles = {reason["title"] for row in rows for reason in row["because"]}
        assert titles
        assert titles <= {"Film 1 (1981)", "Film 2 (1982)", "Film 3 (1983)"}
        shown = cli("recommend", run, "--user", 7, *ALL, "--why").out
        assert re.search(r"[+-]\d\.\d\d  Film", shown)
        assert ("90 % interval" in shown) == (run == bayesian)


def test_a_bayesian_run_shows_standard_deviations_and_can_explore(bayesian: Path, cli: Cli) -> None:
    question = ("recommend", bayesian, "--user", 7, *ALL, "--json")
    plain, upper, drawn, again = (
        [row["id"] for row in answer(cli(*question, *more))]
        for more in ((), ("--explore", "upper"), ("--explore", "thompson"), ("--explore", "thompson"))
    )
    assert drawn == again
    assert len({tuple(plain), tuple(upper), tuple(drawn)}) > 1
    assert re.search(r"predicted +std +id +title", cli("recommend", bayesian, "--user", 7, *ALL).out)
    shown = cli("recommend", bayesian, "--user", 7, *ALL, "--explore", "upper").out
    assert "ranked by the 95 % quantile of the expected rating" in shown


# New users.


def test_a_new_user_who_rates_three_films_gets_others(trained_run: Path, cli: Cli) -> None:
    rows = answer(cli("recommend", trained_run, *RATED, *ALL, "-n", 5, "--json"))
    assert len(rows) == 5
    assert not {1, 2, 3} & {row["id"] for row in rows}
    output = cli("recommend", trained_run, *RATED, *ALL)
    assert "you rated highest, of 3 ratings" in output.out
    assert "recommended to you" in output.out


def test_ratings_in_a_file_are_those_on_the_command_line(trained_run: Path, cli: Cli, tmp_path: Path) -> None:
    by_hand = cli("recommend", trained_run, *RATED, *ALL, "--json").out
    ratings = [("Film 1 (1981)", 5), (2, 1), ("Film 3 (1983)", 4.5)]
    titles = write_csv(tmp_path / "mine.csv", [("title", "rating"), *ratings])
    assert cli("recommend", trained_run, "--ratings", titles, *ALL, "--json").out == by_hand
    pd.DataFrame({"item": [1, 2, 3], "rating": [5, 1, 4.5]}).to_parquet(tmp_path / "mine.parquet")
    assert cli("recommend", trained_run, "--ratings", tmp_path / "mine.parquet", *ALL, "--json").out == by_hand


def test_several_new_users_in_a_file_are_written_to_a_file(trained_run: Path, cli: Cli, tmp_path: Path) -> None:
    lines = [("user", "item", "rating"), ("ann", 1, 5), ("ann", 2, 1), ("bo", 3, 4)]
    ratings, path = write_csv(tmp_path / "all.csv", lines), tmp_path / "out.csv"
    output = cli("recommend", trained_run, "--ratings", ratings, *ALL, "-n", 4, "--output", path)
    assert output == (0, f"8 recommendations for 2 users in {path}\n", "")
    table = pd.read_csv(path)
    assert table["user"].tolist() == ["ann"] * 4 + ["bo"] * 4
    assert table["rank"].tolist() == [1, 2, 3, 4] * 2
    assert_refused(cli("recommend", trained_run, "--ratings", ratings), "2 users need --output")


def test_a_new_user_without_ratings_gets_the_highest_damped_means(trained_run: Path, cli: Cli) -> None:
    output = cli("recommend", trained_run, *ALL)
    assert output.status == 0
    assert re.search(r"^ranked by .*mean rating", output.out, re.MULTILINE)
    assert "rated highest" not in output.out


def test_features_describe_a_new_user(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    ratings = [f"{1 + n % 12}::{1 + n // 12}::{1 + (n * n + n % 2) % 5}" for n in range(96)]
    (folder / "ratings.dat").write_text("\n".join(ratings) + "\n")
    (folder / "users.dat").write_text("\n".join(f"{j}::{'MF'[j % 2]}::25::1::12345" for j in range(1, 13)) + "\n")
    (folder / "movies.dat").write_text("\n".join(f"{i}::Film {i} ({1990 + i})::Drama" for i in range(1, 9)) + "\n")
    options = ("--data", folder, *SMALL, "--user-features", "gender", "--run-dir", tmp_path, "--name", "run")
    assert cli("train", "als", *options).status == 0
    question = ("recommend", tmp_path / "run", *ALL, "--json")
    female, male = (answer(cli(*question, "--about", f"gender={gender}")) for gender in "FM")
    assert [row["predicted"] for row in female] != [row["predicted"] for row in male]
    for about, words in (
        (("--about", "gender=X"), "unknown gender 'X'"),
        (("--about", "age=3"), "unknown user feature 'age'"),
        (("--about", "gender"), "--about must be NAME=VALUE, such as gender=F (got 'gender')"),
        (("--about", "gender=F", "--about", "gender=M"), "--about must give each feature once"),
    ):
        assert_refused(cli(*question, *about), words)


@pytest.fixture(scope="module", params=["als", "gibbs"])
def timed_run(request: pytest.FixtureRequest, train_run: TrainRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with session biases, whose default penalty is too large for such small data; read it only."""
    folder, solver = tmp_path_factory.mktemp("runs"), request.param
    options = ("--session-l2", 0.5) if solver == "als" else ("--burn-in", 1)
    return train_run(folder, "timed", "--sessions", *options, solver=solver)


def test_times_of_a_new_user_s_ratings_are_read_by_a_run_with_sessions(
    timed_run: Path, trained_run: Path, cli: Cli, tmp_path: Path
) -> None:
    ratings = [(film, 1 + film % 5) for film in range(1, 13)]
    plain = write_csv(tmp_path / "plain.csv", [("item", "rating"), *ratings])
    tables = {
        name: write_csv(tmp_path / f"{name}.csv", [("item", "rating", "timestamp"), *timed])
        for name, timed in (
            ("together", [(*row, 10**9) for row in ratings]),
            ("apart", [(*row, 10**9 + 10**6 * n) for n, row in enumerate(ratings)]),
        )
    }

    def predicted(run: Path, path: Path) -> dict[int, float]:
        rows = answer(cli("recommend", run, "--ratings", path, *ALL, "-n", 99, "--json"))
        return {row["id"]: row["predicted"] for row in rows}

    answers = [predicted(timed_run, path) for path in (plain, *tables.values())]
    assert answers[0] != answers[1] != answers[2] != answers[0]
    # Other runs do not read the column.
    assert predicted(trained_run, plain) == predicted(trained_run, tables["together"])
    why = answer(cli("recommend", timed_run, "--ratings", tables["together"], *ALL, "--why", "--json"))
    assert any(row["because"] for row in why)
    assert answer(cli("recommend", timed_run, "--user", 7, *ALL, "--why", "--json"))


def test_a_time_that_is_missing_is_refused(timed_run: Path, cli: Cli, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "bad.csv", [("item", "rating", "timestamp"), (1, 5, 10**9), (2, 3, "")])
    assert_refused(cli("recommend", timed_run, "--ratings", path), "timestamp")


# All users.


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_file_of_all_users_has_the_lists_of_each(suffix: str, trained_run: Path, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / f"all.{suffix}"
    output = cli("recommend", trained_run, "--all", *ALL, "-n", 3, "--output", path, "--memory", 1)
    assert output.status == 0, output.err
    table = pd.read_csv(path) if suffix == "csv" else pd.read_parquet(path)
    assert table.groupby("user").size().tolist() == [3] * 40
    alone = answer(cli("recommend", trained_run, "--user", 7, *ALL, "-n", 3, "--json"))
    assert table[table["user"] == 7]["item"].tolist() == [row["id"] for row in alone]
    assert not list(tmp_path.glob(".*"))


def test_a_failure_leaves_the_output_as_it_was(trained_run: Path, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    path.write_text("precious")
    refused = cli("recommend", trained_run, "--all", *ALL, "--explore", "upper", "--output", path)
    assert_refused(refused, "explore")
    assert path.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["all.csv"]


def test_users_without_training_ratings_get_the_same_list_in_the_file_and_alone(
    train_run: TrainRun, cli: Cli, tmp_path: Path
) -> None:
    run, path = train_run(tmp_path, "run", "--test-fraction", 0.9, "--valid-fraction", 0), tmp_path / "all.csv"
    assert cli("recommend", run, "--all", *ALL, "-n", 3, "--output", path).status == 0
    table, trained = pd.read_csv(path), mfrec.load_run(run)
    unrated = trained.dataset.user_ids[(trained.train.user_counts == 0).numpy()]
    assert len(unrated)
    for user in (unrated[0], trained.dataset.user_ids[0]):
        alone = answer(cli("recommend", run, "--user", user, *ALL, "-n", 3, "--json"))
        assert table[table["user"] == user]["item"].tolist() == [row["id"] for row in alone]
    assert cli("recommend", run, *ALL, "-n", 3, "--output", path).status == 0
    shown = answer(cli("recommend", run, *ALL, "-n", 3, "--json"))
    assert pd.read_csv(path)["item"].tolist() == [row["id"] for row in shown]


def test_a_draw_ranks_and_leaves_the_predictions(bayesian: Path, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "drawn.csv"
    assert cli("recommend", bayesian, "--all", *ALL, "--explore", "thompson", "--output", path).status == 0
    table = pd.read_csv(path)
    expected = mfrec.load_run(bayesian).predict_frame(table[["user", "item"]])["prediction"]
    assert table["predicted"].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert not table.groupby("user")["predicted"].is_monotonic_decreasing.all()


# Nothing to answer with.


def test_a_sampler_that_ended_in_its_burn_in_says_so(train_run: TrainRun, cli: Cli, tmp_path: Path) -> None:
    run = train_run(tmp_path, "short", solver="gibbs", epochs=3)
    assert cli("recommend", run, "--user", 7, *ALL).status == 0
    for question in (RATED, ("--user", 7, "--explore", "upper"), ("--user", 7, "--why")):
        assert_refused(cli("recommend", run, *question, *ALL), "burn-in", "epochs")


@pytest.mark.parametrize("narrow", [("--years", 1800, 1801), ("--min-ratings", 9999)], ids=str)
def test_no_matching_item_is_said_and_is_an_empty_list(
    narrow: tuple[object, ...], trained_run: Path, bayesian: Path, cli: Cli
) -> None:
    for run in (trained_run, bayesian):
        for who in (("--user", 7), RATED, ()):
            assert "no items match" in cli("recommend", run, *who, *narrow, "--why").out
            assert answer(cli("recommend", run, *who, *narrow, "--json")) == []


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (("--rate", "Film 1 (1981)"), ["--rate must be NAME=VALUE", "(got 'Film 1 (1981)')"]),
        (("--rate", "Film 1 (1981)=good"), ["--rate must end in a number", "(got 'Film 1 (1981)=good')"]),
        (("--rate", "Film 1 (1981)=9"), ["9", "0.5", "5"]),
        (("--rate", "Flm 1 (1981)=4"), ["did you mean 'Film 1 (1981)'"]),
        (("--rate", "777=4"), ["777"]),
        (("--user", 7, "--rate", "1=4"), ["--user and --rate choose different users; give one of them"]),
        (("--user", 7, "--about", "age=3"), ["--about describes a new user; do not combine it with --user"]),
        (("--user", 777), ["unknown user '777'", "40 users"]),
        (("--user", 5, "-n", 0), ["--number must be at least 1 (got 0)"]),
        (("--user", 5, "-n", -2), ["--number must be at least 1 (got -2)"]),
        (("--about", "age=3"), ["--about needs a run trained with --user-features (got age)"]),
        (("--user", 7, "--explore", "thompson"), ["no standard deviations", "Bayesian"]),
        (("--rate", "1=4", "--explore", "upper"), ["no standard deviations", "Bayesian"]),
        (("--all",), ["40 users need --output"]),
        (("--all", "--output", "x.txt"), ["--output must end in .csv or .parquet (got x.txt)"]),
        (("--all", "--output", "no/such/folder.csv"), ["--output must be in an existing folder", "no/such"]),
        (("--all", "--output", "."), ["--output must end in .csv or .parquet (got .)"]),
        (("--user", 7, "--years", 1999, 1990), ["--years must be the first year, then the last (got 1999 1990)"]),
        (("--user", 7, "--seed", 10**30), ["--seed must be in [0, "]),
        (("--all", "--output", "x.csv", "--memory", 0), ["--memory must be at least 1 (got 0)"]),
        (("--user", 7, "--output", "x.csv", "--json"), ["--json prints and --output writes a file"]),
        (("--user", 7, "--output", "x.csv", "--why"), ["--why prints and --output writes a file"]),
        (("--user", 7, "--exclude", "Film 99"), ["Film 99"]),
        (("--ratings", "nowhere.csv"), ["nowhere.csv"]),
    ],
    ids=str,
)
def test_an_impossible_question_is_refused_in_one_sentence(
    question: tuple[object, ...], words: list[str], trained_run: Path, cli: Cli, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert_refused(cli("recommend", trained_run, *question), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["empty"]),
        ("item,rating\n", ["no rows"]),
        ("film,score\n1,4\n", ["film, score", "item"]),
        ("item,rating\n1,four\n", ["'four'", "finite"]),
        ("item,rating\n1,4\n2,99\n", ["99"]),
        ("item,rating\n1,4,3,3\n2\n", ["mine.csv"]),
    ],
)
def test_an_unusable_ratings_file_is_refused_in_one_sentence(
    content: str, words: list[str], trained_run: Path, cli: Cli, tmp_path: Path
) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(content)
    assert_refused(cli("recommend", trained_run, "--ratings", path), *words)


def test_users_and_items_that_only_the_test_split_has_get_finite_predictions(cli: Cli, tmp_path: Path) -> None:
    path, run = tmp_path / "sparse.csv", tmp_path / "run"
    path.write_bytes(ratings_text(*(f"{n},{1000 + n},{1 + n % 5}" for n in range(40))))
    output = cli("train", "--data", path, *SMALL, "--test-fraction", 0.5, "--run-dir", tmp_path, "--name", "run")
    assert output.status == 0, output.err
    dataset, labels = Run.open(run).dataset()
    alone = dataset.user_ids[int(dataset.ratings.users[labels == 2][0])]
    rows = answer(cli("recommend", run, "--user", alone, "-n", 99, *ALL, "--json"))
    assert len(rows) == 39
    assert all(math.isfinite(row["predicted"]) for row in rows)
    assert math.isfinite(answer(cli("evaluate", run, "--json"))["test"]["rmse"])

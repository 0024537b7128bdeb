"""The verbs that answer: evaluate, predict, recommend and similar, for those in training and those who were not."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import Mfrec, Said, Train, write_csv

import mfrec as package

FAST = ("--min-ratings", 0)
RATED = ("--rate", "Film 1 (1981)=5", "--rate", "2=1", "--rate", "film 3 (1983)=4.5")


@pytest.fixture(scope="module")
def bayesian(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a posterior; read it only."""
    return train(tmp_path_factory.mktemp("runs"), "vb", solver="vb", epochs=12)


def assert_refused(said: Said, *words: object) -> None:
    assert (said.status, said.out) == (2, ""), said
    assert said.err.startswith("mfrec: "), said.err
    assert said.err.count("\n") == 1, said.err
    for word in words:
        assert str(word) in said.err, said.err


def rows(said: Said) -> list[dict[str, object]]:
    assert said.status == 0, said.err
    return json.loads(said.out)


# Recommending.


def test_someone_who_rates_three_films_gets_others(trained: Path, mfrec: Mfrec) -> None:
    found = rows(mfrec("recommend", trained, *RATED, *FAST, "-n", 5, "--json"))
    assert len(found) == 5
    assert not {1, 2, 3} & {row["id"] for row in found}
    said = mfrec("recommend", trained, *RATED, *FAST)
    assert "you rated highest, of 3 ratings" in said.out
    assert "recommended to you" in said.out


def test_ratings_in_a_file_are_those_rated_by_hand(trained: Path, mfrec: Mfrec, tmp_path: Path) -> None:
    by_hand = mfrec("recommend", trained, *RATED, *FAST, "--json").out
    ratings = [("Film 1 (1981)", 5), (2, 1), ("Film 3 (1983)", 4.5)]
    titles = write_csv(tmp_path / "mine.csv", [("title", "rating"), *ratings])
    assert mfrec("recommend", trained, "--ratings", titles, *FAST, "--json").out == by_hand
    pd.DataFrame({"item": [1, 2, 3], "rating": [5, 1, 4.5]}).to_parquet(tmp_path / "mine.parquet")
    assert mfrec("recommend", trained, "--ratings", tmp_path / "mine.parquet", *FAST, "--json").out == by_hand


def test_many_newcomers_of_a_file_are_written_to_a_file(trained: Path, mfrec: Mfrec, tmp_path: Path) -> None:
    lines = [("user", "item", "rating"), ("ann", 1, 5), ("ann", 2, 1), ("bo", 3, 4)]
    ratings, output = write_csv(tmp_path / "all.csv", lines), tmp_path / "out.csv"
    said = mfrec("recommend", trained, "--ratings", ratings, *FAST, "-n", 4, "--output", output)
    assert said.status == 0, said.err
    assert "8 recommendations for 2 users" in said.out
    table = pd.read_csv(output)
    assert table["user"].tolist() == ["ann"] * 4 + ["bo"] * 4
    assert table["rank"].tolist() == [1, 2, 3, 4] * 2
    assert_refused(mfrec("recommend", trained, "--ratings", ratings), "2 users need a file", "--output")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_all_users_are_recommended_what_each_is(suffix: str, trained: Path, mfrec: Mfrec, tmp_path: Path) -> None:
    output = tmp_path / f"all.{suffix}"
    said = mfrec("recommend", trained, "--all", *FAST, "-n", 3, "--output", output, "--memory", 1)
    assert said.status == 0, said.err
    table = pd.read_csv(output) if suffix == "csv" else pd.read_parquet(output)
    assert table.groupby("user").size().tolist() == [3] * 40
    alone = rows(mfrec("recommend", trained, "--user", 7, *FAST, "-n", 3, "--json"))
    assert table[table["user"] == 7]["item"].tolist() == [row["id"] for row in alone]
    assert not list(tmp_path.glob(".*"))


def test_all_items_are_compared(trained: Path, mfrec: Mfrec, tmp_path: Path) -> None:
    output = tmp_path / "similar.csv"
    assert mfrec("similar", trained, "--all", *FAST, "-n", 2, "--output", output).status == 0
    table = pd.read_csv(output)
    alone = rows(mfrec("similar", trained, "--item", 7, *FAST, "-n", 2, "--json"))
    assert table[table["item"] == 7]["similar"].tolist() == [row["id"] for row in alone]
    assert len(table) == 60


def test_an_output_that_fails_leaves_what_was_there(trained: Path, mfrec: Mfrec, tmp_path: Path) -> None:
    output = tmp_path / "all.csv"
    output.write_text("precious")
    asked = ("recommend", trained, "--all", *FAST, "--explore", "upper", "--output", output)
    assert_refused(mfrec(*asked), "explore upper is for one user at a time")
    assert output.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["all.csv"]


def test_without_ratings_the_output_says_that_it_ranks_by_damped_means(trained: Path, mfrec: Mfrec) -> None:
    said = mfrec("recommend", trained, *FAST)
    assert said.status == 0
    assert "ranked by mean rating, damped by 5 ratings, for want of ratings" in said.out
    assert "rated highest" not in said.out


def test_genres_years_and_exclusions_narrow_what_is_recommended(trained: Path, mfrec: Mfrec, tmp_path: Path) -> None:
    narrow = ("recommend", trained, "--user", 7, *FAST, "-n", 99, "--json")
    every = rows(mfrec(*narrow))
    nineties = rows(mfrec(*narrow, "--years", 1990, 1999))
    assert [row["id"] for row in nineties] == [row["id"] for row in every if 1990 <= row["year"] <= 1999]
    first, second = every[0], every[1]
    listed = tmp_path / "seen.txt"
    listed.write_text(f"{second['title']}\n\n")
    left = rows(mfrec(*narrow, "--exclude", first["id"], "--exclude", listed))
    assert [row["id"] for row in left] == [row["id"] for row in every[2:]]
    assert len(rows(mfrec(*narrow, "--genres", "drama"))) == len(every)
    assert_refused(mfrec(*narrow, "--genres", "Dramma"), "Dramma", "did you mean 'Drama'")


def test_why_names_ratings_of_the_user_s_own(trained: Path, bayesian: Path, mfrec: Mfrec) -> None:
    for run in (trained, bayesian):
        found = rows(mfrec("recommend", run, *RATED, *FAST, "--why", "--json"))
        named = {reason["title"] for row in found for reason in row["because"]}
        assert named
        assert named <= {"Film 1 (1981)", "Film 2 (1982)", "Film 3 (1983)"}
        assert "because" in mfrec("recommend", run, "--user", 7, *FAST, "--why").out


def test_a_bayesian_run_shows_intervals_and_explores(bayesian: Path, mfrec: Mfrec) -> None:
    asked = ("recommend", bayesian, "--user", 7, *FAST, "--json")
    plain, upper, drawn, again = (
        [row["id"] for row in rows(mfrec(*asked, *more))]
        for more in ((), ("--explore", "upper"), ("--explore", "thompson"), ("--explore", "thompson"))
    )
    assert drawn == again
    assert len({tuple(plain), tuple(upper), tuple(drawn)}) > 1
    assert "deviation" in mfrec("recommend", bayesian, "--user", 7, *FAST).out
    assert "quantile" in mfrec("recommend", bayesian, "--user", 7, *FAST, "--explore", "upper").out


def test_whoever_gave_no_rating_is_written_the_popular_titles_that_are_shown(
    train: Train, mfrec: Mfrec, tmp_path: Path
) -> None:
    run, output = train(tmp_path, "run", "--test-fraction", 0.9, "--valid-fraction", 0), tmp_path / "all.csv"
    assert mfrec("recommend", run, "--all", *FAST, "-n", 3, "--output", output).status == 0
    table, loaded = pd.read_csv(output), package.load(run)
    unrated = loaded.dataset.user_ids[(loaded.train.user_counts == 0).numpy()]
    assert len(unrated)
    for user in (unrated[0], loaded.dataset.user_ids[0]):
        alone = rows(mfrec("recommend", run, "--user", user, *FAST, "-n", 3, "--json"))
        assert table[table["user"] == user]["item"].tolist() == [row["id"] for row in alone]
    assert mfrec("recommend", run, *FAST, "-n", 3, "--output", output).status == 0
    shown = rows(mfrec("recommend", run, *FAST, "-n", 3, "--json"))
    assert pd.read_csv(output)["item"].tolist() == [row["id"] for row in shown]


def test_a_draw_ranks_and_predictions_stay_predictions(bayesian: Path, mfrec: Mfrec, tmp_path: Path) -> None:
    output = tmp_path / "drawn.csv"
    assert mfrec("recommend", bayesian, "--all", *FAST, "--explore", "thompson", "--output", output).status == 0
    table = pd.read_csv(output)
    expected = package.load(bayesian).predict_frame(table[["user", "item"]])["prediction"]
    assert table["predicted"].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert not table.groupby("user")["predicted"].is_monotonic_decreasing.all()


def test_a_sampler_stopped_before_its_first_draw_says_so(train: Train, mfrec: Mfrec, tmp_path: Path) -> None:
    run = train(tmp_path, "short", solver="gibbs", epochs=3)
    assert mfrec("recommend", run, "--user", 7, *FAST).status == 0
    for question in (RATED, ("--user", 7, "--explore", "upper"), ("--user", 7, "--why")):
        assert_refused(mfrec("recommend", run, *question, *FAST), "gibbs ended within its burn-in", "more epochs")


# Predicting.


def test_predict_adds_a_column_and_keeps_the_others(trained: Path, mfrec: Mfrec, tmp_path: Path) -> None:
    pairs = write_csv(tmp_path / "pairs.csv", [("note", "userId", "movieId"), ("a", 7, 3), ("b", 8, 4)])
    said = mfrec("predict", trained, pairs)
    assert said.status == 0, said.err
    table = pd.read_csv(io.StringIO(said.out))
    assert table.columns.tolist() == ["note", "user", "item", "prediction"]
    frame = pd.DataFrame({"user": [7, 8], "item": [3, 4]})
    expected = package.load(trained).predict_frame(frame)["prediction"]
    assert table["prediction"].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    output = tmp_path / "out.parquet"
    assert mfrec("predict", trained, pairs, "--output", output).status == 0
    assert pd.read_parquet(output)["prediction"].tolist() == pytest.approx(expected.tolist())


def test_predict_finds_titles_and_refuses_what_it_would_overwrite_or_lacks(
    trained: Path, mfrec: Mfrec, tmp_path: Path
) -> None:
    by_title = write_csv(tmp_path / "titles.csv", [("user", "title"), (7, "film 3 (1983)")])
    by_id = write_csv(tmp_path / "ids.csv", [("user", "item"), (7, 3)])
    titles, ids = (pd.read_csv(io.StringIO(mfrec("predict", trained, path).out)) for path in (by_title, by_id))
    assert titles["prediction"].tolist() == ids["prediction"].tolist()
    taken = write_csv(tmp_path / "taken.csv", [("user", "item", "prediction"), (7, 3, 1)])
    assert_refused(mfrec("predict", trained, taken), "have a column 'prediction' already")
    gap = write_csv(tmp_path / "gap.csv", [("user", "item"), (7, 3), ("", 3)])
    assert_refused(mfrec("predict", trained, gap), "1 of 2 rows", "no user")


def test_predict_tells_deviations_of_a_bayesian_run(bayesian: Path, mfrec: Mfrec, tmp_path: Path) -> None:
    pairs = write_csv(tmp_path / "pairs.csv", [("user", "item"), (7, 3)])
    assert "deviation" in mfrec("predict", bayesian, pairs).out.splitlines()[0]


def test_unknown_ids_are_counted_or_refused(
    trained: Path, mfrec: Mfrec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = write_csv(tmp_path / "pairs.csv", [("user", "item"), (7, 3), ("nobody", 3), (7, 555), (7, 556)])
    said = mfrec("predict", trained, pairs)
    assert said.status == 0
    assert len(said.out.splitlines()) == 5
    assert "1 user id (nobody) is not in this model of 40 users" in caplog.text
    assert "2 item ids (e.g. 555) are not in this model of 30 items" in caplog.text
    assert_refused(mfrec("predict", trained, pairs, "--unknown", "error"), "nobody")


# Measuring.


def test_evaluate_ranks_and_prints_intervals_and_who_was_left_out(trained: Path, mfrec: Mfrec) -> None:
    said = mfrec("evaluate", trained, "--ranking", 5)
    assert said.status == 0, said.err
    for word in (
        "precision",
        "recall",
        "ndcg",
        "map",
        "mrr",
        "hit rate",
        "@5",
        "95 % interval",
        "relevant is a rating of",
    ):
        assert word in said.out
    found = json.loads(mfrec("evaluate", trained, "--ranking", 5, "--threshold", 3, "--json").out)["ranking"]
    assert found["threshold"] == 3
    for name, (low, high) in found["intervals_95"].items():
        assert low <= found["means"][name] <= high


@pytest.mark.parametrize("by", ["user", "item", "rating", "popularity", "warmth"])
def test_evaluate_breaks_errors_down(by: str, trained: Path, mfrec: Mfrec) -> None:
    found = json.loads(mfrec("evaluate", trained, "--by", by, "--json").out)
    groups = found[f"test_by_{by}"]
    total = sum(group["n_ratings"] * (group["rmse"] or 0) ** 2 for group in groups)
    n = sum(group["n_ratings"] for group in groups)
    assert n == 60
    assert (total / n) ** 0.5 == pytest.approx(found["test"]["rmse"], abs=1e-4)
    assert mfrec("evaluate", trained, "--by", by).status == 0


@pytest.mark.parametrize("narrow", [("--years", 1800, 1801), ("--min-ratings", 9999)])
def test_where_nothing_is_left_it_is_said_and_the_list_is_empty(
    narrow: tuple[object, ...], trained: Path, bayesian: Path, mfrec: Mfrec
) -> None:
    for run in (trained, bayesian):
        for who in (("--user", 7), RATED, ()):
            assert "nothing is left" in mfrec("recommend", run, *who, *narrow, "--why").out
            assert rows(mfrec("recommend", run, *who, *narrow, "--json")) == []


# What cannot be answered.


@pytest.mark.parametrize(("question", "words"), [
    (("--rate", "Film 1 (1981)"), ("Film 1 (1981)", "NAME=VALUE")),
    (("--rate", "Film 1 (1981)=good"), ("'good'", "no number")),
    (("--rate", "Film 1 (1981)=9"), ("off the scale 0.5 to 5",)),
    (("--rate", "Flm 1 (1981)=4"), ("did you mean 'Film 1 (1981)'",)),
    (("--rate", "777=4"), ("item id 777 is not in this dataset",)),
    (("--user", 7, "--rate", "1=4"), ("--user and --rate ask for different users",)),
    (("--user", 7, "--about", "age=3"), ("--about is of someone new", "--user")),
    (("--user", 777), ("user id 777",)),
    (("--about", "age=3"), ("age", "without --user-features")),
    (("--user", 7, "--explore", "thompson"), ("sgd does not know how sure it is",)),
    (("--all",), ("40 users need a file",)),
    (("--all", "--output", "x.txt"), ("x.txt is not a .csv or .parquet",)),
    (("--all", "--output", "no/such/folder.csv"), ("there is no folder no/such",)),
    (("--user", 7, "--years", 1999, 1990), ("run backwards",)),
    (("--user", 7, "--seed", 10**30), ("is not a seed",)),
    (("--all", "--output", "x.csv", "--memory", 0), ("memory 0 holds nothing",)),
    (("--user", 7, "--output", "x.csv", "--json"), ("--json", "--output")),
    (("--all", "--output", "."), (". is not a .csv or .parquet",)),
    (("--rate", "1=4", "--explore", "upper"), ("sgd does not know how sure it is",)),
    (("--user", 7, "--exclude", "Film 99"), ("Film 99",)),
    (("--ratings", "nowhere.csv"), ("there is no file nowhere.csv",)),
])  # fmt: skip
def test_a_question_that_cannot_be_answered_is_refused_in_one_sentence(
    question: tuple[object, ...], words: tuple[str, ...], trained: Path, mfrec: Mfrec
) -> None:
    assert_refused(mfrec("recommend", trained, *question), *words)


@pytest.mark.parametrize(("content", "words"), [
    ("", ("is empty",)),
    ("item,rating\n", ("no rows",)),
    ("film,score\n1,4\n", ("film, score", "no item")),
    ("item,rating\n1,four\n", ("'four'", "not a finite number")),
    ("item,rating\n1,4\n2,99\n", ("off the scale",)),
    ("item,rating\n1,4,3,3\n2\n", ("mine.csv",)),
])  # fmt: skip
def test_a_ratings_file_that_cannot_be_is_refused_in_one_sentence(
    content: str, words: tuple[str, ...], trained: Path, mfrec: Mfrec, tmp_path: Path
) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(content)
    assert_refused(mfrec("recommend", trained, "--ratings", path), *words)


def test_a_run_of_another_version_is_refused_by_every_verb(train: Train, mfrec: Mfrec, tmp_path: Path) -> None:
    run = train(tmp_path, "old", epochs=1)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"format": 2}))
    for verb in (("recommend",), ("evaluate",), ("similar", "--item", 1), ("predict", "pairs.csv")):
        assert_refused(mfrec(verb[0], run, *verb[1:]), "another version of mfrec")

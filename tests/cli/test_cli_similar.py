"""`mfrec similar`: items and users whose factors point the same way."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from cli_checks import answer, assert_refused
from conftest import Cli

from mfrec.experiments.run import Run

ALL = ("--min-ratings", 0)


def test_an_item_is_given_by_id_or_by_title_in_any_case(trained_run: Path, cli: Cli) -> None:
    answers = [
        answer(cli("similar", trained_run, "--item", item, "-n", 4, *ALL, "--json"))
        for item in ("8", "Seven Samurai (1954)", "seven samurai (1954)")
    ]
    assert answers[0] == answers[1] == answers[2]
    assert len(answers[0]) == 4
    assert 8 not in {row["id"] for row in answers[0]}
    cosines = [row["cosine"] for row in answers[0]]
    assert cosines == sorted(cosines, reverse=True)
    assert all(-1 <= cosine <= 1 for cosine in cosines)


def test_users_are_compared_too(trained_run: Path, cli: Cli) -> None:
    users = answer(cli("similar", trained_run, "--user", 1, *ALL, "-n", 3, "--json"))
    assert len(users) == 3
    assert all(set(user) == {"cosine", "id", "ratings"} for user in users)
    assert "similar to user 1" in cli("similar", trained_run, "--user", 1, *ALL).out


def test_quotes_commas_and_accents_in_titles_are_kept(trained_run: Path, cli: Cli) -> None:
    title = 'Amélie, or "Fate" (2001)'
    assert f"similar to {title}" in cli("similar", trained_run, "--item", "7", *ALL).out
    assert cli("similar", trained_run, "--item", title, *ALL).status == 0
    rows = answer(cli("similar", trained_run, "--item", 8, "-n", 99, *ALL, "--json"))
    assert {row["id"]: row["title"] for row in rows}[7] == title
    ascii_output = cli("similar", trained_run, "--item", 8, "-n", 99, *ALL, encoding="ascii")
    assert (ascii_output.status, ascii_output.err) == (0, "")
    assert "Am?lie" in ascii_output.out


def test_items_with_few_ratings_are_left_out(trained_run: Path, cli: Cli) -> None:
    counts = Run.open(trained_run).dataset()[0].ratings.item_counts
    lowest = int(counts.median())
    rows = answer(cli("similar", trained_run, "--item", 8, "-n", 99, "--min-ratings", lowest, "--json"))
    assert len(rows) == int((counts >= lowest).sum()) - int(counts[7] >= lowest)


def test_all_items_are_compared_in_a_file(trained_run: Path, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "similar.csv"
    output = cli("similar", trained_run, "--all", *ALL, "-n", 2, "--output", path)
    assert output == (0, f"60 similar items for 30 items in {path}\n", "")
    table = pd.read_csv(path)
    alone = answer(cli("similar", trained_run, "--item", 7, *ALL, "-n", 2, "--json"))
    assert table[table["item"] == 7]["similar"].tolist() == [row["id"] for row in alone]


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_tables_keep_every_number_and_id_on_a_narrow_terminal(
    columns: int, trained_run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    question = ("similar", trained_run, "--item", 8, "-n", 99, *ALL)
    rows, shown = answer(cli(*question, "--json")), cli(*question).out
    assert max(map(len, shown.splitlines())) <= columns
    for word in ("cosine", "title", "genres", "Strangelove", "Drama"):
        assert word in shown
    for row in rows:
        assert re.search(rf"{row['cosine']:.3f} +{row['id']} +\w", shown)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ["give one of --item, --user and --all"]),
        (("--user", 1, "--item", 8), ["give one of --item, --user and --all"]),
        (("--item", 999), ["unknown item '999'"]),
        (("--user", 999), ["unknown user '999'", "40 users"]),
        (("--item", "seven samurai"), ["seven samurai", "Seven Samurai (1954)"]),
        (("--item", "Sevn Samurai (1954)"), ["Sevn Samurai (1954)", "Seven Samurai (1954)"]),
        (("--item", 8, "-n", 0), ["--number must be at least 1 (got 0)"]),
        (("--item", 8, "--min-ratings", -1), ["--min-ratings must be at least 0 (got -1)"]),
        (("--item", 8, "--output", "x.csv"), ["--output needs --all"]),
        (("--all",), ["--all needs --output"]),
        (("--all", "--output", "x.txt"), ["--output must end in .csv or .parquet"]),
        (("--all", "--output", "x.csv", "--memory", 0), ["--memory must be at least 1 (got 0)"]),
    ],
    ids=str,
)
def test_an_impossible_comparison_is_refused(
    options: tuple[object, ...], words: list[str], trained_run: Path, cli: Cli
) -> None:
    assert_refused(cli("similar", trained_run, *options), *words)


def test_no_similar_item_is_said_and_is_an_empty_list(trained_run: Path, cli: Cli) -> None:
    question = ("similar", trained_run, "--item", 8, "--min-ratings", 9999)
    assert "no items match; lower --min-ratings" in cli(*question).out
    assert answer(cli(*question, "--json")) == []

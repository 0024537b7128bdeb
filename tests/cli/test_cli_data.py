"""`mfrec data`, and the files that any verb refuses as data."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_checks import HEADER, SMALL, answer, assert_refused, ratings_text
from conftest import Cli, write_csv


def test_the_embedded_data_has_its_counts_histogram_and_most_rated_titles(cli: Cli) -> None:
    summary = answer(cli("data", "ml-latest-small", "--json"))
    assert (summary["n_users"], summary["n_items"], summary["n_ratings"]) == (671, 9066, 100_004)
    assert summary["density"] == pytest.approx(100_004 / (671 * 9066))
    assert sum(summary["rating_histogram"].values()) == 100_004
    assert summary["most_rated"][0]["title"] == "Forrest Gump (1994)"
    shown = cli("data", "ml-latest-small").out
    for word in ("671", "9,066", "100,004", "Forrest Gump (1994)", "3.5", "341"):
        assert word in shown


def test_columns_may_have_any_name(cli: Cli, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "mine.csv", [("who", "what", "stars"), ("ann", "tea", 4), ("bob", "tea", 5)])
    summary = answer(cli("data", path, "--columns", "who,what,stars", "--json"))
    assert (summary["dataset"], summary["n_users"], summary["n_items"], summary["n_ratings"]) == ("mine", 2, 1, 2)


def test_words_as_ids_work_in_every_verb(cli: Cli, tmp_path: Path) -> None:
    pairs = [(f"user {u}", f"d'été {i}", 1 + (u * i) % 5) for u in range(12) for i in range(9) if (u + i) % 4]
    data = write_csv(tmp_path / "words.csv", [HEADER, *pairs])
    assert cli("train", "--data", data, *SMALL, "--run-dir", tmp_path, "--name", "run").status == 0
    rows = answer(cli("recommend", tmp_path / "run", "--user", "user 3", "--json"))
    assert {row["id"] for row in rows} == {f"d'été {i}" for i in (1, 5)}
    assert cli("similar", tmp_path / "run", "--item", "d'été 3", "--min-ratings", 0).status == 0


def test_repeated_ratings_are_resolved_as_asked(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "twice.csv"
    path.write_bytes(ratings_text("1,2,3", "1,2,5", "1,2,4", "2,2,1"))
    assert_refused(cli("data", path, "--duplicates", "error"), "2 of 4", "last")
    kept = {
        way: answer(cli("data", path, "--duplicates", way, "--json"))["rating_histogram"]
        for way in ("last", "first", "mean")
    }
    assert kept == {"last": {"1": 1, "4": 1}, "first": {"1": 1, "3": 1}, "mean": {"1": 1, "4": 1}}


def zip_of(path: Path, **members: str) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path.read_bytes()


BAD_FILES: dict[str, tuple[Callable[[Path], bytes], list[str]]] = {
    "empty": (lambda path: b"", ["empty"]),
    "header only": (lambda path: ratings_text(), ["no ratings"]),
    "missing column": (lambda path: b"userId,movieId\n1,2\n", ["userId, movieId", "rating"]),
    "text in a rating": (lambda path: ratings_text("1,2,4", "1,3,good"), ["line 3", "good", "number"]),
    "NaN": (lambda path: ratings_text("1,2,nan"), ["line 2", "nan"]),
    "infinite": (lambda path: ratings_text("1,2,inf"), ["line 2", "inf"]),
    "huge exponent": (lambda path: ratings_text("1,2,4", "1,3,1e3091955569"), ["line 3", "1e3091955569"]),
    "no user": (lambda path: ratings_text("1,2,3", ",3,3"), ["line 3", "user"]),
    "out of range": (lambda path: ratings_text("1,2,7"), ["7", "0.5", "5", "rating"]),
    "binary": (lambda path: bytes(range(256)) * 8, ["binary"]),
    "truncated zip": (lambda path: zip_of(path, **{"ratings.csv": ratings_text("1,2,3").decode()})[:60], ["zip"]),
    "corrupt zip": (
        lambda path: zip_of(path, **{"ratings.csv": "userId,movieId,rating\n1,2,3\n"}).replace(b"1,2,3", b"9,9,9"),
        ["ratings.csv", "zip"],
    ),
    "zip that leaves its folder": (lambda path: zip_of(path, **{"../ratings.csv": "x"}), ["../ratings.csv", "outside"]),
    "zip without ratings": (lambda path: zip_of(path, a="x", b="y"), ["ratings.csv"]),
}


@pytest.mark.parametrize("kind", BAD_FILES)
@pytest.mark.parametrize("command", ["train --data", "data"])
def test_a_file_without_ratings_is_refused_by_its_path(command: str, kind: str, cli: Cli, tmp_path: Path) -> None:
    make, words = BAD_FILES[kind]
    path = tmp_path / "given"
    path.write_bytes(make(path))
    named = path if kind != "out of range" else ""
    assert_refused(cli(*command.split(), path), named, *words)


def test_a_huge_or_infinite_timestamp_is_refused_in_one_line(
    cli: Cli, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    for timestamp in ("1041e3091955569", "inf", "-inf", "nan"):
        path = tmp_path / "times.csv"
        path.write_text(f"userId,movieId,rating,timestamp\n1,2,3,4\n1,3,4,{timestamp}\n")
        assert_refused(cli("data", path), path, "line 3", timestamp)
    assert not [str(warning.message) for warning in recwarn]


def test_ratings_of_1_to_10_in_a_tsv_are_not_taken_for_movielens(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "mine.tsv"
    path.write_text("".join(f"{1 + n % 9}\t{1 + n // 9}\t{1 + n * n % 10}\n" for n in range(60)))
    summary = answer(cli("data", path, "--json"))
    assert summary["n_ratings"] == 60
    assert max(map(float, summary["rating_histogram"])) == 10
    assert cli("train", "als", "--data", path, *SMALL, "--run-dir", tmp_path / "runs").status == 0


def test_a_folder_without_ratings_and_a_missing_path_are_refused(cli: Cli, tmp_path: Path) -> None:
    assert_refused(cli("data", tmp_path), tmp_path, "ratings.csv")
    assert_refused(cli("train", "--data", tmp_path / "nothing.csv"), tmp_path / "nothing.csv", "path")

"""User and item tables of MovieLens: ages, occupations, titles and genres, and damaged tables are named."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pandas as pd
import pytest
from data_examples import CSV, assert_unreadable, ml_100k, rows, write

from mfrec.data.readers import read_raw_tables

MOVIES_CSV = (
    "movieId,title,genres\n"
    '31,"City of Lost Children, The (Cité des enfants perdus, La) (1995)",Adventure|Drama\n'
    '1029,"""Great Performances"" Cats (1998)",Musical\n'
    "7,Hyena Road,(no genres listed)\n"
)


def users_of(path: Path) -> pd.DataFrame:
    users = read_raw_tables(path).users
    assert users is not None
    return users


def items_of(path: Path) -> pd.DataFrame:
    items = read_raw_tables(path).items
    assert items is not None
    return items


def test_u_user_has_ages_genders_occupations_and_zip_codes(tmp_path: Path) -> None:
    table = "196|49|M|writer|55105\n186|39|F|executive|00000\n7|57||other|E2A4H\n9||M||\n"
    users = users_of(write(tmp_path, ml_100k({"u.user": table})))
    assert users.columns.tolist() == ["user", "age", "gender", "occupation", "zip_code"]
    assert rows(users) == [
        (196, 49, "M", "writer", "55105"),
        (186, 39, "F", "executive", "00000"),
        (7, 57, None, "other", "E2A4H"),
        (9, pd.NA, "M", None, None),
    ]
    assert users["age"].dtype == "Int64"


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_occupation_codes_of_users_dat_become_names(tmp_path: Path, line_end: str) -> None:
    table = line_end.join(["1::F::1::10::48067", "2::M::56::0::02460-1234", "3::::25::20::", ""])
    users = users_of(write(tmp_path, {"ratings.dat": "1::1193::5\n", "users.dat": table}))
    assert users.columns.tolist() == ["user", "gender", "age", "occupation", "zip_code"]
    assert rows(users) == [
        (1, "F", 1, "K-12 student", "48067"),
        (2, "M", 56, "other", "02460-1234"),
        (3, None, 25, "writer", None),
    ]
    assert users["age"].dtype == "Int64"


def test_users_and_items_match_ratings_whose_ids_stay_text(tmp_path: Path) -> None:
    files = {"ratings.dat": "1::7::5\nann::7::4\n", "users.dat": "1::F::1::10::48067\n"}
    assert users_of(write(tmp_path / "a", files))["user"].tolist() == ["1"]
    files = {"ratings.csv": "userId,movieId,rating\n1,31,2\n1,tt7,3\n", "movies.csv": MOVIES_CSV}
    assert items_of(write(tmp_path / "b", files))["item"].tolist() == ["31", "1029", "7"]


def test_titles_of_movies_csv_keep_commas_quotes_and_accents(tmp_path: Path) -> None:
    path = write(tmp_path, {"ratings.csv": CSV, "movies.csv": MOVIES_CSV})
    items, raw = items_of(path), read_raw_tables(path)
    assert rows(raw.ratings) == [(1, 31, 2.5, 1260759144), (1, 1029, 3.0, 1260759179), (2, 31, 4.5, 835355493)]
    assert items["title"].tolist() == [
        "City of Lost Children, The (Cité des enfants perdus, La) (1995)",
        '"Great Performances" Cats (1998)',
        "Hyena Road",
    ]
    assert items["year"].isna().tolist() == [False, False, True]
    assert items["genres"].tolist() == [("Adventure", "Drama"), ("Musical",), ()]
    assert raw.rating_range == (0.5, 5)


def test_a_movie_without_genres_is_not_a_damaged_table(tmp_path: Path) -> None:
    movies = "movieId,title,genres\n31,Dumbo\n1029,,A\n"
    items = items_of(write(tmp_path, {"ratings.csv": CSV, "movies.csv": movies}))
    assert items["title"].tolist() == ["Dumbo", ""]
    assert items["genres"].tolist() == [(), ("A",)]


# Damaged tables.


def test_genres_and_flags_must_agree(tmp_path: Path) -> None:
    path = write(tmp_path, ml_100k({"u.genre": "unknown|0\n"}))
    assert_unreadable(path, "a flag for each of the 1 genres in u.genre (got 3)", "restore")


@pytest.mark.parametrize(
    "movies",
    ["movieId,name\n1,x\n", "movieId,title,genres\n1,x,y\n2,x,y,z,z\n", "movieId,title\n1,x,y\n2,x,y\n", b"\0\1"],
)
def test_a_damaged_movies_table_is_named_without_a_warning(tmp_path: Path, movies: str | bytes) -> None:
    path = write(tmp_path, {"ratings.csv": CSV, "movies.csv": movies})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_unreadable(path, str(tmp_path / "movies.csv"))


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        (
            "1|24|M|writer|85711\n2|old|F|other|94043\n",
            "age must be a whole number from 0 to 149 (got 'old' of user 2)",
        ),
        ("1|-4|M|writer|85711\n", "(got '-4' of user 1); correct or remove the line"),
        ("1|24|M|writer\n", "must have the fields user, age, gender, occupation, zip_code on each line (got 4 fields)"),
        ("1|24|M|writer|85711|x\n", "(got 6 fields)"),
        ("1|24|M|writer|85711\n2|24|M|writer|85711|x\n", "line 2: the line must have 5 fields"),
        ("\n", "is empty"),
        (b"\0\1", "is a binary file"),
    ],
)
def test_a_damaged_u_user_is_named(tmp_path: Path, table: str | bytes, fault: str) -> None:
    assert_unreadable(write(tmp_path, ml_100k({"u.user": table})), str(tmp_path / "u.user"), fault)


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ("1::F::1::21::48067\n", "occupation must be a whole number from 0 to 20 (got '21' of user 1); correct or"),
        ("1::F::1::writer::48067\n", "occupation must be a whole number from 0 to 20 (got 'writer' of user 1)"),
        ("1::10::F::1::48067\n", "age must be a whole number from 0 to 149 (got 'F' of user 1)"),
        ("1::F::1::10\n", "must have the fields user, gender, age, occupation, zip_code on each line (got 4 fields)"),
        ("", "is empty"),
    ],
)
def test_a_damaged_users_dat_is_named(tmp_path: Path, table: str, fault: str) -> None:
    files = {"ratings.dat": "1::1193::5\n", "users.dat": table}
    assert_unreadable(write(tmp_path, files), str(tmp_path / "users.dat"), fault)


# Real data.


@pytest.mark.parametrize(("name", "n_users", "youngest", "oldest"), [("ml-100k", 943, 7, 73), ("ml-1m", 6040, 1, 56)])
def test_real_user_tables_are_complete(shared_data: Path, name: str, n_users: int, youngest: int, oldest: int) -> None:
    users = users_of(shared_data / name)
    assert len(users) == users["user"].nunique() == n_users
    assert not users.isna().any(axis=None)
    assert (users["age"].min(), users["age"].max()) == (youngest, oldest)
    assert set(users["gender"]) == {"F", "M"}
    assert users["occupation"].nunique() == 21


def test_occupations_have_the_names_in_the_readme_of_ml_1m(shared_data: Path, tmp_path: Path) -> None:
    readme = (shared_data / "ml-1m" / "README").read_text(encoding="latin-1")
    named = re.findall(r'^\s+\*\s+(\d+):\s+"([^"]+)"', readme[readme.index("- Occupation is") :], re.MULTILINE)
    table = "".join(f"{code}::F::1::{code}::x\n" for code, _ in named)
    users = users_of(write(tmp_path, {"ratings.dat": "1::1193::5\n", "users.dat": table}))
    assert users["occupation"].tolist() == [occupation for _, occupation in named]
    assert len(users) == 21


def test_data_without_a_user_table_have_none(shared_data: Path) -> None:
    assert read_raw_tables(shared_data / "ml-latest-small").users is None

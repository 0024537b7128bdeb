"""Readers: every format from folder, file and zip, and one clear sentence for whatever cannot be read."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mfrec.data.readers import read
from mfrec.errors import InputError

CSV = "userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n1,1029,3.0,1260759179\n2,31,4.5,835355493\n"
MOVIES = (
    "movieId,title,genres\n"
    '31,"City of Lost Children, The (Cité des enfants perdus, La) (1995)",Adventure|Drama\n'
    '1029,"""Great Performances"" Cats (1998)",Musical\n'
    "7,Hyena Road,(no genres listed)\n"
)
U_DATA = "196\t242\t3\t881250949\n186\t302\t3\t891717742\n196\t302\t1\t878887116\n"


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def pack(path: Path, files: dict[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def rows(ratings: pd.DataFrame) -> list[tuple[object, ...]]:
    return [tuple(row) for row in ratings.astype(object).itertuples(index=False)]


def assert_refused(path: Path, *parts: str, columns: str | None = None) -> None:
    """One sentence, on one line, with all these parts."""
    with pytest.raises(InputError) as caught:
        read(path, columns)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def ml_100k(extra: dict[str, str | bytes] | None = None) -> dict[str, str | bytes]:
    return {
        "u.data": U_DATA,
        "u.item": "242|Kolya (1996)|24-Jan-1997||http://x|0|1|0\n302|Misérables, Les (1995)|||http://x|1|0|1\n".encode(
            "latin-1"
        ),
        "u.genre": "unknown|0\nAction|1\nComedy|2\n\n",
        "u1.test": "196\t302\t1\t878887116\n",
        **(extra or {}),
    }


def test_ml_100k_comes_with_titles_genres_and_official_splits(tmp_path: Path) -> None:
    raw = read(write(tmp_path, ml_100k()))
    assert rows(raw.ratings)[0] == (196, 242, 3.0, 881250949)
    assert raw.items is not None
    assert raw.items["title"].tolist() == ["Kolya (1996)", "Misérables, Les (1995)"]
    assert raw.items["year"].tolist() == [1996, 1995]
    assert raw.items["genres"].tolist() == [("Action",), ("unknown", "Comedy")]
    assert raw.scale == (1, 5)
    assert {name: mask.tolist() for name, mask in raw.official_splits.items()} == {"u1": [False, False, True]}


def test_a_file_is_told_by_its_content_and_read_alone(tmp_path: Path) -> None:
    raw = read(write(tmp_path, ml_100k({"anything": U_DATA})) / "anything")
    assert len(raw.ratings) == 3
    assert raw.users is None
    assert raw.items is None
    assert not raw.official_splits


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize("stamp", ["", "::978300760"])
def test_double_colon_files_with_and_without_timestamps(tmp_path: Path, stamp: str, encoding: str) -> None:
    movies = "1193::Misérables: Les (1995)::Drama|Children's\n661::James (1996)::Musical\n".encode(encoding)
    files = {"ratings.dat": f"1::1193::5{stamp}\n1::661::3{stamp}\n", "movies.dat": movies}
    raw = read(write(tmp_path, files))
    assert rows(raw.ratings)[0] == (1, 1193, 5.0, 978300760)[: 4 if stamp else 3]
    assert raw.items is not None
    assert raw.items["title"].tolist() == ["Misérables: Les (1995)", "James (1996)"]
    assert raw.items["genres"].tolist() == [("Drama", "Children's"), ("Musical",)]
    assert raw.scale == (1, 5)


def test_u_user_comes_with_ages_genders_occupations_and_zip_codes(tmp_path: Path) -> None:
    table = "196|49|M|writer|55105\n186|39|F|executive|00000\n7|57||other|E2A4H\n9||M||\n"
    users = read(write(tmp_path, ml_100k({"u.user": table}))).users
    assert users is not None
    assert users.columns.tolist() == ["user", "age", "gender", "occupation", "zip_code"]
    assert rows(users) == [
        (196, 49, "M", "writer", "55105"),
        (186, 39, "F", "executive", "00000"),
        (7, 57, None, "other", "E2A4H"),
        (9, pd.NA, "M", None, None),
    ]
    assert users["age"].dtype == "Int64"


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_users_dat_comes_with_the_names_of_its_occupation_codes(tmp_path: Path, line_end: str) -> None:
    table = line_end.join(["1::F::1::10::48067", "2::M::56::0::02460-1234", "3::::25::20::", ""])
    users = read(write(tmp_path, {"ratings.dat": "1::1193::5\n", "users.dat": table})).users
    assert users is not None
    assert users.columns.tolist() == ["user", "gender", "age", "occupation", "zip_code"]
    assert rows(users) == [
        (1, "F", 1, "K-12 student", "48067"),
        (2, "M", 56, "other", "02460-1234"),
        (3, None, 25, "writer", None),
    ]
    assert users["age"].dtype == "Int64"


def test_users_match_ratings_whose_ids_stay_text(tmp_path: Path) -> None:
    files = {"ratings.dat": "1::7::5\nann::7::4\n", "users.dat": "1::F::1::10::48067\n"}
    users = read(write(tmp_path, files)).users
    assert users is not None
    assert users["user"].tolist() == ["1"]


def test_half_stars_make_the_scale_of_ml_10m(tmp_path: Path) -> None:
    assert read(write(tmp_path, {"ratings.dat": "1::1::5::9\n1::2::3.5::9\n"})).scale == (0.5, 5)


def test_csv_titles_keep_commas_quotes_and_accents(tmp_path: Path) -> None:
    raw = read(write(tmp_path, {"ratings.csv": CSV, "movies.csv": MOVIES}))
    assert rows(raw.ratings) == [(1, 31, 2.5, 1260759144), (1, 1029, 3.0, 1260759179), (2, 31, 4.5, 835355493)]
    assert raw.items is not None
    assert raw.items["title"].tolist() == [
        "City of Lost Children, The (Cité des enfants perdus, La) (1995)",
        '"Great Performances" Cats (1998)',
        "Hyena Road",
    ]
    assert raw.items["year"].isna().tolist() == [False, False, True]
    assert raw.items["genres"].tolist() == [("Adventure", "Drama"), ("Musical",), ()]
    assert raw.scale == (0.5, 5)


@pytest.mark.parametrize("top", ["", "ml-latest/"])
def test_a_zip_reads_like_its_folder(tmp_path: Path, top: str) -> None:
    files = {"ratings.csv": CSV, "movies.csv": MOVIES}
    path = pack(tmp_path / "any.zip", {f"{top}{name}": content for name, content in files.items()})
    zipped, folder = read(path), read(write(tmp_path / "folder", files))
    assert rows(zipped.ratings) == rows(folder.ratings)
    assert zipped.items is not None
    assert folder.items is not None
    pd.testing.assert_frame_equal(zipped.items, folder.items)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["any.zip", "folder"]


def test_a_zip_of_one_table_of_any_name(tmp_path: Path) -> None:
    path = pack(tmp_path / "one.zip", {"__MACOSX/._mine.txt": b"\0", "mine.txt": CSV})
    assert len(read(path).ratings) == 3


@pytest.mark.parametrize("separator", [",", "\t", ";"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_any_delimited_table_by_its_columns(tmp_path: Path, separator: str, line_end: str, mark: str) -> None:
    lines = [["when", "stars", "who", "what"], ["7", "4.5", "ann", "x y"], ["8", "1", "bob", "NA"]]
    text = mark + line_end.join(separator.join(line) for line in lines) + line_end
    path = write(tmp_path, {"table.txt": text}) / "table.txt"
    assert rows(read(path, "who,what,stars").ratings) == [("ann", "x y", 4.5), ("bob", "NA", 1.0)]
    assert rows(read(path, ["who", "what", "stars", "when"]).ratings) == [("ann", "x y", 4.5, 7), ("bob", "NA", 1.0, 8)]
    assert read(path, "who,what,stars").scale is None


def test_parquet_by_its_columns(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "table.parquet"
    pd.DataFrame({"who": ["007", "7"], "what": [3, 4], "stars": [1, 2.5]}).to_parquet(path)
    assert rows(read(path, "who,what,stars").ratings) == [("007", 3, 1.0), ("7", 4, 2.5)]
    assert_refused(path, "no column 'rating'", "'who, what, stars'", "USER,ITEM", columns="who,what,rating")
    path.write_bytes(path.read_bytes()[:60])
    assert_refused(path, str(path), "not whole parquet", "make it again")


def test_parquet_without_pyarrow_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_engine(*args: object, **kwargs: object) -> None:
        raise ImportError("Missing optional dependency 'pyarrow'.")

    monkeypatch.setattr(pd, "read_parquet", no_engine)
    path = write(tmp_path, {"t.parquet": b"PAR1...."}) / "t.parquet"
    assert_refused(path, "needs pyarrow", "pip install pyarrow", "or give a CSV")


def test_ids_become_integers_only_where_no_text_changes(tmp_path: Path) -> None:
    text = "user,item,rating\n007,10,1\n7,9,2\n"
    assert rows(read(write(tmp_path, {"t.csv": text}) / "t.csv").ratings) == [("007", 10, 1.0), ("7", 9, 2.0)]
    big = f"user,item,rating\n{2**63},-1,1\n5,+1,2\n"
    assert rows(read(write(tmp_path, {"t.csv": big}) / "t.csv").ratings) == [(str(2**63), "-1", 1.0), ("5", "+1", 2.0)]


def test_movies_match_ratings_whose_ids_stay_text(tmp_path: Path) -> None:
    raw = read(write(tmp_path, {"ratings.csv": "userId,movieId,rating\n1,31,2\n1,tt7,3\n", "movies.csv": MOVIES}))
    assert raw.items is not None
    assert raw.items["item"].tolist() == ["31", "1029", "7"]


# What cannot be read.


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", f"no file, folder or zip at {tmp_path / 'nowhere'}", "check the path")


@pytest.mark.parametrize(
    ("files", "held"),
    [
        ({}, "no files"),
        ({"README": "x"}, "README"),
        ({"u.item": "1|a", "u1.base": U_DATA, "u1.test": U_DATA}, "u.item, u1.base, u1.test"),
        ({"a.csv": CSV, "b.csv": CSV}, "a.csv, b.csv"),
    ],
)
def test_a_folder_without_ratings_says_what_it_holds(tmp_path: Path, files: dict[str, str], held: str) -> None:
    path = write(tmp_path / "folder", files)
    assert_refused(path, f"{path} holds {held} and not u.data, ratings.dat", "give the path of the ratings file itself")
    path = pack(tmp_path / "folder.zip", {**files, "more/deep": "x"} if files else {})
    assert_refused(path, f"{path} holds", "and not u.data", "give the path")


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    path = write(tmp_path, {"ratings.csv": content}) / "ratings.csv"
    assert_refused(path, f"{path} is empty", "should hold")


def test_a_header_alone_is_refused(tmp_path: Path) -> None:
    assert_refused(write(tmp_path, {"ratings.csv": "userId,movieId,rating\n"}), "has a header and no ratings")


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, {"ratings.csv": "userId,film,rating\n1,2,3\n"})
    assert_refused(path, "'userId, film, rating'", "not userId,movieId,rating", "--columns USER,ITEM,RATING")
    assert_refused(path, "no column 'movie'", "'userId, film, rating'", "--columns USER", columns="userId,movie,rating")


@pytest.mark.parametrize("columns", ["user,item", "a,b,c,d,e", "a,a,b", "a,,b"])
def test_columns_are_three_or_four_names(tmp_path: Path, columns: str) -> None:
    assert_refused(write(tmp_path, {"ratings.csv": CSV}), repr(columns), "three or four names", columns=columns)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("1,5,good,9", "line 4: rating 'good' is not a number"),
        ("1,5,,9", "line 4: rating '' is not a number"),
        ("1,5,nan,9", "line 4: rating 'nan' is not a finite number"),
        ("1,5,-inf,9", "line 4: rating '-inf' is not a finite number"),
        (",5,3,9", "line 4: the user id is empty"),
        ("1,,3,9", "line 4: the item id is empty"),
        ("1,5,3,May 1997", "line 4: timestamp 'May 1997' is not whole seconds since 1970"),
        ("1,5,3,", "line 4: timestamp '' is not whole seconds"),
        ("1,5,3", "line 4: 3 fields where the first line has 4"),
        ("1,5,3,9,0", "line 4: 5 fields where the first line has 4"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "tab", "::"])
def test_a_bad_line_is_named_by_number_and_value(tmp_path: Path, line: str, fault: str, kind: str) -> None:
    lines = [*CSV.splitlines()[:3], line, "3,3,3,3"]
    if kind != "csv":
        lines[0] = "7,7,7,7"
    text = "\n".join(lines).replace(",", {"csv": ",", "tab": "\t", "::": "::"}[kind]) + "\n"
    path = write(tmp_path, {"some": text}) / "some"
    assert_refused(path, str(path), fault, "mend or drop the line")


def test_a_surplus_field_on_every_line_is_not_taken_for_an_index(tmp_path: Path) -> None:
    path = write(tmp_path, {"ratings.csv": "userId,movieId,rating\n0,1,2,3\n1,1,3,3\n"})
    assert_refused(path, "line 2: 4 fields where the first line has 3")


def test_a_first_line_in_text_is_a_bad_line_where_others_are_numbers(tmp_path: Path) -> None:
    assert_refused(write(tmp_path, {"u.data": f"1\t2\tgood\t5\n{U_DATA}"}), "line 1: rating 'good' is not a number")
    assert_refused(write(tmp_path, {"u.data": "1\t2\n"}), "line 1: '1\\t2' has 2 fields", "give the columns a header")


def test_an_open_quote_is_refused(tmp_path: Path) -> None:
    assert_refused(write(tmp_path, {"ratings.csv": CSV + '"1,2,3,4\n'}), "ratings.csv, line 5: 1 fields")


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n\0\0", b"\x1f\x8b\x08", CSV.encode("utf-16"), CSV.encode() + b"\0"]
)
def test_a_binary_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, {"ratings.csv": content}) / "ratings.csv"
    assert_refused(path, f"{path} is a binary file", "give text, parquet or a zip")


@pytest.mark.parametrize("name", ["../x.csv", "a/../../x.csv", "/etc/x.csv", "..\\x.csv", "C:\\x.csv"])
def test_a_zip_that_reaches_outside_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    path = pack(tmp_path / "bad.zip", {"ratings.csv": CSV, name: "x"})
    assert_refused(path, str(path), "outside its own folder", "make the zip without it")


def test_a_truncated_zip_is_refused(tmp_path: Path) -> None:
    whole = pack(tmp_path / "whole.zip", {"ratings.csv": CSV * 50}).read_bytes()
    for size in (10, len(whole) // 2, len(whole) - 5):
        path = write(tmp_path, {"part.zip": whole[:size]}) / "part.zip"
        assert_refused(path, f"{path} is not a whole zip", "fetch or make it again")


def test_a_corrupt_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    random = np.random.default_rng(0).integers(0, 9, (400, 3))
    pack(path, {"ratings.csv": "userId,movieId,rating\n" + "\n".join(",".join(map(str, row)) for row in random)})
    data = bytearray(path.read_bytes())
    data[200:220] = bytes(20)
    path.write_bytes(data)
    assert_refused(path, f"ratings.csv in {path} cannot be unpacked", "again")


def test_official_tests_must_be_in_the_data(tmp_path: Path) -> None:
    path = write(tmp_path, ml_100k({"u1.test": "196\t999\t1\t878887116\n"}))
    assert_refused(path, "u1.test has 1 ratings that u.data lacks", "remove u1.test")


def test_genres_and_flags_must_agree(tmp_path: Path) -> None:
    assert_refused(write(tmp_path, ml_100k({"u.genre": "unknown|0\n"})), "names 1 genres", "flags 3", "restore")


@pytest.mark.parametrize("movies", ["movieId,name\n1,x\n", "movieId,title,genres\n1,x,y\n2,x,y,z,z\n", b"\0\1"])
def test_a_damaged_movies_table_is_named(tmp_path: Path, movies: str | bytes) -> None:
    assert_refused(write(tmp_path, {"ratings.csv": CSV, "movies.csv": movies}), str(tmp_path / "movies.csv"))


def test_a_movie_without_genres_is_not_a_damaged_table(tmp_path: Path) -> None:
    items = read(write(tmp_path, {"ratings.csv": CSV, "movies.csv": "movieId,title,genres\n31,Dumbo\n1029,,A\n"})).items
    assert items is not None
    assert items["title"].tolist() == ["Dumbo", ""]
    assert items["genres"].tolist() == [(), ("A",)]


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ("1|24|M|writer|85711\n2|old|F|other|94043\n", "age 'old' of user 2 is not a whole number from 0 to 149; mend"),
        ("1|-4|M|writer|85711\n", "age '-4' of user 1"),
        ("1|24|M|writer\n", "has 4 fields a line where user, age, gender, occupation, zip_code are due; restore or"),
        ("1|24|M|writer|85711|x\n", "has 6 fields a line"),
        ("1|24|M|writer|85711\n2|24|M|writer|85711|x\n", "cannot be read"),
        ("\n", "is empty"),
        (b"\0\1", "is a binary file"),
    ],
)
def test_a_damaged_u_user_is_named(tmp_path: Path, table: str | bytes, fault: str) -> None:
    assert_refused(write(tmp_path, ml_100k({"u.user": table})), str(tmp_path / "u.user"), fault)


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ("1::F::1::21::48067\n", "occupation '21' of user 1 is not a whole number from 0 to 20; mend or drop the line"),
        ("1::F::1::writer::48067\n", "occupation 'writer' of user 1"),
        ("1::10::F::1::48067\n", "age 'F' of user 1"),
        ("1::F::1::10\n", "has 4 fields a line where user, gender, age, occupation, zip_code are due; restore or"),
        ("", "is empty"),
    ],
)
def test_a_damaged_users_dat_is_named(tmp_path: Path, table: str, fault: str) -> None:
    files = {"ratings.dat": "1::1193::5\n", "users.dat": table}
    assert_refused(write(tmp_path, files), str(tmp_path / "users.dat"), fault)


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, {"ratings.csv": CSV}) / "ratings.csv"

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert_refused(path, f"{path} cannot be read (Permission denied)", "check its permissions")


# Real data.


@pytest.mark.parametrize(
    ("name", "n_ratings", "scale"),
    [("ml-100k", 100_000, (1, 5)), ("ml-1m", 1_000_209, (1, 5)), ("ml-latest-small", 100_836, (0.5, 5))],
)
def test_real_folders(shared_data: Path, name: str, n_ratings: int, scale: tuple[float, float]) -> None:
    raw = read(shared_data / name)
    assert len(raw.ratings) == n_ratings
    assert raw.scale == scale
    assert raw.items is not None
    assert raw.items["title"].iloc[0] == "Toy Story (1995)"
    sizes = {split: int(mask.sum()) for split, mask in raw.official_splits.items()}
    assert sizes == (
        {**dict.fromkeys(("u1", "u2", "u3", "u4", "u5"), 20_000), "ua": 9_430, "ub": 9_430} if name == "ml-100k" else {}
    )


@pytest.mark.parametrize(("name", "n_users", "youngest", "oldest"), [("ml-100k", 943, 7, 73), ("ml-1m", 6040, 1, 56)])
def test_real_users(shared_data: Path, name: str, n_users: int, youngest: int, oldest: int) -> None:
    users = read(shared_data / name).users
    assert users is not None
    assert len(users) == users["user"].nunique() == n_users
    assert not users.isna().any(axis=None)
    assert (users["age"].min(), users["age"].max()) == (youngest, oldest)
    assert set(users["gender"]) == {"F", "M"}
    assert users["occupation"].nunique() == 21


def test_occupations_have_the_names_of_the_readme(shared_data: Path, tmp_path: Path) -> None:
    readme = (shared_data / "ml-1m" / "README").read_text(encoding="latin-1")
    named = re.findall(r'^\s+\*\s+(\d+):\s+"([^"]+)"', readme[readme.index("- Occupation is") :], re.MULTILINE)
    table = "".join(f"{code}::F::1::{code}::x\n" for code, _ in named)
    users = read(write(tmp_path, {"ratings.dat": "1::1193::5\n", "users.dat": table})).users
    assert users is not None
    assert users["occupation"].tolist() == [occupation for _, occupation in named]
    assert len(users) == 21


def test_data_without_a_table_of_users_have_none(shared_data: Path) -> None:
    assert read(shared_data / "ml-latest-small").users is None

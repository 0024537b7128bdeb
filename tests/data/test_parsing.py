"""Parsing ratings files: every layout is read, ids keep their text, and a faulty line is named."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from data_examples import CSV, U_DATA, assert_unreadable, rows, write, write_file

from mfrec.data import text
from mfrec.data.parsing import read_ratings
from mfrec.data.readers import read_raw_tables


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize("stamp", ["", "::978300760"])
def test_double_colon_files_are_read_with_and_without_timestamps(tmp_path: Path, stamp: str, encoding: str) -> None:
    movies = "1193::Misérables: Les (1995)::Drama|Children's\n661::James (1996)::Musical\n".encode(encoding)
    files = {"ratings.dat": f"1::1193::5{stamp}\n1::661::3{stamp}\n", "movies.dat": movies}
    raw = read_raw_tables(write(tmp_path, files))
    assert rows(raw.ratings)[0] == (1, 1193, 5.0, 978300760)[: 4 if stamp else 3]
    assert raw.items is not None
    assert raw.items["title"].tolist() == ["Misérables: Les (1995)", "James (1996)"]
    assert raw.items["genres"].tolist() == [("Drama", "Children's"), ("Musical",)]
    assert raw.rating_range == (1, 5)


def test_half_stars_between_double_colons_declare_the_range_of_ml_10m(tmp_path: Path) -> None:
    assert read_raw_tables(write(tmp_path, {"ratings.dat": "1::1::5::9\n1::2::3.5::9\n"})).rating_range == (0.5, 5)


@pytest.mark.parametrize(
    ("ratings", "rating_range"),
    [([1, 5, 3], (1, 5)), ([1, 2, 2], (1, 5)), ([1, 10, 7], None), ([0, 5, 3], None), ([1, 4.5, 3], None)],
)
def test_a_headerless_table_between_tabs_is_ml_100k_only_if_its_ratings_are_whole_stars(
    tmp_path: Path, ratings: list[float], rating_range: tuple[float, float] | None
) -> None:
    path = write_file(tmp_path / "u", "".join(f"{n}\t7\t{rating}\t5\n" for n, rating in enumerate(ratings)))
    assert read_raw_tables(path).rating_range == rating_range


@pytest.mark.parametrize("separator", [",", "\t", ";"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_any_delimited_table_is_read_by_its_column_names(
    tmp_path: Path, separator: str, line_end: str, mark: str
) -> None:
    lines = [["when", "stars", "who", "what"], ["7", "4.5", "ann", "x y"], ["8", "1", "bob", "NA"]]
    path = write_file(tmp_path / "table.txt", mark + line_end.join(separator.join(line) for line in lines) + line_end)
    three, four = read_raw_tables(path, "who,what,stars"), read_raw_tables(path, ["who", "what", "stars", "when"])
    assert rows(three.ratings) == [("ann", "x y", 4.5), ("bob", "NA", 1.0)]
    assert rows(four.ratings) == [("ann", "x y", 4.5, 7), ("bob", "NA", 1.0, 8)]
    assert three.rating_range is None


def test_parquet_is_read_by_its_column_names(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pd.DataFrame({"who": ["007", "7"], "what": [3, 4], "stars": [1, 2.5]}).to_parquet(path)
    assert rows(read_raw_tables(path, "who,what,stars").ratings) == [("007", 3, 1.0), ("7", 4, 2.5)]
    parts = ("has no column 'rating'", "it has 'who, what, stars'", "columns='USER,ITEM,RATING")
    assert_unreadable(path, *parts, columns="who,what,rating")
    path.write_bytes(path.read_bytes()[:60])
    assert_unreadable(path, str(path), "damaged parquet", "make it again")


def test_ids_become_integers_only_if_no_text_changes(tmp_path: Path) -> None:
    path = write_file(tmp_path / "t.csv", "user,item,rating\n007,10,1\n7,9,2\n")
    assert rows(read_raw_tables(path).ratings) == [("007", 10, 1.0), ("7", 9, 2.0)]
    path = write_file(tmp_path / "t.csv", f"user,item,rating\n{2**63},-1,1\n5,+1,2\n")
    assert rows(read_raw_tables(path).ratings) == [(str(2**63), "-1", 1.0), ("5", "+1", 2.0)]


def test_blank_lines_before_the_header_are_skipped(tmp_path: Path) -> None:
    path = write_file(tmp_path / "t.csv", " \n\r\n" + "\n" * 70_000 + CSV)
    assert len(read_raw_tables(path).ratings) == 3


def test_a_first_line_longer_than_the_examined_part_may_be_cut_inside_a_character(tmp_path: Path) -> None:
    header = "user,item,rating," + "é" * 70_000
    assert_unreadable(write_file(tmp_path / "t.csv", header), "has a header and no ratings")
    assert_unreadable(write_file(tmp_path / "t.csv", "x" + header), "must have the columns")


# Files that cannot be read.


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    path = write_file(tmp_path / "ratings.csv", content)
    assert_unreadable(path, f"{path} is empty", "must hold")


def test_a_header_without_ratings_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"ratings.csv": "userId,movieId,rating\n"})
    assert_unreadable(path, "has a header and no ratings")


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, {"ratings.csv": "userId,film,rating\n1,2,3\n"})
    assert_unreadable(
        path, "'userId, film, rating'", "must have the columns userId,movieId,rating", "columns='USER,ITEM"
    )
    assert_unreadable(path, "has no column 'movie'", "'userId, film, rating'", columns="userId,movie,rating")


@pytest.mark.parametrize("columns", ["user,item", "a,b,c,d,e", "a,a,b", "a,,b"])
def test_columns_must_be_three_or_four_distinct_names(tmp_path: Path, columns: str) -> None:
    parts = ("columns must be 3 or 4 distinct names", repr(columns))
    assert_unreadable(write(tmp_path, {"ratings.csv": CSV}), *parts, columns=columns)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("1,5,good,9", "the rating must be a finite number (got 'good')"),
        ("1,5,,9", "the rating must be a finite number (got '')"),
        ("1,5,nan,9", "the rating must be a finite number (got 'nan')"),
        ("1,5,-inf,9", "the rating must be a finite number (got '-inf')"),
        ("1,5,1e3091955569,9", "the rating must be a finite number (got '1e3091955569')"),
        ("1,5,-1e999,9", "the rating must be a finite number (got '-1e999')"),
        ("1,5,1_0,9", "the rating must be a finite number (got '1_0')"),
        ("1,5,٣,9", "the rating must be a finite number (got '٣')"),
        (",5,3,9", "the user id is empty"),
        ("1,,3,9", "the item id is empty"),
        ("1,5,3,May 1997", "the timestamp must be whole seconds since 1970 (got 'May 1997')"),
        ("1,5,3,", "the timestamp must be whole seconds since 1970 (got '')"),
        ("1,5,3,7.5", "the timestamp must be whole seconds since 1970 (got '7.5')"),
        ("1,5,3,inf", "the timestamp must be whole seconds since 1970 (got 'inf')"),
        ("1,5,3,nan", "the timestamp must be whole seconds since 1970 (got 'nan')"),
        ("1,5,3,1041e3091955569", "the timestamp must be whole seconds since 1970 (got '1041e3091955569')"),
        ("1,5,3,1e30", "the timestamp must be whole seconds since 1970 (got '1e30')"),
        ("1,5,3,99999999999999999999", "the timestamp must be whole seconds since 1970 (got '99999999999999999999')"),
        ("1,5,3", "the line must have 4 fields, as the first line has (got 3)"),
        ("1,5,3,9,0", "the line must have 4 fields, as the first line has (got 5)"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "tab", "::"])
def test_a_faulty_line_is_named_by_number_and_value_without_a_warning(
    tmp_path: Path, line: str, fault: str, kind: str
) -> None:
    lines = [*CSV.splitlines()[:3], line, "3,3,3,3"]
    if kind != "csv":
        lines[0] = "7,7,7,7"
    content = "\n".join(lines).replace(",", {"csv": ",", "tab": "\t", "::": "::"}[kind]) + "\n"
    path = write_file(tmp_path / "some", content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_unreadable(path, str(path), f"line 4: {fault}; correct or remove the line")


@pytest.mark.parametrize("number", ["1e-3091955569", "0." + "0" * 700 + "1", "1e-400"])
def test_a_tiny_rating_is_zero(tmp_path: Path, number: str) -> None:
    assert rows(read_raw_tables(write(tmp_path, {"ratings.csv": f"{CSV}1,5,{number},9\n"})).ratings)[-1][2] == 0


def test_numbers_are_read_to_the_last_bit() -> None:
    random = np.random.default_rng(0)
    numbers = [str(number) for number in random.standard_normal(500)]
    numbers += [f"{digits}e{exponent}" for digits in random.integers(1, 10**18, 20) for exponent in (-300, -30, 0, 30)]
    ratings, _ = read_ratings(
        "t", ("user,item,rating\n" + "".join(f"1,{n},{x}\n" for n, x in enumerate(numbers))).encode(), None
    )
    assert ratings["rating"].tolist() == [float(number) for number in numbers]


def test_a_surplus_field_on_every_line_is_not_taken_for_an_index(tmp_path: Path) -> None:
    path = write(tmp_path, {"ratings.csv": "userId,movieId,rating\n0,1,2,3\n1,1,3,3\n"})
    assert_unreadable(path, "line 2: the line must have 3 fields, as the first line has (got 4)")


def test_text_in_the_first_line_is_a_fault_if_its_fields_after_it_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, {"u.data": f"1\t2\tgood\t5\n{U_DATA}"})
    assert_unreadable(path, "line 1: the rating must be a finite number (got 'good')")
    path = write(tmp_path, {"u.data": "1\t2\n"})
    assert_unreadable(path, "line 1: a rating has the fields user, item", "got 2 in '1\\t2'", "give the file a header")


def test_an_open_quote_is_refused(tmp_path: Path) -> None:
    assert_unreadable(write(tmp_path, {"ratings.csv": CSV + '"1,2,3,4\n'}), "ratings.csv, line 5: the line must have 4")


QUOTED = 'user,item,rating,note\n1,"a, ""b""",4,"two\nlines"\n 2,c"d,1,"e"f\n  \n\n0,0,0,0\n'


@pytest.mark.parametrize("ending", ["\n", "", "\r\n"])
def test_quoted_fields_hold_separators_quotes_and_line_ends(tmp_path: Path, ending: str) -> None:
    path = write_file(tmp_path / "t.csv", QUOTED[:-1] + ending)
    assert rows(read_raw_tables(path).ratings) == [("1", 'a, "b"', 4.0), (" 2", 'c"d', 1.0), ("0", "0", 0.0)]
    assert rows(read_raw_tables(path, "user,note,rating").ratings)[:2] == [("1", "two\nlines", 4.0), (" 2", "ef", 1.0)]


@pytest.mark.parametrize("ending", ["\n", ""])
@pytest.mark.parametrize("after", ["", "5,6,7,8\n9,9,9,9", "\n\n5,6,7,z"])
def test_a_quote_that_is_open_at_the_end_is_refused_though_the_line_has_all_fields(
    tmp_path: Path, after: str, ending: str
) -> None:
    path = write_file(tmp_path / "t.csv", f'{QUOTED}\n3,4,5,"open\n{after}{ending}')
    assert_unreadable(path, f"{path}, line 9: a quote is open at the end of the file")


def test_a_line_with_too_few_fields_is_refused_though_no_wanted_field_is_missing(tmp_path: Path) -> None:
    path = write_file(tmp_path / "t.csv", "user,item,rating,note\n1,2,3,x\n4,5,6\n")
    assert_unreadable(path, f"{path}, line 3: the line must have 4 fields, as the first line has (got 3)")


@pytest.mark.parametrize(
    ("stamp", "seconds"),
    [("+5", 5), ("7.0", 7), ("1e9", 10**9), (str(2**63 - 1), 2**63 - 1), (str(-(2**63)), -(2**63)), (" 9 ", 9)],
)
def test_timestamps_are_whole_seconds_in_any_notation(tmp_path: Path, stamp: str, seconds: int) -> None:
    path = write(tmp_path, {"ratings.csv": f"{CSV}1,5,3,{stamp}\n"})
    assert rows(read_raw_tables(path).ratings)[-1] == (1, 5, 3.0, seconds)


@pytest.mark.parametrize("stamp", ["0x10", "0X1f", str(2**63), str(-(2**63) - 1)])
def test_hexadecimal_and_huge_timestamps_are_refused(tmp_path: Path, stamp: str) -> None:
    path = write(tmp_path, {"ratings.csv": f"{CSV}1,5,3,{stamp}\n"})
    assert_unreadable(path, "line 5: the timestamp must be whole seconds since 1970", stamp)
    path = write(tmp_path, {"ratings.csv": f"{CSV}0x10,5,3,1\n"})
    assert [user for user, *_ in rows(read_raw_tables(path).ratings)] == ["1", "1", "2", "0x10"]


def test_bytes_that_are_not_utf_8_are_read_as_latin_1(tmp_path: Path) -> None:
    content = "user,item,rating,über\né,ß,3,ü\n"
    for encoding in ("utf-8", "utf-8-sig", "latin-1"):
        path = write_file(tmp_path / encoding, content.encode(encoding))
        assert rows(read_raw_tables(path).ratings) == [("é", "ß", 3.0)]


def test_ids_of_many_blocks_are_one_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_BLOCK_SIZE", 64)
    lines = [(n % 7, f"i{n % 11}", n % 5 + 0.5, n) for n in range(100)]
    content = "user,item,rating,timestamp\n" + "".join(",".join(map(str, line)) + "\n" for line in lines)
    ratings = read_raw_tables(write_file(tmp_path / "t.csv", content)).ratings
    assert rows(ratings) == lines
    assert ratings["item"].cat.categories.tolist() == [f"i{n}" for n in range(11)]


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n\0\0", b"\x1f\x8b\x08", CSV.encode("utf-16"), CSV.encode() + b"\0"]
)
def test_a_binary_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = write_file(tmp_path / "ratings.csv", content)
    assert_unreadable(path, f"{path} is a binary file", "give text, parquet or a zip")

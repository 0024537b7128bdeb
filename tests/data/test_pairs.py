"""Tables of pairs: columns found by any of their names, ids as in ratings files, and one sentence for each fault."""

from __future__ import annotations

import warnings
from pathlib import Path

import pandas as pd
import pytest
from data_examples import assert_refused, rows, write_file

from mfrec.data.pairs import read_table


@pytest.mark.parametrize("separator", [",", "\t", ";"])
@pytest.mark.parametrize("header", ["user,item,rating,note", "userId,movieId,stars,note", "user_id,title,stars,note"])
def test_columns_are_found_by_their_names_and_further_columns_stay(tmp_path: Path, separator: str, header: str) -> None:
    path = write_file(tmp_path / "t.txt", f"{header}\n7,007,4.5,x y\n8,7,3,\n".replace(",", separator))
    frame = read_table(path, ("user", "item"), ("rating",))
    assert rows(frame) == [(7, "007", "4.5", "x y"), (8, "7", "3", "")]
    assert frame.columns.tolist() == ["user", "item", "rating", "note"]


def test_the_first_of_several_names_counts(tmp_path: Path) -> None:
    frame = read_table(write_file(tmp_path / "t.csv", "title,item,user\nEmma,7,1\n"), ("user", "item"))
    assert frame["item"].tolist() == [7]
    assert frame["title"].tolist() == ["Emma"]


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame({"user": [1, 2], "item": ["007", "7"], "stars": [4.5, 3]}).to_parquet(path)
    assert rows(read_table(path, ("user", "item", "rating"))) == [(1, "007", 4.5), (2, "7", 3.0)]
    pd.DataFrame({"user": [1, 2], "item": ["007", None]}).to_parquet(path)
    assert_refused("(1 of 2 rows have none)", path, ("user", "item"), call=read_table)
    path.write_bytes(path.read_bytes()[:50])
    assert_refused("is a damaged parquet file", path, ("user",), call=read_table)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "user,rating\n1,2\n",
            "needs a column item or movieId or item_id or itemId or title (got 'user, rating'); rename",
        ),
        ("user,item\n1,\n2,3\n", "(1 of 2 rows have none); drop or fill them"),
        ("user,item\n", "has a header and no rows; give it at least one"),
        ("user,item\n1,2,3\n4,5,6\n", "line 2: the line must have 2 fields, as the first line has (got 3)"),
        ("user,item\n1,2\n4,5,6\n", "line 3: the line must have 2 fields, as the first line has (got 3)"),
        ("", "is empty"),
        (b"user\0item\n", "is a binary file"),
    ],
)
def test_a_file_that_is_not_such_a_table_is_refused_without_a_warning(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    path = write_file(tmp_path / "t.csv", content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_refused(message, path, ("user", "item"), call=read_table)


def test_an_absent_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        assert_refused(f"there is no file {path}; give a CSV, TSV or parquet table", path, ("user",), call=read_table)


@pytest.mark.parametrize("number", ["1e3091955569", "-1e999999999", "9" * 500])
def test_numbers_with_huge_exponents_stay_text(tmp_path: Path, number: str) -> None:
    frame = read_table(write_file(tmp_path / "t.csv", f"user,item,rating\n1,2,{number}\n"), ("user", "item", "rating"))
    assert frame["rating"].tolist() == [number]

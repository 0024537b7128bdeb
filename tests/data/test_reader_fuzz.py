"""Fuzzed files: reading any bytes gives finite ratings or an InputError in one line, without a crash or a warning."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from data_examples import CSV, U_DATA, ml_100k, write
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mfrec.data import parsing
from mfrec.data.dataset import Dataset
from mfrec.data.loading import load_dataset
from mfrec.data.pairs import read_table
from mfrec.data.parsing import read_ratings
from mfrec.errors import InputError

budget = settings(max_examples=300, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
USERS_DAT, MOVIES_CSV = "1::F::1::10::48067\n2::M::56::0::x\n", 'movieId,title,genres\n31,"A, B (1995)",Drama|War\n'
VALID_FILES = [
    CSV,
    U_DATA,
    CSV.replace(",", ";"),
    "user_id,item_id,rating\nann,x y,3\nbob,é,2.5\n",
    "1::1193::5::978300760\n1::661::3::978302109\n",
    'user,item,rating,note\n1,"a, b",4,"say ""no"""\n2,c,1,\n',
]
exponents = st.integers(-(10**12), 10**12) | st.sampled_from(
    [308, 309, 310, 617, -323, -324, -617, 2**31, -(2**31), 2**63]
)
huge_numbers = st.one_of(
    st.builds("{}e{}".format, st.floats(-1e4, 1e4, allow_nan=False), exponents),
    st.builds("{}E+{}".format, st.integers(0, 10**30), st.integers(0, 10**15)),
    st.builds(lambda n, digit: f"0.{'0' * n}{digit}", st.integers(0, 1500), st.integers(0, 10**20)),
    st.builds(lambda n: "9" * n, st.integers(1, 5000)),
    st.integers(-(10**25), 10**25).map(str),
    st.floats().map(str),
)
tokens = st.one_of(
    huge_numbers.map(str.encode),
    st.sampled_from(
        [b'"', b'""', b'"""', b"'", b"\0", b"\n", b"\r", b"\r\n", b",", b",,", b"\t", b";", b"::", b" ", b"", b"|",
         b"nan", b"inf", b"-Infinity", b"1_000", b"0x10", b"1e", b"e5", b"+", b"-", b"#", b"\\", b"\xff\xfe",
         b"\xef\xbb\xbf", b"\xe9",
         "é".encode(), "٣".encode(), "\u2028".encode(), "\x85".encode(), b"\x1a", b"\x0b", b"\x0c",
         b"PAR1", b"PK\x03\x04", b"NA", b"True", b"1997-01-01", b"9" * 400],
    ),
    st.binary(max_size=4),
)  # fmt: skip


@st.composite
def mutated_files(draw: st.DrawFn, valid: list[str] = VALID_FILES) -> bytes:
    """A valid file in which some fields, bytes or lines are replaced, inserted, doubled or removed."""
    data = draw(st.sampled_from(valid)).encode()
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(data)))
        end = draw(
            st.one_of(st.just(begin), st.integers(begin, min(len(data), begin + 12)), st.just(_field_end(data, begin)))
        )
        data = data[:begin] + draw(tokens) + data[end:]
    return data * draw(st.sampled_from([1, 1, 1, 2, 50]))


def _field_end(data: bytes, begin: int) -> int:
    return next((n for n in range(begin, len(data)) if data[n : n + 1] in b",\t;:\n"), len(data))


def read_or_refuse(read: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What was read, or None if it was refused; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return read(*arguments, **options)
        except InputError as error:
            message = str(error)
    assert "\n" not in message
    assert len(message) < 1000
    return None


def check_dataset(dataset: Dataset | None) -> None:
    if dataset is not None:
        assert len(dataset.ratings) > 0
        assert bool(dataset.ratings.values.isfinite().all())
        assert all(map(math.isfinite, dataset.rating_range))


@budget
@given(data=mutated_files() | st.binary(max_size=200), columns=st.sampled_from([None, None, "userId,movieId,rating"]))
@example(data=b"userId,movieId,rating,timestamp\n1,2,1e3091955569,1\n", columns=None)
@example(data=b"userId,movieId,rating,timestamp\n1,2,3,1041e3091955569\n", columns=None)
@example(data=b"userId,movieId,rating,timestamp\n1,2,3,inf\n", columns=None)
@example(data=b"1\t2\t1e3091955569\t1\n", columns=None)
@example(data=b"1::2::1e300::1\n", columns=None)
@example(data=b"user,item,rating\n1,2,3\x85\n", columns=None)
@example(data=b"\xff\xfeu\0s\0e\0r\0", columns=None)
@example(data=b'user,item,rating\n"1,2,3\n', columns=None)
@example(data=b"user,item,rating\n1,2,3\r1,2,4\r\n", columns=None)
def test_any_ratings_file_is_read_or_refused(tmp_path: Path, data: bytes, columns: str | None) -> None:
    path = tmp_path / "ratings"
    path.write_bytes(data)
    check_dataset(read_or_refuse(load_dataset, path, columns=columns))


@budget
@given(data=mutated_files() | st.binary(max_size=200))
def test_what_arrow_reads_is_what_the_lines_hold(data: bytes) -> None:
    fast = read_or_refuse(read_ratings, "file", data, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parsing, "parsed", parsing._parsed_by_line)
        defined = read_or_refuse(read_ratings, "file", data, None)
    assert (fast is None) == (defined is None)
    if fast is not None:
        pd.testing.assert_frame_equal(fast[0], defined[0])
        assert fast[1] == defined[1]


@budget
@given(text=huge_numbers | st.text(alphabet="0123456789.eE+-infa_ ", max_size=12))
def test_a_rating_that_is_accepted_is_the_number_that_python_reads(text: str) -> None:
    data = f"user,item,rating\n1,2,{text}\n3,4,5\n".encode()
    raw = read_or_refuse(read_ratings, "file", data, None)
    if raw is not None:
        assert raw[0]["rating"].tolist() == [float(text), 5.0]


@budget
@given(text=huge_numbers)
def test_a_timestamp_that_is_accepted_is_the_number_that_python_reads(text: str) -> None:
    data = f"user,item,rating,timestamp\n1,2,3,{text}\n".encode()
    raw = read_or_refuse(read_ratings, "file", data, None)
    if raw is not None:
        assert raw[0]["timestamp"].tolist() == [int(text) if text.lstrip("-").isdigit() else float(text)]


@budget
@given(data=mutated_files() | st.binary(max_size=100))
def test_any_table_of_pairs_is_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes(data)
    frame = read_or_refuse(read_table, path, ("user", "item"), ("rating",))
    assert frame is None or len(frame)


@settings(budget, max_examples=80)
@given(users=mutated_files([USERS_DAT]), movies=mutated_files([MOVIES_CSV]), u_item=st.binary(max_size=60))
def test_any_user_and_item_table_is_read_or_refused(tmp_path: Path, users: bytes, movies: bytes, u_item: bytes) -> None:
    (tmp_path / "u.item").unlink(missing_ok=True)
    folder = write(tmp_path, {"ratings.dat": "1::31::5\n2::31::4\n", "users.dat": users, "movies.csv": movies})
    check_dataset(read_or_refuse(load_dataset, folder))
    folder = write(tmp_path / "ml-100k", ml_100k({"u.item": u_item, "u.user": users, "u1.test": u_item}))
    check_dataset(read_or_refuse(load_dataset, folder))


@budget
@given(data=mutated_files(), test=mutated_files())
def test_any_split_in_files_is_read_or_refused(tmp_path: Path, data: bytes, test: bytes) -> None:
    write(tmp_path, {"data": data, "test": test})
    check_dataset(read_or_refuse(load_dataset, tmp_path / "data", test_data=tmp_path / "test"))


cells = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    huge_numbers,
    st.text(max_size=3),
    st.lists(st.integers(), max_size=2),
    st.datetimes(),
    st.complex_numbers(),
)


@budget
@given(
    column=st.lists(cells, min_size=2, max_size=2),
    name=st.sampled_from(["user", "item", "rating", "timestamp", "weight"]),
)
def test_any_cells_of_a_frame_are_accepted_or_refused(column: list[Any], name: str) -> None:
    frame = pd.DataFrame(
        {"user": [1, 2], "item": [3, 4], "rating": [1.0, 5.0], "timestamp": [1, 2], "weight": [1.0, 2.0]}
    )
    frame[name] = np.array([*column, None], dtype=object)[:2]
    dataset = read_or_refuse(Dataset.from_frame, frame, weight="weight")
    check_dataset(dataset)


@pytest.mark.parametrize("size", [3, 100])
@budget
@given(data=st.binary(min_size=1, max_size=100))
def test_any_parquet_bytes_are_read_or_refused(tmp_path: Path, size: int, data: bytes) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1" + data[:size] + b"PAR1")
    check_dataset(read_or_refuse(load_dataset, path))

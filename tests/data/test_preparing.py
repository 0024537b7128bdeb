"""Preparing in batches: the arrays of `load_dataset`, to the same bits, for every format and option, or its message."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from data_examples import CSV, U_DATA, assert_same, assert_same_tensor, generator, ml_100k, pack, write, write_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mfrec.data import batches, disk_columns, preparing
from mfrec.data.dataset import Dataset
from mfrec.data.loading import load_dataset, prepare
from mfrec.data.prepared import open_prepared
from mfrec.data.synthetic import synthetic
from mfrec.errors import InputError

PLAIN = [f"{n}" for n in range(12)]
ODD = ["7", "007", "ann", "d'été", "-3", "9223372036854775808", "a,b", 'say "hi"', "two\nlines", " x", '"', "1e3"]


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Batches, blocks and groups of a few ratings."""
    with monkeypatch.context() as patch:
        patch.setattr(batches, "TEXT_BYTES", 37)
        patch.setattr(batches, "PARQUET_ROWS", 3)
        patch.setattr(disk_columns, "BLOCK_ROWS", 4)
        patch.setattr(preparing, "GROUP_ROWS", 5)
        yield


def prepared(folder: Path, data: Path, **options: Any) -> Dataset:
    out = folder / f"prepared-{len(list(folder.iterdir()))}"
    prepare(data, out, **options)
    return open_prepared(out)


def outcome(load: Any, *arguments: Any, **options: Any) -> Dataset | str:
    """The data set, or the message that refuses it."""
    try:
        result: Dataset = load(*arguments, **options)
    except InputError as error:
        return str(error)
    return result


def assert_prepares_the_same(folder: Path, data: Path, **options: Any) -> None:
    loaded, opened = outcome(load_dataset, data, **options), outcome(prepared, folder, data, **options)
    if isinstance(loaded, str) or isinstance(opened, str):
        assert loaded == opened
        return
    assert_same(loaded, opened)
    assert loaded.ratings.users.dtype == opened.ratings.users.dtype
    for a, b in zip(
        (loaded.ratings.pattern.transpose_order, loaded.ratings.pattern.T.crow, loaded.ratings.pattern.T.col),
        (opened.ratings.pattern.transpose_order, opened.ratings.pattern.T.crow, opened.ratings.pattern.T.col),
        strict=True,
    ):
        assert_same_tensor(a, b)
    assert loaded.official_splits.keys() == opened.official_splits.keys()
    for name, mask in loaded.official_splits.items():
        assert torch.equal(mask, opened.official_splits[name])


def rows_of(draw: Any, ids: list[str], stars: list[str], **size: int) -> list[list[str]]:
    row = st.tuples(*map(st.sampled_from, (ids, ids, stars, ["1", "20", "-3", "5.0", "0x10"])))
    return [list(row) for row in draw(st.lists(row, min_size=1, max_size=25, **size))]


def text_of(rows: list[list[str]], separator: str, line_end: str, quoting: int) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(
        file, delimiter=separator, lineterminator=line_end, quoting=quoting, quotechar='"', escapechar=None
    )
    writer.writerows(rows)
    return file.getvalue()


STARS = [["1", "5", "3"], ["1", "4.5", "0.5"], ["0", "7", "1e1"], ["2", "nan", "x"]]
CHECKS = [HealthCheck.function_scoped_fixture]


@settings(max_examples=250, suppress_health_check=CHECKS)
@given(data=st.data())
def test_any_delimited_table_is_prepared_as_it_is_loaded(data: st.DataObject, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("table")
    rows = rows_of(data.draw, data.draw(st.sampled_from([PLAIN, ODD])), data.draw(st.sampled_from(STARS)))
    header = data.draw(st.sampled_from([["userId", "movieId"], ["user", "item"]]))
    text = text_of(
        [[*header, "rating", "timestamp"], *rows],
        data.draw(st.sampled_from(",\t;")),
        data.draw(st.sampled_from(["\n", "\r\n", "\r"])),
        data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
    )
    if data.draw(st.booleans()):  # blank lines, literal quotes and a line that a quote leaves open
        text += data.draw(st.sampled_from(["\n\n", "\n  \n", '7,5",3,1\n', '7,"5,3,1\n', "7,8,3\n"]))
    path = write_file(folder / "mine.csv", text.encode(data.draw(st.sampled_from(["utf-8", "latin-1", "utf-8-sig"]))))
    duplicates = data.draw(st.sampled_from(["last", "first", "mean", "error"]))
    assert_prepares_the_same(folder, path, duplicates=duplicates)


@settings(max_examples=60, suppress_health_check=CHECKS)
@given(data=st.data(), separator=st.sampled_from(["::", "\t"]))
def test_any_headerless_file_is_prepared_as_it_is_loaded(
    data: st.DataObject, separator: str, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    rows = rows_of(data.draw, PLAIN, data.draw(st.sampled_from(STARS)))
    n_fields = data.draw(st.sampled_from([3, 4]))
    path = write_file(folder / "ratings.dat", "".join(f"{separator.join(row[:n_fields])}\n" for row in rows))
    assert_prepares_the_same(folder, path, rating_range=data.draw(st.sampled_from([None, (0, 10), (1, 3)])))


@settings(max_examples=60, suppress_health_check=CHECKS)
@given(data=st.data())
def test_any_parquet_file_is_prepared_as_it_is_loaded(data: st.DataObject, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("parquet")
    kinds: list[list[Any]] = [[3, 1, 2**40], ["b", "a", "10"], [1, 2, None], ["a", None], [1.5, 2.0], [-1, 7]]
    columns = {kind: data.draw(st.sampled_from(kinds)) for kind in ("user", "item")}
    columns["rating"] = data.draw(st.sampled_from([[1, 5], [0.5, 3.25], ["1", "2.5"], [1.0, np.inf], [1.0, None]]))
    if data.draw(st.booleans()):
        columns["timestamp"] = data.draw(st.sampled_from([[5, 6], [5.0, 1e9], list(pd.to_datetime([9, 10], unit="s"))]))
    n_rows = data.draw(st.integers(1, 20))
    frame = pd.DataFrame(
        {name: [data.draw(st.sampled_from(cells)) for _ in range(n_rows)] for name, cells in columns.items()}
    )
    faults = [frame[name].isna().any() for name in columns]
    faults += [np.inf in columns["rating"], *(pd.api.types.is_float_dtype(frame[name]) for name in ("user", "item"))]
    if data.draw(st.booleans()):
        frame["user"] = frame["user"].astype("category")
    path = folder / "mine.parquet"
    frame.to_parquet(path, row_group_size=4)
    if sum(map(bool, faults)) > 1:  # which of several faults is named first may differ
        return
    assert_prepares_the_same(folder, path)


@settings(max_examples=60, suppress_health_check=CHECKS)
@given(data=st.data())
def test_any_files_of_splits_are_prepared_as_they_are_loaded(data: st.DataObject, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("splits")
    files = {}
    for name in ("data", "test_data", "valid_data"):
        rows = rows_of(data.draw, data.draw(st.sampled_from([PLAIN, PLAIN, ODD])), ["1", "2.5"])
        n_fields = data.draw(st.sampled_from([3, 4, 4]))
        header = ["user", "item", "rating", "timestamp"]
        if data.draw(st.booleans()):
            frame = pd.DataFrame([row[:3] for row in rows], columns=header[:3])
            is_plain = frame["user"].str.fullmatch("[0-9]{1,2}").all()
            frame.assign(
                rating=frame["rating"].astype(float),
                user=frame["user"].astype(np.int64 if is_plain and "007" not in set(frame["user"]) else object),
            ).to_parquet(folder / f"{name}.parquet")
            files[name] = folder / f"{name}.parquet"
        else:
            text = text_of([header[:n_fields], *(row[:n_fields] for row in rows)], ",", "\n", csv.QUOTE_MINIMAL)
            files[name] = write_file(folder / f"{name}.csv", text)
    if data.draw(st.booleans()):
        del files["valid_data"]
    assert_prepares_the_same(folder, files.pop("data"), **files)


def movielens_1m() -> dict[str, str]:
    return {
        "ratings.dat": "1::31::2::7\n12::1029::3::8\n1::1029::4::9\n2::31::5::5\n",
        "movies.dat": "31::Dangerous Minds (1995)::Drama\n1029::Dumbo (1941)::Animation|Children\n",
        "users.dat": "1::F::18::10::48067\n2::M::56::16::70072\n",
    }


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    "files",
    [
        ml_100k(),
        movielens_1m(),
        {"ratings.csv": CSV, "movies.csv": "movieId,title,genres\n31,Dangerous Minds (1995),Drama\n"},
        {"mine.tsv": U_DATA},
    ],
    ids=["ml-100k", "ml-1m", "ml-latest", "a table"],
)
def test_folders_and_zips_are_prepared_with_their_tables(files: dict[str, Any], zipped: bool, tmp_path: Path) -> None:
    path = pack(tmp_path / "data.zip", files) if zipped else write(tmp_path / "data", files)
    assert_prepares_the_same(tmp_path, path)


def test_a_parquet_file_in_a_zip_is_prepared(tmp_path: Path) -> None:
    frame = pd.DataFrame({"user": [1, 2, 1, 3], "item": list("abba"), "rating": [1.0, 2.0, 3.0, 4.0]})
    frame.to_parquet(tmp_path / "inner.parquet")
    assert_prepares_the_same(
        tmp_path, pack(tmp_path / "data.zip", {"inner.parquet": (tmp_path / "inner.parquet").read_bytes()})
    )


def test_a_file_that_turns_out_to_be_latin_1_is_read_as_that_from_its_beginning(tmp_path: Path) -> None:
    lines = ["user,item,rating\n", *(f"été {n},{n},3\n" for n in range(9))]
    data = "".join(lines).encode() + "Zoë,1,2\n".encode("latin-1")
    path = write_file(tmp_path / "mixed.csv", data)
    assert_prepares_the_same(tmp_path, path)
    assert "Ã©tÃ© 3" in prepared(tmp_path, path).user_ids


def test_larger_data_are_prepared_in_many_groups_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratings = synthetic(n_users=200, n_items=90, n_ratings=4000, generator=generator()).ratings
    frame = pd.DataFrame({"user": ratings.users + 1, "item": ratings.items + 1, "rating": ratings.values})
    frame = pd.concat([frame, frame[::7] * [1, 1, 0.5]]).sample(frac=1, random_state=0)
    frame.to_csv(tmp_path / "a.csv", index=False)
    monkeypatch.setattr(batches, "TEXT_BYTES", 3000)
    monkeypatch.setattr(disk_columns, "BLOCK_ROWS", 500)
    monkeypatch.setattr(preparing, "GROUP_ROWS", 300)
    for duplicates in ("last", "first", "mean"):
        assert_prepares_the_same(tmp_path, tmp_path / "a.csv", duplicates=duplicates)


# Messages.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("user,item,rating\n1,2,3\n\n1,3,4\n4,5,good\n", "line 5"),
        ('user,item,rating\n1,"2\n3",3\n4,5,good\n', "line 4"),
        ("user,item,rating\n1,2,3\n1,3\n", "line 3"),
        ("\n\nuser,item,rating\r\n1,2,3\r\n1,3,4\r\n,3,4\r\n", "line 6"),
        ('user,item,rating\n1,2,3\n1,"3,4\n', "line 3: the line must have 3 fields"),
        ("user,item,rating\n1,2,3\n1,3,1e300\n", "1e+300 in row 1; 1 of 2"),
        ("userId,movieId,rating\n1,2,3\n1,3,7\n2,2,9\n", "2 of 3 ratings are outside 0.5 to 5 (e.g. 7)"),
        ("user,item,rating\n", "no ratings"),
        ("", "empty"),
        ("user,item,rating\n1,2,3\n1,\0,3\n", "binary"),
    ],
)
def test_a_faulty_file_is_refused_in_the_words_of_loading(text: str, words: str, tmp_path: Path) -> None:
    path = write_file(tmp_path / "faulty.csv", text)
    message = outcome(prepare, path, tmp_path / "out")
    assert isinstance(message, str)
    assert words in message
    assert message == outcome(load_dataset, path)
    assert [each.name for each in tmp_path.iterdir()] == ["faulty.csv"]


def test_a_quote_that_is_never_closed_is_named_without_reading_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "TEXT_BYTES", 50_000)
    path = write_file(tmp_path / "faulty.csv", 'user,item,rating\n1,2,3\n1,"3,4\n' + "5,6,1\n" * 60_000)
    message = outcome(prepare, path, tmp_path / "out")
    assert isinstance(message, str)
    assert "field larger than field limit" in message
    assert outcome(load_dataset, path) == message


def test_repeated_pairs_are_counted_over_all_groups(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [f"{n},{n},{1 + n % 5}\n" for n in range(20)]
    path = write_file(tmp_path / "twice.csv", "user,item,rating\n" + "".join(rows * 2))
    with caplog.at_level(logging.WARNING):
        prepare(path, tmp_path / "out")
    assert [record.getMessage() for record in caplog.records] == [
        "20 of 40 ratings repeat a (user, item) pair: only the last of each pair is kept"
    ]
    assert_prepares_the_same(tmp_path, path, duplicates="error")


def test_an_option_is_refused_before_a_file_is_read(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.csv", "user,item,rating\n1,2,broken\n")
    for options, words in (
        ({"duplicates": "lst"}, "did you mean 'last'"),
        ({"rating_range": (5, 1)}, "lowest and the highest"),
        ({"columns": "a,b"}, "3 or 4 distinct names"),
        ({"valid_data": path}, "needs test_data"),
    ):
        with pytest.raises(InputError, match=words):
            prepare(path, tmp_path / "out", **options)


# The folder.


def test_progress_ends_with_every_stage_done(tmp_path: Path) -> None:
    done: dict[str, float] = {}
    prepare(write_file(tmp_path / "a.csv", CSV), tmp_path / "out", on_progress=done.__setitem__)
    assert done == {"reading": 1.0, "sorting": 1.0, "sorting by item": 1.0, "checksums": 1.0}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_is_left_if_preparing_is_stopped(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    path = write_file(tmp_path / "a.csv", CSV)
    monkeypatch.setattr(preparing, "_write_by_item", fail)
    with pytest.raises((KeyboardInterrupt, InputError)) as raised:
        prepare(path, tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir()] == ["a.csv"]
    if isinstance(error, OSError):
        assert "out cannot be written (No space left on device)" in str(raised.value)


def test_a_folder_that_holds_something_is_not_written_to(tmp_path: Path) -> None:
    path = write_file(tmp_path / "out" / "a.csv", CSV)
    with pytest.raises(InputError, match="must be a new folder"):
        prepare(path, tmp_path / "out")
    assert path.read_text() == CSV


def test_the_content_hash_depends_on_the_content_and_not_on_the_file(tmp_path: Path) -> None:
    header, *lines = CSV.splitlines(keepends=True)
    backwards = write_file(tmp_path / "backwards.csv", header + "".join(lines[::-1]))
    same = [prepared(tmp_path, write_file(tmp_path / "a.csv", CSV)), prepared(tmp_path, backwards)]
    changed = prepared(tmp_path, write_file(tmp_path / "b.csv", CSV.replace("2.5", "1.5")))
    hashes = [dataset.prepared.content_hash for dataset in (*same, changed) if dataset.prepared]
    assert hashes[0] == hashes[1] != hashes[2]

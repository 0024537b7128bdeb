"""Sources: folders, zips and single files give their members, and a zip cannot reach outside its folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from data_examples import CSV, assert_unreadable, pack, rows, write, write_file

from mfrec.data.archives import source_at
from mfrec.data.readers import read_raw_tables

MOVIES_CSV = "movieId,title,genres\n31,Dumbo (1941),Drama\n"


@pytest.mark.parametrize("top", ["", "ml-latest/"])
def test_a_zip_reads_like_its_folder_and_is_not_extracted(tmp_path: Path, top: str) -> None:
    files = {"ratings.csv": CSV, "movies.csv": MOVIES_CSV}
    path = pack(tmp_path / "any.zip", {f"{top}{name}": content for name, content in files.items()})
    zipped, folder = read_raw_tables(path), read_raw_tables(write(tmp_path / "folder", files))
    assert rows(zipped.ratings) == rows(folder.ratings)
    assert zipped.items is not None
    assert folder.items is not None
    pd.testing.assert_frame_equal(zipped.items, folder.items)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["any.zip", "folder"]


def test_a_zip_may_hold_one_table_with_any_name(tmp_path: Path) -> None:
    path = pack(tmp_path / "one.zip", {"__MACOSX/._mine.txt": b"\0", "mine.txt": CSV})
    assert len(read_raw_tables(path).ratings) == 3


def test_only_a_single_file_outside_a_folder_is_the_only_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder", {"a.csv": CSV})
    assert source_at(folder).only_file is None
    assert source_at(folder / "a.csv").only_file == "a.csv"
    assert source_at(pack(tmp_path / "one.zip", {"top/a.csv": CSV})).only_file == "a.csv"
    assert source_at(pack(tmp_path / "two.zip", {"a.csv": CSV, "b.csv": CSV})).only_file is None


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere"
    assert_unreadable(path, f"no file, folder or zip at {path}", "check the path")


@pytest.mark.parametrize("name", ["../x.csv", "a/../../x.csv", "/etc/x.csv", "..\\x.csv", "C:\\x.csv"])
def test_a_zip_that_reaches_outside_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    path = pack(tmp_path / "bad.zip", {"ratings.csv": CSV, name: "x"})
    assert_unreadable(path, str(path), "outside its own folder", "make the zip without it")


def test_a_truncated_zip_is_refused(tmp_path: Path) -> None:
    whole = pack(tmp_path / "whole.zip", {"ratings.csv": CSV * 50}).read_bytes()
    for size in (10, len(whole) // 2, len(whole) - 5):
        path = write_file(tmp_path / "part.zip", whole[:size])
        assert_unreadable(path, f"{path} is a damaged zip", "download or make it again")


def test_a_corrupt_member_of_a_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    random = np.random.default_rng(0).integers(0, 9, (400, 3))
    pack(path, {"ratings.csv": "userId,movieId,rating\n" + "\n".join(",".join(map(str, row)) for row in random)})
    data = bytearray(path.read_bytes())
    data[200:220] = bytes(20)
    path.write_bytes(data)
    assert_unreadable(path, f"ratings.csv in {path} cannot be unpacked", "again")


def test_a_file_without_read_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_file(tmp_path / "ratings.csv", CSV)

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert_unreadable(path, f"{path} cannot be read (Permission denied)", "check its permissions")

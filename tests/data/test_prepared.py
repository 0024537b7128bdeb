"""Prepared folders: opened as written, shared by links, refused if damaged; and the cache follows the files."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from data_examples import CSV, FRAME, MOVIES, READERS_TABLE, assert_same, write, write_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mfrec.data import checksums, loading
from mfrec.data.dataset import Dataset
from mfrec.data.loading import load_dataset, prepare
from mfrec.data.prepared import is_prepared, open_prepared, write_prepared
from mfrec.data.splits import TEST, TRAIN, VALID
from mfrec.errors import InputError, OptionError


@pytest.fixture
def dataset() -> Dataset:
    """Three ratings with tables, timestamps, weights, an official split and a split of their own."""
    frame = FRAME.assign(weight=[1.0, 0.5, 2.0])
    masks = {"first": np.array([True, False, False]), "last": np.array([False, False, True])}
    return Dataset.from_frame(
        frame,
        users=READERS_TABLE,
        items=MOVIES,
        weight="weight",
        official_splits=masks,
        split_labels=np.array([TRAIN, VALID, TEST], dtype=np.uint8),
    )


def test_what_is_written_is_opened(dataset: Dataset, tmp_path: Path) -> None:
    write_prepared(dataset, tmp_path / "folder")
    opened = open_prepared(tmp_path / "folder")
    assert_same(opened, dataset)
    assert opened.official_splits.keys() == dataset.official_splits.keys()
    assert all(torch.equal(mask, dataset.official_splits[name]) for name, mask in opened.official_splits.items())


def test_a_changed_tensor_changes_no_file(dataset: Dataset, tmp_path: Path) -> None:
    write_prepared(dataset, tmp_path / "folder")
    open_prepared(tmp_path / "folder").ratings.values.fill_(9)
    assert_same(open_prepared(tmp_path / "folder"), dataset)


def test_a_changed_dataset_forgets_its_folder(dataset: Dataset, tmp_path: Path) -> None:
    write_prepared(dataset, tmp_path / "folder")
    opened = open_prepared(tmp_path / "folder")
    assert opened.with_split_labels(None).prepared == opened.prepared
    part = opened.select(torch.tensor([True, False, True]))
    assert part.prepared is None
    write_prepared(part, tmp_path / "part")
    assert len(open_prepared(tmp_path / "part").ratings) == 2


def test_writing_an_opened_dataset_links_its_files_and_outlasts_them(dataset: Dataset, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_prepared(dataset, first)
    write_prepared(open_prepared(first), second)
    assert all(file.samefile(second / file.name) for file in first.iterdir() if file.suffix in (".npy", ".arrow"))
    shutil.rmtree(first)
    assert_same(open_prepared(second), dataset)


def test_a_dataset_whose_folder_was_replaced_is_written_from_memory(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write_prepared(dataset, folder)
    opened = open_prepared(folder)
    shutil.rmtree(folder)
    prepare(write_file(tmp_path / "other.csv", CSV), folder)
    write_prepared(opened, tmp_path / "copy")
    assert_same(open_prepared(tmp_path / "copy"), dataset)


@pytest.mark.parametrize("when", ["before", "between"])
def test_a_folder_that_is_replaced_while_it_is_linked_is_written_from_memory(
    when: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, link = tmp_path / "folder", os.link
    write_prepared(dataset, folder)
    opened, linked = open_prepared(folder), list[Path]()

    def replace_and_link(source: Path, target: Path) -> None:
        if len(linked) == (0 if when == "before" else 3):
            shutil.rmtree(folder)
            prepare(write_file(tmp_path / "other.csv", CSV), folder)
        linked.append(source)
        link(source, target)

    monkeypatch.setattr(os, "link", replace_and_link)
    write_prepared(opened, tmp_path / "copy")
    assert linked
    assert_same(open_prepared(tmp_path / "copy"), dataset)


def test_prepared_data_are_no_file_of_a_split(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.csv", CSV)
    prepare(path, tmp_path / "out")
    with pytest.raises(OptionError, match="must be a file of ratings"):
        load_dataset(path, test_data=tmp_path / "out")


def test_a_cache_that_cannot_be_written_is_named(large: None, tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.csv", CSV)
    with pytest.raises(InputError, match="set MFREC_CACHE to another folder"):
        load_dataset(path, cache=path)


def flip(path: Path, position: int) -> None:
    """Change a byte of a file, but neither its size nor its time of change."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[position % len(data)] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_changed_byte_is_believed_at_first(data: st.DataObject, dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    write_prepared(dataset, folder)
    name = data.draw(st.sampled_from(sorted(file.name for file in folder.iterdir())))
    flip(folder / name, data.draw(st.integers(0, 10**6)))
    with pytest.raises(InputError, match=r"damaged|another version|checksum") as caught:
        open_prepared(folder)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "values.npy").unlink(), "values.npy"),
        (lambda folder: os.truncate(folder / "items.npy", 10), "10 bytes in place of"),
        (lambda folder: (folder / "prepared.json").write_text("{}"), "prepared.json"),
    ],
)
def test_a_missing_or_shortened_file_is_named(
    damage: Callable[[Path], object], words: str, dataset: Dataset, tmp_path: Path
) -> None:
    write_prepared(dataset, tmp_path / "folder")
    open_prepared(tmp_path / "folder")
    damage(tmp_path / "folder")
    with pytest.raises(InputError, match=words):
        open_prepared(tmp_path / "folder")


def test_files_are_read_for_their_checksum_once_and_again_after_a_change_or_a_copy(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    sha256 = checksums._sha256
    monkeypatch.setattr(checksums, "_sha256", lambda path: read.append(path.name) or sha256(path))
    folder = tmp_path / "folder"
    write_prepared(dataset, folder)
    for file in folder.iterdir():  # as if it had been written long ago
        os.utime(file, (1e9, 1e9))

    def read_at_opening(path: Path) -> set[str]:
        read.clear()
        open_prepared(path)
        return set(read)

    everything = read_at_opening(folder)
    assert {"values.npy", "crow.npy", "items.arrow"} < everything
    assert not read_at_opening(folder)
    os.utime(folder / "values.npy", (1.1e9, 1.1e9))
    assert read_at_opening(folder) == {"values.npy"}
    shutil.copytree(folder, tmp_path / "copy")
    assert read_at_opening(tmp_path / "copy") == everything


def test_a_folder_that_cannot_be_written_to_is_opened(dataset: Dataset, tmp_path: Path) -> None:
    write_prepared(dataset, tmp_path / "folder")
    (tmp_path / "folder" / checksums.STAMP).mkdir()  # so that no stamp can be written or read
    assert_same(open_prepared(tmp_path / "folder"), dataset)


@pytest.mark.parametrize("option", ["columns", "test_data", "valid_data", "rating_range", "duplicates"])
def test_options_that_a_prepared_folder_has_decided_are_refused(option: str, tmp_path: Path) -> None:
    prepare(write_file(tmp_path / "a.csv", CSV), tmp_path / "out")
    values = {"columns": "a,b,c", "rating_range": (0.0, 9.0), "duplicates": "mean"}
    value = values.get(option, tmp_path / "a.csv")
    with pytest.raises(OptionError, match=r"prepare .* again with it") as caught:
        load_dataset(tmp_path / "out", **{option: value})
    assert caught.value.option == option
    load_dataset(tmp_path / "out", rating_range=(0.5, 5.0))


# The cache.


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is a large one."""
    monkeypatch.setattr(loading, "LARGE", 0)


def entries(cache: Path) -> list[Path]:
    return [path for path in (cache / "prepared").iterdir() if is_prepared(path)]


@pytest.mark.usefixtures("large")
def test_large_files_are_prepared_in_the_cache_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_file(tmp_path / "a.csv", CSV)
    first = load_dataset(path, cache=tmp_path / "cache")
    assert first.prepared is not None
    assert first.prepared.path in entries(tmp_path / "cache")
    monkeypatch.setattr(loading._Files, "prepare", None)  # nothing is prepared again
    assert_same(load_dataset(path, cache=tmp_path / "cache"), first)
    monkeypatch.setattr(loading, "LARGE", 2**28)
    assert_same(load_dataset(path, cache=tmp_path / "cache"), first)


@pytest.mark.usefixtures("large")
def test_the_cache_follows_the_files_and_keeps_one_state_of_them(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", {"ratings.csv": CSV})
    assert len(load_dataset(folder, cache=tmp_path / "cache").ratings) == 3
    write(folder, {"ratings.csv": CSV + "3,31,4.0,5\n"})
    assert len(load_dataset(folder, cache=tmp_path / "cache").ratings) == 4
    write(folder, {"movies.csv": "movieId,title,genres\n31,Dangerous Minds (1995),Drama\n"})
    assert "title" in load_dataset(folder, cache=tmp_path / "cache").items
    assert len(entries(tmp_path / "cache")) == 1


@pytest.mark.usefixtures("large")
def test_each_set_of_options_has_an_entry_of_its_own(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.csv", CSV)
    for limits in (None, (0.0, 5.0), (0.0, 9.0)):
        expected = limits or (0.5, 5.0)
        assert load_dataset(path, rating_range=limits, cache=tmp_path / "cache").rating_range == expected
    assert len(entries(tmp_path / "cache")) == 3


@pytest.mark.usefixtures("large")
def test_a_damaged_entry_of_the_cache_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_file(tmp_path / "a.csv", CSV)
    prepare(path, tmp_path / "undamaged")
    load_dataset(path, cache=tmp_path / "cache")
    (entry,) = entries(tmp_path / "cache")
    flip(entry / "values.npy", -1)
    (entry / checksums.STAMP).unlink(missing_ok=True)
    again = load_dataset(path, cache=tmp_path / "cache")
    assert torch.equal(again.ratings.values, open_prepared(tmp_path / "undamaged").ratings.values)
    assert "values.npy" in caplog.text
    assert "prepared again" in caplog.text


def _load(path: Path, cache: Path, lengths: multiprocessing.SimpleQueue[int]) -> None:
    loading.LARGE = 0
    lengths.put(len(load_dataset(path, cache=cache).ratings))


def test_two_processes_prepare_a_file_once(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.csv", CSV)
    context = multiprocessing.get_context("fork")
    lengths = context.SimpleQueue()
    processes = [context.Process(target=_load, args=(path, tmp_path / "cache", lengths)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [lengths.get() for _ in processes] == [3, 3]
    (entry,) = entries(tmp_path / "cache")
    assert json.loads((entry / "prepared.json").read_text())["n_ratings"] == 3

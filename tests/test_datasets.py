"""Datasets: ids, titles and duplicates; the state's round trip; named sets, the embedded one and downloads."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from mfrec.data.downloads import NAMED, zip_of
from mfrec.data.loading import Dataset, downloads, load, synthetic
from mfrec.errors import InputError

CSV = "userId,movieId,rating,timestamp\n1,31,2.5,7\n1,1029,3.0,8\n2,31,4.5,9\n"
FRAME = pd.DataFrame(
    {"user": ["b", "a", "b"], "item": [31, 31, 1029], "rating": [2.0, 4.5, 3.0], "timestamp": [7, 9, 8]}
)
MOVIES = pd.DataFrame(
    {
        "item": [1029, 31, 5],
        "title": ["Dumbo (1941)", "Hyena Road", "Unrated (2000)"],
        "genres": ["Animation|Children", (), "Drama"],
    }
)
READERS = pd.DataFrame({"user": ["b", "z", "a"], "age": [31, 20, None], "job": ["clerk", "smith", None]})
cells = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.text(max_size=3), max_size=3),
    st.tuples(st.text(max_size=3)),
)
ids = st.one_of(st.text(max_size=5), st.integers(-(2**70), 2**70))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def through_a_file(dataset: Dataset) -> Dataset:
    file = io.BytesIO()
    torch.save(dataset.state_dict(), file)
    file.seek(0)
    return Dataset.from_state(torch.load(file, weights_only=True))


def assert_same(a: Dataset, b: Dataset) -> None:
    assert (a.name, a.scale) == (b.name, b.scale)
    for column in ("users", "items", "values", "timestamps", "weights"):
        x, y = getattr(a.ratings, column), getattr(b.ratings, column)
        assert (x is None and y is None) or (x.dtype == y.dtype and torch.equal(x, y))
    assert (a.ratings.n_users, a.ratings.n_items) == (b.ratings.n_users, b.ratings.n_items)
    pd.testing.assert_index_equal(a.user_ids, b.user_ids, exact=True)
    pd.testing.assert_index_equal(a.item_ids, b.item_ids, exact=True)
    pd.testing.assert_frame_equal(a.users, b.users)
    pd.testing.assert_frame_equal(a.items, b.items)


def assert_refused(message: str, *arguments, call=Dataset.from_frame, **keywords) -> None:
    with pytest.raises(InputError) as caught:
        call(*arguments, **keywords)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# Frames.


def test_ids_are_sorted_and_items_aligned_to_them() -> None:
    dataset = Dataset.from_frame(FRAME, items=MOVIES)
    assert dataset.user_ids.tolist() == ["a", "b"]
    assert dataset.item_ids.tolist() == [31, 1029]
    assert dataset.ratings.values.tolist() == [4.5, 2.0, 3.0]
    assert dataset.ratings.values.dtype == torch.float32
    assert dataset.ratings.timestamps.tolist() == [9, 7, 8]
    assert dataset.items["title"].tolist() == ["Hyena Road", "Dumbo (1941)"]
    assert dataset.items["year"].tolist() == [pd.NA, 1941]
    assert dataset.items["genres"].tolist() == [(), ("Animation", "Children")]
    assert dataset.scale == (2.0, 4.5)


def test_an_item_without_metadata_is_titled_by_its_id() -> None:
    dataset = Dataset.from_frame(FRAME, items=MOVIES[1:])
    assert dataset.items["title"].tolist() == ["Hyena Road", "1029"]
    assert dataset.items["genres"].tolist() == [(), ()]
    assert Dataset.from_frame(FRAME, items=MOVIES[:0]).items["genres"].tolist() == [(), ()]
    bare = Dataset.from_frame(FRAME)
    assert bare.items.shape == (2, 0)
    assert bare.title(1) == "1029"


def test_users_are_aligned_to_their_indices() -> None:
    users = Dataset.from_frame(FRAME, users=READERS).users
    assert users.columns.tolist() == ["age", "job"]
    assert users["age"].tolist() == [pd.NA, 31]
    assert users["age"].dtype == "Int64"
    assert users["job"].tolist() == [None, "clerk"]
    assert Dataset.from_frame(FRAME).users.shape == (2, 0)


def test_the_columns_of_ids_have_the_names_that_the_ratings_give_them() -> None:
    named = {"user": "who", "item": "what"}
    dataset = Dataset.from_frame(
        FRAME.rename(columns=named), **named, users=READERS.rename(columns=named), items=MOVIES.rename(columns=named)
    )
    assert_same(dataset, Dataset.from_frame(FRAME, users=READERS, items=MOVIES))


def test_users_and_items_without_a_row_have_missing_values() -> None:
    extra = {"n": [1, 2, 3], "x": [0.5, 1.5, 2.5], "text": ["p", "q", "r"], "tags": [["p"], ["q"], ["r"]]}
    users = Dataset.from_frame(FRAME, users=READERS[:2].assign(**{k: v[:2] for k, v in extra.items()})).users
    items = Dataset.from_frame(FRAME, items=MOVIES[:1].assign(**{k: v[:1] for k, v in extra.items()})).items
    for row in (users.loc[0], items.loc[0]):
        assert [row[column] for column in extra] == [pd.NA, pd.NA, None, ()]
    assert [users.loc[1, column] for column in extra] == [1, 0.5, "p", ("p",)]
    assert [items.loc[1, column] for column in extra] == [1, 0.5, "p", ("p",)]


@pytest.mark.parametrize(
    ("given", "dtype", "kept"),
    [
        ([1, 2, 3], "Int64", [3, 1]),
        ([1.0, None, 3.0], "Int64", [3, 1]),
        (pd.array([1, None, 2**62 + 1], dtype="Int64"), "Int64", [2**62 + 1, 1]),
        (pd.array([1, 2, None], dtype="UInt8"), "Int64", [pd.NA, 1]),
        ([1.5, 2, 3], "Float64", [3.0, 1.5]),
        ([1, 2.5, 3], "Float64", [3.0, 1.0]),
        ([1, 2, 2**70], "Float64", [2.0**70, 1.0]),
        (np.array([0.5, 2, np.inf], dtype=np.float32), "Float64", [np.inf, 0.5]),
        ([np.nan] * 3, "Int64", [pd.NA] * 2),
        ([None] * 3, "object", [None] * 2),
        (["p", None, ""], "object", ["", "p"]),
        (["p", 2, np.nan], "object", [None, "p"]),
        ([True, False, None], "object", [None, "True"]),
        (pd.Categorical(["p", "q", "r"]), "object", ["r", "p"]),
        (pd.to_datetime(["2000-01-01", None, "2000-01-03"]), "object", ["2000-01-03 00:00:00", "2000-01-01 00:00:00"]),
        ([("p", 1), [], None], "object", [(), ("p", "1")]),
        ([np.array(["p", None]), ["q"], ("r", "s")], "object", [("r", "s"), ("p",)]),
    ],
)
def test_further_columns_become_numbers_tuples_or_text(given: object, dtype: str, kept: list) -> None:
    users = Dataset.from_frame(FRAME, users=READERS.assign(extra=pd.Series(given))).users
    items = Dataset.from_frame(FRAME, items=MOVIES.assign(item=[1029, 5, 31], extra=pd.Series(given))).items
    for column in (users["extra"], items["extra"]):
        assert column.dtype == dtype
        assert column.tolist() == kept
        assert list(map(type, column.tolist())) == list(map(type, kept))


@given(st.lists(cells, min_size=3, max_size=3), st.sampled_from(["title", "genres", "year", "1"]))
def test_any_column_survives_the_round_trip(column: list, name: str) -> None:
    values = pd.Series(column, dtype=object)
    items = MOVIES.assign(**{name: values}) if name == "1" else MOVIES
    dataset = Dataset.from_frame(FRAME, users=READERS.assign(**{name: values}), items=items)
    assert_same(dataset, through_a_file(dataset))


def test_of_an_id_that_a_table_repeats_the_first_row_counts() -> None:
    users = pd.concat([READERS, READERS.assign(job="thief")])
    assert Dataset.from_frame(FRAME, users=users).users["job"].tolist() == [None, "clerk"]


def test_strings_sort_as_text_and_integers_by_value() -> None:
    def item_ids(ids: list) -> list:
        return Dataset.from_frame(pd.DataFrame({"user": 1, "item": ids, "rating": 1.0})).item_ids.tolist()

    assert item_ids(["10", "9", "007"]) == ["007", "10", "9"]
    assert item_ids([10, 9, -1]) == [-1, 9, 10]


@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=20, unique=True), st.randoms(use_true_random=False))
def test_ids_survive_the_round_trip_in_any_order_of_rows(pairs: list, random) -> None:
    def made(rows: list) -> Dataset:
        columns = {
            "user": pd.Series([user for user, _ in rows], dtype=object),
            "item": pd.Series([item for _, item in rows], dtype=object),
        }
        return Dataset.from_frame(pd.DataFrame({**columns, "rating": [float(pairs.index(row)) for row in rows]}))

    dataset = made(pairs)
    assert_same(dataset, through_a_file(dataset))
    shuffled = list(pairs)
    random.shuffle(shuffled)
    assert_same(dataset, made(shuffled))
    ratings = dataset.ratings
    for user, item, value in zip(ratings.users.tolist(), ratings.items.tolist(), ratings.values.tolist(), strict=True):
        found = dataset.user_ids[user], dataset.item_ids[item]
        assert found == pairs[int(value)]
        assert [type(one) for one in map(_plain, found)] == [type(one) for one in pairs[int(value)]]


def _plain(one: object) -> object:
    return int(one) if isinstance(one, np.integer) else one


def test_all_but_the_official_splits_survives_the_round_trip() -> None:
    masks = {"u1": np.array([True, False, False])}
    dataset = Dataset.from_frame(FRAME, users=READERS, items=MOVIES, scale=(0.5, 5), name="mine", official_splits=masks)
    assert dataset.official_splits["u1"].tolist() == [False, True, False]
    assert_same(dataset, through_a_file(dataset))


@pytest.mark.parametrize(
    ("duplicates", "values", "stamps", "test"),
    [
        ("last", [1, 5], [1, 3], [False, False]),
        ("first", [2, 5], [2, 3], [True, False]),
        ("mean", [1.5, 5], [2, 3], [False, False]),
    ],
)
def test_duplicates_are_kept_as_asked_and_counted(duplicates, values, stamps, test, caplog) -> None:
    df = pd.DataFrame({"user": [7, 8, 7], "item": [1, 1, 1], "rating": [2, 5, 1], "timestamp": [2, 3, 1]})
    masks = {"u1": np.array([True, False, False])}
    with caplog.at_level(logging.WARNING, "mfrec.data"):
        dataset = Dataset.from_frame(df, duplicates=duplicates, official_splits=masks)
    assert "1 of 3 ratings repeat a (user, item) pair" in caplog.text
    assert dataset.ratings.values.tolist() == values
    assert dataset.ratings.timestamps.tolist() == stamps
    assert dataset.official_splits["u1"].tolist() == test


def test_duplicates_may_be_an_error() -> None:
    df = pd.concat([FRAME, FRAME[:1]])
    assert_refused("1 of 4 ratings are of an item that the same user has rated", df, duplicates="error")
    assert_refused("unknown way with duplicates 'lst'; did you mean 'last'?", df, duplicates="lst")


def test_official_splits_follow_the_ratings_when_they_are_sorted(shared_data: Path) -> None:
    dataset = load(shared_data / "ml-100k")
    kept, held = dataset.ratings.split(dataset.test_mask("u1", 0.5, generator()))
    names = ["user", "item", "rating", "timestamp"]
    test = pd.read_csv(shared_data / "ml-100k" / "u1.test", sep="\t", names=names).sort_values(["user", "item"])
    assert len(kept) == 80_000
    assert dataset.user_ids[held.users.numpy()].tolist() == test["user"].tolist()
    assert dataset.item_ids[held.items.numpy()].tolist() == test["item"].tolist()
    assert held.values.tolist() == test["rating"].tolist()
    assert held.timestamps.tolist() == test["timestamp"].tolist()


def test_timestamps_may_be_datetimes() -> None:
    days = pd.to_datetime(["1970-01-02 00:00:00", "1970-01-01 00:00:01", "1969-12-31 00:00:00"])
    for stamps in (days, days.tz_localize("UTC")):
        dataset = Dataset.from_frame(FRAME.assign(timestamp=stamps))
        assert dataset.ratings.timestamps.tolist() == [1, 86_400, -86_400]
    assert Dataset.from_frame(FRAME.assign(timestamp=[7.0, 9.0, 8.0])).ratings.timestamps.tolist() == [9, 7, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rating": [1, "good", 3]}, "rating 'good' in row 1 is not a finite number (1 of 3 are not); drop such rows"),
        ({"rating": [1, 2, np.nan]}, "rating nan in row 2 is not a finite number"),
        ({"rating": [np.inf, 2, np.nan]}, "rating inf in row 0 is not a finite number (2 of 3"),
        ({"user": ["a", None, "b"]}, "1 of 3 rows have no user id; drop them"),
        ({"item": [1.5, 2, 3]}, "item id 1.5 is a float; make the ids integers or strings"),
        ({"timestamp": ["x", "1", "2"]}, "timestamp 'x' in row 0 is not whole seconds since 1970"),
        ({"timestamp": pd.to_datetime(["2000-01-01", None, "2000-01-01"])}, "timestamp NaT in row 1 is not whole"),
        ({"timestamp": [1, 2.5, 3]}, "timestamp 2.5 in row 1 is not whole seconds since 1970"),
    ],
)
def test_a_bad_value_in_a_frame_is_named(change: dict, message: str) -> None:
    assert_refused(message, FRAME.assign(**change))


def test_a_frame_without_a_column_or_rows_is_refused() -> None:
    assert_refused("no column 'stars', but user, item, rating, timestamp", FRAME, rating="stars")
    assert_refused("no ratings", FRAME[:0])
    assert_refused("item table has no column 'item', but film", FRAME, items=pd.DataFrame({"film": [1]}))
    assert_refused("user table has no column 'user', but name", FRAME, users=pd.DataFrame({"name": [1]}))
    twice = pd.concat([READERS, READERS["age"]], axis=1)
    assert_refused("user table has two columns 'age'; rename or drop one", FRAME, users=twice)
    assert_refused("years of the item table are not whole numbers", FRAME, items=MOVIES.assign(year=1999.5))


def test_a_rating_off_the_scale_is_refused() -> None:
    assert_refused("2 of 3 ratings are off the scale 1 to 2.5, e.g. 4.5", FRAME, scale=(1, 2.5))
    assert_refused("scale 5 to 1 does not rise", FRAME, scale=(5, 1))


# Looking up.


def test_ids_are_found_as_typed() -> None:
    dataset = Dataset.from_frame(FRAME, items=MOVIES)
    assert dataset.item_index("31") == dataset.item_index(31) == dataset.item_index("hyena road") == 0
    assert dataset.user_index("b") == 1
    strings = Dataset.from_frame(FRAME.assign(item=["007", "7", "31"]))
    assert [strings.item_index(typed) for typed in ("007", "31", "7", 7)] == [0, 1, 2, 2]


def test_an_id_or_title_that_is_not_there_is_named_with_a_way_out() -> None:
    dataset = Dataset.from_frame(FRAME, items=MOVIES)
    message = "item id 99999 is not in this dataset (2 items, e.g. 31, 1029)"
    assert_refused(message, 99999, call=dataset.item_index)
    assert_refused("user id zoe is not in this dataset (2 users, e.g. a, b)", "zoe", call=dataset.user_index)
    assert_refused("did you mean 'Hyena Road'?", "Hyaena Road", call=dataset.item_index)
    assert_refused("did you mean 'Dumbo (1941)'?", "dumbo", call=dataset.item_index)
    both = Dataset.from_frame(FRAME, items=MOVIES.assign(title="Hamlet (2000)"))
    assert_refused("of 2 items; give one of their ids, 31, 1029", "Hamlet (2000)", call=both.item_index)


def test_a_split_that_is_not_there_says_which_are() -> None:
    dataset = Dataset.from_frame(FRAME, official_splits={"ua": np.array([True, False, False])})
    assert int(dataset.test_mask("ua", 0.9, generator()).sum()) == 1
    assert int(dataset.test_mask("random", 0.33, generator()).sum()) == 1
    message = "frame has no official split 'u1'; choose from ua, random, per-user, time, leave-last-out"
    assert_refused(message, "u1", 0.1, generator(), call=dataset.test_mask)
    message = "unknown split 'randm'; did you mean 'random'?"
    assert_refused(message, "randm", 0.1, generator(), call=dataset.test_mask)


# Paths and names.


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("ml-100k", (943, 1682, 100_000)),
        ("ml-1m", (6040, 3706, 1_000_209)),
        ("ml-latest-small-2016", (671, 9066, 100_004)),
    ],
)
def test_real_data_have_their_known_sizes(shared_data: Path, name: str, shape: tuple[int, int, int]) -> None:
    dataset = load(shared_data / name)
    ratings = dataset.ratings
    assert (ratings.n_users, ratings.n_items, ratings.n_ratings) == shape
    assert (len(dataset.users), len(dataset.items)) == (ratings.n_users, ratings.n_items)
    assert dataset.name == name


@pytest.mark.parametrize("name", ["ml-100k", "ml-1m"])
def test_real_users_are_all_known_and_survive_the_round_trip(shared_data: Path, name: str) -> None:
    dataset = load(shared_data / name)
    assert not dataset.users.isna().any(axis=None)
    assert dataset.users["age"].dtype == "Int64"
    assert dataset.users["occupation"].nunique() == 21
    known = {"ml-100k": (49, "M", "writer", "55105"), "ml-1m": (35, "F", "homemaker", "94587")}
    row = dataset.users.loc[dataset.user_index(196)]
    assert tuple(row[["age", "gender", "occupation", "zip_code"]]) == known[name]
    assert_same(dataset, through_a_file(dataset))


def test_a_csv_by_path_keeps_its_ids_and_takes_a_scale(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("who,what,stars\n007,a,9\n7,a,8\n")
    dataset = load(str(path), columns="who,what,stars", scale=(0, 10))
    assert dataset.user_ids.tolist() == ["007", "7"]
    assert (dataset.name, dataset.scale) == ("mine", (0, 10))
    (tmp_path / "u").write_text("1\t2\t9\t5\n")
    assert_refused("1 of 1 ratings are off the scale 1 to 5, e.g. 9", tmp_path / "u", call=load)
    assert load(tmp_path / "u", scale=(1, 10)).scale == (1, 10)


def test_a_path_that_exists_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ml-1m").mkdir()
    (tmp_path / "ml-1m" / "ratings.csv").write_text(CSV)
    monkeypatch.chdir(tmp_path)
    assert len(load("ml-1m").ratings) == 3


def test_an_unknown_name_suggests_the_nearest(tmp_path: Path) -> None:
    assert_refused("unknown data set 'ml1m'; did you mean 'ml-1m'?", "ml1m", call=load)
    for path in ("./ml-1m", "nowhere.csv", tmp_path / "none"):
        assert_refused(f"no file, folder or zip at {path}; check the path, or name one of ml-latest", path, call=load)


# The embedded data set.


def test_the_embedded_data_are_what_their_program_makes() -> None:
    folder = Path(downloads.__file__).parents[1] / "data"
    spec = importlib.util.spec_from_file_location("make_ml_latest_small", folder / "make_ml_latest_small.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    with zipfile.ZipFile(folder / "ml-latest-small.zip") as archive:
        files = {name.removeprefix("ml-latest-small/"): archive.read(name) for name in archive.namelist()}
    assert make.sha256(files) == make.SHA256
    assert files["README.txt"] == (folder / "LICENSE.txt").read_bytes()


def test_the_embedded_data_need_no_network() -> None:
    dataset = load("ml-latest-small", cache="/nowhere")
    ratings = dataset.ratings
    assert (ratings.n_users, ratings.n_items, ratings.n_ratings) == (671, 9066, 100_004)
    assert (dataset.name, dataset.scale) == ("ml-latest-small", (0.5, 5))
    assert dataset.title(dataset.item_index("1")) == "Toy Story (1995)"
    assert dataset.items["title"].nunique() == 9064
    assert_same(dataset, through_a_file(dataset))


def test_the_embedded_data_are_the_original(shared_data: Path) -> None:
    original = load(shared_data / "ml-latest-small-2016")
    embedded = load("ml-latest-small")
    assert torch.equal(original.ratings.values, embedded.ratings.values)
    assert torch.equal(original.ratings.timestamps, embedded.ratings.timestamps)
    pd.testing.assert_index_equal(original.user_ids, embedded.user_ids)
    pd.testing.assert_index_equal(original.item_ids, embedded.item_ids)
    pd.testing.assert_frame_equal(original.items, embedded.items)


# Downloads, from a real server on the loopback address.


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder; of names with "short" in them only the first half, under the length of the whole."""

    def log_message(self, *arguments: object) -> None:
        pass

    def copyfile(self, source, outputfile) -> None:
        data = source.read()
        outputfile.write(data[: len(data) // 2] if "short" in self.path else data)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server of tiny.zip, wrong.zip and short.zip, all of them in NAMED."""
    folder = tmp_path / "served"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny.zip", "w") as archive:
        archive.writestr("tiny/ratings.csv", CSV)
    data = (folder / "tiny.zip").read_bytes()
    for name in ("tiny", "wrong", "short", "absent"):
        monkeypatch.setitem(NAMED, name, hashlib.md5(data).hexdigest())
    (folder / "wrong.zip").write_bytes(data + b"x")
    (folder / "short.zip").write_bytes(data)
    monkeypatch.delenv("MFREC_CACHE", raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_a_download_is_kept_and_read_from_the_cache_next_time(server: str, tmp_path: Path, capfd) -> None:
    cache = tmp_path / "a" / "cache"
    dataset = load("tiny", cache=cache, base_url=server)
    assert (dataset.name, len(dataset.ratings)) == ("tiny", 3)
    assert [file.name for file in cache.iterdir()] == ["tiny.zip"]
    assert_same(dataset, load("tiny", cache=cache, base_url="http://127.0.0.1:9"))
    assert capfd.readouterr() == ("", "")


def test_the_environment_names_the_cache(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFREC_CACHE", str(tmp_path / "here"))
    assert zip_of("tiny", base_url=server + "/") == tmp_path / "here" / "tiny.zip"


def test_a_damaged_file_in_the_cache_is_downloaded_again(server: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.zip").write_bytes(b"damaged")
    assert len(load("tiny", cache=tmp_path, base_url=server).ratings) == 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [("wrong", "was not kept; try again"), ("short", "cannot be downloaded into"), ("absent", "HTTPError")],
)
def test_a_bad_download_is_one_sentence_and_leaves_nothing(server: str, tmp_path: Path, name: str, reason: str) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(InputError) as caught:
        load(name, cache=cache, base_url=server)
    for part in (f"{server}/{name}.zip", reason, "--data PATH takes a file, folder or zip"):
        assert part in str(caught.value)
    assert list(cache.iterdir()) == []


def test_without_a_network_the_address_the_cache_and_the_way_out_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load("ml-100k", cache=tmp_path, base_url="http://127.0.0.1:9")
    for part in (
        "http://127.0.0.1:9/ml-100k.zip",
        str(tmp_path),
        "ConnectionError",
        "--data PATH takes a file, folder",
    ):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_refused(
        f"into {tmp_path / 'file'}", "ml-100k", cache=tmp_path / "file", base_url="http://127.0.0.1:9", call=load
    )


# Planted ratings.


@pytest.mark.parametrize("shape", [(30, 20, 30), (30, 20, 200), (20, 30, 599), (20, 30, 600), (1, 1, 1)])
def test_planted_ratings_are_exactly_as_many_as_asked_and_leave_nobody_out(shape: tuple[int, int, int]) -> None:
    dataset = synthetic(*shape, generator=generator())
    ratings = dataset.ratings
    assert (ratings.n_users, ratings.n_items, ratings.n_ratings) == shape
    assert int(ratings.by_user.counts.min()) >= 1
    assert int(ratings.by_item.counts.min()) >= 1
    assert 1 <= float(ratings.values.min()) <= float(ratings.values.max()) <= 5
    assert_same(dataset, through_a_file(dataset))


def test_planted_ratings_are_the_same_for_the_same_seed() -> None:
    assert_same(synthetic(30, 20, 200, generator=generator()), synthetic(30, 20, 200, generator=generator()))
    other = synthetic(30, 20, 200, generator=generator(1))
    assert not torch.equal(other.ratings.values, synthetic(30, 20, 200, generator=generator()).ratings.values)


def test_planted_ratings_have_the_rank_noise_and_deviation_stated() -> None:
    def centred(**keywords) -> torch.Tensor:
        ratings = synthetic(60, 50, 3000, generator=generator(), **keywords).ratings
        Y = ratings.values.double().view(60, 50)
        return Y - Y.mean(0) - Y.mean(1, keepdim=True) + Y.mean()

    assert int((torch.linalg.svdvals(centred(rank=2, noise=0)) > 1).sum()) <= 4  # two, and what clipping adds
    assert_close(centred(rank=0, noise=0.3).std().item(), 0.3, atol=0.02, rtol=0)
    values = synthetic(2000, 1000, 100_000, noise=0, generator=generator()).ratings.values
    assert_close(values.std().item(), 0.7, atol=0.05, rtol=0)
    assert float(((values == 1) | (values == 5)).float().mean()) < 0.02


def test_planted_popularity_is_skewed() -> None:
    ratings = synthetic(1000, 500, 50_000, generator=generator()).ratings
    for counts in (ratings.by_user.counts, ratings.by_item.counts):
        most = counts.sort(descending=True).values[: len(counts) // 10].sum()
        assert 0.25 < float(most / len(ratings)) < 0.75


def test_planted_ratings_are_whole_only_when_asked() -> None:
    assert set(synthetic(30, 20, 300, generator=generator(), rounded=True).ratings.values.tolist()) <= {1, 2, 3, 4, 5}
    assert len(synthetic(30, 20, 300, generator=generator()).ratings.values.unique()) > 200


def test_an_impossible_number_of_planted_ratings_is_refused() -> None:
    for n in (29, 601):
        assert_refused("30 users × 20 items; give 30 to 600", 30, 20, n, generator=generator(), call=synthetic)


def test_weights_come_from_a_column_stay_with_their_ratings_and_are_saved():
    dataset = Dataset.from_frame(FRAME.assign(trust=[0.5, 1.0, 2.0]), weight="trust")
    found = dict(zip(dataset.ratings.values.tolist(), dataset.ratings.weights.tolist(), strict=True))
    assert found == {2.0: 0.5, 4.5: 1.0, 3.0: 2.0}
    assert_same(through_a_file(dataset), dataset)
    assert Dataset.from_frame(FRAME).ratings.weights is None


@pytest.mark.parametrize(
    ("trust", "message"),
    [
        ([1.0, None, 1.0], "weight .* in row 1 is not a finite number"),
        ([1.0, 1.0, -1.0], "weight -1 is not above 0 and finite"),
    ],
)
def test_weights_that_count_for_nothing_are_refused(trust, message):
    with pytest.raises(InputError, match=message):
        Dataset.from_frame(FRAME.assign(trust=trust), weight="trust")

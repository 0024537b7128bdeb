"""Downloads from a real server on the loopback address: complete or not at all, and cached."""

from __future__ import annotations

import hashlib
import stat
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from data_examples import CSV, assert_refused, assert_same

from mfrec.data.downloads import DATASETS, EMBEDDED, Download, local_file
from mfrec.data.loading import load_dataset

NOWHERE = "http://127.0.0.1:9"
WAY_OUT = "give the path of a file, folder or zip instead"


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder; files with "short" in their name break off in the middle."""

    def log_message(self, *arguments: object) -> None:
        pass

    def copyfile(self, source: Any, outputfile: Any) -> None:
        data = source.read()
        outputfile.write(data[: len(data) // 2] if "short" in self.path else data)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server with tiny.zip, wrong.zip and short.zip, which are named data sets."""
    folder = tmp_path / "served"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny.zip", "w") as archive:
        archive.writestr("tiny/ratings.csv", CSV)
    data = (folder / "tiny.zip").read_bytes()
    (folder / "wrong.zip").write_bytes(data + b"x")
    (folder / "short.zip").write_bytes(data)
    monkeypatch.delenv("MFREC_CACHE", raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as http:
        url = f"http://127.0.0.1:{http.server_port}"
        for name in ("tiny", "wrong", "short", "absent"):
            known_hash = "md5:" + hashlib.md5(data).hexdigest()
            monkeypatch.setitem(DATASETS, name, Download(f"{url}/{name}.zip", known_hash))
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield url
        http.shutdown()
        thread.join()


def test_a_download_is_cached_and_silent_without_a_terminal(
    server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "a" / "cache"
    dataset = load_dataset("tiny", cache=cache)
    assert (dataset.name, len(dataset.ratings)) == ("tiny", 3)
    assert [file.name for file in cache.iterdir()] == ["tiny.zip"]
    assert_same(dataset, load_dataset("tiny", cache=cache, base_url=NOWHERE))
    assert capfd.readouterr() == ("", "")


def test_a_terminal_shows_a_progress_bar(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    local_file("tiny", tmp_path)
    assert "tiny.zip" in capsys.readouterr().err


def test_everyone_can_read_a_cached_file(server: str, tmp_path: Path) -> None:
    assert stat.S_IMODE(local_file("tiny", tmp_path).stat().st_mode) == 0o644


def test_a_mirror_takes_the_place_of_the_publisher(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = DATASETS["tiny"]
    assert download is not None
    monkeypatch.setitem(DATASETS, "tiny", Download(f"{NOWHERE}/tiny.zip", download.known_hash))
    assert len(load_dataset("tiny", cache=tmp_path, base_url=f"{server}/").ratings) == 3


def test_the_environment_variable_names_the_cache(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFREC_CACHE", str(tmp_path / "here"))
    assert local_file("tiny") == tmp_path / "here" / "tiny.zip"


def test_a_damaged_file_in_the_cache_is_downloaded_again(server: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.zip").write_bytes(b"damaged")
    assert len(load_dataset("tiny", cache=tmp_path).ratings) == 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [("wrong", "does not have the checksum md5:"), ("short", "cannot be downloaded into"), ("absent", "HTTPError")],
)
def test_a_bad_download_is_refused_in_one_sentence_and_leaves_nothing(
    server: str, tmp_path: Path, name: str, reason: str
) -> None:
    cache = tmp_path / "cache"
    for part in (f"{server}/{name}.zip", reason, WAY_OUT):
        assert_refused(part, name, cache=cache, call=load_dataset)
    assert list(cache.iterdir()) == []


def test_a_bad_download_leaves_the_file_in_the_cache_as_it_is(server: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.zip").write_bytes(b"damaged")
    assert_refused("was not kept; try again", "wrong", cache=tmp_path, call=load_dataset)
    assert (tmp_path / "wrong.zip").read_bytes() == b"damaged"


def test_without_a_network_the_address_the_cache_and_the_way_out_are_named(tmp_path: Path) -> None:
    for part in (f"{NOWHERE}/ml-100k.zip", str(tmp_path), "ConnectionError", WAY_OUT):
        assert_refused(part, "ml-100k", cache=tmp_path, base_url=NOWHERE, call=load_dataset)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("base_url", ["nonsense", "ftp://127.0.0.1:9", "http://[", "http://"])
def test_an_address_that_is_not_one_is_refused_in_one_sentence(tmp_path: Path, base_url: str) -> None:
    assert_refused("cannot be downloaded into", "ml-100k", cache=tmp_path, base_url=base_url, call=load_dataset)


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = f"into {tmp_path / 'file'}"
    assert_refused(message, "ml-100k", cache=tmp_path / "file", base_url=NOWHERE, call=load_dataset)


def test_every_named_data_set_has_a_checksum_and_an_address() -> None:
    for name, download in DATASETS.items():
        if download is None:
            assert name == EMBEDDED
        else:
            assert download.url.startswith("https://")
            assert download.known_hash.startswith("md5:")

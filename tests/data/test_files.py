"""A file is written whole, and no damaged, edited or hostile file is read."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import resource
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mfrec.data.files import (
    COMMENT,
    COMMENT_LENGTH,
    read_json,
    read_tensors,
    write_atomically,
    write_json,
    write_tensors,
)
from mfrec.errors import InputError

STATE = {"weights": torch.arange(600.0), "names": ["Amélie", "b"], "progress": {"epoch": 3, "best": None}}
VALUES = {"format": 5, "solver": "sgd", "data": {"data": "Amélie", "rating_range": [1, 5.0]}, "rmse": 0.1 + 0.2}
KINDS = {
    "tensors.pt": (lambda path: write_tensors(path, STATE), read_tensors),
    "values.json": (lambda path: write_json(path, VALUES), read_json),
}


@pytest.fixture(params=KINDS, scope="module")
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Callable[[Path], Any]]:
    path = tmp_path_factory.mktemp("files") / request.param
    write, read = KINDS[request.param]
    write(path)
    return path, read


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.pt", STATE)
    state = read_tensors(tmp_path / "a.pt")
    assert torch.equal(state.pop("weights"), STATE["weights"])
    assert state == {name: value for name, value in STATE.items() if name != "weights"}


def test_a_tensor_that_occurs_twice_is_saved_once(tmp_path: Path) -> None:
    weights = torch.zeros(100_000)
    write_tensors(tmp_path / "a.pt", {"model": {"w": weights}, "posterior": {"w": weights}})
    assert (tmp_path / "a.pt").stat().st_size < 1.5 * weights.nbytes


def test_a_file_of_tensors_is_still_a_zip_archive_that_torch_loads(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.pt", STATE)
    assert torch.load(tmp_path / "a.pt", weights_only=True).keys() == STATE.keys()
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.testzip() is None
        content = (tmp_path / "a.pt").read_bytes()
        assert archive.comment == b"mfrec sha256 " + hashlib.sha256(content[:-64]).hexdigest().encode()


def test_json_comes_back_as_it_was_and_any_editor_shows_it(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", VALUES)
    assert read_json(tmp_path / "a.json") == VALUES
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == VALUES | {"checksum": text.splitlines()[1].split('"')[3]}
    assert text.splitlines()[2] == '  "format": 5,'
    lines = "".join(text.splitlines(keepends=True)[2:])
    assert text.splitlines()[1] == f'  "checksum": "sha256:{hashlib.sha256(lines.encode()).hexdigest()}",'


# Damage.


def assert_refused(path: Path, read: Callable[[Path], Any], *words: str) -> str:
    with pytest.raises(InputError) as raised:
        read(path)
    message = str(raised.value)
    for word in (str(path), *words):
        assert word in message
    assert "\n" not in message
    return message


@settings(max_examples=300, derandomize=True)
@given(data=st.data())
def test_flipped_bytes_are_detected_anywhere(written: tuple[Path, Callable[[Path], Any]], data: st.DataObject) -> None:
    path, read = written
    content = bytearray(path.read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4, unique=True)):
        content[position] ^= data.draw(st.integers(1, 255))
    damaged = path.with_name(f"damaged{path.suffix}")
    damaged.write_bytes(content)
    assert_refused(damaged, read, "damaged", "restore it from a copy")


def test_every_single_byte_counts(written: tuple[Path, Callable[[Path], Any]]) -> None:
    path, read = written
    content = path.read_bytes()
    damaged = path.with_name(f"damaged{path.suffix}")
    for position in range(0, len(content), 1 if path.suffix == ".json" else 7):
        damaged.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        assert_refused(damaged, read, "damaged")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda content: b"", id="emptied"),
        pytest.param(lambda content: content[:-1], id="last byte lost"),
        pytest.param(lambda content: content[: len(content) // 2], id="cut in half"),
        pytest.param(lambda content: content + b"\n", id="byte added"),
        pytest.param(lambda content: content * 2, id="doubled"),
        pytest.param(lambda content: content[-64:], id="end alone"),
        pytest.param(lambda content: b"\x00" * len(content), id="zeros"),
        pytest.param(lambda content: b"[" * 100_000, id="deep JSON"),
    ],
)
def test_other_damage_is_detected(
    change: Callable[[bytes], bytes], written: tuple[Path, Callable[[Path], Any]], tmp_path: Path
) -> None:
    path, read = written
    damaged = tmp_path / path.name
    damaged.write_bytes(change(path.read_bytes()))
    assert_refused(damaged, read, "damaged")


def test_a_file_that_torch_saved_without_checksum_is_refused(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pt")
    assert_refused(tmp_path / "a.pt", read_tensors, "damaged", "checksum does not match")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[1, 2]", "it is not a JSON object"),
        ("{", "it is not a JSON object"),
        ('{"solver": "als"}', "it has no checksum"),
    ],
)
def test_the_message_names_the_damage_of_a_json_file(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    assert_refused(path, read_json, "damaged", reason)


def test_an_edited_json_file_is_refused_by_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_json(path, VALUES)
    path.write_text(path.read_text().replace('"sgd"', '"als"'))
    assert_refused(path, read_json, "edited", "checksum", "train again")


def test_a_json_file_without_checksum_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(VALUES, indent=2))
    assert_refused(tmp_path / "a.json", read_json, "edited")


def test_a_json_file_of_another_version_is_named_as_that(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"format": 4, "solver": "sgd"}')
    assert_refused(tmp_path / "a.json", lambda path: read_json(path, 5), "another version")


def test_a_missing_file_is_named(written: tuple[Path, Callable[[Path], Any]], tmp_path: Path) -> None:
    path, read = written
    with pytest.raises(InputError, match=f"{tmp_path} has no {path.name}"):
        read(tmp_path / path.name)


# Hostile files.


class Hostile:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def forge(path: Path, content: object) -> None:
    """Write a file as mfrec does, by someone who knows how to make a checksum."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    archive = buffer.getvalue()[:-2] + COMMENT_LENGTH + COMMENT
    path.write_bytes(archive + hashlib.sha256(archive).hexdigest().encode())


@pytest.mark.parametrize("layer", ["value", "whole"])
def test_a_hostile_file_is_refused_without_advice_to_load_it(layer: str, tmp_path: Path) -> None:
    path, hostile = tmp_path / "checkpoint.pt", Hostile(tmp_path / "mark")
    forge(path, {"model": hostile} if layer == "value" else hostile)
    with pytest.raises(InputError, match="neither writes nor loads; delete it") as raised:
        read_tensors(path)
    shown = "".join(traceback.format_exception(raised.value))
    for advice in ("weights_only=False", "unsafe", "safe_globals", "two options", "trust"):
        assert advice not in shown
    assert not (tmp_path / "mark").exists()


def test_a_bare_pickle_is_refused_in_silence(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    content = pickle.dumps(Hostile(tmp_path / "mark"))
    (tmp_path / "a.pt").write_bytes(content + hashlib.sha256(content).hexdigest().encode())
    assert_refused(tmp_path / "a.pt", read_tensors, "damaged")
    assert not (tmp_path / "mark").exists()
    assert not recwarn.list


def test_a_file_of_something_else_than_a_dict_is_refused(tmp_path: Path) -> None:
    forge(tmp_path / "a.pt", [1, 2])
    assert_refused(tmp_path / "a.pt", read_tensors, "list")


# Writing.


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("crash", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    call: str, crash: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*arguments: object, **options: object) -> None:
        raise crash

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(InputError if isinstance(crash, OSError) else type(crash)):
            write_atomically(path, b"new, and longer")
    assert path.read_bytes() == b"old"
    assert [left.name for left in tmp_path.iterdir()] == ["file"]
    write_atomically(path, b"new", b" in pieces")
    assert path.read_bytes() == b"new in pieces"


def test_tensors_that_exceed_the_space_leave_the_old_file_and_an_error_for_people(tmp_path: Path) -> None:
    path = tmp_path / "tensors.pt"
    write_tensors(path, STATE)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.raises(InputError, match=r"tensors.pt cannot be written \(File too large\); free some space"):
            write_tensors(path, {"weights": torch.zeros(2**16)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [left.name for left in tmp_path.iterdir()] == ["tensors.pt"]
    assert torch.equal(read_tensors(path)["weights"], STATE["weights"])


@pytest.mark.parametrize("name", KINDS)
def test_a_crash_between_any_two_steps_of_a_write_leaves_a_good_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, (write, read) = tmp_path / name, KINDS[name]
    write(path)
    steps = [(os, "fsync"), (os, "replace"), (os, "open"), (os, "close")]
    for module, step in steps:
        original = getattr(module, step)
        for crash_before in (True, False):

            def crash(*arguments: Any, original: Any = original, crash_before: bool = crash_before) -> Any:
                if not crash_before:
                    original(*arguments)
                raise KeyboardInterrupt

            with monkeypatch.context() as patch:
                patch.setattr(module, step, crash)
                with pytest.raises(KeyboardInterrupt):
                    write(path)
            read(path)


def test_a_file_gets_the_permissions_that_the_user_gives_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640

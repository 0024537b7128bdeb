"""Read and write files of tensors and of JSON: atomically, with a checksum that is verified on reading.

A file of tensors is the zip archive that `torch.save` writes; the SHA-256 of all bytes before it is the archive's
comment, so that `torch.load` and unzip still open the file.  A JSON file has the SHA-256 of all lines below it as its
first entry.  The checksum is inside the file: one rename replaces both, so no crash can separate them.

It detects accidents, not forgers: whoever can write a file can also write its checksum.  Therefore tensors are loaded
by `weights_only`, which runs no code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from mfrec.errors import InputError

ARCHIVE_START = b"PK\x03\x04"
COMMENT = b"mfrec sha256 "
DIGEST_LENGTH = 64
# The archive ends with the length of its comment, in two bytes, and the comment.
COMMENT_LENGTH = (len(COMMENT) + DIGEST_LENGTH).to_bytes(2, "little")
CHUNK_BYTES = 1 << 20
JSON_HEADER = '{\n  "checksum": "sha256:%s",\n'
JSON_HEADER_PATTERN = re.compile(re.escape(JSON_HEADER).replace("%s", "([0-9a-f]{64})").encode())

TRAIN_AGAIN = "train again"
WRONG_CHECKSUM, NOT_JSON = "its checksum does not match", "it is not a JSON object"


def write_tensors(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors, numbers, strings, dicts and lists.

    Raises:
        InputError: the file cannot be written.
    """
    with replacing(path) as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:
            # By which torch hides the error of the file.
            raise error.__context__ or error from None
        # Instead of the length of the archive's comment, which is 0: its length, and the comment.
        file.seek(-2, os.SEEK_END)
        file.truncate()
        file.write(COMMENT_LENGTH + COMMENT)
        file.write(_digest(file, file.tell()).encode())


def read_tensors(path: Path) -> dict[str, Any]:
    """Read what `write_tensors` wrote, with the tensors on the CPU.

    Raises:
        InputError: the file is missing, damaged, or not one that mfrec wrote.
    """
    try:
        # One handle for both, because a training process may replace the file in between.
        with path.open("rb") as file:
            if not _is_intact(file):
                raise damaged(path, WRONG_CHECKSUM)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise unreadable(path, error) from error
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} holds Python objects, which mfrec neither writes nor loads; delete it, and train again"
        ) from None
    except (RuntimeError, KeyError, EOFError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is not a file of tensors ({type(error).__name__}); train again") from None
    if not isinstance(state, dict):
        raise InputError(f"{path} must hold a dict (got {type(state).__name__}); train again")
    return state


def _is_intact(file: IO[bytes]) -> bool:
    """Whether the file is an archive that ends with the checksum of all bytes before; leaves it at its start."""
    length = max(file.seek(0, os.SEEK_END) - DIGEST_LENGTH, 0)
    file.seek(0)
    is_archive = file.read(len(ARCHIVE_START)) == ARCHIVE_START
    digest = _digest(file, length)
    is_intact = file.read() == digest.encode()
    file.seek(0)
    return is_archive and is_intact


def _digest(file: IO[bytes], length: int) -> str:
    """The SHA-256 of the first bytes of a file, which is left after them."""
    file.seek(0)
    digest = hashlib.sha256()
    while length and (chunk := file.read(min(CHUNK_BYTES, length))):
        digest.update(chunk)
        length -= len(chunk)
    return digest.hexdigest()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, its checksum first.

    Raises:
        InputError: the file cannot be written.
    """
    lines = json.dumps(dict(value), indent=2).removeprefix("{\n").encode() + b"\n"
    write_atomically(path, (JSON_HEADER % hashlib.sha256(lines).hexdigest()).encode(), lines)


def read_json(path: Path, version: int | None = None, remedy: str = TRAIN_AGAIN) -> dict[str, Any]:
    """Read what `write_json` wrote, without the checksum.

    Args:
        version: the "format" that the object must have.
        remedy: how to make the file again, for messages.

    Raises:
        InputError: the file is missing, damaged, edited, or of another version.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error, remedy) from error
    header = JSON_HEADER_PATTERN.match(content)
    if header is not None and hashlib.sha256(content[header.end() :]).hexdigest().encode() != header.group(1):
        raise damaged(path, WRONG_CHECKSUM, remedy)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise damaged(path, NOT_JSON, remedy) from None
    if not isinstance(value, dict):
        raise damaged(path, NOT_JSON, remedy)
    if version is not None and value.get("format") != version:
        raise InputError(f"{path} was written by another version of mfrec; {remedy} with this one")
    if header is None:
        raise damaged(path, "it has no checksum", remedy)
    return {name: content for name, content in value.items() if name != "checksum"}


def write_atomically(path: Path, *chunks: bytes | memoryview) -> None:
    """Write a file so that a reader, or a crash, sees its old content or its new content, never a part.

    Raises:
        InputError: the file cannot be written, for instance because the disk is full; its old content remains.
    """
    with replacing(path) as file:
        for chunk in chunks:
            file.write(chunk)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file, to be written and read, that takes the place of another when it is closed; see `write_atomically`.

    Raises:
        InputError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unwritable(path: Path, error: OSError) -> InputError:
    """The error, for the caller to raise, about a file or folder that cannot be written."""
    return InputError(
        f"{path} cannot be written ({error.strerror}); free some space or give write permission, then try again"
    )


def damaged(path: Path, reason: str, remedy: str = TRAIN_AGAIN) -> InputError:
    """The error, for the caller to raise, about a file whose content has changed.

    Args:
        remedy: how to make the file again.
    """
    return InputError(
        f"{path} was damaged or edited after mfrec wrote it ({reason}); restore it from a copy, or {remedy}"
    )


def unreadable(path: Path, error: OSError, remedy: str = TRAIN_AGAIN) -> InputError:
    """The error, for the caller to raise, about a file that is missing or cannot be opened.

    Args:
        remedy: how to make the file again.
    """
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path.parent} has no {path.name}; restore it, or {remedy}")
    return InputError(f"{path} cannot be read ({error.strerror}); give read permission, or {remedy}")

"""Checksums of large files, verified when they are first opened and whenever they may have changed.

A folder's header lists the size and the SHA-256 of each file.  Once they are verified, a file `.verified` in the folder
keeps each file's device, inode, size and modification time.  As long as these stay the same, the file is not read
again; a change that keeps them, such as a bit that the disk loses, is not noticed.  A copy has other inodes, so that it
is verified anew.  A folder that cannot be written to is verified every time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mfrec.data.files import CHUNK_BYTES, WRONG_CHECKSUM, damaged, unreadable

STAMP = ".verified"
# A file that changed this short a time ago could change again without another time of change.
SECONDS_TO_SETTLE = 2

State = list[Any]


def checksums(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """The size and the SHA-256 of files by name."""
    paths = list(paths)
    digests = _in_parallel(paths)
    return {
        path.name: {"size": path.stat().st_size, "sha256": digest} for path, digest in zip(paths, digests, strict=True)
    }


def verify(folder: Path, expected: Mapping[str, Mapping[str, Any]], remedy: str) -> None:
    """Check the files of a folder that were not verified since they last changed.

    Args:
        expected: the result of `checksums`.
        remedy: how to make the files again, for messages.

    Raises:
        InputError: a file is missing, damaged, or cannot be read.
    """
    verified = _read_stamp(folder)
    states: dict[str, State] = {}
    for name, entry in expected.items():
        try:
            stat = (folder / name).stat()
        except OSError as error:
            raise unreadable(folder / name, error, remedy) from error
        if stat.st_size != entry["size"]:
            raise damaged(folder / name, f"it has {stat.st_size:,} bytes in place of {entry['size']:,}", remedy)
        states[name] = [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, entry["sha256"]]
    unverified = [folder / name for name, state in states.items() if verified.get(name) != state]
    try:
        digests = _in_parallel(unverified)
    except OSError as error:
        raise unreadable(Path(error.filename or folder), error, remedy) from error
    for path, digest in zip(unverified, digests, strict=True):
        if digest != expected[path.name]["sha256"]:
            raise damaged(path, WRONG_CHECKSUM, remedy)
    if unverified:
        settled = time.time_ns() - SECONDS_TO_SETTLE * 10**9
        _write_stamp(folder, {name: state for name, state in states.items() if state[3] < settled})


def _in_parallel(paths: list[Path]) -> list[str]:
    """The SHA-256 of each file; hashing lets other threads run."""
    if len(paths) < 2:
        return [_sha256(path) for path in paths]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_sha256, paths))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _read_stamp(folder: Path) -> dict[str, State]:
    try:
        verified = json.loads((folder / STAMP).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return verified if isinstance(verified, dict) else {}


def _write_stamp(folder: Path, states: dict[str, State]) -> None:
    """Write the stamp if the folder can be written to."""
    temporary = folder / f"{STAMP}.{os.getpid()}.tmp"
    with contextlib.suppress(OSError):
        temporary.write_text(json.dumps(states))
        os.replace(temporary, folder / STAMP)

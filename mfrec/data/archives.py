"""Files: what lies at a path, be it a folder, a file or a zip, as names and a way to get the bytes of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PureWindowsPath
from zipfile import ZipFile

from mfrec.errors import InputError

Members = Mapping[str, Callable[[], bytes]]


def members_of(path: Path) -> Members:
    """The files directly in a folder, the members of a zip (nothing is extracted), or the one file.

    Raises:
        InputError: nothing lies at path, or it is a zip that is damaged or reaches outside its own folder.
    """
    if path.is_dir():
        return {file.name: partial(_read, file) for file in sorted(path.iterdir()) if file.is_file()}
    if not path.exists():
        raise InputError(f"there is no file, folder or zip at {path}; check the path")
    if _read(path, 4) in (b"PK\x03\x04", b"PK\x05\x06"):
        return _zip_members(path)
    return {path.name: partial(_read, path)}


def _read(path: Path, size: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check its permissions") from error


def _zip_members(path: Path) -> Members:
    """By name, without the single top folder that all members may share, as GroupLens packs them."""
    try:
        with ZipFile(path) as archive:
            infos = archive.infolist()
    except Exception as error:  # a damaged archive raises any of half a dozen kinds
        raise InputError(f"{path} is not a whole zip ({error}); fetch or make it again") from error
    for info in infos:
        member = PureWindowsPath(info.filename)  # knows / and \ and drive letters
        if ".." in member.parts or member.anchor:
            raise InputError(f"{path} has a member {info.filename!r} outside its own folder; make the zip without it")
    names = [info.filename for info in infos if not info.is_dir()]
    # What macOS adds is none of the data.
    names = [name for name in names if not name.startswith("__MACOSX/") and not name.split("/")[-1].startswith(".")]
    tops = {name[: name.find("/") + 1] for name in names}
    top = tops.pop() if len(tops) == 1 else ""
    return {name.removeprefix(top): partial(_unpack, path, name) for name in names}


def _unpack(path: Path, name: str) -> bytes:
    try:
        with ZipFile(path) as archive:
            return archive.read(name)
    except Exception as error:  # as above, and RuntimeError where a password is asked
        raise InputError(f"{name} in {path} cannot be unpacked ({error}); fetch or make the zip again") from error

"""Sources: the files at a path, which may be a folder, one file or a zip."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath
from zipfile import ZipFile

from mfrec.errors import InputError


@dataclass(frozen=True)
class Member:
    """A file of a source.

    Attributes:
        size: its bytes, unpacked.
        blocks: reads it in blocks of at most a number of bytes; -1 reads it at once.
        path: where it is; None in a zip.
    """

    size: int
    blocks: Callable[[int], Iterator[bytes]]
    path: Path | None = None


@dataclass(frozen=True)
class Source:
    """The files at a path: a folder's files without its subfolders, the members of a zip, or one file.

    A zip is read member by member and never extracted.

    Attributes:
        path: the folder, zip or file.
        members: the files by name.
    """

    path: Path
    members: Mapping[str, Member]

    @property
    def only_file(self) -> str | None:
        """The name of the file at `path`, or of the single member of a zip; None for a folder or several members."""
        return next(iter(self.members)) if len(self.members) == 1 and not self.path.is_dir() else None

    def first_of(self, *names: str) -> str | None:
        """The first of these names that the source has, or None."""
        return next((name for name in names if name in self.members), None)

    def read(self, name: str) -> bytes:
        """The bytes of a member.

        Raises:
            InputError: it cannot be read or unpacked.
        """
        return b"".join(self.members[name].blocks(-1))

    def begins_with(self, name: str, data: bytes) -> bool:
        """Whether a member begins with these bytes."""
        return next(self.members[name].blocks(len(data)), b"") == data

    def where(self, name: str) -> str:
        """A member's path for messages."""
        return str(self.path if name == self.only_file else self.path / name)


def source_at(path: Path) -> Source:
    """The files at a path.

    Raises:
        InputError: the path does not exist, or is a damaged zip or one with members outside its folder.
    """
    if path.is_dir():
        return Source(path, {file.name: _file(file) for file in sorted(path.iterdir()) if file.is_file()})
    if not path.exists():
        raise InputError(f"there is no file, folder or zip at {path}; check the path")
    if next(_file_blocks(path, 4), b"") in (b"PK\x03\x04", b"PK\x05\x06"):
        return Source(path, _zip_members(path))
    return Source(path, {path.name: _file(path)})


def _file(path: Path) -> Member:
    return Member(path.stat().st_size, partial(_file_blocks, path), path)


def _file_blocks(path: Path, size: int) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while block := file.read(size):
                yield block
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check its permissions") from error


def _zip_members(path: Path) -> dict[str, Member]:
    """Members by name, without the top folder if all members share one, as in GroupLens's zips."""
    try:
        with ZipFile(path) as archive:
            infos = archive.infolist()
    except Exception as error:  # a damaged archive raises any of half a dozen kinds
        raise InputError(f"{path} is a damaged zip ({_reason(error)}); download or make it again") from error
    for info in infos:
        member = PureWindowsPath(info.filename)  # understands / and \ and drive letters
        if ".." in member.parts or member.anchor:
            raise InputError(f"{path} has a member {info.filename!r} outside its own folder; make the zip without it")
    sizes = {info.filename: info.file_size for info in infos if not info.is_dir()}
    # macOS adds files that are not data.
    names = [name for name in sizes if not name.startswith("__MACOSX/") and not name.split("/")[-1].startswith(".")]
    tops = {name[: name.find("/") + 1] for name in names}
    top = tops.pop() if len(tops) == 1 else ""
    return {name.removeprefix(top): Member(sizes[name], partial(_unpacked_blocks, path, name)) for name in names}


def _unpacked_blocks(path: Path, name: str, size: int) -> Iterator[bytes]:
    try:
        with ZipFile(path) as archive, archive.open(name) as file:
            while block := file.read(size):
                yield block
    except Exception as error:  # as above, and RuntimeError if the zip needs a password
        raise InputError(
            f"{name} in {path} cannot be unpacked ({_reason(error)}); download or make the zip again"
        ) from error


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

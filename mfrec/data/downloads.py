"""Downloads: the named data sets, and how one gets into the cache, complete or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mfrec.errors import InputError, unknown

EMBEDDED = "ml-latest-small"
_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
_WAY_OUT = "give the path of a file, folder or zip instead"


@dataclass(frozen=True)
class Download:
    """Where a named data set is published.

    Attributes:
        url: the address of a file or zip that some reader in `READERS` reads.
        known_hash: its checksum, such as "md5:0e33…" or "sha256:8582…".
    """

    url: str
    known_hash: str


# A row makes a data set available by name; the embedded one is never downloaded.  The checksums are those that
# GroupLens publishes.
DATASETS: dict[str, Download | None] = {
    EMBEDDED: None,
    "ml-100k": Download(f"{_GROUPLENS}/ml-100k.zip", "md5:0e33842e24a9c977be4e0107933c0723"),
    "ml-1m": Download(f"{_GROUPLENS}/ml-1m.zip", "md5:c4d9eecfca2ab87c1945afe126590906"),
    "ml-10m": Download(f"{_GROUPLENS}/ml-10m.zip", "md5:ce571fd55effeba0271552578f2648bd"),
    "ml-20m": Download(f"{_GROUPLENS}/ml-20m.zip", "md5:cd245b17a1ae2cc31bb14903e1204af3"),
    "ml-25m": Download(f"{_GROUPLENS}/ml-25m.zip", "md5:6b51fb2759a8657d3bfcbfc42b592ada"),
}


def path_of(data: str | Path, cache: str | Path | None = None, base_url: str | None = None) -> Path:
    """The path of a named data set, embedded or downloaded, or the path itself; see `loading.load_dataset`.

    Raises:
        InputError: there is no such data set or path, or a download fails.
    """
    path, name = Path(data), str(data)
    if path.exists():
        return path
    if isinstance(data, Path) or path.name != name or path.suffix:
        names = ", ".join(DATASETS)
        raise InputError(f"there is no file, folder or zip at {data}; check the path, or name one of {names}")
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    return local_file(name, cache, base_url)


def local_file(name: str, cache: str | Path | None = None, base_url: str | None = None) -> Path:
    """The file of a named data set: the embedded one or the one in the cache, downloaded if it is not there intact.

    Args:
        name: a key of `DATASETS`.
        cache: a folder; by default $MFREC_CACHE, else the user's cache folder.
        base_url: the address of a mirror that has the files by their names; by default their publisher's.

    Raises:
        InputError: the download fails or has the wrong checksum; nothing of it is kept.
    """
    download = DATASETS[name]
    if download is None:
        return Path(__file__).parent / "ml_latest_small" / f"{name}.zip"
    import pooch  # warns in notebooks that lack widgets; the embedded data do without it

    file = download.url.rsplit("/", 1)[-1]
    url = download.url if base_url is None else f"{base_url.rstrip('/')}/{file}"
    folder = cache_folder(cache)
    pooch.get_logger().setLevel("WARNING")  # the progress bar says where the time goes
    try:
        # pooch downloads into a temporary file, which takes its place only if its checksum is right.
        pooch.retrieve(url, download.known_hash, fname=file, path=folder, downloader=_downloader(file))
    except OSError as error:  # includes all errors of requests
        raise InputError(f"{url} cannot be downloaded into {folder} ({type(error).__name__}); {_WAY_OUT}") from error
    except ValueError as error:
        raise InputError(
            f"{url} does not have the checksum {download.known_hash} and was not kept; try again, or {_WAY_OUT}"
        ) from error
    return folder / file


def cache_folder(cache: str | Path | None = None) -> Path:
    """The folder of downloads and of data sets prepared from large files: by default $MFREC_CACHE, else the user's."""
    import pooch

    return Path(cache or os.environ.get("MFREC_CACHE") or pooch.os_cache("mfrec")).expanduser()


def _downloader(title: str) -> Callable[[str, str, Any], None]:
    """A downloader for pooch, with a progress bar."""
    import pooch

    def download(url: str, path: str, caller: Any) -> None:
        with _Bar(title) as bar:
            pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16)(url, path, caller)
        os.chmod(path, 0o644)  # pooch's temporary file can be read by its owner only, a shared cache by all

    return download


class _Bar:
    """A rich progress bar on stderr with pooch's interface; silent if stderr is not a terminal."""

    def __init__(self, title: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
        self._task: TaskID = self._progress.add_task(title, total=None)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    @property
    def total(self) -> float | None:
        return self._progress.tasks[0].total

    @total.setter
    def total(self, size: float | None) -> None:
        self._progress.update(self._task, total=size or None)

    def update(self, n: float) -> None:
        self._progress.advance(self._task, n)

    def reset(self) -> None:
        self._progress.update(self._task, completed=0)

    def close(self) -> None:
        """Does nothing: leaving the context stops the bar, after an error too."""

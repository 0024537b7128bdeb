"""Downloads: the named data sets, and how one gets from its publisher into the cache whole or not at all."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mfrec.errors import InputError

GROUPLENS = "https://files.grouplens.org/datasets/movielens"
EMBEDDED = "ml-latest-small"

# The md5 of each zip as GroupLens publishes it; the embedded set is never downloaded.
NAMED: dict[str, str | None] = {
    EMBEDDED: None,
    "ml-100k": "0e33842e24a9c977be4e0107933c0723",
    "ml-1m": "c4d9eecfca2ab87c1945afe126590906",
    "ml-10m": "ce571fd55effeba0271552578f2648bd",
    "ml-20m": "cd245b17a1ae2cc31bb14903e1204af3",
    "ml-25m": "6b51fb2759a8657d3bfcbfc42b592ada",
}


def zip_of(name: str, cache: str | Path | None = None, base_url: str = GROUPLENS) -> Path:
    """The zip of a named data set: the embedded one, or the one in the cache, downloaded where it is not there whole.

    Args:
        name: a key of NAMED.
        cache: a folder; by default $MFREC_CACHE, or else the user's cache folder.
        base_url: the address under which NAME.zip lies.

    Raises:
        InputError: it is not in the cache and cannot be downloaded, or the download has the wrong checksum.
    """
    md5 = NAMED[name]
    if md5 is None:
        return Path(__file__).parent / "ml_latest_small" / f"{name}.zip"
    import pooch  # which warns in notebooks that lack widgets, and which the embedded data do not need

    folder = Path(cache or os.environ.get("MFREC_CACHE") or pooch.os_cache("mfrec")).expanduser()
    path = folder / f"{name}.zip"
    if not path.is_file() or _md5(path) != md5:
        _download(f"{base_url.rstrip('/')}/{name}.zip", path, md5)
    return path


def _md5(path: Path) -> str:
    import pooch

    return str(pooch.file_hash(str(path), alg="md5"))


def _download(url: str, path: Path, md5: str) -> None:
    """Into a temporary file beside path, which takes its place only once its checksum is right."""
    import pooch

    way_out = "--data PATH takes a file, folder or zip instead"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=path.parent) as folder:
            part = Path(folder) / path.name
            with _Bar(path.name) as bar:
                pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16)(url, str(part), None)
            found = _md5(part)
            if found == md5:
                os.replace(part, path)
    except (OSError, ValueError) as error:  # all of requests' errors are OSError, but for bad addresses
        reason = type(error).__name__
        raise InputError(f"{url} cannot be downloaded into {path.parent} ({reason}); {way_out}") from error
    if found != md5:
        raise InputError(f"{url} came with md5 {found} where {md5} is due, and was not kept; try again, or {way_out}")


class _Bar:
    """A rich bar on stderr, with the four methods and the total that pooch drives; silent off a terminal."""

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
        """Nothing: leaving the context stops the bar, after an error too."""

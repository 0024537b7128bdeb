"""Frames for programs: as JSON on stdout, or in a file, a frame at a time, the whole file or none of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd

from mfrec.cli.report import count_progress
from mfrec.errors import InputError


class TableWriter:
    """A .csv or .parquet file that is there once everything has been written.

    Raises:
        InputError: the name ends otherwise, parquet lacks pyarrow, or the place cannot be written.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix not in (".csv", ".parquet"):
            raise InputError(f"{path} is not a .csv or .parquet file; name one that ends so")
        if path.is_dir():
            raise InputError(f"{path} is a folder; name a file that is not there yet, or is to be replaced")
        if not path.parent.is_dir():
            raise InputError(f"there is no folder {path.parent} to write {path.name} in; make it, or choose another")
        self.path, self.temporary = path, path.with_name(f".{path.name}.tmp")
        self.rows = 0
        self._parquet: Any = None
        if path.suffix == ".parquet":
            try:
                import pyarrow.parquet  # noqa: F401  (an extra)
            except ImportError as error:
                raise InputError(
                    f"{path} is parquet, which needs pyarrow; pip install pyarrow, or name a .csv"
                ) from error

    def __enter__(self) -> TableWriter:
        try:
            self.temporary.write_bytes(b"")
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror}); choose another place") from error
        return self

    def write(self, frame: pd.DataFrame) -> None:
        """Append the rows of a frame, whose columns are those of the first."""
        if self.path.suffix == ".csv":
            frame.to_csv(self.temporary, mode="a", header=not self.rows, index=False)
        else:
            self._write_parquet(frame)
        self.rows += len(frame)

    def _write_parquet(self, frame: pd.DataFrame) -> None:
        import pyarrow
        import pyarrow.parquet

        table: Any = pyarrow.Table.from_pandas(frame, preserve_index=False)
        if self._parquet is None:
            self._parquet = pyarrow.parquet.ParquetWriter(self.temporary, table.schema)
        self._parquet.write_table(table)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._parquet is not None:
            self._parquet.close()
        try:
            if error is None:
                os.replace(self.temporary, self.path)
        finally:
            self.temporary.unlink(missing_ok=True)


def write_blocks(
    writer: TableWriter, blocks: Iterable[tuple[int, pd.DataFrame]], total: int, what: str, of: str
) -> None:
    """Write frames, each with how many rows of all it is for, under a progress bar, and say how many there were."""
    with writer, count_progress(of, total) as advance:
        for done, frame in blocks:
            writer.write(frame)
            advance(done)
    print(f"{writer.rows:,} {what} for {total:,} {of} in {writer.path}")


def print_json(frame: pd.DataFrame) -> None:
    """The rows as a list of objects; reasons as objects too."""
    if "because" in frame:
        plain = [[reason._asdict() for reason in reasons] for reasons in frame["because"]]
        frame = frame.assign(because=pd.Series(plain, dtype=object))
    print(frame.to_json(orient="records", indent=2, force_ascii=False))

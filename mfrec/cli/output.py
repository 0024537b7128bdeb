"""Frames for other programs: as JSON on stdout, or in a file that is written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd

from mfrec.cli.progress import count_progress
from mfrec.errors import InputError, OptionError

SCORE_BYTES = 4


class TableWriter:
    """Writes a .csv or .parquet file, which appears once everything has been written.

    Raises:
        InputError: the name has another ending, or the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix not in (".csv", ".parquet"):
            raise OptionError("output", f"must end in .csv or .parquet (got {path})")
        if path.is_dir():
            raise OptionError("output", f"must be a file (got the folder {path})")
        if not path.parent.is_dir():
            raise OptionError("output", f"must be in an existing folder (got {path}); create {path.parent}")
        self.path, self.temporary = path, path.with_name(f".{path.name}.tmp")
        self.rows = 0
        self._parquet: Any = None

    def __enter__(self) -> TableWriter:
        try:
            self.temporary.write_bytes(b"")
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror}); choose another --output") from error
        return self

    def write(self, frame: pd.DataFrame) -> None:
        """Append the rows of a frame, which has the columns of the first frame."""
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


def fill(writer: TableWriter, blocks: Iterable[tuple[int, pd.DataFrame]], total: int, units: str) -> None:
    """Write frames under a progress bar; the arguments are those of `write_blocks`."""
    with writer, count_progress(units, total) as advance:
        for done, frame in blocks:
            writer.write(frame)
            advance(done)


def write_blocks(
    writer: TableWriter, blocks: Iterable[tuple[int, pd.DataFrame]], total: int, rows: str, units: str
) -> None:
    """Write frames under a progress bar, and print how many rows there are.

    Args:
        blocks: frames, each with the number of units that it is for.
        total: the number of units.
        rows, units: what to call them, such as "recommendations" and "users".
    """
    fill(writer, blocks, total, units)
    print(f"{writer.rows:,} {rows} for {total:,} {units} in {writer.path}")


def print_json(frame: pd.DataFrame) -> None:
    """Print the rows as a list of objects; reasons are objects, too."""
    if "because" in frame:
        reasons = [[reason._asdict() for reason in reasons] for reasons in frame["because"]]
        frame = frame.assign(because=pd.Series(reasons, dtype=object))
    print(frame.to_json(orient="records", indent=2, force_ascii=False))


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as dicts for JSON, with None for missing values."""
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def scores_in(megabytes: int) -> int:
    """How many scores fit into this much memory."""
    return megabytes * 2**20 // SCORE_BYTES

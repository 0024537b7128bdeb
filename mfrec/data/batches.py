"""Batches: the ratings in a file of any size as frames, in the order of the file, in bounded memory.

The frames, one below another, hold what `parsing.read_ratings` reads.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pandas as pd
import pyarrow.parquet

from mfrec.data.archives import Source
from mfrec.data.parsing import PARQUET, Layout, named_columns, no_ratings, parquet_range, parsed, text_layout
from mfrec.data.raw_tables import RatingRange
from mfrec.data.text import checked_blocks, damaged_parquet

# Bytes of text, and ratings of a parquet file, in a batch.
TEXT_BYTES, PARQUET_ROWS = 2**26, 2**22


class RatingBatches:
    """The ratings in a file of a source, in batches.

    Args:
        name: the file's name in the source.
        folder: where a parquet file is unpacked if it is in a zip.
        wanted: the names of its columns, as `parsing.column_names` returns them.
        is_latin1: whether text is Latin-1 and not UTF-8.
        on_progress: called with the fraction that was read.

    Attributes:
        is_text: whether the file is text and not parquet.
        rating_range: the range that the format declares, or None; known once all batches were read.

    Raises:
        InputError: while iterating, as `parsing.read_ratings` does.
        NotUTF8: while iterating, if text is Latin-1: then its beginning was misread.
    """

    def __init__(
        self,
        source: Source,
        name: str,
        wanted: list[str] | None,
        folder: Path,
        *,
        is_latin1: bool,
        on_progress: Callable[[float], object],
    ) -> None:
        self.is_text = not source.begins_with(name, PARQUET)
        self.rating_range: RatingRange | None = None
        self._member, self._where = source.members[name], source.where(name)
        self._wanted, self._folder, self._is_latin1, self._on_progress = wanted, folder, is_latin1, on_progress

    def __iter__(self) -> Iterator[pd.DataFrame]:
        return self._text() if self.is_text else self._parquet()

    def _text(self) -> Iterator[pd.DataFrame]:
        """Frames whose ids are categorical, of text; their rows are never in two blocks."""
        ranges: list[RatingRange | None] = []
        blocks = self._counted(self._member.blocks(TEXT_BYTES), self._member.size)
        texts = checked_blocks(self._where, blocks, is_latin1=self._is_latin1)
        for layout in layouts(self._where, texts, self._wanted):
            frame = parsed(layout)
            if len(frame):
                ranges.append(layout.rating_range(frame["rating"]))
                yield frame
        if not ranges:
            raise no_ratings(self._where)
        # A block may have whole stars only, while another has half stars, or none of MovieLens's.
        declared = [limits for limits in ranges if limits is not None]
        self.rating_range = min(declared) if len(declared) == len(ranges) else None

    def _counted(self, blocks: Iterable[bytes], size: int) -> Iterator[bytes]:
        n_read = 0
        for block in blocks:
            yield block
            n_read += len(block)
            self._on_progress(n_read / size)

    def _parquet(self) -> Iterator[pd.DataFrame]:
        """Frames whose ids have the types of the columns."""
        path = self._member.path
        if path is None:
            path = self._folder / "unpacked.parquet"
            with path.open("wb") as unpacked:
                unpacked.writelines(self._member.blocks(TEXT_BYTES))
        with damaged_parquet(self._where):
            # Buffered, since a column of a large row group need not fit into memory.
            file = pyarrow.parquet.ParquetFile(path, buffer_size=2**22)
            header = file.schema_arrow.empty_table().to_pandas().columns.astype(str)
        names = named_columns(self._where, list(header), self._wanted)
        self.rating_range, n_read = parquet_range(names), 0
        batches = file.iter_batches(PARQUET_ROWS, columns=list(names.values()))
        while True:
            with damaged_parquet(self._where):
                batch = next(batches, None)
                frame = None if batch is None else batch.to_pandas()
            if frame is None:
                return
            n_read += len(frame)
            yield frame[list(names.values())].set_axis(list(names), axis=1)
            self._on_progress(n_read / file.metadata.num_rows)


def layouts(where: str, texts: Iterable[bytes], wanted: list[str] | None) -> Iterator[Layout]:
    """The lines of a ratings file, in blocks in which no quote is left open.

    Args:
        texts: blocks of whole lines, as from `checked_blocks`.

    Raises:
        InputError: the first line is neither a header nor a rating.
    """
    layout, waiting, n_before = None, b"", 0
    for text in texts:
        if layout is None:
            layout = current = text_layout(where, text, wanted)
        else:
            current = layout.continued(waiting + layout.text(text), n_before)
        end = current.lines.end_of_rows()
        if not end and len(current.lines.data) > csv.field_size_limit():
            end = len(current.lines.data)  # reading them names the line of the quote
        data, waiting = current.lines.data[:end], current.lines.data[end:]
        complete = current.part(data)
        n_before += complete.lines.n_lines
        yield complete
    if layout is not None and waiting:
        yield layout.continued(waiting, n_before)

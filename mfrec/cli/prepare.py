"""`mfrec prepare`: from files of ratings to a folder that opens in milliseconds."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from mfrec.cli.options import DataPath, Plugins, Switch
from mfrec.experiments.config import ReadingConfig


@dataclass(frozen=True, kw_only=True)
class Prepare(ReadingConfig):
    """Prepare a data set of any size: a folder that opens in milliseconds, for --data."""

    data: DataPath = field()
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """A new folder."""
    json: Switch = False
    """Print JSON instead of a sentence."""
    plugin: Plugins = ()

    def __call__(self) -> int:
        from mfrec.data.loading import prepare
        from mfrec.data.prepared import read_header
        from mfrec.data.progress import stage_progress

        start = time.perf_counter()
        with stage_progress("preparing") as on_progress:
            prepare(**self.reading(), out=self.out, on_progress=on_progress)
        seconds = time.perf_counter() - start
        header = read_header(Path(self.out))
        sizes = {name: header[name] for name in ("n_ratings", "n_users", "n_items")}
        n_bytes = sum(file.stat().st_size for file in Path(self.out).iterdir())
        if self.json:
            print(json.dumps({"path": self.out, "hash": header["content_hash"], **sizes, "bytes": n_bytes}, indent=2))
        else:
            n_ratings, n_users, n_items = sizes.values()
            print(
                f"{self.out}: {n_ratings:,} ratings of {n_users:,} users × {n_items:,} items, "
                f"{n_bytes / 1e6:,.1f} MB, in {seconds:.1f} s"
            )
        return 0

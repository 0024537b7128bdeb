"""`mfrec runs`: the runs of a folder, or the differences between two runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mfrec.cli.options import Switch
from mfrec.cli.tables import FORMATS
from mfrec.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from mfrec.experiments.run import Run

DIFF = "diff"
# Columns that are left out of the table if they are the same for all runs.
SETTINGS = ("folder", "data", "split", "seed")


@dataclass(frozen=True, kw_only=True)
class Runs:
    """List the runs of a folder, best first, or show how two runs differ: mfrec runs diff A B."""

    what: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[FOLDER | diff RUN RUN]")] = ("runs",)
    """A folder, with runs at any depth; or the word diff and two run folders."""
    json: Switch = False
    """Print JSON instead of a table."""
    csv: Switch = False
    """Print CSV instead of a table."""

    def __call__(self) -> int:
        from mfrec.experiments.comparison import difference, overview
        from mfrec.experiments.run import Run

        if self.json and self.csv:
            raise InputError("--json and --csv cannot be combined; give one of them")
        if self.what[:1] == (DIFF,):
            if len(self.what) != 3:
                raise InputError(f"diff needs two runs (got {len(self.what) - 1}); write mfrec runs diff A B")
            first, second = (Run.open(path) for path in self.what[1:])
            return self._print(difference(first, second), lambda frame: _print_difference(first, second, frame))
        if len(self.what) != 1:
            raise InputError(f"runs takes one folder (got {' '.join(self.what)}); or write mfrec runs diff A B")
        folder = Path(*self.what)
        return self._print(overview(folder), lambda frame: _print_overview(folder, frame))

    def _print(self, frame: pd.DataFrame, print_table: Callable[[pd.DataFrame], object]) -> int:
        from mfrec.cli.output import records

        if self.json:
            print(json.dumps(records(frame), indent=2))
        elif self.csv:
            frame.to_csv(sys.stdout, index=False)
        else:
            print_table(frame)
        return 0


def _print_overview(folder: Path, frame: pd.DataFrame) -> None:
    """Print the columns that fit a terminal: the first metric, and settings that distinguish the runs."""
    from mfrec.cli.report import print_frame
    from mfrec.evaluation.metrics import METRICS

    metric = next(iter(METRICS.values()))
    splits = {f"{split} {metric.label}": split for split in ("valid", "test")}
    constant = [name for name in SETTINGS if frame[name].nunique(dropna=False) == 1]
    others = [name for name in map(str, frame) if name.partition(" ")[0] in splits.values() and name not in splits]
    formats = {**FORMATS, **dict.fromkeys(splits.values(), metric.format)}
    shown = frame.drop(columns=[*constant, *others, "folder"]).rename(columns=splits)
    # A run's path tells its study or folds; a column of its own would leave neither enough width.
    shown["run"] = [str(Path(parent or ".", run)) for parent, run in zip(frame["folder"], frame["run"], strict=True)]
    print_frame(f"runs in {folder}, with the {metric.label} on their splits", shown, formats)


def _print_difference(first: Run, second: Run, frame: pd.DataFrame) -> None:
    """Print the difference of two runs, with each metric in its format."""
    import pandas as pd

    from mfrec.cli.report import print_frame
    from mfrec.evaluation.metrics import METRICS

    names = [what.rpartition(" ")[2] for what in frame["what"]]
    formats = [METRICS[name].format if name in METRICS else ".4f" if name == "cost" else "g" for name in names]

    shown = frame.copy()
    for column in frame.columns[1:]:
        texts = [
            format(value, number) if isinstance(value, float) else value
            for value, number in zip(frame[column], formats, strict=True)
        ]
        shown[column] = pd.Series(texts, dtype=object)
    print_frame(f"{first.path} and {second.path}", shown)

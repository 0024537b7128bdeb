"""The verb that compares runs: a table of all in a folder, or what two of them differ in."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import tyro

from mfrec.cli import report
from mfrec.cli.options import Switch
from mfrec.errors import InputError
from mfrec.experiments.run import PLUMBING, Run, runs_in
from mfrec.experiments.training import PARTS
from mfrec.solvers.base import SOLVERS

DIFF = "diff"


@dataclasses.dataclass(frozen=True)
class Runs:
    """List the runs of a folder, the best first, or show what two runs differ in: mfrec runs diff A B."""

    what: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[FOLDER | diff RUN RUN]")] = ("runs",)
    """Folder of runs; or the word diff and two run folders."""
    json: Switch = False
    """Print JSON instead of a table."""
    csv: Switch = False
    """Print CSV instead of a table."""

    def __call__(self) -> int:
        if self.json and self.csv:
            raise InputError("--json and --csv are two ways to print the same; give one of them")
        if self.what[:1] == (DIFF,):
            if len(self.what) != 3:
                raise InputError(f"diff compares two runs, not {len(self.what) - 1}; write mfrec runs diff A B")
            first, second = (Run.open(path) for path in self.what[1:])
            return self._print(f"{first.path} and {second.path}", difference(first, second), _shown_difference)
        if len(self.what) > 1:
            raise InputError(f"{' '.join(self.what)} are {len(self.what)} folders; give one, or diff and two runs")
        folder = Path(*self.what)
        return self._print(f"runs in {folder}, with the RMSE of their parts", overview(folder), _without_constants)

    def _print(self, title: str, table: pd.DataFrame, shown: Callable[[pd.DataFrame], pd.DataFrame]) -> int:
        if self.json:
            print(json.dumps(json.loads(table.to_json(orient="records", double_precision=15)), indent=2))
        elif self.csv:
            table.to_csv(sys.stdout, index=False)
        else:
            report.print_frame(title, shown(table))
        return 0


def _without_constants(table: pd.DataFrame) -> pd.DataFrame:
    """What does not tell runs apart takes no room on a terminal."""
    constant = [name for name in ("data", "split", "seed") if table[name].nunique() == 1]
    return table.drop(columns=constant).rename(columns={"valid RMSE": "valid", "test RMSE": "test"})


def _shown_difference(table: pd.DataFrame) -> pd.DataFrame:
    figures = [name.endswith(("rmse", "mae", "cost")) for name in table["what"]]
    shown = table.copy()
    for column in table.columns[1:]:
        shown[column] = [
            format(value, ".4f" if figure else "g") if isinstance(value, float) else value
            for value, figure in zip(table[column], figures, strict=True)
        ]
    return shown


def overview(folder: Path) -> pd.DataFrame:
    """A row a run: lowest validation RMSE first, and after them those that validate nothing, by test RMSE."""
    rows = []
    for run in runs_in(folder):
        config, metrics = run.config(), run.metrics() if run.has_metrics() else {}
        parts = {part: (metrics.get(part) or {}).get("rmse") for part in ("valid", "test")}
        learned = "l2" in getattr(SOLVERS.get(config["solver"]), "learned", ())
        rows.append(
            {
                "run": run.path.name,
                "solver": config["solver"],
                "data": metrics.get("dataset", config.get("data")),
                "split": config.get("split"),
                "seed": config.get("seed"),
                "rank": config.get("rank"),
                "l2": None if learned else config["l2"],
                "epochs": metrics.get("epochs"),
                "seconds": metrics.get("fit_seconds"),
                "valid RMSE": parts["valid"],
                "test RMSE": parts["test"],
            }
        )
    table = pd.DataFrame(rows)
    return table.sort_values(["valid RMSE", "test RMSE"], na_position="last", kind="stable", ignore_index=True)


def difference(first: Run, second: Run) -> pd.DataFrame:
    """A row for each option, and each final figure, that two runs do not have in common."""
    sides: list[dict[str, Any]] = []
    for run in (first, second):
        options = {name: value for name, value in run.config().items() if name not in PLUMBING}
        metrics = run.metrics() if run.has_metrics() else {}
        parts = {part: metrics.get(part) or {} for part in PARTS}
        figures = {f"{part} {name}": value for part, values in parts.items() for name, value in values.items()}
        sides.append(options | {"epochs done": metrics.get("epochs"), "seconds": metrics.get("fit_seconds")} | figures)
    names = [name for name in dict.fromkeys([*sides[0], *sides[1]]) if sides[0].get(name) != sides[1].get(name)]
    titles = [run.path.name if first.path.name != second.path.name else str(run.path) for run in (first, second)]
    values = {title: [side.get(name) for name in names] for title, side in zip(titles, sides, strict=True)}
    return pd.DataFrame({"what": names} | values, dtype=object)

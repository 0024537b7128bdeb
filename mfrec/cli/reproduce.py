"""`mfrec reproduce`: measure a published accuracy figure from its data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from mfrec.cli.options import Switch
from mfrec.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Measure an accuracy figure of the ledger from its data; without a name, list the ledger."""

    name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="NAME")] = None
    """The figure, such as ml-100k-folds/sessions."""
    data: str | None = None
    """A named data set, or a folder, zip or file, instead of the figure's."""
    first: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Measure the first N splits or seeds only."""
    json: Switch = False
    """Print JSON instead of tables."""

    def __call__(self) -> int:
        if self.first is not None and self.first < 1:
            raise OptionError("first", f"must be at least 1 (got {self.first})")
        if self.name is None:
            self._list()
        else:
            self._measure(self.name)
        return 0

    def _list(self) -> None:
        from mfrec.cli.tables import print_rows
        from mfrec.experiments.ledger import LEDGER, TASKS

        rows = [
            {
                "name": name,
                "test sets": TASKS[entry.task].description,
                "sees besides ratings": entry.sees,
                "trainings": " and ".join(training.command() for training in entry.trainings),
            }
            for name, entry in LEDGER.items()
        ]
        if self.json:
            print(json.dumps(rows, indent=2))
        else:
            print_rows("figures", [{key: row[key] for key in row if key != "trainings"} for row in rows])

    def _measure(self, name: str) -> None:
        from mfrec.experiments.ledger import TASKS, Measurement, entry_named, reproduce, spread, task_dataset

        entry = entry_named(name)
        dataset = task_dataset(entry, self.data)
        for training in () if self.json else entry.trainings:
            print(f"mfrec train {training.command()}", flush=True)

        def report(row: Measurement) -> None:
            if not self.json:
                print(f"{row.repeat or entry.task}: test RMSE {row.rmse:.4f}, {row.seconds:.1f} s of fit", flush=True)

        repeats = TASKS[entry.task].repeats[: self.first]
        measured = reproduce(entry, dataset, repeats=repeats, on_measured=report)
        mean, std = spread([row.rmse for row in measured])
        if self.json:
            rows = [row._asdict() for row in measured]
            print(json.dumps({"name": name, "rmse": mean, "std": std, "test_sets": rows}, indent=2))
            return
        print(f"{name}: test RMSE {mean:.4f}" + ("" if std is None else f" ± {std:.4f}"))

"""The verb that cross-validates: a training for each fold, each with a run folder of its own, and their mean."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from mfrec.cli import report
from mfrec.cli.options import taken
from mfrec.cli.train import Train
from mfrec.cli.train_arguments import parse_train
from mfrec.errors import InputError
from mfrec.experiments.run import Run

FIGURES = ("rmse", "mae")
USAGE = """usage: mfrec cv [SOLVER] [--folds K | --split u1..u5] [OPTIONS]

Train and test on one fold after another, and show the mean.

  --folds K           the test parts are K random parts of the ratings, the same for the same --seed (default: 5)
  --split A..B        the test parts are official splits of the data, such as u1..u5
  OPTIONS             as of mfrec train SOLVER, which lists them by --help
"""


@dataclasses.dataclass(frozen=True)
class CrossValidate:
    """Cross-validate a solver: train on all folds but one, test on that, for each; the mean and its spread."""

    splits: tuple[str, ...]
    first: Train

    def __call__(self) -> int:
        """Exit status: 0, or that of the fold that was interrupted."""
        first = self.first
        folder = Run.create(first.run_dir, first.name, f"{Path(first.data).stem}-{first.solver}-cv").path
        rows = []
        for split in self.splits:
            fold = dataclasses.replace(first, split=split, run_dir=str(folder), name=split)
            try:
                metrics = fold.train().metrics
            except InputError:
                if not any(folder.iterdir()):
                    folder.rmdir()  # nothing in it was trained
                raise
            if metrics is None:
                print(f"interrupted in {split}; the folds that were done are in {folder}", file=sys.stderr)
                return 130
            figures = {name: metrics["test"][name] for name in FIGURES}
            rows.append({"fold": split, **figures, "epochs": metrics["epochs"], "seconds": metrics["fit_seconds"]})
        columns = {name: [row[name] for row in rows] for name in FIGURES}
        spread = {name: (statistics.mean(values), statistics.stdev(values)) for name, values in columns.items()}
        if first.json:
            found = {name: {"mean": mean, "deviation": deviation} for name, (mean, deviation) in spread.items()}
            print(json.dumps({"runs": str(folder), "seed": first.seed, "folds": rows, **found}, indent=2))
            return 0
        title = f"{first.solver} on {Path(first.data).stem}, seed {first.seed}"
        report.print_table(title, list(rows[0]), [list(row.values()) for row in rows])
        for name, (mean, deviation) in spread.items():
            print(f"{name.upper():<5} {mean:.4f} ± {deviation:.4f} (standard deviation over {len(rows)} folds)")
        print(f"runs    {folder}")
        print(f"curves  tensorboard --logdir {folder}")
        return 0


def parse_cv(arguments: list[str]) -> Callable[[], int]:
    """The options of `mfrec cv [SOLVER] …`: its own, and those of a training."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE, end="")
        raise SystemExit(0)
    rest, own = taken("cv", arguments, "--folds", "--split")
    if len(own) == 2:
        raise InputError("--folds and --split are two ways to make folds; give one of them")
    for option in ("--test-fraction", "--resume"):
        if any(one.partition("=")[0] == option for one in rest):
            raise InputError(f"{option} has no place in cross-validation, whose folds are the test parts; leave it out")
    splits = _range(own["--split"]) if "--split" in own else _folds(own.get("--folds", "5"))
    return CrossValidate(tuple(splits), parse_train([*rest, "--split", splits[0]]))


def _folds(text: str) -> list[str]:
    if not re.fullmatch(r"\d+", text) or int(text) < 2:
        raise InputError(f"folds {text!r} cannot be; give a whole number from 2, such as 5")
    return [f"fold-{number}-of-{text}" for number in range(1, int(text) + 1)]


def _range(text: str) -> list[str]:
    """ "u1..u5" as all from u1 to u5; or names with commas between them."""
    ends = re.fullmatch(r"(\D+)(\d+)\.\.(\D+)(\d+)", text)
    names = text.split(",")
    if ends is not None and ends.group(1) == ends.group(3):
        names = [f"{ends.group(1)}{n}" for n in range(int(ends.group(2)), int(ends.group(4)) + 1)]
    if len(names) < 2:
        raise InputError(f"split {text!r} is one part, not folds; write u1..u5, names with commas, or give --folds")
    return names

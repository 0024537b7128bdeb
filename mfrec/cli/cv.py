"""`mfrec cv`: cross-validation, with a run for each fold."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from mfrec.cli.experiment_options import ExperimentOptions
from mfrec.errors import InputError, OptionError
from mfrec.experiments.config import DataConfig
from mfrec.experiments.launch import require_alone
from mfrec.options import Range

if TYPE_CHECKING:
    from mfrec.experiments.cross_validation import CrossValidation

FOLDS, MOST_FOLDS = 5, 10_000
EACH_FOLD = "cannot be used with cv: each fold is the test set"


@dataclass(frozen=True)
class FoldsConfig(DataConfig):
    """Which ratings to use, and how to split them."""

    split: str = ""
    """Official splits of the data to use as folds: u1..u5, or names with commas; by default random folds."""


@dataclass(frozen=True, kw_only=True)
class CrossValidate(ExperimentOptions):
    """Cross-validate a solver: train and test once for each fold; the mean and the standard deviation."""

    excluded: ClassVar = dict.fromkeys(("test_fraction", "test_data", "valid_data"), EACH_FOLD)

    folds: Annotated[int | None, Range(2, MOST_FOLDS), tyro.conf.arg(metavar="K")] = None
    """Number of random folds, the same for the same --seed; 5 by default."""

    @classmethod
    def data_options(cls, data: DataConfig) -> DataConfig:
        """See `ExperimentOptions.data_options`."""
        return FoldsConfig(**(vars(data) | {"split": "", "test_data": None, "valid_data": None}))

    def __call__(self) -> int:
        require_alone("cv")
        config = self.experiment()

        from mfrec.cli.output import records
        from mfrec.cli.progress import announce_stop, epoch_progress
        from mfrec.evaluation.monitors import monitor
        from mfrec.experiments.cross_validation import cross_validate
        from mfrec.experiments.interrupts import Interrupts

        splits = self.split_names()
        with epoch_progress(config.solver, monitor(config.fit.monitor), quiet=self.json) as on_epoch:
            stop = Interrupts(announce_stop)
            result = cross_validate(config, splits, on_epoch=on_epoch, stop=stop, command=self.command_line)
        if result.interrupted is not None:
            print(f"interrupted in {result.interrupted}; the finished folds are in {result.folder}", file=sys.stderr)
            return 130
        if self.json:
            folds = {"runs": str(result.folder), "seed": config.fit.seed, "folds": records(result.folds)}
            summary = {**folds, **result.summary()}
            print(json.dumps(summary, indent=2))
        else:
            self._print(result)
        return 0

    def split_names(self) -> list[str]:
        """The splits whose test sets are the folds.

        Raises:
            InputError: there are two choices of folds, or fewer than two folds.
        """
        from mfrec.experiments.cross_validation import fold_names

        if not self.data.split:
            return fold_names(FOLDS if self.folds is None else self.folds)
        if self.folds is not None:
            raise InputError("--folds and --split cannot be combined; give one of them")
        names = splits_in(self.data.split)
        if len(names) < 2:
            raise OptionError("split", f"must name several splits, such as u1..u5 (got {self.data.split})")
        return names

    def _print(self, result: CrossValidation) -> None:
        from mfrec.cli import report
        from mfrec.evaluation.metrics import METRICS

        report.print_frame(f"{self.solver_name} on {self.data.data}, seed {self.training.seed}", result.folds)
        for name, values in result.summary().items():
            metric = METRICS[name]
            mean, std = (format(values[key], metric.format) for key in ("mean", "std"))
            print(f"{metric.label:<5} {mean} ± {std} (mean ± std over {len(result.folds)} folds)")
        print(f"runs    {result.folder}")
        print(f"curves  tensorboard --logdir {result.folder}")


def splits_in(text: str) -> list[str]:
    """The names in "u1..u5", all from the first to the last, or in names with commas between them.

    Examples:
        >>> splits_in("u1..u3"), splits_in("ua,ub")
        (['u1', 'u2', 'u3'], ['ua', 'ub'])
    """
    ends = re.fullmatch(r"(\D+)(\d{1,4})\.\.(\D+)(\d{1,4})", text)
    if ends is not None and ends[1] == ends[3]:
        return [f"{ends[1]}{number}" for number in range(int(ends[2]), int(ends[4]) + 1)]
    return text.split(",")

"""`mfrec tune`: a search for the best options of a solver."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from mfrec.cli.experiment_options import ExperimentOptions
from mfrec.cli.first_stage import FirstStage
from mfrec.errors import InputError, OptionError
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.launch import require_alone
from mfrec.options import INT_MAX, Range

if TYPE_CHECKING:
    import pandas as pd

    from mfrec.experiments.study import Study, StudyResult
    from mfrec.experiments.trial import TrialResult

# How many trials to show.
SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Tune(ExperimentOptions):
    """Tune a solver: compare trials on the validation split, train again with the best options, and test once."""

    excluded: ClassVar = {"refit": "cannot be used with tune, which always refits with the best options; leave it out"}

    trials: Annotated[int | None, Range(1, INT_MAX), tyro.conf.arg(metavar="N")] = None
    """Number of trials in total, including those before --resume; 20 by default.  The first has the default options."""
    timeout: Annotated[float | None, Range(0, open_low=True), tyro.conf.arg(metavar="SECONDS")] = None
    """Start no trial after this many seconds."""
    resume: Annotated[str | None, tyro.conf.arg(metavar="STUDY")] = None
    """Resume a study that was stopped or killed; while it runs, work on it too."""

    @classmethod
    def base_config(cls, stage: FirstStage, solver: str | None) -> ExperimentConfig:
        """See `ExperimentOptions.base_config`; with --resume, the configuration of the study."""
        if stage.resume is None:
            return super().base_config(stage, solver)
        from mfrec.experiments.study import Study

        if stage.config is not None:
            raise OptionError("config", f"cannot be used with --resume: {stage.resume} has its own options")
        config = Study.open(stage.resume).config
        if solver not in (None, config.solver):
            raise InputError(f"{stage.resume} tunes {config.solver}, not {solver}; leave {solver} out")
        return config

    def __call__(self) -> int:
        require_alone("tune")
        self.check()

        from mfrec.cli.progress import announce_stop, epoch_progress
        from mfrec.experiments.interrupts import Interrupts

        study = self._study()
        try:
            with epoch_progress(study.config.solver, study.monitor, quiet=self.json) as on_epoch:
                result = study.run(
                    trials=self.trials,
                    timeout=math.inf if self.timeout is None else self.timeout,
                    on_trial=lambda trial: print_trial(study, trial, quiet=self.json),
                    on_epoch=on_epoch,
                    stop=Interrupts(announce_stop),
                    command=self.command_line,
                )
        except KeyboardInterrupt:
            result = None
        if result is None or result.state == "interrupted":
            print(f"interrupted; resume with: mfrec tune --resume {study.folder}", file=sys.stderr)
            return 130
        if result.state == "waiting":
            print(f"another process works on {result.waiting_for}, and will finish the study", file=sys.stderr)
        elif self.json:
            print(json.dumps(study_to_dict(study, result), indent=2))
        else:
            print_study(study, result)
        return 0

    def _study(self) -> Study:
        from mfrec.experiments.study import N_TRIALS, Study

        if self.resume is None:
            return Study.create(self.experiment(), self.explicit, N_TRIALS if self.trials is None else self.trials)
        for name in self.explicit:
            if name != "plugin":
                raise OptionError(name, "cannot be used with --resume: a study keeps its options")
        return Study.open(self.resume)


def print_trial(study: Study, trial: TrialResult, *, quiet: bool) -> None:
    """Print the result of a trial in a line; on stderr if it diverged, and then also if quiet."""
    if trial.value is None:
        print(f"trial {trial.number} diverged: {trial.problem}", file=sys.stderr)
    elif not quiet:
        value = format(trial.value, study.monitor.format)
        options = "  ".join(f"{name} {option:.3g}" for name, option in trial.options.items())
        note = "  (pruned)" if trial.state == "pruned" else "  the best so far" if trial.is_best else ""
        print(f"trial {trial.number:<3} valid {study.monitor.label} {value}  {options}{note}", flush=True)


def study_to_dict(study: Study, result: StudyResult) -> dict[str, Any]:
    """A finished study as JSON has it."""
    from mfrec.cli.output import records

    assert result.metrics is not None
    return {
        "study": str(study.folder),
        "trials": records(result.trials),
        "best": result.best_options,
        f"valid_{study.monitor.name}": result.best_value,
        "run": str(result.run and result.run.path),
        "test": result.metrics["test"],
    }


def print_study(study: Study, result: StudyResult) -> None:
    """Print the best trials, the best options, and the metrics on the test split."""
    from mfrec.cli import report
    from mfrec.evaluation.metrics import METRICS

    assert result.metrics is not None
    assert result.run is not None
    shown: pd.DataFrame = result.trials.head(SHOWN).drop(columns="seconds")
    print()
    formats = {**report.metric_formats(), f"valid {study.monitor.label}": study.monitor.format}
    report.print_frame(f"the best {len(shown)} of {len(result.trials)} trials", shown, formats)
    options = " ".join(f"--{name.replace('_', '-')} {value:.4g}" for name, value in result.best_options.items())
    print(f"best options  {options}")
    test, epochs = result.metrics["test"], result.metrics["epochs"]
    if test is not None:
        measured = ", ".join(f"{metric.label} {test[name]:{metric.format}}" for name, metric in METRICS.items())
        print(f"test split    {measured}, after {epochs} epochs on the train and validation splits")
    print(f"run folder    {result.run.path}")
    print(f"curves        tensorboard --logdir {study.folder}")

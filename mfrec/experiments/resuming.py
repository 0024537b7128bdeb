"""What must hold for a run to be resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mfrec.errors import InputError, OptionError
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.loop import Progress, out_of_patience
from mfrec.experiments.run import Run

# Options that a resumed run may change, because they do not affect the results up to an epoch.
MAY_CHANGE = frozenset({"epochs", "patience", "log_every", "device", "partial_tables", "loggers", "plugin"})


def with_changes(
    run: Run, before: ExperimentConfig, config: ExperimentConfig, may_change: frozenset[str]
) -> ExperimentConfig:
    """The configuration of a resumed run.

    Raises:
        InputError: an option changed that may not.
    """
    if config.solver != before.solver:
        raise InputError(
            f"{run.path} was trained by {before.solver}, not {config.solver}; resume it with {before.solver}"
        )
    after = config.flat()
    for name, value in before.flat().items():
        if after[name] != value and name not in may_change:
            raise OptionError(name, f"must stay {value!r} when {run.path} is resumed (got {after[name]!r})")
    plugins = dict.fromkeys([*before.run.plugin, *config.run.plugin])
    return config.updated(plugin=tuple(plugins))


def require_work(run: Run, config: ExperimentConfig, progress: Progress, first_fit: Mapping[str, Any] | None) -> None:
    """Check that a run that has ended has epochs to do.

    Raises:
        InputError: it has none.
    """
    if first_fit is not None:
        raise InputError(f"{run.path} has ended with its refit; start a new run")
    if progress.epoch >= config.fit.epochs:
        raise OptionError(
            "epochs", f"must be above {progress.epoch}, which {run.path} has done (got {config.fit.epochs})"
        )
    if out_of_patience(progress, config.fit.patience):
        waited = progress.epoch - progress.best_epoch
        raise OptionError(
            "patience",
            f"must be above {waited} (got {config.fit.patience}): {run.path} stopped early, "
            f"{waited} epochs after its best",
        )

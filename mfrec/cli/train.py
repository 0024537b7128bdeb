"""`mfrec train`: train a model, show progress, print results."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from mfrec.cli.experiment_options import ExperimentOptions
from mfrec.cli.first_stage import FirstStage
from mfrec.errors import InputError, OptionError
from mfrec.experiments.config import ExperimentConfig, FitConfig

if TYPE_CHECKING:
    from mfrec.experiments.training import TrainingResult

SIMILAR = 5


@dataclass(frozen=True, kw_only=True)
class Train(ExperimentOptions):
    """Train a model, and save it in a run folder."""

    resume: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = None
    """Resume the training of this run: to the same bits as if it had never stopped."""

    @classmethod
    def base_config(cls, stage: FirstStage, solver: str | None) -> ExperimentConfig:
        """See `ExperimentOptions.base_config`; with --resume, the configuration of the run."""
        if stage.resume is None:
            return super().base_config(stage, solver)
        from mfrec.experiments.run import Run

        if stage.config is not None:
            raise OptionError("config", f"cannot be used with --resume: {stage.resume} has its own options")
        # The device is chosen anew: a run may be resumed on another machine.
        config = Run.open(stage.resume).config().updated(device=FitConfig().device)
        if solver not in (None, config.solver):
            raise InputError(
                f"{stage.resume} was trained by {config.solver}, not {solver}; resume it with {config.solver}"
            )
        return config

    def __call__(self) -> int:
        config = self.experiment()

        from mfrec.cli.progress import announce_stop, epoch_progress
        from mfrec.evaluation.monitors import monitor
        from mfrec.experiments.interrupts import Interrupts
        from mfrec.experiments.launch import launched_processes, take_gpu
        from mfrec.experiments.run import Run
        from mfrec.experiments.training import train

        with launched_processes() as processes:
            is_first = processes is None or processes.index == 0
            if processes is not None:
                take_gpu(config)
            quiet = self.json or not is_first
            with epoch_progress(config.solver, monitor(config.fit.monitor), quiet=quiet) as on_epoch:
                result = train(
                    config,
                    run=None if self.resume is None else Run.open(self.resume),
                    on_epoch=on_epoch,
                    stop=Interrupts(announce_stop if is_first else _say_nothing),
                    command=self.command_line,
                    processes=processes,
                )
        if not is_first:
            return 130 if result.interrupted else 0
        assert result.run is not None, "every training of the command line has a run folder"
        if result.metrics is None:
            epoch, path = result.progress.epoch, result.run.path
            print(f"saved after epoch {epoch}; resume with: mfrec train --resume {path}", file=sys.stderr)
            return 130
        if self.json:
            print(json.dumps({"run": str(result.run.path), **result.metrics}, indent=2))
        else:
            print_training(result)
        return 0


def _say_nothing() -> None:
    """For all processes but the first."""


def print_training(result: TrainingResult) -> None:
    """Print how a model compares with baselines, what it recommends to a user, and items similar to one."""
    import torch

    from mfrec.cli import report
    from mfrec.inference.recommend import recommended_items, similar_items

    dataset, splits, progress, run = result.dataset, result.splits, result.progress, result.run
    assert run is not None
    assert result.metrics is not None
    posterior, seconds = result.predictive, result.metrics["fit_seconds"]
    model = posterior.mean_model()
    best = f", best after {progress.best_epoch}" if progress.best_model else ""
    print(f"{result.config.solver} on {dataset.name}: {progress.epoch} epochs{best}, {seconds:.1f} s")
    if diagnostics := result.metrics.get("diagnostics"):
        r_hat, n = diagnostics["r_hat"], diagnostics["effective_samples"]
        print(f"convergence: R-hat {r_hat:.2f} (largest), effective samples {n:.0f} (smallest)")
    measured = against_baselines(result)
    if measured:
        report.print_metrics("test split", measured)
    by_count = torch.argsort(splits["train"].user_counts, stable=True)
    user = int(by_count[len(by_count) // 2])
    report.print_recommendations(dataset, user, recommended_items(dataset, model, user, posterior=posterior))
    item = int(splits["train"].item_counts.argmax())
    report.print_items(f"similar to {dataset.title(item)}", similar_items(dataset, model, item, SIMILAR))
    print(f"run folder  {run.path}")
    print(f"curves      tensorboard --logdir {run.path.parent}")


def against_baselines(result: TrainingResult) -> dict[str, dict[str, float]]:
    """The test metrics of the baselines and of the model, by name; empty without a test split."""
    from mfrec.evaluation.baselines import baselines
    from mfrec.evaluation.metrics import evaluate_splits

    assert result.metrics is not None
    if "test" not in result.splits:
        return {}
    objective, test = result.solver.objective, {"test": result.splits["test"]}
    models = baselines(result.splits["train"], result.dataset.rating_range)
    measured = {name: evaluate_splits(model, objective, test)["test"] for name, model in models.items()}
    return {**measured, f"{result.config.solver}, rank {result.config.model.rank}": result.metrics["test"]}

"""Training: from a configuration to a trained model and its run folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfrec.data.dataset import Dataset
from mfrec.data.loading import load_dataset
from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.evaluation.monitors import monitor
from mfrec.experiments.building import build_trained_model
from mfrec.experiments.config import EMBEDDED_DATA, ExperimentConfig
from mfrec.experiments.loggers import Logger, check_loggers
from mfrec.experiments.loop import Diverged, Epoch, Progress, never
from mfrec.experiments.run import Run
from mfrec.experiments.session import OpenLoggers, Session
from mfrec.inference.trained_model import TrainedModel
from mfrec.plugins import import_plugins
from mfrec.posteriors.base import Posterior
from mfrec.posteriors.predictive import predictive_model
from mfrec.processes import Processes
from mfrec.solvers.base import Solver

VALID_FRACTION, EMBEDDED_VALID_FRACTION = 0.05, 1 / 9


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """The result of `train`.

    Attributes:
        config: the configuration; of a resumed run, with the options that were changed.
        dataset: the data.
        split_labels: (n_ratings,) TRAIN, VALID or TEST; after a refit, validation ratings are labelled TRAIN.
        splits: the ratings of each split by name, on the device of the training.
        solver: the solver, with the model of the best epoch.
        progress: epochs, seconds, and the best validation metric; of the refit if there was one.
        metrics: the final figures, as in `metrics.json`; None if the training was interrupted.
        run: the run folder; None if nothing was saved.
    """

    config: ExperimentConfig
    dataset: Dataset
    split_labels: Tensor
    splits: dict[str, Ratings]
    solver: Solver
    progress: Progress
    metrics: dict[str, Any] | None
    run: Run | None

    @property
    def interrupted(self) -> bool:
        """Whether `stop` ended the training before its end."""
        return self.metrics is None

    @property
    def posterior(self) -> Posterior:
        """What the solver inferred."""
        return self.solver.inference()

    @property
    def predictive(self) -> Posterior:
        """The posterior with the model that predicts held-out ratings as its mean; see `predictive_model`."""
        posterior = self.posterior
        model = predictive_model(posterior, self.splits["train"], self.config.model.recent_bias)
        return posterior.predicting_by(model)

    def trained_model(self) -> TrainedModel:
        """The trained model, which answers by ids."""
        return build_trained_model(self.config, self.dataset, self.split_labels, self.posterior)


def train(
    config: ExperimentConfig,
    dataset: Dataset | None = None,
    *,
    loggers: Sequence[Logger] | OpenLoggers | None = None,
    run: Run | None = None,
    on_epoch: Callable[[Epoch], object] | None = None,
    stop: Callable[[], bool] | None = None,
    end_early: Callable[[], bool] | None = None,
    command: str | None = None,
    processes: Processes | None = None,
) -> TrainingResult:
    """Train a model as configured, and save a run folder; or resume the training of one.

    A resumed run ends with the same bits as one that was never stopped.  Its configuration may differ in `MAY_CHANGE`.

    With `refit`, training runs a second time on the training and validation ratings, from the same seed, for the best
    number of epochs.  The saved model, the training metrics and the test metrics are those of the second training.
    The curves and the validation metrics are those of the first.  The checkpoint keeps the first results as
    "first_fit", so that either training can be resumed.

    Args:
        dataset: the data, instead of loading the configured data; it is split by its own `split_labels`, if any.  A
            resumed run has its own.
        loggers: where to log, or what opens loggers given (run folder, resumed epoch or None) for `train` to close;
            by default the configured ones, if the run is saved.
        run: a run to resume, with its own data.
        on_epoch: called after every epoch, and once before the first with number 0.
        stop: asked before every epoch; True interrupts the training there, to be resumed later.  An `Interrupts`
            listens to Ctrl-C meanwhile.
        end_early: asked before every epoch; True ends the training there, as if it had run out of patience.
        command: the command line to log; by default that of this process.
        processes: those that train together: each calls this function with the same arguments, and reads its own part
            of the same data.  The first one writes the run.  The models and metrics of all are alike, but with partial
            tables the first one alone ends with all rows.

    Raises:
        Diverged: the cost exploded.
        InputError: an option, the data or the run cannot be used.  A new run's folder is then not created, or removed.

    Examples:
        >>> from mfrec.data.synthetic import synthetic
        >>> dataset = synthetic(n_users=20, n_items=10, n_ratings=100, generator=torch.Generator().manual_seed(0))
        >>> config = ExperimentConfig.create("als", rank=2, epochs=3, run_dir=None)
        >>> result = train(config, dataset)
        >>> result.progress.epoch, sorted(result.splits), sorted(result.metrics["test"])
        (3, ['test', 'train', 'valid'], ['cost', 'mae', 'rmse'])
    """
    import_plugins(config.run.plugin)
    config.check()
    monitor(config.fit.monitor)
    if loggers is None:
        check_loggers(config.run.loggers)
    if run is not None:
        if dataset is not None:
            raise InputError("a resumed run has its own data; give a run or a dataset, not both")
        session = Session.resumed(config, run, processes)
    else:
        dataset = load_configured(config) if dataset is None else dataset
        session = Session(config, dataset, label_splits(config, dataset), processes=processes)
    try:
        session.create_run()
        with session.logging(loggers, command) as opened:
            ended = session.fit(opened, on_epoch, stop or never, end_early or never)
            metrics = session.finish(opened) if ended else None
    except InputError as error:
        if run is None or isinstance(error, Diverged):
            session.remove_run_if_untrained()
        raise
    return TrainingResult(
        session.config,
        session.dataset,
        session.split_labels,
        session.splits,
        session.solver,
        session.progress,
        metrics,
        session.run,
    )


def label_splits(config: ExperimentConfig, dataset: Dataset) -> Tensor:
    """(n_ratings,) TRAIN, VALID or TEST for each rating, as configured and drawn from the configured seed.

    Raises:
        InputError: the dataset has no such split, or no rating is left for training.
    """
    options = config.data
    fraction = options.valid_fraction
    if fraction is None:
        is_embedded = options.data == dataset.name == EMBEDDED_DATA
        fraction = EMBEDDED_VALID_FRACTION if is_embedded else VALID_FRACTION
    generator = torch.Generator().manual_seed(config.fit.seed)
    return dataset.split_labels_for(options.split, options.test_fraction, fraction, generator)


def load_configured(config: ExperimentConfig) -> Dataset:
    """The configured data.

    Raises:
        InputError: it cannot be read.
    """
    return load_dataset(**config.data.reading())

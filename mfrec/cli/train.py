"""`mfrec train`: from a configuration to a run folder, and what is printed at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import torch
import tyro
from torch import Tensor

from mfrec.cli import report
from mfrec.cli.options import Device, Switch, knobs, pick_device, seeded
from mfrec.data.dataset import Dataset
from mfrec.data.loading import load
from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.evaluation.baselines import baselines
from mfrec.evaluation.figures import pictures_of
from mfrec.evaluation.metrics import evaluate, evaluate_parts, with_coverage
from mfrec.experiments import tensorboard
from mfrec.experiments.loop import Diverged, Epoch, Progress, answer, fit, posterior_of, stalled
from mfrec.experiments.run import Run
from mfrec.experiments.training import draw_parts, make_solver, split_parts
from mfrec.inference.recommend import recommended_items, similar_items
from mfrec.model.objective import Objective
from mfrec.solvers.base import Solver

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a model and leave a run folder behind."""

    data: str = "ml-latest-small"
    """A named set (ml-latest-small, ml-100k, ml-1m, ml-10m, ml-20m, ml-25m) or a folder, zip or file."""
    columns: str | None = None
    """Columns of a CSV, TSV or parquet file of your own: user,item,rating[,timestamp]."""
    rating_scale: tuple[float, float] | None = None
    """Lowest and highest possible rating; by default what the format says, or else the data's own extremes."""
    duplicates: Literal["last", "first", "mean", "error"] = "last"
    """Which rating counts where a user rated an item more than once."""
    split: str = "random"
    """random, per-user, time, leave-last-out, cold-items, fold-1-of-5, or an official split of the data such as u1."""
    test_fraction: float = 0.1
    """Share of all ratings held out for the test; official splits bring their own."""
    valid_fraction: float | None = None
    """Share of the training part held out for validation; by default 0.05, and 1/9 of the embedded data (80/10/10)."""
    seed: int = 0
    """Seeds the splits, the start and the solver: same seed and device, same bits."""

    rank: int = 64
    """Number of latent factors."""
    biases: bool = True
    """Whether users and items have a bias."""
    offset: Literal["none", "global", "item"] = "global"
    """What is subtracted before training: nothing, the global mean, or each item's damped mean."""
    damping: float = 5.0
    """Ratings at the global mean that each item's mean is damped by (offset item); 0 is the plain mean."""
    implicit: Literal["none", "users", "items", "both"] = "none"
    """Whether what a user rated, or who rated an item, adds to their factors (SVD++ and its mirror image)."""
    user_features: str = ""
    """Columns of the users' table that add to their factors: age,gender,occupation."""
    item_features: str = ""
    """Columns of the items' table that add to their factors: genres,year."""
    item_ids: bool = True
    """Whether items have factors of their own; without, they are what their features are."""
    nonnegative: Switch = False
    """Keep all factors at 0 or above."""
    init: Literal["scaled-normal", "small-normal", "uniform"] = "scaled-normal"
    """How factors start: 0.1/√rank · normal, 0.01 · normal, or uniform on [0, 1)."""
    l2: float = 1.0
    """λ, the weight of the L2 penalty, before its scaling."""
    bias_l2: float | None = None
    """λ of the biases; by default l2."""
    scaling: Literal["row", "sqrt", "rating"] = "sqrt"
    """Each row's λ is l2 times 1, √n or n, for a user or item with n ratings."""
    loss: str = "squared"
    """What an error costs: squared, ½e², or log-cosh, which large errors raise less."""

    epochs: int = 100
    """Epochs in all, at most."""
    patience: int = 8
    """Stop after so many epochs without a better validation RMSE; vb and gibbs do all their epochs."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    run_dir: str = "runs"
    """Folder of run folders."""
    name: str | None = None
    """Name of the run folder; by default DATA-SOLVER-N."""
    config: str | None = None
    """A run's config.json, or a file like it: options that hold where none is given here."""
    resume: str | None = None
    """A run folder to go on with: to the same bits as if it had never stopped."""
    json: Switch = False
    """Print the final metrics as JSON instead of tables."""
    log_every: int = 10
    """Epochs between points of the training part's curves; those of the validation part have all.  0 writes no curves,
    and nothing else for TensorBoard."""
    command: Annotated[str, tyro.conf.Suppress, tyro.conf.Fixed] = ""
    # Part of a study: the test part stays untouched, and pictures are left to the model that is chosen.
    trial: Annotated[bool, tyro.conf.Suppress, tyro.conf.Fixed] = False

    solver: ClassVar[str]

    def __call__(self) -> int:
        outcome = self.train()
        run, progress = outcome.run, outcome.progress
        if outcome.metrics is None:
            print(f"saved after epoch {progress.epoch}; go on with: mfrec train --resume {run.path}", file=sys.stderr)
            return 130
        self.show(outcome)
        return 0

    def train(
        self, on_epoch: Callable[[Epoch], object] = lambda news: None, stop: Callable[[], bool] = lambda: False
    ) -> Outcome:
        """Train, or go on, and leave a run folder; prints nothing but progress.

        Args:
            on_epoch: called after every epoch, and once before the first with number 0.
            stop: asked before every epoch; True ends the training there, and well.

        Raises:
            InputError: an option cannot be; no folder is left then.
        """
        self.check()
        device = pick_device(self.device)
        if self.resume is None:
            dataset = load(self.data, columns=self.columns, scale=self.rating_scale, duplicates=self.duplicates)
            part = self._part(dataset)
            # Everything is built before the folder, so that a wrong option leaves no folder behind.
            experiment = self._experiment(dataset, part, device)
            run = Run.create(self.run_dir, self.name, f"{dataset.name}-{self.solver}")
            run.write_config({"solver": self.solver, **dataclasses.asdict(self), "name": run.path.name})
            run.write_dataset(dataset, part)
            progress = Progress()
        else:
            run = Run.open(self.resume)
            experiment = self._experiment(*run.dataset(), device)
            progress = run.restore(experiment.solver)
            # A run that was stopped between its last epoch and its metrics has only these left to do.
            if run.has_metrics():
                if progress.epoch >= self.epochs:
                    raise InputError(f"{run.path} has done {progress.epoch} epochs already; give more with --epochs")
                if stalled(progress, self.patience):
                    raise InputError(
                        f"{run.path} stopped early, {progress.epoch - progress.best_epoch} epochs after its best; "
                        "give more with --patience"
                    )
                run.remove_metrics()
            run.write_config({**run.config(), "epochs": self.epochs, "patience": self.patience})
        try:
            progress, interrupted = self._fit(run, experiment, progress, on_epoch, stop)
        except Diverged:
            if run.checkpoint()["progress"]["epoch"] == 0:
                run.remove()  # nothing in it was trained
            raise
        return Outcome(run, experiment, progress, None if interrupted else self._finish(run, experiment, progress))

    def check(self) -> None:
        """Refuse what cannot be, before anything is read.

        Raises:
            InputError: an option is out of its range.
        """
        if self.rank < 1:
            raise InputError(f"rank {self.rank} leaves no factors to train; give 1 or more, such as 64")
        for option in ("epochs", "patience"):
            if getattr(self, option) < 1:
                raise InputError(f"{option} {getattr(self, option)} leaves nothing to do; give 1 or more")
        if self.log_every < 0:
            raise InputError(f"log_every {self.log_every} is no number of epochs; give 1 or more, or 0 for no curves")
        seeded(self.seed)

    def _part(self, dataset: Dataset) -> Tensor:
        """(n_ratings,) TRAIN, VALID or TEST."""
        generator = seeded(self.seed)
        fraction = self.valid_fraction
        if fraction is None:
            fraction = 1 / 9 if self.data == "ml-latest-small" else 0.05
        return draw_parts(dataset, self.split, self.test_fraction, fraction, generator)

    def _experiment(self, dataset: Dataset, part: Tensor, device: torch.device) -> Experiment:
        parts = split_parts(dataset.ratings.to(device), part)
        if self.trial:
            parts.pop("test", None)
        taken = [p.name for p in inspect.signature(make_solver).parameters.values() if p.kind is p.KEYWORD_ONLY]
        own = [knob.name for knob in knobs(self.solver)]
        options = {name: getattr(self, name) for name in [*taken, *own] if name != "generator"}
        generator = seeded(self.seed)
        solver = make_solver(self.solver, dataset, parts["train"], generator=generator, **options)
        return Experiment(dataset, parts, solver)

    def _fit(
        self,
        run: Run,
        experiment: Experiment,
        progress: Progress,
        on_epoch: Callable[[Epoch], object],
        stop: Callable[[], bool],
    ) -> tuple[Progress, bool]:
        """The progress made, and whether it was interrupted before its end."""
        solver, n_ratings = experiment.solver, len(experiment.parts["train"])
        with (
            self._writer(run, progress, solver) as writer,
            finish_epoch_on_interrupt() as interrupted,
            report.epoch_progress(self.solver, self.epochs, progress, n_ratings, quiet=self.json) as show,
        ):

            def tell(news: Epoch) -> None:
                show(news)
                on_epoch(news)
                if writer is not None and news.train is not None:
                    tensorboard.log_histograms(writer, solver.model, news.number)

            progress = fit(
                solver,
                experiment.parts.get("valid"),
                epochs=self.epochs,
                patience=self.patience,
                log_every=self.log_every or self.epochs,
                log=None if writer is None else writer.add_scalar,
                on_epoch=tell,
                save=run.write_checkpoint,
                progress=progress,
                stop=lambda: stop() or interrupted(),
            )
            ended = stop() or progress.epoch >= self.epochs or stalled(progress, self.patience)
            return progress, interrupted() and not ended

    def _finish(self, run: Run, experiment: Experiment, progress: Progress) -> dict[str, Any]:
        """The final figures, written to the run and told to TensorBoard."""
        dataset, solver, model = experiment.dataset, experiment.solver, answer(experiment.solver)
        measured = evaluate_parts(model, solver.objective, experiment.parts)
        measured = with_coverage(measured, experiment.parts, model, posterior_of(solver))
        metrics = {
            "solver": self.solver,
            "dataset": dataset.name,
            "split": self.split,
            "seed": self.seed,
            "rank": self.rank,
            "epochs": progress.epoch,
            "n_users": dataset.ratings.n_users,
            "n_items": dataset.ratings.n_items,
            "n_ratings": len(dataset.ratings),
            "fit_seconds": round(progress.seconds, 3),
            "train": None,
            "valid": None,
            "test": None,
            **measured,
        }
        run.write_metrics(metrics)
        if self.log_every:
            with contextlib.closing(tensorboard.open_writer(run.path, progress.epoch + 1)) as writer:
                tensorboard.log_hparams(writer, run.config(), measured, progress.epoch)
                if not self.trial:
                    self._log_pictures(run, experiment, writer, progress.epoch)
        return metrics

    def show(self, outcome: Outcome) -> None:
        """Print how the model compares, and what it recommends; or its figures as JSON."""
        run, experiment, progress, metrics = outcome
        assert metrics is not None, "a training that was interrupted has nothing to show"
        if self.json:
            print(json.dumps({"run": str(run.path), **metrics}, indent=2))
            return
        dataset, solver, model = experiment.dataset, experiment.solver, answer(experiment.solver)
        best = f", best after {progress.best_epoch}" if progress.best_model else ""
        print(f"{self.solver} on {dataset.name}: {progress.epoch} epochs{best}, {progress.seconds:.1f} s")
        report.print_errors("test part", self._against_baselines(experiment, metrics["test"]))
        counts = experiment.parts["train"].user_counts
        middling = int(torch.argsort(counts, stable=True)[len(counts) // 2])
        recommended = recommended_items(dataset, model, middling, posterior=posterior_of(solver))
        report.print_recommendations(dataset, middling, recommended)
        most_rated = int(experiment.parts["train"].item_counts.argmax())
        report.print_items(f"similar to {dataset.title(most_rated)}", similar_items(dataset, model, most_rated, 5))
        print(f"run folder  {run.path}")
        print(f"curves      tensorboard --logdir {run.path.parent}")

    @contextlib.contextmanager
    def _writer(self, run: Run, progress: Progress, solver: Solver) -> Iterator[SummaryWriter | None]:
        """Where curves go, with what is told once written; None where none are asked for."""
        if not self.log_every:
            yield None
            return
        first = None if self.resume is None else progress.epoch + 1 if progress.epoch else 0
        with contextlib.closing(tensorboard.open_writer(run.path, first)) as writer:
            tensorboard.log_settings(writer, run.config(), self.command, solver.ratings.device, progress.epoch)
            yield writer

    def _log_pictures(self, run: Run, experiment: Experiment, writer: SummaryWriter, epoch: int) -> None:
        solver, parts = experiment.solver, experiment.parts
        model, posterior, train = answer(solver), posterior_of(solver), parts["train"]
        name = next(name for name in ("test", "valid", "train") if name in parts)
        tensorboard.log_pictures(writer, pictures_of(model, posterior, train, parts[name], name), epoch)
        tensorboard.write_projection(run.path, experiment.dataset, model, train.item_counts)

    def _against_baselines(
        self, experiment: Experiment, measured: dict[str, float] | None
    ) -> dict[str, dict[str, float]]:
        test, held_out = experiment.parts.get("test"), Objective(loss=experiment.solver.objective.loss)
        if test is None or measured is None:
            return {}
        models = baselines(experiment.parts["train"], experiment.dataset.scale)
        found = {name: evaluate(model, test, held_out) for name, model in models.items()}
        return {**found, f"{self.solver}, rank {self.rank}": measured}


class Experiment(NamedTuple):
    """What a configuration amounts to."""

    dataset: Dataset
    parts: dict[str, Ratings]
    solver: Solver


class Outcome(NamedTuple):
    """What a training came to; without metrics, it was interrupted and can go on."""

    run: Run
    experiment: Experiment
    progress: Progress
    metrics: dict[str, Any] | None


@contextlib.contextmanager
def finish_epoch_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C or SIGTERM lets the epoch end, so that the fit can be saved and resumed; a second one stops at once."""
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        print("\nfinishing this epoch, then saving; once more stops at once", file=sys.stderr)

    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, ask) for number in signals}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

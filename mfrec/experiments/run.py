"""A run folder: everything that training leaves behind, enough to resume it and to answer from it.

    runs/NAME/config.json       the options, with the version of the format
              dataset/          ratings, ids, user and item tables (see `mfrec.data.prepared`)
              split_labels.pt   the split of each rating, and the hash of the dataset
              checkpoint.pt     model, solver, posterior and progress in one file, so that they always match
              metrics.json      the final figures; exists once the training has ended
              …                 what loggers write

All but the loggers' files are written atomically and carry a checksum (see `mfrec.data.files`).  Runs may lie deeper,
in the folder of a study or of a cross-validation.

A dataset that was opened from a folder is kept by hard links to the files there.  So a run costs little space, and is
complete when it is copied.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mfrec.data.dataset import Dataset
from mfrec.data.files import TRAIN_AGAIN, read_json, read_tensors, write_json, write_tensors
from mfrec.data.prepared import content_hash, open_prepared, write_prepared
from mfrec.data.splits import TRAIN
from mfrec.errors import InputError, OptionError
from mfrec.experiments.building import build_trained_model, refit_labels, restore_posterior
from mfrec.experiments.config import ExperimentConfig, config_from
from mfrec.experiments.loop import Progress, load_solver_state
from mfrec.inference.trained_model import TrainedModel
from mfrec.model.partial_state import map_model_state
from mfrec.solvers.base import Solver

FORMAT = 7
CONFIG, DATASET, SPLIT_LABELS = "config.json", "dataset", "split_labels.pt"
CHECKPOINT, METRICS_FILE = "checkpoint.pt", "metrics.json"
# The errors of torch, the model and the solver if a state does not fit them.
MISFITS = (RuntimeError, KeyError, TypeError, ValueError, AttributeError, IndexError)


class Run:
    """An existing run folder.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @classmethod
    def create(cls, parent: str | Path, name: str | None, stem: str) -> Run:
        """Create the folder parent/name, by default parent/stem-N with the first free N.

        Raises:
            InputError: the folder exists, the name is not a folder name, or the folder cannot be created.
        """
        if name is not None and not re.fullmatch(r"[^/\\\0]+", name.strip(". ")):
            raise OptionError("name", f"must be a folder name such as {stem}-1 (got {name!r})")
        parent = Path(parent)
        try:
            parent.mkdir(parents=True, exist_ok=True)
            return cls(_created(parent, name, stem))
        except OSError as error:
            raise OptionError("run_dir", f"must be a folder to write in (got {parent}: {error.strerror})") from error

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open the run in a folder.

        Raises:
            InputError: the folder holds no run, or one of another version, or its config.json is damaged.
        """
        path = Path(path)
        if not (path / CONFIG).is_file():
            reason = f"it has no {CONFIG}" if path.exists() else "it does not exist"
            raise InputError(f"{path} is not a run folder: {reason}; give the path of a run, such as runs/NAME")
        read_json(path / CONFIG, FORMAT)
        return cls(path)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path)

    def config(self) -> ExperimentConfig:
        """Read the configuration; imports the plugins that the run was trained with.

        Raises:
            InputError: the file is damaged, a plugin is missing, or an option is unknown.
        """
        return config_from(read_json(self.path / CONFIG, FORMAT), str(self.path))

    def write_config(self, config: ExperimentConfig) -> None:
        """Write the configuration, with the version of the format; this makes the folder a run."""
        write_json(self.path / CONFIG, {"format": FORMAT, **config.to_dict()})

    def metrics(self) -> dict[str, Any]:
        """Read the final figures.

        Raises:
            InputError: the file is damaged, or missing because the training has not ended.
        """
        if not self.has_metrics():
            raise InputError(f"{self.path} has no {METRICS_FILE}: its training has not ended; resume it")
        return read_json(self.path / METRICS_FILE)

    def has_metrics(self) -> bool:
        """Whether the training has ended."""
        return (self.path / METRICS_FILE).exists()

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write the final figures: the training has ended."""
        write_json(self.path / METRICS_FILE, metrics)

    def remove_metrics(self) -> None:
        """Delete the final figures, because the training is resumed."""
        (self.path / METRICS_FILE).unlink(missing_ok=True)

    def dataset(self) -> tuple[Dataset, Tensor]:
        """Open the dataset, and read its split labels, (n_ratings,) TRAIN, VALID or TEST.

        Raises:
            InputError: a file is missing or damaged, or the labels belong to another dataset.
        """
        dataset = open_prepared(self.path / DATASET, TRAIN_AGAIN)
        state = read_tensors(self.path / SPLIT_LABELS)
        try:
            labels: Tensor = state["split_labels"]
            if dataset.prepared is None or state["dataset"] != dataset.prepared.content_hash:
                raise ValueError("it belongs to another dataset")
            if labels.shape != (len(dataset.ratings),):
                raise ValueError(f"it has {tuple(labels.shape)} labels for {len(dataset.ratings)} ratings")
        except MISFITS as error:
            raise self._misfit(SPLIT_LABELS, error) from error
        return dataset, labels

    def write_dataset(self, dataset: Dataset, split_labels: Tensor) -> None:
        """Write the dataset, by hard links if it has a folder, and its split labels, (n_ratings,).

        Raises:
            InputError: they cannot be written.
        """
        path = self.path / DATASET
        write_prepared(dataset, path)
        digest = content_hash(path) if dataset.prepared is None else dataset.prepared.content_hash
        state = {"dataset": digest, "split_labels": split_labels.to(torch.uint8)}
        write_tensors(self.path / SPLIT_LABELS, state)

    def has_checkpoint(self) -> bool:
        """Whether there is something to resume."""
        return (self.path / CHECKPOINT).exists()

    def checkpoint(self) -> dict[str, Any]:
        """Read the last checkpoint (see `loop.checkpoint` and `training.train`), with its tensors on the CPU.

        Raises:
            InputError: there is none yet, or the file is damaged.
        """
        if not self.has_checkpoint():
            raise InputError(f"{self.path} has no {CHECKPOINT}: training stopped before it saved one; train again")
        state = read_tensors(self.path / CHECKPOINT)
        for key in ("model", "solver", "posterior", "progress", "first_fit"):
            if key not in state:
                raise self._misfit(CHECKPOINT, KeyError(key))
        return state

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint in place of the last one."""
        write_tensors(self.path / CHECKPOINT, state)

    def restore(self, solver: Solver, state: Mapping[str, Any]) -> Progress:
        """Bring a solver and its model, as built for this run, to a checkpoint.

        Raises:
            InputError: the checkpoint does not fit the solver or the model.
        """
        try:
            load_solver_state(solver, state)
            progress = Progress(**state["progress"])
            progress.best_model = map_model_state(progress.best_model, solver.ratings.held_of)
            return progress
        except MISFITS as error:
            raise self._misfit(CHECKPOINT, error) from error

    def trained_model(self, device: torch.device | str = "cpu") -> TrainedModel:
        """Load the trained model: the best validated parameters, the last ones, or the posterior.

        Raises:
            InputError: there is no checkpoint yet, a refit has not ended, a file is damaged, or the files do not fit
                each other.
        """
        config, state, (dataset, labels) = self.config(), self.checkpoint(), self.dataset()
        if state["first_fit"] is not None:
            if not self.has_metrics():
                raise InputError(f"{self.path} has no model yet: its refit has not ended; resume it")
            labels = refit_labels(labels)
        train = dataset.ratings.select(labels == TRAIN)
        try:
            posterior = restore_posterior(config, dataset, train, state, device)
        except InputError:
            raise
        except MISFITS as error:
            raise self._misfit(CHECKPOINT, error) from error
        model, ratings = posterior.model, dataset.ratings
        if (model.n_users, model.n_items) != (ratings.n_users, ratings.n_items):
            sizes = f"{model.n_users:,} × {model.n_items:,} and {ratings.n_users:,} × {ratings.n_items:,} users × items"
            raise InputError(f"{CHECKPOINT} and {DATASET} of {self.path} differ in size ({sizes}); train again")
        return build_trained_model(config, dataset, labels, posterior)

    def _misfit(self, name: str, error: Exception) -> InputError:
        reason = " ".join(str(error).split())
        return InputError(f"{self.path / name} does not fit its run ({reason}); restore it from a copy, or train again")


def load_run(path: str | Path, device: torch.device | str = "cpu") -> TrainedModel:
    """Load the trained model of a run folder.

    Raises:
        InputError: the folder holds no run, or the run has no checkpoint or a damaged file.
    """
    return Run.open(path).trained_model(device)


def _created(parent: Path, name: str | None, stem: str) -> Path:
    number = 1
    while True:
        path = parent / (name or f"{stem}-{number}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            if name is not None:
                raise InputError(f"run folder {path} exists; choose another name, or resume it") from None
            number += 1

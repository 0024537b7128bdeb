"""A run folder: everything a fit leaves behind, and all that going on or recommending from it needs.

    runs/NAME/config.json       every option the run was started with
              dataset.pt        ratings, ids, user and item tables, and the part (train, valid, test) of each rating
              checkpoint.pt     model, best model, solver and progress: one file, so that they always belong together
              metrics.json      the final figures
              events.out.…      curves, histograms and text for TensorBoard

Files are written beside their place and renamed into it, so that whatever happens a reader finds the old one or the
new one, whole.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mfrec.data.dataset import Dataset
from mfrec.errors import InputError, unknown
from mfrec.experiments.loop import Progress
from mfrec.experiments.training import TRAIN
from mfrec.inference.trained_model import Trained
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.features import dataset_features
from mfrec.model.objective import LOSSES, Objective
from mfrec.posteriors.posterior import posterior_from_state
from mfrec.solvers.base import Solver

logger = logging.getLogger("mfrec")
FORMAT = 4
# Options that say where things are and what is told of them, not what is computed.
PLUMBING = {
    "format", "command", "trial", "name", "run_dir", "config", "resume", "json", "log_every", "device",
    "columns", "rating_scale", "duplicates",
}  # fmt: skip


class Run:
    """A run folder that exists."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, parent: str | Path, name: str | None, stem: str) -> Run:
        """A new folder parent/name, by default parent/stem-N with the first free N.

        Raises:
            InputError: there is one of that name, it is no folder name, or the folder cannot be made.
        """
        parent = Path(parent)
        try:
            return cls._create(parent, name, stem)
        except OSError as error:
            raise InputError(
                f"no run folder can be made in {parent} ({error.strerror}); choose another --run-dir"
            ) from error

    @classmethod
    def _create(cls, parent: Path, name: str | None, stem: str) -> Run:
        if name is not None and not re.fullmatch(r"[^/\\\0]+", name.strip(". ")):
            raise InputError(f"{name!r} cannot name a run; give a folder name such as {stem}-1")
        parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            path = parent / (name or f"{stem}-{number}")
            try:
                path.mkdir()
                return cls(path)
            except FileExistsError:
                if name is not None:
                    raise InputError(
                        f"run folder {path} exists; choose another --name, or go on with --resume {path}"
                    ) from None
                number += 1

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """The run in this folder.

        Raises:
            InputError: it is no run folder, or of another version.
        """
        path = Path(path)
        if not (path / "config.json").is_file():
            what = "does not exist" if not path.exists() else "has no config.json"
            raise InputError(f"{path} is not a run folder: it {what}; give one that train printed, such as runs/NAME")
        run = cls(path)
        if run._read_json("config.json").get("format") != FORMAT:
            raise InputError(f"{path} was written by another version of mfrec; train it again with this one")
        return run

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path)

    def config(self) -> dict[str, Any]:
        """The options the run was started with."""
        config = self._read_json("config.json")
        needed = ("solver", "l2", "bias_l2", "scaling", "loss", "damping", "nonnegative", "implicit")
        _require(self.path / "config.json", config, *needed, "user_features", "item_features")
        return config

    def metrics(self) -> dict[str, Any]:
        """The final figures."""
        return self._read_json("metrics.json")

    def has_metrics(self) -> bool:
        """Whether the training has ended."""
        return (self.path / "metrics.json").exists()

    def remove_metrics(self) -> None:
        """Take the final figures away, because the run goes on."""
        (self.path / "metrics.json").unlink()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the options as JSON, with the version of the format, which makes the folder a run."""
        self._write_json("config.json", {"format": FORMAT, **config})

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write the final figures as JSON: from then on the training has ended."""
        self._write_json("metrics.json", metrics)

    def write_dataset(self, dataset: Dataset, part: Tensor) -> None:
        """part: (n_ratings,) TRAIN, VALID or TEST for each rating of the dataset."""
        self._write_tensors("dataset.pt", {"dataset": dataset.state_dict(), "part": part.to(torch.uint8)})

    def dataset(self) -> tuple[Dataset, Tensor]:
        """The dataset and the part, (n_ratings,) TRAIN, VALID or TEST, of each of its ratings.

        Raises:
            InputError: dataset.pt is missing or damaged.
        """
        path, state = self.path / "dataset.pt", self._read_tensors("dataset.pt")
        _require(path, state, "dataset", "part")
        try:
            return Dataset.from_state(state["dataset"]), state["part"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not a saved dataset ({error!r}); restore it or train again") from error

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Write what `fit.checkpoint` gives, in place of the last one."""
        self._write_tensors("checkpoint.pt", state)

    def checkpoint(self) -> dict[str, Any]:
        """What `write_checkpoint` last wrote: {"model", "solver", "progress"}, its tensors on the CPU.

        Raises:
            InputError: there is none yet, or it is damaged.
        """
        if not (self.path / "checkpoint.pt").exists():
            raise InputError(f"{self.path} has no checkpoint yet: its training ended before the first; start it again")
        state = self._read_tensors("checkpoint.pt")
        _require(self.path / "checkpoint.pt", state, "model", "solver", "progress")
        return state

    def restore(self, solver: Solver) -> Progress:
        """Put a solver and its model, built as they were for this run, where its checkpoint left them.

        Raises:
            InputError: there is no checkpoint, or it does not fit the solver and model.
        """
        state = self.checkpoint()
        try:
            solver.model.load_state_dict(state["model"])
            solver.load_state_dict(state["solver"])
            return Progress(**state["progress"])
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{self.path / 'checkpoint.pt'} does not fit this run's config.json: {reason}") from error

    def trained(self, device: torch.device | str = "cpu") -> Trained:
        """What the run came to: the best validated model, the last one, or the mean of the posterior.

        Raises:
            InputError: the run has no checkpoint, its loss is not in `LOSSES`, or its files are damaged or do not fit.
        """
        config, path, state, (dataset, part) = (
            self.config(),
            self.path / "checkpoint.pt",
            self.checkpoint(),
            self.dataset(),
        )
        if config["loss"] not in LOSSES:
            raise unknown(f"loss of {self.path}", config["loss"], LOSSES)
        train = dataset.ratings.select(part == TRAIN)
        users, items = dataset_features(
            dataset, train, config["implicit"], config["user_features"], config["item_features"]
        )
        try:
            model = MatrixFactorization.from_state_dict(
                state["progress"]["best_model"] or state["model"],
                user_features=users,
                item_features=items,
                nonnegative=config["nonnegative"],
            ).to(device)
            saved = state["solver"].get("posterior")
            posterior = None if saved is None else posterior_from_state(saved, model)
            model = model if posterior is None else posterior.mean_model()
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path} holds no model ({reason}); restore it or train again") from error
        if (model.n_users, model.n_items) != (dataset.ratings.n_users, dataset.ratings.n_items):
            raise InputError(
                f"{path} has {model.n_users:,} users and {model.n_items:,} items, but dataset.pt beside it "
                f"{dataset.ratings.n_users:,} and {dataset.ratings.n_items:,}; restore them or train again"
            )
        return Trained(
            config["solver"],
            model,
            dataset,
            part,
            Objective(config["l2"], config["bias_l2"], config["scaling"], LOSSES[config["loss"]]),
            posterior,
            config["implicit"],
            config["user_features"],
            config["item_features"],
            config["damping"],
        )

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads((self.path / name).read_text())
        except FileNotFoundError:
            raise InputError(f"{self.path} has no {name}: its training has not ended; --resume it") from None
        except ValueError as error:
            raise InputError(f"{self.path / name} is not JSON ({error}); restore it or train again") from None
        if not isinstance(value, dict):
            raise InputError(f"{self.path / name} is not a JSON object; restore it or train again")
        return value

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        write_atomically(self.path / name, (json.dumps(value, indent=2) + "\n").encode())

    def _read_tensors(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise InputError(f"{self.path} has no {name}; train again") from None
        except Exception as error:  # torch raises whatever its zip reader and unpickler meet
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{path} cannot be read ({reason}); restore it or train again") from error
        if not isinstance(state, dict):
            raise InputError(f"{path} holds a {type(state).__name__}, not a saved state; restore it or train again")
        return state

    def _write_tensors(self, name: str, state: Mapping[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        write_atomically(self.path / name, buffer.getbuffer())


def _require(path: Path, state: Mapping[str, Any], *keys: str) -> None:
    missing = [key for key in keys if key not in state]
    if missing:
        raise InputError(f"{path} lacks {missing[0]!r}, which mfrec writes there; restore it or train again")


def runs_in(folder: str | Path) -> list[Run]:
    """The runs of a folder, by name; of other versions, and whatever else is there, there are none.

    Raises:
        InputError: there is no such folder, or no run of this version in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give one of runs, such as that of --run-dir")
    paths = [config.parent for config in sorted(folder.glob("*/config.json"))]
    found = [run for run in map(_openable, paths) if run is not None]
    if not found:
        raise InputError(f"{folder} holds no runs of this version; train one with --run-dir {folder}")
    if len(found) < len(paths):
        logger.warning(
            "%s of %s runs are damaged or of another version, and left out", len(paths) - len(found), len(paths)
        )
    return found


def _openable(path: Path) -> Run | None:
    try:
        run = Run.open(path)
        run.config()
    except InputError:
        return None
    return run


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write the file so that a reader, or a crash, sees the old content or the new, never a part of it.

    Raises:
        InputError: it cannot be written, because the disk is full, say; what was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InputError(
                f"{path} cannot be written ({error.strerror}); make room or give write permission, then try again"
            ) from error
        raise

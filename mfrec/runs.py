"""A run folder: everything a fit leaves behind, and all that going on or recommending from it needs.

    runs/NAME/config.json       every option the run was started with
              dataset.pt        ratings, ids, item table, and the part (train, valid, test) of each rating
              checkpoint.pt     model, best model, solver and progress: one file, so that they always belong together
              metrics.json      the final figures
              events.out.…      curves, histograms and text for TensorBoard

Files are written beside their place and renamed into it, so that whatever happens a reader finds the old one or the
new one, whole.
"""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mfrec.datasets import Dataset
from mfrec.errors import InputError
from mfrec.fit import Epoch, Progress
from mfrec.model import MatrixFactorization
from mfrec.ratings import Ratings

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FORMAT = 1
TRAIN, VALID, TEST = 0, 1, 2
PARTS = {"train": TRAIN, "valid": VALID, "test": TEST}
# Epochs between histograms of the parameters.
HISTOGRAM_EPOCHS = 10


class Run:
    """A run folder that exists."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, parent: str | Path, name: str | None, stem: str) -> Run:
        """A new folder parent/name, by default parent/stem-N with the first free N."""
        parent = Path(parent)
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
        """The run in this folder."""
        path = Path(path)
        if not (path / "config.json").is_file():
            what = "does not exist" if not path.exists() else "has no config.json"
            raise InputError(f"{path} is not a run folder: it {what}; give one that train printed, such as runs/NAME")
        run = cls(path)
        if run.config().get("format") != FORMAT:
            raise InputError(f"{path} was written by another version of mfrec; train it again with this one")
        return run

    def config(self) -> dict[str, Any]:
        return self._read_json("config.json")

    def metrics(self) -> dict[str, Any]:
        return self._read_json("metrics.json")

    def write_config(self, config: Mapping[str, Any]) -> None:
        self._write_json("config.json", {"format": FORMAT, **config})

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        self._write_json("metrics.json", metrics)

    def write_dataset(self, dataset: Dataset, part: Tensor) -> None:
        """part: (n_ratings,) TRAIN, VALID or TEST for each rating of the dataset."""
        self._write_tensors("dataset.pt", {"dataset": dataset.state_dict(), "part": part.to(torch.uint8)})

    def dataset(self) -> tuple[Dataset, Tensor]:
        state = self._read_tensors("dataset.pt")
        return Dataset.from_state(state["dataset"]), state["part"]

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        self._write_tensors("checkpoint.pt", state)

    def checkpoint(self) -> dict[str, Any]:
        if not (self.path / "checkpoint.pt").exists():
            raise InputError(f"{self.path} has no checkpoint yet: its training ended before the first; start it again")
        return self._read_tensors("checkpoint.pt")

    def restore(self, model: MatrixFactorization, solver: Any) -> Progress:
        """Put a model and a solver, built as they were for this run, where its checkpoint left them."""
        state = self.checkpoint()
        try:
            model.load_state_dict(state["model"])
            solver.load_state_dict(state["solver"])
            return Progress(**state["progress"])
        except (RuntimeError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{self.path / 'checkpoint.pt'} does not fit this run's config.json: {reason}") from error

    def model(self, device: torch.device | str = "cpu") -> MatrixFactorization:
        """The model the run ended with: the best validated, or the last where nothing was validated."""
        state = self.checkpoint()
        best: dict[str, Tensor] = state["progress"]["best_model"] or state["model"]
        return MatrixFactorization.from_state_dict(best).to(device)

    def writer(self, first_epoch: int) -> SummaryWriter:
        """A TensorBoard writer into the folder whose curves go on at first_epoch, dropping what came after it."""
        from torch.utils.tensorboard import SummaryWriter  # a second of imports that only training needs

        return SummaryWriter(str(self.path), purge_step=first_epoch or None)

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


def split_parts(ratings: Ratings, part: Tensor) -> dict[str, Ratings]:
    """The ratings of each part by name; a part without ratings is left out."""
    part = part.to(ratings.device)
    return {name: ratings.select(part == number) for name, number in PARTS.items() if bool((part == number).any())}


def log_parameters(writer: SummaryWriter, model: MatrixFactorization, news: Epoch) -> None:
    """Histograms of the model's parameters, every few epochs."""
    if news.number % HISTOGRAM_EPOCHS == 0:
        for name, parameter in model.named_parameters():
            if parameter.numel():
                writer.add_histogram(f"parameters/{name.removesuffix('.weight')}", parameter.detach(), news.number)


def log_hparams(writer: SummaryWriter, config: Mapping[str, Any], measured: Mapping[str, Mapping[str, float]]) -> None:
    """The run's row in TensorBoard's HParams table: its options, and the final metrics of each part."""
    from torch.utils.tensorboard.summary import hparams

    options = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in config.items()}
    final = {f"final/{metric}_{part}": value for part, values in measured.items() for metric, value in values.items()}
    for summary in hparams(options, final):
        writer._get_file_writer().add_summary(summary)
    for tag, value in final.items():
        writer.add_scalar(tag, value)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write the file so that a reader, or a crash, sees the old content or the new, never a part of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise

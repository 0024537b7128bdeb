"""The data of a study: without the test ratings for its trials, without a validation set for the best."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path

from filelock import FileLock
from torch import Tensor

from mfrec.data.dataset import Dataset
from mfrec.data.prepared import is_prepared, open_prepared, write_prepared
from mfrec.data.splits import TEST, VALID
from mfrec.errors import OptionError
from mfrec.experiments.building import refit_labels
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.run import DATASET
from mfrec.experiments.training import label_splits, load_configured


class StudyData:
    """The data of a study, loaded when first needed.

    Args:
        config: the configuration that all trials have in common.
        dataset: the data, instead of loading the configured data.
    """

    def __init__(self, config: ExperimentConfig, dataset: Dataset | None = None) -> None:
        self.config, self._preloaded = config, dataset

    @cached_property
    def dataset(self) -> Dataset:
        """All ratings."""
        return load_configured(self.config) if self._preloaded is None else self._preloaded

    @cached_property
    def split_labels(self) -> Tensor:
        """(n_ratings,) TRAIN, VALID or TEST for each rating."""
        return label_splits(self.config, self.dataset)

    def require_validation(self) -> None:
        """Check that there is a validation set to compare trials by.

        Raises:
            InputError: there is none.
        """
        if not bool((self.split_labels == VALID).any()):
            fraction = self.config.data.valid_fraction
            raise OptionError("valid_fraction", f"must be above 0, to compare trials by (got {fraction})")

    def for_trials(self, folder: Path) -> Dataset:
        """The data without the test ratings, which no trial may see; users and items stay the same.

        They are written into the study's folder once.  Every trial keeps them by hard links.

        Args:
            folder: the study's folder.
        """
        path = folder / DATASET
        with FileLock(folder / ".dataset.lock"):
            if not is_prepared(path):
                write_prepared(self._without_test(), path)
        return open_prepared(path, "start a new study")

    def _without_test(self) -> Dataset:
        kept = self.split_labels != TEST
        selected = self.dataset.select(kept).with_split_labels(self.split_labels[kept])
        return dataclasses.replace(selected, official_splits={})

    def for_best(self) -> Dataset:
        """The data with the validation ratings among the training ratings."""
        return self.dataset.with_split_labels(refit_labels(self.split_labels))

"""The data of a study: without the test ratings for its trials, without a validation set for the best."""

from __future__ import annotations

import dataclasses
from functools import cached_property

from torch import Tensor

from mfrec.data.dataset import Dataset
from mfrec.data.splits import TEST, VALID
from mfrec.errors import OptionError
from mfrec.experiments.building import refit_labels
from mfrec.experiments.config import ExperimentConfig
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

    def for_trials(self) -> Dataset:
        """The data without the test ratings, which no trial may see; users and items stay the same."""
        kept = self.split_labels != TEST
        ratings, labels = self.dataset.ratings.select(kept), self.split_labels[kept]
        return dataclasses.replace(self.dataset, ratings=ratings, split_labels=labels, official_splits={})

    def for_best(self) -> Dataset:
        """The data with the validation ratings among the training ratings."""
        return dataclasses.replace(self.dataset, split_labels=refit_labels(self.split_labels))

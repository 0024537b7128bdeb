"""The components of an experiment, built from its configuration in one place: objective, model, solver and posterior.

Training, resuming and loading a run all build them here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mfrec.data.dataset import Dataset
from mfrec.data.features import Features
from mfrec.data.ratings import Ratings
from mfrec.data.sessions import Sessions
from mfrec.data.side_information import dataset_features
from mfrec.data.splits import TRAIN, VALID
from mfrec.errors import OptionError, unknown
from mfrec.experiments.config import ExperimentConfig
from mfrec.inference.trained_model import TrainedModel
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.losses import LOSSES
from mfrec.model.objective import Objective
from mfrec.posteriors.base import Posterior
from mfrec.posteriors.registry import posterior_from_state
from mfrec.solvers.base import SOLVERS, Solver, gpu_unsupported


def choose_device(name: str) -> torch.device:
    """The device called "auto", "cpu" or "cuda"; "auto" is a GPU if there is one.

    Raises:
        InputError: cuda is not available.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise OptionError("device", "cuda is not available; use cpu, or install a torch with CUDA")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def training_device(config: ExperimentConfig) -> torch.device:
    """The device that a configuration trains on; "auto" is the CPU for a solver that needs it.

    Raises:
        InputError: cuda is not available, or the solver cannot train on it.
    """
    if not SOLVERS[config.solver].cpu_only:
        return choose_device(config.fit.device)
    if config.fit.device == "cuda":
        raise gpu_unsupported(config.solver)
    return torch.device("cpu")


def build_objective(config: ExperimentConfig) -> Objective:
    """The cost that a configuration minimizes.

    Raises:
        InputError: the loss is unknown.
    """
    options = config.objective
    if options.loss not in LOSSES:
        raise unknown("loss", options.loss, LOSSES)
    return Objective(options.l2, options.bias_l2, options.l2_scaling, LOSSES[options.loss], options.session_l2)


def build_solver(config: ExperimentConfig, dataset: Dataset, train: Ratings) -> Solver:
    """The solver of a configuration with its model and objective, at the start of training.

    One generator with the configuration's seed draws the initial factors first, and then the solver's numbers.

    Args:
        dataset: for features of its users and items.
        train: the training ratings, on the device to train on.

    Raises:
        InputError: the features, the model or the solver refuse an option.
    """
    objective, options = build_objective(config), config.model
    if options.recent_bias and train.timestamps is None:
        raise OptionError("recent_bias", "needs timestamps, which these ratings lack; leave it out")
    generator = torch.Generator().manual_seed(config.fit.seed)
    user_features, item_features = _features(config, dataset, train)
    model = MatrixFactorization.from_ratings(
        train,
        options.rank,
        biases=options.biases,
        offset=options.offset,
        damping=options.damping,
        rating_range=dataset.rating_range,
        user_features=user_features,
        item_features=item_features,
        item_ids=options.item_ids,
        sessions=_sessions(config, train),
        nonnegative=options.nonnegative,
        init=options.init,
        generator=generator,
    )
    return SOLVERS[config.solver](model, train, objective, generator=generator, **vars(config.options))


def _features(
    config: ExperimentConfig, dataset: Dataset, train: Ratings
) -> tuple[dict[str, Features], dict[str, Features]]:
    """The feature blocks of users and of items, by name."""
    options = config.model
    return dataset_features(dataset, train, options.implicit, options.user_features, options.item_features)


def _sessions(config: ExperimentConfig, train: Ratings) -> Sessions | None:
    """The sessions of the training ratings, if configured.

    Raises:
        OptionError: the ratings have no timestamps.
    """
    options = config.model
    if not options.sessions:
        return None
    if train.timestamps is None:
        raise OptionError("sessions", "needs timestamps, which these ratings lack; leave it out")
    return Sessions(train, options.session_gaps)


def restore_posterior(
    config: ExperimentConfig,
    dataset: Dataset,
    train: Ratings,
    checkpoint: Mapping[str, Any],
    device: torch.device | str = "cpu",
) -> Posterior:
    """The posterior in a checkpoint; with the parameters of the best epoch if there was a validation set.

    Args:
        checkpoint: see `loop.checkpoint`.

    Raises:
        RuntimeError, KeyError, TypeError, ValueError, AttributeError: the checkpoint does not fit the configuration.
    """
    options = config.model
    user_features, item_features = _features(config, dataset, train)
    model = MatrixFactorization.from_state_dict(
        checkpoint["progress"]["best_model"] or checkpoint["model"],
        user_features=user_features,
        item_features=item_features,
        sessions=_sessions(config, train),
        nonnegative=options.nonnegative,
    ).to(device)
    return posterior_from_state(checkpoint["posterior"], model, build_objective(config))


def build_trained_model(
    config: ExperimentConfig, dataset: Dataset, split_labels: Tensor, posterior: Posterior
) -> TrainedModel:
    """The trained model that answers by ids.

    Args:
        split_labels: (n_ratings,) TRAIN, VALID or TEST; the posterior comes from the ratings labelled TRAIN.
    """
    options = config.model
    return TrainedModel(
        config.solver,
        posterior,
        build_objective(config),
        dataset,
        split_labels,
        options.implicit,
        options.user_features,
        options.item_features,
        options.damping,
        options.recent_bias,
    )


def refit_labels(split_labels: Tensor) -> Tensor:
    """The split labels of a refit: validation ratings are training ratings."""
    return torch.where(split_labels == VALID, TRAIN, split_labels)

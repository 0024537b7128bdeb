"""The posterior protocol: one class for each kind of inference, all used alike.

    mean_model()            the model that predicts the posterior mean of every rating
    predicting_by(model)    the same posterior with another mean model, see `mfrec.posteriors.predictive`
    has_std, std(...)       standard deviations of ratings, if the kind has them
    level_probabilities()   probabilities of the possible ratings, if it has standard deviations
    sample(...)             a model drawn from the posterior
    trace()                 the samples that the posterior consists of, if it does
    conditionals(...)       the distribution of new rows given their ratings, one for each set of trained parameters
    folded(...)             the posterior of the new rows, from their solved conditionals
    state_dict()            its state, with its "kind"

A new kind is a subclass in a file of its own and a row in `mfrec.posteriors.registry.POSTERIORS`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from mfrec.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mfrec.model.factorization import MatrixFactorization
    from mfrec.model.objective import Objective
    from mfrec.model.partial_state import TableMap
    from mfrec.posteriors.new_rows import Conditional, NewRows, SolvedRows

# Nine ratings in ten are within this many standard deviations of their predictions: the normal's quantile of 0.95.
Z_90 = 1.6448536269514722
# τ ~ Gamma(c, c), the precision scale of a user or item: as much evidence as 2c ratings that it is like the others.
PRECISION_SCALE_SHAPE = 16.0
# a and b of every other Gamma prior, by shape and rate: as much evidence as one observation.
PRIOR_SHAPE, PRIOR_RATE = 0.5, 0.5


class Posterior(ABC):
    """What a solver inferred about a model's parameters.

    Attributes:
        kind: the name of the class in `POSTERIORS`.
        model: the features, the offset and the rating range that the whole posterior shares, with one set of
            parameters.
    """

    kind: ClassVar[str]
    # Whether new rows are linear in their ratings, so that each rating has a share in a prediction.
    explainable: ClassVar[bool] = True
    model: MatrixFactorization

    @abstractmethod
    def mean_model(self) -> MatrixFactorization:
        """A model that predicts the posterior mean of every rating."""

    def predicting_by(self, model: MatrixFactorization) -> Posterior:
        """This posterior with another mean model, around which are the probabilities of levels.

        Standard deviations of expected ratings, samples and new rows stay as they are.
        """
        posterior = copy.copy(self)
        posterior.mean_model = partial(_unchanged, model)  # type: ignore[method-assign]
        return posterior

    @property
    def has_std(self) -> bool:
        """Whether there are standard deviations and samples."""
        return False

    def require_std(self) -> None:
        """Check that there are standard deviations and samples.

        Raises:
            InputError: there are none; the message says why.
        """
        if not self.has_std:
            raise InputError("a point estimate has no standard deviations and no samples; train a Bayesian solver")

    def std(
        self, users: Tensor, items: Tensor, *, timestamps: Tensor | None = None, include_noise: bool = True
    ) -> Tensor:
        """(n,) the standard deviation of the rating at each (user, item) index pair, in the ratings' unit.

        Args:
            timestamps: (n,) seconds since 1970, for session biases; without them, the prior's variance counts as noise.
            include_noise: False gives the standard deviation of the expected rating, without the ratings' noise.

        Raises:
            InputError: there are no standard deviations, or an index is not in the model.
        """
        self.require_std()
        raise NotImplementedError

    def level_probabilities(
        self, users: Tensor, items: Tensor, levels: Tensor, timestamps: Tensor | None = None
    ) -> Tensor:
        """(n, K) the probability of each level at each (user, item) index pair, in float64; each row adds up to 1.

        By default, ratings are normal with the mean prediction and `std`, and each counts as the nearest level.

        Args:
            levels: (K,) the possible ratings, ascending; see `mfrec.posteriors.levels`.
            timestamps: (n,) seconds since 1970, for session biases.

        Raises:
            InputError: there are no standard deviations, or an index is not in the model.
        """
        from mfrec.posteriors.levels import normal_level_probabilities  # imports torch, which this module does not

        self.require_std()
        means = self.mean_model().predict(users, items, timestamps=timestamps)
        return normal_level_probabilities(means, self.std(users, items, timestamps=timestamps), levels)

    def sample(self, generator: torch.Generator | None = None) -> MatrixFactorization:
        """A model without features drawn from the posterior, by a generator on the CPU.

        Raises:
            InputError: there are no samples.
        """
        self.require_std()
        raise NotImplementedError

    def trace(self) -> Iterator[tuple[MatrixFactorization, float]]:
        """Each kept sample in order: a model without features, and the noise's standard deviation α^−½.

        Empty if the posterior does not consist of samples.
        """
        return iter(())

    @abstractmethod
    def conditionals(self, new_rows: NewRows, generator: torch.Generator | None = None) -> Iterator[Conditional]:
        """The distribution of new rows given their ratings, one for each set of trained parameters.

        Each is solved before the next is asked for.

        Args:
            new_rows: rows that join `model`.
            generator: the source of samples, on the CPU; seeded with 0 by default.

        Raises:
            InputError: rows cannot be folded into this posterior.
        """

    @abstractmethod
    def folded(self, new_rows: NewRows, solved: Iterable[SolvedRows]) -> Posterior:
        """The posterior of the new rows and the trained rows of the other entity, from the solved conditionals."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The state besides the model, with "kind": tensors, numbers, strings, dicts and lists."""

    def map_tables(self, state: Mapping[str, Any], change: TableMap) -> dict[str, Any]:
        """A `state_dict()` with change(entity, table) in place of each table of users' or items' rows, (n_rows, …).

        For posteriors of solvers that support partial tables, whose checkpoints have all rows.
        """
        return dict(state)

    @classmethod
    @abstractmethod
    def from_state(cls, state: Mapping[str, Any], model: MatrixFactorization, objective: Objective) -> Posterior:
        """The posterior that returned this `state_dict()`, around its model and the objective of the training."""


def _unchanged(model: MatrixFactorization) -> MatrixFactorization:
    return model


def without_features(
    model: MatrixFactorization, users: Tensor, items: Tensor, session_bias: Tensor | None = None
) -> MatrixFactorization:
    """A model like this one with these augmented factors, (n_users, k) and (n_items, k), and without features.

    Args:
        session_bias: (n_sessions, 1) instead of the model's.
    """
    sessions = model.sessions
    if sessions is not None and session_bias is not None:
        sessions = sessions.with_bias(session_bias)
    return model.from_augmented_factors(
        users, items, biases=model.biases, offset=model.offset, rating_range=model.rating_range, sessions=sessions
    )

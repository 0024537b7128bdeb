"""TrainedModel: a trained model that answers by ids, for users and items that were in training and for new ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import torch
from torch import Tensor

from mfrec.data.dataset import Dataset
from mfrec.data.features import Features
from mfrec.data.ids import Id
from mfrec.data.new_rows import new_items, new_users
from mfrec.data.ratings import Ratings
from mfrec.data.side_information import entity_features
from mfrec.data.splits import TRAIN
from mfrec.errors import OptionError
from mfrec.inference.cold_start import users_with_evidence
from mfrec.inference.fold_in import fold_in_items, fold_in_users
from mfrec.inference.lists import recommend, recommend_blocks, similar_blocks
from mfrec.inference.predict import predict_frame
from mfrec.model.entity import ENTITY_NAMES, ITEM, USER
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.model.offsets import centring_offset
from mfrec.posteriors.base import Posterior
from mfrec.posteriors.predictive import has_side_features, recent_biases, with_predictive_users


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A trained model with the data that it needs to answer by ids.

    Attributes:
        solver: the name of the solver that trained it.
        posterior: what the solver inferred.
        objective: the cost that was minimized.
        dataset: the ratings, the ids, and the columns of users and items.
        split_labels: (n_ratings,) TRAIN, VALID or TEST for each rating of the dataset.
        implicit, user_features, item_features: the features it was trained with, as `dataset_features` takes them.
        damping: the number of ratings at the global mean that items' means are damped by.
        recent_bias: the half-life in ratings of users' recent biases, see `mfrec.posteriors.predictive`; 0 for none.
        source: the model as it was trained, if rows were folded into it.
        folded: USER or ITEM, which rows were folded in, if any.
    """

    solver: str
    posterior: Posterior
    objective: Objective
    dataset: Dataset
    split_labels: Tensor
    implicit: str = "none"
    user_features: str = ""
    item_features: str = ""
    damping: float = 5.0
    recent_bias: int = 0
    source: TrainedModel | None = None
    folded: int | None = None

    def __repr__(self) -> str:
        return f"TrainedModel({self.solver!r}, rank {self.posterior.model.rank}, {self.dataset!r})"

    @cached_property
    def model(self) -> MatrixFactorization:
        """The model that predicts: the posterior's mean, changed for some users by `mfrec.posteriors.predictive`."""
        return self.predicting(self.posterior)

    @cached_property
    def predictive(self) -> Posterior:
        """The posterior with `model` as its mean."""
        return self.posterior.predicting_by(self.model)

    def predicting(self, posterior: Posterior) -> MatrixFactorization:
        """The model that predicts ratings by this model's users, given a posterior of them and any items."""
        model = posterior.mean_model()
        if self.folded == USER:
            rated = torch.ones(model.n_users, dtype=torch.bool)
            return with_predictive_users(model, rated, ~rated, self.recent_biases)
        origin = self.origin
        described = has_side_features(origin.posterior.model)
        return with_predictive_users(model, origin.train.user_counts > 0, described, origin.recent_biases)

    @cached_property
    def recent_biases(self) -> Tensor | None:
        """(n_users,) the shift of each user's predictions by the errors of the latest ratings, in stars, or None.

        Folded-in users without timestamps have none.
        """
        if not self.recent_bias or (self.folded == USER and self.train.timestamps is None):
            return None
        return recent_biases(self.posterior.mean_model(), self.train, self.recent_bias)

    @property
    def origin(self) -> TrainedModel:
        """The model as it was trained, before rows were folded in."""
        return self if self.source is None else self.source

    @cached_property
    def train(self) -> Ratings:
        """The training ratings, on the model's device."""
        return self.dataset.ratings.select(self.split_labels == TRAIN).to(self.posterior.model.device)

    @cached_property
    def mean_rating(self) -> float:
        """The mean of the training ratings, in stars."""
        return float(self.origin.train.values.double().mean())

    @property
    def item_counts(self) -> Tensor:
        """(n_items,) the number of ratings of each item in all splits, without those of folded-in users; on the CPU."""
        return (self if self.folded == ITEM else self.origin).dataset.ratings.item_counts.cpu()

    @cached_property
    def users_with_evidence(self) -> Tensor:
        """(n_users,) bool, which users have training ratings or features to recommend by; on the CPU."""
        return users_with_evidence(self)

    def user_index(self, user: Id | None) -> int:
        """The index of a user by id, or of the only user if none is given.

        Raises:
            InputError: the user is unknown, or none is given and there are several.
        """
        if user is not None:
            return self.dataset.user_index(user)
        if len(self.dataset.user_ids) != 1:
            ids = self.dataset.user_ids
            examples = ", ".join(map(str, ids[:2]))
            raise OptionError("user", f"must be the id of one of {len(ids):,} users, e.g. {examples} (got None)")
        return 0

    @torch.no_grad()
    def fold_in_users(
        self,
        ratings: pd.DataFrame | Mapping[Id, float],
        users: pd.DataFrame | None = None,
        *,
        user: str = "user",
        item: str = "item",
        rating: str = "rating",
        generator: torch.Generator | None = None,
    ) -> TrainedModel:
        """The trained items with new users, given their ratings: a trained model that answers the same questions.

        Args:
            ratings, users, user, item, rating: as for `mfrec.data.new_rows.new_users`.  A model with session
                biases or recent biases reads a column "timestamp" too, if there is one.
            generator: the source of samples, on the CPU.

        Raises:
            InputError: `new_users` refuses the ratings, or rows cannot be folded into the posterior.
        """
        dataset = new_users(self.origin.dataset, ratings, users, user, item, rating, self._timestamp_column)
        return self.origin._folded_into(USER, dataset, generator)

    @torch.no_grad()
    def fold_in_items(
        self,
        ratings: pd.DataFrame,
        items: pd.DataFrame | None = None,
        *,
        user: str = "user",
        item: str = "item",
        rating: str = "rating",
        generator: torch.Generator | None = None,
    ) -> TrainedModel:
        """The trained users with new items, given their ratings and columns such as genres.

        Args:
            ratings, items, user, item, rating: as for `mfrec.data.new_rows.new_items`.
            generator: the source of samples, on the CPU.

        Raises:
            InputError: `new_items` refuses the ratings, or rows cannot be folded into the posterior.
        """
        dataset = new_items(self.origin.dataset, ratings, items, user, item, rating, self._timestamp_column)
        return self.origin._folded_into(ITEM, dataset, generator)

    @property
    def _timestamp_column(self) -> str | None:
        """The column of the times of new ratings, if the model uses them."""
        return "timestamp" if self.reads_timestamps else None

    @property
    def reads_timestamps(self) -> bool:
        """Whether the times of new ratings matter: for session biases and recent biases."""
        return self.origin.posterior.model.sessions is not None or self.recent_bias > 0

    def _folded_into(self, entity: int, dataset: Dataset, generator: torch.Generator | None) -> TrainedModel:
        frame = (dataset.users, dataset.items)[entity]
        posterior = self.fold_in_rows(entity, dataset.ratings, frame, generator)
        labels = torch.full((len(dataset.ratings),), TRAIN, dtype=torch.uint8)
        return dataclasses.replace(
            self, posterior=posterior, dataset=dataset, split_labels=labels, source=self, folded=entity
        )

    def fold_in_rows(
        self, entity: int, ratings: Ratings, frame: pd.DataFrame, generator: torch.Generator | None = None
    ) -> Posterior:
        """The posterior of new users or items, given their ratings and the columns of this frame, a row for each.

        Raises:
            InputError: rows cannot be folded into the posterior.
        """
        features = self.features_of(entity, ratings, frame) if self.source is None else {}
        if entity == USER:
            return fold_in_users(self.posterior, ratings, features=features, generator=generator)
        offset = self.posterior.model.offset
        if offset is not None and offset.ndim:
            offset = centring_offset(ratings, "item", self.damping, self.mean_rating)
        return fold_in_items(self.posterior, ratings, features=features, offset=offset, generator=generator)

    def features_of(self, entity: int, ratings: Ratings, frame: pd.DataFrame) -> dict[str, Features]:
        """The features of new users or items, the same as those of the training, from ratings and a frame's columns.

        Raises:
            InputError: a column has values that cannot be features.
        """
        columns = (self.user_features, self.item_features)[entity]
        return entity_features(f"{ENTITY_NAMES[entity]}s", self.dataset, ratings, self.implicit, columns, frame)

    # Each of these is defined, as a function of a trained model, in the module of its subject.
    predict_frame = predict_frame
    recommend = recommend
    recommend_blocks = recommend_blocks
    similar_blocks = similar_blocks

"""Trained: a model with all that it needs to answer by ids, for users and items that were in training or were not.

An id that the ratings do not have is handled by one rule, everywhere: it is a row without a rating, folded in, which
leaves what the other side's bias, features and the prior say of it; where neither id is known, the mean rating is left.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from mfrec.datasets import Dataset, new_items, new_users
from mfrec.datasets.ids import Id, indices_of
from mfrec.errors import InputError
from mfrec.errors import unknown as unknown_name
from mfrec.experiment import TRAIN
from mfrec.features import Features, side_features
from mfrec.fold_in import Folded, explain, fold_in_item, fold_in_user
from mfrec.model import ITEM, SIDES, USER, MatrixFactorization, centring_offset
from mfrec.new_rows import Law
from mfrec.objective import Objective
from mfrec.posterior import NINETY, Posterior
from mfrec.ratings import Ratings
from mfrec.recommend import candidate_items, item_frame, recommended_items, similar_blocks, top_n, top_n_blocks

logger = logging.getLogger("mfrec")
Explore = Literal["none", "upper", "thompson"]
BY_PREDICTION = "predicted rating"
EXPLORE: tuple[Explore, ...] = ("none", "upper", "thompson")


class Reason(NamedTuple):
    """A rating of the user's own that speaks for a recommendation: by how much, in stars."""

    title: str
    rating: float
    share: float


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model with all that it needs to answer by ids.

    Attributes:
        solver: the name of the solver that trained it.
        model: the best validated model, the last one, or the mean of the posterior.
        dataset: ratings, ids, and what is known of users and items.
        part: (n_ratings,) TRAIN, VALID or TEST of each rating of the dataset.
        objective: what was minimized.
        posterior: what the model is the mean of, of a Bayesian solver.
        implicit, user_features, item_features: the features it was trained with, as `dataset_features` takes them.
        damping: ratings at the global mean that means of items are damped by.
        source: what the users, or the items, were folded into, if they were.
    """

    solver: str
    model: MatrixFactorization
    dataset: Dataset
    part: Tensor
    objective: Objective
    posterior: Posterior | None = None
    implicit: str = "none"
    user_features: str = ""
    item_features: str = ""
    damping: float = 5.0
    source: Trained | None = None

    def __repr__(self) -> str:
        return f"Trained({self.solver!r}, {self.model!r}, {self.dataset!r})"

    @property
    def law(self) -> Law:
        """What says how a new row follows from its ratings."""
        return self.objective if self.posterior is None else self.posterior

    @property
    def origin(self) -> Trained:
        """What was trained: this, or what the users or items of this were folded into."""
        return self if self.source is None else self.source.origin

    @cached_property
    def train(self) -> Ratings:
        """The ratings that were trained on."""
        return self.dataset.ratings.select(self.part == TRAIN).to(self.model.scale.device)

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
    ) -> Trained:
        """The trained items with new users, by their ratings: all that can be asked of this can be asked of that.

        Args:
            ratings, users, user, item, rating: as `datasets.new_users` takes them.
            generator: for draws from the posterior.
        """
        if self.source is not None:
            return self.origin.fold_in_users(ratings, users, user=user, item=item, rating=rating, generator=generator)
        dataset = new_users(self.dataset, ratings, users, user, item, rating)
        features = side_features(
            "users", self.dataset, dataset.ratings, self.implicit, self.user_features, dataset.users
        )
        folded = fold_in_user(self.model, dataset.ratings, self.law, features=features, generator=generator)
        return self._with(dataset, folded.model, folded.posterior)

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
    ) -> Trained:
        """The trained users with new items, by their ratings and what `items` tells of them, such as genres.

        Args:
            ratings, items, user, item, rating: as `datasets.new_items` takes them.
            generator: for draws from the posterior.
        """
        if self.source is not None:
            return self.origin.fold_in_items(ratings, items, user=user, item=item, rating=rating, generator=generator)
        dataset = new_items(self.dataset, ratings, items, user, item, rating)
        features = side_features(
            "items", self.dataset, dataset.ratings, self.implicit, self.item_features, dataset.items
        )
        offset = self._new_offset(dataset.ratings)
        folded = fold_in_item(
            self.model, dataset.ratings, self.law, features=features, offset=offset, generator=generator
        )
        return self._with(dataset, folded.model, folded.posterior)

    def _with(self, dataset: Dataset, model: MatrixFactorization, posterior: Posterior | None) -> Trained:
        part = torch.full((len(dataset.ratings),), TRAIN, dtype=torch.uint8)
        return dataclasses.replace(self, dataset=dataset, model=model, posterior=posterior, part=part, source=self)

    def predict_frame(
        self, pairs: pd.DataFrame, *, user: str = "user", item: str = "item", unknown: str = "mean"
    ) -> pd.DataFrame:
        """The frame with a column "prediction", in stars, and "deviation" where there is a posterior.

        Args:
            pairs: a row a pair of ids.
            unknown: "mean" predicts pairs with ids that are not in the ratings by the rule at the head of this file,
                and logs how many they were; "error" refuses them.

        Raises:
            InputError: a column is missing, or an id is unknown where it must not be.
        """
        if unknown not in ("mean", "error"):
            raise unknown_name("way with unknown ids", unknown, ("mean", "error"))
        for column in (user, item):
            if column not in pairs.columns:
                raise InputError(
                    f"the pairs have no column {column!r}, but {', '.join(map(str, pairs.columns))}; name it"
                )
        users, items = indices_of(self.dataset.user_ids, pairs[user]), indices_of(self.dataset.item_ids, pairs[item])
        self._tell_of_unknown((users, pairs[user]), (items, pairs[item]), refuse=unknown == "error")
        found = self._predictions(torch.from_numpy(users), torch.from_numpy(items))
        columns = {name: values.cpu().numpy() for name, values in found.items()}
        return pairs.assign(**columns)

    @torch.no_grad()
    def _predictions(self, users: Tensor, items: Tensor) -> dict[str, Tensor]:
        """Predictions, and deviations if any, of pairs of indices, of which -1 is a row without ratings."""
        train = self.origin.train.values.double()
        prediction = torch.full((len(users),), float(train.mean()))
        deviation = torch.full((len(users),), float(train.std()))
        for user_known, item_known in ((True, True), (False, True), (True, False)):
            pairs = ((users >= 0) == user_known) & ((items >= 0) == item_known)
            if not bool(pairs.any()):
                continue
            asked: tuple[MatrixFactorization, Posterior | None] = self.model, self.posterior
            if not (user_known and item_known):
                asked = self._stranger(ITEM if user_known else USER)
            rows = users[pairs].clamp_min(0), items[pairs].clamp_min(0)
            model, posterior = asked
            prediction[pairs] = model.predict(*rows, clip=True).to(prediction)
            if posterior is not None:
                deviation[pairs] = posterior.deviation(*rows).to(deviation)
        return {"prediction": prediction} | ({} if self.posterior is None else {"deviation": deviation})

    def _stranger(self, side: int) -> Folded:
        """One row of which nothing is known, neither ratings nor features, beside all of the other side."""
        model, none = self.model, torch.zeros(0, dtype=torch.long)
        sizes = (1, model.n_items) if side == USER else (model.n_users, 1)
        ratings, features = Ratings(none, none, torch.zeros(0), *sizes), {}
        if self.source is None:
            columns = (self.user_features, self.item_features)[side]
            unknown_row = pd.DataFrame(index=[0])
            features = side_features(f"{SIDES[side]}s", self.dataset, ratings, self.implicit, columns, unknown_row)
        if side == USER:
            return fold_in_user(model, ratings, self.law, features=features)
        return fold_in_item(model, ratings, self.law, features=features, offset=self._new_offset(ratings))

    def _new_offset(self, ratings: Ratings) -> Tensor | None:
        """(n_items,) what centring subtracts from new items, where it is each item's own mean."""
        if self.model.offset is None or not self.model.offset.ndim:
            return None
        mean = float(self.origin.train.values.double().mean())
        return centring_offset(ratings, "item", self.damping, mean)

    def _tell_of_unknown(self, *sides: tuple[npt.NDArray[np.int64], pd.Series], refuse: bool) -> None:
        known = (len(self.dataset.user_ids), len(self.dataset.item_ids))
        rules = "by the item's bias and the prior", "by the user's bias and the prior"
        for name, rule, size, (indices, ids) in zip(SIDES, rules, known, sides, strict=True):
            strangers = ids[indices < 0]
            if not len(strangers):
                continue
            n, first = strangers.nunique(), strangers.iloc[0]
            told = f"1 {name} id ({first}) is" if n == 1 else f"{n:,} {name} ids (e.g. {first}) are"
            told += f" not in this model of {size:,} {name}s"
            if refuse:
                raise InputError(
                    f"{told}; leave their pairs out ({len(strangers):,}), or let them be predicted by the mean"
                )
            logger.warning("%s: pairs predicted %s, %s", told, rule, f"{len(strangers):,}")

    @torch.no_grad()
    def recommend(
        self,
        user: Id | None = None,
        n: int = 10,
        *,
        candidates: Tensor | None = None,
        explore: str = "none",
        reasons: int = 0,
        generator: torch.Generator | None = None,
    ) -> pd.DataFrame:
        """The n best items that the user has not rated, best first; the frame's attrs say what they are "ranked by".

        A user without a rating, of whom no features are known either, is recommended what has the highest mean, damped.

        Args:
            user: id of the user; none is needed where there is only one, such as who was folded in.
            candidates: (n_items,) bool, as `recommend.candidate_items` gives them; by default those with 5 ratings.
            explore: "none" ranks by prediction; with a posterior "upper" ranks by the 95 % quantile of the expected
                rating, and "thompson" by one draw of it.
            reasons: how many of the user's own ratings to give, those that speak most for each item, in a further
                column "because", a list of `Reason`.

        Raises:
            InputError: there is no such user, or explore or reasons ask for what this model does not have.
        """
        index = self.user_index(user)
        candidates = candidate_items(self.origin.dataset) if candidates is None else candidates
        own = self._ratings_of(index, self.train)
        if not len(own) and not any(len(block.values) for block in self._features_of(index, own).values()):
            return self._popular(self._ratings_of(index, self.dataset.ratings), n, candidates)
        rank_by = self._explored(index, explore, generator)
        found = recommended_items(
            self.dataset, self.model, index, n, posterior=self.posterior, candidates=candidates, rank_by=rank_by
        )
        found.attrs["ranked by"] = {
            "none": BY_PREDICTION,
            "upper": "the 95 % quantile of the expected rating",
            "thompson": "one draw of the expected rating",
        }[explore]
        if reasons:
            items = torch.from_numpy(indices_of(self.dataset.item_ids, found["id"]))
            found["because"] = pd.Series(self._reasons(index, own, items, reasons, generator), dtype=object)
        return found

    def _popular(self, seen: Ratings, n: int, candidates: Tensor) -> pd.DataFrame:
        means = centring_offset(self.origin.train, "item", self.damping)
        nothing = self.model.scale.new_zeros
        model = MatrixFactorization.from_tables(
            nothing(1, 0), nothing(seen.n_items, 0), biases=False, offset=means, scale=self.model.scale
        )
        indices, predictions = top_n(model, torch.zeros(1, dtype=torch.long), n, seen, candidates=candidates)
        found = item_frame(self.dataset, indices[0], predicted=predictions[0])
        found.attrs["ranked by"] = f"mean rating, damped by {self.damping:g} ratings, for want of ratings to go by"
        return found

    def _explored(self, user: int, explore: str, generator: torch.Generator | None) -> Tensor | None:
        """(n_items,) what to rank by; None of the predictions themselves."""
        if explore not in EXPLORE:
            raise unknown_name("way to explore", explore, EXPLORE)
        if explore == "none":
            return None
        model = self.model if explore == "upper" else self._posterior_to_explore().draw(generator)
        items = torch.arange(model.n_items, device=model.scale.device)
        users = torch.full_like(items, user)
        scores = model.predict(users, items)
        if explore == "upper":
            scores = scores + NINETY * self._posterior_to_explore().deviation(users, items, noise=False)
        return scores

    def _posterior_to_explore(self) -> Posterior:
        if self.posterior is None:
            raise InputError(
                f"{self.solver} does not know how sure it is, so there is nothing to explore; train vb or gibbs"
            )
        return self.posterior

    def _reasons(
        self, user: int, own: Ratings, items: Tensor, most: int, generator: torch.Generator | None
    ) -> list[list[Reason]]:
        origin = self.origin
        shares = explain(
            origin.model, own, origin.law, items, features=self._features_of(user, own), generator=generator
        )
        rated, values = own.items.tolist(), own.values.tolist()
        found = []
        for row in shares:
            best = row.argsort(descending=True, stable=True)[:most].tolist()
            chosen = [Reason(self.dataset.title(rated[at]), values[at], float(row[at])) for at in best]
            found.append([reason for reason in chosen if reason.share > 0])
        return found

    def user_index(self, user: Id | None) -> int:
        """The index of a user by id, or of the only one there is."""
        if user is not None:
            return self.dataset.user_index(user)
        if len(self.dataset.user_ids) != 1:
            raise InputError(f"there are {len(self.dataset.user_ids):,} users; name one")
        return 0

    def _ratings_of(self, user: int, ratings: Ratings) -> Ratings:
        """1 user × n_items: those of these ratings that are a user's."""
        own = ratings.select(ratings.users == user)
        zeros = torch.zeros_like(own.users)
        return Ratings(zeros, own.items, own.values, 1, own.n_items, own.timestamps, own.weights)

    def _features_of(self, user: int, own: Ratings) -> dict[str, Features]:
        about = self.dataset.users.iloc[[user]]
        return side_features("users", self.origin.dataset, own, self.implicit, self.user_features, about)

    def recommend_blocks(
        self,
        n: int = 10,
        users: Sequence[int] | None = None,
        *,
        candidates: Tensor | None = None,
        explore: str = "none",
        scores_held: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[tuple[int, pd.DataFrame]]:
        """`recommend` for many users, block by block: how many users, and a frame of user, rank, item and predicted.

        Args:
            users: their indices; all of them by default.
            explore: "none" or "thompson", with one draw for all.
            scores_held: scores held at a time: beside the tables, what memory is needed for.
        """
        model = self.model
        if explore == "thompson":
            model = self._posterior_to_explore().draw(generator)
        elif explore != "none":
            raise InputError(f"explore {explore} is for one user at a time; for many take none or thompson")
        candidates = candidate_items(self.origin.dataset) if candidates is None else candidates
        chosen = torch.arange(model.n_users) if users is None else torch.tensor(users)
        blocks = top_n_blocks(
            model, chosen, n, self.dataset.ratings, candidates=candidates, clip=True, scores_held=scores_held
        )
        for rows, indices, predictions in blocks:
            yield (
                len(rows),
                _long_frame(self.dataset.user_ids, rows, "user", self.dataset.item_ids, indices, predicted=predictions),
            )

    def similar_blocks(
        self, n: int = 10, *, min_ratings: int = 20, scores_held: int | None = None
    ) -> Iterator[tuple[int, pd.DataFrame]]:
        """`similar_items` for all items, block by block: how many, and a frame of item, rank, similar and cosine."""
        candidates = candidate_items(self.dataset, min_ratings)
        blocks = similar_blocks(
            self.model.factors(ITEM), torch.arange(self.model.n_items), n, candidates, scores_held=scores_held
        )
        for rows, indices, cosines in blocks:
            yield (
                len(rows),
                _long_frame(
                    self.dataset.item_ids, rows, "item", self.dataset.item_ids, indices, "similar", cosine=cosines
                ),
            )


def _long_frame(
    ids: pd.Index, rows: Tensor, name: str, item_ids: pd.Index, indices: Tensor, found: str = "item", **values: Tensor
) -> pd.DataFrame:
    """A row for each place of a list that could be filled: whose list, rank from 1, the item and a value."""
    filled = (indices >= 0).cpu()
    which, rank = filled.nonzero(as_tuple=True)
    columns = {
        name: ids[rows.cpu()[which].numpy()],
        "rank": rank.numpy() + 1,
        found: item_ids[indices.cpu()[filled].numpy()],
    }
    return pd.DataFrame(columns | {key: value.cpu()[filled].numpy() for key, value in values.items()})

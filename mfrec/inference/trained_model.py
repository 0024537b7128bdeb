"""Trained: a model with all that it needs to answer by ids, for users and items that were in training or were not.

Pairs to predict may have ids that the ratings do not have.  Such an id is a row without a rating, folded in, which
leaves what the other side's bias and the prior say of it; where neither id is known, the mean rating is left.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from mfrec.data.dataset import Dataset
from mfrec.data.frames import require_columns
from mfrec.data.ids import Id, indices_of
from mfrec.data.new_rows import new_items, new_users
from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.errors import unknown as not_in_table
from mfrec.experiments.training import TRAIN
from mfrec.inference.fold_in import Folded, explain, fold_in_item, fold_in_user
from mfrec.inference.new_rows import Law
from mfrec.inference.recommend import recommended_items
from mfrec.inference.top_k import similar_blocks, top_n_blocks
from mfrec.model.factorization import ITEM, SIDES, USER, MatrixFactorization, centring_offset
from mfrec.model.features import side_features
from mfrec.model.objective import Objective
from mfrec.posteriors.posterior import NINETY, Posterior
from mfrec.solvers.base import SOLVERS

logger = logging.getLogger("mfrec")
# Ratings that an item needs to be recommended, unless candidates are given.
JUDGED = 5
Explore = Literal["none", "upper", "thompson"]
BY_PREDICTION = "predicted rating"
# What each way to explore ranks by.
EXPLORE: dict[Explore, str] = {
    "none": BY_PREDICTION,
    "upper": "the 95 % quantile of the expected rating",
    "thompson": "one draw of the expected rating",
}


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
        source: what the users, or the items, were folded into, if they were; folded: which of them, USER or ITEM.
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
    folded: int | None = None

    def __repr__(self) -> str:
        return f"Trained({self.solver!r}, rank {self.model.rank}, {self.dataset!r})"

    @property
    def law(self) -> Law:
        """What says how a new row follows from its ratings.

        Raises:
            InputError: a sampler was stopped before it kept a draw.
        """
        if self.posterior is not None:
            return self.posterior
        if hasattr(SOLVERS.get(self.solver), "posterior"):
            raise InputError(f"{self.solver} ended within its burn-in and kept no draws; train it for more epochs")
        return self.objective

    @property
    def origin(self) -> Trained:
        """What was trained: this, or what the users or items of this were folded into."""
        return self if self.source is None else self.source.origin

    @cached_property
    def train(self) -> Ratings:
        """The ratings that were trained on."""
        return self.dataset.ratings.select(self.part == TRAIN).to(self.model.scale.device)

    @property
    def _mean(self) -> float:
        """The mean of the ratings that were trained on, in stars."""
        return float(self.origin.train.values.double().mean())

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

        Raises:
            InputError: `datasets.new_users` refuses them, or the model cannot fold in (see `fold_in_user`).
        """
        origin = self.origin
        return origin._with(USER, new_users(origin.dataset, ratings, users, user, item, rating), generator)

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

        Raises:
            InputError: `datasets.new_items` refuses them, or the model cannot fold in (see `fold_in_item`).
        """
        origin = self.origin
        return origin._with(ITEM, new_items(origin.dataset, ratings, items, user, item, rating), generator)

    def _with(self, side: int, dataset: Dataset, generator: torch.Generator | None) -> Trained:
        """This, with a side's rows those of the dataset, folded in by its ratings."""
        about = (dataset.users, dataset.items)[side]
        model, posterior = self._fold_in(side, dataset.ratings, about, generator)
        part = torch.full((len(dataset.ratings),), TRAIN, dtype=torch.uint8)
        return dataclasses.replace(
            self, dataset=dataset, model=model, posterior=posterior, part=part, source=self, folded=side
        )

    def _fold_in(
        self, side: int, ratings: Ratings, about: pd.DataFrame, generator: torch.Generator | None = None
    ) -> Folded:
        """New rows of a side by their ratings, and by what columns of this table tell of them."""
        features = {}
        if self.source is None:
            columns = (self.user_features, self.item_features)[side]
            features = side_features(f"{SIDES[side]}s", self.dataset, ratings, self.implicit, columns, about)
        if side == USER:
            return fold_in_user(self.model, ratings, self.law, features=features, generator=generator)
        offset = None
        if self.model.offset is not None and self.model.offset.ndim:
            offset = centring_offset(ratings, "item", self.damping, self._mean)
        return fold_in_item(self.model, ratings, self.law, features=features, offset=offset, generator=generator)

    def predict_frame(
        self, pairs: pd.DataFrame, *, user: str = "user", item: str = "item", unknown: str = "mean"
    ) -> pd.DataFrame:
        """The frame with a column "prediction", in stars, and "deviation" where there is a posterior.

        Args:
            pairs: a row a pair of ids; items may be given by title.
            unknown: "mean" predicts pairs with ids that are not in the ratings by the rule at the head of this file,
                and logs how many they were; "error" refuses them.

        Raises:
            InputError: a column is missing or there already, or an id is missing, or unknown where it must not be.
        """
        if unknown not in ("mean", "error"):
            raise not_in_table("way with unknown ids", unknown, ("mean", "error"))
        if not isinstance(pairs, pd.DataFrame):
            raise InputError(f"pairs are a frame with columns {user} and {item}, not a {type(pairs).__name__}")
        require_columns("pairs", pairs, ids=(user, item))
        for column in ("prediction", "deviation"):
            if column in pairs.columns:
                raise InputError(f"the pairs have a column {column!r} already; rename it")
        users, items = indices_of(self.dataset.user_ids, pairs[user]), self.dataset.item_indices(pairs[item])
        self._tell_of_unknown((users, pairs[user]), (items, pairs[item]), refuse=unknown == "error")
        found = self._predictions(torch.from_numpy(users), torch.from_numpy(items))
        columns = {name: values.cpu().numpy() for name, values in found.items()}
        return pairs.assign(**columns)

    @torch.no_grad()
    def _predictions(self, users: Tensor, items: Tensor) -> dict[str, Tensor]:
        """Predictions, and deviations if any, of pairs of indices, of which -1 is a row without ratings."""
        prediction = torch.full((len(users),), self._mean)
        deviation = torch.full((len(users),), float(self.origin.train.values.double().std(correction=0)))
        for user_known, item_known in ((True, True), (False, True), (True, False)):
            pairs = ((users >= 0) == user_known) & ((items >= 0) == item_known)
            if not bool(pairs.any()):
                continue
            model, posterior = self.model, self.posterior
            if not (user_known and item_known):
                model, posterior = self._stranger(ITEM if user_known else USER)
            rows = users[pairs].clamp_min(0), items[pairs].clamp_min(0)
            prediction[pairs] = model.predict(*rows, clip=True).to(prediction)
            if posterior is not None:
                deviation[pairs] = posterior.deviation(*rows).to(deviation)
        return {"prediction": prediction} | ({} if self.posterior is None else {"deviation": deviation})

    def _stranger(self, side: int) -> Folded:
        """One row of which nothing is known, neither ratings nor features, beside all of the other side."""
        sizes = (1, self.model.n_items) if side == USER else (self.model.n_users, 1)
        none = torch.zeros(0, dtype=torch.long)
        return self._fold_in(side, Ratings(none, none, torch.zeros(0), *sizes), pd.DataFrame(index=[0]))

    def _tell_of_unknown(self, *sides: tuple[npt.NDArray[np.int64], pd.Series], refuse: bool) -> None:
        """Refuse ids that are not known, or log how many they are and what becomes of their pairs."""
        told, sizes = [], (len(self.dataset.user_ids), len(self.dataset.item_ids))
        for name, size, (indices, ids) in zip(SIDES, sizes, sides, strict=True):
            strangers = ids[indices < 0]
            if len(strangers):
                n, first = strangers.nunique(), strangers.iloc[0]
                what = f"1 {name} id ({first}) is" if n == 1 else f"{n:,} {name} ids (e.g. {first}) are"
                told.append(f"{what} not in this model of {size:,} {name}s")
        if not told:
            return
        (users, _), (items, _) = sides
        if refuse:
            n_pairs = int(((users < 0) | (items < 0)).sum())
            raise InputError(f"{' and '.join(told)}; leave their pairs out ({n_pairs:,}), or have them predicted")
        cases = {
            "item's bias": (users < 0) & (items >= 0),
            "user's bias": (users >= 0) & (items < 0),
            "mean rating": (users < 0) & (items < 0),
        }
        found = [f"{int(case.sum()):,} by the {rule}" for rule, case in cases.items() if case.any()]
        logger.warning("%s; pairs predicted %s", " and ".join(told), ", ".join(found))

    @torch.no_grad()
    def recommend(
        self,
        user: Id | None = None,
        n: int = 10,
        *,
        candidates: Tensor | None = None,
        explore: Explore = "none",
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
        if explore not in EXPLORE:
            raise not_in_table("way to explore", explore, EXPLORE)
        if explore != "none":
            self._posterior_to_explore()  # refused before anything is ranked, whoever asks
        if reasons < 0:
            raise InputError(f"{reasons} reasons are too few; give 0 or more")
        if reasons and self.folded == ITEM:
            raise InputError("reasons are for items that were in training; leave them out for those folded in")
        index = self.user_index(user)
        candidates = self.item_counts >= JUDGED if candidates is None else candidates
        known = bool(self._known_users[index])
        model, posterior = (self.model, self.posterior) if known else (self._popular, None)
        rank_by = self._explored(index, explore, generator) if known else None
        found = recommended_items(
            self.dataset, model, index, n, posterior=posterior, candidates=candidates, rank_by=rank_by
        )
        found.attrs["ranked by"] = EXPLORE[explore]
        if not known:
            found.attrs["ranked by"] = f"mean rating, damped by {self.damping:g} ratings, for want of ratings to go by"
        if reasons:
            why = self._reasons(index, found["id"], reasons, generator) if known else [[] for _ in range(len(found))]
            found["because"] = pd.Series(why, dtype=object)
        return found

    @property
    def item_counts(self) -> Tensor:
        """(n_items,) ratings of each item, those of users who were folded in not counted."""
        return (self if self.folded == ITEM else self.origin).dataset.ratings.item_counts.cpu()

    @cached_property
    def _known_users(self) -> Tensor:
        """(n_users,) bool, of whom there are ratings or features to go by."""
        raters = self.origin if self.folded == ITEM else self
        known = raters.train.user_counts.cpu() > 0
        if self.user_features.strip(" ,"):
            columns, about = self.user_features, raters.dataset.users
            features = side_features("users", self.origin.dataset, raters.train, "none", columns, about)
            known = known | (features["side"].pattern.counts.cpu() > 0)
        return known

    @property
    def _popular(self) -> MatrixFactorization:
        """The model that predicts each item's damped mean for everyone."""
        rated = self.train if self.folded == ITEM else self.origin.train
        means = centring_offset(rated, "item", self.damping, self._mean)
        tables = [self.model.scale.new_zeros(n, 0) for n in (self.model.n_users, self.model.n_items)]
        return MatrixFactorization.from_tables(*tables, biases=False, offset=means, scale=self.model.scale)

    def _explored(self, user: int, explore: Explore, generator: torch.Generator | None) -> Tensor | None:
        """(n_items,) what to rank by; None of the predictions themselves."""
        if explore == "none":
            return None
        posterior = self._posterior_to_explore()
        model = self.model if explore == "upper" else posterior.draw(generator)
        items = torch.arange(model.n_items, device=model.scale.device)
        users = torch.full_like(items, user)
        scores = model.predict(users, items)
        if explore == "upper":
            scores = scores + NINETY * posterior.deviation(users, items, noise=False)
        return scores

    def _posterior_to_explore(self) -> Posterior:
        law = self.law
        if isinstance(law, Objective):
            raise InputError(
                f"{self.solver} does not know how sure it is, so there is nothing to explore; train vb or gibbs"
            )
        return law

    def _reasons(self, user: int, ids: pd.Series, most: int, generator: torch.Generator | None) -> list[list[Reason]]:
        origin, rated = self.origin, self.train.select(self.train.users == user)
        own = Ratings(torch.zeros_like(rated.users), rated.items, rated.values, 1, rated.n_items, None, rated.weights)
        about = self.dataset.users.iloc[[user]]
        features = side_features("users", origin.dataset, own, self.implicit, self.user_features, about)
        items = torch.from_numpy(indices_of(self.dataset.item_ids, ids))
        shares = explain(origin.model, own, origin.law, items, features=features, generator=generator)
        titles, values = [self.dataset.title(item) for item in own.items.tolist()], own.values.tolist()
        found = []
        for row in shares:
            best = row.argsort(descending=True, stable=True)[:most].tolist()
            found.append([Reason(titles[at], values[at], float(row[at])) for at in best if float(row[at]) > 0])
        return found

    def user_index(self, user: Id | None) -> int:
        """The index of a user by id, or of the only one there is.

        Raises:
            InputError: there is no such user, or none is named where there are several.
        """
        if user is not None:
            return self.dataset.user_index(user)
        if len(self.dataset.user_ids) != 1:
            raise InputError(f"there are {len(self.dataset.user_ids):,} users; name one")
        return 0

    def recommend_blocks(
        self,
        n: int = 10,
        *,
        candidates: Tensor | None = None,
        explore: Explore = "none",
        scores_held: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[tuple[int, pd.DataFrame]]:
        """`recommend` for all users, block by block: how many users, and a frame of user, rank, item and predicted.

        Args:
            explore: "none" or "thompson", with one draw for all.
            scores_held: scores held at a time: beside the tables, what memory is needed for.

        Raises:
            InputError: explore is for one user at a time, or for a posterior that there is not; n is below 1, or
                candidates are not a bool for each item.
        """
        if explore not in ("none", "thompson"):
            raise InputError(f"explore {explore} is for one user at a time; for many take none or thompson")
        ranking = self.model if explore == "none" else self._posterior_to_explore().draw(generator)
        candidates = self.item_counts >= JUDGED if candidates is None else candidates
        known = self._known_users
        groups = [(ranking, known)]
        if not bool(known.all()):
            # Whoever gave no rating is recommended what `recommend` recommends to them.
            groups.append((self._popular, ~known))
        for model, some in groups:
            blocks = top_n_blocks(
                model,
                some.nonzero()[:, 0],
                n,
                self.dataset.ratings,
                candidates=candidates,
                clip=True,
                scores_held=scores_held,
            )
            for rows, items, predictions in blocks:
                if explore == "thompson" and model is ranking:
                    pairs = rows[:, None].expand_as(items).flatten(), items.clamp_min(0).flatten()
                    predictions = self.model.predict(*pairs, clip=True).view_as(predictions)
                ids = self.dataset.user_ids, self.dataset.item_ids
                yield len(rows), _long_frame(ids, ("user", "item"), rows, items, predicted=predictions)

    def similar_blocks(
        self, n: int = 10, *, min_ratings: int = 20, scores_held: int | None = None
    ) -> Iterator[tuple[int, pd.DataFrame]]:
        """`similar_items` for all items, block by block: how many, and a frame of item, rank, similar and cosine."""
        rows, table = torch.arange(self.model.n_items), self.model.factors(ITEM)
        ids = self.dataset.item_ids, self.dataset.item_ids
        for block, items, cosines in similar_blocks(
            table, rows, n, self.item_counts >= min_ratings, scores_held=scores_held
        ):
            yield len(block), _long_frame(ids, ("item", "similar"), block, items, cosine=cosines)


def _long_frame(
    ids: tuple[pd.Index, pd.Index], names: tuple[str, str], rows: Tensor, found: Tensor, **values: Tensor
) -> pd.DataFrame:
    """A row for each place of a list that could be filled: whose list, rank from 1, what was found, and a value."""
    filled = (found >= 0).cpu()
    which, rank = filled.nonzero(as_tuple=True)
    columns = {
        names[0]: ids[0][rows.cpu()[which].numpy()],
        "rank": rank.numpy() + 1,
        names[1]: ids[1][found.cpu()[filled].numpy()],
    }
    return pd.DataFrame(columns | {key: value.cpu()[filled].numpy() for key, value in values.items()})

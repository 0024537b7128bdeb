"""The model: embeddings of users and items, whose dot products predict the ratings.

    ŷ(i, j) = θ_j · x_i + b_j + b_i + μ_i

θ_j and x_i are rows of `user_factors` and `item_factors`, b_j and b_i of the optional `user_bias` and `item_bias`.
μ_i is the offset that centring subtracted: nothing, the global mean, or each item's damped mean.

The biased model is a plain product of augmented factors, so that biases need no code of their own in any solver:

    Θ̃ = [θ, b_j, 1]    X̃ = [x, 1, b_i]    ŷ(i, j) − μ_i = θ̃_j · x̃_i

(Koren, Bell & Volinsky 2009, "Matrix factorization techniques for recommender systems", eq. 4.)  With features the
augmented factors of an entity are a sum of terms; see `mfrec.model.entity`.  With sessions, the time of a rating adds
an effect; see `mfrec.model.session_biases`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mfrec.data.features import Features
from mfrec.data.ratings import HeldIndices, Ratings
from mfrec.data.sessions import Sessions
from mfrec.errors import InputError, OptionError, unknown
from mfrec.model.entity import ENTITY_NAMES, INITS, ITEM, USER, Entity, Term, initial_factors
from mfrec.model.offsets import centring_offset, offset_at
from mfrec.model.pair_products import dots, pair_dots
from mfrec.model.session_biases import SessionBiases
from mfrec.sparse import sddmm


class MatrixFactorization(nn.Module):
    """Factors and biases of n_users users and n_items items.

    Args:
        rank: number of latent factors; 0 fits only biases and offset.
        biases: whether users and items have a bias.
        offset: () or (n_items,) added to every prediction; see `centring_offset`.
        rating_range: lowest and highest possible rating, for `predict(clip=True)`.
        user_features, item_features: blocks of features by name; their weights start at 0, or like factors for items
            without ids.
        item_ids: whether items have factors and a bias of their own; without it, items are represented by their
            features only.
        sessions: the sessions of the training ratings; each gets a bias, initially 0.
        nonnegative: whether factors and feature weights, but not biases, are kept at 0 or above.
        init: how factors start, a name in `INITS`; biases start at 0.
        held_rows: of users and of items, if the model holds some rows of a larger one; see `initial_factors`.
        generator: the source of the initial factors, on the CPU, so that all devices start alike; by default seeded
            with 0.

    Attributes:
        users, items: the two `Entity` modules.
        sessions: `SessionBiases`, or None.

    Raises:
        InputError: there are no users or no items, the rank is negative, init is unknown, features do not have one
            row for each user or item, or items have neither ids nor features.
    """

    offset: Tensor | None
    rating_range: Tensor

    def __init__(
        self,
        n_users: int,
        n_items: int,
        rank: int,
        *,
        biases: bool = True,
        offset: Tensor | None = None,
        rating_range: tuple[float, float] = (-float("inf"), float("inf")),
        user_features: Mapping[str, Features] | None = None,
        item_features: Mapping[str, Features] | None = None,
        item_ids: bool = True,
        sessions: Sessions | None = None,
        nonnegative: bool = False,
        init: str = "scaled-normal",
        held_rows: tuple[HeldIndices, HeldIndices] | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if n_users < 1 or n_items < 1:
            raise InputError(f"a model needs at least one user and one item (got {n_users} and {n_items})")
        if rank < 0:
            raise OptionError("rank", f"must be at least 0 (got {rank})")
        if init not in INITS:
            raise unknown("init", init, INITS)
        if not item_ids and not item_features:
            raise InputError("items without ids need features: set item_features, for example to genres")
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.rank, self.biases, self.nonnegative = rank, biases, nonnegative
        self.register_buffer("offset", None if offset is None else offset.to(dtype))
        self.register_buffer("rating_range", torch.tensor(rating_range, dtype=dtype))
        start = partial(initial_factors, init, rank=rank, nonnegative=nonnegative, generator=generator, dtype=dtype)
        users, items = (partial(start, held=held) for held in held_rows or (None, None))
        self.users = Entity(USER, n_users, rank, users, biases=biases, features=user_features)
        self.items = Entity(ITEM, n_items, rank, items, biases=biases, ids=item_ids, features=item_features)
        self.sessions = None if sessions is None else SessionBiases(sessions, dtype)

    @classmethod
    def from_ratings(
        cls, ratings: Ratings, rank: int, *, offset: str = "global", damping: float = 5.0, **options: Any
    ) -> MatrixFactorization:
        """A model with the size, type and device of the ratings, centred by them.

        Users and items without ratings start at zero factors, which minimize their cost.  They are predicted by the
        offset, the partner's bias and their features.

        Args:
            offset, damping: what centring subtracts; kind and damping of `centring_offset`.
            options: keyword arguments of the class.

        Raises:
            InputError: the class or `centring_offset` refuses an argument.

        Examples:
            >>> ratings = Ratings(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), torch.tensor([5.0, 1.0, 3.0]))
            >>> model = MatrixFactorization.from_ratings(ratings, rank=2, rating_range=(1, 5))
            >>> float(model.offset)  # the mean rating
            3.0
            >>> user_factors, item_factors = model.augmented_factors()  # rank + 2 columns: [θ, b, 1] and [x, 1, b]
            >>> user_factors.shape, item_factors.shape
            (torch.Size([2, 4]), torch.Size([2, 4]))
        """
        mean = centring_offset(ratings, offset, damping)
        options = {"offset": mean, "held_rows": ratings.held_rows, "dtype": ratings.values.dtype, **options}
        model = cls(ratings.n_users, ratings.n_items, rank, **options)
        model = model.to(ratings.device)
        with torch.no_grad():
            for entity, counts in zip(model.entities, (ratings.user_counts, ratings.item_counts), strict=True):
                if entity.factors is not None:
                    entity.factors.weight[counts == 0] = 0
        return model

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Tensor],
        *,
        user_features: Mapping[str, Features] | None = None,
        item_features: Mapping[str, Features] | None = None,
        sessions: Sessions | None = None,
        nonnegative: bool = False,
    ) -> MatrixFactorization:
        """The model with this `state_dict()`, given the features and the sessions that it was made with.

        Raises:
            InputError: the state's items are represented by features, and these are missing.
        """
        users, items = state["users.factors.weight"], state.get("items.factors.weight")
        if items is None and not item_features:
            raise InputError("this model represents items by features; give the item_features that it was made with")
        model = cls(
            len(users),
            len(items) if items is not None else next(iter((item_features or {}).values())).n_rows,
            users.shape[1],
            biases="users.bias.weight" in state,
            offset=state.get("offset"),
            user_features=user_features,
            item_features=item_features,
            item_ids=items is not None,
            sessions=sessions,
            nonnegative=nonnegative,
            init="zeros",
            dtype=users.dtype,
        )
        model.load_state_dict(state)
        return model.to(users.device)

    @classmethod
    def from_augmented_factors(
        cls,
        users: Tensor,
        items: Tensor,
        *,
        biases: bool,
        offset: Tensor | None,
        rating_range: Tensor,
        nonnegative: bool = False,
        sessions: SessionBiases | None = None,
    ) -> MatrixFactorization:
        """The model without features that has these augmented factors, (n_users, k) and (n_items, k).

        Args:
            sessions: the session biases; the models share them.
        """
        k = users.shape[1] - 2 * biases
        state = {
            "rating_range": rating_range,
            "users.factors.weight": users[:, :k],
            "items.factors.weight": items[:, :k],
        }
        if biases:
            state |= {"users.bias.weight": users[:, k : k + 1], "items.bias.weight": items[:, k + 1 :]}
        state = state if offset is None else state | {"offset": offset}
        model = cls.from_state_dict(state, nonnegative=nonnegative)
        model.sessions = sessions
        return model

    def extra_repr(self) -> str:
        return f"rank={self.rank}, biases={self.biases}"

    @property
    def entities(self) -> tuple[Entity, Entity]:
        """Users and items; USER and ITEM are their positions."""
        return self.users, self.items

    @property
    def user_factors(self) -> nn.Embedding:
        """Embedding of shape (n_users, rank)."""
        assert self.users.factors is not None
        return self.users.factors

    @property
    def item_factors(self) -> nn.Embedding | None:
        """Embedding of shape (n_items, rank); None if items are represented by features only."""
        return self.items.factors

    @property
    def user_bias(self) -> nn.Embedding | None:
        """Embedding of shape (n_users, 1), or None."""
        return self.users.bias

    @property
    def item_bias(self) -> nn.Embedding | None:
        """Embedding of shape (n_items, 1), or None."""
        return self.items.bias

    @property
    def n_users(self) -> int:
        """The number of users."""
        return self.users.n_rows

    @property
    def n_items(self) -> int:
        """The number of items."""
        return self.items.n_rows

    @property
    def item_ids(self) -> bool:
        """Whether items have factors of their own, besides those of their features."""
        return self.items.factors is not None

    @property
    def has_features(self) -> bool:
        """Whether users or items have features."""
        return any(len(entity.features) for entity in self.entities)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.rating_range.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the parameters."""
        return self.rating_range.dtype

    def forward(self, users: Tensor, items: Tensor, timestamps: Tensor | None = None) -> Tensor:
        """(n,) predicted ratings of (user, item) index pairs; differentiable."""
        return self._ratings_of(dots(*self.augmented_factors(), users, items), users, items, timestamps)

    @torch.no_grad()
    def predict(self, users: Tensor, items: Tensor, *, timestamps: Tensor | None = None, clip: bool = False) -> Tensor:
        """(n,) predicted ratings of (user, item) index pairs; clip=True moves them into the rating range.

        Args:
            timestamps: (n,) seconds since 1970, for the session biases; without them, the prior's mean 0.

        Raises:
            InputError: an index is not in the model.
        """
        products = pair_dots(*self.augmented_factors(), users, items)
        users, items = users.to(products.device), items.to(products.device)
        prediction = self._ratings_of(products, users, items, timestamps)
        return self.clip(prediction) if clip else prediction

    def _ratings_of(self, products: Tensor, users: Tensor, items: Tensor, timestamps: Tensor | None) -> Tensor:
        scores = products if self.offset is None else products + offset_at(self.offset, items)
        if self.sessions is not None and timestamps is not None:
            scores = scores + self.sessions.at(users, timestamps)
        return self.to_ratings(scores, users, items)

    @torch.no_grad()
    def predict_observed(self, ratings: Ratings, *, clip: bool = False) -> Tensor:
        """(n_ratings,) predictions of the ratings' pairs by one sparse product, without gathering factors.

        Raises:
            InputError: the model has session biases, and the ratings have no timestamps.
        """
        scores, effects = sddmm(ratings.pattern, *self.augmented_factors()), self.effects(ratings)
        scores = scores if effects is None else scores + effects
        prediction = self.to_ratings(scores, ratings.users, ratings.items)
        return self.clip(prediction) if clip else prediction

    def to_ratings(self, scores: Tensor, users: Tensor, items: Tensor) -> Tensor:
        """Predicted ratings from scores θ̃_j · x̃_i plus effects: the scores, unless a subclass has another scale.

        Args:
            scores: of any shape.
            users, items: the indices of the scores, in shapes that broadcast to theirs.
        """
        return scores

    def clip(self, prediction: Tensor) -> Tensor:
        """Predictions of any shape, moved into the rating range."""
        return torch.minimum(torch.maximum(prediction, self.rating_range[0]), self.rating_range[1])

    def effects(self, ratings: Ratings) -> Tensor | None:
        """What adds to the products, offset and session biases: () or (n_ratings,), or None; differentiable."""
        offset = None if self.offset is None else offset_at(self.offset, ratings.items)
        if self.sessions is None:
            return offset
        session = self.sessions.effect(ratings)
        return session if offset is None else session + offset

    @torch.no_grad()
    def targets(self, ratings: Ratings) -> Tensor:
        """(n_ratings,) the ratings less the effects: the targets of θ̃_j · x̃_i."""
        effects = self.effects(ratings)
        return ratings.values if effects is None else ratings.values - effects

    def terms(self, entity: int) -> list[Term]:
        """The summands of an entity's augmented factors, the rows' own before those of features."""
        return self.entities[entity].terms

    @property
    def all_terms(self) -> list[Term]:
        """The terms of users, then of items."""
        return self.terms(USER) + self.terms(ITEM)

    def weights(self, term: Term, parameters: Mapping[str, Tensor] | None = None, constant: float = 0.0) -> Tensor:
        """W̃ of a term, (n_rows or n_features, k): its parameters next to each other; differentiable.

        Args:
            parameters: used instead of the model's parameters, by the same names.
            constant: the value in the column without a parameter.
        """
        columns = [self.get_parameter(name) if parameters is None else parameters[name] for name in term.columns]
        if self.biases:
            columns.insert(2 if term.entity == USER else 1, torch.full_like(columns[1], constant))
        return torch.cat(columns, 1)

    @torch.no_grad()
    def assign(self, term: Term, weights: Tensor) -> None:
        """Set the parameters of a term from W̃, laid out as `weights` returns it."""
        for name, columns in term.split(weights).items():
            self.get_parameter(name).copy_(columns)

    @torch.no_grad()
    def project(self) -> None:
        """Set negative factors and feature weights to 0, if the model is non-negative."""
        if self.nonnegative:
            for term in self.all_terms:
                self.get_parameter(term.factors).clamp_(min=0)

    def augmented_factors(self, parameters: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Θ̃ (n_users, k) and X̃ (n_items, k) with θ̃_j · x̃_i = ŷ(i, j) − μ_i; k is rank, or rank + 2 with biases.

        Args:
            parameters: used instead of the model's parameters, by the same names.
        """
        return self.entity_factors(USER, parameters), self.entity_factors(ITEM, parameters)

    def entity_factors(self, entity: int, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Θ̃, for USER, or X̃, for ITEM: (n_rows, k)."""
        terms = self.terms(entity)
        # The rows' own weights have the constant 1 in them, which saves a pass over the rows.
        products = [t.product(self.weights(t, parameters, float(t.features is None))) for t in terms]
        first = products[0] if terms[0].features is None else products[0] + (1 - self.free_columns()[entity])
        return sum(products[1:], first)

    def free_columns(self) -> tuple[Tensor, Tensor]:
        """(1, k) for Θ̃ and for X̃: 1 where a column belongs to a parameter, 0 where it is the constant 1."""
        free = [self.rating_range.new_ones(1, self.rank + 2 * self.biases) for _ in ENTITY_NAMES]
        if self.biases:
            free[USER][0, -1] = free[ITEM][0, -2] = 0
        return free[USER], free[ITEM]

    def gradients(self, users: Tensor, items: Tensor) -> dict[str, Tensor]:
        """The chain rule: from gradients in Θ̃ and X̃ to those in the parameters, by parameter name.

        ∂J/∂W̃ = Fᵀ ∂J/∂Θ̃ for each term; columns without a parameter drop out.
        """
        gradients: dict[str, Tensor] = {}
        for entity, rows in zip((USER, ITEM), (users, items), strict=True):
            for term in self.terms(entity):
                gradients |= term.split(term.rmatmul(rows))
        return gradients

    @torch.no_grad()
    def factors(self, entity: int) -> Tensor:
        """(n_rows, rank) the factors of the users or the items, including those of their features."""
        return self.augmented_factors()[entity][:, : self.rank]

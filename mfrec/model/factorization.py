"""The model: embedding tables of users and items, whose dot products are the predicted ratings.

    ŷ(i, j) = θ_j · x_i + b_j + b_i + μ_i

θ_j and x_i are rows of `user_factors` and `item_factors`, b_j and b_i of the optional `user_bias` and `item_bias`, and
μ_i is the offset that centring subtracted: nothing, the global mean, or each item's damped mean.

The biased model is a plain product of augmented tables, so that biases cost no second code path in any solver:

    Θ̃ = [θ, b_j, 1]    X̃ = [x, 1, b_i]    ŷ(i, j) − μ_i = θ̃_j · x̃_i

(Koren, Bell & Volinsky 2009, "Matrix factorization techniques for recommender systems", eq. 4.)

With features a side is a sum of terms, the rows' own table and, for each block F of features, F times its weights,

    Θ̃ = P̃ + F₁ W̃₁ + F₂ W̃₂ + … + [0, 0, 1]

each laid out like Θ̃.  A term is all that a solver sees of it: the own table is the term whose F is the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError, unknown
from mfrec.model.features import Features
from mfrec.sparse import matmul, sampled_dot

# Pairs predicted at a time: bounds the gathered rows to 2 · 2^16 · rank numbers.
PAIR_BLOCK = 2**16

INITS: dict[str, Callable[[int, int, torch.Generator, torch.dtype], Tensor]] = {
    # Small enough that biases are learned first: from larger starts early stopping ends at a higher validation RMSE.
    "scaled-normal": lambda n, k, g, dtype: torch.randn(n, k, generator=g, dtype=dtype) * (0.1 / max(k, 1) ** 0.5),
    "small-normal": lambda n, k, g, dtype: torch.randn(n, k, generator=g, dtype=dtype) * 0.01,
    "uniform": lambda n, k, g, dtype: torch.rand(n, k, generator=g, dtype=dtype),
    # For factors that are put in later: to start training from, it is a saddle of J.
    "zeros": lambda n, k, g, dtype: torch.zeros(n, k, dtype=dtype),
}
OFFSETS = ("none", "global", "item")
USER, ITEM = 0, 1
SIDES = ("user", "item")


class Term(NamedTuple):
    """One summand F W̃ of a side's table, which is (n_rows, k).

    side: USER or ITEM.
    features: F, or None for the identity, where W̃ has a row for every user or item.
    columns: the parameters that W̃ is made of, and their columns in it; the others are 0.
    """

    side: int
    features: Features | None
    columns: dict[str, slice]

    def product(self, table: Tensor) -> Tensor:
        """F W̃, (n_rows, k)."""
        if self.features is None:
            return table
        product: Tensor = self.features(table)
        return product

    def pull(self, rows: Tensor) -> Tensor:
        """Fᵀ G, shaped like W̃: the gradient in it of what has the gradient G, (n_rows, k), in the rows of the side."""
        return rows if self.features is None else self.features.pull(rows)

    def parts(self, table: Tensor) -> dict[str, Tensor]:
        """Of a table laid out like W̃, the columns of each parameter: views, keyed like `named_parameters()`."""
        return {name: table[:, columns] for name, columns in self.columns.items()}


class MatrixFactorization(nn.Module):
    """Embedding tables of n_users users and n_items items with `rank` factors each.

    Args:
        rank: number of latent factors; 0 leaves the biases and the offset alone.
        biases: whether users and items have a bias.
        offset: () or (n_items,) what is added to every prediction; see `centring_offset`.
        scale: lowest and highest possible rating, for `predict(clip=True)`.
        user_features, item_features: blocks of features by name, each with weights of its own, which start at zero; the
            model takes them over, and they follow its device and dtype.
        item_ids: whether items have factors and a bias of their own; without, they are what their features are.
        nonnegative: whether all factors and feature weights, but not the biases, are to stay at 0 or above.
        init: how the factors start, a name in `INITS`; biases start at zero.
        generator: the source of the start, on the CPU whatever the model's device, so that devices start alike; seeded
            with 0 unless given.

    Attributes:
        user_factors, item_factors: embeddings of shape (n_users, rank) and (n_items, rank); the latter None without
            item_ids.
        user_bias, item_bias: embeddings of shape (n_users, 1) and (n_items, 1), or None.

    Raises:
        InputError: there are no users or no items, the rank is negative, init is unknown, features are not a row each,
            or items have neither ids nor features.
    """

    offset: Tensor | None
    scale: Tensor

    def __init__(
        self,
        n_users: int,
        n_items: int,
        rank: int,
        *,
        biases: bool = True,
        offset: Tensor | None = None,
        scale: tuple[float, float] = (-float("inf"), float("inf")),
        user_features: Mapping[str, Features] | None = None,
        item_features: Mapping[str, Features] | None = None,
        item_ids: bool = True,
        nonnegative: bool = False,
        init: str = "scaled-normal",
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if n_users < 1 or n_items < 1:
            raise InputError(f"a model of {n_users} users and {n_items} items is empty; give at least one of each")
        if rank < 0:
            raise InputError(f"rank {rank} is negative; give 1 or more factors")
        if init not in INITS:
            raise unknown("init", init, INITS)
        if not item_ids and not item_features:
            raise InputError("items without ids of their own need features, such as genres; name some")
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.n_users, self.n_items, self.rank = n_users, n_items, rank
        self.biases, self.nonnegative = biases, nonnegative
        self.register_buffer("offset", None if offset is None else offset.to(dtype))
        self.register_buffer("scale", torch.tensor(scale, dtype=dtype))

        def factors(n: int) -> nn.Embedding:
            start = INITS[init](n, rank, generator, dtype)
            return _embedding(start.abs() if nonnegative else start)

        def zeros(n: int, k: int) -> nn.Embedding:
            return _embedding(torch.zeros(n, k, dtype=dtype))

        self.user_factors = factors(n_users)
        self.item_factors = factors(n_items) if item_ids else None
        self.user_bias = zeros(n_users, 1) if biases else None
        self.item_bias = zeros(n_items, 1) if biases and item_ids else None
        self._add_features("user", n_users, user_features or {}, lambda n: zeros(n, rank), zeros)
        # Where nothing else of the items does, the weights must start off zero: all-zero factors are a saddle of J.
        self._add_features(
            "item", n_items, item_features or {}, (lambda n: zeros(n, rank)) if item_ids else factors, zeros
        )

    def _add_features(
        self,
        side: str,
        n_rows: int,
        blocks: Mapping[str, Features],
        factors: Callable[[int], nn.Embedding],
        zeros: Callable[[int, int], nn.Embedding],
    ) -> None:
        for name, block in blocks.items():
            if block.n_rows != n_rows:
                raise InputError(f"the {name} features have {block.n_rows:,} rows for {n_rows:,} {side}s")
        sizes = {name: block.n_features for name, block in blocks.items()}
        self.add_module(f"{side}_features", nn.ModuleDict(blocks).to(self.scale.dtype))
        self.add_module(f"{side}_feature_factors", nn.ModuleDict({name: factors(n) for name, n in sizes.items()}))
        biased = sizes.items() if self.biases else ()
        self.add_module(f"{side}_feature_bias", nn.ModuleDict({name: zeros(n, 1) for name, n in biased}))

    @classmethod
    def from_ratings(
        cls,
        ratings: Ratings,
        rank: int,
        *,
        biases: bool = True,
        offset: str = "global",
        damping: float = 5.0,
        scale: tuple[float, float] = (-float("inf"), float("inf")),
        user_features: Mapping[str, Features] | None = None,
        item_features: Mapping[str, Features] | None = None,
        item_ids: bool = True,
        nonnegative: bool = False,
        init: str = "scaled-normal",
        generator: torch.Generator | None = None,
    ) -> MatrixFactorization:
        """A model of the ratings' size, dtype and device, centred by them.

        Users and items without a rating start at zero factors, where the minimum of the cost has them, and so are
        predicted by the offset, the other side's bias, and what features they have.

        Args:
            offset, damping: what centring subtracts; as kind and damping of `centring_offset`.

        Raises:
            InputError: as of the class and of `centring_offset`.

        Examples:
            >>> ratings = Ratings(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), torch.tensor([5.0, 1.0, 3.0]))
            >>> model = MatrixFactorization.from_ratings(ratings, rank=2, scale=(1, 5))
            >>> float(model.offset)  # the mean rating
            3.0
            >>> user_table, item_table = model.tables()  # rank + 2 columns: [θ, b, 1] and [x, 1, b]
            >>> user_table.shape, item_table.shape
            (torch.Size([2, 4]), torch.Size([2, 4]))
        """
        model = cls(
            ratings.n_users,
            ratings.n_items,
            rank,
            biases=biases,
            offset=centring_offset(ratings, offset, damping),
            scale=scale,
            user_features=user_features,
            item_features=item_features,
            item_ids=item_ids,
            nonnegative=nonnegative,
            init=init,
            generator=generator,
            dtype=ratings.values.dtype,
        ).to(ratings.device)
        with torch.no_grad():
            for own, counts in ((model.user_factors, ratings.user_counts), (model.item_factors, ratings.item_counts)):
                if own is not None:
                    own.weight[counts == 0] = 0
        return model

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Tensor],
        *,
        user_features: Mapping[str, Features] | None = None,
        item_features: Mapping[str, Features] | None = None,
        nonnegative: bool = False,
    ) -> MatrixFactorization:
        """The model that `state_dict()` describes, sizes and all, of what else it was made with.

        Raises:
            InputError: the state's items are their features, and these are not given.
        """
        users, items = state["user_factors.weight"], state.get("item_factors.weight")
        if items is None and not item_features:
            raise InputError("this model's items are their features; give the item_features that it was made with")
        model = cls(
            len(users),
            len(items) if items is not None else next(iter((item_features or {}).values())).n_rows,
            users.shape[1],
            biases="user_bias.weight" in state,
            offset=state.get("offset"),
            user_features=user_features,
            item_features=item_features,
            item_ids=items is not None,
            nonnegative=nonnegative,
            init="zeros",
            dtype=users.dtype,
        )
        model.load_state_dict(state)
        return model.to(users.device)

    @classmethod
    def from_tables(
        cls,
        users: Tensor,
        items: Tensor,
        *,
        biases: bool,
        offset: Tensor | None,
        scale: Tensor,
        nonnegative: bool = False,
    ) -> MatrixFactorization:
        """The model without features of which these are the `tables()`."""
        k = users.shape[1] - 2 * biases
        state = {"scale": scale, "user_factors.weight": users[:, :k], "item_factors.weight": items[:, :k]}
        if biases:
            state |= {"user_bias.weight": users[:, k : k + 1], "item_bias.weight": items[:, k + 1 :]}
        return cls.from_state_dict(state if offset is None else state | {"offset": offset}, nonnegative=nonnegative)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, biases={self.biases}"

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """(n,) predicted ratings of (user, item) index pairs, differentiable through the embeddings."""
        return self.add_offset(_dots(*self.tables(), users, items), items)

    @torch.no_grad()
    def predict(self, users: Tensor, items: Tensor, *, clip: bool = False) -> Tensor:
        """(n,) predicted ratings of (user, item) index pairs; clip=True keeps them on the rating scale.

        Raises:
            InputError: an index is not in the model.
        """
        products = pair_dots(*self.tables(), users, items)
        prediction = self.add_offset(products, items.to(products.device))
        return self.clip(prediction) if clip else prediction

    @torch.no_grad()
    def predict_observed(self, ratings: Ratings, *, clip: bool = False) -> Tensor:
        """(n_ratings,) predictions of the ratings' pairs by one sparse product, without gathering a factor."""
        prediction = self.add_offset(sampled_dot(ratings.by_user, *self.tables()), ratings.items)
        return self.clip(prediction) if clip else prediction

    def add_offset(self, prediction: Tensor, items: Tensor) -> Tensor:
        """Centred predictions, (n,), of these items' indices, (n,), as ratings: μ_i is added, in stars."""
        if self.offset is None:
            return prediction
        return prediction + _at(self.offset, items)

    def clip(self, prediction: Tensor) -> Tensor:
        """Predictions, of any shape, moved to the nearer end of the rating scale where they are off it."""
        return torch.minimum(torch.maximum(prediction, self.scale[0]), self.scale[1])

    def targets(self, ratings: Ratings) -> Tensor:
        """(n_ratings,) the ratings with the offset subtracted: what θ̃_j · x̃_i is to match."""
        if self.offset is None:
            return ratings.values
        return ratings.values - _at(self.offset, ratings.items)

    def terms(self, side: int) -> list[Term]:
        """The summands of a side's table, the rows' own before those of features."""
        name, k = SIDES[side], self.rank
        bias = slice(k, k + 1) if side == USER else slice(k + 1, k + 2)
        places: list[tuple[Features | None, str, str]] = []
        if side == USER or self.item_ids:
            places.append((None, f"{name}_factors.weight", f"{name}_bias.weight"))
        for kind, block in self.get_submodule(f"{name}_features").named_children():
            assert isinstance(block, Features)
            places.append((block, f"{name}_feature_factors.{kind}.weight", f"{name}_feature_bias.{kind}.weight"))
        return [
            Term(side, block, {factors: slice(0, k)} | ({bias_name: bias} if self.biases else {}))
            for block, factors, bias_name in places
        ]

    def table(self, term: Term, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """W̃ of a term, (n_rows or n_features, k): its parameters side by side, 0 between them; differentiable.

        Of the model's own parameters, or of others keyed like `named_parameters()`.
        """
        parameters = dict(self.named_parameters()) if parameters is None else parameters
        parts = [parameters[name] for name in term.columns]
        if self.biases:
            parts.insert(2 if term.side == USER else 1, torch.zeros_like(parts[1]))
        return torch.cat(parts, 1)

    @torch.no_grad()
    def assign(self, term: Term, table: Tensor) -> None:
        """Make W̃ of a term this table, laid out as `table` gives it; columns without a parameter are passed over."""
        for name, part in term.parts(table).items():
            self.get_parameter(name).copy_(part)

    @torch.no_grad()
    def project(self) -> None:
        """Where the model is non-negative, set factors and feature weights below 0 to 0."""
        if self.nonnegative:
            for name, parameter in self.named_parameters():
                if "_factors." in name:
                    parameter.clamp_(min=0)

    def tables(self, parameters: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Θ̃ (n_users, k) and X̃ (n_items, k) with θ̃_j · x̃_i = ŷ(i, j) − μ_i; k is rank, or rank + 2 with biases.

        Of the model's own parameters, or of others keyed like `named_parameters()`.
        """
        return self.side_table(USER, parameters), self.side_table(ITEM, parameters)

    def side_table(self, side: int, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Θ̃, of USER, or X̃, of ITEM, alone: (n_rows, k)."""
        products = [term.product(self.table(term, parameters)) for term in self.terms(side)]
        return sum(products[1:], products[0] + (1 - self.free_columns()[side]))

    def free_columns(self) -> tuple[Tensor, Tensor]:
        """(1, k) for Θ̃ and for X̃: 1 where a column belongs to a parameter, 0 where it is the constant 1."""
        free = [self.scale.new_ones(1, self.rank + 2 * self.biases) for _ in SIDES]
        if self.biases:
            free[USER][0, -1] = free[ITEM][0, -2] = 0
        return free[USER], free[ITEM]

    def gradients(self, users: Tensor, items: Tensor) -> dict[str, Tensor]:
        """From gradients in Θ̃ and X̃ to those in the parameters, keyed like `named_parameters()`: the chain rule.

        ∂J/∂W̃ = Fᵀ ∂J/∂Θ̃ for each term, of which the columns without a parameter drop out.
        """
        found: dict[str, Tensor] = {}
        for side, table in zip((USER, ITEM), (users, items), strict=True):
            for term in self.terms(side):
                found |= term.parts(term.pull(table))
        return found

    @property
    def all_terms(self) -> list[Term]:
        """The terms of both sides, the users' first."""
        return self.terms(USER) + self.terms(ITEM)

    @property
    def featured(self) -> bool:
        """Whether either side has features."""
        return any(term.features is not None for term in self.all_terms)

    @property
    def item_ids(self) -> bool:
        """Whether items have factors of their own, beside those of their features."""
        return self.item_factors is not None

    @torch.no_grad()
    def factors(self, side: int) -> Tensor:
        """(n_rows, rank) the users' or the items' factors, what features add to them included."""
        return self.tables()[side][:, : self.rank]


def centring_offset(ratings: Ratings, kind: str, damping: float = 5.0, mean: float | None = None) -> Tensor | None:
    """The offset that centres these ratings; μ is their mean unless another is given.

    "none" → None; "global" → () their mean μ; "item" → (n_items,) each item's damped mean
    μ_i = (Σ_j y_ij + damping · μ) / (n_i + damping), the plain mean of the texts at damping 0.  An item without ratings
    has μ.

    Raises:
        InputError: there is no such kind, or damping is negative.

    Examples:
        >>> ratings = Ratings(torch.tensor([0, 1, 0]), torch.tensor([0, 0, 1]), torch.tensor([5.0, 6.0, 1.0]))
        >>> centring_offset(ratings, "item", damping=2).tolist()  # (5 + 6 + 2·4)/(2 + 2) and (1 + 2·4)/(1 + 2)
        [4.75, 3.0]
    """
    if kind == "none":
        return None
    if damping < 0:
        raise InputError(f"damping {damping:g} is negative; 0 gives the plain mean of each item")
    values = ratings.values.double()
    mu = values.mean() if mean is None and len(values) else values.new_tensor(mean or 0.0)
    if kind == "global":
        return mu.to(ratings.values.dtype)
    if kind == "item":
        # A product rather than an index_add, whose order of summation a GPU does not fix.
        ones = torch.ones(ratings.n_users, 1, dtype=torch.float64, device=ratings.device)
        sums = matmul(ratings.by_item, values.index_select(0, ratings.item_order), ones)[:, 0]
        counts = ratings.item_counts
        means = (sums + damping * mu) / (counts + damping)
        return torch.where(counts > 0, means, mu).to(ratings.values.dtype)
    raise unknown("offset", kind, OFFSETS)


def check_indices(kind: str, indices: Tensor, size: int) -> None:
    """Raise InputError, naming the first one, unless all indices are in 0 … size-1."""
    wrong = indices[(indices < 0) | (indices >= size)]
    if len(wrong):
        raise InputError(f"{kind} index {int(wrong[0])} is not in this model ({size:,} {kind}s, from 0)")


def pair_dots(user_table: Tensor, item_table: Tensor, users: Tensor, items: Tensor) -> Tensor:
    """(n,) dot products of the tables' rows at n pairs of indices, a block of pairs at a time.

    Raises:
        InputError: an index is not in its table.
    """
    check_indices("user", users, len(user_table))
    check_indices("item", items, len(item_table))
    users, items = users.to(user_table.device), items.to(user_table.device)
    blocks = zip(users.split(PAIR_BLOCK), items.split(PAIR_BLOCK), strict=True)
    return (
        torch.cat([_dots(user_table, item_table, u, i) for u, i in blocks]) if len(users) else user_table.new_zeros(0)
    )


def _dots(user_table: Tensor, item_table: Tensor, users: Tensor, items: Tensor) -> Tensor:
    return (nn.functional.embedding(users, user_table) * nn.functional.embedding(items, item_table)).sum(-1)


def _at(offset: Tensor, items: Tensor) -> Tensor:
    return offset if offset.ndim == 0 else offset.index_select(0, items)


def _embedding(weight: Tensor) -> nn.Embedding:
    embedding: nn.Embedding = nn.Embedding.from_pretrained(weight, freeze=False)
    return embedding

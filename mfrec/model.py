"""The model: embedding tables of users and items, whose dot products are the predicted ratings.

    ŷ(i, j) = θ_j · x_i + b_j + b_i + μ_i

θ_j and x_i are rows of `user_factors` and `item_factors`, b_j and b_i of the optional `user_bias` and `item_bias`, and
μ_i is the offset that centring subtracted: nothing, the global mean, or each item's damped mean.

The biased model is a plain product of augmented tables, so that biases cost no second code path in any solver:

    Θ̃ = [θ, b_j, 1]    X̃ = [x, 1, b_i]    ŷ(i, j) − μ_i = θ̃_j · x̃_i

(Koren, Bell & Volinsky 2009, "Matrix factorization techniques for recommender systems", eq. 4.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mfrec.errors import InputError, unknown
from mfrec.ratings import Ratings
from mfrec.sparse import matmul, sampled_dot

# Pairs predicted at a time: bounds the gathered rows to 2 · 2^16 · rank numbers.
PAIR_BLOCK = 2**16

INITS: dict[str, Callable[[int, int, torch.Generator, torch.dtype], Tensor]] = {
    # Small enough that biases are learned first: from larger starts early stopping ends at a higher validation RMSE.
    "scaled-normal": lambda n, k, g, dtype: torch.randn(n, k, generator=g, dtype=dtype) * (0.1 / max(k, 1) ** 0.5),
    "small-normal": lambda n, k, g, dtype: torch.randn(n, k, generator=g, dtype=dtype) * 0.01,
    "uniform": lambda n, k, g, dtype: torch.rand(n, k, generator=g, dtype=dtype),
}
OFFSETS = ("none", "global", "item")


class MatrixFactorization(nn.Module):
    """Embedding tables of n_users users and n_items items with `rank` factors each.

    Args:
        rank: number of latent factors; 0 leaves the biases and the offset alone.
        biases: whether users and items have a bias.
        offset: () or (n_items,) what is added to every prediction; see `centring_offset`.
        scale: lowest and highest possible rating, for `predict(clip=True)`.
        init: how the factors start, a name in `INITS`; biases start at zero.
        generator: the source of the start, on the CPU whatever the model's device, so that devices start alike.
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
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.user_factors = _embedding(INITS[init](n_users, rank, generator, dtype))
        self.item_factors = _embedding(INITS[init](n_items, rank, generator, dtype))
        self.user_bias = _embedding(torch.zeros(n_users, 1, dtype=dtype)) if biases else None
        self.item_bias = _embedding(torch.zeros(n_items, 1, dtype=dtype)) if biases else None
        self.register_buffer("offset", None if offset is None else offset.to(dtype))
        self.register_buffer("scale", torch.tensor(scale, dtype=dtype))

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
        init: str = "scaled-normal",
        generator: torch.Generator | None = None,
    ) -> MatrixFactorization:
        """A model of the ratings' size, dtype and device, centred by them.

        Users and items without a rating start at zero factors, where the minimum of the cost has them, and so are
        predicted by the offset and the other side's bias.
        """
        model = cls(
            ratings.n_users,
            ratings.n_items,
            rank,
            biases=biases,
            offset=centring_offset(ratings, offset, damping),
            scale=scale,
            init=init,
            generator=generator,
            dtype=ratings.values.dtype,
        ).to(ratings.device)
        with torch.no_grad():
            model.user_factors.weight[ratings.user_counts == 0] = 0
            model.item_factors.weight[ratings.item_counts == 0] = 0
        return model

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> MatrixFactorization:
        """The model that `state_dict()` describes, sizes and all."""
        users, items = state["user_factors.weight"], state["item_factors.weight"]
        model = cls(
            len(users),
            len(items),
            users.shape[1],
            biases="user_bias.weight" in state,
            offset=state.get("offset"),
            dtype=users.dtype,
        )
        model.load_state_dict(state)
        return model.to(users.device)

    @property
    def n_users(self) -> int:
        return self.user_factors.num_embeddings

    @property
    def n_items(self) -> int:
        return self.item_factors.num_embeddings

    @property
    def rank(self) -> int:
        return self.user_factors.embedding_dim

    def extra_repr(self) -> str:
        return f"rank={self.rank}, biases={self.user_bias is not None}"

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """(n,) predicted ratings of (user, item) index pairs, differentiable through the embeddings."""
        prediction = (self.user_factors(users) * self.item_factors(items)).sum(-1)
        if self.user_bias is not None and self.item_bias is not None:
            prediction = prediction + self.user_bias(users).squeeze(-1) + self.item_bias(items).squeeze(-1)
        return self.add_offset(prediction, items)

    @torch.no_grad()
    def predict(self, users: Tensor, items: Tensor, *, clip: bool = False) -> Tensor:
        """(n,) predicted ratings of (user, item) index pairs; clip=True keeps them on the rating scale.

        Raises:
            InputError: an index is not in the model.
        """
        check_indices("user", users, self.n_users)
        check_indices("item", items, self.n_items)
        users, items = users.to(self.scale.device), items.to(self.scale.device)
        blocks = zip(users.split(PAIR_BLOCK), items.split(PAIR_BLOCK), strict=True)
        prediction = torch.cat([self(u, i) for u, i in blocks]) if len(users) else self.scale.new_zeros(0)
        return self.clip(prediction) if clip else prediction

    @torch.no_grad()
    def predict_observed(self, ratings: Ratings, *, clip: bool = False) -> Tensor:
        """(n_ratings,) predictions of the ratings' pairs by one sparse product, without gathering a factor."""
        prediction = self.add_offset(sampled_dot(ratings.by_user, *self.tables()), ratings.items)
        return self.clip(prediction) if clip else prediction

    def add_offset(self, prediction: Tensor, items: Tensor) -> Tensor:
        if self.offset is None:
            return prediction
        return prediction + _at(self.offset, items)

    def clip(self, prediction: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(prediction, self.scale[0]), self.scale[1])

    def targets(self, ratings: Ratings) -> Tensor:
        """(n_ratings,) the ratings with the offset subtracted: what θ̃_j · x̃_i is to match."""
        if self.offset is None:
            return ratings.values
        return ratings.values - _at(self.offset, ratings.items)

    def tables(self) -> tuple[Tensor, Tensor]:
        """Θ̃ (n_users, k) and X̃ (n_items, k) with θ̃_j · x̃_i = ŷ(i, j) − μ_i; k is rank, or rank + 2 with biases."""
        users, items = self.user_factors.weight, self.item_factors.weight
        if self.user_bias is None or self.item_bias is None:
            return users, items
        ones_u, ones_i = (torch.ones_like(bias.weight) for bias in (self.user_bias, self.item_bias))
        return torch.cat([users, self.user_bias.weight, ones_u], 1), torch.cat(
            [items, ones_i, self.item_bias.weight], 1
        )

    def free_columns(self) -> tuple[Tensor, Tensor]:
        """(1, k) for Θ̃ and for X̃: 1 where a column belongs to a parameter, 0 where it is the constant 1."""
        free = [torch.zeros_like(table[:1]) for table in self.tables()]
        for columns in self.columns(*free).values():
            columns.fill_(1.0)
        return free[0], free[1]

    def columns(self, user_table: Tensor, item_table: Tensor) -> dict[str, Tensor]:
        """Of two tables laid out like `tables()`, the columns of each parameter, keyed like `named_parameters()`.

        Views, not copies.  Applied to the gradients in Θ̃ and X̃ it is the chain rule: the columns of ones have no
        parameter and drop out.
        """
        k = self.rank
        columns = {"user_factors.weight": user_table[:, :k], "item_factors.weight": item_table[:, :k]}
        if self.user_bias is not None:
            columns["user_bias.weight"] = user_table[:, k : k + 1]
            columns["item_bias.weight"] = item_table[:, k + 1 :]
        return columns


def centring_offset(ratings: Ratings, kind: str, damping: float = 5.0) -> Tensor | None:
    """The offset that centres these ratings.

    "none" → None; "global" → () their mean μ; "item" → (n_items,) each item's damped mean
    μ_i = (Σ_j y_ij + damping · μ) / (n_i + damping), the plain mean of the texts at damping 0.  An item without ratings
    has μ.
    """
    if kind == "none":
        return None
    if damping < 0:
        raise InputError(f"damping {damping:g} is negative; 0 gives the plain mean of each item")
    mean = ratings.values.double().mean() if len(ratings) else ratings.values.new_zeros((), dtype=torch.float64)
    if kind == "global":
        return mean.to(ratings.values.dtype)
    if kind == "item":
        # A product rather than an index_add, whose order of summation a GPU does not fix.
        ones = torch.ones(ratings.n_users, 1, dtype=torch.float64, device=ratings.device)
        sums = matmul(ratings.by_item, ratings.values.double().index_select(0, ratings.item_order), ones)[:, 0]
        counts = ratings.item_counts
        means = (sums + damping * mean) / (counts + damping)
        return torch.where(counts > 0, means, mean).to(ratings.values.dtype)
    raise unknown("offset", kind, OFFSETS)


def check_indices(kind: str, indices: Tensor, size: int) -> None:
    """Raise InputError, naming the first one, unless all indices are in 0 … size-1."""
    wrong = indices[(indices < 0) | (indices >= size)]
    if len(wrong):
        raise InputError(f"{kind} index {int(wrong[0])} is not in this model ({size:,} {kind}s, from 0)")


def _at(offset: Tensor, items: Tensor) -> Tensor:
    return offset if offset.ndim == 0 else offset.index_select(0, items)


def _embedding(weight: Tensor) -> nn.Embedding:
    embedding: nn.Embedding = nn.Embedding.from_pretrained(weight, freeze=False)
    return embedding

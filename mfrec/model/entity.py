"""Entities: users and items as modules, each with factors, a bias and feature blocks.

An entity's augmented factors are a sum of terms: the rows' own factors, and for each block F of features F times its
weights,

    Θ̃ = P̃ + F₁ W̃₁ + F₂ W̃₂ + … + [0, 0, 1]

each laid out like Θ̃.  Solvers see an entity as its terms; the rows' own factors are the term whose F is the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mfrec.data.features import Features
from mfrec.data.ratings import HeldIndices
from mfrec.errors import InputError

USER, ITEM = 0, 1
ENTITY_NAMES = ("user", "item")

# Makes initial factors of shape (n_rows, rank).
Init = Callable[[int], Tensor]
INITS: dict[str, Callable[[int, int, torch.Generator, torch.dtype], Tensor]] = {
    # Small enough that biases are learned first: from larger factors early stopping ends at a higher validation RMSE.
    "scaled-normal": lambda n, k, g, dtype: torch.randn(n, k, generator=g, dtype=dtype) * (0.1 / max(k, 1) ** 0.5),
    "small-normal": lambda n, k, g, dtype: torch.randn(n, k, generator=g, dtype=dtype) * 0.01,
    "uniform": lambda n, k, g, dtype: torch.rand(n, k, generator=g, dtype=dtype),
    # For factors that are assigned later: as a start for training, it is a saddle of J.
    "zeros": lambda n, k, g, dtype: torch.zeros(n, k, dtype=dtype),
}

# Rows drawn at a time where some of them are held.  A multiple of 16, the numbers that torch draws together, so that
# the numbers are those of one draw.
DRAWN_ROWS = 2**16


def initial_factors(
    init: str,
    n: int,
    *,
    rank: int,
    nonnegative: bool,
    generator: torch.Generator,
    dtype: torch.dtype,
    held: HeldIndices | None = None,
) -> Tensor:
    """(n, rank) initial factors.

    Args:
        init: a name in `INITS`.
        nonnegative: whether the factors are the absolute values.
        held: if the n rows are some of more: the numbers are those of all rows, which are drawn block by block.
    """
    if held is None:
        factors = INITS[init](n, rank, generator, dtype)
    else:
        factors = torch.cat(list(_held_factors(init, rank, generator, dtype, held)))
    return factors.abs() if nonnegative else factors


def _held_factors(
    init: str, rank: int, generator: torch.Generator, dtype: torch.dtype, held: HeldIndices
) -> Iterator[Tensor]:
    # The last block has the remaining rows too: torch draws fewer than 16 numbers in another way.
    edges = [0, *(DRAWN_ROWS * n for n in range(1, held.n_all // DRAWN_ROWS)), held.n_all]
    bounds = torch.searchsorted(held.indices, torch.tensor(edges)).tolist()
    for (first, end), rows in zip(pairwise(edges), pairwise(bounds), strict=True):
        block = INITS[init](end - first, rank, generator, dtype)
        yield block[held.indices[slice(*rows)] - first]


class Term(NamedTuple):
    """One summand F W̃ of an entity's augmented factors, (n_rows, k).

    entity: USER or ITEM.
    features: F, or None for the identity, so that W̃ has a row for every user or item.
    factors, bias: the names of the parameters that W̃ consists of; bias is None in a model without biases.
    columns: the columns of each parameter in W̃; the others are 0.
    """

    entity: int
    features: Features | None
    factors: str
    bias: str | None
    columns: dict[str, slice]

    @property
    def row_entity(self) -> int | None:
        """The entity whose rows are those of W̃; None if W̃ has a row for each feature."""
        return self.entity if self.features is None else None

    def product(self, weights: Tensor) -> Tensor:
        """F W̃, (n_rows, k); differentiable."""
        if self.features is None:
            return weights
        product: Tensor = _FeatureProduct.apply(weights, self.features)  # type: ignore[no-untyped-call]
        return product

    def rmatmul(self, rows: Tensor) -> Tensor:
        """Fᵀ G, shaped like W̃: the gradient with respect to W̃, given the gradient G, (n_rows, k), in the rows."""
        return rows if self.features is None else self.features.rmatmul(rows)

    def split(self, weights: Tensor) -> dict[str, Tensor]:
        """The columns of each parameter in a tensor laid out like W̃, as views, by parameter name."""
        return {name: weights[:, columns] for name, columns in self.columns.items()}


class FeatureBlock(nn.Module):
    """A block of features F, and the weights W̃ that its features have.

    Args:
        features: F; it follows the module's device and dtype, and does not belong to its state.
        factors: (n_features, rank) initial weights.
        biases: whether each feature has a bias, initially 0.
    """

    def __init__(self, features: Features, factors: Tensor, biases: bool) -> None:
        super().__init__()
        self.features = features.to(dtype=factors.dtype)
        self.factors = embedding(factors)
        self.bias = embedding(factors.new_zeros(len(factors), 1)) if biases else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FeatureBlock:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.features = self.features.apply(fn)
        return self


class Entity(nn.Module):
    """The users or the items of a model.

    Args:
        index: USER or ITEM.
        n_rows: the number of users or items.
        rank: the number of factors.
        init: makes initial factors.
        biases: whether rows and features have a bias, initially 0.
        ids: whether rows have factors and a bias of their own, besides those of their features.
        features: blocks of features by name.

    Attributes:
        factors: embedding of shape (n_rows, rank); None without ids.
        bias: embedding of shape (n_rows, 1), or None.
        features: `FeatureBlock`s by name.

    Raises:
        InputError: features do not have one row for each user or item.
    """

    features: nn.ModuleDict

    def __init__(
        self,
        index: int,
        n_rows: int,
        rank: int,
        init: Init,
        *,
        biases: bool = True,
        ids: bool = True,
        features: Mapping[str, Features] | None = None,
    ) -> None:
        super().__init__()
        self.index, self.n_rows, self.rank, self.biases = index, n_rows, rank, biases
        self.factors = embedding(init(n_rows)) if ids else None
        self.bias = embedding(self.factors.weight.new_zeros(n_rows, 1)) if biases and self.factors is not None else None
        blocks = {}
        for name, block in (features or {}).items():
            if block.n_rows != n_rows:
                raise InputError(
                    f"{name} features must have a row for each of {n_rows:,} {ENTITY_NAMES[index]}s "
                    f"(got {block.n_rows:,})"
                )
            # All-zero factors are a saddle of J: rows without factors of their own need weights that are not 0.
            n = block.n_features
            weights = init(n) if self.factors is None else self.factors.weight.new_zeros(n, rank)
            blocks[name] = FeatureBlock(block, weights, biases)
        self.features = nn.ModuleDict(blocks)

    def extra_repr(self) -> str:
        return f"{self.n_rows:,} {ENTITY_NAMES[self.index]}s"

    @property
    def feature_blocks(self) -> dict[str, FeatureBlock]:
        """The feature blocks by name."""
        return {name: block for name, block in self.features.items() if isinstance(block, FeatureBlock)}

    @property
    def terms(self) -> list[Term]:
        """The summands of the augmented factors, the rows' own before those of features."""
        prefix = f"{ENTITY_NAMES[self.index]}s"
        paths: list[tuple[str, Features | None]] = [] if self.factors is None else [(prefix, None)]
        paths += [(f"{prefix}.features.{name}", block.features) for name, block in self.feature_blocks.items()]
        return [self._term(path, features) for path, features in paths]

    def _term(self, path: str, features: Features | None) -> Term:
        factors, bias = f"{path}.factors.weight", f"{path}.bias.weight"
        columns = {factors: slice(0, self.rank)}
        if self.biases:
            # Θ̃ = [θ, b, 1] and X̃ = [x, 1, b].
            columns[bias] = slice(self.rank + self.index, self.rank + self.index + 1)
        return Term(self.index, features, factors, bias if self.biases else None, columns)


def entity_of(name: str) -> int | None:
    """The entity that a parameter or buffer of a model belongs to, by its name; None if to neither.

    Examples:
        >>> entity_of("users.bias.weight"), entity_of("items.factors.weight"), entity_of("rating_range")
        (0, 1, None)
    """
    module = name.partition(".")[0]
    return next((entity for entity, each in enumerate(ENTITY_NAMES) if module == f"{each}s"), None)


def embedding(weight: Tensor) -> nn.Embedding:
    """A trainable embedding of this weight, (n_rows, k)."""
    module: nn.Embedding = nn.Embedding.from_pretrained(weight, freeze=False)
    return module


class _FeatureProduct(torch.autograd.Function):
    """F W; its backward pass is Fᵀ."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, features: Features) -> Tensor:
        ctx.features = features
        return features.matrix @ weights

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.features.rmatmul(grad), None

"""Features: what is known of users and items beside their ratings, as sparse rows × features matrices F.

A side's factors become Θ = P + F W, where the row P_j is the user's own and W has a row of factors for each feature
(biases likewise), so that one mechanism is all of these:

    F_u = who rated what, scaled by 1/√n        SVD++ (Koren 2008, "Factorization meets the neighborhood", eq. 15)
    F_i = who was it rated by, scaled by 1/√n   its mirror image
    genres, years, ages, occupations            side information
    F_i alone, without P                        content-based filtering: an item is its genres and its year

A row of F with unit length (one-hot, or 1/√n in each of n places) lets W be regularized like the factors it adds to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mfrec.data.dataset import Dataset
from mfrec.data.frames import is_missing
from mfrec.data.ratings import Pattern, Ratings
from mfrec.errors import InputError, unknown
from mfrec.sparse import matmul

# The name of the block of features that says who rated what.
IMPLICIT_BLOCK = "implicit"
IMPLICIT = ("none", "users", "items", "both")
# Numbers with more distinct values than this are cut into as many bins of about equal size.
BINS = 24


class Features(nn.Module):
    """A sparse matrix F of n_rows × n_features, and its transpose.

    A module without parameters, so that it follows a model from device to device; it is data, and so no part of the
    model's `state_dict()`.

    Args:
        rows, columns, values: (n_entries,) the entries of F; a (row, column) pair occurs once.
        n_rows: the number of users or items.
        names: what each feature is, such as "genre Drama".

    Raises:
        InputError: as of `Ratings`, which sorts the entries: one is repeated, outside the matrix, or not finite.
    """

    crow: Tensor
    col: Tensor
    values: Tensor
    crow_t: Tensor
    col_t: Tensor
    values_t: Tensor

    def __init__(self, rows: Tensor, columns: Tensor, values: Tensor, n_rows: int, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        # Ratings are what sorts, checks and transposes entries; here a "user" is a row and an "item" a feature.
        entries = Ratings(rows, columns, values, n_rows, len(self.names))
        by_row, by_feature = entries.by_user, entries.by_item
        transposed = entries.values.index_select(0, entries.item_order)
        tensors = (by_row.crow, by_row.col, entries.values, by_feature.crow, by_feature.col, transposed)
        for name, tensor in zip(("crow", "col", "values", "crow_t", "col_t", "values_t"), tensors, strict=True):
            self.register_buffer(name, tensor, persistent=False)

    @property
    def n_rows(self) -> int:
        """The number of users or items, those without a feature too."""
        return len(self.crow) - 1

    @property
    def n_features(self) -> int:
        """The number of columns of F, and of rows of its weights W."""
        return len(self.names)

    @property
    def pattern(self) -> Pattern:
        """Rows × features; its entries are in the order of `values`."""
        return Pattern(self.crow, self.col, (self.n_rows, self.n_features))

    @property
    def transposed(self) -> Pattern:
        """Features × rows; its entries are in the order of `values_t`."""
        return Pattern(self.crow_t, self.col_t, (self.n_features, self.n_rows))

    def extra_repr(self) -> str:
        return f"{self.n_rows:,} rows × {self.n_features:,} features, {len(self.values):,} entries"

    def forward(self, weights: Tensor) -> Tensor:
        """F W, (n_rows, k), of weights (n_features, k); differentiable in them."""
        product: Tensor = _Product.apply(weights, self)  # type: ignore[no-untyped-call]
        return product

    def pull(self, rows: Tensor) -> Tensor:
        """Fᵀ G, (n_features, k), of a table (n_rows, k): how a change of the weights sees a gradient in the rows."""
        return matmul(self.transposed, self.values_t, rows)

    def pull_squares(self, rows: Tensor) -> Tensor:
        """(F ∘ F)ᵀ G, (n_features, k)."""
        return matmul(self.transposed, self.values_t.square(), rows)

    def pull_bound(self, curvatures: Tensor) -> Tensor:
        """(n_features, 1) a diagonal that bounds Fᵀ diag(n) F from above, of curvatures n ≥ 0 of the rows, (n_rows, 1).

        Σ_r |F_rf| ‖F_r‖₁ n_r: steps that each feature could take alone stay safe when all take them at once.
        """
        sizes = self.values.abs()
        ones = torch.ones(self.n_features, 1, dtype=sizes.dtype, device=sizes.device)
        return matmul(self.transposed, self.values_t.abs(), matmul(self.pattern, sizes, ones) * curvatures)

    def select(self, rows: Tensor) -> Features:
        """F of these rows alone, in this order."""
        place = torch.full((self.n_rows,), -1, dtype=torch.long, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        found = place[self.pattern.row.long()]
        kept = found >= 0
        return Features(found[kept], self.col[kept], self.values[kept], len(rows), self.names)


class _Product(torch.autograd.Function):
    """F W, whose backward pass is Fᵀ."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, features: Features) -> Tensor:
        ctx.features = features
        return matmul(features.pattern, features.values, weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.features.pull(grad), None


def implicit_features(ratings: Ratings, side: str) -> Features:
    """Which items each user rated (side "users"), or which users rated each item ("items"), 1/√n in each of n places.

    From these ratings alone: give the training part, and nothing of the others is seen.

    Raises:
        InputError: side is neither.

    Examples:
        >>> ratings = Ratings(torch.tensor([0, 0, 0, 0, 1]), torch.arange(5), torch.ones(5))
        >>> features = implicit_features(ratings, "users")
        >>> features.names[:2]
        ('rated item 0', 'rated item 1')
        >>> features.values.tolist()  # 1/√4 for each of the first user's four ratings, 1/√1 for the second's one
        [0.5, 0.5, 0.5, 0.5, 1.0]
    """
    if side == "users":
        pattern, names = ratings.by_user, [f"rated item {i}" for i in range(ratings.n_items)]
    elif side == "items":
        pattern, names = ratings.by_item, [f"rated by user {j}" for j in range(ratings.n_users)]
    else:
        raise unknown("side of implicit features", side, ("users", "items"))
    scaled = pattern.counts.clamp_min(1).to(ratings.values.dtype).rsqrt()
    return Features(pattern.row, pattern.col, scaled.index_select(0, pattern.row), pattern.shape[0], names)


def column_features(column: pd.Series, n_bins: int = BINS, like: pd.Series | None = None) -> Features:
    """The features that a column of a table of users or items amounts to, by what it holds.

        texts            a feature each (one-hot)
        tuples of texts  a feature each, 1/√n in each of a row's n places
        numbers          a feature for each value, or where they are more than n_bins for each of as many bins of about
                         as many rows each (one-hot)

    A row whose value is missing has no feature.

    Args:
        like: the column that says which features there are, by default this one.  What others hold beside them is no
            feature; numbers go to the bin they fall in.

    Raises:
        InputError: there are no values, or one is not a number where the column's others are.

    Examples:
        >>> genres = pd.Series([("Comedy", "Drama", "Horror", "War"), ("Drama",), ()], name="genres")
        >>> features = column_features(genres)
        >>> features.names
        ('genres Comedy', 'genres Drama', 'genres Horror', 'genres War')
        >>> features(torch.eye(4)).tolist()  # F, of which the last row has nothing
        [[0.5, 0.5, 0.5, 0.5], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    like = column if like is None else like
    name, known = str(like.name), [value for value in like if not is_missing(value)]
    if not known:
        raise InputError(f"column {name!r} has no values; leave it out of the features")
    labels_of = _labeller(known, n_bins)
    labels = {label: n for n, label in enumerate(sorted({label for value in known for label in labels_of(value)}))}
    if not labels:
        raise InputError(f"column {name!r} has no values; leave it out of the features")
    sets = [() if is_missing(value) else [labels[one] for one in labels_of(value) if one in labels] for value in column]
    rows = [row for row, found in enumerate(sets) for _ in found]
    columns = [label for found in sets for label in found]
    values = [len(found) ** -0.5 for found in sets for _ in found]
    entries = torch.tensor(rows, dtype=torch.long), torch.tensor(columns, dtype=torch.long), torch.tensor(values)
    return Features(*entries, len(column), [f"{name} {label}" for label in labels])


def _labeller(known: Sequence[Any], n_bins: int) -> Callable[[Any], tuple[str, ...]]:
    """What turns a value of a column that has these values into the labels of its features."""
    if any(isinstance(value, tuple) for value in known):
        return lambda value: tuple(dict.fromkeys(value if isinstance(value, tuple) else (value,)))
    if not all(isinstance(value, int | float | np.number) for value in known):
        return lambda value: (str(value),)
    numbers = np.array([float(value) for value in known])
    distinct = np.unique(numbers)
    edges = distinct[:-1]
    if len(distinct) > n_bins:
        edges = np.unique(np.quantile(numbers, np.linspace(0, 1, n_bins + 1)[1:-1], method="lower"))
    places, named = np.searchsorted(edges, numbers), {}
    for place in np.unique(places):
        low, high = numbers[places == place].min(), numbers[places == place].max()
        # Named by lowest and highest with all their digits, for bins of one name would be one feature.
        named[int(place)] = f"{low:.15g}" if low == high else f"{low:.15g} to {high:.15g}"

    def bin_of(value: Any) -> tuple[str, ...]:
        try:
            return (named[min(int(np.searchsorted(edges, float(value))), max(named))],)
        except (TypeError, ValueError):
            raise InputError(f"{value!r} is not a number, as the others of its column are; give one") from None

    return bin_of


def joined(blocks: Sequence[Features]) -> Features:
    """Blocks side by side, scaled so that a row with a feature of unit length in each of m blocks has unit length.

    Raises:
        InputError: the blocks differ in their number of rows, or there are none.
    """
    if len({block.n_rows for block in blocks}) != 1:
        raise InputError(f"features of {', '.join(str(block.n_rows) for block in blocks)} rows cannot stand in one row")
    starts = np.cumsum([0, *(block.n_features for block in blocks)])
    return Features(
        torch.cat([block.pattern.row for block in blocks]),
        torch.cat([block.col + int(start) for block, start in zip(blocks, starts, strict=False)]),
        torch.cat([block.values for block in blocks]) / len(blocks) ** 0.5,
        blocks[0].n_rows,
        [name for block in blocks for name in block.names],
    )


def dataset_features(
    dataset: Dataset,
    train: Ratings,
    implicit: str = "none",
    user_columns: str | Sequence[str] = (),
    item_columns: str | Sequence[str] = (),
) -> tuple[dict[str, Features], dict[str, Features]]:
    """The users' and the items' features by name: "implicit" from the training ratings, "side" from the tables.

    Args:
        implicit: "none", "users", "items" or "both".
        user_columns, item_columns: columns of `dataset.users` and of `dataset.items`, as a sequence or "genres,year".

    Raises:
        InputError: a table has no such column; the message lists those it has.
    """
    users = side_features("users", dataset, train, implicit, user_columns)
    return users, side_features("items", dataset, train, implicit, item_columns)


def side_features(
    side: str,
    dataset: Dataset,
    ratings: Ratings,
    implicit: str,
    columns: str | Sequence[str],
    new: pd.DataFrame | None = None,
) -> dict[str, Features]:
    """The features by name of one side, "users" or "items".

    Args:
        ratings: the training part; for new rows, theirs.
        new: a row each new user or item, for its features in place of the dataset's: the same ones, of what columns
            the frame has.

    Raises:
        InputError: there is no such kind of implicit features, or no such column; or as of `column_features`.
    """
    if implicit not in IMPLICIT:
        raise unknown("side of implicit features", implicit, IMPLICIT)
    found, blocks = {}, []
    if implicit in (side, "both"):
        found[IMPLICIT_BLOCK] = implicit_features(ratings, side)
    for name in (name.strip() for name in (columns.split(",") if isinstance(columns, str) else columns)):
        if name:
            like = _column(dataset, side, name)
            blocks.append(column_features(like if new is None else _or_missing(new, name), like=like))
    if blocks:
        found["side"] = joined(blocks)
    return {name: features.to(ratings.device, ratings.values.dtype) for name, features in found.items()}


def _column(dataset: Dataset, side: str, column: str) -> pd.Series:
    table = dataset.users if side == "users" else dataset.items
    if column in table:
        return table[column]
    if not len(table.columns):
        raise InputError(f"{dataset.name} knows nothing of its {side}, so not their {column!r}; leave it out")
    raise unknown(f"column of the {side} of {dataset.name}", column, [str(c) for c in table.columns if c != "title"])


def _or_missing(table: pd.DataFrame, column: str) -> pd.Series:
    return table[column] if column in table else pd.Series([None] * len(table), name=column, dtype=object)

"""The items with the highest predictions, and the most similar rows: exact, in blocks, never users × items at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.inference.selection import largest, tiled
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.pair_products import check_indices

# Scores held at a time: 2^25 in float32 are 128 MiB.
SCORES = 2**25
# Scores mapped to ratings at a time, which takes several times their memory.
MAPPED = 2**20

Block = tuple[Tensor, Tensor, Tensor]


def top_k(
    model: MatrixFactorization,
    users: Tensor,
    n: int = 10,
    exclude: Ratings | None = None,
    *,
    candidates: Tensor | None = None,
    clip: bool = False,
) -> tuple[Tensor, Tensor]:
    """The n items with the highest predictions for each user, best first; ties go to the lower index.

    Args:
        users: (n_rows,) user indices.
        exclude: ratings whose items are not recommended to their users.
        candidates: (n_items,) bool, which items may be recommended; all by default.
        clip: whether to move the predictions into the rating range, after ranking.

    Returns:
        (n_rows, min(n, n_items)) item indices and their predicted ratings.  A row with fewer items left ends in index
        −1 and prediction −∞.

    Raises:
        InputError: a user is not in the model, n is below 1, or candidates are not a bool for each item.

    Examples:
        >>> factors = torch.tensor([[1.0]]), torch.tensor([[2.0], [5.0], [3.0]])
        >>> model = MatrixFactorization.from_augmented_factors(
        ...     *factors, biases=False, offset=None, rating_range=torch.tensor([1.0, 5.0])
        ... )
        >>> items, predictions = top_k(model, torch.tensor([0]), n=2)
        >>> items.tolist(), predictions.tolist()
        ([[1, 2]], [[5.0, 3.0]])
        >>> rated = Ratings(torch.tensor([0]), torch.tensor([1]), torch.tensor([4.0]), n_users=1, n_items=3)
        >>> top_k(model, torch.tensor([0]), n=2, exclude=rated)[0].tolist()
        [[2, 0]]
    """
    return _joined(top_k_blocks(model, users, n, exclude, candidates=candidates, clip=clip))


@torch.no_grad()
def top_k_blocks(
    model: MatrixFactorization,
    users: Tensor,
    n: int = 10,
    exclude: Ratings | None = None,
    *,
    candidates: Tensor | None = None,
    clip: bool = False,
    scores_held: int | None = None,
) -> Iterator[Block]:
    """`top_k` for one block of users after another, for results too large to hold at once.

    Args:
        scores_held: how many scores to hold at a time, but at least one user's; `SCORES` by default.

    Yields:
        (n_rows,) users, in the given order, and what `top_k` returns for them.

    Raises:
        InputError: as for `top_k`, when the first block is asked for.
    """
    check_indices("user", users, model.n_users)
    user_factors, item_factors = model.augmented_factors()
    users = users.to(item_factors.device).long()
    queries = user_factors[users]
    if model.offset is not None:
        # One more column of the product adds it, instead of another pass over the scores.
        queries = pad(queries, (0, 1), value=1.0)
        item_factors = torch.cat([item_factors, model.offset.expand(model.n_items)[:, None]], 1)
    seen = None if exclude is None else partial(_entries, exclude)
    # Scores are predictions, unless the model maps them to ratings.
    to_ratings = None if type(model).to_ratings is MatrixFactorization.to_ratings else model.to_ratings
    products = _best_products(users, queries, item_factors, n, seen, candidates, scores_held, to_values=to_ratings)
    for block, items, predictions in products:
        yield block, items, model.clip(predictions).where(items >= 0, predictions) if clip else predictions


def similar(
    factors: Tensor, rows: Tensor, n: int = 10, candidates: Tensor | None = None, kind: str = "item"
) -> tuple[Tensor, Tensor]:
    """The n rows most similar by cosine to each of some rows, without the row itself, most similar first.

        cos(a, b) = a · b / (‖a‖ ‖b‖)

    Args:
        factors: (n_rows, rank), for example `MatrixFactorization.factors`; a row of zeros has cosine 0 with every row.
        rows: (m,) indices of rows.
        candidates: (n_rows,) bool, which rows may be answers; all by default.
        kind: the word for a row in messages, "item" or "user".

    Returns:
        (m, min(n, n_rows)) indices and cosines; a row with fewer candidates ends in index −1 and cosine −∞.

    Raises:
        InputError: an index is out of range, n is below 1, or candidates are not a bool for each row.

    Examples:
        >>> factors = torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 0.0]])
        >>> indices, cosines = similar(factors, torch.tensor([0]), n=2)
        >>> indices.tolist(), cosines.tolist()
        ([[2, 1]], [[1.0, 0.0]])
    """
    return _joined(similar_blocks(factors, rows, n, candidates, kind))


@torch.no_grad()
def similar_blocks(
    factors: Tensor,
    rows: Tensor,
    n: int = 10,
    candidates: Tensor | None = None,
    kind: str = "item",
    *,
    scores_held: int | None = None,
) -> Iterator[Block]:
    """`similar` for one block of rows after another.

    Args:
        scores_held: how many scores to hold at a time, but at least one row's; `SCORES` by default.

    Yields:
        (n_rows,) rows, in the given order, and what `similar` returns for them.

    Raises:
        InputError: as for `similar`, when the first block is asked for.
    """
    check_indices(kind, rows, len(factors))
    rows = rows.to(factors.device).long()
    unit = torch.nn.functional.normalize(factors, dim=1)

    def itself(block: Tensor) -> tuple[Tensor, Tensor]:
        return torch.arange(len(block), device=block.device), block

    yield from _best_products(rows, unit[rows], unit, n, itself, candidates, scores_held, kind)


def _joined(blocks: Iterator[Block]) -> tuple[Tensor, Tensor]:
    _, indices, values = zip(*blocks, strict=True)
    return torch.cat(indices), torch.cat(values)


def _best_products(
    rows: Tensor,
    queries: Tensor,
    factors: Tensor,
    n: int,
    excluded: Callable[[Tensor], tuple[Tensor, Tensor]] | None,
    candidates: Tensor | None,
    scores_held: int | None,
    kind: str = "item",
    to_values: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Iterator[Block]:
    """For one block of rows after another: the min(n, size) indices with the largest query · factors[index].

    Args:
        rows: (m,) labels of the rows.
        queries: (m, k), one for each of the rows.
        factors: (size, k).
        excluded: gives, for a block of rows, (positions in the block, indices of factors) that do not count.
        candidates: (size,) bool, which indices count; all by default.
        to_values: gives the values to rank by, from products and the rows and indices that broadcast to them.

    Yields:
        Rows, indices and products, largest first; ties go to the lower index.  A row with fewer products that count
        ends in index −1 and product −∞.
    """
    size, device = len(factors), factors.device
    n = checked_n(n, size)
    kept = torch.arange(size, device=device)
    kept = kept if candidates is None else kept[checked_candidates(candidates, size, kind).to(device)]
    column = torch.full((size,), -1, device=device).index_copy_(0, kept, torch.arange(len(kept), device=device))
    tiles = tiled(factors if candidates is None else factors[kept], n)
    n_tiles, width, _ = tiles.shape
    first_empty = len(kept) - (n_tiles - 1) * width
    kept = pad(kept, (0, width - first_empty), value=-1)
    at_once = max(1, (SCORES if scores_held is None else scores_held) // len(kept))
    held = factors.new_empty(min(at_once, len(rows)) * len(kept))
    for block, block_queries in zip(rows.split(at_once), queries.split(at_once), strict=True):
        # Always in the same memory: the system takes longer to hand out new pages than BLAS to fill them.
        scores = held[: len(block) * len(kept)].view(n_tiles, len(block), width)
        torch.bmm(block_queries.expand(n_tiles, -1, -1), tiles.mT, out=scores)
        if to_values is not None:
            _map(scores, block, kept.view(n_tiles, width), to_values)
        scores[-1, :, first_empty:] = -torch.inf
        if excluded is not None:
            row, index = excluded(block)
            position = column[index]
            row, position = row[position >= 0], position[position >= 0]
            scores[position // width, row, position % width] = -torch.inf
        values, columns = largest(scores, n)
        yield block, kept[columns].masked_fill_(values == -torch.inf, -1), values


def _map(scores: Tensor, rows: Tensor, indices: Tensor, to_values: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Replace scores, (n_tiles, n_rows, width), by the values of their rows and indices, (n_tiles, width)."""
    at_once = max(1, MAPPED // scores.shape[2])
    for tile, columns in zip(scores, indices.clamp_min(0), strict=True):
        for part, some_rows in zip(tile.split(at_once), rows.split(at_once), strict=True):
            part.copy_(to_values(part, some_rows[:, None], columns))


def checked_n(n: int, size: int) -> int:
    """min(n, size).

    Raises:
        InputError: n is below 1.
    """
    if n < 1:
        raise InputError(f"n must be at least 1 (got {n})")
    return min(n, size)


def checked_candidates(candidates: Tensor, size: int, kind: str = "item") -> Tensor:
    """The candidates as they are.

    Raises:
        InputError: they are not (size,) bool.
    """
    if candidates.shape != (size,) or candidates.dtype != torch.bool:
        raise InputError(
            f"candidates must be a bool for each of {size:,} {kind}s "
            f"(got shape {tuple(candidates.shape)} of {candidates.dtype})"
        )
    return candidates


def _entries(ratings: Ratings, users: Tensor) -> tuple[Tensor, Tensor]:
    """(position in `users`, item) of every rating by these users, on their device."""
    pattern, device = ratings.pattern, users.device
    users = users.to(ratings.device)
    starts, counts = pattern.crow[users].long(), pattern.counts[users].long()
    row = torch.repeat_interleave(torch.arange(len(users), device=users.device), counts)
    within = torch.arange(len(row), device=users.device) - (counts.cumsum(0) - counts)[row]
    return row.to(device), pattern.col[starts[row] + within].long().to(device)

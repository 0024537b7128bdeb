"""The best of a table's rows for each of another's, exactly and in blocks: never users × items at once.

The largest of many scores are found by looking at the maxima of groups first: the n largest scores are in the n groups
with the largest maxima, for whatever is in another group, these n maxima are no smaller.  So beside the product there
is one pass over all scores, and a look at few of them after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.model.factorization import MatrixFactorization, check_indices

# Scores held at a time: 2^25 in float32 are 128 MiB.
SCORES = 2**25
# About how many rows of a table are multiplied at a time: few enough for what BLAS makes of them to stay in cache.
TILE = 1024
# Neighbouring scores of which at first only the largest is looked at.
GROUP = 32

Block = tuple[Tensor, Tensor, Tensor]


def top_n(
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
        exclude: ratings whose items are not recommended to their users again.
        candidates: (n_items,) bool, which items may be recommended; all of them by default.
        clip: keep the predictions on the rating scale after ranking by what they were.

    Returns:
        (n_rows, min(n, n_items)) item indices and their predicted ratings.  A row with fewer items left ends in index
        −1 and prediction −∞.

    Raises:
        InputError: a user is not in the model, n is below 1, or candidates are not a bool for each item.

    Examples:
        >>> tables = torch.tensor([[1.0]]), torch.tensor([[2.0], [5.0], [3.0]])
        >>> model = MatrixFactorization.from_tables(*tables, biases=False, offset=None, scale=torch.tensor([1.0, 5.0]))
        >>> items, predictions = top_n(model, torch.tensor([0]), n=2)
        >>> items.tolist(), predictions.tolist()
        ([[1, 2]], [[5.0, 3.0]])
        >>> rated = Ratings(torch.tensor([0]), torch.tensor([1]), torch.tensor([4.0]), n_users=1, n_items=3)
        >>> top_n(model, torch.tensor([0]), n=2, exclude=rated)[0].tolist()
        [[2, 0]]
    """
    return _joined(top_n_blocks(model, users, n, exclude, candidates=candidates, clip=clip))


@torch.no_grad()
def top_n_blocks(
    model: MatrixFactorization,
    users: Tensor,
    n: int = 10,
    exclude: Ratings | None = None,
    *,
    candidates: Tensor | None = None,
    clip: bool = False,
    scores_held: int | None = None,
) -> Iterator[Block]:
    """`top_n` for one block of users after another, where the results of all are too many to be held at a time.

    Args:
        scores_held: how many scores to hold at a time, but at least one user's; `SCORES` by default.

    Yields:
        (n_rows,) users, in the order given, and what `top_n` returns for them.

    Raises:
        InputError: as of `top_n`, when the first block is asked for.
    """
    check_indices("user", users, model.n_users)
    user_table, item_table = model.tables()
    users = users.to(item_table.device).long()
    queries = user_table[users]
    if model.offset is not None:
        # One more column of the product adds it, instead of another pass over the scores.
        queries = pad(queries, (0, 1), value=1.0)
        item_table = torch.cat([item_table, model.offset.expand(model.n_items)[:, None]], 1)
    seen = None if exclude is None else partial(_entries, exclude)
    for block, items, predictions in _best_products(users, queries, item_table, n, seen, candidates, scores_held):
        yield block, items, model.clip(predictions).where(items >= 0, predictions) if clip else predictions


def similar(
    table: Tensor, rows: Tensor, n: int = 10, candidates: Tensor | None = None, kind: str = "item"
) -> tuple[Tensor, Tensor]:
    """The n rows of a factor table most similar to each given row by cosine, itself left out, most similar first.

        cos(a, b) = a · b / (‖a‖ ‖b‖)

    Args:
        table: (n_rows, rank), e.g. `model.factors(ITEM)`; rows of zeros are similar to nothing (cosine 0).
        rows: (m,) indices into the table.
        candidates: (n_rows,) bool, which rows may be answers; all of them by default.
        kind: what a row is called in errors, "item" or "user".

    Returns:
        (m, min(n, n_rows)) indices and cosines; a row with fewer other candidates ends in index −1 and cosine −∞.

    Raises:
        InputError: a row is not in the table, n is below 1, or candidates are not a bool for each row.

    Examples:
        >>> table = torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 0.0]])
        >>> indices, cosines = similar(table, torch.tensor([0]), n=2)
        >>> indices.tolist(), cosines.tolist()
        ([[2, 1]], [[1.0, 0.0]])
    """
    return _joined(similar_blocks(table, rows, n, candidates, kind))


@torch.no_grad()
def similar_blocks(
    table: Tensor,
    rows: Tensor,
    n: int = 10,
    candidates: Tensor | None = None,
    kind: str = "item",
    *,
    scores_held: int | None = None,
) -> Iterator[Block]:
    """`similar` for one block of rows after another, as `top_n_blocks` is `top_n`."""
    check_indices(kind, rows, len(table))
    rows = rows.to(table.device).long()
    unit = torch.nn.functional.normalize(table, dim=1)

    def itself(block: Tensor) -> tuple[Tensor, Tensor]:
        return torch.arange(len(block), device=block.device), block

    yield from _best_products(rows, unit[rows], unit, n, itself, candidates, scores_held)


def _joined(blocks: Iterator[Block]) -> tuple[Tensor, Tensor]:
    _, indices, values = zip(*blocks, strict=True)
    return torch.cat(indices), torch.cat(values)


def _best_products(
    rows: Tensor,
    queries: Tensor,
    table: Tensor,
    n: int,
    left_out: Callable[[Tensor], tuple[Tensor, Tensor]] | None,
    candidates: Tensor | None,
    scores_held: int | None,
) -> Iterator[Block]:
    """For one block of rows after another: the min(n, size) indices with the largest query · table[index], and these.

    Args:
        rows: (m,) what the rows are called.
        queries: (m, k), one for each of the rows.
        table: (size, k).
        left_out: gives, for a block of rows, (positions in the block, indices into the table) that do not count.
        candidates: (size,) bool, which indices count; all of them by default.

    Yields:
        Rows, indices and products, largest first; ties go to the lower index, and a row with fewer products that count
        ends in index −1 and product −∞.
    """
    size, device = len(table), table.device
    n = checked_n(n, size)
    kept = torch.arange(size, device=device)
    kept = kept if candidates is None else kept[checked_candidates(candidates, size).to(device)]
    column = torch.full((size,), -1, device=device).index_copy_(0, kept, torch.arange(len(kept), device=device))
    tiles = _tiles(table if candidates is None else table[kept], n)
    n_tiles, width, _ = tiles.shape
    first_empty = len(kept) - (n_tiles - 1) * width
    kept = pad(kept, (0, width - first_empty), value=-1)
    at_once = max(1, (SCORES if scores_held is None else scores_held) // len(kept))
    held = table.new_empty(min(at_once, len(rows)) * len(kept))
    for block, block_queries in zip(rows.split(at_once), queries.split(at_once), strict=True):
        # Always in the same memory: the system takes longer to hand out new pages than BLAS to fill them.
        scores = held[: len(block) * len(kept)].view(n_tiles, len(block), width)
        torch.bmm(block_queries.expand(n_tiles, -1, -1), tiles.mT, out=scores)
        scores[-1, :, first_empty:] = -torch.inf
        if left_out is not None:
            row, index = left_out(block)
            at = column[index]
            row, at = row[at >= 0], at[at >= 0]
            scores[at // width, row, at % width] = -torch.inf
        values, columns = _best(scores, n)
        yield block, kept[columns].masked_fill_(values == -torch.inf, -1), values


def checked_n(n: int, size: int) -> int:
    """How many of `size` rows n asks for; InputError for none."""
    if n < 1:
        raise InputError(f"n {n} asks for nothing; give 1 or more")
    return min(n, size)


def checked_candidates(candidates: Tensor, size: int) -> Tensor:
    """The candidates, if they are (size,) bool; InputError if not."""
    if candidates.shape != (size,) or candidates.dtype != torch.bool:
        raise InputError(
            f"candidates are {tuple(candidates.shape)} of {candidates.dtype}; give a bool for each of {size:,} items"
        )
    return candidates


def _tiles(table: Tensor, n: int) -> Tensor:
    """The table, (size, k), as (n_tiles, width, k), zeros after its end in the last tile; for `_best` to choose n of.

    The product of a batch of tiles takes a sixth less time than the product with the whole table.
    """
    size = len(table)
    if size < 4 * GROUP * (n + 1):
        n_tiles, width = 1, max(size, n + 1)
    else:
        # All of one width of at most about TILE, in whole groups of groups.
        width = -(-size // (-(-size // TILE) * 4 * GROUP)) * 4 * GROUP
        n_tiles = -(-size // width)
    return pad(table, (0, 0, 0, n_tiles * width - size)).view(n_tiles, width, -1)


def _best(scores: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """(rows, n) the n largest scores of each row, largest first, and their columns; ties go to the lower column.

    Of (n_tiles, rows, width) scores, where column c is in tile c // width.
    """
    # One more than asked for, since it tells whether the last of them is tied with scores that were not found.
    values, columns = _largest_in_tiles(scores, n + 1)
    equal = (values[:, 1:] == values[:, :-1]) & (values[:, 1:] > -torch.inf)
    values, columns = values[:, :n], columns[:, :n]
    for rows in equal[:, -1].nonzero()[:, 0].split(max(1, len(values) // 16)):
        values[rows], columns[rows] = _lowest(_flat(scores[:, rows]), values[rows, -1:], n)
    rows = equal.any(1).nonzero()[:, 0]
    by_column, order = columns[rows].sort(dim=1)
    values[rows], order = values[rows].gather(1, order).sort(dim=1, descending=True, stable=True)
    columns[rows] = by_column.gather(1, order)
    return values, columns


def _largest_in_tiles(scores: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n largest scores of each row, largest first, and their columns; ties go to any.

    They are in the n groups with the largest maxima: whatever is in another group, these n maxima are no smaller.
    So there is one pass over all scores, for the maxima, and a look at few of them after it.
    """
    n_tiles, rows, width = scores.shape
    if n_tiles * width < 4 * GROUP * n:
        return _largest(_flat(scores), n)
    groups = scores.view(n_tiles, rows, width // GROUP, GROUP)
    best = _largest(_flat(groups.amax(3)), n, ordered=False)[1]
    tile, group = best // groups.shape[2], best % groups.shape[2]
    row = torch.arange(rows, device=scores.device)[:, None]
    # embedding() is index_select(), and on a CPU twice as fast.
    inside = embedding((tile * rows + row) * groups.shape[2] + group, groups.view(-1, GROUP))
    values, at = _largest(inside.flatten(1), n)
    return values, best.gather(1, at // GROUP) * GROUP + at % GROUP


def _largest(scores: Tensor, n: int, ordered: bool = True) -> tuple[Tensor, Tensor]:
    """`_largest_in_tiles` of (rows, width) scores: likewise, in groups of four columns that are width/4 apart."""
    width = scores.shape[1]
    if width < 16 * n or width % 4:
        return scores.topk(n, dim=1, sorted=ordered)
    best = _largest(scores.unflatten(1, (4, -1)).amax(1), n, ordered=False)[1]
    in_group = torch.arange(0, width, width // 4, device=scores.device)[:, None]
    columns = (best[:, None] + in_group).flatten(1)
    values, at = scores.gather(1, columns).topk(n, dim=1, sorted=ordered)
    return values, columns.gather(1, at)


def _lowest(scores: Tensor, least: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Of the n largest scores of each row, of which the least is known, (rows, 1): those with the lowest columns."""
    above, level = ~(scores <= least), scores == least
    chosen = above | (level & (level.cumsum(1) <= n - above.sum(1, keepdim=True)))
    columns = chosen.nonzero()[:, 1].view(-1, n)
    return scores.gather(1, columns), columns


def _flat(tiles: Tensor) -> Tensor:
    """(n_tiles, rows, width) as (rows, n_tiles · width)."""
    return tiles.movedim(1, 0).flatten(1)


def _entries(ratings: Ratings, users: Tensor) -> tuple[Tensor, Tensor]:
    """(position in `users`, item) of every rating by these users, on their device."""
    pattern, device = ratings.by_user, users.device
    users = users.to(ratings.device)
    starts, counts = pattern.crow[users].long(), pattern.counts[users].long()
    row = torch.repeat_interleave(torch.arange(len(users), device=users.device), counts)
    within = torch.arange(len(row), device=users.device) - (counts.cumsum(0) - counts)[row]
    return row.to(device), pattern.col[starts[row] + within].long().to(device)

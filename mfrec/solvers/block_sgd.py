"""Stochastic gradient descent on one block of the ratings matrix after another.

Users and items are shuffled once and cut into P and Q groups.  Each of the P × Q blocks is a small sparse matrix with a
cost of its own,

    J_b = Σ_{ratings in b} ½ e² + ½ Σ_{users in b} (λ_j / Q) ‖θ_j‖² + ½ Σ_{items in b} (λ_i / P) ‖x_i‖²

so that Σ_b J_b = J: an epoch meets a user's row in Q blocks, an item's in P.  It visits the blocks in random order.
The rows of each are updated in place from its gradient g by the two sparse products, which read a block's factors from
cache.  (Gemulla et al. 2011, "Large-scale matrix factorization with distributed stochastic gradient descent".  They go
through the ratings of a block one by one.)  With `momentum` β, the running v ← β v + g replaces g.
The step is one of

    "plain"     x ← x − α g
    "proximal"  x ← x − α g / (1 + α n_b)      n_b = ratings of that row in the block
    "adagrad"   x ← x − α g / (√(Σ g²) + 10⁻¹⁰)   elementwise, over all steps so far (Duchi et al. 2011)

A plain step sums over n_b ratings.  Sample-by-sample SGD would go through them one after the other, each seeing the
error that the last one left.  Along a direction of unit curvature those n_b steps shrink an error to (1 − α)^n_b of
itself.  The plain step shrinks it to 1 − α n_b, which diverges once α n_b > 2.  The proximal step, to
1 / (1 + α n_b), never does (Toulis & Airoldi 2017): a film with 3,000 ratings can share α with one that has three.

Feature weights are stepped in every block alike.  Since rows with several features couple them, their n_b is the bound
Σ_r |F_rf| ‖F_r‖₁ n_r.  Since the T terms of an entity step at once, each n_b counts T times.

Blocks that share neither users nor items can be stepped at the same time.  Several processes share the groups of users,
and take turns: a block's turn comes after those of all earlier blocks with which it shares users or items.  Between
turns, item groups go to the processes that need them next.  The steps, and so the bits, are those of one process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfrec.data.features import Features
from mfrec.data.partition import PartitionedRatings
from mfrec.errors import InputError
from mfrec.model.entity import ITEM
from mfrec.model.objective import factor_gradients
from mfrec.solvers.base import Solver
from mfrec.solvers.registry import SOLVERS, BlockSGDOptions
from mfrec.solvers.rotation import Rotation
from mfrec.sparse import SparseMatrix, csr_pattern, sddmm


class Block(NamedTuple):
    """One block of the shuffled ratings matrix.

    rows: its users and its items, as slices of the shuffled factors.
    cell: the user group and the item group of the block.
    targets: centred ratings, indexed within the block.
    members: (n_entries,) the position of each among the entries that were cut into blocks.
    weights: (n_entries,) of the ratings, or None if all are 1.
    """

    rows: tuple[slice, slice]
    cell: tuple[int, int]
    targets: SparseMatrix
    members: Tensor
    weights: Tensor | None

    def weighted(self, values: Tensor) -> Tensor:
        """(n_entries,) values, each multiplied by its weight."""
        return values if self.weights is None else values * self.weights


class Entries(NamedTuple):
    """Ratings in the shuffled matrix, (n,) each: rows, columns, centred ratings, and weights unless all are 1."""

    users: Tensor
    items: Tensor
    targets: Tensor
    weights: Tensor | None


class BlockSGD(Solver):
    """SGD whose mini-batches are blocks, and whose updates are made by hand and in place.

    Raises:
        InputError: the model has features, and the ratings are partitioned over processes.
    """

    options: BlockSGDOptions

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        model, ratings, options = self.model, self.ratings, self.options
        if model.has_features and ratings.is_partitioned:
            names = [n for n, s in SOLVERS.items() if "features" in s.supports and s.options is not BlockSGDOptions]
            raise InputError(f"block-sgd must train features in one process; in several, use {', '.join(names)}")
        self.grid = (min(options.blocks[0], ratings.n_users), min(options.blocks[1], ratings.n_items))
        self.epochs = 0
        self.user_order = torch.randperm(ratings.n_users, generator=self.generator).to(ratings.device)
        self.item_order = torch.randperm(ratings.n_items, generator=self.generator).to(ratings.device)
        self.terms = model.all_terms
        # v of momentum and Σ g² of Adagrad, laid out like the terms' weights; empty if not used.
        weights = [model.weights(term).detach() for term in self.terms]
        self.velocity = [torch.zeros_like(w) for w in weights] if options.momentum else []
        self.squares = [torch.zeros_like(w) for w in weights] if options.step == "adagrad" else []
        self._lay_out()

    def _lay_out(self) -> None:
        """Cut ratings and features into blocks by the shuffled orders, and lay λ out like the shuffled factors."""
        model, orders = self.model, (self.user_order, self.item_order)
        self.free = model.free_columns()
        self.ridges: list[Tensor] = []
        # The features of each group of a term's rows; empty for an identity term.
        self.feature_groups: list[list[Features]] = []
        for term in self.terms:
            order, n_groups = orders[term.entity], self.grid[term.entity]
            ridge = self.objective.ridge(model, self.ratings, term)
            if term.features is None:
                self.ridges.append(ridge[order] / self.grid[1 - term.entity])
                self.feature_groups.append([])
            else:
                self.ridges.append(ridge / (self.grid[0] * self.grid[1]))
                bounds = group_bounds(len(order), n_groups)
                self.feature_groups.append([term.features.select(order[a:b]) for a, b in pairwise(bounds)])
        self.rotation, entries = self._shuffled_entries()
        self.blocks = list(grid_blocks(entries, self.ratings.matrix.shape, self.grid))
        self.block_counts = [self._block_counts(block) for block in self.blocks]

    def _shuffled_entries(self) -> tuple[Rotation | None, Entries]:
        """The ratings in the shuffled matrix: all, or those of the user groups that this process owns."""
        ratings = self.ratings
        # An order's inverse has the shuffled position of each row.
        users = self.user_order.argsort().index_select(0, ratings.users.long())
        items = self.item_order.argsort().index_select(0, ratings.items.long())
        entries = Entries(users, items, self.model.targets(ratings), ratings.weights)
        if not isinstance(ratings, PartitionedRatings):
            return None, entries
        groups = [
            groups_of(torch.arange(n), n, n_groups) for n, n_groups in zip(ratings.matrix.shape, self.grid, strict=True)
        ]
        rotation = Rotation(ratings.processes, groups, self.grid)
        return rotation, Entries(*rotation.ratings_of_groups(*entries))

    def _block_counts(self, block: Block) -> list[Tensor]:
        """n_b of each row of each term's weights, (n, 1), or the sums of weights if ratings have weights.

        Rows of an identity term are those of the block.
        """
        counts = []
        weights = None if block.weights is None else block.targets.with_values(block.weights)
        for entity, pattern in enumerate((block.targets.pattern, block.targets.pattern.T)):
            ones = torch.ones(pattern.shape[1], 1, dtype=self.model.dtype, device=self.model.device)
            if weights is None:
                counts.append(pattern.counts.to(ones.dtype)[:, None])
            else:
                counts.append((weights.T if entity else weights) @ ones)
        block_counts = []
        for term, groups in zip(self.terms, self.feature_groups, strict=True):
            rows = counts[term.entity]
            n_b = rows if term.features is None else groups[block.cell[term.entity]].gram_bound(rows)
            block_counts.append(n_b * len(self.model.terms(term.entity)))
        return block_counts

    @torch.no_grad()
    def epoch(self) -> dict[str, float]:
        lr = self.options.lr / (1 + self.options.lr_decay * self.epochs)
        weights, orders = [self.model.weights(term) for term in self.terms], (self.user_order, self.item_order)
        shuffled = [
            w[orders[term.entity]] if term.features is None else w for term, w in zip(self.terms, weights, strict=True)
        ]
        order = torch.randperm(len(self.blocks), generator=self.generator).tolist()
        if self.rotation is None:
            self._visit(order, shuffled, lr)
        else:
            self._take_turns(self.rotation, order, shuffled, lr)
        for term, w, stepped in zip(self.terms, weights, shuffled, strict=True):
            if term.features is None:
                w[orders[term.entity]] = stepped
            self.model.assign(term, w)
        self.epochs += 1
        if self.model.sessions is not None:
            self.objective.minimize_sessions(self.model, self.ratings)
            targets = self.model.targets(self.ratings)
            for block in self.blocks:
                block.targets.values.copy_(targets[block.members])
        return {"lr": lr}

    def _visit(self, order: Sequence[int], weights: list[Tensor], lr: float) -> None:
        """A step on each of these blocks, in this order."""
        for b in order:
            self._update(self.blocks[b], self.block_counts[b], weights, lr)

    def _take_turns(self, rotation: Rotation, order: Sequence[int], weights: list[Tensor], lr: float) -> None:
        """`_visit` in several processes, turn by turn; afterwards each has the weights of all rows."""
        tables: tuple[list[Tensor], list[Tensor]] = ([], [])
        for t, term in enumerate(self.terms):
            tables[term.entity].extend(kept[t] for kept in (weights, self.velocity, self.squares) if kept)
        owners, here = rotation.owners.tolist(), rotation.processes.index
        for turn in turns(order, self.grid):
            cells = [self.blocks[b].cell for b in turn]
            rotation.send_items(tables[ITEM], {q: owners[p] for p, q in cells})
            self._visit([b for b, (p, _) in zip(turn, cells, strict=True) if owners[p] == here], weights, lr)
        rotation.complete(*tables)

    def _update(self, block: Block, block_counts: list[Tensor], weights: list[Tensor], lr: float) -> None:
        """One step on the rows of one block, in place."""
        # For each term, the weights that the block moves, and the block's rows of F.
        views: list[Tensor] = []
        features: list[Features | None] = []
        factors = [1 - free for free in self.free]
        for term, w, groups in zip(self.terms, weights, self.feature_groups, strict=True):
            group = groups[block.cell[term.entity]] if groups else None
            views.append(w if groups else w[block.rows[term.entity]])
            features.append(group)
            factors[term.entity] = factors[term.entity] + (views[-1] if group is None else group.matrix @ views[-1])
        users, items = factors
        pattern = block.targets.pattern
        _, errors = self.objective.loss(sddmm(pattern, users, items), block.targets.values)
        gradients = factor_gradients(pattern, block.weighted(errors), users, items)
        for t, (term, view, group) in enumerate(zip(self.terms, views, features, strict=True)):
            rows = slice(None) if group is not None else block.rows[term.entity]
            g = gradients[term.entity] if group is None else group.rmatmul(gradients[term.entity])
            g = g.addcmul(self.ridges[t][rows], view).mul_(self.free[term.entity])
            self._step(t, rows, view, g, block_counts[t], lr)
            if self.model.nonnegative:
                view[:, : self.model.rank].clamp_(min=0)

    def _step(self, t: int, rows: slice, view: Tensor, g: Tensor, n_b: Tensor, lr: float) -> None:
        """Move the weights of term t in place, given their gradient."""
        if self.options.momentum:
            g = self.velocity[t][rows].mul_(self.options.momentum).add_(g)
        if self.options.step == "plain":
            view.sub_(g, alpha=lr)
        elif self.options.step == "proximal":
            view.addcdiv_(g, 1 + lr * n_b, value=-lr)
        else:
            squares = self.squares[t][rows].addcmul_(g, g)
            view.addcdiv_(g, squares.sqrt().add_(1e-10), value=-lr)

    def state_dict(self) -> dict[str, Any]:
        return {
            "epochs": self.epochs,
            "user_order": self.user_order,
            "item_order": self.item_order,
            "velocity": self.velocity,
            "squares": self.squares,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs = state["epochs"]
        self.generator.set_state(state["generator"].cpu())
        device = self.ratings.device
        self.user_order, self.item_order = state["user_order"].to(device), state["item_order"].to(device)
        for current, saved in ((self.velocity, state["velocity"]), (self.squares, state["squares"])):
            for tensor, values in zip(current, saved, strict=True):
                tensor.copy_(values)
        self._lay_out()


def group_bounds(n: int, n_groups: int) -> list[int]:
    """The beginning of each of n_groups groups of n rows, equal in size to within one, and the end of the last."""
    return [n * group // n_groups for group in range(n_groups + 1)]


def groups_of(rows: Tensor, n_rows: int, n_groups: int) -> Tensor:
    """(n,) the group of each of some rows, (n,), out of n_rows."""
    return torch.bucketize(rows, torch.tensor(group_bounds(n_rows, n_groups)[1:], device=rows.device), right=True)


def turns(order: Sequence[int], grid: tuple[int, int]) -> list[list[int]]:
    """The blocks of a P × Q grid in turns, each as early as its users and items are free.

    The blocks of a turn share neither users nor items.  Blocks that share some keep their order.

    Args:
        order: the numbers of all blocks; block p Q + q has user group p and item group q.

    Examples:
        >>> turns([0, 1, 3, 2], (2, 2))
        [[0], [1], [3], [2]]
        >>> turns([0, 3, 1, 2], (2, 2))
        [[0, 3], [1, 2]]
    """
    P, Q = grid
    n_user_turns, n_item_turns = [0] * P, [0] * Q
    in_turns: list[list[int]] = []
    for b in order:
        p, q = divmod(b, Q)
        turn = max(n_user_turns[p], n_item_turns[q])
        n_user_turns[p] = n_item_turns[q] = turn + 1
        if turn == len(in_turns):
            in_turns.append([])
        in_turns[turn].append(b)
    return in_turns


def grid_blocks(entries: Entries, shape: tuple[int, int], grid: tuple[int, int]) -> Iterator[Block]:
    """The P × Q blocks of a shuffled matrix of this shape."""
    users, items, targets, weights = entries
    user_bounds, item_bounds = (group_bounds(n, n_groups) for n, n_groups in zip(shape, grid, strict=True))
    block = groups_of(users, shape[0], grid[0]) * grid[1] + groups_of(items, shape[1], grid[1])
    members = torch.argsort(block, stable=True).split(torch.bincount(block, minlength=grid[0] * grid[1]).tolist())
    for b, m in enumerate(members):
        p, q = divmod(b, grid[1])
        rows, cols = slice(*user_bounds[p : p + 2]), slice(*item_bounds[q : q + 2])
        size = rows.stop - rows.start, cols.stop - cols.start
        pattern, by_row = csr_pattern(users[m] - rows.start, items[m] - cols.start, size)
        sorted_members = m if by_row is None else m[by_row]
        block_weights = None if weights is None else weights[sorted_members]
        yield Block((rows, cols), (p, q), SparseMatrix(pattern, targets[sorted_members]), sorted_members, block_weights)

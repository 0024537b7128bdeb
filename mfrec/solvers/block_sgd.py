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
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfrec.data.features import Features
from mfrec.data.ratings import Ratings
from mfrec.model.objective import factor_gradients
from mfrec.solvers.base import Solver
from mfrec.solvers.registry import BlockSGDOptions
from mfrec.sparse import SparseMatrix, csr_pattern, sddmm


class Block(NamedTuple):
    """One block of the shuffled ratings matrix.

    rows: its users and its items, as slices of the shuffled factors.
    cell: the user group and the item group of the block.
    targets: centred ratings, indexed within the block.
    members: (n_entries,) the position of each among all ratings.
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


class BlockSGD(Solver):
    """SGD whose mini-batches are blocks, and whose updates are made by hand and in place."""

    options: BlockSGDOptions

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        model, ratings, options = self.model, self.ratings, self.options
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
        self.blocks = list(grid_blocks(self.ratings, model.targets(self.ratings), orders, self.grid))
        self.block_counts = [self._block_counts(block) for block in self.blocks]

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
        for b in torch.randperm(len(self.blocks), generator=self.generator).tolist():
            self._update(self.blocks[b], self.block_counts[b], shuffled, lr)
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


def grid_blocks(
    ratings: Ratings, targets: Tensor, orders: tuple[Tensor, Tensor], grid: tuple[int, int]
) -> Iterator[Block]:
    """The P × Q blocks of the matrix whose rows and columns are shuffled by the two orders."""
    places = []
    for order, indices, n_groups in zip(orders, (ratings.users, ratings.items), grid, strict=True):
        position = torch.empty_like(order)
        position[order] = torch.arange(len(order), device=order.device)
        bounds = torch.tensor(group_bounds(len(order), n_groups), device=order.device)
        shuffled = position[indices.long()]
        group = torch.bucketize(shuffled, bounds[1:], right=True)
        places.append((shuffled - bounds[group], group, bounds.tolist()))
    (users, user_group, user_bounds), (items, item_group, item_bounds) = places
    block = user_group * grid[1] + item_group
    members = torch.argsort(block, stable=True).split(torch.bincount(block, minlength=grid[0] * grid[1]).tolist())
    for b, m in enumerate(members):
        p, q = divmod(b, grid[1])
        rows, cols = slice(*user_bounds[p : p + 2]), slice(*item_bounds[q : q + 2])
        pattern, by_row = csr_pattern(users[m], items[m], (rows.stop - rows.start, cols.stop - cols.start))
        sorted_members = m if by_row is None else m[by_row]
        weights = None if ratings.weights is None else ratings.weights[sorted_members]
        yield Block((rows, cols), (p, q), SparseMatrix(pattern, targets[sorted_members]), sorted_members, weights)

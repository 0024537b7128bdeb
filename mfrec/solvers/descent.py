"""Gradient descent: on all ratings at once, on blocks of them, or by any torch optimizer.

gd      X ← X − α ∂J/∂X,  Θ ← Θ − α ∂J/∂Θ           both from the same X and Θ, exactly as in the texts
sgd     the same on one block of the ratings matrix after another, in place
optim   a torch.optim optimizer, fed by autograd with the hand-derived gradient
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError, unknown
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.features import Features
from mfrec.model.objective import Objective, table_gradients
from mfrec.sparse import matmul, sampled_dot


class GradientDescent:
    """Gradient descent on all ratings at once.

    An epoch is one step α along the gradient of J.

    Args:
        lr: step size α; J sums over ratings, so what is stable shrinks as users and items have more of them.

    Raises:
        InputError: lr is not positive and finite.

    Examples:
        >>> ratings = Ratings(torch.tensor([0]), torch.tensor([0]), torch.tensor([5.0]))
        >>> model = MatrixFactorization(n_users=1, n_items=1, rank=1, biases=False, init="zeros")
        >>> _ = torch.nn.init.constant_(model.item_factors.weight, 2.0)
        >>> solver = GradientDescent(model, ratings, Objective(), lr=0.1)
        >>> solver.epoch()["lr"]
        0.1
        >>> model.user_factors.weight.tolist()  # θ − α e x with θ = 0, x = 2 and e = 0·2 − 5
        [[1.0]]
        >>> model.item_factors.weight.tolist()  # x − α e θ, from the same θ
        [[2.0]]
    """

    space: ClassVar[dict[str, tuple[float, float, str]]] = {
        "lr": (1e-4, 2e-3, "log"),
        "l2": (1.0, 100.0, "log"),
        "rank": (4, 64, "log"),
    }
    takes: ClassVar[tuple[str, ...]] = ("features", "non-negative", "losses")
    defaults: ClassVar[dict[str, Any]] = {
        "rank": 10,
        "l2": 10.0,
        "scaling": "row",
        "epochs": 1000,
        "patience": 40,
    }

    def __init__(
        self,
        model: MatrixFactorization,
        ratings: Ratings,
        objective: Objective,
        *,
        generator: torch.Generator | None = None,
        lr: float = 0.0005,
    ) -> None:
        self.model, self.ratings, self.objective = model, ratings, objective
        self.lr = _positive("lr", lr)

    @torch.no_grad()
    def epoch(self) -> dict[str, float]:
        gradients = self.objective.gradients(self.model, self.ratings)
        for name, parameter in self.model.named_parameters():
            parameter.sub_(gradients[name], alpha=self.lr)
        self.model.project()
        return {"lr": self.lr}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Block(NamedTuple):
    """One block of the shuffled ratings matrix, its centred ratings indexed within it.

    rows: its users and its items, as slices of the shuffled tables.
    part: which of the P parts of the users it is in, and which of the Q parts of the items.
    curvatures: for each term, the n_b of each row of its table, (n, 1); rows of an identity term are the block's own.
    """

    rows: tuple[slice, slice]
    part: tuple[int, int]
    ratings: Ratings
    curvatures: list[Tensor]


class SGD:
    """SGD on one block of the ratings matrix after another.

    A mini-batch is a block, and its updates are made by hand and in place.

    Users and items are shuffled once and cut into P and Q parts.  Each of the P × Q blocks is a small sparse matrix
    with a J of its own,

        J_b = Σ_{ratings in b} ½ e² + ½ Σ_{users in b} (λ_j / Q) ‖θ_j‖² + ½ Σ_{items in b} (λ_i / P) ‖x_i‖²

    so that Σ_b J_b = J: a user's row meets Q blocks an epoch, an item's P.  An epoch visits the blocks in random order
    and updates the rows of each in place from its gradient g by the two sparse products, which read a block's tables
    from cache.  (Blocks as in Gemulla et al. 2011, "Large-scale matrix factorization with distributed stochastic
    gradient descent", who go through the ratings of a block one by one.)  With `momentum` β, g is replaced by the
    running v ← β v + g.  The step is one of

        "plain"     x ← x − α g
        "implicit"  x ← x − α g / (1 + α n_b)      n_b = ratings of that row in the block
        "adagrad"   x ← x − α g / (√(Σ g²) + 10⁻¹⁰)   elementwise, over all steps so far (Duchi et al. 2011)

    A plain step sums over the n_b ratings that sample-by-sample SGD would go through one after the other, each seeing
    the error that the last one left: along a direction of unit curvature those n_b steps shrink an error to
    (1 − α)^n_b of itself, the plain step to 1 − α n_b, which diverges once α n_b > 2.  The implicit step, to
    1 / (1 + α n_b), never does (Toulis & Airoldi 2017), which is what lets a film with 3,000 ratings share α with one
    that has three.  Weights of features are stepped in every block alike; since rows with several features couple them,
    their n_b is the bound Σ_r |F_rf| ‖F_r‖₁ n_r, and since the T terms of a side step at once, each n_b counts T times.

    Args:
        lr: step size α of the first epoch.
        lr_decay: epoch t uses lr / (1 + lr_decay · t), t = 0, 1, …
        step: how the gradient becomes a step.
        momentum: β in [0, 1).
        blocks: P and Q; fewer are used where there are fewer users or items.

    Raises:
        InputError: the step is unknown, lr is not positive, momentum not in [0, 1), lr_decay negative, or P or Q not 1
            or more.
    """

    space: ClassVar[dict[str, tuple[float, float, str]]] = {
        "lr": (0.005, 0.08, "log"),
        "lr_decay": (0.0, 0.1, "linear"),
        "l2": (0.3, 3.0, "log"),
        "rank": (16, 128, "log"),
    }
    takes: ClassVar[tuple[str, ...]] = ("features", "non-negative", "losses")
    defaults: ClassVar[dict[str, Any]] = {"rank": 128, "l2": 0.9, "patience": 5}

    def __init__(
        self,
        model: MatrixFactorization,
        ratings: Ratings,
        objective: Objective,
        *,
        generator: torch.Generator,
        lr: float = 0.02,
        lr_decay: float = 0.03,
        step: Literal["plain", "implicit", "adagrad"] = "implicit",
        momentum: float = 0.0,
        blocks: tuple[int, int] = (4, 4),
    ) -> None:
        if step not in ("plain", "implicit", "adagrad"):
            raise unknown("step", step, ("plain", "implicit", "adagrad"))
        if not 0 <= momentum < 1:
            raise InputError(f"momentum {momentum:g} is not in [0, 1); 0.9 is usual, 0 turns it off")
        if not lr_decay >= 0:
            raise InputError(f"lr_decay {lr_decay:g} is negative; 0 keeps lr constant")
        if min(blocks) < 1:
            raise InputError(f"blocks {blocks[0]} × {blocks[1]} leave no batch; give 1 or more of each")
        self.model, self.ratings, self.objective, self.generator = model, ratings, objective, generator
        self.lr, self.lr_decay, self.step, self.momentum = _positive("lr", lr), lr_decay, step, momentum
        self.blocks = (min(blocks[0], ratings.n_users), min(blocks[1], ratings.n_items))
        self.epochs = 0
        self.user_order = torch.randperm(ratings.n_users, generator=generator).to(ratings.device)
        self.item_order = torch.randperm(ratings.n_items, generator=generator).to(ratings.device)
        self.terms = model.all_terms
        # v of momentum and Σ g² of Adagrad, laid out like the terms' tables; empty where not used.
        tables = [model.table(term).detach() for term in self.terms]
        self.velocity = [torch.zeros_like(t) for t in tables] if momentum else []
        self.squares = [torch.zeros_like(t) for t in tables] if step == "adagrad" else []
        self._lay_out()

    def _lay_out(self) -> None:
        """Cut ratings and features into blocks by the shuffled orders, and lay λ out like the shuffled tables."""
        model, orders = self.model, (self.user_order, self.item_order)
        self.free = model.free_columns()
        self.penalty: list[Tensor] = []
        self.features: list[list[Features]] = []
        for term in self.terms:
            order, n_parts = orders[term.side], self.blocks[term.side]
            penalty = self.objective.penalty_table(model, self.ratings, term)
            if term.features is None:
                self.penalty.append(penalty[order] / self.blocks[1 - term.side])
                self.features.append([])
            else:
                self.penalty.append(penalty / (self.blocks[0] * self.blocks[1]))
                bounds = _bounds(len(order), n_parts)
                self.features.append([term.features.select(order[a:b]) for a, b in pairwise(bounds)])
        self.parts = [
            self._block(*block) for block in _blocks(self.ratings, model.targets(self.ratings), orders, self.blocks)
        ]

    def _block(self, rows: tuple[slice, slice], part: tuple[int, int], ratings: Ratings) -> Block:
        """A block with the n_b of its terms, where ratings have weights the sums of these."""
        counts = []
        for pattern, weights in ((ratings.by_user, ratings.weights), (ratings.by_item, ratings.by_item_weights)):
            ones = torch.ones(pattern.shape[1], 1, dtype=ratings.values.dtype, device=ratings.device)
            plain = pattern.counts.to(ones.dtype)[:, None]
            counts.append(plain if weights is None else matmul(pattern, weights, ones))
        curvatures = []
        for term, features in zip(self.terms, self.features, strict=True):
            own = (
                counts[term.side] if term.features is None else features[part[term.side]].pull_bound(counts[term.side])
            )
            curvatures.append(own * len(self.model.terms(term.side)))
        return Block(rows, part, ratings, curvatures)

    @torch.no_grad()
    def epoch(self) -> dict[str, float]:
        lr = self.lr / (1 + self.lr_decay * self.epochs)
        tables, orders = [self.model.table(term) for term in self.terms], (self.user_order, self.item_order)
        shuffled = [
            table[orders[term.side]] if term.features is None else table
            for term, table in zip(self.terms, tables, strict=True)
        ]
        for b in torch.randperm(len(self.parts), generator=self.generator).tolist():
            self._update(self.parts[b], shuffled, lr)
        for term, table, stepped in zip(self.terms, tables, shuffled, strict=True):
            if term.features is None:
                table[orders[term.side]] = stepped
            self.model.assign(term, table)
        self.epochs += 1
        return {"lr": lr}

    def _update(self, block: Block, tables: list[Tensor], lr: float) -> None:
        """One step on the rows of one block, in place."""
        ratings = block.ratings
        # Of each term the rows that the block moves, and the block's own F.
        views: list[Tensor] = []
        features: list[Features | None] = []
        composed = [1 - free for free in self.free]
        for term, table, parts in zip(self.terms, tables, self.features, strict=True):
            own = parts[block.part[term.side]] if parts else None
            views.append(table if parts else table[block.rows[term.side]])
            features.append(own)
            composed[term.side] = composed[term.side] + (views[-1] if own is None else own(views[-1]))
        users, items = composed
        _, errors = self.objective.losses(sampled_dot(ratings.by_user, users, items), ratings.values, ratings)
        gradients = table_gradients(ratings, errors, users, items)
        for t, (term, view, own) in enumerate(zip(self.terms, views, features, strict=True)):
            rows = slice(None) if own is not None else block.rows[term.side]
            g = gradients[term.side] if own is None else own.pull(gradients[term.side])
            g = g.addcmul(self.penalty[t][rows], view).mul_(self.free[term.side])
            if self.momentum:
                g = self.velocity[t][rows].mul_(self.momentum).add_(g)
            if self.step == "plain":
                view.sub_(g, alpha=lr)
            elif self.step == "implicit":
                view.addcdiv_(g, 1 + lr * block.curvatures[t], value=-lr)
            else:
                squares = self.squares[t][rows].addcmul_(g, g)
                view.addcdiv_(g, squares.sqrt().add_(1e-10), value=-lr)
            if self.model.nonnegative:
                view[:, : self.model.rank].clamp_(min=0)

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
        for mine, saved in ((self.velocity, state["velocity"]), (self.squares, state["squares"])):
            for table, values in zip(mine, saved, strict=True):
                table.copy_(values)
        self._lay_out()


class Optim:
    """Any optimizer of torch.optim, on all ratings at once.

    An epoch is one step.  Autograd differentiates J, whose backward pass is the hand-derived gradient, so that a step
    costs what `gd`'s does.

    Args:
        optimizer: a class of torch.optim, in any case: adam, adamw, rmsprop, lbfgs, …
        lr: its learning rate.

    Raises:
        InputError: torch has no such optimizer for dense gradients, or lr is not positive.
    """

    space: ClassVar[dict[str, tuple[float, float, str]]] = {
        "lr": (1e-3, 0.1, "log"),
        "l2": (0.1, 10.0, "log"),
        "rank": (4, 128, "log"),
    }
    takes: ClassVar[tuple[str, ...]] = ("features", "non-negative", "losses")
    defaults: ClassVar[dict[str, Any]] = {"epochs": 400, "patience": 40}

    def __init__(
        self,
        model: MatrixFactorization,
        ratings: Ratings,
        objective: Objective,
        *,
        generator: torch.Generator | None = None,
        optimizer: str = "adam",
        lr: float = 0.05,
    ) -> None:
        classes = {name.lower(): value for name, value in vars(torch.optim).items() if isinstance(value, type)}
        # They take no dense gradient, or are not optimizers on their own.
        for name in ("optimizer", "sparseadam", "muon"):
            classes.pop(name, None)
        if optimizer.lower() not in classes:
            raise unknown("optimizer", optimizer, classes)
        self.model, self.ratings, self.objective = model, ratings, objective
        self.lr = _positive("lr", lr)
        self.optimizer: torch.optim.Optimizer = classes[optimizer.lower()](model.parameters(), lr=lr)

    def epoch(self) -> dict[str, float]:
        def closure() -> float:
            self.optimizer.zero_grad()
            cost = self.objective(self.model, self.ratings)
            cost.backward()
            return float(cost.detach())

        self.optimizer.step(closure)
        self.model.project()
        return {"lr": self.lr}

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)


def _bounds(n: int, n_parts: int) -> list[int]:
    """Where each of n_parts parts of n rows begins, and where the last ends, as equal as can be."""
    return [n * part // n_parts for part in range(n_parts + 1)]


def _blocks(
    ratings: Ratings, targets: Tensor, orders: tuple[Tensor, Tensor], parts: tuple[int, int]
) -> Iterator[tuple[tuple[slice, slice], tuple[int, int], Ratings]]:
    """The P × Q blocks of the matrix whose rows and columns are shuffled by the two orders: slices, parts, ratings."""
    place = []
    for order, indices, n_parts in zip(orders, (ratings.users, ratings.items), parts, strict=True):
        position = torch.empty_like(order)
        position[order] = torch.arange(len(order), device=order.device)
        bounds = torch.tensor(_bounds(len(order), n_parts), device=order.device)
        shuffled = position[indices.long()]
        part = torch.bucketize(shuffled, bounds[1:], right=True)
        place.append((shuffled - bounds[part], part, bounds.tolist()))
    (users, user_part, user_bounds), (items, item_part, item_bounds) = place
    block = user_part * parts[1] + item_part
    members = torch.argsort(block, stable=True).split(torch.bincount(block, minlength=parts[0] * parts[1]).tolist())
    for b, m in enumerate(members):
        p, q = divmod(b, parts[1])
        rows, cols = slice(*user_bounds[p : p + 2]), slice(*item_bounds[q : q + 2])
        sizes = rows.stop - rows.start, cols.stop - cols.start
        weights = None if ratings.weights is None else ratings.weights[m]
        yield (rows, cols), (p, q), Ratings(users[m], items[m], targets[m], *sizes, weights=weights)


def _positive(name: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise InputError(f"{name} {value:g} is not a step size; give a positive number")
    return value

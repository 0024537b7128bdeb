"""Stochastic gradient descent: one rating after another, both rows stepped from their old values.

The share of one rating y(i, j) in the cost J is

    ½ w e² + ½ (λ_j / n_j) ‖θ_j‖² + ½ (λ_i / n_i) ‖x_i‖²        e = θ_j · x_i + b_j + b_i + μ − y(i, j)

with n_j the ratings of user j and n_i those of item i, so that the shares of all ratings sum to J (biases likewise).
A step goes down its gradient, w e x_i + (λ_j / n_j) θ_j in θ_j and w e θ_j + (λ_i / n_i) x_i in x_i.  By default it is
the proximal step, which no α makes unstable; `mfrec.kernels.sgd` has both steps.

Users and items are cut at random into P groups each, and the ratings into P × P blocks.  A stratum is P blocks that
share neither users nor items, so that threads can step through them at the same time.  An epoch visits the P strata
in random order.  Within a block the ratings are ordered by user, which keeps the user's factors in cache.  P depends
on the number of ratings alone, so the same bits come from any number of threads.

Several processes share the groups of users: each holds the ratings of its groups.  Before a stratum, each item group's
rows go to the process whose users meet it next.  No other process holds them meanwhile: the same steps are made in the
same order, and the same bits come from any number of processes.

    Gemulla, Nijkamp, Haas & Sismanis 2011, "Large-scale matrix factorization with distributed stochastic gradient
    descent"

Epoch t of T planned epochs has the step size α_t = ½ α (1 + cos(π t / T)).  Steps of constant size end near the
minimum, in noise that grows with α.  A falling α_t learns as fast at first, and ends without the noise.  After T
epochs the schedule starts again.

    Loshchilov & Hutter 2017, "SGDR: stochastic gradient descent with warm restarts", eq. 5
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from mfrec.data.partition import PartitionedRatings
from mfrec.errors import InputError
from mfrec.kernels.compiled import parallel
from mfrec.kernels.layout import counting_order
from mfrec.kernels.sgd import LOG_COSH, SQUARED, Entries, Floats, Rows, Step, step_block
from mfrec.model.entity import ITEM, USER
from mfrec.model.losses import LOSSES, Loss, log_cosh, squared_error
from mfrec.solvers.base import Solver
from mfrec.solvers.registry import SGD_EPOCHS, SOLVERS, SGDOptions
from mfrec.solvers.rotation import Rotation

LOSS_CODES: dict[Loss, int] = {squared_error: SQUARED, log_cosh: LOG_COSH}
# Ratings in a block, about: few enough that small data have blocks for several threads, and many enough that a block
# takes longer than the start of a thread.
BLOCK_RATINGS = 2**13
# P is a multiple of the first, which shares a stratum evenly, up to the second: the fewer ratings a user has in a
# block, the more often the user's factors are fetched.
GROUP_STEP, MAX_GROUPS = 4, 24
# Rows are fetched this many ratings ahead if those of a block exceed a level-2 cache, in bytes.
AHEAD, CACHE_BYTES = 4, 2**20


class Blocks(NamedTuple):
    """The ratings in the order of the blocks, and where each of the P² blocks begins, (P² + 1,)."""

    entries: Entries
    starts: npt.NDArray[np.int64]


class SGD(Solver):
    """Stochastic gradient descent on the CPU, one rating after another.

    Attributes:
        lr_epochs: T, the epochs over which the step size falls to 0.
        n_groups: P.
        groups: (n_users,) and (n_items,) the group of each user and item.

    Raises:
        InputError: the loss has no kernel.
    """

    options: SGDOptions

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        loss = self.objective.loss
        if loss not in LOSS_CODES:
            name = next((name for name, function in LOSSES.items() if function is loss), "this loss")
            names = [n for n, spec in SOLVERS.items() if "losses" in spec.supports and spec.options is not SGDOptions]
            raise InputError(f"sgd does not support {name}; use {', '.join(names)}")
        self.epochs = 0
        self.lr_epochs = self.options.lr_epochs or SGD_EPOCHS
        n_steps = round((self.ratings.n_ratings / BLOCK_RATINGS) ** 0.5 / GROUP_STEP)
        self.n_groups = min(MAX_GROUPS, GROUP_STEP * n_steps) or 1
        self.groups = [self._random_groups(n) for n in (self.ratings.n_users, self.ratings.n_items)]
        self._blocks: Blocks | None = None
        self.rotation: Rotation | None = None

    def _random_groups(self, n_rows: int) -> torch.Tensor:
        groups: torch.Tensor = (torch.arange(n_rows) * self.n_groups // max(n_rows, 1)).int()
        return groups[torch.randperm(n_rows, generator=self.generator)]

    def plan(self, epochs: int) -> None:
        self.lr_epochs = self.options.lr_epochs or epochs

    @property
    def blocks(self) -> Blocks:
        """The ratings in the order of the blocks; made for the first epoch, after a state was loaded."""
        if self._blocks is None:
            self._blocks = self._lay_out()
        return self._blocks

    def _lay_out(self) -> Blocks:
        ratings, P = self.ratings, self.n_groups
        users, items, targets, weights = ratings.users, ratings.items, self.model.targets(ratings), ratings.weights
        if isinstance(ratings, PartitionedRatings):
            self.rotation = Rotation(ratings.processes, self.groups, (P, P))
            users, items, targets, weights = self.rotation.ratings_of_groups(users, items, targets, weights)
        user_group, item_group = (
            group.index_select(0, rows) for group, rows in zip(self.groups, (users, items), strict=True)
        )
        order, starts = counting_order(user_group.mul_(P).add_(item_group).numpy(), P * P)
        self.order = torch.from_numpy(order)
        weights = targets.new_empty(0) if weights is None else weights.index_select(0, self.order)
        users, items, targets = (column.index_select(0, self.order) for column in (users, items, targets))
        return Blocks(Entries(users.numpy(), items.numpy(), targets.numpy(), weights.numpy()), starts)

    @torch.no_grad()
    def epoch(self) -> dict[str, float]:
        options, P = self.options, self.n_groups
        lr = 0.5 * options.lr * (1 + math.cos(math.pi * (self.epochs % self.lr_epochs) / self.lr_epochs))
        users, items = self._rows(USER), self._rows(ITEM)
        exceeds_cache = (users.factors.nbytes + items.factors.nbytes) // P > CACHE_BYTES
        loss, ahead = LOSS_CODES[self.objective.loss], AHEAD if exceeds_cache else 0
        step = Step(lr, options.step == "proximal", loss, self.model.nonnegative, ahead)
        entries, starts = self.blocks
        for shift in torch.randperm(P, generator=self.generator).tolist():
            if self.rotation is not None:
                # User group g meets item group (g + shift) mod P.
                receivers = dict(enumerate(self.rotation.owners.roll(shift).tolist()))
                self.rotation.send_items(self._parameters(ITEM), receivers)

            def run(group: int, shift: int = shift) -> None:
                block = group * P + (group + shift) % P
                step_block(entries, users, items, step, starts[block], starts[block + 1])

            parallel(run, P)
        if self.rotation is not None:
            self.rotation.complete(self._parameters(USER), self._parameters(ITEM))
        self.epochs += 1
        if self.model.sessions is not None:
            self.objective.minimize_sessions(self.model, self.ratings)
            self.blocks.entries.targets[:] = self.model.targets(self.ratings).index_select(0, self.order).numpy()
        return {"lr": lr}

    def _parameters(self, entity: int) -> list[torch.Tensor]:
        """The parameters of an entity, whose memory the kernel changes."""
        (term,) = self.model.terms(entity)
        return [self.model.get_parameter(name).detach() for name in term.columns]

    @cached_property
    def _l2(self) -> list[Floats]:
        """(n_rows, 2) λ of the rows' factors and biases for each rating, of the users and of the items."""
        penalties = self.objective.penalty_weights(self.model, self.ratings)
        l2 = []
        for term, counts in zip(
            self.model.all_terms, (self.ratings.user_counts, self.ratings.item_counts), strict=True
        ):
            names = [term.factors, term.bias or term.factors]
            l2.append(torch.cat([penalties[name] / counts.clamp_min(1)[:, None] for name in names], 1).numpy())
        return l2

    def _rows(self, entity: int) -> Rows:
        """The parameters of an entity, and their λ for each rating."""
        factors, *biases = (parameter.numpy() for parameter in self._parameters(entity))
        return Rows(factors, biases[0][:, 0] if biases else np.empty(0, factors.dtype), self._l2[entity])

    def state_dict(self) -> dict[str, Any]:
        return {
            "epochs": self.epochs,
            "lr_epochs": self.lr_epochs,
            "groups": list(self.groups),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs, self.lr_epochs, self._blocks = state["epochs"], state["lr_epochs"], None
        self.groups = [group.cpu() for group in state["groups"]]
        self.generator.set_state(state["generator"].cpu())

"""Rotation: how the processes of sgd and block-sgd share the groups of users, and pass the groups of items around.

Process p owns user groups ⌈p P / C⌉ … ⌈(p + 1) P / C⌉ − 1 of P, for C processes.  An item group must be where the
ratings of the next block are: at the process that owns the block's users.

    Gemulla, Nijkamp, Haas & Sismanis 2011, "Large-scale matrix factorization with distributed stochastic gradient
    descent", section 4
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise

import torch
from torch import Tensor

from mfrec.processes import Processes


class Rotation:
    """Which process owns each user group, and which one holds each item group.

    Args:
        groups: (n_users,) and (n_items,) the group of each user and item, by their indices in the solver's own order.
        n_groups: the numbers of user groups and of item groups.

    Attributes:
        owners: (n_user_groups,) the process that owns each user group.
        holders: the process that holds the last values of each item group; None if every process does.
    """

    def __init__(self, processes: Processes, groups: Sequence[Tensor], n_groups: tuple[int, int]) -> None:
        self.processes, self.groups = processes, groups
        self.owners = torch.arange(n_groups[0]) * processes.count // n_groups[0]
        self.holders: list[int] | None = None
        # The items of each group.
        counts = torch.bincount(groups[1], minlength=n_groups[1]).tolist()
        self.members = torch.argsort(groups[1], stable=True).split(counts)

    def ratings_of_groups(
        self, users: Tensor, items: Tensor, targets: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The ratings of the user groups that this process owns, from each process's part of them, by process.

        Args:
            users, items: (n,) the ratings that this process has read; indices of `groups`.
            targets, weights: (n,) of these ratings.
        """
        to = self.owners.index_select(0, self.groups[0].index_select(0, users.cpu()).long())
        order, counts = torch.argsort(to, stable=True), torch.bincount(to, minlength=self.processes.count).tolist()

        def received(column: Tensor) -> Tensor:
            return self.processes.exchanged(column.index_select(0, order.to(column.device)), counts)

        return received(users), received(items), received(targets), None if weights is None else received(weights)

    def send_items(self, parameters: Sequence[Tensor], receivers: Mapping[int, int]) -> None:
        """Bring some item groups to a process each, unless they are there.

        Args:
            parameters: (n_items, …) each; their rows are overwritten.
            receivers: the process that is to hold a group, by the number of the group.
        """
        if self.holders is None:
            # Every process has the last values of all groups.
            self.holders = [receivers.get(group, 0) for group in range(len(self.members))]
            return
        here, everyone, holders = self.processes.index, range(self.processes.count), self.holders
        moves = [(group, (holders[group], to)) for group, to in receivers.items() if holders[group] != to]
        if not moves:
            return
        for group, (_, to) in moves:
            holders[group] = to
        leaving = [[group for group, move in moves if move == (here, process)] for process in everyone]
        arriving = [[group for group, move in moves if move == (process, here)] for process in everyone]
        counts = [
            [sum(len(self.members[group]) for group in groups) for groups in lists] for lists in (leaving, arriving)
        ]
        sent, received = (self._rows(chain.from_iterable(lists)) for lists in (leaving, arriving))
        for parameter in parameters:
            parameter[received] = self.processes.exchanged(parameter[sent], *counts)

    def _rows(self, groups: Iterable[int]) -> Tensor:
        return torch.cat([torch.empty(0, dtype=torch.int64), *(self.members[group] for group in groups)])

    def complete(self, user_parameters: Sequence[Tensor], item_parameters: Sequence[Tensor]) -> None:
        """Bring the last values of all rows to all processes."""
        assert self.holders is not None, "items must be sent before"
        for parameters, groups, process in (
            (user_parameters, self.groups[0], self.owners),
            (item_parameters, self.groups[1], torch.tensor(self.holders)),
        ):
            where = process.index_select(0, groups.long())
            order = torch.argsort(where, stable=True)
            ends = torch.bincount(where, minlength=self.processes.count).cumsum(0).tolist()
            parts = [slice(first, end) for first, end in pairwise([0, *ends])]
            for parameter in parameters:
                parameter[order] = self.processes.share(parameter[order], parts)
        self.holders = None

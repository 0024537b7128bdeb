"""Rotation: how the processes of sgd share the groups of users, and pass the groups of items around.

Process p owns user groups ⌈p P / C⌉ … ⌈(p + 1) P / C⌉ − 1 of P, for C processes.  In the stratum with shift s, user
group g meets item group (g + s) mod P, which is where that item group must be.

    Gemulla, Nijkamp, Haas & Sismanis 2011, "Large-scale matrix factorization with distributed stochastic gradient
    descent", section 4
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, pairwise

import torch
from torch import Tensor

from mfrec.processes import Processes


class Rotation:
    """Which process owns each user group, and which one holds each item group.

    Args:
        groups: (n_users,) and (n_items,) the group of each user and item.
        n_groups: P.

    Attributes:
        owners: (P,) the process that owns each user group.
        holders: (P,) the process that holds the last values of each item group; None if every process does.
    """

    def __init__(self, processes: Processes, groups: Sequence[Tensor], n_groups: int) -> None:
        self.processes, self.groups, self.n_groups = processes, groups, n_groups
        self.owners = torch.arange(n_groups) * processes.count // n_groups
        self.holders: Tensor | None = None
        # The items of each group.
        counts = torch.bincount(groups[1], minlength=n_groups).tolist()
        self.members = torch.argsort(groups[1], stable=True).split(counts)

    def ratings_of_groups(self, users: Tensor, items: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The ratings of the user groups that this process owns, by user, from each process's part of them.

        Args:
            users, items, targets: (n,) the ratings that this process has read, by user.
        """
        to = self.owners.index_select(0, self.groups[0].index_select(0, users).long())
        order, counts = torch.argsort(to, stable=True), torch.bincount(to, minlength=self.processes.count).tolist()
        columns = (column.index_select(0, order) for column in (users, items, targets))
        received = (self.processes.exchanged(column, counts) for column in columns)
        users, items, targets = received
        return users, items, targets

    def send_items(self, parameters: Sequence[Tensor], shift: int) -> None:
        """Bring each item group to the process whose users meet it in a stratum.

        Args:
            parameters: (n_items, …) each; their rows are overwritten.
            shift: s.
        """
        needed = self.owners[(torch.arange(self.n_groups) - shift) % self.n_groups]
        holders, self.holders = self.holders, needed
        if holders is None:
            return
        here = self.processes.index
        leaving = [
            [g for g in range(self.n_groups) if holders[g] == here and needed[g] == process and process != here]
            for process in range(self.processes.count)
        ]
        arriving = [
            g
            for process in range(self.processes.count)
            for g in range(self.n_groups)
            if holders[g] == process and needed[g] == here and process != here
        ]
        counts = [sum(len(self.members[group]) for group in groups) for groups in leaving]
        sent, received = self._rows(chain.from_iterable(leaving)), self._rows(arriving)
        for parameter in parameters:
            parameter[received] = self.processes.exchanged(parameter[sent], counts)

    def _rows(self, groups: Iterable[int]) -> Tensor:
        return torch.cat([torch.empty(0, dtype=torch.int64), *(self.members[group] for group in groups)])

    def complete(self, user_parameters: Sequence[Tensor], item_parameters: Sequence[Tensor]) -> None:
        """Bring the last values of all rows to all processes."""
        assert self.holders is not None, "an epoch has at least one stratum"
        for parameters, groups, process in (
            (user_parameters, self.groups[0], self.owners),
            (item_parameters, self.groups[1], self.holders),
        ):
            where = process.index_select(0, groups.long())
            order = torch.argsort(where, stable=True)
            ends = torch.bincount(where, minlength=self.processes.count).cumsum(0).tolist()
            parts = [slice(first, end) for first, end in pairwise([0, *ends])]
            for parameter in parameters:
                parameter[order] = self.processes.share(parameter[order], parts)
        self.holders = None

"""Sessions: groups of a user's training ratings that were entered close in time.

Ratings that a user enters at the same second (a page of a form) have correlated errors, and so have those within a
minute.  For each gap in seconds, a user's training ratings are sorted by time.  A session ends wherever the next rating
comes later than the gap.  A rating belongs to one session of every gap.

A rating that was not in training belongs to the session of the user's nearest training rating in time, of two equally
near the earlier.  If that is not within the gap, it belongs to none.  Held-out ratings make no sessions and join none.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError, OptionError
from mfrec.sparse import CSRPattern, stable_order


class Sessions:
    """The sessions of the users of some training ratings.

    Args:
        ratings: the training ratings, with timestamps.
        gaps: seconds, one number for each level.

    Attributes:
        starts: where the sessions of each level begin; the last is the number of sessions of all levels.

    Raises:
        InputError: the ratings have no timestamps, or the gaps are none, negative or repeated.

    Examples:
        >>> users, items, seconds = torch.tensor([0, 0, 0]), torch.tensor([0, 1, 2]), torch.tensor([100, 100, 150])
        >>> ratings = Ratings(users, items, torch.tensor([5.0, 4.0, 3.0]), timestamps=seconds)
        >>> sessions = Sessions(ratings, gaps=(0, 60))  # sessions 0 and 1 with gap 0, session 2 with gap 60
        >>> sessions.starts
        (0, 2, 3)
        >>> sessions.at(torch.tensor([0, 0]), torch.tensor([150, 200])).tolist()  # −1 means none
        [[1, -1], [2, 2]]
    """

    def __init__(self, ratings: Ratings, gaps: Sequence[int]) -> None:
        if not gaps or min(gaps) < 0 or len(set(gaps)) < len(gaps):
            shown = " ".join(map(str, gaps)) or "none"
            raise OptionError("session_gaps", f"must be different numbers of seconds, 0 or more (got {shown})")
        times = _timestamps(ratings).cpu()
        self.gaps = tuple(gaps)
        users = ratings.users.cpu()
        by_time = torch.argsort(times, stable=True)
        order = by_time[stable_order(users[by_time], ratings.n_users).long()]
        # Sorted by user, then time.
        self._users, self._times = users[order].long(), times[order]
        self._distinct = times.unique()
        self._keys = self._key(self._users, self._times)
        is_first = torch.ones(len(order), dtype=torch.bool)
        is_first[1:] = self._users.diff() != 0
        waits = self._times.diff(prepend=self._times[:1])
        levels, starts = [], [0]
        for gap in self.gaps:
            levels.append((is_first | (waits > gap)).cumsum(0) - 1 + starts[-1])
            starts.append(int(levels[-1][-1]) + 1 if len(order) else starts[-1])
        self.starts = tuple(starts)
        # (n_levels, n_ratings) the session of each rating, by user and time.
        self._levels = torch.stack(levels)
        self._patterns: WeakKeyDictionary[Ratings, tuple[CSRPattern, ...]] = WeakKeyDictionary()

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def slices(self) -> tuple[slice, ...]:
        """The sessions of each level, as slices of all sessions."""
        return tuple(slice(first, end) for first, end in pairwise(self.starts))

    def _key(self, users: Tensor, times: Tensor) -> Tensor:
        """Numbers that sort like (user, time) among the training ratings; equal for times between the same two."""
        return users * (len(self._distinct) + 1) + torch.searchsorted(self._distinct, times)

    def at(self, users: Tensor, timestamps: Tensor) -> Tensor:
        """(n_levels, n) the session of a rating by each user at each time; −1 if none is near enough.

        Args:
            users: (n,) user indices.
            timestamps: (n,) seconds since 1970.
        """
        if not len(self._keys):
            return torch.full((len(self.gaps), len(users)), -1, device=users.device)
        device, users, times = users.device, users.cpu().long(), timestamps.cpu().long()
        # The user's first training rating that is not earlier, and the last one that is.
        later = torch.searchsorted(self._keys, self._key(users, times))
        neighbours = torch.stack([later - 1, later]).clamp(0, len(self._keys) - 1)
        distances = (self._times[neighbours] - times).abs().double()
        distances[self._users[neighbours] != users] = torch.inf
        nearest, is_later = distances.min(0)
        position = neighbours.gather(0, is_later[None])[0]
        is_near = nearest <= torch.tensor(self.gaps, dtype=torch.float64)[:, None]
        return torch.where(is_near, self._levels[:, position], -1).to(device)

    def patterns(self, ratings: Ratings) -> tuple[CSRPattern, ...]:
        """For each level, the pattern of ratings × its sessions; made once for each `Ratings`, and kept.

        Raises:
            InputError: the ratings have no timestamps.
        """
        if ratings not in self._patterns:
            numbers = self.at(ratings.users, _timestamps(ratings))
            levels = zip(numbers, self.slices, strict=True)
            self._patterns[ratings] = tuple(_pattern(of_level - rows.start, rows) for of_level, rows in levels)
        return self._patterns[ratings]


def _pattern(numbers: Tensor, rows: slice) -> CSRPattern:
    """The pattern of ratings × the sessions of a level, by each rating's session, (n_ratings,); negative means none."""
    belongs, shape = numbers >= 0, (len(numbers), rows.stop - rows.start)
    dtype = torch.int32 if max(shape) < 2**31 else torch.int64
    crow = torch.nn.functional.pad(belongs.cumsum(0), (1, 0))
    return CSRPattern(crow.to(dtype), numbers[belongs].to(dtype), shape)


def _timestamps(ratings: Ratings) -> Tensor:
    if ratings.timestamps is None:
        raise InputError("sessions need timestamps, which these ratings lack; train without sessions")
    return ratings.timestamps

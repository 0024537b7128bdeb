"""A signature for other packages: data to train and test on, the points of a learning curve, and the settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from mfrec.data.ratings import Ratings

THREADS = 2
LARGE = 500_000  # ratings

Indices = npt.NDArray[np.integer[Any]]
Values = npt.NDArray[np.floating[Any]]
Settings = Mapping[str, Any]


class Split(NamedTuple):
    """Training ratings and test pairs as index arrays, their sizes, the rating range, and seconds since 1970."""

    train_users: Indices
    train_items: Indices
    train_values: Values
    test_users: Indices
    test_items: Indices
    n_users: int
    n_items: int
    rating_range: tuple[float, float]
    seed: int
    train_times: Indices | None = None
    test_times: Indices | None = None

    @classmethod
    def of(cls, training: Ratings, test: Ratings, rating_range: tuple[float, float], seed: int) -> Split:
        """The split of mfrec's ratings."""
        return cls(
            training.users.numpy(),
            training.items.numpy(),
            training.values.numpy(),
            test.users.numpy(),
            test.items.numpy(),
            training.n_users,
            training.n_items,
            rating_range,
            seed,
            *(None if ratings.timestamps is None else ratings.timestamps.numpy() for ratings in (training, test)),
        )

    def matrix(self, values: Values) -> Any:
        """The values of the training ratings, as a sparse matrix, users × items."""
        return sparse.coo_matrix((values, (self.train_users, self.train_items)), (self.n_users, self.n_items))


class Point(NamedTuple):
    """A training after a number of epochs: its seconds so far, and the predictions of the test pairs."""

    epochs: int
    seconds: float
    predictions: Values


Train = Callable[[Split, Settings, Sequence[int]], Iterator[Point]]


@dataclass(frozen=True)
class Peer:
    """Another package.

    Attributes:
        train: yields a `Point` for each number of epochs, ascending.
        large, small: the settings by name; "epochs" is the number of epochs.
        lengths: the numbers of epochs of a learning curve with the large settings, up to the chosen one.
        continues: whether one training yields all points; else each point is a training from the start.
    """

    train: Train
    large: Settings
    small: Settings
    lengths: tuple[int, ...]
    continues: bool = False

    def settings(self, n_ratings: int) -> Settings:
        """The settings for a number of training ratings."""
        return self.large if n_ratings > LARGE else self.small

    def trained(self, split: Split) -> Point:
        """The training with the settings chosen for this number of ratings."""
        settings = self.settings(len(split.train_values))
        (point,) = self.train(split, settings, (settings["epochs"],))
        return point


def from_the_start(train: Callable[[Split, Settings, int], tuple[Values, float]]) -> Train:
    """A function that trains from the start for each number of epochs."""

    def points(split: Split, settings: Settings, lengths: Sequence[int]) -> Iterator[Point]:
        for epochs in lengths:
            predictions, seconds = train(split, settings, epochs)
            yield Point(epochs, seconds, np.clip(predictions, *split.rating_range))

    return points

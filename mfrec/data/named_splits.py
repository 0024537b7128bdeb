"""Named splits: the test mask behind the name of an official split, a random split or a fold, and split labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mfrec.data.movielens import OFFICIAL_SPLITS
from mfrec.data.ratings import Ratings
from mfrec.data.splits import SPLIT_NAMES, SPLITS, TEST, TRAIN, VALID, k_folds, random_mask
from mfrec.errors import InputError, unknown

_FOLD = re.compile(r"fold-([1-9][0-9]{0,9})-of-([0-9]{1,10})")


def named_test_mask(
    ratings: Ratings,
    official_splits: Mapping[str, Tensor],
    split: str,
    fraction: float,
    generator: torch.Generator,
) -> Tensor:
    """(n_ratings,) bool, True for a test rating; see `Dataset.test_mask`.

    Raises:
        InputError: there is no such split or fold, the fraction is out of range, or timestamps are missing.
    """
    if split in official_splits:
        return official_splits[split]
    if split in SPLITS:
        return SPLITS[split](ratings, fraction, generator)
    fold = _FOLD.fullmatch(split)
    if fold is not None:
        number, k = int(fold.group(1)), int(fold.group(2))
        if number > k:
            raise InputError(f"the fold must be in 1 … {k} (got {split})")
        return k_folds(ratings, k, generator) == number - 1
    names = [*official_splits, *SPLITS]
    if split in OFFICIAL_SPLITS:
        raise InputError(f"these data have no official split {split!r}; choose from {', '.join(names)}")
    raise unknown("split", split, names)


def with_validation(ratings: Ratings, test: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """(n_ratings,) uint8 split labels: TEST by a mask, and a random fraction of the other ratings VALID.

    Raises:
        InputError: the fraction is not in [0, 1).
    """
    labels = torch.full((len(ratings),), TRAIN, dtype=torch.uint8)
    labels[test] = TEST
    training = (~test).nonzero().squeeze(1)
    labels[training[random_mask(len(training), fraction, generator)]] = VALID
    return labels


class SharedPairs:
    """Counts the (user, item) pairs whose ratings have different split labels; ratings may come in groups of pairs."""

    def __init__(self) -> None:
        self.n_shared, self._first = 0, 0

    def add(self, pairs: npt.NDArray[np.int64], labels: npt.NDArray[np.uint8]) -> None:
        """Count the shared pairs among some ratings; ratings that are added otherwise have other pairs.

        Args:
            pairs: (n_ratings,) a number for each (user, item) pair.
            labels: (n_ratings,) TRAIN, VALID or TEST.
        """
        labelled = np.unique(pairs * len(SPLIT_NAMES) + labels) // len(SPLIT_NAMES)
        shared = np.unique(labelled[1:][labelled[1:] == labelled[:-1]])
        if len(shared) and not self.n_shared:
            self._first = int(shared[0])
        self.n_shared += len(shared)

    def check(self, name_of: Callable[[int], str]) -> None:
        """Check that there are no such pairs.

        Args:
            name_of: names a pair for the message.

        Raises:
            InputError: there are some; the message counts them and names the first.
        """
        if self.n_shared:
            raise InputError(
                f"training, validation and test ratings must be disjoint: {self.n_shared:,} (user, item) pairs are in "
                f"more than one of them (e.g. {name_of(self._first)}); keep each pair in one file"
            )

"""myFM with the signature of `peer.Train`: Bayesian factorization machines by Gibbs sampling, one thread."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from peer import Indices, Point, Settings, Split
from scipy import sparse

BURN_IN = 20  # sweeps to leave out
DAY = 86_400  # seconds


def myfm_gibbs(split: Split, settings: Settings, lengths: Sequence[int]) -> Iterator[Point]:
    """myFM: a Bayesian factorization machine of user and item by Gibbs sampling, one thread.

    With `implicit`, the items of a user and the users of an item are features (SVD++ for both).  Predictions average
    over all sweeps but the first 20.

    Chosen on a validation set: 200 sweeps, the first 20 left out; large: rank 32 (validation RMSE 0.8341), implicit
    100 sweeps (0.8249); small: rank 8 (0.8974, mean of three), implicit rank 16 (0.8859).
    """
    points: list[Point] = []
    with contextlib.redirect_stderr(io.StringIO()):  # hides its progress bar, and a warning about pkg_resources
        from myfm import MyFMRegressor

        blocks, sizes = _blocks(split, settings.get("implicit", False))
        training, test = (
            blocks(split.train_users, split.train_items),
            blocks(split.test_users, split.test_items),
        )
        empty, total, predicting = sparse.csr_matrix((len(split.test_users), 0)), np.zeros(len(split.test_users)), 0.0

        def after_sweep(sweep: int, model: Any, *_: Any) -> tuple[bool, None]:
            nonlocal predicting
            paused = time.perf_counter()
            if sweep >= BURN_IN:
                total[:] += model.predict_score(empty, test)
            if sweep + 1 in lengths:
                mean = total / (sweep + 1 - BURN_IN) if sweep >= BURN_IN else model.predict_score(empty, test)
                points.append(Point(sweep + 1, paused - began - predicting, np.clip(mean, *split.rating_range)))
            predicting += time.perf_counter() - paused
            return False, None

        model = MyFMRegressor(rank=settings["rank"], random_seed=split.seed)
        began = time.perf_counter()
        model.fit(
            None,
            split.train_values.astype(np.float64),
            X_rel=training,
            n_iter=max(lengths),
            n_kept_samples=1,
            group_shapes=sizes,
            callback=after_sweep,
        )
    yield from points


def _blocks(split: Split, implicit: bool) -> tuple[Callable[[Indices, Indices], list[Any]], list[int]]:
    """A function that makes the relation blocks of pairs, and the sizes of the groups of features."""
    with contextlib.redirect_stderr(io.StringIO()):
        from myfm import RelationBlock

    seen = split.matrix(np.ones(len(split.train_users)))
    users, items = _features(seen.tocsr(), implicit), _features(seen.T.tocsr(), implicit)

    def blocks(user_indices: Indices, item_indices: Indices) -> list[Any]:
        pairs = (user_indices, users), (item_indices, items)
        return [RelationBlock(indices.astype(np.int64), features) for indices, features in pairs]

    sizes = [split.n_users, split.n_items]
    return blocks, [*sizes, *sizes[::-1]] if implicit else sizes


def _features(seen: Any, implicit: bool) -> Any:
    """One-hot indicators of the rows; with `implicit`, followed by the rows of `seen`, scaled to length one."""
    indicators = sparse.identity(seen.shape[0], format="csr")
    lengths = np.sqrt(np.maximum(np.diff(seen.indptr), 1))
    return sparse.hstack([indicators, sparse.diags(1 / lengths) @ seen], format="csr") if implicit else indicators


def timesvd_flipped(split: Split, rank: int, sweeps: int, ordinal: bool) -> Point:
    """myFM's "Bayesian timeSVD++ flipped": user, item, the day of the rating, and who rated what, of training ratings.

    With `ordinal` its ordered probit, else its regression.  Whole stars only.

        Rendle, Zhang & Koren 2019, "On the difficulty of evaluating baselines"
    """
    with contextlib.redirect_stderr(io.StringIO()):
        from myfm import MyFMOrderedProbit, MyFMRegressor

    assert split.train_times is not None
    assert split.test_times is not None
    blocks, sizes = _blocks(split, implicit=True)
    first, last = (int(limit(split.train_times)) // DAY for limit in (np.min, np.max))

    def days(times: Indices) -> Any:
        """One-hot indicators of the day; a day outside those of the training counts as the nearest."""
        day = np.clip(times // DAY, first, last) - first
        return sparse.csr_matrix((np.ones(len(day)), (np.arange(len(day)), day)), (len(day), last - first + 1))

    training, test = (
        blocks(split.train_users, split.train_items),
        blocks(split.test_users, split.test_items),
    )
    values = split.train_values.astype(np.float64)
    low, high = split.rating_range
    model = (MyFMOrderedProbit if ordinal else MyFMRegressor)(rank=rank, random_seed=split.seed)
    began = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        model.fit(
            days(split.train_times),
            (values - low).astype(np.int64) if ordinal else values,
            X_rel=training,
            n_iter=sweeps,
            n_kept_samples=sweeps - BURN_IN,
            group_shapes=[last - first + 1, *sizes],
        )
    seconds = time.perf_counter() - began
    if ordinal:
        probabilities = model.predict_proba(days(split.test_times), test)
        predictions = low + probabilities @ np.arange(probabilities.shape[1])
    else:
        predictions = model.predict(days(split.test_times), test)
    return Point(sweeps, seconds, np.clip(predictions, low, high))

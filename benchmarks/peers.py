"""Other packages with one signature: each trains on the same ratings and predicts the same test pairs.

    pip install -e ".[bench]"

A function takes a `Split`, and returns the test predictions, clipped to the rating range, and the seconds of training.
The seconds do not include converting the ratings and predicting.  A function imports its package, so that without it
an ImportError is raised and the other packages still run.  Each uses two threads if it can.

Each package's settings have the best RMSE on a validation set.  "Large" settings are for ML-1M (validation: 5 % of the
training set of the random split), "small" settings for ML-100K (10 % of u1.base).  The number of ratings decides which
apply.  No choice looked at a test set.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

THREADS = 2
LARGE = 500_000  # ratings

Indices = npt.NDArray[np.integer[Any]]
Values = npt.NDArray[np.floating[Any]]
Measured = tuple[Values, float]


class Split(NamedTuple):
    """Training ratings and test pairs as index arrays, their sizes, and the rating range."""

    train_users: Indices
    train_items: Indices
    train_values: Values
    test_users: Indices
    test_items: Indices
    n_users: int
    n_items: int
    rating_range: tuple[float, float]
    seed: int


Peer = Callable[[Split], Measured]


def surprise_svd(split: Split) -> Measured:
    """Surprise SVD: SGD with biases, one thread, always in the same order, user by user.

    Chosen on a validation set: rank 128, lr 0.005, start 0.01; large: l2 0.04, 50 epochs (validation RMSE 0.8396);
    small: l2 0.07, 80 epochs (0.9062).
    """
    from surprise import SVD, Dataset, Reader

    l2, epochs = (0.04, 50) if len(split.train_values) > LARGE else (0.07, 80)
    table = pd.DataFrame({"user": split.train_users, "item": split.train_items, "value": split.train_values})
    training = Dataset.load_from_df(table, Reader(rating_scale=split.rating_range)).build_full_trainset()
    model = SVD(n_factors=128, n_epochs=epochs, lr_all=0.005, reg_all=l2, init_std_dev=0.01, random_state=split.seed)
    began = time.perf_counter()
    model.fit(training)
    seconds = time.perf_counter() - began
    pairs = zip(split.test_users.tolist(), split.test_items.tolist(), strict=True)
    tested = model.test([(user, item, 0.0) for user, item in pairs])
    return np.clip(np.array([prediction.est for prediction in tested]), *split.rating_range), seconds


def cornac_mf(split: Split) -> Measured:
    """cornac MF: SGD with biases, lock-free on two threads, the ratings shuffled once; runs differ in their bits.

    Chosen on a validation set: rank 128, lr 0.005, start 0.01; large: l2 0.035, 50 epochs (validation RMSE 0.8392,
    mean of three); small: l2 0.07, 80 epochs (0.9056).
    """
    from cornac.data import Dataset
    from cornac.models import MF

    rank, start = 128, 0.01
    l2, epochs = (0.035, 50) if len(split.train_values) > LARGE else (0.07, 80)
    generator = np.random.default_rng(split.seed)
    order = generator.permutation(len(split.train_values))
    columns = (
        split.train_users[order].astype(np.int64),
        split.train_items[order].astype(np.int64),
        split.train_values[order].astype(float),
    )
    training = Dataset(
        split.n_users,
        split.n_items,
        {u: u for u in range(split.n_users)},
        {i: i for i in range(split.n_items)},
        columns,
    )
    # Initial factors are drawn here, because cornac uses one thread if it has a seed.
    factors = {
        "U": generator.normal(0.0, start, (split.n_users, rank)).astype(np.float32),
        "V": generator.normal(0.0, start, (split.n_items, rank)).astype(np.float32),
    }
    model = MF(k=rank, max_iter=epochs, learning_rate=0.005, lambda_reg=l2, num_threads=THREADS, init_params=factors)
    began = time.perf_counter()
    model.fit(training)
    seconds = time.perf_counter() - began
    predictions = np.einsum("nk,nk->n", model.u_factors[split.test_users], model.i_factors[split.test_items])
    predictions += model.global_mean + model.u_biases[split.test_users] + model.i_biases[split.test_items]
    return np.clip(predictions, *split.rating_range), seconds


def cmfrec_als(split: Split, *, implicit: bool = False) -> Measured:
    """cmfrec CMF: ALS by conjugate gradients with biases, l2 times a row's ratings; no precomputation for new users.

    With `implicit` it also factorizes who rated what.

    Chosen on a validation set: 10 sweeps, l2 of the biases 0.03; large: rank 128, l2 0.07 (validation RMSE 0.8475),
    implicit l2 0.08 and weight 0.7 (0.8424); small: rank 64, l2 0.13 (0.9145), implicit weight 1 (0.9041).
    """
    from cmfrec import CMF

    large = len(split.train_values) > LARGE
    l2 = (0.08 if implicit else 0.07) if large else 0.13
    ratings = sparse.coo_matrix(
        (split.train_values.astype(np.float32), (split.train_users, split.train_items)), (split.n_users, split.n_items)
    )
    model = CMF(
        k=128 if large else 64,
        lambda_=np.array([0.03, 0.03, l2, l2, l2, l2]),
        niter=10,
        scale_lam=True,
        add_implicit_features=implicit,
        w_implicit=0.7 if large else 1.0,
        finalize_chol=False,
        precompute_for_predictions=False,
        random_state=split.seed,
        nthreads=THREADS,
        verbose=False,
    )
    began = time.perf_counter()
    model.fit(ratings)
    seconds = time.perf_counter() - began
    return np.clip(model.predict(split.test_users, split.test_items), *split.rating_range), seconds


def myfm_gibbs(split: Split, *, implicit: bool = False) -> Measured:
    """myFM: a Bayesian factorization machine of user and item by Gibbs sampling, one thread.

    With `implicit`, the items of a user and the users of an item are features (SVD++ for both).

    Chosen on a validation set: 200 sweeps, the first 20 left out; large: rank 32 (validation RMSE 0.8341), implicit
    100 sweeps (0.8249); small: rank 8 (0.8974, mean of three), implicit rank 16 (0.8859).
    """
    with contextlib.redirect_stderr(io.StringIO()):  # hides its progress bar, and a warning about pkg_resources
        from myfm import MyFMRegressor, RelationBlock

        large = len(split.train_values) > LARGE
        sweeps = 100 if implicit and large else 200
        seen = sparse.coo_matrix(
            (np.ones(len(split.train_users)), (split.train_users, split.train_items)), (split.n_users, split.n_items)
        )
        users, items = _features(seen.tocsr(), implicit), _features(seen.T.tocsr(), implicit)

        def blocks(user_indices: Indices, item_indices: Indices) -> list[Any]:
            pairs = (user_indices, users), (item_indices, items)
            return [RelationBlock(indices.astype(np.int64), features) for indices, features in pairs]

        model = MyFMRegressor(rank=32 if large else 16 if implicit else 8, random_seed=split.seed)
        began = time.perf_counter()
        model.fit(
            None,
            split.train_values.astype(np.float64),
            X_rel=blocks(split.train_users, split.train_items),
            n_iter=sweeps,
            n_kept_samples=sweeps - 20,
            group_shapes=[split.n_users, split.n_items, split.n_items, split.n_users]
            if implicit
            else [split.n_users, split.n_items],
        )
        seconds = time.perf_counter() - began
        predictions = model.predict(None, blocks(split.test_users, split.test_items), n_workers=THREADS)
    return np.clip(predictions, *split.rating_range), seconds


def _features(seen: Any, implicit: bool) -> Any:
    """One-hot indicators of the rows; with `implicit`, followed by the rows of `seen`, scaled to length one."""
    indicators = sparse.identity(seen.shape[0], format="csr")
    lengths = np.sqrt(np.maximum(np.diff(seen.indptr), 1))
    return sparse.hstack([indicators, sparse.diags(1 / lengths) @ seen], format="csr") if implicit else indicators


PEERS: dict[str, Peer] = {
    "Surprise SVD": surprise_svd,
    "cornac MF": cornac_mf,
    "cmfrec CMF": cmfrec_als,
    "cmfrec CMF, implicit": partial(cmfrec_als, implicit=True),
    "myFM": myfm_gibbs,
    "myFM, implicit": partial(myfm_gibbs, implicit=True),
}

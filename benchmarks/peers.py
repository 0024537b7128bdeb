"""Other packages with one signature: each trains on the same ratings and predicts the same test pairs.

    pip install -e ".[bench]"

`PEERS` declares each package once.  A function trains it on a `Split`, and yields a `Point` for each number of epochs
asked for: the seconds of training so far, and the test predictions, clipped to the rating range.  The seconds do not
include converting the ratings and predicting.  A function imports its package, so that without it an ImportError is
raised and the other packages still run.  Each uses two threads if it can.

Each package's settings have the best RMSE on a validation set.  "Large" settings are for ML-1M (validation: 5 % of the
training set of the random split), "small" settings for ML-100K (10 % of u1.base).  The number of ratings decides which
apply.  No choice looked at a test set.

implicit is not among them.  Its ALS takes values as confidences of a preference of 1 and cannot fit explicit ratings.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from myfm_peer import myfm_gibbs
from peer import THREADS, Peer, Point, Settings, Split, Values, from_the_start
from torch import Tensor, nn


def surprise_svd(split: Split, settings: Settings, epochs: int) -> tuple[Values, float]:
    """Surprise SVD: SGD with biases, one thread, always in the same order, user by user.

    Chosen on a validation set: large: l2 0.04, 50 epochs (validation RMSE 0.8396); small: l2 0.07, 80 epochs (0.9062).
    """
    from surprise import SVD, Dataset, Reader

    table = pd.DataFrame({"user": split.train_users, "item": split.train_items, "value": split.train_values})
    training = Dataset.load_from_df(table, Reader(rating_scale=split.rating_range)).build_full_trainset()
    model = SVD(
        n_factors=settings["rank"],
        n_epochs=epochs,
        lr_all=settings["lr"],
        reg_all=settings["l2"],
        init_std_dev=0.01,
        random_state=split.seed,
    )
    began = time.perf_counter()
    model.fit(training)
    seconds = time.perf_counter() - began
    pairs = zip(split.test_users.tolist(), split.test_items.tolist(), strict=True)
    tested = model.test([(user, item, 0.0) for user, item in pairs])
    return np.array([prediction.est for prediction in tested]), seconds


def cornac_mf(split: Split, settings: Settings, epochs: int) -> tuple[Values, float]:
    """cornac MF: SGD with biases, lock-free on two threads, the ratings shuffled once; runs differ in their bits.

    Chosen on a validation set: large: l2 0.035, 50 epochs (validation RMSE 0.8392, mean of three); small: l2 0.07,
    80 epochs (0.9056).
    """
    from cornac.data import Dataset
    from cornac.models import MF

    rank, start = settings["rank"], 0.01
    generator = np.random.default_rng(split.seed)
    order = generator.permutation(len(split.train_values))
    columns = (
        split.train_users[order].astype(np.int64),
        split.train_items[order].astype(np.int64),
        split.train_values[order].astype(float),
    )
    users, items = ({index: index for index in range(n)} for n in (split.n_users, split.n_items))
    training = Dataset(split.n_users, split.n_items, users, items, columns)
    # Initial factors are drawn here, because cornac uses one thread if it has a seed.
    factors = {
        "U": generator.normal(0.0, start, (split.n_users, rank)).astype(np.float32),
        "V": generator.normal(0.0, start, (split.n_items, rank)).astype(np.float32),
    }
    model = MF(
        k=rank,
        max_iter=epochs,
        learning_rate=settings["lr"],
        lambda_reg=settings["l2"],
        num_threads=THREADS,
        init_params=factors,
    )
    began = time.perf_counter()
    model.fit(training)
    seconds = time.perf_counter() - began
    predictions: Values = np.einsum("nk,nk->n", model.u_factors[split.test_users], model.i_factors[split.test_items])
    predictions += model.global_mean + model.u_biases[split.test_users] + model.i_biases[split.test_items]
    return predictions, seconds


def libmf(split: Split, settings: Settings, epochs: int) -> tuple[Values, float]:
    """LIBMF: SGD on blocks, lock-free on two threads, with Adagrad's step sizes and without biases.

    Its bindings and its C++ are compiled on installation.  Factors start at positive numbers, so that subtracting the
    mean of the ratings before training makes it worse.

    Chosen on a validation set: rank 128, lr 0.05; large: l2 0.045, 14 epochs (validation RMSE 0.8400); small: l2 0.08,
    16 epochs (0.9088).  Tried: rank 64, lr 0.03 to 0.1, l2 0.04 to 0.1.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # hides where it finds its library
        from libmf import mf

    training = np.empty((len(split.train_values), 3), np.float32)
    training[:, 0], training[:, 1], training[:, 2] = split.train_users, split.train_items, split.train_values
    model = mf.MF(
        k=settings["rank"],
        nr_iters=epochs,
        eta=settings["lr"],
        lambda_p2=settings["l2"],
        lambda_q2=settings["l2"],
        lambda_p1=0.0,
        lambda_q1=0.0,
        nr_threads=THREADS,
        quiet=True,
    )
    began = time.perf_counter()
    model.fit(training)
    seconds = time.perf_counter() - began
    # Factors of rows without ratings are NaN, or missing if the rows are the last.
    users, items = (np.full((n, model.model.k), np.nan) for n in (split.n_users, split.n_items))
    for factors, trained in ((users, model.p_factors()), (items, model.q_factors())):
        factors[: len(trained)] = trained
    predictions: Values = np.einsum("nk,nk->n", users[split.test_users], items[split.test_items])
    return np.nan_to_num(predictions, nan=split.train_values.mean()), seconds


def cmfrec_als(split: Split, settings: Settings, epochs: int) -> tuple[Values, float]:
    """cmfrec CMF: ALS by conjugate gradients with biases, l2 times a row's ratings; no precomputation for new users.

    With `implicit`, the weight of a second loss, it also factorizes who rated what.

    Chosen on a validation set: 10 sweeps, l2 of the biases 0.03; large: rank 128, l2 0.07 (validation RMSE 0.8475),
    implicit l2 0.08 and weight 0.7 (0.8424); small: rank 64, l2 0.13 (0.9145), implicit weight 1 (0.9041).
    """
    from cmfrec import CMF

    ratings, l2, implicit = (
        split.matrix(split.train_values.astype(np.float32)),
        settings["l2"],
        settings.get("implicit"),
    )
    model = CMF(
        k=settings["rank"],
        lambda_=np.array([0.03, 0.03, l2, l2, l2, l2]),
        niter=epochs,
        scale_lam=True,
        add_implicit_features=implicit is not None,
        w_implicit=implicit or 1.0,
        finalize_chol=False,
        precompute_for_predictions=False,
        random_state=split.seed,
        nthreads=THREADS,
        verbose=False,
    )
    began = time.perf_counter()
    model.fit(ratings)
    seconds = time.perf_counter() - began
    predictions: Values = model.predict(split.test_users, split.test_items)
    return predictions, seconds


def lenskit_als(split: Split, settings: Settings, lengths: Sequence[int]) -> Iterator[Point]:
    """LensKit BiasedMFScorer: exact ALS on the ratings less damped biases, l2 times a row's ratings.

    Chosen on a validation set: large: rank 64, l2 0.08, 10 epochs (validation RMSE 0.8579); small: rank 32, l2 0.15,
    15 epochs (0.9168).  Tried: rank 8 to 64, l2 0.05 to 0.2, damping 5.
    """
    os.environ["LK_NUM_THREADS"] = os.environ["LK_NUM_BACKEND_THREADS"] = str(THREADS)
    from lenskit.als import BiasedMFScorer
    from lenskit.data import from_interactions_df
    from lenskit.training import TrainingOptions

    table = pd.DataFrame({"user": split.train_users, "item": split.train_items, "rating": split.train_values})
    names = {"user_col": "user", "item_col": "item", "rating_col": "rating"}
    data = from_interactions_df(table, users=range(split.n_users), items=range(split.n_items), **names)
    scorer: Any = BiasedMFScorer(
        embedding_size=settings["rank"], regularization=settings["l2"], damping=settings["damping"]
    )
    began = time.perf_counter()
    trainer = scorer.create_trainer(data, TrainingOptions(rng=split.seed))
    seconds = time.perf_counter() - began
    for epoch in range(1, max(lengths) + 1):
        began = time.perf_counter()
        trainer.train_epoch()
        seconds += time.perf_counter() - began
        if epoch in lengths:
            users, items = scorer.user_embeddings[split.test_users], scorer.item_embeddings[split.test_items]
            biases = scorer.bias.user_biases[split.test_users] + scorer.bias.item_biases[split.test_items]
            predictions = scorer.bias.global_bias + biases + np.einsum("nk,nk->n", users, items)
            yield Point(epoch, seconds, np.clip(predictions, *split.rating_range))


class Embeddings(nn.Module):
    """Biased matrix factorization as tutorials write it."""

    def __init__(self, n_users: int, n_items: int, rank: int, mean: float) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(n_users, rank), nn.Embedding(n_items, rank)
        self.user_bias, self.item_bias = nn.Embedding(n_users, 1), nn.Embedding(n_items, 1)
        self.mean = mean
        for embedding, std in ((self.users, 0.1), (self.items, 0.1), (self.user_bias, 0.0), (self.item_bias, 0.0)):
            nn.init.normal_(embedding.weight, 0.0, std)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        biases = self.user_bias(users)[:, 0] + self.item_bias(items)[:, 0] + self.mean
        predictions: Tensor = biases + (self.users(users) * self.items(items)).sum(1)
        return predictions


def embeddings(split: Split, settings: Settings, lengths: Sequence[int]) -> Iterator[Point]:
    """nn.Embedding for factors and biases, mini-batches in random order, autograd and an optimizer of torch.optim.

    Batches are slices of shuffled tensors, which is faster than a DataLoader.

    Chosen on a validation set: Adam, large: batch 8192, lr 0.005, weight decay 4e-5, 8 epochs (validation RMSE 0.8516),
    small: batch 1024, lr 0.003, weight decay 3e-4, 20 epochs (0.9110); SGD, batch 1024, lr 5, large: weight decay 5e-5,
    20 epochs (0.8548), small: weight decay 3e-4, 40 epochs (0.9117).  Tried: rank 64, for Adam 128 as well; lr 0.002 to
    0.005 and 2 to 10; weight decay 1e-5 to 4e-4.
    """
    torch.set_num_threads(THREADS)
    torch.manual_seed(split.seed)
    users, items = (torch.from_numpy(index.astype(np.int64)) for index in (split.train_users, split.train_items))
    values = torch.from_numpy(split.train_values.astype(np.float32))
    test = (torch.from_numpy(index.astype(np.int64)) for index in (split.test_users, split.test_items))
    test_users, test_items = test
    began = time.perf_counter()
    model = Embeddings(split.n_users, split.n_items, settings["rank"], float(values.mean()))
    optimizer = getattr(torch.optim, settings["optimizer"])(
        model.parameters(), lr=settings["lr"], weight_decay=settings["weight_decay"]
    )
    seconds = time.perf_counter() - began
    for epoch in range(1, max(lengths) + 1):
        began = time.perf_counter()
        for batch in torch.randperm(len(values)).split(settings["batch"]):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(users[batch], items[batch]), values[batch])
            loss.backward()
            optimizer.step()
        seconds += time.perf_counter() - began
        if epoch in lengths:
            with torch.no_grad():
                predictions = model(test_users, test_items).numpy()
            yield Point(epoch, seconds, np.clip(predictions, *split.rating_range))


PEERS: dict[str, Peer] = {
    "Surprise SVD": Peer(
        from_the_start(surprise_svd),
        large={"rank": 128, "lr": 0.005, "l2": 0.04, "epochs": 50},
        small={"rank": 128, "lr": 0.005, "l2": 0.07, "epochs": 80},
        lengths=(5, 10, 20, 30, 40, 50),
    ),
    "cornac MF": Peer(
        from_the_start(cornac_mf),
        large={"rank": 128, "lr": 0.005, "l2": 0.035, "epochs": 50},
        small={"rank": 128, "lr": 0.005, "l2": 0.07, "epochs": 80},
        lengths=(5, 10, 20, 30, 40, 50),
    ),
    "LIBMF": Peer(
        from_the_start(libmf),
        large={"rank": 128, "lr": 0.05, "l2": 0.045, "epochs": 14},
        small={"rank": 128, "lr": 0.05, "l2": 0.08, "epochs": 16},
        lengths=(2, 4, 6, 8, 10, 12, 14),
    ),
    "cmfrec CMF": Peer(
        from_the_start(cmfrec_als),
        large={"rank": 128, "l2": 0.07, "epochs": 10},
        small={"rank": 64, "l2": 0.13, "epochs": 10},
        lengths=(1, 2, 3, 4, 6, 8, 10),
    ),
    "cmfrec CMF, implicit": Peer(
        from_the_start(cmfrec_als),
        large={"rank": 128, "l2": 0.08, "implicit": 0.7, "epochs": 10},
        small={"rank": 64, "l2": 0.13, "implicit": 1.0, "epochs": 10},
        lengths=(1, 2, 3, 4, 6, 8, 10),
    ),
    "LensKit BiasedMF": Peer(
        lenskit_als,
        large={"rank": 64, "l2": 0.08, "damping": 5.0, "epochs": 10},
        small={"rank": 32, "l2": 0.15, "damping": 5.0, "epochs": 15},
        lengths=(1, 2, 3, 4, 5, 6, 8, 10),
        continues=True,
    ),
    "nn.Embedding, Adam": Peer(
        embeddings,
        large={"optimizer": "Adam", "rank": 64, "batch": 8192, "lr": 0.005, "weight_decay": 4e-5, "epochs": 8},
        small={"optimizer": "Adam", "rank": 64, "batch": 1024, "lr": 0.003, "weight_decay": 3e-4, "epochs": 20},
        lengths=tuple(range(1, 9)),
        continues=True,
    ),
    "nn.Embedding, SGD": Peer(
        embeddings,
        large={"optimizer": "SGD", "rank": 64, "batch": 1024, "lr": 5.0, "weight_decay": 5e-5, "epochs": 20},
        small={"optimizer": "SGD", "rank": 64, "batch": 1024, "lr": 5.0, "weight_decay": 3e-4, "epochs": 40},
        lengths=tuple(range(1, 21)),
        continues=True,
    ),
    "myFM": Peer(
        myfm_gibbs,
        large={"rank": 32, "epochs": 200},
        small={"rank": 8, "epochs": 200},
        lengths=(5, 10, 20, 25, 30, 40, 60, 80, 100, 150, 200),
        continues=True,
    ),
    "myFM, implicit": Peer(
        myfm_gibbs,
        large={"rank": 32, "implicit": True, "epochs": 100},
        small={"rank": 16, "implicit": True, "epochs": 200},
        lengths=(5, 10, 20, 25, 30, 40, 60, 80, 100),
        continues=True,
    ),
}

"""Posteriors: what solvers that do not end in one model know, as a mean prediction and a deviation of each rating.

    Samples     draws θ_s, x_s of all parameters.  The mean of S predictions, each a product of tables, is one product
                of S-fold tables, (1/S) Σ_s θ_s · x_s = [θ_1, …, θ_S]/S · [x_1, …, x_S], and so a `MatrixFactorization`
                again: whatever ranks, compares or evaluates models takes it as it is.  What the draws have in common
                has a low rank, so the tables are cut to their largest singular values as they grow.
    MeanField   independent Gaussians with variances s and v beside the means θ̃ and x̃, which are the model itself: the
                prediction θ̃ · x̃ has the variance s · x̃² + θ̃² · v + s · v, three products of tables.

A deviation is that of a rating, not of its expectation: the variance of its noise, 1/(α τ_j τ_i), is in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mfrec.model.factorization import ITEM, USER, MatrixFactorization, pair_dots

# Nine ratings in ten are within so many deviations of their predictions: the normal's quantile of 0.95.
NINETY = 1.6448536269514722
# τ ~ Gamma(c, c), the noise factor of a user or an item: as much evidence as 2c ratings that a row is like the others.
NOISE_SHAPE = 16.0
# The mean's tables have this many times the model's rank, and before they are cut to it so many draws more.  On ML-100K
# the RMSE is then within 0.0005 of the exact mean's.
MEAN_RANKS, BUFFERED = 6, 6


class Posterior(Protocol):
    """What a solver with a posterior offers; `model` has the features, offset and scale that all of it share."""

    model: MatrixFactorization

    def mean_model(self) -> MatrixFactorization:
        """A model that predicts the posterior mean of every prediction."""
        ...

    def deviation(self, users: Tensor, items: Tensor, *, noise: bool = True) -> Tensor:
        """(n,) standard deviation of the rating of each (user, item) index pair; without noise, of what is expected."""
        ...

    def draw(self, generator: torch.Generator | None = None) -> MatrixFactorization:
        """A model drawn from the posterior, on the CPU's generator whatever the device."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What `posterior_from_state` makes the same posterior of."""
        ...


class Samples:
    """Draws from the posterior of a model's parameters, and the mean of what they all predict.

    The mean is over every draw offered.  Of the draws themselves at most so many are kept, evenly spread, for what the
    mean does not tell: deviations, and rows that are yet to come.

    Args:
        model: the model whose parameters are drawn, and whose features, offset and scale all draws share.
        most: how many draws to keep; once there are more, every other one goes, and then only every other one comes.
        same_noise: whether τ is 1 for all users and items.
    """

    def __init__(self, model: MatrixFactorization, most: int, same_noise: bool = False) -> None:
        self.model, self.most, self.same_noise = model, most, same_noise
        self.offered, self.stride = 0, 1
        self.draws: list[dict[str, Any]] = []
        # Σ_s θ_s · x_s is the product of these, Σ_s of the biases beside them.
        sizes = model.n_users, model.n_items
        self.sums = [model.scale.new_zeros(n, 0) for n in sizes]
        self.bias_sums = [model.scale.new_zeros(n) for n in sizes]

    @torch.no_grad()
    def offer(
        self,
        alpha: float,
        noise: Sequence[Tensor],
        priors: Sequence[Sequence[Tensor]],
        expected: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """The model's parameters as they are now, with the draws of α, of τ, and of each term's λ and m.

        Where what the draw predicts on average given all else is known, `expected` are tables of which the product is
        that: the mean over draws takes these, which are less noisy (Rao–Blackwell), and deviations the draw.
        """
        if self.offered % self.stride == 0:
            parameters = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
            pairs = [list(prior) for prior in priors]
            self.draws.append({"parameters": parameters, "alpha": alpha, "noise": list(noise), "priors": pairs})
        self.offered += 1
        if len(self.draws) > self.most:
            self.draws, self.stride = self.draws[::2], 2 * self.stride
        k = self.model.rank
        for side, table in enumerate(expected or self.model.tables()):
            self.sums[side] = torch.cat([self.sums[side], table[:, :k]], 1)
            if self.model.biases:
                self.bias_sums[side] += table[:, k + side]
        if self.sums[USER].shape[1] >= (MEAN_RANKS + BUFFERED) * k:
            self.sums = list(truncated(self.sums[USER], self.sums[ITEM], MEAN_RANKS * k))

    @torch.no_grad()
    def mean_model(self) -> MatrixFactorization:
        """The model, of several times the rank, that predicts the mean of the draws."""
        users, items = self.sums[USER] / self.offered, self.sums[ITEM]
        model = self.model
        if model.biases:
            (b_user, b_item), one = (total[:, None] / self.offered for total in self.bias_sums), torch.ones_like
            users, items = torch.cat([users, b_user, one(b_user)], 1), torch.cat([items, one(b_item), b_item], 1)
        return _plain(model, users, items)

    @torch.no_grad()
    def deviation(self, users: Tensor, items: Tensor, *, noise: bool = True) -> Tensor:
        """(n,) in stars: the root of the variance between the kept draws' predictions, and of the mean noise's."""
        total = squares = variance = self.model.scale.new_zeros(len(users), dtype=torch.float64)
        for draw in self.draws:
            product = pair_dots(*self.model.tables(draw["parameters"]), users, items).double()
            total, squares = total + product, squares + product.square()
            if noise:
                tau_user, tau_item = draw["noise"]
                variance = variance + 1 / (draw["alpha"] * pair_dots(tau_user, tau_item, users, items).double())
        n = len(self.draws)
        spread = (squares - total.square() / n).clamp_min(0) / max(n - 1, 1)
        deviation: Tensor = (spread + variance / n).sqrt()
        return deviation.to(self.model.scale.dtype)

    @torch.no_grad()
    def draw(self, generator: torch.Generator | None = None) -> MatrixFactorization:
        """One of the draws that were kept, each as likely, as a model without features."""
        return self._drawn(int(torch.randint(len(self.draws), (), generator=generator)))

    def models(self) -> Iterator[MatrixFactorization]:
        """The draws that were kept, in their order, each as a model."""
        return map(self._drawn, range(len(self.draws)))

    def _drawn(self, n: int) -> MatrixFactorization:
        return _plain(self.model, *self.model.tables(self.draws[n]["parameters"]))

    def state_dict(self) -> dict[str, Any]:
        """The draws that were kept, and the sums over all that were offered."""
        return {
            "most": self.most,
            "same_noise": self.same_noise,
            "offered": self.offered,
            "stride": self.stride,
            "draws": list(self.draws),
            "sums": list(self.sums),
            "bias_sums": [total.clone() for total in self.bias_sums],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` gave, on the model's device; `most` stays as it is."""
        device = self.model.scale.device
        self.same_noise = state["same_noise"]
        self.offered, self.stride = state["offered"], state["stride"]
        self.draws = [
            {
                "parameters": {name: p.to(device) for name, p in draw["parameters"].items()},
                "alpha": draw["alpha"],
                "noise": [tensor.to(device) for tensor in draw["noise"]],
                "priors": [[tensor.to(device) for tensor in prior] for prior in draw["priors"]],
            }
            for draw in state["draws"]
        ]
        self.sums, self.bias_sums = ([t.to(device) for t in state[name]] for name in ("sums", "bias_sums"))


def _plain(model: MatrixFactorization, users: Tensor, items: Tensor) -> MatrixFactorization:
    """The model without features that has these tables."""
    return model.from_tables(users, items, biases=model.biases, offset=model.offset, scale=model.scale)


def truncated(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Two tables of `rank` columns, or fewer where it has no more, whose product is left rightᵀ, (n, m), cut to its
    largest singular values.

    With left = Q R and right = P S, left rightᵀ = Q (R Sᵀ) Pᵀ: only the small middle needs a decomposition.
    """
    (Q, R), (P, S) = torch.linalg.qr(left), torch.linalg.qr(right)
    a, values, b = torch.linalg.svd(R @ S.mT, full_matrices=False)
    root = values[:rank].sqrt()
    return Q @ (a[:, :rank] * root), P @ (b[:rank].mT * root)


class MeanField:
    """Independent Gaussians whose means are the model's parameters.

    Args:
        model: the means.
        variances: of every number of Θ̃ and of X̃, laid out like them; 0 on the columns of ones.
        precision: λ of every column of Θ̃ and of X̃, (1, k) each.
        alpha: α; noise: τ of every user and item, (n, 1), so that a rating's noise has the variance 1/(α τ_j τ_i).
    """

    def __init__(
        self,
        model: MatrixFactorization,
        variances: Sequence[Tensor],
        precision: Sequence[Tensor],
        alpha: float,
        noise: Sequence[Tensor],
    ) -> None:
        self.model, self.alpha = model, alpha
        self.variances, self.precision, self.noise = tuple(variances), tuple(precision), tuple(noise)

    def mean_model(self) -> MatrixFactorization:
        """The model itself, since of independent factors the mean of a product is the product of the means."""
        return self.model

    @torch.no_grad()
    def deviation(self, users: Tensor, items: Tensor, *, noise: bool = True) -> Tensor:
        """(n,) in stars: √(s · x̃² + θ̃² · v + s · v), with the noise's variance 1/(α τ_j τ_i) under the root too."""
        theta, x = self.model.tables()
        s, v = self.variances
        left, right = torch.cat([s, theta.square(), s], 1), torch.cat([x.square(), v, v], 1)
        variance = pair_dots(left, right, users, items)
        if noise:
            variance = variance + 1 / (self.alpha * pair_dots(self.noise[USER], self.noise[ITEM], users, items))
        return variance.sqrt()

    @torch.no_grad()
    def draw(self, generator: torch.Generator | None = None) -> MatrixFactorization:
        """Every number drawn from its own Gaussian, as a model without features."""
        drawn = []
        for table, variances in zip(self.model.tables(), self.variances, strict=True):
            drawn.append(table + standard_normal(table.shape, table, generator) * variances.sqrt())
        return _plain(self.model, *drawn)

    def state_dict(self) -> dict[str, Any]:
        """The variances, λ, α and τ; the means are the model's own state."""
        return {
            "variances": list(self.variances),
            "precision": list(self.precision),
            "alpha": self.alpha,
            "noise": list(self.noise),
        }


def posterior_from_state(state: Mapping[str, Any], model: MatrixFactorization) -> Posterior | None:
    """The posterior of `Posterior.state_dict()`, around the model as the solver left it; None of no draws."""
    if "draws" in state:
        samples = Samples(model, state["most"])
        samples.load_state_dict(state)
        return samples if samples.draws else None
    device = model.scale.device
    variances, precision, noise = ([t.to(device) for t in state[name]] for name in ("variances", "precision", "noise"))
    return MeanField(model, variances, precision, state["alpha"], noise)


def standard_normal(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws from N(0, 1) with the dtype and device of `like`, made on the CPU, so that all devices draw alike."""
    return torch.randn(tuple(shape), generator=generator, dtype=like.dtype).to(like.device)


def standard_gamma(shape: Tensor, generator: torch.Generator) -> Tensor:
    """A draw from Gamma(shape, 1) for each number of `shape`, in float64, on its device."""
    # torch draws gammas from its global generator alone; numpy takes a seed.
    seed = int(torch.randint(2**62, (), generator=generator))
    drawn = np.random.default_rng(seed).standard_gamma(shape.cpu().numpy())
    return torch.as_tensor(drawn, dtype=torch.float64).to(shape.device)

"""The objective: the cost J of a model on ratings, and its hand-derived gradients.

With e(i,j) = θ̃_jᵀ x̃_i − (y_ij − μ_i), the error of the centred prediction at an observed entry, r(i,j) = 1,

    J = ½ Σ_{(i,j): r(i,j)=1} e(i,j)²  +  ½ Σ_j λ_j ‖θ_j‖²  +  ½ Σ_i λ_i ‖x_i‖²     (biases likewise, with their own λ)

    ∂J/∂x_i = Σ_{j: r=1} e(i,j) θ̃_j + λ_i x_i         vectorized:  E Θ̃  + Λ X
    ∂J/∂θ_j = Σ_{i: r=1} e(i,j) x̃_i + λ_j θ_j         vectorized:  Eᵀ X̃ + Λ Θ

where E has the errors at the observed entries and nothing elsewhere.  So a cost is one `sampled_dot`, and a gradient
two `matmul`s more.  θ̃ and x̃ are the augmented rows of `MatrixFactorization.tables`; a bias is a factor whose partner is
the constant 1, hence ∂J/∂b_i = Σ_j e(i,j) + λ_i b_i falls out of the same product.

The scaling of λ is the silent difference between published results, so it is named: each row's λ is l2 times

    "row"     1          the texts' penalty, λ/2 (Σ_i ‖x_i‖² + Σ_j ‖θ_j‖²)
    "sqrt"    √n         n = the number of ratings of that row
    "rating"  n          the penalty inside the sum, as in sample-by-sample SGD and ALS-WR (Zhou et al. 2008, eq. 3)

Another loss, of `LOSSES` or one's own, replaces ½e² by ℓ(ŷ − μ, y − μ) and e by ℓ′ everywhere above: see `Loss`.  Where
ratings have weights w(i,j), w ½e² and w e take the place of ½e² and e.

With features, Θ̃ = P̃ + F W̃, so that ∂J/∂P̃ = ∂J/∂Θ̃ and ∂J/∂W̃ = Fᵀ ∂J/∂Θ̃, and each weight has an L2 penalty as factors do.
Its n is Σ_r F_rf² n_r, with n_r the ratings of row r: for a one-hot feature, the ratings of all rows that have it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError, unknown
from mfrec.model.factorization import ITEM, SIDES, USER, MatrixFactorization, Term
from mfrec.sparse import matmul, sampled_dot

# An elementwise loss: (predictions, targets) → (ℓ, ℓ′), its values and its derivatives in the predictions.
Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def squared_error(predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(½e², e) with e = prediction − target, in stars² and stars.

    Examples:
        >>> losses, errors = squared_error(torch.tensor([4.0]), torch.tensor([1.0]))
        >>> losses.tolist(), errors.tolist()
        ([4.5], [3.0])
    """
    errors = predictions - targets
    return 0.5 * errors.square(), errors


def log_cosh(predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(log cosh e, tanh e): ½e² where errors are small, |e| where they are large, so that no rating pulls with more
    than 1."""
    errors = predictions - targets
    sizes = errors.abs()
    # log cosh e = |e| + log(1 + exp(−2|e|)) − log 2, which does not overflow.
    return sizes + torch.nn.functional.softplus(-2 * sizes) - math.log(2), errors.tanh()


LOSSES: dict[str, Loss] = {"squared": squared_error, "log-cosh": log_cosh}
SCALINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "row": torch.ones_like,
    "sqrt": torch.sqrt,
    "rating": lambda counts: counts,
}


@dataclass(frozen=True)
class Objective:
    """J and its gradients.

    Args:
        l2: λ of the factors, before its scaling.
        bias_l2: λ of the biases, before its scaling; None is l2.
        scaling: how λ grows with a row's number of ratings, a name in `SCALINGS`.
        loss: what an observed entry costs; the squared error unless given.

    Raises:
        InputError: a penalty is negative or not finite, or the scaling is unknown.

    Examples:
        >>> model = MatrixFactorization(n_users=1, n_items=1, rank=1, biases=False, init="zeros")
        >>> for table, value in ((model.user_factors, 2.0), (model.item_factors, 3.0)):
        ...     _ = torch.nn.init.constant_(table.weight, value)
        >>> ratings = Ratings(torch.tensor([0]), torch.tensor([0]), torch.tensor([5.0]))
        >>> objective = Objective(l2=10.0)
        >>> float(objective.cost(model, ratings))  # e = 2·3 − 5 = 1, so J = ½·1² + ½·10·2² + ½·10·3²
        65.5
        >>> objective.gradients(model, ratings)  # e·3 + 10·2 and e·2 + 10·3
        {'user_factors.weight': tensor([[23.]]), 'item_factors.weight': tensor([[32.]])}
    """

    l2: float = 0.0
    bias_l2: float | None = None
    scaling: str = "row"
    loss: Loss = squared_error

    def __post_init__(self) -> None:
        for name, value in (("l2", self.l2), ("bias_l2", self.bias_l2)):
            if value is not None and not 0 <= value < float("inf"):
                raise InputError(f"{name} {value:g} is not a penalty; give 0 or more")
        if self.scaling not in SCALINGS:
            raise unknown("scaling of λ", self.scaling, SCALINGS)

    def __call__(self, model: MatrixFactorization, ratings: Ratings) -> Tensor:
        """J as a differentiable scalar whose backward pass is the hand-derived gradient, for any torch optimizer."""
        data: Tensor = DataCost.apply(*model.tables(), model.targets(ratings), ratings, self)  # type: ignore[no-untyped-call]
        return data + self.penalty(model, ratings)

    @torch.no_grad()
    def cost(self, model: MatrixFactorization, ratings: Ratings) -> Tensor:
        """J, a scalar."""
        losses, _ = self.losses(sampled_dot(ratings.by_user, *model.tables()), model.targets(ratings), ratings)
        return losses.sum() + self.penalty(model, ratings)

    def losses(self, predictions: Tensor, targets: Tensor, ratings: Ratings) -> tuple[Tensor, Tensor]:
        """(n_ratings,) what each rating costs, and derivatives in the centred predictions, both weighted."""
        losses, errors = self.loss(predictions, targets)
        return ratings.weighted(losses), ratings.weighted(errors)

    @torch.no_grad()
    def gradients(self, model: MatrixFactorization, ratings: Ratings) -> dict[str, Tensor]:
        """∂J by parameter, keyed and shaped like `model.named_parameters()`."""
        return self.cost_and_gradients(model, ratings)[1]

    @torch.no_grad()
    def cost_and_gradients(self, model: MatrixFactorization, ratings: Ratings) -> tuple[Tensor, dict[str, Tensor]]:
        """(J, ∂J by parameter) from one `sampled_dot` and two `matmul`s, and two more a block of features."""
        users, items = model.tables()
        losses, errors = self.losses(sampled_dot(ratings.by_user, users, items), model.targets(ratings), ratings)
        gradients = model.gradients(*table_gradients(ratings, errors, users, items))
        weights = self.penalty_weights(model, ratings)
        for name, weight in weights.items():
            gradients[name] = gradients[name].addcmul(weight, model.get_parameter(name))
        return losses.sum() + self._penalty(model, weights), gradients

    def penalty(self, model: MatrixFactorization, ratings: Ratings) -> Tensor:
        """½ Σ λ ‖·‖² over every row of every table, a differentiable scalar."""
        return self._penalty(model, self.penalty_weights(model, ratings))

    def _penalty(self, model: MatrixFactorization, weights: dict[str, Tensor]) -> Tensor:
        return 0.5 * torch.stack([(w * model.get_parameter(name).square()).sum() for name, w in weights.items()]).sum()

    def penalty_weights(self, model: MatrixFactorization, ratings: Ratings) -> dict[str, Tensor]:
        """λ of every row of each parameter, (n_rows, 1), keyed like `model.named_parameters()`."""
        weights: dict[str, Tensor] = {}
        for term in model.all_terms:
            weights |= self._term_weights(model, ratings, term)
        return weights

    def _term_weights(self, model: MatrixFactorization, ratings: Ratings, term: Term) -> dict[str, Tensor]:
        own = (ratings.user_counts, ratings.item_counts)[term.side][:, None].to(model.scale.dtype)
        scaling = SCALINGS[self.scaling](own if term.features is None else term.features.pull_squares(own))
        bias_l2 = self.l2 if self.bias_l2 is None else self.bias_l2
        return {name: (bias_l2 if "_bias." in name else self.l2) * scaling for name in term.columns}

    @torch.no_grad()
    def penalty_table(self, model: MatrixFactorization, ratings: Ratings, term: Term) -> Tensor:
        """λ of every number of a term's table, laid out like it; 0 where there is no parameter."""
        table, weights = torch.zeros_like(model.table(term)), self._term_weights(model, ratings, term)
        for name, columns in term.parts(table).items():
            columns.copy_(weights[name].expand_as(columns))
        return table

    @torch.no_grad()
    def user_cost(self, model: MatrixFactorization, ratings: Ratings, user: int) -> Tensor:
        """The part of J that a user's own row enters, with all else fixed: a ridge regression in θ̃_user.

        ½ Σ_{i: r(i,user)=1} e(i,user)² + ½ λ_user ‖θ_user‖²; summed over the users it is J less the penalties of
        the items and of features.

        Raises:
            InputError: there is no such user index in the ratings.
        """
        return self._row_cost(model, ratings, USER, user)

    @torch.no_grad()
    def item_cost(self, model: MatrixFactorization, ratings: Ratings, item: int) -> Tensor:
        """The part of J that an item's own row enters, with all else fixed: a ridge regression in x̃_item.

        Raises:
            InputError: there is no such item index in the ratings.
        """
        return self._row_cost(model, ratings, ITEM, item)

    def _row_cost(self, model: MatrixFactorization, ratings: Ratings, side: int, row: int) -> Tensor:
        size = (ratings.n_users, ratings.n_items)[side]
        if not 0 <= row < size:
            raise InputError(f"{SIDES[side]} index {row} is not in these ratings ({size:,} {SIDES[side]}s)")
        own = ratings.select((ratings.users, ratings.items)[side] == row)
        dots = sampled_dot(own.by_user, *model.tables())
        weights = self.penalty_weights(model, ratings)
        mine = [name for term in model.terms(side) if term.features is None for name in term.columns]
        penalties = [(weights[n][row] * model.get_parameter(n)[row].square()).sum() for n in mine]
        return self.losses(dots, model.targets(own), own)[0].sum() + 0.5 * sum(penalties, dots.new_zeros(()))


def table_gradients(ratings: Ratings, errors: Tensor, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """(Eᵀ X̃, E Θ̃) for errors in the order of the ratings: the data part of the gradients in Θ̃ and in X̃, (n, k) each."""
    transposed = errors.index_select(0, ratings.item_order)
    return matmul(ratings.by_user, errors, items), matmul(ratings.by_item, transposed, users)


class DataCost(torch.autograd.Function):
    """Σ ℓ(θ̃_jᵀ x̃_i, target) over the observed entries, with the hand-derived gradient as its backward pass."""

    @staticmethod
    def forward(
        ctx: Any, users: Tensor, items: Tensor, targets: Tensor, ratings: Ratings, objective: Objective
    ) -> Tensor:
        losses, errors = objective.losses(sampled_dot(ratings.by_user, users, items), targets, ratings)
        ctx.ratings = ratings
        ctx.save_for_backward(users, items, errors)
        return losses.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        users, items, errors = ctx.saved_tensors
        return *table_gradients(ctx.ratings, errors * grad, users, items), None, None, None


def naive_cost_and_gradients(
    model: MatrixFactorization, ratings: Ratings, l2: float
) -> tuple[float, dict[str, list[list[float]]]]:
    """J and its gradients by the texts' plain loops: what the fast form above is tested against.

    For every movie i, for every user j, if a rating exists; λ per row, every table alike.  Of the squared error alone,
    and of ratings without weights: those that have some are taken as if each counted 1.
    """
    U, V = (table.tolist() for table in model.tables())
    target = model.targets(ratings)
    Y = dict(zip(zip(ratings.items.tolist(), ratings.users.tolist(), strict=True), target.tolist(), strict=True))
    J, dU, dV = 0.0, [[0.0] * len(U[0]) for _ in U], [[0.0] * len(V[0]) for _ in V]
    for i in range(len(V)):
        for j in range(len(U)):
            if (i, j) not in Y:
                continue
            e = sum(a * b for a, b in zip(U[j], V[i], strict=True)) - Y[i, j]
            J += 0.5 * e * e
            for k in range(len(U[j])):
                dU[j][k] += e * V[i][k]
                dV[i][k] += e * U[j][k]
    gradients = {}
    tables = (torch.tensor(dU, dtype=torch.float64), torch.tensor(dV, dtype=torch.float64))
    for name, columns in model.gradients(*tables).items():
        parameter = model.get_parameter(name).tolist()
        J += 0.5 * l2 * sum(p * p for row in parameter for p in row)
        pairs = zip(columns.tolist(), parameter, strict=True)
        gradients[name] = [[g + l2 * p for g, p in zip(*rows, strict=True)] for rows in pairs]
    return J, gradients

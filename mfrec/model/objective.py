"""The objective: the cost J of a model on ratings, and its hand-derived gradients.

With e(i,j) = θ̃_jᵀ x̃_i − (y_ij − μ_i), the error of the centred prediction at an observed entry, r(i,j) = 1,

    J = ½ Σ_{(i,j): r(i,j)=1} e(i,j)²  +  ½ Σ_j λ_j ‖θ_j‖²  +  ½ Σ_i λ_i ‖x_i‖²     (biases likewise, with their own λ)

    ∂J/∂x_i = Σ_{j: r=1} e(i,j) θ̃_j + λ_i x_i         vectorized:  E Θ̃  + Λ X
    ∂J/∂θ_j = Σ_{i: r=1} e(i,j) x̃_i + λ_j θ_j         vectorized:  Eᵀ X̃ + Λ Θ

where E has the errors at the observed entries and nothing elsewhere.  A cost is one `sddmm`, and its gradient two
`spmm`s more; on the CPU, a kernel computes both in one pass over the ratings of each entity.  θ̃ and x̃ are the rows of
`MatrixFactorization.augmented_factors`; a bias is a factor whose partner is the constant 1, hence
∂J/∂b_i = Σ_j e(i,j) + λ_i b_i follows from the same product.

The scaling of λ differs between published results without being mentioned, so it has a name.  Each row's λ is l2 times

    "row"     1          the textbook penalty, λ/2 (Σ_i ‖x_i‖² + Σ_j ‖θ_j‖²)
    "sqrt"    √n         n = the number of ratings of that row
    "rating"  n          the penalty inside the sum, as in sample-by-sample SGD and ALS-WR (Zhou et al. 2008, eq. 3)

Another loss replaces ½e² by ℓ(ŷ − μ, y − μ) and e by ℓ′ everywhere above; see `mfrec.model.losses`.  If ratings have
weights w(i,j), w ½e² and w e replace ½e² and e.

With features, Θ̃ = P̃ + F W̃, so that ∂J/∂P̃ = ∂J/∂Θ̃ and ∂J/∂W̃ = Fᵀ ∂J/∂Θ̃.  Each feature weight has an L2 penalty like a
factor.  Its n is Σ_r F_rf² n_r, with n_r the ratings of row r: for a one-hot feature, the ratings of all its rows.

With session biases, an error e has the rating's entry of S b more (`mfrec.model.session_biases`).  J then also has the
penalty ½ λ_s ‖b‖², and ∂J/∂b = Sᵀ e + λ_s b.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.errors import OptionError, unknown
from mfrec.model.entity import ENTITY_NAMES, ITEM, USER, Term, entity_of
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.losses import Loss, squared_error
from mfrec.model.offsets import offset_at
from mfrec.model.pair_products import check_indices
from mfrec.model.session_biases import SESSION_BIAS
from mfrec.sparse import CSRPattern, has_kernel, sddmm, spmm
from mfrec.sums import ordered_sum

# Ratings from which the kernel repays the third of a second in which numba is imported: at rank 64 it saves about 10 ns
# for each rating and epoch.
KERNEL_RATINGS = 2**19

L2_SCALINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "row": torch.ones_like,
    "sqrt": torch.sqrt,
    "rating": lambda counts: counts,
}


@dataclass(frozen=True)
class Objective:
    """J and its gradients.

    Args:
        l2: λ of the factors, before its scaling.
        bias_l2: λ of the biases, before its scaling; by default l2.
        l2_scaling: how λ grows with a row's number of ratings, a name in `L2_SCALINGS`.
        loss: the loss of an observed entry.
        session_l2: λ_s of the session biases, not scaled.

    Raises:
        InputError: a penalty is negative or not finite, or the scaling is unknown.

    Examples:
        >>> model = MatrixFactorization(n_users=1, n_items=1, rank=1, biases=False, init="zeros")
        >>> for factors, value in ((model.user_factors, 2.0), (model.item_factors, 3.0)):
        ...     _ = torch.nn.init.constant_(factors.weight, value)
        >>> ratings = Ratings(torch.tensor([0]), torch.tensor([0]), torch.tensor([5.0]))
        >>> objective = Objective(l2=10.0)
        >>> float(objective.cost(model, ratings))  # e = 2·3 − 5 = 1, so J = ½·1² + ½·10·2² + ½·10·3²
        65.5
        >>> objective.gradients(model, ratings)  # e·3 + 10·2 and e·2 + 10·3
        {'users.factors.weight': tensor([[23.]]), 'items.factors.weight': tensor([[32.]])}
    """

    l2: float = 0.0
    bias_l2: float | None = None
    l2_scaling: str = "row"
    loss: Loss = squared_error
    session_l2: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("l2", self.l2), ("bias_l2", self.bias_l2), ("session_l2", self.session_l2)):
            if value is not None and not 0 <= value < float("inf"):
                raise OptionError(name, f"must be at least 0 and finite (got {value:g})")
        if self.l2_scaling not in L2_SCALINGS:
            raise unknown("l2 scaling", self.l2_scaling, L2_SCALINGS)

    def __call__(self, model: MatrixFactorization, ratings: Ratings) -> Tensor:
        """J as a differentiable scalar whose backward pass is the hand-derived gradient, for any torch optimizer."""
        if not torch.is_grad_enabled():
            return self.cost(model, ratings)
        arguments = _values(model, ratings), ratings, self, model.offset
        data: Tensor = DataCost.apply(*model.augmented_factors(), *arguments)  # type: ignore[no-untyped-call]
        return data + self.penalty(model, ratings)

    @torch.no_grad()
    def cost(self, model: MatrixFactorization, ratings: Ratings) -> Tensor:
        """J, a scalar."""
        losses, _ = self.losses(sddmm(ratings.pattern, *model.augmented_factors()), model.targets(ratings), ratings)
        return ratings.total(ordered_sum(losses)) + self.penalty(model, ratings)

    def losses(self, predictions: Tensor, targets: Tensor, ratings: Ratings) -> tuple[Tensor, Tensor]:
        """(n_ratings,) loss of each rating and its derivative in the centred prediction, both weighted."""
        losses, errors = self.loss(predictions, targets)
        return ratings.weighted(losses), ratings.weighted(errors)

    @torch.no_grad()
    def errors(self, model: MatrixFactorization, ratings: Ratings) -> Tensor:
        """(n_ratings,) the weighted derivative of the loss in each prediction: w e for the squared error."""
        dots = sddmm(ratings.pattern, *model.augmented_factors())
        return self.losses(dots, model.targets(ratings), ratings)[1]

    @torch.no_grad()
    def gradients(self, model: MatrixFactorization, ratings: Ratings) -> dict[str, Tensor]:
        """∂J by parameter, named and shaped like `model.named_parameters()`."""
        return self.cost_and_gradients(model, ratings)[1]

    @torch.no_grad()
    def cost_and_gradients(self, model: MatrixFactorization, ratings: Ratings) -> tuple[Tensor, dict[str, Tensor]]:
        """(J, ∂J by parameter) from a pass over the ratings, and two products for each block of features."""
        factors = model.augmented_factors()
        cost, by_row = cost_and_factor_gradients(self, *factors, _values(model, ratings), ratings, model.offset)
        gradients = model.gradients(*by_row)
        if model.sessions is not None:
            gradients[SESSION_BIAS] = model.sessions.sums(ratings, self.errors(model, ratings))
        weights = self.penalty_weights(model, ratings)
        for name, weight in weights.items():
            gradients[name].addcmul_(weight, model.get_parameter(name))
        return cost + self._penalty(model, ratings, weights), gradients

    def penalty(self, model: MatrixFactorization, ratings: Ratings) -> Tensor:
        """½ Σ λ ‖·‖² over all parameters, a differentiable scalar."""
        if self.l2 == 0 and not self.bias_l2 and (model.sessions is None or self.session_l2 == 0):
            return model.rating_range.new_zeros(())
        return self._penalty(model, ratings, self.penalty_weights(model, ratings))

    def _penalty(self, model: MatrixFactorization, ratings: Ratings, weights: dict[str, Tensor]) -> Tensor:
        squares = {name: model.get_parameter(name).square().sum(1, keepdim=True) for name in weights}
        sums = [ratings.row_sum(entity_of(name), w * squares[name]) for name, w in weights.items()]
        return 0.5 * torch.stack(sums).sum()

    def penalty_weights(self, model: MatrixFactorization, ratings: Ratings) -> dict[str, Tensor]:
        """λ of every row of each parameter, (n_rows, 1), by parameter name."""
        weights: dict[str, Tensor] = {}
        for term in model.all_terms:
            weights |= self._term_weights(model, ratings, term)
        if model.sessions is not None:
            weights[SESSION_BIAS] = torch.full_like(model.sessions.bias.weight, self.session_l2, requires_grad=False)
        return weights

    def _term_weights(self, model: MatrixFactorization, ratings: Ratings, term: Term) -> dict[str, Tensor]:
        counts = (ratings.user_counts, ratings.item_counts)[term.entity][:, None].to(model.dtype)
        scaling = L2_SCALINGS[self.l2_scaling](
            counts if term.features is None else term.features.rmatmul_squared(counts)
        )
        bias_l2 = self.l2 if self.bias_l2 is None else self.bias_l2
        return {name: (bias_l2 if name == term.bias else self.l2) * scaling for name in term.columns}

    @torch.no_grad()
    def ridge(self, model: MatrixFactorization, ratings: Ratings, term: Term) -> Tensor:
        """Λ: λ of every number of a term's W̃, laid out like it; 0 in columns without a parameter."""
        ridge, weights = torch.zeros_like(model.weights(term)), self._term_weights(model, ratings, term)
        for name, columns in term.split(ridge).items():
            columns.copy_(weights[name].expand_as(columns))
        return ridge

    @torch.no_grad()
    def minimize_sessions(self, model: MatrixFactorization, ratings: Ratings) -> None:
        """Move the session biases to the minimum of J with all else fixed, those of one gap after another.

        b ← b − (Sᵀ w ℓ′ + λ_s b) / (Sᵀ w + λ_s): the minimum for the squared error.  J does not rise for any loss whose
        second derivative is at most 1.  For solvers that do not step along all gradients at once.
        """
        biases = model.sessions
        assert biases is not None
        weights = ratings.weighted(torch.ones_like(ratings.values))
        dots, targets = sddmm(ratings.pattern, *model.augmented_factors()), model.targets(ratings)
        for level, rows in enumerate(biases.sessions.slices):
            bias = biases.bias.weight[rows]
            _, errors = self.losses(dots, targets, ratings)
            slope = biases.gap_sums(ratings, level, errors) + self.session_l2 * bias
            change = -slope / (biases.gap_sums(ratings, level, weights) + self.session_l2)
            targets = targets - biases.gap_effect(ratings, level, change)
            bias += change

    @torch.no_grad()
    def user_cost(self, model: MatrixFactorization, ratings: Ratings, user: int) -> Tensor:
        """The part of J that depends on one user's factors, with all else fixed: a ridge regression in θ̃_user.

        ½ Σ_{i: r(i,user)=1} e(i,user)² + ½ λ_user ‖θ_user‖².  Summed over the users it is J less the penalties of
        items and features.

        Raises:
            InputError: the user index is out of range.
        """
        return self._row_cost(model, ratings, USER, user)

    @torch.no_grad()
    def item_cost(self, model: MatrixFactorization, ratings: Ratings, item: int) -> Tensor:
        """The part of J that depends on one item's factors, with all else fixed: a ridge regression in x̃_item.

        Raises:
            InputError: the item index is out of range.
        """
        return self._row_cost(model, ratings, ITEM, item)

    def _row_cost(self, model: MatrixFactorization, ratings: Ratings, entity: int, row: int) -> Tensor:
        check_indices(ENTITY_NAMES[entity], torch.tensor([row]), ratings.matrix.shape[entity])
        selected = ratings.select((ratings.users, ratings.items)[entity] == row)
        dots = sddmm(selected.pattern, *model.augmented_factors())
        weights = self.penalty_weights(model, ratings)
        names = [name for term in model.terms(entity) if term.features is None for name in term.columns]
        penalties = [(weights[name][row] * model.get_parameter(name)[row].square()).sum() for name in names]
        losses, _ = self.losses(dots, model.targets(selected), selected)
        return losses.sum() + 0.5 * sum(penalties, dots.new_zeros(()))


def factor_gradients(pattern: CSRPattern, errors: Tensor, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """(Eᵀ X̃, E Θ̃): the gradients of the data term in Θ̃ and in X̃, (n, k) each.

    Args:
        pattern: users × items.
        errors: (n_entries,) in the order of the pattern.
    """
    transposed = errors.index_select(0, pattern.transpose_order)
    return spmm(pattern, errors, items), spmm(pattern.T, transposed, users)


def cost_and_factor_gradients(
    objective: Objective, users: Tensor, items: Tensor, targets: Tensor, ratings: Ratings, offset: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Σ ℓ(θ̃_jᵀ x̃_i + μ_i, target), and its gradients in Θ̃ and in X̃, (n, k) each.

    Args:
        users, items: Θ̃ and X̃.
        targets: (n_ratings,) in the order of the ratings.
        offset: μ, () or (n_items,), or None.
    """
    if objective.loss is squared_error and _is_compiled(users, items, targets, ratings):
        cost, gradients = _compiled_cost_and_factor_gradients(users, items, targets, ratings, offset)
    else:
        targets = targets if offset is None else targets - offset_at(offset, ratings.items)
        losses, errors = objective.losses(sddmm(ratings.pattern, users, items), targets, ratings)
        cost = ordered_sum(losses)
        if ratings.is_partitioned:
            gradients = _partitioned_factor_gradients(objective, users, items, errors, ratings, offset)
        else:
            gradients = factor_gradients(ratings.pattern, errors, users, items)
    by_user, by_item = (ratings.share(entity, gradient) for entity, gradient in enumerate(gradients))
    return ratings.total(cost), (by_user, by_item)


def _partitioned_factor_gradients(
    objective: Objective, users: Tensor, items: Tensor, errors: Tensor, ratings: Ratings, offset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`factor_gradients` in the rows that this process owns, whose items have errors of their own; others are 0."""
    pattern, targets = ratings.pattern.T, ratings.values_by_item
    targets = targets if offset is None else targets - offset_at(offset, pattern.row)
    _, by_item = objective.loss(sddmm(pattern, items, users), targets)
    weights = ratings.weights_by_item
    by_item = by_item if weights is None else by_item * weights
    return spmm(ratings.pattern, errors, items), spmm(pattern, by_item, users)


def _is_compiled(users: Tensor, items: Tensor, targets: Tensor, ratings: Ratings) -> bool:
    is_uniform = users.dtype == items.dtype == targets.dtype
    return ratings.n_ratings >= KERNEL_RATINGS and has_kernel(users) and is_uniform


def _compiled_cost_and_factor_gradients(
    users: Tensor, items: Tensor, targets: Tensor, ratings: Ratings, offset: Tensor | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`cost_and_factor_gradients` of the squared error on the CPU, by a pass over the ratings of each entity."""
    from mfrec.kernels.gradient import loss_and_gradient  # numba is imported where a kernel runs

    k = users.shape[1]
    matrix, weights = ratings.matrix, ratings.weights
    matrix = matrix if targets is ratings.values else matrix.with_values(targets)
    # The offset is one more column of X̃, whose partner is 1.
    factors = _padded(users, None if offset is None else users.new_ones(())), _padded(items, offset)
    costs, gradients = [], []
    for entity, entries, w in ((USER, matrix, weights), (ITEM, matrix.T, ratings.weights_by_item)):
        cost, gradient = loss_and_gradient(
            entries.pattern.crow.long().numpy(),
            entries.pattern.col.numpy(),
            entries.values.numpy(),
            None if w is None else w.numpy(),
            factors[entity].numpy(),
            factors[1 - entity].numpy(),
        )
        costs.append(cost)
        gradients.append(torch.from_numpy(gradient)[:, :k])
    return users.new_tensor(costs[USER]), (gradients[USER], gradients[ITEM])


def _padded(rows: Tensor, column: Tensor | None) -> Tensor:
    """(n_rows, a multiple of 8): rows, (n_rows, k), then the column if there is one, then zeros."""
    k, n_columns = rows.shape[1], rows.shape[1] + (column is not None)
    padded = rows.new_zeros(len(rows), -(-n_columns // 8) * 8)
    padded[:, :k] = rows
    if column is not None:
        padded[:, k] = column
    return padded


def _values(model: MatrixFactorization, ratings: Ratings) -> Tensor:
    """(n_ratings,) the ratings less the session biases; differentiable."""
    return ratings.values if model.sessions is None else ratings.values - model.sessions.effect(ratings)


class DataCost(torch.autograd.Function):
    """Σ ℓ(θ̃_jᵀ x̃_i + μ_i, target) over the observed entries, with the hand-derived gradient as its backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        items: Tensor,
        targets: Tensor,
        ratings: Ratings,
        objective: Objective,
        offset: Tensor | None = None,
    ) -> Tensor:
        cost, gradients = cost_and_factor_gradients(objective, users, items, targets, ratings, offset)
        needed = (users, items, targets) if ctx.needs_input_grad[2] else ()
        ctx.save_for_backward(*gradients, *needed)
        ctx.ratings, ctx.objective, ctx.offset = ratings, objective, offset
        return cost

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        by_user, by_item, *saved = ctx.saved_tensors
        by_target = None
        if saved:
            users, items, targets = saved
            targets = targets if ctx.offset is None else targets - offset_at(ctx.offset, ctx.ratings.items)
            dots = sddmm(ctx.ratings.pattern, users, items)
            by_target = -grad * ctx.objective.losses(dots, targets, ctx.ratings)[1]
        return by_user * grad, by_item * grad, by_target, None, None, None

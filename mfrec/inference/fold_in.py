"""Fold-in: rows for users and items that were not in training, with all else as it was trained.

With the items fixed, what a new user's ratings say of the row θ̃ = base + θ, where base is what features and the
constant 1 contribute, is, in the free columns,

    A = Σ_i w x̃_i x̃_iᵀ        b = Σ_i w r_i x̃_i        c = Σ_i w r_i²        r_i = y_i − μ_i − base · x̃_i

and, given τ, R and m, the row is that of the training step of every solver:

    θ ~ N(H⁻¹ (τ b + R m), H⁻¹/α)        H = τ A + R

    Objective    R = Λ for the row's own number of ratings, τ = 1, m = 0: where the gradient of J in the row is zero
    MeanField    w has the items' τ_i in it, V = Σ w v, R = λ/α + τ V, m = 0; τ = A/B and s in turn with θ, as in
                 `variational.py`
    Samples      for each draw kept, w has its τ_i in it, R = λ/α and m are its prior; τ and θ drawn in turn, as in
                 `gibbs.py`, with Σ w (r − θ · x̃)² = c − 2 bᵀθ + θᵀAθ; predictions are averaged over the draws

New items are the mirror image.  A row without a rating is its base and the prior's mean, as it is in training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfrec.data.ratings import Pattern, Ratings
from mfrec.errors import InputError
from mfrec.inference.new_rows import Law, NewRows, own_prior
from mfrec.model.factorization import ITEM, USER, MatrixFactorization, check_indices
from mfrec.model.features import IMPLICIT_BLOCK, Features
from mfrec.model.objective import Objective, squared_error
from mfrec.model.ridge import Problem, Side, cholesky, minimize_by_columns, normal_matrices
from mfrec.posteriors.posterior import NOISE_SHAPE, MeanField, Posterior, Samples, standard_gamma, standard_normal
from mfrec.sparse import matmul, sampled_dot

# Turns of τ and the row until they belong together: of a mean field to its fixed point, of each draw from the last's.
MEAN_FIELD_TURNS, DRAW_TURNS = 20, 3
# Passes over the columns of non-negative rows at most, and the largest change that ends them.
PASSES, SETTLED = 500, 1e-6


class Folded(NamedTuple):
    """New rows of one side and all of the other: a model without features, and the posterior it is the mean of.

    Rows of the other side are folded into what was trained, and not into this, which has none of its features.
    """

    model: MatrixFactorization
    posterior: Posterior | None


@torch.no_grad()
def fold_in_user(
    model: MatrixFactorization,
    ratings: Ratings,
    law: Law,
    *,
    features: Mapping[str, Features] | None = None,
    generator: torch.Generator | None = None,
) -> Folded:
    """New users, one or many, by their ratings of the model's items: exactly the training step for their rows.

    Args:
        ratings: n new users × all items of the model.
        law: the objective that the model minimizes, or the posterior that it is the mean of.
        features: the new users' rows of the user features that the model was trained with, by name; they follow its
            device and dtype.
        generator: for draws from a posterior.

    Returns:
        A model of the new users and all items, and their posterior where the law is one.

    Raises:
        InputError: the ratings are of another number of items, features are not the model's, or the law is none, or
            an objective of another loss than the squared error.

    Examples:
        >>> items = torch.tensor([[1.0], [2.0]])
        >>> model = MatrixFactorization.from_tables(
        ...     torch.zeros(1, 1), items, biases=False, offset=None, scale=torch.tensor([1.0, 5.0])
        ... )
        >>> ratings = Ratings(torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([2.0, 4.0]))
        >>> folded = fold_in_user(model, ratings, Objective(l2=5.0))
        >>> round(folded.model.user_factors.weight.item(), 4)  # (1·2 + 2·4) / (1² + 2² + 5)
        1.0
    """
    return _fold_in(NewRows(USER, model, ratings, law, features or {}), law, generator)


@torch.no_grad()
def fold_in_item(
    model: MatrixFactorization,
    ratings: Ratings,
    law: Law,
    *,
    features: Mapping[str, Features] | None = None,
    offset: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Folded:
    """New items, one or many, by the ratings that the model's users gave them: `fold_in_user` the other way round.

    Args:
        ratings: all users of the model × n new items.
        offset: (n,) what centring subtracts from each, where the model's offset is each item's own.

    Returns:
        A model of all users and the new items, and their posterior where the law is one.

    Raises:
        InputError: as of `fold_in_user`, or offsets are not one for each new item where there must be.
    """
    return _fold_in(NewRows(ITEM, model, ratings, law, features or {}, offset), law, generator)


@torch.no_grad()
def explain(
    model: MatrixFactorization,
    ratings: Ratings,
    law: Law,
    items: Tensor,
    *,
    features: Mapping[str, Features] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(n_items, n_ratings) how much each rating of one user adds to the prediction of each of these items, in stars.

    The row is linear in the residuals, so that the prediction of item t is a sum over the ratings,

        θ · x̃_t = Σ_i τ w r_i (x̃_iᵀ H⁻¹ x̃_t) + what the prior says

    A rating above what was expected speaks for items like its own and against those unlike it.  (Hu, Koren & Volinsky
    2008, "Collaborative filtering for implicit feedback datasets", eq. 7.)  With implicit features, that i was rated
    at all adds its share of the base, F_i W̃_i · x̃_t.

    Raises:
        InputError: the ratings are not of one user, an item is not the model's, implicit features are not those of the
            ratings, or the model is non-negative, whose rows are no such sums.
    """
    new = NewRows(USER, model, ratings, law, features or {})
    if new.n_rows != 1:
        raise InputError(f"the ratings of {new.n_rows:,} users explain nothing of one; give those of one user")
    if model.nonnegative:
        raise InputError("rows kept at 0 or above are no sums over ratings; train without --nonnegative for reasons")
    check_indices("item", items, new.trained.n_items)
    rated, items, found = new.ratings.items.long(), items.to(new.device), []
    implicit = new.features.get(IMPLICIT_BLOCK)
    if implicit is not None and not torch.equal(implicit.col.long(), rated):
        raise InputError("the implicit features are not of the ratings to explain; make them of these")
    for given in _given(new, law, generator):
        (solution,) = [given.solve(evidence) for evidence in _evidence(new, given)]
        towards = torch.cholesky_solve(given.other[items][:, new.columns].mT, solution.factor[0])
        pulls = given.residuals * solution.tau[0]
        pulls = pulls if given.view.weights is None else pulls * given.view.weights
        shares = (given.other[rated][:, new.columns] @ towards).mT * pulls
        if implicit is not None:
            weights = new.feature_tables(given.parameters)[IMPLICIT_BLOCK][rated]
            shares += given.other[items] @ weights.mT * implicit.values
        found.append(shares)
    return torch.stack(found).mean(0)


class Evidence(NamedTuple):
    """What the ratings of a block of new rows say: A (n, k, k), b (n, k), c (n, 1), and how many they are (n, 1)."""

    rows: slice
    normal: Tensor
    right: Tensor
    squares: Tensor
    counts: Tensor

    def errors(self, theta: Tensor) -> Tensor:
        """(n, 1) Σ w (r − θ · x̃)² = c − 2 bᵀθ + θᵀAθ."""
        bent = (self.normal @ theta[..., None])[..., 0] - 2 * self.right
        return (self.squares + (bent * theta).sum(1, keepdim=True)).clamp_min(0)


class Solution(NamedTuple):
    """What follows for the block: τ (n, 1), the Cholesky factors of H, and θ's mean, a draw, and variances (n, k)."""

    tau: Tensor
    factor: Tensor
    mean: Tensor
    drawn: Tensor
    variances: Tensor


class _Given(NamedTuple):
    """What new rows are solved beside: once for an objective or a mean field, and for each draw of samples."""

    base: Tensor
    other: Tensor
    view: Side
    residuals: Tensor
    solve: Callable[[Evidence], Solution]
    parameters: Mapping[str, Tensor] | None


def _solved(evidence: Evidence, tau: Tensor, ridge: Tensor, mean: Tensor | float = 0.0) -> Solution:
    """θ = H⁻¹ (τ b + R m), certain."""
    factor = cholesky(tau[..., None] * evidence.normal, ridge)
    right = tau * evidence.right + ridge * mean
    theta = torch.cholesky_solve(right[..., None], factor)[..., 0]
    return Solution(tau, factor, theta, theta, torch.zeros_like(theta))


def _given(new: NewRows, law: Law, generator: torch.Generator | None) -> Iterator[_Given]:
    if isinstance(law, Objective):
        yield _minimizing(new, law)
    elif isinstance(law, MeanField):
        yield _mean_field(new, law)
    elif isinstance(law, Samples):
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        # τ goes on from draw to draw, which is why a few turns for each suffice.
        tau = torch.ones(new.n_rows, 1, dtype=new.dtype, device=new.device)
        for draw in law.draws:
            yield _sampling(new, law, draw, tau, generator)


def _beside(
    new: NewRows,
    solve: Callable[[Evidence], Solution],
    noise: Tensor | None = None,
    parameters: Mapping[str, Tensor] | None = None,
) -> _Given:
    """With the model's parameters or others, and where given τ of the other side, (m, 1), in the weights."""
    base, other = new.tables(parameters)
    view = new.view
    if noise is not None:
        tau = noise[:, 0].index_select(0, view.pattern.col)
        view = view._replace(weights=tau if view.weights is None else tau * view.weights)
    residuals = view.targets - sampled_dot(view.pattern, base, other)
    return _Given(base, other, view, residuals, solve, parameters)


def _minimizing(new: NewRows, law: Objective) -> _Given:
    if law.loss is not squared_error and len(new.view.targets):
        raise InputError("rows are folded in by least squares, not other losses; train with the squared error for that")
    ridge = _penalty(new, law)[:, new.columns]
    return _beside(new, lambda evidence: _solved(evidence, torch.ones_like(evidence.squares), ridge[evidence.rows]))


def _penalty(new: NewRows, law: Objective) -> Tensor:
    """Λ of the new rows' own numbers, (n, k)."""
    return law.penalty_table(new.plain, new.ratings, new.plain.terms(new.side)[0])


def _mean_field(new: NewRows, law: MeanField) -> _Given:
    precision = law.precision[new.side][:, new.columns]

    def solve(evidence: Evidence) -> Solution:
        spread, fixed, tau = spreads[evidence.rows], given.base[evidence.rows], torch.ones_like(evidence.squares)
        diagonal = evidence.normal.diagonal(dim1=1, dim2=2) + spread[:, new.columns]
        for _ in range(MEAN_FIELD_TURNS):
            solution = _solved(evidence, tau, precision / law.alpha + tau * spread[:, new.columns])
            variances = 1 / (precision + law.alpha * tau * diagonal)
            rows = fixed.index_add(1, new.columns, solution.mean)
            expected = (rows.square() * spread).sum(1, keepdim=True) + (variances * diagonal).sum(1, keepdim=True)
            rate = NOISE_SHAPE + 0.5 * law.alpha * (evidence.errors(solution.mean) + expected)
            tau = (NOISE_SHAPE + 0.5 * evidence.counts) / rate
        return solution._replace(variances=variances)

    given = _beside(new, solve, law.noise[1 - new.side])
    assert given.view.weights is not None
    spreads = matmul(given.view.pattern, given.view.weights, law.variances[1 - new.side])
    return given


def _sampling(new: NewRows, law: Samples, draw: Mapping[str, Any], tau: Tensor, generator: torch.Generator) -> _Given:
    alpha = draw["alpha"]
    precision, mean = (tensor[new.columns] for tensor in own_prior(law, draw, new.side))

    def solve(evidence: Evidence) -> Solution:
        for _ in range(1 if law.same_noise else DRAW_TURNS):
            solution = _solved(evidence, tau[evidence.rows].clone(), precision / alpha, mean)
            normal = standard_normal(solution.mean.shape, solution.mean, generator)
            turned = torch.linalg.solve_triangular(solution.factor.mT, normal[..., None], upper=True)[..., 0]
            solution = solution._replace(drawn=solution.mean + turned * alpha**-0.5)
            if not law.same_noise:
                rate = NOISE_SHAPE + 0.5 * alpha * evidence.errors(solution.drawn).double()
                drawn = standard_gamma(NOISE_SHAPE + 0.5 * evidence.counts.double(), generator) / rate
                tau[evidence.rows] = drawn.to(new.dtype)
        return solution

    return _beside(new, solve, draw["noise"][1 - new.side], draw["parameters"])


def _evidence(new: NewRows, given: _Given) -> Iterator[Evidence]:
    """Block by block, so that no more than a block's normal matrices are held."""
    pattern = given.view.pattern
    # A few users rate few of the items: products over those alone take a hundredth of the time.
    rated, col = torch.unique(pattern.col, return_inverse=True)
    pattern = Pattern(pattern.crow, col.to(pattern.col.dtype), (new.n_rows, len(rated)))
    view, other, nothing = given.view._replace(pattern=pattern), given.other[rated.long()], torch.zeros_like(given.base)
    problem = Problem(view, given.residuals, nothing, other, nothing)
    ones = torch.ones_like(other[:, :1])
    squares = matmul(pattern, problem.weighted(given.residuals.square()), ones)
    for rows, normal in normal_matrices(view, other):
        right, counts = problem.right[rows][:, new.columns], pattern.counts[rows, None].to(new.dtype)
        yield Evidence(rows, normal, right, squares[rows], counts)


class _Rows(NamedTuple):
    """The new rows, (n, k): their mean, a draw and variances; and τ, (n, 1)."""

    tau: Tensor
    mean: Tensor
    drawn: Tensor
    variances: Tensor


def _rows(new: NewRows, given: _Given) -> _Rows:
    """The solutions of all blocks on their base; without rows of their own they are that."""
    solutions = [given.solve(evidence) for evidence in _evidence(new, given)] if new.own else []
    if not solutions:
        nothing = torch.zeros_like(given.base)
        return _Rows(nothing[:, :1] + 1, given.base, given.base, nothing)
    tau, mean, drawn, variances = (
        torch.cat([getattr(solution, name) for solution in solutions]) for name in _Rows._fields
    )
    mean, drawn = (given.base.index_add(1, new.columns, part) for part in (mean, drawn))
    variances = torch.zeros_like(given.base).index_add(1, new.columns, variances)
    return _Rows(tau, mean, drawn, variances)


def _fold_in(new: NewRows, law: Law, generator: torch.Generator | None) -> Folded:
    if isinstance(law, Objective) and new.trained.nonnegative:
        return _nonnegative(new, law)
    if isinstance(law, Samples):
        return _averaged(new, law, generator)
    (given,) = _given(new, law, generator)
    rows = _rows(new, given)
    model = new.model(rows.mean, given.other)
    if not isinstance(law, MeanField):
        return Folded(model, None)
    variances = new.pair(rows.variances, law.variances[1 - new.side])
    noise = new.pair(rows.tau, law.noise[1 - new.side])
    return Folded(model, MeanField(model, variances, law.precision, law.alpha, noise))


def _averaged(new: NewRows, law: Samples, generator: torch.Generator | None) -> Folded:
    """Samples of the new rows, one for each draw, whose mean is that of what each draw expects."""
    samples: Samples | None = None
    for draw, given in zip(law.draws, _given(new, law, generator), strict=True):
        rows = _rows(new, given)
        model = new.model(rows.drawn, given.other)
        samples = Samples(model, len(law.draws), law.same_noise) if samples is None else samples
        samples.model = model
        noise = new.pair(rows.tau, draw["noise"][1 - new.side])
        priors = [own_prior(law, draw, side) for side in (USER, ITEM)]
        samples.offer(draw["alpha"], noise, priors, new.pair(rows.mean, given.other))
    assert samples is not None
    return Folded(samples.mean_model(), samples)


def _nonnegative(new: NewRows, law: Objective) -> Folded:
    """The minimum over rows whose factors are 0 or above, by passes over their columns."""
    given = _minimizing(new, law)
    ridge = _penalty(new, law)
    own = torch.zeros_like(given.base)
    for _ in range(PASSES if new.own else 0):
        residuals = given.residuals - sampled_dot(given.view.pattern, own, given.other)
        before, problem = own, Problem(given.view, residuals, own, given.other, ridge)
        own = minimize_by_columns(problem, new.trained.rank)
        if float((own - before).abs().max()) < SETTLED:
            break
    return Folded(new.model(given.base + own, given.other), None)

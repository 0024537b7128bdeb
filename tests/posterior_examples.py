"""Small models, ratings and posteriors of every kind, for the tests of posteriors and of fold-in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.testing import assert_close

from mfrec.data.features import Features
from mfrec.data.ratings import Ratings
from mfrec.model.entity import ENTITY_NAMES, ITEM, USER
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.posteriors.base import Posterior
from mfrec.posteriors.mean_field import MeanFieldPosterior
from mfrec.posteriors.ordinal_samples import OrdinalSamples
from mfrec.posteriors.point_estimate import PointEstimate
from mfrec.posteriors.samples import PosteriorSamples

OBJECTIVE = Objective(0.3, 0.1, "sqrt")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ratings_of(n_users: int, n_items: int, seed: int = 0) -> Ratings:
    """About two in three whole stars, in float64 and weighted; if there are several, user 1 and item 1 have none."""
    generator = seeded(seed)
    observed = torch.rand(n_users, n_items, generator=generator) < 0.65
    observed[1:2] = observed[:, 1:2] = False
    users, items = observed.nonzero(as_tuple=True)
    values = (3 + 1.5 * torch.randn(len(users), generator=generator, dtype=torch.float64)).round().clamp(1, 5)
    weights = 0.5 + torch.rand(len(users), generator=generator, dtype=torch.float64)
    return Ratings(users, items, values, n_users, n_items, weights=weights)


def a_rating(value: float) -> Ratings:
    """One rating of one item by one user."""
    zero = torch.zeros(1, dtype=torch.long)
    return Ratings(zero, zero, torch.tensor([value], dtype=torch.float64), 1, 1)


def mirrored(ratings: Ratings) -> Ratings:
    """Users as items and items as users."""
    r = ratings
    return Ratings(r.items, r.users, r.values, r.n_items, r.n_users, weights=r.weights)


def repeated(ratings: Ratings, n: int) -> Ratings:
    """n users with the ratings of one user."""
    users = torch.arange(n).repeat_interleave(len(ratings))
    assert ratings.weights is not None
    items, values, weights = (t.repeat(n) for t in (ratings.items, ratings.values, ratings.weights))
    return Ratings(users, items, values, n, ratings.n_items, weights=weights)


def one_of(ratings: Ratings, user: int) -> Ratings:
    """The ratings of one user alone."""
    selected = ratings.select(ratings.users == user)
    return Ratings(selected.users * 0, selected.items, selected.values, 1, ratings.n_items, weights=selected.weights)


@torch.no_grad()
def scrambled(model: MatrixFactorization, generator: torch.Generator) -> MatrixFactorization:
    """The model with random parameters, which minimize nothing."""
    for parameter in model.parameters():
        parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    model.project()
    return model


@torch.no_grad()
def started(ratings: Ratings, rank: int = 3, **options: Any) -> MatrixFactorization:
    """Random parameters, but 0 for rows without ratings, as in training."""
    model = scrambled(MatrixFactorization.from_ratings(ratings, rank, **options), seeded(1))
    for entity, counts in ((USER, ratings.user_counts), (ITEM, ratings.item_counts)):
        term = model.terms(entity)[0]
        model.assign(term, model.weights(term) * (counts > 0)[:, None])
    return model


def a_model(
    n_users: int = 6, n_items: int = 8, rank: int = 2, offset: float = 3.0, **options: Any
) -> MatrixFactorization:
    centre = torch.tensor(offset, dtype=torch.float64)
    model = MatrixFactorization(n_users, n_items, rank, offset=centre, dtype=torch.float64, **options)
    return scrambled(model, seeded(1))


def a_point_estimate(model: MatrixFactorization) -> PointEstimate:
    return PointEstimate(model, OBJECTIVE)


def a_mean_field(model: MatrixFactorization) -> MeanFieldPosterior:
    generator, free, sizes = seeded(2), model.free_columns(), (model.n_users, model.n_items)

    def positive(*shape: int) -> Tensor:
        return 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)

    variances = [0.2 * positive(n, columns.shape[1]) * columns for n, columns in zip(sizes, free, strict=True)]
    precision, precision_scales = [positive(*columns.shape) for columns in free], [positive(n, 1) for n in sizes]
    return MeanFieldPosterior(model, variances, precision, 2.0, precision_scales)


def samples_of(
    model: MatrixFactorization, n: int = 3, homoscedastic: bool = False, prior_mean: float = 1.0
) -> PosteriorSamples:
    """n draws that have nothing in common."""
    samples, generator = PosteriorSamples(model, n, homoscedastic), seeded(3)
    k, sizes = model.rank + 2 * model.biases, (model.n_users, model.n_items)
    for number in range(n):
        scrambled(model, generator)
        precision_scales = [0.5 + torch.rand(size, 1, generator=generator).double() for size in sizes]
        priors = [
            (
                0.5 + torch.rand(k, generator=generator).double(),
                prior_mean * torch.randn(k, generator=generator).double(),
            )
            for _ in model.all_terms
        ]
        samples.add(1.5 + number, precision_scales, priors)
    return samples


def ordinal_samples_of(model: MatrixFactorization, n: int = 3, homoscedastic: bool = False) -> OrdinalSamples:
    """n draws near each other, whose scores and cutpoints are shifted by a constant."""
    generator, sizes = seeded(3), (model.n_users, model.n_items)
    levels, cutpoints = torch.arange(1, 6).double(), torch.tensor([1.5, 2.5, 3.5, 4.5]).double()
    pairs = torch.cartesian_prod(*map(torch.arange, sizes)).T
    samples = OrdinalSamples(model, n, homoscedastic, levels=levels, cutpoints=cutpoints, pairs=pairs)
    k, centre = model.rank + 2 * model.biases, {name: p.detach().clone() for name, p in model.named_parameters()}
    scales = [0.5 + torch.rand(size, 1, generator=generator).double() for size in sizes]
    for _ in range(n):
        shift = float(torch.randn((), generator=generator))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.copy_(centre[name] + 0.02 * noise + shift * (name == "users.bias.weight"))
        prior = 0.5 + torch.rand(k, generator=generator).double(), torch.zeros(k).double()
        samples.add(1.0, scales, [prior for _ in model.all_terms], cutpoints=cutpoints + shift)
    return samples


# An example of each kind, and of a second variant of samples.  Every kind in `POSTERIORS` needs one.
EXAMPLES: dict[str, Callable[[MatrixFactorization], Posterior]] = {
    "point-estimate": a_point_estimate,
    "mean-field": a_mean_field,
    "samples": samples_of,
    "homoscedastic samples": lambda model: samples_of(model, homoscedastic=True),
    "ordinal samples": ordinal_samples_of,
}


def with_new_rows(
    model: MatrixFactorization, entity: int, n_rows: int, features: Mapping[str, Features], offset: Tensor | None
) -> MatrixFactorization:
    """The model with n rows instead of an entity's; they have features, and factors and biases of 0."""
    sizes = (n_rows, model.n_items) if entity == USER else (model.n_users, n_rows)
    partner, blocks = ENTITY_NAMES[1 - entity], model.entities[1 - entity].feature_blocks
    features_of_both = {
        f"{partner}_features": {name: block.features for name, block in blocks.items()},
        f"{ENTITY_NAMES[entity]}_features": dict(features),
    }
    whole = MatrixFactorization(
        *sizes, model.rank, biases=model.biases, offset=offset, item_ids=model.item_ids, init="zeros",
        dtype=model.dtype, **features_of_both,
    )  # fmt: skip
    skipped = ("offset", f"{ENTITY_NAMES[entity]}s.factors", f"{ENTITY_NAMES[entity]}s.bias")
    whole.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith(skipped)}, strict=False)
    return whole


class RowParameters(NamedTuple):
    """The factors and biases of new rows without their features' part, and ∂J in them, by parameter."""

    values: dict[str, Tensor]
    gradients: dict[str, Tensor]


@torch.no_grad()
def row_parameters(
    model: MatrixFactorization,
    folded: Posterior,
    entity: int,
    ratings: Ratings,
    features: Mapping[str, Features],
    objective: Objective,
) -> RowParameters:
    """In the model in which new rows are the sum of their parameters and what their features add."""
    n_rows, new = (ratings.n_users, ratings.n_items)[entity], folded.mean_model()
    whole = with_new_rows(model, entity, n_rows, features, new.offset)
    term = whole.terms(entity)[0]
    assert term.features is None
    whole.assign(term, new.augmented_factors()[entity] - whole.augmented_factors()[entity])
    assert_close(whole.predict_observed(ratings), new.predict_observed(ratings))
    gradients = objective.gradients(whole, ratings)
    return RowParameters(
        *({name: tensors[name] for name in term.columns} for tensors in (whole.state_dict(), gradients))
    )


def assert_minimum(
    model: MatrixFactorization,
    folded: Posterior,
    entity: int,
    ratings: Ratings,
    features: Mapping[str, Features] | None = None,
    objective: Objective = OBJECTIVE,
) -> None:
    """The gradient of J in the new rows' parameters is 0."""
    rows = row_parameters(model, folded, entity, ratings, features or {}, objective)
    assert len(rows.gradients) == 1 + model.biases
    for name, gradient in rows.gradients.items():
        assert_close(gradient, torch.zeros_like(gradient), atol=1e-10, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def conditional_moments(
    partners: Tensor, free: Tensor, residuals: Tensor, weights: Tensor, alpha: float, prior: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """H⁻¹ (b + R m) and H⁻¹/α in the free columns, for a row with ratings of these partners."""
    x, (precision, mean) = partners[:, free], (tensor[free] for tensor in prior)
    ridge = precision / alpha
    H = x.T @ (weights[:, None] * x) + torch.diag(ridge)
    return torch.linalg.solve(H, x.T @ (weights * residuals) + ridge * mean), torch.linalg.inv(H) / alpha


def assert_moments(draws: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Draws, (n, d), have this mean and covariance to within five standard errors."""
    n, std = len(draws), covariance.diagonal().sqrt()
    assert float(((draws.mean(0) - mean).abs() / std).max()) < 5 / n**0.5
    errors = (std[:, None] * std).square() + covariance.square()
    assert float(((draws.T.cov() - covariance).abs() / errors.sqrt()).max()) < 5 / n**0.5

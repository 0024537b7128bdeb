"""Folding in is the training step for rows that were not there, whatever the solver."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch
from conftest import DenseFeatures, features_of
from torch import Tensor
from torch.testing import assert_close

from mfrec.data import loading as datasets
from mfrec.data.ratings import Ratings, per_user_split
from mfrec.errors import InputError
from mfrec.evaluation.metrics import rmse
from mfrec.experiments.loop import answer, fit
from mfrec.inference import fold_in as fold_in_module
from mfrec.inference.fold_in import Folded, Law, explain, fold_in_item, fold_in_user
from mfrec.model.factorization import ITEM, OFFSETS, SIDES, USER, MatrixFactorization
from mfrec.model.features import Features, implicit_features
from mfrec.model.objective import SCALINGS, Objective
from mfrec.model.ridge import sides_of, weighed_by
from mfrec.posteriors.posterior import NOISE_SHAPE, MeanField, Samples
from mfrec.solvers.als import ALS
from mfrec.solvers.base import SOLVERS
from mfrec.solvers.base import ridge as ridge_module
from mfrec.solvers.variational import VariationalBayes

DETERMINISTIC = [name for name, solver in SOLVERS.items() if not hasattr(solver, "posterior")]
OBJECTIVE = Objective(0.3, 0.1, "sqrt")
LAWS = ["objective", "vb", "gibbs", "gibbs of one noise"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ratings_of(n_users: int, n_items: int, seed: int = 0) -> Ratings:
    """About two in three, in float64 and weighted; of several users the second, and of items the second, have none."""
    generator = seeded(seed)
    observed = torch.rand(n_users, n_items, generator=generator) < 0.65
    observed[1:2] = observed[:, 1:2] = False
    users, items = observed.nonzero(as_tuple=True)
    values = 3 + 1.5 * torch.randn(len(users), generator=generator, dtype=torch.float64)
    weights = 0.5 + torch.rand(len(users), generator=generator, dtype=torch.float64)
    return Ratings(users, items, values, n_users, n_items, weights=weights)


def a_rating(value: float) -> Ratings:
    """Of one user and one item."""
    zero = torch.zeros(1, dtype=torch.long)
    return Ratings(zero, zero, torch.tensor([value], dtype=torch.float64), 1, 1)


def mirrored(ratings: Ratings) -> Ratings:
    """Users as items and items as users."""
    r = ratings
    return Ratings(r.items, r.users, r.values, r.n_items, r.n_users, weights=r.weights)


def repeated(ratings: Ratings, n: int) -> Ratings:
    """n users with the ratings of one."""
    users = torch.arange(n).repeat_interleave(len(ratings))
    assert ratings.weights is not None
    items, values, weights = (t.repeat(n) for t in (ratings.items, ratings.values, ratings.weights))
    return Ratings(users, items, values, n, ratings.n_items, weights=weights)


def one_of(ratings: Ratings, user: int) -> Ratings:
    """The ratings of one user as of the only one."""
    own = ratings.select(ratings.users == user)
    return Ratings(own.users * 0, own.items, own.values, 1, ratings.n_items, weights=own.weights)


@torch.no_grad()
def scrambled(model: MatrixFactorization, generator: torch.Generator) -> MatrixFactorization:
    """The model with parameters that are no minimum of anything."""
    for parameter in model.parameters():
        parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    model.project()
    return model


@torch.no_grad()
def started(ratings: Ratings, rank: int = 3, **options: Any) -> MatrixFactorization:
    """Scrambled, but for own rows without a rating, which as in training are 0."""
    model = scrambled(MatrixFactorization.from_ratings(ratings, rank, **options), seeded(1))
    for side, counts in ((USER, ratings.user_counts), (ITEM, ratings.item_counts)):
        term = model.terms(side)[0]
        model.assign(term, model.table(term) * (counts > 0)[:, None])
    return model


def a_model(
    n_users: int = 6, n_items: int = 8, rank: int = 2, offset: float = 3.0, **options: Any
) -> MatrixFactorization:
    centre = torch.tensor(offset, dtype=torch.float64)
    model = MatrixFactorization(n_users, n_items, rank, offset=centre, dtype=torch.float64, **options)
    return scrambled(model, seeded(1))


def a_mean_field(model: MatrixFactorization) -> MeanField:
    generator, free, sizes = seeded(2), model.free_columns(), (model.n_users, model.n_items)

    def positive(*shape: int) -> Tensor:
        return 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)

    variances = [0.2 * positive(n, side.shape[1]) * side for n, side in zip(sizes, free, strict=True)]
    precision, noise = [positive(*side.shape) for side in free], [positive(n, 1) for n in sizes]
    return MeanField(model, variances, precision, 2.0, noise)


def samples_of(model: MatrixFactorization, n: int = 3, same_noise: bool = False, prior_mean: float = 1.0) -> Samples:
    """n draws in which nothing is like in another."""
    samples, generator, k = Samples(model, n, same_noise), seeded(3), model.rank + 2 * model.biases
    for number in range(n):
        scrambled(model, generator)
        noise = [0.5 + torch.rand(size, 1, generator=generator).double() for size in (model.n_users, model.n_items)]
        priors = [
            (
                0.5 + torch.rand(k, generator=generator).double(),
                prior_mean * torch.randn(k, generator=generator).double(),
            )
            for _ in model.all_terms
        ]
        samples.offer(1.5 + number, noise, priors)
    return samples


def a_law(kind: str, model: MatrixFactorization) -> Law:
    if kind == "objective":
        return OBJECTIVE
    return a_mean_field(model) if kind == "vb" else samples_of(model, same_noise="one noise" in kind)


def beside(
    model: MatrixFactorization, side: int, n_rows: int, features: Mapping[str, Features], offset: Tensor | None
) -> MatrixFactorization:
    """The model with n rows in place of a side's, of which only the features are known: own parts are 0."""
    name, other = SIDES[side], SIDES[1 - side]
    sizes = (n_rows, model.n_items) if side == USER else (model.n_users, n_rows)
    blocks = {f"{other}_features": dict(model.get_submodule(f"{other}_features").named_children())}
    blocks[f"{name}_features"] = dict(features)
    whole = MatrixFactorization(
        *sizes, model.rank, biases=model.biases, offset=offset, item_ids=model.item_ids, init="zeros",
        dtype=model.scale.dtype, **blocks,
    )  # fmt: skip
    own = ("offset", f"{name}_factors", f"{name}_bias")
    whole.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith(own)}, strict=False)
    return whole


class OwnPart(NamedTuple):
    """What new rows have of their own, and ∂J in it, by parameter."""

    values: dict[str, Tensor]
    gradients: dict[str, Tensor]


@torch.no_grad()
def own_part(
    model: MatrixFactorization,
    folded: Folded,
    side: int,
    ratings: Ratings,
    features: Mapping[str, Features],
    objective: Objective,
) -> OwnPart:
    """Of the model in which the new rows are the sum of their own part and what their features add."""
    n_rows = (ratings.n_users, ratings.n_items)[side]
    whole = beside(model, side, n_rows, features, folded.model.offset)
    term = whole.terms(side)[0]
    assert term.features is None
    whole.assign(term, folded.model.tables()[side] - whole.tables()[side])
    assert_close(whole.predict_observed(ratings), folded.model.predict_observed(ratings))
    gradients = objective.gradients(whole, ratings)
    return OwnPart(*({name: found[name] for name in term.columns} for found in (whole.state_dict(), gradients)))


def assert_minimum(
    model: MatrixFactorization,
    folded: Folded,
    side: int,
    ratings: Ratings,
    features: Mapping[str, Features] | None = None,
    objective: Objective = OBJECTIVE,
) -> None:
    """The gradient of J in the new rows' own part is 0."""
    own = own_part(model, folded, side, ratings, features or {}, objective)
    assert len(own.gradients) == 1 + model.biases
    for name, gradient in own.gradients.items():
        assert_close(gradient, torch.zeros_like(gradient), atol=1e-10, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def conditional(
    other: Tensor,
    free: Tensor,
    residuals: Tensor,
    weights: Tensor,
    alpha: float,
    prior: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """H⁻¹ (b + R m) and H⁻¹/α of the free columns of a row that has rated these rows of the other side."""
    x, (precision, mean) = other[:, free], (tensor[free] for tensor in prior)
    ridge = precision / alpha
    H = x.T @ (weights[:, None] * x) + torch.diag(ridge)
    return torch.linalg.solve(H, x.T @ (weights * residuals) + ridge * mean), torch.linalg.inv(H) / alpha


def assert_moments(draws: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Draws, (n, d), have this mean and covariance to within five standard errors."""
    n, scale = len(draws), covariance.diagonal().sqrt()
    assert float(((draws.mean(0) - mean).abs() / scale).max()) < 5 / n**0.5
    errors = (scale[:, None] * scale).square() + covariance.square()
    assert float(((draws.T.cov() - covariance).abs() / errors.sqrt()).max()) < 5 / n**0.5


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("weighted", [False, True])
def test_folding_in_is_the_half_sweep_of_als(odd_ratings, weighted_ratings, scaling, biases, offset, weighted):
    ratings, objective = weighted_ratings if weighted else odd_ratings, Objective(0.3, 0.1, scaling)
    model = started(ratings, biases=biases, offset=offset)
    before = copy.deepcopy(model)
    ALS(model, ratings, objective, solve="cholesky", relaxation=1.0).epoch()
    users = fold_in_user(before, ratings, objective).model
    assert_close(users.tables(), (model.tables()[USER], before.tables()[ITEM]))
    per_item = {"offset": model.offset} if offset == "item" else {}
    items = fold_in_item(model, ratings, objective, **per_item).model
    assert_close(items.tables(), model.tables())
    assert_close(items.predict_observed(ratings), model.predict_observed(ratings))


def test_with_features_it_is_the_last_step_of_the_half_sweep(weighted_ratings, odd_features):
    ratings, options = weighted_ratings, odd_features.options()
    model = started(ratings, **options)
    before = {name: value.clone() for name, value in model.state_dict().items() if name.startswith("item")}
    ALS(model, ratings, OBJECTIVE, solve="cholesky", relaxation=1.0).epoch()
    items = fold_in_item(model, ratings, OBJECTIVE, features=options["item_features"])
    assert_close(items.model.tables(), model.tables())
    halfway = copy.deepcopy(model)
    halfway.load_state_dict(before, strict=False)
    users = fold_in_user(halfway, ratings, OBJECTIVE, features=options["user_features"])
    assert_close(users.model.tables(), (model.tables()[USER], halfway.tables()[ITEM]))


@pytest.mark.parametrize(
    ("name", "featured"),
    [(name, features) for name in DETERMINISTIC for features in {False, "features" in SOLVERS[name].takes}],
)
@pytest.mark.parametrize("scaling", ["row", "rating"])
def test_new_rows_of_every_solver_of_j_are_where_its_gradient_is_zero(
    weighted_ratings, odd_features: DenseFeatures, name, featured, scaling
):
    ratings, objective = weighted_ratings, Objective(0.3, 0.1, scaling)
    users, items = ratings_of(5, ratings.n_items), mirrored(ratings_of(4, ratings.n_users))
    known: dict[str, dict[str, Features]] = {}
    of_users: dict[str, Features] = {}
    of_items: dict[str, Features] = {}
    if featured:
        kinds = {USER: odd_features.user["kind"], ITEM: odd_features.item["kind"]}
        implicit = implicit_features(ratings, "users")
        known["user_features"] = {"implicit": implicit, "kind": features_of(kinds[USER])}
        known["item_features"] = {"kind": features_of(kinds[ITEM])}
        of_users = {"kind": features_of(kinds[USER][:5]), "implicit": implicit_features(users, "users")}
        of_items = {"kind": features_of(kinds[ITEM][:4])}
    model = started(ratings, **known)
    solver = SOLVERS[name](model, ratings, objective, generator=seeded(0))
    for _ in range(3):
        solver.epoch()
    folded = fold_in_user(model, users, objective, features=of_users)
    assert_minimum(model, folded, USER, users, of_users, objective)
    folded = fold_in_item(model, items, objective, features=of_items)
    assert_minimum(model, folded, ITEM, items, of_items, objective)


@pytest.fixture(scope="module")
def converged() -> VariationalBayes:
    """After so many sweeps that another changes nothing; user 30 has no rating."""
    generator, n = seeded(0), 420
    pairs = torch.cartesian_prod(torch.arange(30), torch.arange(25))
    users, items = pairs[torch.randperm(750, generator=generator)[:n]].T

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    # With planted biases, for what is not there is shrunk ever more slowly.
    values = 3 + normal(31)[users] * normal(25)[items] + 0.7 * (normal(31)[users] + normal(25)[items])
    values += 0.05 * (4 + users % 10) * normal(n)
    weights = 0.5 + torch.rand(n, generator=generator, dtype=torch.float64)
    ratings = Ratings(users, items, values, 31, 25, weights=weights)
    model = MatrixFactorization.from_ratings(ratings, 1, generator=generator)
    solver = VariationalBayes(model, ratings, Objective(), cg_steps=2)
    for _ in range(500):
        solver.epoch()
    return solver


@pytest.mark.parametrize("side", [USER, ITEM])
def test_a_converged_mean_field_folds_its_own_rows_in_again(converged, side):
    model, posterior = converged.model, converged.posterior
    before = [table.detach().clone() for table in (*model.tables(), *posterior.variances, *posterior.noise)]
    fold_in = (fold_in_user, fold_in_item)[side]
    folded = fold_in(model, converged.ratings, posterior)
    found = folded.posterior
    after = (*folded.model.tables(), *found.variances, *found.noise)
    converged.epoch()
    moved = (*model.tables(), *converged.variances, *converged.posterior.noise)
    for trained, epoch_later, again in zip(before, moved, after, strict=True):
        assert_close(epoch_later, trained, atol=1e-9, rtol=0, msg=lambda m: f"has not converged: {m}")
        assert_close(again, trained, atol=1e-7, rtol=0)
    assert float(posterior.noise[side].std()) > 0.05, "the noise of these rows does not differ"
    assert_close(
        found.deviation(converged.ratings.users, converged.ratings.items),
        posterior.deviation(converged.ratings.users, converged.ratings.items),
    )


@torch.no_grad()
def test_another_sweep_leaves_new_rows_of_a_mean_field_as_they_are():
    model, ratings = a_model(rank=3), ratings_of(5, 8)
    law = a_mean_field(model)
    folded, posterior = fold_in_user(model, ratings, law)
    solver = VariationalBayes(folded, ratings, Objective(), cg_steps=12)
    solver.alpha, solver.precision, solver.variances = law.alpha, list(law.precision), list(posterior.variances)
    solver.gammas = [torch.stack([tau, torch.ones_like(tau)]) for tau in posterior.noise]
    solver.sides = weighed_by(sides_of(folded, ratings), ratings, posterior.noise)
    sums = solver._expected_squares(USER) / posterior.noise[USER]
    shape, rate = NOISE_SHAPE + 0.5 * ratings.user_counts[:, None], NOISE_SHAPE + 0.5 * law.alpha * sums
    assert_close(posterior.noise[USER], shape / rate)
    before = folded.tables()[USER]
    solver.epoch()
    assert_close(folded.tables()[USER], before)
    assert_close(solver.variances[USER], posterior.variances[USER])


@pytest.mark.parametrize("side", [USER, ITEM])
@pytest.mark.parametrize("featured", [False, True])
@torch.no_grad()
def test_a_draw_of_a_new_row_has_the_mean_and_covariance_of_its_conditional(side, featured):
    n, name = 6000, SIDES[side]
    kinds = torch.arange(8) % 3
    blocks = {f"{name}_features": {"kind": features_of(torch.eye(3).double()[kinds])}} if featured else {}
    model = a_model(8, 8, **blocks)
    samples = samples_of(model, 1, same_noise=True)
    (draw,) = samples.draws
    one = ratings_of(1, 8)
    many = repeated(one, n) if side == USER else mirrored(repeated(one, n))
    features = {"kind": features_of(torch.eye(3).double()[[1] * n])} if featured else {}
    folded = (fold_in_user, fold_in_item)[side](model, many, samples, features=features, generator=seeded(5))

    other, free = model.tables(draw["parameters"])[1 - side], model.free_columns()[side][0] > 0
    base = (~free).double()
    if featured:
        base = base + model.table(model.terms(side)[1], draw["parameters"])[1]
    rated = one.items.long()
    priors = [prior for term, prior in zip(model.all_terms, draw["priors"], strict=True) if term.features is None]
    weights = one.weights * draw["noise"][1 - side][rated, 0]
    residuals = one.values - 3.0 - other[rated] @ base
    mean, covariance = conditional(other[rated], free, residuals, weights, draw["alpha"], priors[side])
    assert float((covariance - torch.diag(covariance.diagonal())).abs().max()) > 0.02, "no triangle would be wrong"

    (kept,) = folded.posterior.draws
    drawn = folded.posterior.model.tables(kept["parameters"])[side]
    assert_moments(drawn[:, free] - base[free], mean, covariance)
    assert_close(kept["noise"][side], torch.ones(n, 1).double())
    assert_close(kept["noise"][1 - side], draw["noise"][1 - side])
    expected = 3.0 + other @ base.index_add(0, free.nonzero()[:, 0], mean)
    others, new = torch.arange(8).repeat(2), torch.tensor([0, n - 1]).repeat_interleave(8)
    predicted = folded.model.predict(*((new, others) if side == USER else (others, new)))
    assert_close(predicted, expected.repeat(2))
    for again, prior in zip(kept["priors"], priors, strict=True):
        assert_close(again, prior)


@torch.no_grad()
def test_draws_of_a_row_and_its_noise_have_the_moments_of_their_joint_density(monkeypatch):
    # A wide prior of τ, so that what it does to the row shows.
    monkeypatch.setattr(fold_in_module, "NOISE_SHAPE", 2.0)
    n_users, n_draws, warm_up = 1500, 45, 5
    model = a_model(2, 5, rank=1, biases=False)
    samples = samples_of(model, 1)
    (draw,) = samples.draws
    draw["alpha"], draw["priors"][USER] = 1.3, [torch.tensor([1.2]).double(), torch.tensor([0.8]).double()]
    samples.draws = [draw] * n_draws
    one = ratings_of(1, 5)
    folded = fold_in_user(model, repeated(one, n_users), samples, generator=seeded(4))
    kept = folded.posterior.draws[warm_up:]
    assert len(kept) == n_draws - warm_up
    theta = torch.stack([draw["parameters"]["user_factors.weight"][:, 0] for draw in kept])
    tau = torch.stack([draw["noise"][USER][:, 0] for draw in kept])

    t, p = torch.meshgrid(torch.linspace(-4, 5, 901), torch.linspace(0.002, 8, 2000), indexing="ij")
    t, p = t.double(), p.double()
    rated = one.items.long()
    x, v = draw["parameters"]["item_factors.weight"][rated, 0], one.weights * draw["noise"][ITEM][rated, 0]
    squares = sum(w * (r - t * a).square() for w, r, a in zip(v, one.values - 3.0, x, strict=True))
    log = (2.0 - 1 + len(one) / 2) * p.log() - 2.0 * p - 0.65 * p * squares - 0.6 * (t - 0.8).square()
    density = (log - log.max()).exp()
    for power, other_power in ((1, 0), (0, 1), (2, 0), (0, 2), (1, 1)):
        expected = float((density * t**power * p**other_power).sum() / density.sum())
        # Users are independent of each other, the draws of one are not.
        by_user = (theta**power * tau**other_power).mean(0)
        error = float(by_user.std()) / n_users**0.5
        assert abs(float(by_user.mean()) - expected) < 4 * error, (power, other_power)
    averaged = folded.model.predict(torch.arange(n_users), torch.zeros(n_users, dtype=torch.long)) - 3.0
    average_x = float(draw["parameters"]["item_factors.weight"][0, 0])
    expected = average_x * float((density * t).sum() / density.sum())
    assert abs(float(averaged.mean()) - expected) < 4 * float(averaged.std()) / n_users**0.5 + 1e-3


@pytest.mark.parametrize("all_empty", [False, True])
@torch.no_grad()
def test_a_row_without_a_rating_is_its_prior(all_empty):
    model, ratings = a_model(), ratings_of(3, 8)
    ratings = ratings.select(torch.zeros(len(ratings), dtype=torch.bool)) if all_empty else ratings
    users, items = torch.ones(8, dtype=torch.long), torch.arange(8)
    # λ scaled by the number of ratings is 0.
    for objective in (OBJECTIVE, Objective(0.3, scaling="row"), Objective()):
        folded = fold_in_user(model, ratings, objective).model
        assert_close(folded.predict(users, items), 3.0 + model.item_bias.weight[:, 0])
    law = a_mean_field(model)
    folded, posterior = fold_in_user(model, ratings, law)
    assert_close(folded.predict(users, items), 3.0 + model.item_bias.weight[:, 0])
    free = model.free_columns()[USER]
    assert_close(posterior.variances[USER][1:2], free / law.precision[USER])
    assert_close(posterior.noise[USER][1], torch.ones(1).double())
    for same_noise in (False, True):
        samples, free = samples_of(model, same_noise=same_noise), model.free_columns()[USER][0]
        expected = [
            model.tables(draw["parameters"])[ITEM] @ torch.where(free > 0, draw["priors"][USER][1], 1)
            for draw in samples.draws
        ]
        folded = fold_in_user(model, ratings, samples).model
        assert_close(folded.predict(users, items), 3.0 + torch.stack(expected).mean(0))


@pytest.mark.parametrize("kind", ["objective", "vb", "gibbs of one noise"])
@pytest.mark.parametrize("side", [USER, ITEM])
@torch.no_grad()
def test_many_at_once_are_what_each_is_alone(monkeypatch, kind, side):
    model, fold_in = a_model(8, 8), (fold_in_user, fold_in_item)[side]
    law, many = a_law(kind, model), ratings_of(7, 8)

    def folded(ratings: Ratings) -> list[Tensor]:
        """Of each new row its predictions, and its variances and its noise where it has them."""
        new, posterior = fold_in(model, ratings if side == USER else mirrored(ratings), law)
        users, items = new.tables()
        found = [users @ items.T if side == USER else items @ users.T]
        return found + ([posterior.variances[side], posterior.noise[side]] if kind == "vb" else [])

    together = folded(many)
    alone = [torch.cat(parts) for parts in zip(*(folded(one_of(many, user)) for user in range(7)), strict=True)]
    assert_close(together, alone)
    monkeypatch.setattr(ridge_module, "NORMAL_NUMBERS", 2 * 3 * 3)
    assert_close(folded(many), alone)


@pytest.mark.parametrize("side", [USER, ITEM])
@pytest.mark.parametrize("featured", [False, True])
def test_rows_kept_at_zero_or_above_meet_the_conditions_of_their_minimum(side, featured):
    name, kinds = SIDES[side], features_of(torch.eye(3).double()[torch.arange(8) % 3])
    model = a_model(8, 8, rank=3, nonnegative=True, **({f"{name}_features": {"kind": kinds}} if featured else {}))
    ratings = ratings_of(8, 8) if side == USER else mirrored(ratings_of(8, 8))
    features = {"kind": kinds} if featured else {}
    folded = (fold_in_user, fold_in_item)[side](model, ratings, OBJECTIVE, features=features)
    values, gradients = own_part(model, folded, side, ratings, features, OBJECTIVE)
    factors, gradient = values[f"{name}_factors.weight"], gradients[f"{name}_factors.weight"]
    assert float(factors.min()) > -1e-12
    at_zero = factors < 1e-12
    assert 5 < int(at_zero.sum()) < at_zero.numel() - 5
    assert float(gradient[at_zero].min()) > -1e-4
    assert float(gradient[at_zero].max()) > 0.1
    assert_close(gradient[~at_zero], torch.zeros_like(gradient[~at_zero]), atol=1e-4, rtol=0)
    bias, slope = values[f"{name}_bias.weight"], gradients[f"{name}_bias.weight"]
    assert_close(slope, torch.zeros_like(slope), atol=1e-4, rtol=0)
    assert float(bias.min()) < -0.1


def content_model(**options: Any) -> tuple[MatrixFactorization, dict[str, Features]]:
    """Items that are their kinds alone, and the kinds of two new ones."""
    kinds = features_of(torch.eye(3).double()[torch.arange(8) % 3])
    model = a_model(item_features={"kind": kinds}, item_ids=False, **options)
    return model, {"kind": features_of(torch.eye(3).double()[[2, 0]])}


# The last fails: new items of a non-negative model get rows of their own, which the trained items have not.
@pytest.mark.parametrize("kind", ["objective", "gibbs", "gibbs of one noise", "non-negative"])
@torch.no_grad()
def test_a_new_item_of_a_model_without_item_ids_is_its_features_alone(kind):
    model, features = content_model(nonnegative=kind == "non-negative")
    law = OBJECTIVE if kind == "non-negative" else a_law(kind, model)
    new = mirrored(ratings_of(2, model.n_users))
    folded = fold_in_item(model, new, law, features=features).model
    parameters = [draw["parameters"] for draw in law.draws] if isinstance(law, Samples) else [None]
    users, items = torch.arange(6).repeat_interleave(2), torch.arange(2).repeat(6)
    # Items 2 and 0 are of the kinds of the new ones.
    tables = [model.tables(each) for each in parameters]
    expected = torch.stack([(theta @ x[[2, 0]].T).flatten() for theta, x in tables]).mean(0)
    assert_close(folded.predict(users, items), 3.0 + expected)


@torch.no_grad()
def test_new_users_of_a_model_without_item_ids_fold_in():
    model, _ = content_model()
    ratings = ratings_of(4, 8)
    assert_minimum(model, fold_in_user(model, ratings, OBJECTIVE), USER, ratings)
    samples, one = samples_of(model, 1, same_noise=True), one_of(ratings, 2)
    (draw,) = samples.draws
    x, free, rated = model.tables(draw["parameters"])[ITEM], model.free_columns()[USER][0] > 0, one.items.long()
    residuals, weights = one.values - 3.0 - x[rated][:, -1], one.weights * draw["noise"][ITEM][rated, 0]
    mean, _ = conditional(x[rated], free, residuals, weights, draw["alpha"], draw["priors"][0])
    folded = fold_in_user(model, ratings, samples).model
    items = torch.arange(8)
    assert_close(folded.predict(items * 0 + 2, items), 3.0 + x[:, free] @ mean + x[:, -1])


@pytest.mark.parametrize("kind", ["objective", "vb"])
@torch.no_grad()
def test_the_shares_of_ratings_sum_to_the_prediction_less_what_is_known_without_them(kind):
    model, one, items = a_model(), ratings_of(1, 8), torch.tensor([6, 0, 3])
    law = a_law(kind, model)
    shares = explain(model, one, law, items)
    predicted = fold_in_user(model, one, law).model.predict(items * 0, items)
    assert shares.shape == (3, len(one))
    assert_close(shares.sum(1), predicted - 3.0 - model.item_bias.weight[items, 0])


@torch.no_grad()
def test_the_shares_of_draws_of_one_noise_sum_to_the_prediction_less_the_priors_part():
    model, one, items = a_model(), ratings_of(1, 8), torch.tensor([6, 0, 3])
    samples, rated, free = samples_of(model, same_noise=True), one.items.long(), model.free_columns()[USER][0] > 0
    known = []
    for draw in samples.draws:
        x = model.tables(draw["parameters"])[ITEM]
        weights = one.weights * draw["noise"][ITEM][rated, 0]
        mean, _ = conditional(x[rated], free, one.values * 0, weights, draw["alpha"], draw["priors"][USER])
        known.append(x[items][:, free] @ mean + x[items, -1])
    predicted = fold_in_user(model, one, samples).model.predict(items * 0, items)
    assert_close(explain(model, one, samples, items).sum(1), predicted - 3.0 - torch.stack(known).mean(0))


@torch.no_grad()
def test_the_shares_of_draws_sum_to_the_prediction_of_the_same_draws():
    model, one, items = a_model(), ratings_of(1, 8), torch.tensor([6, 0, 3])
    samples = samples_of(model, prior_mean=0.0)
    known = torch.stack([draw["parameters"]["item_bias.weight"][items, 0] for draw in samples.draws]).mean(0)
    shares = explain(model, one, samples, items, generator=seeded(1))
    predicted = fold_in_user(model, one, samples, generator=seeded(1)).model.predict(items * 0, items)
    assert_close(shares.sum(1), predicted - 3.0 - known)


@pytest.mark.parametrize("kind", LAWS)
@torch.no_grad()
def test_a_rating_as_expected_has_a_share_of_zero(kind):
    # With items whose biases do not differ between draws, what is expected is the same of each.
    model, one = a_model(), ratings_of(1, 8)
    law = a_law(kind, model)
    for draw in law.draws if isinstance(law, Samples) else ():
        draw["parameters"]["item_bias.weight"] = model.item_bias.weight.clone()
    one.values[2] = 3.0 + model.item_bias.weight[one.items[2], 0]
    shares = explain(model, one, law, torch.arange(8))
    assert_close(shares[:, 2], torch.zeros(8).double(), atol=1e-12, rtol=0)
    assert float(shares[:, [0, 1, 3]].abs().min()) > 1e-6


@torch.no_grad()
def test_a_share_is_what_the_prediction_loses_with_the_rating_as_expected():
    model, one, items = a_model(), ratings_of(1, 8), torch.arange(8)
    shares = explain(model, one, OBJECTIVE, items)
    predicted = fold_in_user(model, one, OBJECTIVE).model.predict(items * 0, items)
    for n, item in enumerate(one.items.tolist()):
        changed = copy.deepcopy(one)
        changed.values[n] = 3.0 + model.item_bias.weight[item, 0]
        without = fold_in_user(model, changed, OBJECTIVE).model.predict(items * 0, items)
        assert_close(shares[:, n], predicted - without)


@pytest.mark.parametrize("kind", ["objective", "gibbs of one noise"])
@torch.no_grad()
def test_with_implicit_features_shares_tell_of_what_was_rated_too(kind):
    kinds = torch.eye(3).double()[torch.arange(6) % 3]
    known = {"kind": features_of(kinds), "implicit": implicit_features(ratings_of(6, 8, seed=7), "users")}
    model, one, items = a_model(user_features=known), ratings_of(1, 8), torch.tensor([6, 0, 3])
    law = OBJECTIVE if kind == "objective" else samples_of(model, same_noise=True, prior_mean=0.0)
    features = {"kind": features_of(kinds[1:2]), "implicit": implicit_features(one, "users")}
    predicted = fold_in_user(model, one, law, features=features).model.predict(items * 0, items)
    parameters = [draw["parameters"] for draw in law.draws] if isinstance(law, Samples) else [model.state_dict()]
    rest = []
    for each in parameters:
        whole = copy.deepcopy(model)
        whole.load_state_dict({**model.state_dict(), **each})
        whole = beside(whole, USER, 1, features, model.offset)
        for name, parameter in whole.named_parameters():
            if "implicit" in name:
                parameter.zero_()
        rest.append(whole.predict(items * 0, items))
    shares = explain(model, one, law, items, features=features)
    assert_close(shares.sum(1), predicted - torch.stack(rest).mean(0))


@torch.no_grad()
def test_with_implicit_features_a_rating_as_expected_tells_by_having_been_made():
    known = {"implicit": implicit_features(ratings_of(6, 8, seed=7), "users")}
    model, one, items = a_model(user_features=known), ratings_of(1, 8), torch.tensor([6, 0, 3])
    features = {"implicit": implicit_features(one, "users")}
    expected = beside(model, USER, 1, features, model.offset).predict_observed(one)
    as_expected = Ratings(one.users, one.items, expected, 1, 8, weights=one.weights)
    weights = model.table(model.terms(USER)[1])[one.items.long()]
    made = model.tables()[ITEM][items] @ weights.T / len(one) ** 0.5
    assert_close(explain(model, as_expected, OBJECTIVE, items, features=features), made)


def test_one_user_is_explained_and_none_whose_factors_are_kept_at_zero_or_above():
    with pytest.raises(InputError, match="the ratings of 2 users explain nothing of one; give those of one user"):
        explain(a_model(), ratings_of(2, 8), OBJECTIVE, torch.arange(3))
    with pytest.raises(InputError, match="rows kept at 0 or above are no sums over ratings"):
        explain(a_model(nonnegative=True), ratings_of(1, 8), OBJECTIVE, torch.arange(3))


@pytest.mark.parametrize("kind", LAWS)
@torch.no_grad()
def test_a_new_item_for_a_new_user_is_a_model_of_one_rating(kind):
    model, one = a_model(), ratings_of(1, 8)
    user = fold_in_user(model, one, a_law(kind, model))
    law = OBJECTIVE if user.posterior is None else user.posterior
    low, high = (fold_in_item(user.model, a_rating(value), law) for value in (1.0, 5.0))
    zero = torch.zeros(1, dtype=torch.long)
    assert (high.model.n_users, high.model.n_items) == (1, 1)
    assert float(low.model.predict(zero, zero)) + 0.1 < float(high.model.predict(zero, zero))
    if high.posterior is None:
        assert_minimum(user.model, high, ITEM, a_rating(5.0))
    else:
        assert float(high.posterior.deviation(zero, zero)) > 0.1
    if kind == "gibbs of one noise":
        expected = []
        for draw in user.posterior.draws:
            theta = user.posterior.model.tables(draw["parameters"])[USER]
            free = model.free_columns()[ITEM][0] > 0
            residuals = torch.tensor([2.0]).double() - theta[:, model.rank]
            mean, _ = conditional(
                theta, free, residuals, draw["noise"][USER][:, 0], draw["alpha"], draw["priors"][ITEM]
            )
            expected.append(3.0 + theta[:, model.rank] + theta[:, free] @ mean)
        assert_close(high.model.predict(zero, zero), torch.stack(expected).mean(0))


def test_a_new_item_for_a_new_user_of_a_model_without_item_ids_is_a_model_of_one_rating():
    model, _ = content_model()
    user = fold_in_user(model, ratings_of(1, 8), samples_of(model))
    item = fold_in_item(user.model, a_rating(5.0), user.posterior)
    assert bool(torch.isfinite(item.model.predict(torch.tensor([0]), torch.tensor([0]))).all())


@torch.no_grad()
def test_a_new_item_for_new_users_of_a_non_negative_model_is_non_negative():
    model = a_model(nonnegative=True)
    users = fold_in_user(model, ratings_of(5, 8), OBJECTIVE)
    items = fold_in_item(users.model, mirrored(ratings_of(6, 5)), OBJECTIVE)
    assert float(items.model.item_factors.weight.min()) > -1e-12


def test_ratings_of_other_items_or_users_do_not_fit():
    model = a_model()
    with pytest.raises(InputError, match="ratings of 9 items do not fit a model of 8; give them by its indices"):
        fold_in_user(model, ratings_of(2, 9), OBJECTIVE)
    with pytest.raises(InputError, match="ratings of 5 users do not fit a model of 6; give them by its indices"):
        fold_in_item(model, ratings_of(5, 2), OBJECTIVE)
    with pytest.raises(InputError, match="ratings of 9 items do not fit a model of 8"):
        explain(model, ratings_of(1, 9), OBJECTIVE, torch.arange(3))


def test_features_are_those_of_training():
    kinds = features_of(torch.eye(3).double()[torch.arange(6) % 3])
    plain, featured, new = a_model(), a_model(user_features={"kind": kinds}), ratings_of(6, 8)
    with pytest.raises(InputError, match="this model needs user features 'kind'; give those it was trained with"):
        fold_in_user(featured, new, OBJECTIVE)
    with pytest.raises(InputError, match="this model has no user features 'kind'; give those it was trained with"):
        fold_in_user(plain, new, OBJECTIVE, features={"kind": kinds})
    with pytest.raises(InputError, match="this model has no item features 'kind'"):
        fold_in_item(featured, new, OBJECTIVE, features={"kind": kinds})


@pytest.mark.parametrize("new_kinds", [torch.eye(3)[[1]], torch.eye(4)[[1, 2]]], ids=["rows", "features"])
def test_features_are_of_the_new_rows_and_as_many_as_in_training(new_kinds):
    kinds = features_of(torch.eye(3).double()[torch.arange(6) % 3])
    model, new = a_model(user_features={"kind": kinds}), {"kind": features_of(new_kinds.double())}
    with pytest.raises(InputError):
        fold_in_user(model, ratings_of(2, 8), OBJECTIVE, features=new)


def test_an_offset_of_each_item_is_asked_for_of_new_items():
    model, new = a_model(offset=0.0), mirrored(ratings_of(3, 6))
    model.offset = torch.linspace(2, 4, 8, dtype=torch.float64)
    with pytest.raises(InputError, match="each item of this model has an offset of its own; give 3 for the new"):
        fold_in_item(model, new, OBJECTIVE)
    offset = torch.tensor([2.0, 5.0, 3.0], dtype=torch.float64)
    folded = fold_in_item(model, new, OBJECTIVE, offset=offset)
    assert_close(folded.model.offset, offset)
    assert_minimum(model, folded, ITEM, new)
    # New users have the items' offsets.
    users = ratings_of(3, 8)
    assert_minimum(model, fold_in_user(model, users, OBJECTIVE), USER, users)


@pytest.mark.parametrize("n", [1, 5])
def test_the_offset_is_one_for_each_new_item(n):
    model = a_model(offset=0.0)
    model.offset = torch.linspace(2, 4, 8, dtype=torch.float64)
    with pytest.raises(InputError):
        fold_in_item(model, mirrored(ratings_of(3, 6)), OBJECTIVE, offset=torch.zeros(n))


@pytest.mark.parametrize("item", [-1, 8])
def test_items_to_explain_are_the_models(item):
    with pytest.raises(InputError, match=f"item index {item} is not in this model"):
        explain(a_model(), ratings_of(1, 8), OBJECTIVE, torch.tensor([item]))


@pytest.mark.parametrize("nonnegative", [False, True])
def test_other_losses_than_the_squared_error_do_not_fold_in(nonnegative):
    model = a_model(nonnegative=nonnegative)
    objective = Objective(0.3, loss=lambda p, t: ((p - t).abs(), (p - t).sign()))
    with pytest.raises(InputError, match="rows are folded in by least squares, not other losses"):
        fold_in_user(model, ratings_of(2, 8), objective)


def test_a_law_is_an_objective_or_a_known_posterior():
    class Other:
        model = a_model()

    with pytest.raises(InputError, match="rows cannot be folded in by Other; give an objective"):
        fold_in_user(Other.model, ratings_of(2, 8), Other())


def test_the_trained_model_and_the_ratings_stay_as_they_were():
    model, ratings = a_model(), ratings_of(3, 8)
    for kind in LAWS:
        law = a_law(kind, model)
        state = copy.deepcopy((model.state_dict(), law.state_dict() if not isinstance(law, Objective) else {}))
        values = ratings.values.clone()
        folded = fold_in_user(model, ratings, law).model
        with torch.no_grad():
            folded.item_factors.weight.zero_()
        assert_close((model.state_dict(), law.state_dict() if not isinstance(law, Objective) else {}), state)
        assert torch.equal(ratings.values, values)


@torch.no_grad()
def test_the_same_seed_draws_the_same_bits():
    model, ratings, users = a_model(), ratings_of(4, 8), torch.arange(4).repeat_interleave(8)
    samples, items = samples_of(model), torch.arange(8).repeat(4)

    def bits(generator: torch.Generator | None) -> list[Tensor]:
        folded = fold_in_user(model, ratings, samples, generator=generator)
        draws = [draw["parameters"]["user_factors.weight"] for draw in folded.posterior.draws]
        return [*draws, folded.model.predict(users, items), folded.posterior.deviation(users, items)]

    same = [torch.equal(a, b) for a, b in zip(bits(seeded(1)), bits(seeded(1)), strict=True)]
    other = [torch.equal(a, b) for a, b in zip(bits(seeded(1)), bits(seeded(2)), strict=True)]
    unseeded = [torch.equal(a, b) for a, b in zip(bits(None), bits(None), strict=True)]
    assert all(same)
    assert all(unseeded)
    assert not any(other)


def test_new_users_of_ml_100k_are_predicted_as_if_they_had_been_in_training(shared_data):
    dataset, generator = datasets.load(shared_data / "ml-100k"), seeded(0)
    ratings = dataset.ratings
    held = torch.zeros(ratings.n_users, dtype=torch.bool)
    held[torch.randperm(ratings.n_users, generator=generator)[: ratings.n_users // 10]] = True
    new, half = held[ratings.users.long()], per_user_split(ratings, 0.5, generator)
    visible, hidden = ratings.select(new & ~half), ratings.select(new & half)

    def trained(part: Ratings) -> VariationalBayes:
        model = MatrixFactorization.from_ratings(part, 14, scale=dataset.scale, generator=seeded(0))
        solver = VariationalBayes(model, part, Objective())
        fit(solver, epochs=16)
        return solver

    with_them, without = trained(ratings.select(~(new & half))), trained(ratings.select(~new))
    number = torch.cumsum(held, 0) - 1
    of_new = Ratings(number[visible.users.long()], visible.items, visible.values, int(held.sum()), ratings.n_items)
    folded = fold_in_user(answer(without), of_new, without.posterior)
    expected = rmse(with_them.model.predict(hidden.users, hidden.items, clip=True), hidden.values)
    users = number[hidden.users.long()]
    found = rmse(folded.model.predict(users, hidden.items, clip=True), hidden.values)
    assert abs(found - expected) < 0.01
    bias_alone = without.model.offset + without.model.item_bias.weight.detach()[hidden.items.long(), 0]
    assert found < rmse(bias_alone, hidden.values) - 0.05

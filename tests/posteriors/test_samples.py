"""Samples: their mean is a model, standard deviations are those of the draws, and new rows are drawn with them."""

from __future__ import annotations

import pytest
import torch
from conftest import features_of
from posterior_examples import (
    OBJECTIVE,
    a_model,
    assert_moments,
    conditional_moments,
    mirrored,
    ratings_of,
    repeated,
    samples_of,
    seeded,
)
from torch.testing import assert_close

from mfrec.errors import InputError
from mfrec.inference.explain import explain
from mfrec.inference.fold_in import fold_in_items, fold_in_users
from mfrec.model.entity import ENTITY_NAMES, ITEM, USER
from mfrec.model.factorization import MatrixFactorization
from mfrec.posteriors import product_mean
from mfrec.posteriors import samples as samples_module
from mfrec.posteriors.product_mean import truncated
from mfrec.posteriors.registry import posterior_from_state
from mfrec.posteriors.samples import PosteriorSamples

N_USERS, N_ITEMS, RANK = 12, 9, 2
USERS, ITEMS = (index.reshape(-1) for index in torch.meshgrid(torch.arange(12), torch.arange(9), indexing="ij"))


def an_empty_model(biases: bool = True, offset: float | None = 3.0) -> MatrixFactorization:
    centre = None if offset is None else torch.tensor(offset, dtype=torch.float64)
    return MatrixFactorization(N_USERS, N_ITEMS, RANK, biases=biases, offset=centre, dtype=torch.float64)


def drawn(model: MatrixFactorization, n: int, max_draws: int) -> tuple[PosteriorSamples, torch.Tensor, torch.Tensor]:
    """n random draws added, the predictions of each at all pairs, (n, pairs), and their noise variances."""
    generator, samples = torch.Generator().manual_seed(0), PosteriorSamples(model, max_draws)
    predictions, variances = [], []
    for _ in range(n):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        tau = [torch.rand(size, 1, generator=generator, dtype=torch.float64) + 0.5 for size in (N_USERS, N_ITEMS)]
        samples.add(2.0, tau, [])
        predictions.append(model.predict(USERS, ITEMS))
        variances.append(1 / (2.0 * tau[0][USERS, 0] * tau[1][ITEMS, 0]))
    return samples, torch.stack(predictions), torch.stack(variances)


@pytest.mark.parametrize("sizes", [(20, 15), (20, 5), (5, 20), (4, 5)])
def test_a_truncated_product_is_the_nearest_one_with_that_rank(sizes):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, 7, generator=generator, dtype=torch.float64) for n in sizes)
    a, b = truncated(left, right, 3)
    U, s, V = torch.linalg.svd(left @ right.mT, full_matrices=False)
    assert_close(a @ b.mT, U[:, :3] * s[:3] @ V[:3])
    assert a.shape == (len(left), 3)


def test_a_truncated_product_of_dependent_columns_is_whole():
    left, right = (torch.randn(n, 3, generator=torch.Generator().manual_seed(n)).repeat(1, 2) for n in (20, 15))
    a, b = truncated(left, right, 4)
    assert_close(a @ b.mT, left @ right.mT, rtol=1e-5, atol=1e-5)
    nothing, _ = truncated(torch.zeros(5, 4), torch.zeros(6, 4), 2)
    assert nothing.shape == (5, 0)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("offset", [None, 3.0])
@pytest.mark.parametrize("n", [1, 5, 40])
def test_the_mean_model_predicts_the_mean_of_all_draws_if_its_rank_suffices(biases, offset, n):
    # 12 columns are more than the 9 items: nothing is lost, however many draws there are.
    samples, predictions, _ = drawn(an_empty_model(biases, offset), n, max_draws=4)
    assert_close(samples.mean_model().predict(USERS, ITEMS), predictions.mean(0))


def test_the_mean_model_keeps_its_rank_and_stays_near_the_mean_if_its_rank_is_too_low(monkeypatch):
    monkeypatch.setattr(product_mean, "MEAN_RANKS", 2)
    monkeypatch.setattr(product_mean, "BUFFERED", 1)
    samples, predictions, _ = drawn(an_empty_model(), 30, max_draws=4)
    mean = samples.mean_model()
    assert mean.rank < 3 * RANK
    error = mean.predict(USERS, ITEMS) - predictions.mean(0)
    assert float(error.norm()) < 0.5 * float((predictions[-1] - predictions.mean(0)).norm())


@pytest.mark.parametrize("n", [3, 4, 5, 23, 64])
def test_draws_are_kept_evenly_and_at_most_max_draws(n):
    samples, predictions, _ = drawn(an_empty_model(), n, max_draws=4)
    kept = list(samples.trace())
    assert len(kept) == len(samples.draws) == -(-n // samples.stride) <= 4
    for position, (model, noise_std) in enumerate(kept):
        assert_close(model.predict(USERS, ITEMS), predictions[position * samples.stride])
        assert noise_std == 2.0**-0.5


def test_the_standard_deviation_is_that_of_the_draws_and_the_mean_noise():
    samples, predictions, variances = drawn(an_empty_model(), 8, max_draws=8)
    assert_close(samples.std(USERS, ITEMS), (predictions.var(0) + variances.mean(0)).sqrt())
    assert_close(samples.std(USERS, ITEMS, include_noise=False), predictions.std(0))


def test_loaded_samples_continue_like_the_saved_ones():
    samples, _, _ = drawn(an_empty_model(), 9, max_draws=4)
    model, ones = an_empty_model(), [torch.ones(n, 1, dtype=torch.float64) for n in (N_USERS, N_ITEMS)]
    model.load_state_dict(samples.model.state_dict())
    loaded = posterior_from_state(samples.state_dict(), model, OBJECTIVE)
    for both in (samples, loaded):
        both.add(1.0, ones, [])
    assert torch.equal(loaded.mean_model().predict(USERS, ITEMS), samples.mean_model().predict(USERS, ITEMS))
    assert torch.equal(loaded.std(USERS, ITEMS), samples.std(USERS, ITEMS))


def test_a_saved_state_does_not_change_with_later_draws():
    samples, _, _ = drawn(an_empty_model(), 3, max_draws=4)
    state, before = samples.state_dict(), samples.mean_model().predict(USERS, ITEMS)
    samples.add(1.0, [torch.ones(N_USERS, 1), torch.ones(N_ITEMS, 1)], [])
    loaded = posterior_from_state(state, an_empty_model(), OBJECTIVE)
    assert_close(loaded.mean_model().predict(USERS, ITEMS), before)


def test_a_sampler_in_its_burn_in_predicts_and_refuses_everything_else():
    model = a_model()
    loaded = posterior_from_state(PosteriorSamples(model, 4).state_dict(), model, OBJECTIVE)
    assert loaded.mean_model() is model
    assert not loaded.has_std
    assert list(loaded.trace()) == []
    index = torch.zeros(1, dtype=torch.long)
    for call in (
        lambda: loaded.std(index, index),
        lambda: loaded.sample(),
        lambda: loaded.require_std(),
        lambda: fold_in_users(loaded, ratings_of(2, 8)),
        lambda: fold_in_items(loaded, mirrored(ratings_of(2, 6))),
        lambda: explain(loaded, ratings_of(1, 8), index),
    ):
        with pytest.raises(
            InputError, match="kept no samples: it stopped within its burn-in; train it for more epochs"
        ):
            call()


@pytest.mark.parametrize("entity", [USER, ITEM])
@pytest.mark.parametrize("featured", [False, True])
@torch.no_grad()
def test_a_draw_of_a_new_row_has_the_mean_and_covariance_of_its_conditional(entity, featured):
    n, name = 6000, ENTITY_NAMES[entity]
    kinds = torch.arange(8) % 3
    blocks = {f"{name}_features": {"kind": features_of(torch.eye(3).double()[kinds])}} if featured else {}
    model = a_model(8, 8, **blocks)
    samples = samples_of(model, 1, homoscedastic=True)
    (draw,) = samples.draws
    single = ratings_of(1, 8)
    many = repeated(single, n) if entity == USER else mirrored(repeated(single, n))
    features = {"kind": features_of(torch.eye(3).double()[[1] * n])} if featured else {}
    folded = (fold_in_users, fold_in_items)[entity](samples, many, features=features, generator=seeded(5))

    partners, free = model.augmented_factors(draw.parameters)[1 - entity], model.free_columns()[entity][0] > 0
    base = (~free).double()
    if featured:
        base = base + model.weights(model.terms(entity)[1], draw.parameters)[1]
    rated = single.items.long()
    priors = [prior for term, prior in zip(model.all_terms, draw.priors, strict=True) if term.features is None]
    weights = single.weights * draw.precision_scales[1 - entity][rated, 0]
    residuals = single.values - 3.0 - partners[rated] @ base
    mean, covariance = conditional_moments(partners[rated], free, residuals, weights, draw.alpha, priors[entity])
    assert float((covariance - torch.diag(covariance.diagonal())).abs().max()) > 0.02, "no triangle would be wrong"

    (kept,) = folded.draws
    rows = folded.model.augmented_factors(kept.parameters)[entity]
    assert_moments(rows[:, free] - base[free], mean, covariance)
    assert_close(kept.precision_scales[entity], torch.ones(n, 1).double())
    assert_close(kept.precision_scales[1 - entity], draw.precision_scales[1 - entity])
    expected = 3.0 + partners @ base.index_add(0, free.nonzero()[:, 0], mean)
    index, new = torch.arange(8).repeat(2), torch.tensor([0, n - 1]).repeat_interleave(8)
    predicted = folded.mean_model().predict(*((new, index) if entity == USER else (index, new)))
    assert_close(predicted, expected.repeat(2))
    for again, prior in zip(kept.priors, priors, strict=True):
        assert_close(again, list(prior))


@torch.no_grad()
def test_draws_of_a_row_and_its_precision_scale_have_the_moments_of_their_joint_density(monkeypatch):
    # A wide prior of τ, so that its influence on the row shows.
    monkeypatch.setattr(samples_module, "PRECISION_SCALE_SHAPE", 2.0)
    n_users, n_draws, warm_up = 1500, 45, 5
    samples = samples_of(a_model(2, 5, rank=1, biases=False), 1)
    (draw,) = samples.draws
    prior = [torch.tensor([1.2]).double(), torch.tensor([0.8]).double()]
    draw = draw._replace(alpha=1.3, priors=[prior, *draw.priors[1:]])
    samples.draws = [draw] * n_draws
    single = ratings_of(1, 5)
    folded = fold_in_users(samples, repeated(single, n_users), generator=seeded(4))
    kept = folded.draws[warm_up:]
    assert len(kept) == n_draws - warm_up
    theta = torch.stack([draw.parameters["users.factors.weight"][:, 0] for draw in kept])
    tau = torch.stack([draw.precision_scales[USER][:, 0] for draw in kept])

    t, p = torch.meshgrid(torch.linspace(-4, 5, 901), torch.linspace(0.002, 8, 2000), indexing="ij")
    t, p = t.double(), p.double()
    rated = single.items.long()
    x, v = draw.parameters["items.factors.weight"][rated, 0], single.weights * draw.precision_scales[ITEM][rated, 0]
    squares = sum(w * (r - t * a).square() for w, r, a in zip(v, single.values - 3.0, x, strict=True))
    log = (2.0 - 1 + len(single) / 2) * p.log() - 2.0 * p - 0.65 * p * squares - 0.6 * (t - 0.8).square()
    density = (log - log.max()).exp()
    for power, tau_power in ((1, 0), (0, 1), (2, 0), (0, 2), (1, 1)):
        expected = float((density * t**power * p**tau_power).sum() / density.sum())
        # Users are independent of each other; the draws of one user are not.
        by_user = (theta**power * tau**tau_power).mean(0)
        error = float(by_user.std()) / n_users**0.5
        assert abs(float(by_user.mean()) - expected) < 4 * error, (power, tau_power)
    averaged = folded.mean_model().predict(torch.arange(n_users), torch.zeros(n_users, dtype=torch.long)) - 3.0
    average_x = float(draw.parameters["items.factors.weight"][0, 0])
    expected = average_x * float((density * t).sum() / density.sum())
    assert abs(float(averaged.mean()) - expected) < 4 * float(averaged.std()) / n_users**0.5 + 1e-3

"""A posterior's mean is a model, its deviations those of its draws, and both survive being saved."""

import io

import pytest
import torch

from mfrec.model.factorization import MatrixFactorization
from mfrec.posteriors import posterior as posterior_module
from mfrec.posteriors.posterior import MeanField, Samples, posterior_from_state, truncated

N_USERS, N_ITEMS, RANK = 12, 9, 2
USERS, ITEMS = (index.reshape(-1) for index in torch.meshgrid(torch.arange(12), torch.arange(9), indexing="ij"))


def a_model(biases: bool = True, offset: float | None = 3.0) -> MatrixFactorization:
    centre = None if offset is None else torch.tensor(offset, dtype=torch.float64)
    return MatrixFactorization(N_USERS, N_ITEMS, RANK, biases=biases, offset=centre, dtype=torch.float64)


def drawn(model: MatrixFactorization, n: int, most: int) -> tuple[Samples, torch.Tensor, torch.Tensor]:
    """n random draws offered, the predictions of each at all pairs, (n, pairs), and their noise variances."""
    generator, samples = torch.Generator().manual_seed(0), Samples(model, most)
    predictions, variances = [], []
    for _ in range(n):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        noise = [torch.rand(size, 1, generator=generator, dtype=torch.float64) + 0.5 for size in (N_USERS, N_ITEMS)]
        samples.offer(2.0, noise, [])
        predictions.append(model.predict(USERS, ITEMS))
        variances.append(1 / (2.0 * noise[0][USERS, 0] * noise[1][ITEMS, 0]))
    return samples, torch.stack(predictions), torch.stack(variances)


def saved(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict = torch.load(buffer, weights_only=True)
    return loaded


def test_a_truncated_product_is_the_nearest_of_its_rank():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, 7, generator=generator, dtype=torch.float64) for n in (20, 15))
    a, b = truncated(left, right, 3)
    U, s, V = torch.linalg.svd(left @ right.mT)
    torch.testing.assert_close(a @ b.mT, U[:, :3] * s[:3] @ V[:3])
    assert a.shape == (20, 3)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("offset", [None, 3.0])
@pytest.mark.parametrize("n", [1, 5, 40])
def test_the_mean_model_predicts_the_mean_of_all_draws_where_their_tables_have_room(biases, offset, n):
    # 12 columns are more than the 9 items: nothing is lost, however many draws come.
    samples, predictions, _ = drawn(a_model(biases, offset), n, most=4)
    torch.testing.assert_close(samples.mean_model().predict(USERS, ITEMS), predictions.mean(0))


def test_where_they_have_not_the_tables_stay_within_their_rank_and_near_the_mean(monkeypatch):
    monkeypatch.setattr(posterior_module, "MEAN_RANKS", 2)
    monkeypatch.setattr(posterior_module, "BUFFERED", 1)
    samples, predictions, _ = drawn(a_model(), 30, most=4)
    mean = samples.mean_model()
    assert mean.rank < 3 * RANK
    error = mean.predict(USERS, ITEMS) - predictions.mean(0)
    assert float(error.norm()) < 0.5 * float((predictions[-1] - predictions.mean(0)).norm())


@pytest.mark.parametrize("n", [3, 4, 5, 23, 64])
def test_draws_are_kept_evenly_and_no_more_than_asked_for(n):
    samples, predictions, _ = drawn(a_model(), n, most=4)
    kept = [samples.model.tables(draw["parameters"]) for draw in samples.draws]
    assert len(kept) == -(-n // samples.stride) <= 4
    for position, (users, items) in enumerate(kept):
        offered = predictions[position * samples.stride]
        torch.testing.assert_close((users[USERS] * items[ITEMS]).sum(1) + 3.0, offered)


def test_a_deviation_is_that_of_the_draws_and_the_mean_noise_together():
    samples, predictions, variances = drawn(a_model(), 8, most=8)
    expected = (predictions.var(0) + variances.mean(0)).sqrt()
    torch.testing.assert_close(samples.deviation(USERS, ITEMS), expected)


@torch.no_grad()
def test_the_mean_field_deviation_is_that_of_drawn_gaussians():
    model, generator = a_model(), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    tables, free = model.tables(), model.free_columns()
    variances = [0.3 * torch.rand(t.shape, generator=generator, dtype=torch.float64) * f
                 for t, f in zip(tables, free, strict=True)]  # fmt: skip
    noise = [torch.full((n, 1), t, dtype=torch.float64) for n, t in ((N_USERS, 0.8), (N_ITEMS, 1.25))]
    found = MeanField(model, variances, free, 4.0, noise).deviation(USERS, ITEMS)
    squares = torch.zeros(len(USERS), dtype=torch.float64)
    for _ in range(4000):
        users, items = (t + torch.randn(t.shape, generator=generator, dtype=torch.float64) * v.sqrt()
                        for t, v in zip(tables, variances, strict=True))  # fmt: skip
        squares += ((users[USERS] * items[ITEMS]).sum(1) - (tables[0][USERS] * tables[1][ITEMS]).sum(1)) ** 2
    torch.testing.assert_close(found, (squares / 4000 + 0.25).sqrt(), rtol=0.06, atol=0)


def test_samples_saved_and_loaded_predict_and_go_on_alike():
    samples, _, _ = drawn(a_model(), 9, most=4)
    state = saved(samples.state_dict())
    again = posterior_from_state(state, a_model())
    assert torch.equal(again.mean_model().predict(USERS, ITEMS), samples.mean_model().predict(USERS, ITEMS))
    assert torch.equal(again.deviation(USERS, ITEMS), samples.deviation(USERS, ITEMS))
    one = torch.ones(N_USERS, 1, dtype=torch.float64), torch.ones(N_ITEMS, 1, dtype=torch.float64)
    for both in (samples, again):
        both.model = samples.model
        both.offer(1.0, one, [])
    assert torch.equal(again.mean_model().predict(USERS, ITEMS), samples.mean_model().predict(USERS, ITEMS))


def test_what_was_saved_does_not_change_with_what_comes_after():
    samples, _, _ = drawn(a_model(), 3, most=4)
    state, before = samples.state_dict(), samples.mean_model().predict(USERS, ITEMS)
    samples.offer(1.0, [torch.ones(N_USERS, 1), torch.ones(N_ITEMS, 1)], [])
    torch.testing.assert_close(posterior_from_state(state, a_model()).mean_model().predict(USERS, ITEMS), before)


def test_no_draws_are_no_posterior():
    assert posterior_from_state(Samples(a_model(), 4).state_dict(), a_model()) is None

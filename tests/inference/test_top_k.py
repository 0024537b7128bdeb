"""Top-k and similarity: the same as a brute-force ranking of the dense scores, block by block."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.inference import selection
from mfrec.inference import top_k as top_k_module
from mfrec.inference.top_k import similar, similar_blocks, top_k, top_k_blocks
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.ordinal import OrdinalFactorization


def a_model(n_users: int, n_items: int, seed: int) -> MatrixFactorization:
    generator = torch.Generator().manual_seed(seed)
    offset = torch.randn(n_items, generator=generator)
    model = MatrixFactorization(n_users, n_items, 3, offset=offset, rating_range=(-1.0, 1.0))
    with torch.no_grad():
        for parameter in model.parameters():
            # Few distinct values, so that ties occur.
            parameter.copy_(torch.randint(-1, 2, parameter.shape, generator=generator))
    return model


def some_ratings(n_users: int, n_items: int, seed: int) -> Ratings:
    observed = torch.rand(n_items, n_users, generator=torch.Generator().manual_seed(seed)) < 0.4
    return Ratings.from_dense(torch.ones(n_items, n_users), observed)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 10), st.integers(0, 10**6), st.integers(1, 40))
def test_top_k_is_the_head_of_the_sorted_predictions_without_seen_items(n_users, n_items, n, seed, scores_held):
    model, seen = a_model(n_users, n_items, seed), some_ratings(n_users, n_items, seed)
    users = torch.randperm(n_users)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(top_k_module, "SCORES", scores_held)
        indices, predictions = top_k(model, users, n, exclude=seen)
    for row, user in enumerate(users.tolist()):
        scores = model.predict(torch.full((n_items,), user), torch.arange(n_items))
        left = sorted(set(range(n_items)) - set(seen.items[seen.users == user].tolist()))
        expected = [float(scores[i]) for i in sorted(left, key=lambda i: -float(scores[i]))[:n]]
        listed = [i for i in indices[row].tolist() if i >= 0]
        assert set(listed) <= set(left)
        assert len(listed) == len(set(listed)) == len(expected)
        assert [float(scores[i]) for i in listed] == pytest.approx(expected, abs=1e-5)
        assert predictions[row, : len(listed)].tolist() == pytest.approx(expected, abs=1e-5)


def test_predictions_are_ranked_before_they_are_clipped():
    model = a_model(4, 6, 0)
    with torch.no_grad():
        model.item_bias.weight.copy_(torch.arange(6.0)[:, None] * 10)
    indices, predictions = top_k(model, torch.arange(4), 3, clip=True)
    assert indices.tolist() == [[5, 4, 3]] * 4
    assert predictions.tolist() == [[1.0] * 3] * 4


def test_ties_go_to_the_lower_index():
    model = MatrixFactorization(1, 500, 2, biases=False)
    with torch.no_grad():
        model.item_factors.weight.fill_(1.0)
        model.item_factors.weight[400] = 2.0
        model.user_factors.weight.fill_(1.0)
    assert top_k(model, torch.tensor([0]), 5)[0].tolist() == [[400, 0, 1, 2, 3]]


def ranked(scores: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The results of `top_k` and `similar` for (rows, size) scores, −∞ where nothing counts."""
    values, order = scores.sort(dim=1, descending=True, stable=True)
    return order[:, :n].masked_fill(values[:, :n] == -torch.inf, -1), values[:, :n]


def exact_model(n_users: int, n_items: int, n_values: int, seed: int = 0) -> MatrixFactorization:
    """Whole numbers, whose sums are exact in any order, so that ties are exact."""
    generator = torch.Generator().manual_seed(seed)
    offset = torch.randint(n_values, (n_items,), generator=generator)
    model = MatrixFactorization(n_users, n_items, 3, offset=offset)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(n_values, parameter.shape, generator=generator))
    return model


def every_prediction(model: MatrixFactorization) -> torch.Tensor:
    users, items = torch.arange(model.n_users), torch.arange(model.n_items)
    pairs = users.repeat_interleave(model.n_items), items.repeat(model.n_users)
    return model.predict(*pairs).view(model.n_users, model.n_items)


@given(
    n_rows=st.integers(1, 5),
    size=st.integers(1, 1500),
    n=st.integers(1, 40),
    group=st.sampled_from([1, 2, 5, 32]),
    tile=st.sampled_from([7, 64, 1024]),
    n_values=st.sampled_from([1, 3, 30, 10**6]),
    missing=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_selection_is_the_head_of_a_stable_sort(n_rows, size, n, group, tile, n_values, missing, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(n_values, (n_rows, size), generator=generator).float()
    scores[torch.rand(scores.shape, generator=generator) < missing] = -torch.inf
    n = min(n, size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "GROUP", group)
        patch.setattr(selection, "TILE", tile)
        tiles = selection.tiled(scores.mT, n).mT.contiguous()
        tiles[-1, :, size - tiles.shape[0] * tiles.shape[2] + tiles.shape[2] :] = -torch.inf
        values, columns = selection.largest(tiles, n)
    indices, expected = ranked(scores, n)
    assert torch.equal(values, expected)
    assert torch.equal(columns.masked_fill(values == -torch.inf, -1), indices)


@pytest.mark.parametrize("n", [1, 10, 100, 3000])
@pytest.mark.parametrize("n_values", [2, 1000])
def test_thousands_of_items_are_ranked_as_a_stable_sort_ranks_them(n, n_values):
    model, seen = exact_model(7, 3000, n_values), some_ratings(7, 3000, 1)
    scores = every_prediction(model)
    scores[seen.users.long(), seen.items.long()] = -torch.inf
    for listed, expected in zip(top_k(model, torch.arange(7), n, seen), ranked(scores, n), strict=True):
        assert torch.equal(listed, expected)


@pytest.mark.parametrize("n", [4, 500, 2000])
def test_only_unseen_candidates_are_recommended(n):
    model, seen = exact_model(5, 2000, 4), some_ratings(5, 2000, 1)
    candidates = torch.rand(2000, generator=torch.Generator().manual_seed(2)) < 0.3
    scores = every_prediction(model)
    scores[seen.users.long(), seen.items.long()] = -torch.inf
    scores[:, ~candidates] = -torch.inf
    listed = top_k(model, torch.arange(5), n, seen, candidates=candidates)
    for tensor, expected in zip(listed, ranked(scores, n), strict=True):
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize("n_items", [6, 3000])
def test_no_candidates_gives_empty_list(n_items):
    model = exact_model(2, n_items, 4)
    everything = Ratings.from_dense(torch.ones(n_items, 2))
    nothing = torch.zeros(n_items, dtype=torch.bool)
    for listed in (top_k(model, torch.arange(2), 5, everything), top_k(model, torch.arange(2), 5, candidates=nothing)):
        assert torch.equal(listed[0], torch.full((2, 5), -1))
        assert torch.equal(listed[1], torch.full((2, 5), -torch.inf))


def test_no_users_give_empty_results():
    indices, predictions = top_k(exact_model(2, 3000, 4), torch.arange(0), 5)
    assert indices.shape == predictions.shape == (0, 5)


@pytest.mark.parametrize("offset", [None, torch.tensor(3.5), torch.randn(2000, generator=torch.manual_seed(0))])
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recommendations_have_the_predicted_ratings(offset, biases, rank, dtype):
    generator = torch.Generator().manual_seed(0)
    model = MatrixFactorization(4, 2000, rank, biases=biases, offset=offset, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    users = torch.tensor([2, 0])
    indices, predictions = top_k(model, users, 20)
    expected = model.predict(users.repeat_interleave(20), indices.flatten()).view(2, 20)
    torch.testing.assert_close(predictions, expected, rtol=1e-5, atol=1e-5)
    best = every_prediction(model)[users].sort(dim=1, descending=True).values[:, :20]
    torch.testing.assert_close(predictions, best, rtol=1e-5, atol=1e-5)


def test_a_user_with_nan_factors_does_not_change_the_others():
    model = exact_model(3, 3000, 4)
    with torch.no_grad():
        model.user_factors.weight[1] = torch.nan
    indices, predictions = top_k(model, torch.arange(3), 10)
    assert predictions.isnan().all(1).tolist() == [False, True, False]
    assert ((indices >= 0) & (indices < 3000)).all()


@pytest.mark.parametrize("scores_held", [1, 3100, 10_000, 10**6, None])
def test_joined_blocks_are_top_k_and_hold_at_most_scores_held(scores_held, monkeypatch):
    held = []
    largest = selection.largest

    def spied(scores, n):
        held.append((scores.numel(), scores.shape[1]))
        return largest(scores, n)

    monkeypatch.setattr(top_k_module, "largest", spied)
    model, seen = exact_model(23, 3000, 4), some_ratings(23, 3000, 1)
    users = torch.randperm(23, generator=torch.Generator().manual_seed(0))
    blocks = list(top_k_blocks(model, users, 10, seen, scores_held=scores_held))
    assert all(scores <= (scores_held or top_k_module.SCORES) or rows == 1 for scores, rows in held)
    assert (len(blocks) > 1) == (scores_held in (1, 3100, 10_000))
    assert torch.equal(torch.cat([block for block, _, _ in blocks]), users)
    for column, whole in zip((1, 2), top_k(model, users, 10, seen), strict=True):
        assert torch.equal(torch.cat([block[column] for block in blocks]), whole)


@pytest.mark.parametrize("scores_held", [1, 9000, None])
def test_blocks_of_similar_rows_joined_are_similar(scores_held):
    # One factor of one sign or the other: cosines of 1 and −1, and hundreds of ties.
    factors = torch.randint(2, (3000, 1), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    rows = torch.tensor([5, 2999, 0, 17])
    cosines = (factors @ factors.mT)[rows]
    cosines[torch.arange(4), rows] = -torch.inf
    blocks = list(similar_blocks(factors, rows, 12, scores_held=scores_held))
    assert torch.equal(torch.cat([block for block, _, _ in blocks]), rows)
    for column, expected in zip((1, 2), ranked(cosines, 12), strict=True):
        assert torch.equal(torch.cat([block[column] for block in blocks]), expected)
    for listed, expected in zip(similar(factors, rows, 12), ranked(cosines, 12), strict=True):
        assert torch.equal(listed, expected)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_similar_is_the_head_of_the_sorted_cosines_without_the_row_itself(n_rows, n, seed):
    factors = torch.randn(n_rows, 3, generator=torch.Generator().manual_seed(seed))
    indices, cosines = similar(factors, torch.arange(n_rows), n)
    every = torch.nn.functional.cosine_similarity(factors[:, None], factors[None], dim=2)
    for row in range(n_rows):
        others = sorted((i for i in range(n_rows) if i != row), key=lambda i: -float(every[row, i]))[:n]
        listed = [i for i in indices[row].tolist() if i >= 0]
        assert cosines[row, : len(listed)].tolist() == pytest.approx(every[row, others].tolist(), abs=1e-5)
        assert row not in listed


def test_only_candidates_are_similar():
    factors = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    only = torch.tensor([True, False, True, False, False, False])
    assert set(similar(factors, torch.tensor([5]), 4, only)[0][0].tolist()) == {0, 2, -1}


@pytest.mark.parametrize("call", [
    lambda model: top_k(model, torch.tensor([4])),
    lambda model: similar(model.item_factors.weight, torch.tensor([-1])),
])  # fmt: skip
def test_a_row_that_is_not_in_the_model_is_refused(call):
    with pytest.raises(InputError, match="index must be in 0 … "):
        call(a_model(4, 5, 0))


def test_n_of_zero_is_refused():
    with pytest.raises(InputError, match=r"n must be at least 1 \(got 0\)"):
        top_k(a_model(4, 5, 0), torch.tensor([0]), 0)


@given(
    st.integers(1, 6), st.integers(1, 300), st.integers(1, 12), st.integers(0, 10**6), st.sampled_from([1, 50, 2**20])
)
def test_an_ordinal_model_is_ranked_by_expected_ratings(n_users, n_items, n, seed, mapped):
    scores, generator = a_model(n_users, n_items, seed), torch.Generator().manual_seed(seed)
    model = OrdinalFactorization(
        scores,
        levels=torch.tensor([1.0, 2.0, 5.0]),
        cutpoints=torch.tensor([-0.5, 0.8]),
        user_scales=0.2 + torch.rand(n_users, 1, generator=generator),
        item_scales=0.2 + torch.rand(n_items, 1, generator=generator),
        spread=0.1,
    )
    users, seen = torch.randperm(n_users), some_ratings(n_users, n_items, seed)
    candidates = torch.rand(n_items, generator=generator) < 0.8
    expected = every_prediction(model)[users]
    expected[:, ~candidates] = -torch.inf
    for row, user in enumerate(users.tolist()):
        expected[row, seen.items[seen.users == user].long()] = -torch.inf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(top_k_module, "MAPPED", mapped)
        items, predictions = top_k(model, users, n, exclude=seen, candidates=candidates)
    listed = expected.gather(1, items.clamp_min(0)).where(items >= 0, -torch.inf)
    assert torch.allclose(listed, predictions, atol=1e-5)
    assert torch.allclose(ranked(expected, n)[1], predictions, atol=1e-5)

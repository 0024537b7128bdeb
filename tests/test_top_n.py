"""Top-N and similarity: what a brute-force ranking of the dense scores gives, block by block."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.inference import top_k as room
from mfrec.inference.top_k import similar, similar_blocks, top_n, top_n_blocks
from mfrec.model.factorization import MatrixFactorization


def a_model(n_users: int, n_items: int, seed: int) -> MatrixFactorization:
    generator = torch.Generator().manual_seed(seed)
    offset = torch.randn(n_items, generator=generator)
    model = MatrixFactorization(n_users, n_items, 3, offset=offset, scale=(-1.0, 1.0))
    with torch.no_grad():
        for parameter in model.parameters():
            # Few distinct values, so that ties occur.
            parameter.copy_(torch.randint(-1, 2, parameter.shape, generator=generator))
    return model


def some_ratings(n_users: int, n_items: int, seed: int) -> Ratings:
    observed = torch.rand(n_items, n_users, generator=torch.Generator().manual_seed(seed)) < 0.4
    return Ratings.from_dense(torch.ones(n_items, n_users), observed)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 10), st.integers(0, 10**6), st.integers(1, 40))
def test_top_n_is_the_head_of_the_sorted_predictions_without_what_was_seen(n_users, n_items, n, seed, scores_held):
    model, seen = a_model(n_users, n_items, seed), some_ratings(n_users, n_items, seed)
    users = torch.randperm(n_users)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "SCORES", scores_held)
        indices, predictions = top_n(model, users, n, exclude=seen)
    for row, user in enumerate(users.tolist()):
        scores = model.predict(torch.full((n_items,), user), torch.arange(n_items))
        left = sorted(set(range(n_items)) - set(seen.items[seen.users == user].tolist()))
        expected = [float(scores[i]) for i in sorted(left, key=lambda i: -float(scores[i]))[:n]]
        found = [i for i in indices[row].tolist() if i >= 0]
        assert set(found) <= set(left)
        assert len(found) == len(set(found)) == len(expected)
        assert [float(scores[i]) for i in found] == pytest.approx(expected, abs=1e-5)
        assert predictions[row, : len(found)].tolist() == pytest.approx(expected, abs=1e-5)


def test_predictions_are_ranked_before_they_are_clipped():
    model = a_model(4, 6, 0)
    with torch.no_grad():
        model.item_bias.weight.copy_(torch.arange(6.0)[:, None] * 10)
    indices, predictions = top_n(model, torch.arange(4), 3, clip=True)
    assert indices.tolist() == [[5, 4, 3]] * 4
    assert predictions.tolist() == [[1.0] * 3] * 4


def test_ties_go_to_the_lower_index():
    model = MatrixFactorization(1, 500, 2, biases=False)
    with torch.no_grad():
        model.item_factors.weight.fill_(1.0)
        model.item_factors.weight[400] = 2.0
        model.user_factors.weight.fill_(1.0)
    assert top_n(model, torch.tensor([0]), 5)[0].tolist() == [[400, 0, 1, 2, 3]]


def ranked(scores: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What `top_n` and `similar` are to return for (rows, size) scores, −∞ where there is nothing to find."""
    values, order = scores.sort(dim=1, descending=True, stable=True)
    return order[:, :n].masked_fill(values[:, :n] == -torch.inf, -1), values[:, :n]


def exact_model(n_users: int, n_items: int, n_values: int, seed: int = 0) -> MatrixFactorization:
    """Of whole numbers, whose sums are exact in whatever order they are added: ties are ties."""
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
        patch.setattr(room, "GROUP", group)
        patch.setattr(room, "TILE", tile)
        tiles = room._tiles(scores.mT, n).mT.contiguous()
        tiles[-1, :, size - tiles.shape[0] * tiles.shape[2] + tiles.shape[2] :] = -torch.inf
        values, columns = room._best(tiles, n)
    indices, expected = ranked(scores, n)
    assert torch.equal(values, expected)
    assert torch.equal(columns.masked_fill(values == -torch.inf, -1), indices)


@pytest.mark.parametrize("n", [1, 10, 100, 3000])
@pytest.mark.parametrize("n_values", [2, 1000])
def test_thousands_of_items_are_ranked_as_a_stable_sort_ranks_them(n, n_values):
    model, seen = exact_model(7, 3000, n_values), some_ratings(7, 3000, 1)
    scores = every_prediction(model)
    scores[seen.users.long(), seen.items.long()] = -torch.inf
    for found, expected in zip(top_n(model, torch.arange(7), n, seen), ranked(scores, n), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("n", [4, 500, 2000])
def test_only_candidates_are_recommended_and_what_was_seen_of_them_is_not(n):
    model, seen = exact_model(5, 2000, 4), some_ratings(5, 2000, 1)
    candidates = torch.rand(2000, generator=torch.Generator().manual_seed(2)) < 0.3
    scores = every_prediction(model)
    scores[seen.users.long(), seen.items.long()] = -torch.inf
    scores[:, ~candidates] = -torch.inf
    found = top_n(model, torch.arange(5), n, seen, candidates=candidates)
    for tensor, expected in zip(found, ranked(scores, n), strict=True):
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize("n_items", [6, 3000])
def test_who_has_seen_everything_or_may_get_nothing_gets_nothing(n_items):
    model = exact_model(2, n_items, 4)
    everything = Ratings.from_dense(torch.ones(n_items, 2))
    nothing = torch.zeros(n_items, dtype=torch.bool)
    for found in (top_n(model, torch.arange(2), 5, everything), top_n(model, torch.arange(2), 5, candidates=nothing)):
        assert torch.equal(found[0], torch.full((2, 5), -1))
        assert torch.equal(found[1], torch.full((2, 5), -torch.inf))


def test_nobody_gets_an_empty_table():
    indices, predictions = top_n(exact_model(2, 3000, 4), torch.arange(0), 5)
    assert indices.shape == predictions.shape == (0, 5)


@pytest.mark.parametrize("offset", [None, torch.tensor(3.5), torch.randn(2000, generator=torch.manual_seed(0))])
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_recommended_is_what_is_predicted(offset, biases, rank, dtype):
    generator = torch.Generator().manual_seed(0)
    model = MatrixFactorization(4, 2000, rank, biases=biases, offset=offset, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    users = torch.tensor([2, 0])
    indices, predictions = top_n(model, users, 20)
    expected = model.predict(users.repeat_interleave(20), indices.flatten()).view(2, 20)
    torch.testing.assert_close(predictions, expected, rtol=1e-5, atol=1e-5)
    best = every_prediction(model)[users].sort(dim=1, descending=True).values[:, :20]
    torch.testing.assert_close(predictions, best, rtol=1e-5, atol=1e-5)


def test_a_user_whose_factors_diverged_has_no_predictions_but_breaks_nothing():
    model = exact_model(3, 3000, 4)
    with torch.no_grad():
        model.user_factors.weight[1] = torch.nan
    indices, predictions = top_n(model, torch.arange(3), 10)
    assert predictions.isnan().all(1).tolist() == [False, True, False]
    assert ((indices >= 0) & (indices < 3000)).all()


@pytest.mark.parametrize("scores_held", [1, 3100, 10_000, 10**6, None])
def test_blocks_joined_are_top_n_and_hold_no_more_scores_than_said(scores_held, monkeypatch):
    held = []
    best = room._best

    def spied(scores, n):
        held.append((scores.numel(), scores.shape[1]))
        return best(scores, n)

    monkeypatch.setattr(room, "_best", spied)
    model, seen = exact_model(23, 3000, 4), some_ratings(23, 3000, 1)
    users = torch.randperm(23, generator=torch.Generator().manual_seed(0))
    blocks = list(top_n_blocks(model, users, 10, seen, scores_held=scores_held))
    assert all(scores <= (scores_held or room.SCORES) or rows == 1 for scores, rows in held)
    assert (len(blocks) > 1) == (scores_held in (1, 3100, 10_000))
    assert torch.equal(torch.cat([block for block, _, _ in blocks]), users)
    for part, whole in zip((1, 2), top_n(model, users, 10, seen), strict=True):
        assert torch.equal(torch.cat([block[part] for block in blocks]), whole)


@pytest.mark.parametrize("scores_held", [1, 9000, None])
def test_blocks_of_similar_rows_joined_are_similar(scores_held):
    # One factor of one sign or the other: cosines of 1 and −1, and hundreds of ties.
    table = torch.randint(2, (3000, 1), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    rows = torch.tensor([5, 2999, 0, 17])
    cosines = (table @ table.mT)[rows]
    cosines[torch.arange(4), rows] = -torch.inf
    blocks = list(similar_blocks(table, rows, 12, scores_held=scores_held))
    assert torch.equal(torch.cat([block for block, _, _ in blocks]), rows)
    for part, expected in zip((1, 2), ranked(cosines, 12), strict=True):
        assert torch.equal(torch.cat([block[part] for block in blocks]), expected)
    for found, expected in zip(similar(table, rows, 12), ranked(cosines, 12), strict=True):
        assert torch.equal(found, expected)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_similar_is_the_head_of_the_sorted_cosines_without_the_row_itself(n_rows, n, seed):
    table = torch.randn(n_rows, 3, generator=torch.Generator().manual_seed(seed))
    indices, cosines = similar(table, torch.arange(n_rows), n)
    every = torch.nn.functional.cosine_similarity(table[:, None], table[None], dim=2)
    for row in range(n_rows):
        others = sorted((i for i in range(n_rows) if i != row), key=lambda i: -float(every[row, i]))[:n]
        found = [i for i in indices[row].tolist() if i >= 0]
        assert cosines[row, : len(found)].tolist() == pytest.approx(every[row, others].tolist(), abs=1e-5)
        assert row not in found


def test_only_candidates_are_similar():
    table = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    only = torch.tensor([True, False, True, False, False, False])
    assert set(similar(table, torch.tensor([5]), 4, only)[0][0].tolist()) == {0, 2, -1}


@pytest.mark.parametrize("call", [
    lambda model: top_n(model, torch.tensor([4])),
    lambda model: similar(model.item_factors.weight, torch.tensor([-1])),
])  # fmt: skip
def test_a_row_that_is_not_in_the_model_is_refused(call):
    with pytest.raises(InputError, match="is not in this model"):
        call(a_model(4, 5, 0))


def test_nothing_asked_for_is_refused():
    with pytest.raises(InputError, match="n 0 asks for nothing; give 1 or more"):
        top_n(a_model(4, 5, 0), torch.tensor([0]), 0)

"""Ranking metrics agree with trec_eval and with plain loops, and a report is of the lists of all users."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfrec.data.ratings import Ratings
from mfrec.data.splits import random_split
from mfrec.data.synthetic import synthetic
from mfrec.errors import InputError
from mfrec.evaluation import bootstrap
from mfrec.evaluation.bootstrap import bootstrap_intervals
from mfrec.evaluation.catalogue import catalogue_coverage, novelty
from mfrec.evaluation.ranking import evaluate_ranking
from mfrec.evaluation.ranking_metrics import RANKING_METRICS, RankingMetric, ranking_metrics, relevance_threshold
from mfrec.inference.top_k import top_k
from mfrec.model.factorization import MatrixFactorization

METRICS = ["precision", "recall", "ndcg", "map", "mrr", "hit_rate"]


def some_stars(n_users: int, n_items: int, seed: int, share: float = 0.4) -> Ratings:
    generator = torch.Generator().manual_seed(seed)
    stars = torch.randint(1, 6, (n_items, n_users), generator=generator).double()
    return Ratings.from_dense(stars, torch.rand(n_items, n_users, generator=generator) < share)


def some_lists(n_users: int, n_items: int, n_columns: int, seed: int) -> torch.Tensor:
    """Lists of distinct items that end, some of them at once, before they are full."""
    generator = torch.Generator().manual_seed(seed)
    n_columns = min(n_columns, n_items)
    lists = torch.rand(n_users, n_items, generator=generator).argsort(1)[:, :n_columns]
    lengths = torch.randint(0, n_columns + 1, (n_users, 1), generator=generator)
    return lists.where(torch.arange(n_columns) < lengths, -1)


def relevant_stars(test: Ratings, user: int, threshold: float) -> dict[int, float]:
    mask = (test.users == user) & (test.values >= threshold)
    return dict(zip(test.items[mask].tolist(), test.values[mask].tolist(), strict=True))


def plain_metrics(listed: list[int], gains: dict[int, float], n: int) -> dict[str, float]:
    """The metrics of one user by their definitions, one position at a time."""
    if not gains:
        return dict.fromkeys(METRICS, math.nan)
    hits, precisions, dcg, first = 0, 0.0, 0.0, math.inf
    for position, item in enumerate(listed[:n], start=1):
        if item in gains:
            hits += 1
            precisions += hits / position
            dcg += gains[item] / math.log2(position + 1)
            first = min(first, position)
    best = sorted(gains.values(), reverse=True)[:n]
    ideal = sum(gain / math.log2(position + 1) for position, gain in enumerate(best, start=1))
    values = [hits / n, hits / len(gains), dcg / ideal, precisions / len(gains), 1 / first, float(hits > 0)]
    return dict(zip(METRICS, values, strict=True))


@given(
    st.integers(1, 8),
    st.integers(1, 12),
    st.integers(1, 15),
    st.integers(1, 15),
    st.sampled_from([1.0, 3.0, 4.5, 5.0]),
    st.sampled_from(["binary", "linear", "exponential"]),
    st.integers(0, 10**6),
)
def test_metrics_match_their_definitions_computed_by_position(n_users, n_items, n_columns, n, threshold, gain, seed):
    test, lists = some_stars(n_users, n_items, seed), some_lists(n_users, n_items, n_columns, seed)
    users = torch.randperm(n_users, generator=torch.Generator().manual_seed(seed))
    measured = ranking_metrics(lists, users, test, threshold, n=n, gain=gain)
    assert list(measured) == METRICS
    gain_of = {"binary": lambda y: 1.0, "linear": lambda y: y, "exponential": lambda y: 2**y - 1}[gain]
    for row, user in enumerate(users.tolist()):
        gains = {item: gain_of(stars) for item, stars in relevant_stars(test, user, threshold).items()}
        expected = plain_metrics([i for i in lists[row].tolist() if i >= 0], gains, n)
        assert {name: float(values[row]) for name, values in measured.items()} == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("n", [1, 3, 10, 50])
@pytest.mark.parametrize("gain", ["binary", "linear"])
def test_metrics_match_trec_eval(n, gain):
    pytrec_eval = pytest.importorskip("pytrec_eval", reason="pytrec-eval-terrier is in the [test] extra")
    test, lists, users = some_stars(60, 30, n, 0.2), some_lists(60, 30, n, n), torch.arange(60)
    judged, run = {}, {}
    for user in users.tolist():
        stars = relevant_stars(test, user, 4.0)
        if stars:
            judged[str(user)] = {str(i): int(y) if gain == "linear" else 1 for i, y in stars.items()}
            run[str(user)] = {str(i): float(-position) for position, i in enumerate(lists[user].tolist()) if i >= 0}
    trec_names = {"precision": "P", "recall": "recall", "ndcg": "ndcg_cut", "map": "map_cut", "hit_rate": "success"}
    measures = {f"{name}.{n}" for name in trec_names.values()} | {"recip_rank"}
    expected = pytrec_eval.RelevanceEvaluator(judged, measures).evaluate(run)
    measured = ranking_metrics(lists, users, test, 4.0, n=n, gain=gain)
    named = {metric: f"{name}_{n}" for metric, name in trec_names.items()} | {"mrr": "recip_rank"}
    assert 0 < len(judged) < 60
    assert set(named) == set(METRICS)
    for name, values in measured.items():
        assert values[[int(user) for user in judged]].tolist() == pytest.approx(
            [expected[user][named[name]] for user in judged]
        )
        assert values.isnan().sum() == 60 - len(judged)


def test_positions_after_the_end_of_a_list_are_not_relevant():
    # Among all (user, item) pairs in order, the one before user 1's first is user 0's last item, which is relevant.
    test = Ratings(torch.tensor([0, 1]), torch.tensor([4, 0]), torch.tensor([5.0, 5.0]), 2, 5)
    measured = ranking_metrics(torch.tensor([[-1, -1], [-1, -1]]), torch.tensor([0, 1]), test, 4.0)
    assert {name: values.tolist() for name, values in measured.items()} == {name: [0.0, 0.0] for name in METRICS}


@pytest.mark.parametrize(("stars", "threshold"), [(3.5, 3.5), (3.3, 3.3), (4, 4.0)])
def test_a_rating_at_the_threshold_is_relevant(stars, threshold):
    test = Ratings(torch.tensor([0]), torch.tensor([1]), torch.tensor([stars]), 1, 3)
    assert ranking_metrics(torch.tensor([[1]]), torch.tensor([0]), test, threshold)["recall"].item() == 1


def test_longer_lists_are_cut_at_n():
    test, lists, users = some_stars(20, 15, 0), some_lists(20, 15, 12, 0), torch.arange(20)
    head, cut = ranking_metrics(lists[:, :4], users, test, 4.0), ranking_metrics(lists, users, test, 4.0, n=4)
    for name in METRICS:
        torch.testing.assert_close(cut[name], head[name], rtol=0, atol=0, equal_nan=True)


@given(st.integers(1, 8), st.integers(1, 12), st.integers(1, 15), st.integers(0, 10**6))
def test_catalogue_coverage_and_novelty_match_plain_loops(n_users, n_items, n_columns, seed):
    train, lists = some_stars(n_users, n_items, seed, 0.3), some_lists(n_users, n_items, n_columns, seed + 1)
    listed = [[i for i in row if i >= 0] for row in lists.tolist()]
    candidates = torch.arange(n_items) % 3 != 1
    allowed = set(candidates.nonzero()[:, 0].tolist())
    reached = {item for items in listed for item in items}
    assert catalogue_coverage(lists, candidates) == pytest.approx(len(allowed & reached) / len(allowed))

    def bits(item: int) -> float:
        return -math.log2(max(1, int((train.items == item).sum())) / n_users)

    expected = [sum(map(bits, items)) / len(items) if items else math.nan for items in listed]
    assert novelty(lists, train).tolist() == pytest.approx(expected, nan_ok=True)


def test_an_item_without_training_ratings_is_as_novel_as_an_item_with_one():
    train = Ratings(torch.arange(8), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2]), torch.ones(8), 8, 4)
    assert novelty(torch.tensor([[0], [2], [3]]), train).tolist() == [1.0, 3.0, 3.0]


@pytest.fixture(scope="module")
def splits() -> tuple[Ratings, Ratings, Ratings]:
    """Training, validation and test ratings of 80 users × 60 items, rounded to integers."""
    generator = torch.Generator().manual_seed(0)
    ratings = synthetic(80, 60, 1600, generator=generator, rounded=True).ratings
    kept, test = ratings.split(random_split(ratings, 0.2, generator))
    train, valid = kept.split(random_split(kept, 0.2, generator))
    return train, valid, test


def a_model(train: Ratings) -> MatrixFactorization:
    return MatrixFactorization.from_ratings(train, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("n", [1, 10, 100])
def test_a_report_is_of_the_lists_of_all_users_with_held_out_ratings(splits, n):
    train, _, test = splits
    model, candidates = a_model(train), torch.arange(60) % 4 != 0
    report = evaluate_ranking(model, train, test, 4.0, n, candidates=candidates)
    users = test.users.unique()
    lists, _ = top_k(model, users, n, train, candidates=candidates)
    values = ranking_metrics(lists, users, test, 4.0, n=n)
    liked = sorted(set(test.users[test.values >= 4].tolist()))
    assert report.users.tolist() == liked
    assert (report.n_users, report.n_left_out) == (len(liked), len(users) - len(liked))
    assert report.n_left_out > 0
    for name in METRICS:
        expected = values[name][torch.isin(users, report.users)]
        torch.testing.assert_close(report.values[name], expected)
        assert report.means[name] == pytest.approx(float(expected.mean()))
        low, high = report.intervals[name]
        assert low <= report.means[name] <= high
    assert report.catalogue_coverage == catalogue_coverage(lists, candidates)
    assert report.novelty == pytest.approx(float(novelty(lists, train).nanmean()))


def test_excluded_items_are_never_recommended(splits):
    train, valid, test = splits
    both = Ratings(*(torch.cat([getattr(p, k) for p in (train, valid)]) for k in ("users", "items", "values")), 80, 60)
    model, none = a_model(train), dict.fromkeys(METRICS, 0.0)
    assert evaluate_ranking(model, train, train, 1.0, 60).means == none
    assert evaluate_ranking(model, train, valid, 1.0, 60, exclude=both).means == none
    assert evaluate_ranking(model, train, valid, 1.0, 60).means["recall"] == 1
    assert evaluate_ranking(model, train, test, 1.0, 60, exclude=both).means["recall"] == 1


def test_a_model_of_the_held_out_ratings_ranks_ideally():
    test = some_stars(30, 20, 0)
    model = MatrixFactorization(30, 20, 20, biases=False)
    with torch.no_grad():
        model.item_factors.weight.copy_(torch.eye(20))
        model.user_factors.weight.zero_()[test.users.long(), test.items.long()] = test.values.float()
    empty = test.select(torch.zeros(len(test), dtype=torch.bool))
    report = evaluate_ranking(model, empty, test, 4.0, 3, gain="exponential")
    assert report.means["ndcg"] == report.means["mrr"] == report.means["hit_rate"] == pytest.approx(1)
    counts = test.select(test.values >= 4).user_counts[report.users]
    assert report.values["precision"].tolist() == pytest.approx((counts.clamp_max(3) / 3).tolist())
    assert report.values["recall"].tolist() == pytest.approx((3 / counts).clamp_max(1).tolist())


def some_values(n_users: int, seed: int = 0) -> dict[str, torch.Tensor]:
    values = torch.rand(2, n_users, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return {"even": values[0], "skewed": values[1] ** 4}


def test_intervals_contain_the_mean_and_are_as_wide_as_its_standard_error_implies():
    widths = {}
    for n_users in (100, 400, 1600):
        for name, (low, high) in bootstrap_intervals(values := some_values(n_users)).items():
            assert low < float(values[name].mean()) < high
            widths[name, n_users] = high - low
            standard_error = float(values[name].std()) / n_users**0.5
            assert high - low == pytest.approx(2 * 1.96 * standard_error, rel=0.15)
    for name in ("even", "skewed"):
        assert widths[name, 100] > widths[name, 400] > widths[name, 1600]


def test_nineteen_intervals_in_twenty_contain_the_true_mean():
    intervals = [bootstrap_intervals(some_values(200, seed), 200)["even"] for seed in range(200)]
    assert 0.9 < sum(low < 0.5 < high for low, high in intervals) / 200 < 0.99


def test_intervals_depend_on_the_generator_and_not_on_the_batch_size(monkeypatch):
    def intervals(seed: int) -> dict[str, tuple[float, float]]:
        return bootstrap_intervals(some_values(50), 100, torch.Generator().manual_seed(seed))

    assert intervals(3) == intervals(3)
    assert intervals(3) != intervals(4)
    in_one_batch = intervals(3)
    monkeypatch.setattr(bootstrap, "RESAMPLED", 700)
    assert intervals(3) == in_one_batch


def test_the_interval_of_a_single_user_is_nan():
    assert all(math.isnan(end) for ends in bootstrap_intervals(some_values(1)).values() for end in ends)


@pytest.mark.parametrize(("options", "message"), [
    ({"threshold": 5.5}, r"must be 5.5 or more \(got \d+ ratings; the highest is 5\); lower the threshold"),
    ({"n": 0}, r"n must be at least 1 \(got 0\)"),
    ({"gain": "lineal"}, "unknown gain 'lineal'; did you mean 'linear'"),
])  # fmt: skip
def test_unusable_arguments_are_refused(splits, options, message):
    train, _, test = splits
    with pytest.raises(InputError, match=message):
        evaluate_ranking(a_model(train), train, test, **{"threshold": 4.0, **options})


@pytest.mark.parametrize(("lists", "users", "options", "message"), [
    ([[1]], [0, 1], {}, r"there must be one list per user \(got 1 for 2 users\)"),
    ([[1]], [0], {"n": 0}, r"n must be at least 1 \(got 0\)"),
    ([[1]], [2], {}, "user ind"),
    ([[3]], [0], {}, "item ind"),
    ([[1]], [0], {"gain": "linear"}, r"linear gain of a relevant rating must be positive \(got a rating of -2\)"),
])  # fmt: skip
def test_lists_that_do_not_fit_the_held_out_ratings_are_refused(lists, users, options, message):
    test = Ratings(torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([-2.0, 3.0]), 2, 3)
    with pytest.raises(InputError, match=message):
        ranking_metrics(torch.tensor(lists), torch.tensor(users), test, -5.0, **options)


def test_an_empty_test_set_is_refused(splits):
    train = splits[0]
    with pytest.raises(InputError, match=r"at least one held-out rating must be 4 or more \(got 0 ratings\)"):
        evaluate_ranking(a_model(train), train, train.select(torch.zeros(len(train), dtype=torch.bool)), 4.0)


def test_a_metric_added_to_the_table_is_measured(splits, monkeypatch):
    first_hit = RankingMetric("hit@1", lambda lists: lists.hits[:, 0])
    monkeypatch.setitem(RANKING_METRICS, "first_hit", first_hit)
    train, _, test = splits
    report = evaluate_ranking(a_model(train), train, test, 4.0)
    assert list(report.means) == [*METRICS, "first_hit"]
    assert report.means["first_hit"] == evaluate_ranking(a_model(train), train, test, 4.0, 1).means["hit_rate"]


def test_the_default_threshold_is_three_quarters_up_the_rating_range():
    assert relevance_threshold((0.5, 5.0)) == 3.875
    with pytest.raises(InputError, match=r"the rating range must be finite .*got -inf to inf"):
        relevance_threshold((-math.inf, math.inf))

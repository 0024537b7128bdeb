"""Sessions: groups of training ratings close in time, by a plain loop, and the sessions of ratings at other times."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfrec.data.dataset import Dataset
from mfrec.data.ratings import Ratings
from mfrec.data.sessions import Sessions
from mfrec.errors import InputError, OptionError
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.training import TrainingResult, train

GAPS = (0, 2, 7)
N_USERS, N_ITEMS = 4, 12


def timed(rows: list[tuple[int, int, int]], n_users: int = N_USERS) -> Ratings:
    """Ratings of the rows (user, item, second)."""
    users, items, seconds = torch.tensor(rows, dtype=torch.long).reshape(-1, 3).T.contiguous()
    return Ratings(users, items, 1.0 + items % 5, n_users, N_ITEMS, seconds)


# Many ties, and gaps below, at and above those of the sessions.  User 3 has no rating.
ROWS = st.lists(st.integers(0, 3 * N_ITEMS - 1), max_size=30, unique=True).flatmap(
    lambda pairs: st.lists(st.integers(0, 40), min_size=len(pairs), max_size=len(pairs)).map(
        lambda seconds: [(pair // N_ITEMS, pair % N_ITEMS, s) for pair, s in zip(pairs, seconds, strict=True)]
    )
)


def looped(rows: list[tuple[int, int, int]], gap: int) -> list[set[tuple[int, int]]]:
    """The (user, item) pairs of each session, by user and time."""
    sessions: list[set[tuple[int, int]]] = []
    before: tuple[int, int] | None = None
    for user, item, second in sorted(rows, key=lambda row: (row[0], row[2])):
        if before is None or before[0] != user or second - before[1] > gap:
            sessions.append(set())
        sessions[-1].add((user, item))
        before = user, second
    return sessions


def groups(sessions: Sessions, ratings: Ratings) -> list[list[set[tuple[int, int]]]]:
    """For each gap, the (user, item) pairs of each session by its number."""
    assert ratings.timestamps is not None
    numbers_of_levels = sessions.at(ratings.users, ratings.timestamps).tolist()
    pairs = list(zip(ratings.users.tolist(), ratings.items.tolist(), strict=True))
    levels = []
    for level, numbers in enumerate(numbers_of_levels):
        first, end = sessions.starts[level : level + 2]
        members: list[set[tuple[int, int]]] = [set() for _ in range(end - first)]
        for pair, number in zip(pairs, numbers, strict=True):
            members[number - first].add(pair)
        levels.append(members)
    return levels


@given(ROWS)
def test_sessions_are_those_of_a_plain_loop_over_each_user_s_ratings_by_time(rows):
    ratings = timed(rows)
    sessions = Sessions(ratings, GAPS)
    expected = [looped(rows, gap) for gap in GAPS]
    assert groups(sessions, ratings) == expected
    assert sessions.starts == tuple(sum(map(len, expected[:level])) for level in range(len(GAPS) + 1))
    assert len(sessions) == sessions.starts[-1]


@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(rows, random):
    shuffled = random.sample(rows, len(rows))
    first, second = (Sessions(timed(order), GAPS) for order in (rows, shuffled))
    ratings = timed(rows)
    assert first.starts == second.starts
    assert torch.equal(*(each.at(ratings.users, ratings.timestamps) for each in (first, second)))


@given(ROWS, st.lists(st.tuples(st.integers(0, N_USERS), st.integers(-10, 60)), max_size=20))
def test_a_rating_is_in_the_session_of_the_user_s_nearest_training_rating_within_the_gap(rows, questions):
    ratings = timed(rows)
    sessions = Sessions(ratings, GAPS)
    users, times = torch.tensor(questions, dtype=torch.long).reshape(-1, 2).T.contiguous()
    answers = sessions.at(users, times)
    numbers = dict(
        zip(
            zip(ratings.users.tolist(), ratings.timestamps.tolist(), strict=True),
            sessions.at(ratings.users, ratings.timestamps).T.tolist(),
            strict=True,
        )
    )
    for n, (user, time) in enumerate(questions):
        seconds = [second for who, second in numbers if who == user]
        if not seconds:
            assert answers[:, n].tolist() == [-1] * len(GAPS)
            continue
        # Of two that are equally near, the earlier.
        nearest = min(seconds, key=lambda second: (abs(second - time), second))
        expected = [
            number if abs(nearest - time) <= gap else -1
            for gap, number in zip(GAPS, numbers[user, nearest], strict=True)
        ]
        assert answers[:, n].tolist() == expected


@given(ROWS)
def test_the_patterns_have_the_sessions_of_each_rating(rows):
    ratings = timed(rows)
    sessions = Sessions(ratings, GAPS)
    patterns = sessions.patterns(ratings)
    assert sessions.patterns(ratings) is patterns
    assert sum(pattern.shape[1] for pattern in patterns) == len(sessions)
    expected = sessions.at(ratings.users, ratings.timestamps)
    for pattern, numbers, level in zip(patterns, expected, sessions.slices, strict=True):
        assert pattern.shape == (len(ratings), level.stop - level.start)
        # Every training rating is in one session of every gap.
        assert pattern.crow.tolist() == list(range(len(rows) + 1))
        assert torch.equal(pattern.col + level.start, numbers)


def test_a_held_out_rating_has_an_entry_for_each_gap_that_reaches_it():
    sessions = Sessions(timed([(0, 0, 100), (0, 1, 103), (1, 2, 100)]), GAPS)
    held_out = timed([(0, 2, 100), (0, 3, 101), (0, 4, 109), (0, 5, 200), (2, 6, 100)])
    patterns = sessions.patterns(held_out)
    counts = [pattern.counts.tolist() for pattern in patterns]
    assert counts == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]
    firsts = [int(pattern.col[0]) + level.start for pattern, level in zip(patterns, sessions.slices, strict=True)]
    assert firsts == sessions.at(torch.tensor([0]), torch.tensor([100]))[:, 0].tolist()


def test_a_gap_s_bound_belongs_to_the_session():
    sessions = Sessions(timed([(0, 0, 100), (0, 1, 130), (0, 2, 161)]), (30,))
    assert sessions.starts == (0, 2)
    users = torch.zeros(6, dtype=torch.long)
    times = torch.tensor([69, 70, 115, 146, 191, 192])
    assert sessions.at(users, times).tolist() == [[-1, 0, 0, 1, 1, -1]]


def test_times_beyond_32_bits_are_told_apart():
    sessions = Sessions(timed([(0, 0, 2**40), (0, 1, 2**40 + 1), (1, 2, 2**40)]), (0,))
    times = torch.tensor([2**40, 2**40 + 1, 2**40 + 2])
    assert sessions.at(torch.zeros(3, dtype=torch.long), times).tolist() == [[0, 1, -1]]


def test_without_training_ratings_no_rating_has_a_session():
    sessions = Sessions(timed([]), GAPS)
    assert (len(sessions), sessions.starts) == (0, (0, 0, 0, 0))
    held_out = timed([(0, 0, 1), (1, 1, 2)])
    assert sessions.at(held_out.users, held_out.timestamps).tolist() == [[-1, -1]] * 3
    assert [pattern.n_entries for pattern in sessions.patterns(held_out)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("gaps", "shown"), [((), "none"), ((-1, 5), "-1 5"), ((30, 30), "30 30")], ids=["none", "negative", "repeated"]
)
def test_gaps_that_are_no_different_numbers_of_seconds_are_refused(gaps, shown):
    message = f"session_gaps must be different numbers of seconds, 0 or more (got {shown})"
    with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
        Sessions(timed([(0, 0, 1)]), gaps)


def test_ratings_without_timestamps_are_refused():
    ratings, timeless = timed([(0, 0, 1)]), Ratings(torch.tensor([0]), torch.tensor([1]), torch.tensor([3.0]))
    message = "^sessions need timestamps, which these ratings lack; train without sessions$"
    with pytest.raises(InputError, match=message):
        Sessions(timeless, GAPS)
    with pytest.raises(InputError, match=message):
        Sessions(ratings, GAPS).patterns(timeless)


# Leakage.


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """600 ratings in bursts of seconds, so that test ratings lie within the sessions of training ratings."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randperm(20 * 60, generator=generator)[:600]
    users, items = pairs // 60, pairs % 60
    seconds = 10**9 + 3000 * torch.randint(0, 4, (600,), generator=generator)
    seconds += torch.randint(0, 40, (600,), generator=generator)
    values = torch.randint(1, 6, (600,), generator=generator).float()
    return dataset_of(Ratings(users, items, values, 20, 60, seconds))


def dataset_of(ratings: Ratings) -> Dataset:
    columns = {"user": ratings.users, "item": ratings.items, "rating": ratings.values, "timestamp": ratings.timestamps}
    return Dataset.from_frame(pd.DataFrame({name: column.numpy() for name, column in columns.items()}))


def with_times(dataset: Dataset, seconds: torch.Tensor) -> Dataset:
    """The dataset with other times of its ratings."""
    r = dataset.ratings
    return dataset_of(Ratings(r.users, r.items, r.values, r.n_users, r.n_items, seconds))


def train_on(dataset: Dataset, solver: str = "als", path: Path | None = None) -> TrainingResult:
    config = ExperimentConfig.create(
        solver,
        rank=2,
        epochs=4,
        patience=100,
        valid_fraction=0.0,
        sessions=True,
        run_dir=None if path is None else str(path),
        loggers=(),
    )
    return train(config, dataset)


def test_sessions_are_made_of_training_ratings_alone(dataset):
    result = train_on(dataset)
    trained = result.solver.model.sessions.sessions
    alone, whole = Sessions(result.splits["train"], trained.gaps), Sessions(dataset.ratings, trained.gaps)
    assert trained.starts == alone.starts
    # Had test ratings been among them, there would be other sessions.
    assert whole.starts != alone.starts
    for ratings in result.splits.values():
        for pattern, expected in zip(trained.patterns(ratings), alone.patterns(ratings), strict=True):
            assert torch.equal(pattern.col, expected.col)


@pytest.mark.parametrize("solver", ["als", "gibbs", "sgd"])
def test_the_times_of_held_out_ratings_change_no_session_and_no_parameter(dataset, solver):
    """Held-out ratings between two sessions of training ratings would join them to one."""
    before = train_on(dataset, solver)
    is_test = torch.zeros(len(dataset.ratings), dtype=torch.bool)
    test = before.splits["test"]
    is_test[torch.isin(dataset.ratings.users * 60 + dataset.ratings.items, test.users * 60 + test.items)] = True
    moved = torch.where(is_test, dataset.ratings.timestamps + 1500, dataset.ratings.timestamps)
    joined = Sessions(with_times(dataset, moved).ratings, (1800,))
    assert len(joined) < 0.9 * len(Sessions(before.splits["train"], (1800,)))
    after = train_on(with_times(dataset, moved), solver)
    assert after.solver.model.sessions.sessions.starts == before.solver.model.sessions.sessions.starts
    state = after.solver.model.state_dict()
    for name, value in before.solver.model.state_dict().items():
        assert torch.equal(state[name], value), name
    # Predictions of held-out ratings see their times, and only theirs.
    predictions = [result.solver.model.predict_observed(result.splits["test"]) for result in (before, after)]
    assert not torch.equal(*predictions)

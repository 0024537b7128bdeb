"""Training, fold-in, top-N and posteriors on a second device give the CPU's numbers, and rarely make the CPU wait.

The device is a fake one (`fake_device`), so that these tests need no GPU; `test_gpu.py` has those that do.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from typing import Any

import pytest
import torch
from device_examples import (
    CASES,
    WAITS,
    answers,
    folded_answers,
    moved,
    on_cpu,
    started,
    state_of,
    trained,
    waits_by_numbers,
)
from fake_device import DEVICE, FakeDevice, FakeTensor
from posterior_examples import EXAMPLES, OBJECTIVE, a_model, one_of, ratings_of, seeded
from torch.testing import assert_close

from mfrec.data.ratings import Ratings
from mfrec.evaluation.metrics import evaluate
from mfrec.evaluation.probabilities import evaluate_probabilities
from mfrec.evaluation.ranking import evaluate_ranking
from mfrec.inference.explain import explain
from mfrec.inference.top_k import similar, top_k
from mfrec.posteriors.base import Posterior

# torch takes the fake device for one without numbers.
pytestmark = pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")


@pytest.mark.parametrize("case", CASES)
def test_a_solver_trains_on_a_device_as_on_the_cpu(case):
    expected = trained(case)
    values = expected.epoch()
    with FakeDevice():
        solver = trained(case, DEVICE)
        assert {type(p.data) for p in solver.model.parameters()} == {FakeTensor}
        # Rounding differs between kernels and products; samplers amplify it.
        assert solver.epoch() == pytest.approx(values, rel=1e-6)
        assert_close(state_of(solver.model), state_of(expected.model), rtol=1e-6, atol=1e-6)
        # A checkpoint of the CPU goes on there.
        restored = started(case, DEVICE)
        restored.model.load_state_dict(expected.model.state_dict())
        restored.load_state_dict(copy.deepcopy(expected.state_dict()))
        assert restored.epoch() == pytest.approx(expected.epoch(), rel=1e-6)
        assert_close(state_of(restored.model), state_of(expected.model), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if not waits_by_numbers(case)])
def test_an_epoch_waits_for_the_device_only_where_it_must(case):
    with FakeDevice() as device:
        solver = trained(case, DEVICE)
        device.waits.clear()
        solver.epoch()
        waits = list(device.waits)
    allowed, chains = WAITS.get(case.split()[0], Counter()), CASES[case][1].get("chains", 1)
    counts = Counter(re.sub(r".* at (?:\w+/)*(\w+\.py):\d+: ", r"\1: ", wait) for wait in waits)
    for line, n in counts.items():
        limit = next((allowed[start] for start in allowed if line.startswith(start)), 0)
        assert n <= limit * chains, waits


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_posterior_answers_on_a_device_as_on_the_cpu(kind):
    posterior = EXAMPLES[kind](a_model())
    expected = answers(posterior)
    with FakeDevice():
        assert_close(answers(moved(posterior, DEVICE)), expected)


@pytest.mark.parametrize("kind", EXAMPLES)
@pytest.mark.parametrize("entity", ["users", "items"])
def test_rows_are_folded_in_on_a_device_as_on_the_cpu(kind, entity):
    expected = folded_answers(kind, entity)
    with FakeDevice():
        assert_close(folded_answers(kind, entity, DEVICE), expected, rtol=1e-6, atol=1e-6)


def test_top_n_and_similar_rows_on_a_device_are_those_of_the_cpu():
    model, ratings, users = a_model(), ratings_of(6, 8), torch.tensor([4, 0, 2])
    candidates = torch.arange(8) != 3
    expected = [
        *top_k(model, users, 8, ratings, candidates=candidates), *similar(model.item_factors.weight, users, 3)
    ]  # fmt: skip
    with FakeDevice():
        there = a_model().to(DEVICE)
        # Users, candidates and ratings may be on the CPU.
        for place in (torch.device("cpu"), DEVICE):
            arguments = users.to(place), 8, ratings.to(place)
            listed = top_k(there, *arguments, candidates=candidates.to(place))
            alike = similar(there.item_factors.weight, users.to(place), 3)
            assert_close([on_cpu(tensor) for tensor in (*listed, *alike)], expected)


def test_metrics_on_a_device_are_those_of_the_cpu():
    posterior, ratings, test = EXAMPLES["samples"](a_model()), ratings_of(6, 8), ratings_of(6, 8, seed=7)

    def metrics(posterior: Posterior, ratings: Ratings, test: Ratings) -> list[Any]:
        model, levels = posterior.mean_model(), torch.arange(1, 6).to(test.values)
        ranking = evaluate_ranking(model, ratings, test, threshold=4, n=3)
        by_level = evaluate_probabilities(posterior, test, levels)
        continuous = evaluate_probabilities(posterior, test, None)
        return [
            evaluate(model, test, OBJECTIVE),
            {**ranking.means, "novelty": ranking.novelty, "coverage": ranking.catalogue_coverage},
            [by_level.log_likelihood, by_level.ranked_probability_score, *by_level.pit, *continuous.pit],
        ]

    expected = metrics(posterior, ratings, test)
    with FakeDevice():
        for actual, value in zip(
            metrics(moved(posterior, DEVICE), ratings.to(DEVICE), test.to(DEVICE)), expected, strict=True
        ):
            assert actual == pytest.approx(value)


@pytest.mark.parametrize("kind", [kind for kind in EXAMPLES if "ordinal" not in kind])
def test_explanations_on_a_device_are_those_of_the_cpu(kind):
    posterior, ratings, items = EXAMPLES[kind](a_model()), one_of(ratings_of(6, 8), 0), torch.tensor([2, 5])
    expected = explain(posterior, ratings, items, generator=seeded(5))
    with FakeDevice():
        assert_close(on_cpu(explain(moved(posterior, DEVICE), ratings, items, generator=seeded(5))), expected)


# The fake device itself.


def test_the_fake_device_refuses_tensors_of_two_devices():
    with FakeDevice():
        here, there = torch.ones(3), torch.ones(3, device=DEVICE)
        for mixed in (
            lambda: here + there,
            lambda: there.index_select(0, here.long()),
            lambda: torch.cat([here, there]),
        ):
            with pytest.raises(AssertionError, match="two devices"):
                mixed()
        assert on_cpu(there + torch.tensor(1.0)).tolist() == [2, 2, 2]


def test_the_fake_device_notes_what_waits():
    with FakeDevice() as device:
        there = torch.ones(3, device=DEVICE)
        assert device.waits == []
        for waiting in (
            lambda: float(there.sum()), lambda: bool((there > 0).all()), there.nonzero, there.cpu, there.tolist,
            lambda: there[there > 0], lambda: torch.ones(3).to(DEVICE), lambda: torch.tensor([1], device=DEVICE),
            lambda: torch.repeat_interleave(there.long()), lambda: torch.equal(there, there), there.unique,
        ):  # fmt: skip
            device.waits.clear()
            waiting()
            assert device.waits
        device.waits.clear()
        torch.ones(3).to(DEVICE, non_blocking=True)
        there[torch.zeros(1, dtype=torch.long, device=DEVICE)] += there.new_zeros(1)
        assert device.waits == []
        with pytest.raises(TypeError):
            there.numpy()

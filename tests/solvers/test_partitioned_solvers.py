"""Several processes train the same model as one: every solver and option, in float64."""

from __future__ import annotations

import dataclasses
import os
import shutil

import pytest
import torch
from filelock import FileLock
from partition_program import SAVED, cases, kinds, run, saved, trained, unsaved
from session_examples import with_times
from solver_suite import SESSION_GAPS, make_model, make_solver, planted_ratings

from mfrec.data.partition import partitioned_splits
from mfrec.data.ratings import HeldIndices
from mfrec.data.sessions import Sessions
from mfrec.data.splits import SPLIT_NAMES
from mfrec.errors import InputError, OptionError
from mfrec.experiments.run import Run, load_run
from mfrec.experiments.training import train
from mfrec.model import squared_errors
from mfrec.model.objective import Objective
from mfrec.model.squared_errors import column_sums
from mfrec.processes import balanced
from mfrec.solvers.registry import SOLVERS

NAMES = [name for name, _, _ in cases()]
PARTIAL = [
    name
    for name, case, variant in cases()
    if "partial-tables" in SOLVERS[case.solver].supports and variant != "features"
]
# Solvers whose sums have the same order in several processes: they end with the same bits.
BITWISE = ("als", "sgd", "block-sgd", "gd", "optim")


@pytest.fixture(scope="module")
def alone():
    threads = torch.get_num_threads()
    yield trained(None)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=[2, 3], ids="{} processes".format)
def folder(request, tmp_path_factory, forkserver):
    """What several processes have written, which train once for all workers of the test run."""
    count, base = request.param, tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"{count}-processes"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            train_in_processes(count, folder, forkserver)
    return folder


@pytest.fixture(scope="module")
def outcomes(folder):
    """The outcomes of each of several processes."""
    return [torch.load(path) for path in sorted(folder.glob("*.pt"))]


def train_in_processes(count, folder, forkserver):
    processes = [forkserver.Process(target=run, args=(index, count, str(folder))) for index in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=240)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * count


@pytest.fixture
def together(outcomes):
    return [outcome["cases"] for outcome in outcomes]


@pytest.mark.parametrize("name", NAMES)
def test_several_processes_end_with_the_parameters_of_one(name, alone, together):
    for process in together:
        assert_same(name, process[name]["parameters"], alone[name]["parameters"])


def assert_same(name, parameters, expected, rtol=1e-6):
    """The parameters have the same bits, or almost the same values if the order of sums differs."""
    assert parameters.keys() == expected.keys()
    for parameter, values in expected.items():
        # Feature weights of als come from sums over all processes.
        if name.startswith(BITWISE) and name != "als features":
            assert torch.equal(parameters[parameter], values), parameter
        tolerance = rtol * float(values.abs().max())
        torch.testing.assert_close(parameters[parameter], values, rtol=rtol, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_several_processes_measure_what_one_measures(name, alone, together):
    for process in together:
        assert process[name]["measured"] == pytest.approx(alone[name]["measured"], rel=1e-6)


@pytest.mark.parametrize("name", PARTIAL)
def test_processes_with_partial_tables_end_with_the_parameters_of_one(name, alone, outcomes):
    assert_same(name, outcomes[0]["partial"][name]["parameters"], alone[name]["parameters"])


@pytest.mark.parametrize("name", PARTIAL)
def test_processes_with_partial_tables_measure_what_one_measures(name, alone, outcomes):
    expected = {metric: value for metric, value in alone[name]["measured"].items() if metric != "ndcg"}
    for outcome in outcomes:
        assert outcome["partial"][name]["measured"] == pytest.approx(expected, rel=1e-6)


def test_processes_with_partial_tables_hold_fewer_rows_than_all(outcomes):
    assert all(outcome["partial"][PARTIAL[0]]["held"] < 120 + 80 for outcome in outcomes)


def hold_rows(ratings, monkeypatch):
    """Let the ratings be like those of a process with partial tables."""
    held = tuple(HeldIndices(n, torch.arange(n)) for n in ratings.matrix.shape)
    monkeypatch.setattr(type(ratings), "held_rows", held)


@pytest.mark.parametrize("name", [n for n, s in SOLVERS.items() if s.partitions and "partial-tables" not in s.supports])
def test_a_solver_that_needs_all_rows_refuses_partial_tables_and_names_those_that_do_not(name, monkeypatch):
    train = planted_ratings()[0]
    hold_rows(train, monkeypatch)
    with pytest.raises(InputError, match=rf"^{name} does not support partial tables; use gd, optim, als, vb, gibbs$"):
        make_solver(name, make_model(train), train, Objective(0.1))


@pytest.mark.parametrize("optimizer", ["lbfgs", "Adafactor"])
def test_an_optimizer_that_sums_over_rows_refuses_partial_tables(optimizer, monkeypatch):
    train = planted_ratings()[0]
    hold_rows(train, monkeypatch)
    with pytest.raises(OptionError, match=rf"must be elementwise with partial tables \(got {optimizer.lower()}\)"):
        make_solver("optim", make_model(train), train, Objective(0.1), optimizer=optimizer)


def test_a_process_sums_its_part_of_columns_without_a_kernel_as_with_it(monkeypatch):
    train = partitioned_splits(planted_ratings()[0], torch.zeros(4000, dtype=torch.uint8), OneOfTwo())["train"]
    scales = torch.rand(120, 1, generator=torch.Generator().manual_seed(0))
    expected = column_sums(train.local_pattern, train.values, scales)
    monkeypatch.setattr(squared_errors, "has_kernel", lambda tensor: False)
    torch.testing.assert_close(column_sums(train.local_pattern, train.values, scales), expected, rtol=1e-5, atol=1e-5)


def test_each_process_has_ratings_of_its_own_and_together_they_have_all(alone, together):
    rows = [process[NAMES[0]]["rows"] for process in together]
    assert all(rows)
    assert sum(rows) == alone[NAMES[0]]["rows"]


def test_a_training_that_only_the_first_process_follows_and_ends_measures_what_one_process_measures(outcomes):
    alone = unsaved(None)
    assert outcomes[0]["unsaved"]["epochs"] == alone["epochs"] == [(0, 428), (1, 428), (2, 428)]
    for outcome in outcomes:
        for split in SPLIT_NAMES:
            assert outcome["unsaved"][split] == pytest.approx(alone[split], rel=1e-5)


@pytest.fixture(scope="module")
def saved_alone(tmp_path_factory):
    """The runs of one process, and their final metrics."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, saved(None, folder)


@pytest.mark.parametrize("name", SAVED)
def test_a_run_of_processes_with_partial_tables_is_that_of_one_process_which_can_go_on(
    name, outcomes, folder, saved_alone, tmp_path
):
    runs, expected = saved_alone
    for outcome in outcomes:
        assert outcome["saved"][name].keys() == expected[name].keys()
        for split in SPLIT_NAMES:
            values = expected[name][split]
            assert outcome["saved"][name][split] == (values and pytest.approx(values, rel=1e-5))
    copy = tmp_path / "copy"
    shutil.copytree(folder / name, copy)
    alone, together = load_run(runs / name).posterior, load_run(copy).posterior
    assert_same(name, together.mean_model().state_dict(), alone.mean_model().state_dict(), 1e-4)
    if alone.has_std:
        pairs = torch.arange(100), torch.arange(100)
        torch.testing.assert_close(together.std(*pairs), alone.std(*pairs), rtol=1e-3, atol=0)
    run = Run.open(copy)
    assert train(run.config().updated(epochs=9), run=run, loggers=[]).progress.epoch == 9


def test_digests_that_differ_in_a_process_are_refused_in_all(outcomes):
    for outcome in outcomes:
        assert outcome["refusal"].startswith("all processes must have the same ratings (") == (len(outcomes) == 3)


class OneOfTwo:
    """Stands for the processes where nothing travels."""

    index, count = 0, 2

    def any(self, flag: bool) -> bool:
        return flag

    def total(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def share(self, table: torch.Tensor, parts: list[slice]) -> torch.Tensor:
        return table


def test_a_solver_that_needs_all_ratings_refuses_a_part_and_names_those_that_do_not():
    train = partitioned_splits(planted_ratings()[0], torch.zeros(4000, dtype=torch.uint8), OneOfTwo())["train"]
    spec = dataclasses.replace(SOLVERS["als"], partitions=False)
    message = "^this solver must train in one process; in several, use sgd, block-sgd, gd, optim, quasi-newton, als, vb"
    with pytest.raises(InputError, match=message):
        spec(make_model(train), train, Objective(0.1))


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        ("als", "sessions", "session biases must be trained in one process"),
        ("als", "implicit", "implicit features must be trained in one process"),
        ("block-sgd", "kind", "block-sgd must train features in one process; in several, use gd, optim, "),
    ],
)
def test_what_needs_the_ratings_of_all_processes_is_refused(name, part, message):
    ratings = with_times(planted_ratings()[0])
    train = partitioned_splits(ratings, torch.zeros(len(ratings), dtype=torch.uint8), OneOfTwo())["train"]
    options = (
        {"sessions": Sessions(ratings, SESSION_GAPS)} if part == "sessions" else {"user_features": {part: kinds(120)}}
    )
    with pytest.raises(InputError, match=f"^{message}"):
        make_solver(name, make_model(train, **options), train, Objective(0.1))


def test_features_are_refused_with_partial_tables(monkeypatch):
    train = partitioned_splits(planted_ratings()[0], torch.zeros(4000, dtype=torch.uint8), OneOfTwo())["train"]
    hold_rows(train, monkeypatch)
    model = make_model(train, user_features={"kind": kinds(120)}, held_rows=None)
    with pytest.raises(InputError, match=r"^features need all rows in each process"):
        make_solver("als", model, train, Objective(0.1))


@pytest.mark.parametrize("n_parts", [1, 2, 5, 9])
def test_parts_cover_all_rows_and_exceed_an_equal_share_by_at_most_one_row(n_parts):
    counts = torch.randint(0, 50, (40,), generator=torch.Generator().manual_seed(0))
    parts = balanced(counts, n_parts)
    assert [rows for part in parts for rows in range(40)[part]] == list(range(40))
    weights = counts + 1
    assert max(int(weights[part].sum()) for part in parts) <= float(weights.sum()) / n_parts + int(weights.max())

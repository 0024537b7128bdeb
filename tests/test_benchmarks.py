"""Records of benchmarks: those alike are compared, and the check fails if a ratio has grown by more than the slack."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def modules() -> Iterator[tuple[ModuleType, ModuleType]]:
    """The modules `record` and `run` of the benchmarks."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("record"), importlib.import_module("run")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def record(modules) -> ModuleType:
    return modules[0]


@pytest.fixture(scope="module")
def run(modules) -> ModuleType:
    return modules[1]


def make_record(record: ModuleType, ratio: float, date: str, **options: Any) -> Any:
    """A record of this machine with an epoch's seconds and a ratio."""
    figures = {"epoch": record.Figure(3.0, "s", 0.5), "ratio": record.Figure(ratio, "×")}
    return replace(record.Record.now("smoke", {"seeds": (4, 5), "data": Path("a/b/c"), **options}, figures), date=date)


def test_a_record_is_read_as_it_was_written_and_has_machine_versions_threads_and_seeds(record, tmp_path):
    written = make_record(record, 2.0, "2026-01-01T00.00")
    path = written.write(tmp_path)
    assert path.name == "smoke-2026-01-01T00.00.json"
    assert record.Record.read(path) == written
    values = json.loads(path.read_text(encoding="utf-8"))
    assert values["seed"] == [4, 5]
    assert values["options"]["data"] == "c"
    assert values["threads"] > 0
    assert set(values["machine"]) == {"processor", "cores", "memory_gib"}
    assert set(values["versions"]) == {"python", "torch", "numpy", "numba", "mfrec"}
    assert values["figures"]["epoch"] == {"value": 3.0, "unit": "s", "spread": 0.5}


def test_seconds_are_compared_on_one_machine_and_ratios_on_any(record, tmp_path):
    here, elsewhere = (make_record(record, ratio, f"2026-01-0{ratio}T00.00") for ratio in (1, 2))
    here.write(tmp_path)
    replace(elsewhere, machine={"processor": "another"}).write(tmp_path)
    now = make_record(record, 3, "2026-01-03T00.00")
    comparison = {name: (last_here, last) for name, _, last_here, last in record.compared(now, tmp_path)}
    assert comparison["epoch"] == (here.figures["epoch"], None)
    assert comparison["ratio"] == (here.figures["ratio"], elsewhere.figures["ratio"])


def test_only_records_with_the_same_options_are_compared(record, tmp_path):
    make_record(record, 1, "2026-01-01T00.00", rank=16).write(tmp_path)
    make_record(record, 2, "2026-01-02T00.00", rank=64).write(tmp_path)
    now = make_record(record, 3, "2026-01-03T00.00", rank=16)
    assert [past.figures["ratio"].value for past in now.earlier(tmp_path)] == [1]


def test_a_record_is_not_compared_with_itself(record, tmp_path):
    now = make_record(record, 3, "2026-01-03T00.00")
    now.write(tmp_path)
    assert now.earlier(tmp_path) == []


@pytest.mark.parametrize(("ratio", "is_slow"), [(4.9, False), (5.1, True)])
def test_a_ratio_is_slow_from_two_and_a_half_times_the_last(record, run, tmp_path, ratio, is_slow):
    make_record(record, 2.0, "2026-01-01T00.00").write(tmp_path)
    messages = list(run.slower(make_record(record, ratio, "2026-01-02T00.00"), tmp_path))
    assert messages == [f"ratio is {ratio:g} (limit 2.5 × 2)"] * is_slow


def test_a_ratio_without_a_record_fails_the_check(record, run, tmp_path):
    assert list(run.slower(make_record(record, 2.0, "2026-01-02T00.00"), tmp_path)) == ["ratio has no record"]


@pytest.mark.parametrize(("ratios", "is_slow"), [((9.0, 2.0), False), ((9.0, 9.0), True), ((2.0,), False)])
def test_the_check_measures_again_before_it_fails(record, run, tmp_path, monkeypatch, ratios, is_slow):
    make_record(record, 2.0, "2026-01-01T00.00").write(tmp_path)
    measured = iter([make_record(record, ratio, "2026-01-02T00.00") for ratio in ratios])
    monkeypatch.setattr(run, "in_new_process", lambda *_: next(measured))
    message = run.check(tmp_path)
    assert (message is not None) == is_slow
    if is_slow:
        assert message.startswith("much slower than in the last record: ratio is 9 (limit 2.5 × 2); see ")
    assert list(measured) == []


def test_the_gate_has_a_record_to_compare_with(record, run):
    """Of the same options, so that no ratio lacks its record."""
    options = json.loads(json.dumps(run.options_of("smoke", {})))
    assert options in [record.Record.read(path).options for path in record.RECORDS.glob("smoke-*.json")]


def test_benchmarks_have_a_main_function_with_the_options_of_the_quick_set(run):
    for name, options in run.BENCHMARKS.items():
        assert run.options_of(name, options).keys() == run.options_of(name, {}).keys()


def test_a_report_prints_markdown_and_names_its_figures(record, capsys):
    report = record.Report()
    report.table("title", "solver", "s", "ratio", "note")
    report.row("`als`", record.Figure.mean([1.0, 3.0], 1, "s"), record.Figure.median([2.0, 3.456, 9.0], "×"), "fast")
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "| solver | s | ratio | note |",
        "| --- | ---: | ---: | ---: |",
        "| `als` | 2.0 ± 1.4 | 3.46× | fast |",
    ]
    assert {name: figure.value for name, figure in report.figures.items()} == {
        "title / als / s": 2.0,
        "title / als / ratio": 3.456,
    }


def test_ways_take_turns_after_a_warm_up(record):
    calls: list[str] = []
    clock = iter(range(100))
    ways = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    times = record.in_turns(ways, 2, clock=lambda: next(clock))
    assert calls == ["a", "b"] * 3
    assert times == {"a": [1, 1], "b": [1, 1]}

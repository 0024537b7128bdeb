"""Options: their ranges, their types, and the messages for values that they cannot have."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfrec.errors import InputError, OptionError
from mfrec.options import (
    Count,
    CountOrZero,
    Fraction,
    NonNegative,
    Options,
    Positive,
    Range,
    option_names,
    options_from,
    type_name,
)


@dataclass(frozen=True)
class AllKinds(Options):
    """An option of every kind."""

    count: Count = 3
    """A number."""
    start: CountOrZero = 0
    lr: Positive = 0.1
    l2: NonNegative = 1.0
    fraction: Fraction | None = None
    step: Literal["plain", "proximal"] = "plain"
    biases: bool = True
    name: str = ""
    blocks: tuple[Count, Count] = (4, 4)
    loggers: tuple[str, ...] = ()
    ends: tuple[float, float] | None = None
    grid: tuple[Count, ...] | None = None


@pytest.mark.parametrize(
    ("limits", "text", "inside", "outside"),
    [
        (Range(1), "at least 1", [1, 10**30, math.inf], [0, -1, 0.999, math.nan]),
        (Range(0, open_low=True), "positive", [1e-300, math.inf], [0, -1, math.nan]),
        (Range(0, open_low=True, open_high=True), "positive and finite", [1e-300, 1e300], [0.0, math.inf, math.nan]),
        (Range(0, open_high=True), "at least 0 and finite", [0, 0.0, 1e300], [-1e-9, math.inf, -math.inf, math.nan]),
        (Range(2, open_low=True), "greater than 2", [2.1, 3], [2, 1]),
        (Range(0, 1, open_high=True), "in [0, 1)", [0, 0.5], [1, -0.1, math.nan]),
        (Range(0, 1, open_low=True), "in (0, 1]", [1, 0.5], [0, 1.1]),
        (Range(-5, 5), "in [-5, 5]", [-5, 5], [-6, 6]),
    ],
)
def test_a_range_contains_its_closed_ends_and_words_its_problems(limits, text, inside, outside):
    assert str(limits) == text
    assert [limits.problem(value) for value in inside] == [None] * len(inside)
    for value in outside:
        assert limits.problem(value) == f"must be {text} (got {value:g})"


def test_large_whole_numbers_are_shown_in_full():
    assert Range(0, 2**63).problem(10**20).endswith("(got 100000000000000000000)")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "count must be at least 1 (got 0)"),
        ({"count": 2**31}, "count must be at most 2147483647 (got 2147483648)"),
        ({"lr": 1e39}, "lr must be at most 3.4028234663852886e+38 (got 1e+39)"),
        ({"start": -1}, "start must be at least 0 (got -1)"),
        ({"lr": 0.0}, "lr must be positive and finite (got 0)"),
        ({"lr": math.inf}, "lr must be positive and finite (got inf)"),
        ({"l2": math.nan}, "l2 must be at least 0 and finite (got nan)"),
        ({"fraction": 1.0}, "fraction must be in [0, 1) (got 1)"),
        ({"blocks": (0, 2)}, "blocks must be at least 1 (got 0)"),
        ({"blocks": (2, -3)}, "blocks must be at least 1 (got -3)"),
        ({"grid": (1, 2, 0)}, "grid must be at least 1 (got 0)"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_options_name(values, message):
    with pytest.raises(OptionError) as error:
        AllKinds(**values).check()
    assert str(error.value) == message
    assert error.value.option == next(iter(values))


def test_values_in_range_pass_the_check():
    AllKinds().check()
    AllKinds(count=1, lr=1e-9, l2=0, fraction=0.0, blocks=(1, 9), ends=(-9.0, 9.0), grid=(1,)).check()


def test_a_subclass_inherits_options_and_adds_a_check_of_several():
    @dataclass(frozen=True)
    class Ordered(AllKinds):
        last: Count = 5

        def check(self) -> None:
            super().check()
            if self.last < self.count:
                raise OptionError("last", f"must be at least count (got {self.last})")

    assert option_names(Ordered)[-1] == "last"
    with pytest.raises(OptionError, match="last must be at least count"):
        Ordered(last=1).check()
    with pytest.raises(OptionError, match="count must be at least 1"):
        Ordered(count=0).check()


def test_options_read_from_json_are_the_options_that_were_written():
    options = AllKinds(2, 1, 0.5, 0.25, 0.75, "proximal", False, "é", (1, 2), ("a", "b"), (1.0, 5.0), (3,))
    assert options_from(AllKinds, json.loads(json.dumps(options.to_dict())), "options") == options
    assert options_from(AllKinds, {}, "options") == AllKinds()


def test_given_values_replace_those_of_the_default():
    default = AllKinds(count=7, lr=0.5)
    assert options_from(AllKinds, {"lr": 0.25}, "options", default) == AllKinds(count=7, lr=0.25)
    assert default.lr == 0.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 2.0}, "count in config.json must be int (got 2.0); change or remove it"),
        ({"count": "2"}, "count in config.json must be int (got '2')"),
        ({"count": None}, "count in config.json must be int (got None)"),
        ({"count": True}, "count in config.json must be int (got True)"),
        ({"lr": False}, "lr in config.json must be float (got False)"),
        ({"fraction": False}, "fraction in config.json must be float or None (got False)"),
        ({"biases": 1}, "biases in config.json must be bool (got 1)"),
        ({"name": 5}, "name in config.json must be str (got 5)"),
        ({"step": "Plain"}, "step in config.json must be one of 'plain', 'proximal' (got 'Plain')"),
        ({"blocks": 4}, "blocks in config.json must be a list of 2 int (got 4)"),
        ({"blocks": [4]}, "blocks in config.json must be a list of 2 int (got [4])"),
        ({"blocks": [4, 4, 4]}, "blocks in config.json must be a list of 2 int (got [4, 4, 4])"),
        ({"blocks": [4, 2.5]}, "blocks in config.json must be a list of 2 int (got [4, 2.5])"),
        ({"blocks": [True, 2]}, "blocks in config.json must be a list of 2 int (got [True, 2])"),
        ({"loggers": "jsonl"}, "loggers in config.json must be a list of any number of str (got 'jsonl')"),
        ({"loggers": ["jsonl", 5]}, "loggers in config.json must be a list of any number of str (got ['jsonl', 5])"),
        ({"ends": [1.0, False]}, "ends in config.json must be a list of 2 float or None (got [1.0, False])"),
        ({"grid": [1, True]}, "grid in config.json must be a list of any number of int or None (got [1, True])"),
    ],
)
def test_a_value_of_another_type_is_refused_with_the_type_and_the_source(values, message):
    with pytest.raises(InputError, match=re.escape(message)):
        options_from(AllKinds, values, "config.json")


@pytest.mark.parametrize(
    "values",
    [{"lr": 1}, {"fraction": None}, {"fraction": 0}, {"blocks": [1, 2]}, {"loggers": []}, {"ends": [1, 5]}],
)
def test_whole_numbers_are_floats_and_lists_are_tuples(values):
    (option, value), options = next(iter(values.items())), options_from(AllKinds, values, "options")
    assert getattr(options, option) == (tuple(value) if isinstance(value, list) else value)
    options.check()


@pytest.mark.parametrize(
    ("name", "suggestion"), [("counts", "did you mean 'count'?"), ("zzz", "choose from count, start, lr")]
)
def test_an_unknown_option_is_refused_with_its_source_and_the_nearest_name(name, suggestion):
    with pytest.raises(InputError, match=re.escape(f"unknown option '{name}' in config.json; {suggestion}")):
        options_from(AllKinds, {name: 1}, "config.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values, max_size=2),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from([*option_names(AllKinds), "unknown"]), json_values, max_size=3))
def test_any_json_is_read_or_refused_with_an_input_error(values):
    try:
        options = options_from(AllKinds, values, "options")
        options.check()
    except InputError:
        return
    assert "unknown" not in values
    for name, value in values.items():
        assert getattr(options, name) == (tuple(value) if isinstance(value, list) else value)
    assert not any(isinstance(number, bool) for number in (options.count, options.lr, options.fraction))


@pytest.mark.parametrize(
    ("hint", "name"),
    [
        (Count, "int"),
        (float | None, "float or None"),
        (Literal["a", "b"], "one of 'a', 'b'"),
        (tuple[Count, Count], "a list of 2 int"),
        (tuple[str, ...], "a list of any number of str"),
        (Annotated[float, Range(0)] | None, "float or None"),
    ],
)
def test_types_are_named_in_words(hint, name):
    assert type_name(hint) == name


def test_options_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        AllKinds().count = 5


def test_nested_tuples_survive_json_and_each_element_has_its_range() -> None:
    @dataclass(frozen=True)
    class Nested(Options):
        grid: tuple[tuple[Count, Count], ...] = ((1, 2),)
        mix: tuple[Count, Fraction] = (4, 0.5)

    Nested().check()
    assert options_from(Nested, json.loads(json.dumps(Nested().to_dict())), "a file") == Nested()
    with pytest.raises(OptionError, match="grid must be at least 1"):
        Nested(grid=((1, 0),)).check()
    with pytest.raises(OptionError, match="mix must be in"):
        Nested(mix=(4, 1.0)).check()

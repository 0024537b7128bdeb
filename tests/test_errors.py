"""The exceptions for input that cannot be used."""

from __future__ import annotations

import copy
import pickle

import pytest

from mfrec.errors import InputError, OptionError, unknown


def test_an_option_error_names_its_option_in_front_of_the_problem():
    error = OptionError("valid_fraction", "must be in [0, 1) (got 2)")
    assert str(error) == "valid_fraction must be in [0, 1) (got 2)"
    assert (error.option, error.problem) == ("valid_fraction", "must be in [0, 1) (got 2)")
    assert isinstance(error, InputError)
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("error", [InputError("rank must be 1"), OptionError("rank", "must be 1")])
def test_errors_survive_pickling_and_copying(error):
    # Worker processes send them to their parent.
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error) == "rank must be 1"
        assert vars(again) == vars(error)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sdg", "unknown solver 'sdg'; did you mean 'sgd'?"),
        ("SGD", "unknown solver 'SGD'; did you mean 'sgd'?"),
        ("gradient-boosting", "unknown solver 'gradient-boosting'; choose from sgd, als"),
        ("", "unknown solver ''; choose from sgd, als"),
        (3, "unknown solver '3'; choose from sgd, als"),
    ],
)
def test_an_unknown_name_gets_the_nearest_choice_or_all_of_them(name, message):
    error = unknown("solver", name, {"sgd": 1, "als": 2})
    assert isinstance(error, InputError)
    assert str(error) == message
    assert str(unknown("solver", name, (choice for choice in ("sgd", "als")))) == message
    head, _, suggestion = message.rpartition("; ")
    assert str(unknown("solver", name, ["sgd", "als"], "my.json")) == f"{head} in my.json; {suggestion}"

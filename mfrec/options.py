"""Options: frozen dataclasses that declare each option once, with its type, range, default, unit and help.

    @dataclass(frozen=True)
    class MyOptions(Options):
        '''Options of my solver.'''

        lr: Positive = 0.01
        '''Step size α.'''

`options_from` checks the types, wherever the values come from, and `check()` the ranges.  The string below a field is
its help on the command line and its documentation in the source.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from mfrec.errors import InputError, OptionError, unknown

# Upper limits of options: indices are int32 and parameters float32.
INT_MAX, FLOAT_MAX = 2**31 - 1, 3.4028234663852886e38


@dataclass(frozen=True)
class Range:
    """The values that a number may have, for `Annotated`.

    Args:
        low, high: the ends.
        open_low, open_high: whether an end is excluded.

    Examples:
        >>> Range(0, 1, open_high=True).problem(1.0)
        'must be in [0, 1) (got 1)'
        >>> Range(1).problem(0)
        'must be at least 1 (got 0)'
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def problem(self, value: float) -> str | None:
        """What must hold and what was given; None for a value in the range."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        if above and below:
            return None
        if above and self.high in (INT_MAX, FLOAT_MAX) and value != math.inf:
            return f"must be at most {self.high} (got {value})"
        return f"must be {self} (got {_shown(value)})"

    def __str__(self) -> str:
        if self.high in (math.inf, INT_MAX, FLOAT_MAX):
            finite = " and finite" if self.open_high or self.high == FLOAT_MAX else ""
            if self.low == 0 and self.open_low:
                return f"positive{finite}"
            return f"{'greater than' if self.open_low else 'at least'} {_shown(self.low)}{finite}"
        ends = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"in {ends[0]}{_shown(self.low)}, {_shown(self.high)}{ends[1]}"


def _shown(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)


Count = Annotated[int, Range(1, INT_MAX)]
CountOrZero = Annotated[int, Range(0, INT_MAX)]
Positive = Annotated[float, Range(0, FLOAT_MAX, open_low=True)]
NonNegative = Annotated[float, Range(0, FLOAT_MAX)]
Fraction = Annotated[float, Range(0, 1, open_high=True)]

T = TypeVar("T", bound="Options")


@dataclass(frozen=True)
class Options:
    """Base of all option classes."""

    def check(self) -> None:
        """Check every value against the range of its field; subclasses add what concerns several fields.

        Raises:
            OptionError: a value is out of range.
        """
        for name, hint in typing.get_type_hints(type(self), include_extras=True).items():
            check_range(name, hint, getattr(self, name))

    def to_dict(self) -> dict[str, Any]:
        """The options by name, in types that JSON has."""
        return {field.name: _lists(getattr(self, field.name)) for field in dataclasses.fields(self)}


def check_range(name: str, hint: Any, value: object) -> None:
    """Check a value, or each element of a tuple, against the `Range` in its type hint.

    Raises:
        OptionError: it is out of range.
    """
    if isinstance(hint, Range):
        if isinstance(value, int | float) and (problem := hint.problem(value)):
            raise OptionError(name, problem)
    elif typing.get_origin(hint) is tuple:
        if isinstance(value, tuple):
            items = typing.get_args(hint)
            for item, element in zip(items[:1] * len(value) if items[-1] is Ellipsis else items, value, strict=False):
                check_range(name, item, element)
    else:
        for part in typing.get_args(hint):
            check_range(name, part, value)


def option_names(kind: type[Options]) -> list[str]:
    """The names of an option class's fields, in their order."""
    return [field.name for field in dataclasses.fields(kind)]


def options_from(kind: type[T], values: Mapping[str, Any], source: str, default: T | None = None) -> T:
    """Options from a mapping, such as one read from JSON, over those of `default`.

    Args:
        source: where the values come from, for messages.

    Raises:
        InputError: an option is unknown or has a value of another type.

    Examples:
        >>> @dataclass(frozen=True)
        ... class Steps(Options):
        ...     lr: Positive = 0.1
        >>> options_from(Steps, {"lr": 0.5}, "options")
        Steps(lr=0.5)
        >>> options_from(Steps, {"lrs": 0.5}, "options")
        Traceback (most recent call last):
        ...
        mfrec.errors.InputError: unknown option 'lrs' in options; did you mean 'lr'?
    """
    from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

    hints = typing.get_type_hints(kind, include_extras=True)
    converted = {}
    for name, value in values.items():
        if name not in hints:
            raise unknown("option", name, hints, source)
        converted[name] = _tuples(value)
        try:
            # A bool is an int, and an int is a float.
            if _has_bool(value) and bool not in _parts(hints[name]):
                raise TypeCheckError("is a bool")
            check_type(converted[name], hints[name], collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        except TypeCheckError:
            raise InputError(
                f"{name} in {source} must be {type_name(hints[name])} (got {value!r}); change or remove it"
            ) from None
    return dataclasses.replace(kind() if default is None else default, **converted)


def _lists(value: Any) -> Any:
    """A value with a list for each tuple, however deep."""
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    """A value with a tuple for each list, however deep."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _has_bool(value: Any) -> bool:
    return any(map(_has_bool, value)) if isinstance(value, list | tuple) else isinstance(value, bool)


def _parts(hint: Any) -> Iterator[Any]:
    """A type hint and all that it is made of, such as float, None and a `Range`."""
    yield hint
    for part in typing.get_args(hint):
        yield from _parts(part)


def type_name(hint: Any) -> str:
    """A type hint in words, such as "float", "int or None" or "one of 'row', 'sqrt'"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return type_name(arguments[0])
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is tuple:
        several = "any number of" if arguments[-1] is Ellipsis else str(len(arguments))
        return f"a list of {several} {type_name(arguments[0])}"
    if arguments:
        return " or ".join(type_name(argument) for argument in arguments)
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))

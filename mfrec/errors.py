"""The exceptions for input that cannot be used: the command line prints one line and exits with status 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Input from outside cannot be used; the message says what must hold, what was given, and what to do."""


class OptionError(InputError):
    """One option has a value that it cannot have.

    Args:
        option: the option's name as a Python argument, such as "valid_fraction".
        problem: what must hold and what was given, such as "must be at least 1 (got 0)".

    Examples:
        >>> print(OptionError("rank", "must be at least 1 (got 0)"))
        rank must be at least 1 (got 0)
    """

    def __init__(self, option: str, problem: str) -> None:
        super().__init__(f"{option} {problem}")
        self.option, self.problem = option, problem

    def __reduce__(self) -> tuple[type[OptionError], tuple[str, str]]:
        return type(self), (self.option, self.problem)


def unknown(kind: str, name: object, choices: Iterable[str], source: str = "") -> InputError:
    """The error, for the caller to raise, for a name that is not in a table; suggests the nearest name that is.

    Args:
        source: where the name was found, such as "the options of als".

    Examples:
        >>> print(unknown("solver", "sdg", ["sgd", "als"]))
        unknown solver 'sdg'; did you mean 'sgd'?
        >>> print(unknown("solver", "lightgbm", ["sgd", "als"]))
        unknown solver 'lightgbm'; choose from sgd, als
        >>> print(unknown("option", "lrs", ["lr"], "the options of als"))
        unknown option 'lrs' in the options of als; did you mean 'lr'?
    """
    choices = list(choices)
    near = difflib.get_close_matches(str(name).lower(), choices, n=1)
    suggestion = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(choices)}"
    place = f" in {source}" if source else ""
    return InputError(f"unknown {kind} {str(name)!r}{place}; {suggestion}")

"""The one exception for what a caller got wrong: the command line prints it as one line and exits with status 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something given from outside cannot be used; the message names the thing, the value and the way out."""


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """The error, for the caller to raise, for a name that is not in a table, suggesting the nearest one that is.

    Examples:
        >>> print(unknown("solver", "sdg", ["sgd", "als"]))
        unknown solver 'sdg'; did you mean 'sgd'?
        >>> print(unknown("solver", "lightgbm", ["sgd", "als"]))
        unknown solver 'lightgbm'; choose from sgd, als
    """
    known = list(known)
    near = difflib.get_close_matches(str(name).lower(), known, n=1)
    way_out = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
    return InputError(f"unknown {kind} {str(name)!r}; {way_out}")

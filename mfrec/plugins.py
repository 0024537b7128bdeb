"""Plugins: modules of the user's own that add a solver, a loss, a metric, a reader or a logger to its table."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable

from mfrec.errors import InputError


def import_plugins(names: Iterable[str], source: str | None = None) -> None:
    """Import modules, each once; the working directory is searched like an installed package.

    Args:
        names: module names, such as "my_module" or "my_package.solvers".
        source: what needs them, such as "runs/NAME was trained with", for messages.

    Raises:
        InputError: a module cannot be found, or fails when imported.
    """
    names = list(names)
    directory = os.getcwd()
    if names and directory not in sys.path and "" not in sys.path:
        sys.path.append(directory)
    for name in names:
        what = f"plugin {name!r}" if source is None else f"{source} plugin {name!r}, which"
        try:
            importlib.import_module(name)
        except Exception as error:  # a user's module may raise anything
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            if missing is None:
                problem = f"fails when imported: {type(error).__name__}: {error}"
            elif name == missing or name.startswith(f"{missing}."):
                problem = "cannot be found; install it, or run in the folder that contains it"
            else:
                problem = f"needs the module {missing!r}; install it"
            raise InputError(f"{what} {problem}") from error

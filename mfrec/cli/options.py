"""The kinds of options that several verbs share."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro

from mfrec.options import Count

__all__ = ["DataPath", "Device", "Number", "Plugins", "RunPath", "Several", "Switch"]

Device = Literal["auto", "cpu", "cuda"]
DataPath = Annotated[
    tyro.conf.Positional[str],
    tyro.conf.arg(metavar="NAME_OR_PATH", help="A named data set, or a folder, zip, file or prepared data set."),
]
RunPath = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN", help="Run folder.")]
Number = Annotated[Count, tyro.conf.arg(aliases=("-n",))]
# A flag without a --no- form.
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
# An option that is given once for each value.
Several = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
Plugins = Annotated[
    Several,
    tyro.conf.arg(
        metavar="MODULE",
        help="A Python module to import first; it may add solvers, losses, metrics, readers or loggers.",
    ),
]

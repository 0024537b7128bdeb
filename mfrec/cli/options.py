"""The kinds of options that several verbs share."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro

from mfrec.options import Count

__all__ = ["Device", "Number", "Plugins", "RunPath", "Several", "Switch"]

Device = Literal["auto", "cpu", "cuda"]
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

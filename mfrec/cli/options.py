"""From dataclasses and solvers' signatures to command-line options, and from a mistake in them to one line."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import typing
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import tyro

from mfrec.errors import InputError
from mfrec.solvers import SOLVERS

Device = Literal["auto", "cpu", "cuda"]


class Knob(NamedTuple):
    """A keyword argument of a solver, as a command-line option."""

    name: str
    type: Any
    default: Any
    help: str


def knobs(solver: str) -> list[Knob]:
    """A solver's own keyword arguments, from its signature and its docstring's Args."""
    kind = SOLVERS[solver]
    hints = typing.get_type_hints(kind.__init__)
    about = dict(re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", inspect.getdoc(kind) or "", re.MULTILINE))
    return [
        Knob(name, hints[name], parameter.default, " ".join(about.get(name, "").split()))
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "generator"
    ]


def parse(kind: Any, prog: str, arguments: Sequence[str], **default: Any) -> Any:
    """tyro.cli, with what the user got wrong as the one line of an InputError instead of a box."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(kind, prog=prog, args=arguments, **default)
    except SystemExit as stop:
        if not stop.code:
            raise
    first, *more = re.split(r"─{5,}", re.sub(r"[│╭╮╰╯]|─ .* ─", " ", box.getvalue()).strip("─ \n"))
    near = re.search(r"Perhaps you meant:\s+(--[\w-]+)", " ".join(more))
    said = " ".join(first.split()).rstrip(".")
    raise InputError(f"{said}; {f'did you mean {near.group(1)}? ' if near else ''}see {prog} --help")


def pick_device(name: str) -> torch.device:
    """The device called auto, cpu or cuda."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda is not available to this torch; use --device cpu, or install torch with CUDA")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")

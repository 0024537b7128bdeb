"""From dataclasses and solvers' signatures to command-line options, and from a mistake in them to one line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import io
import re
import typing
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
import tyro

from mfrec.errors import InputError
from mfrec.solvers.base import SOLVERS

Device = Literal["auto", "cpu", "cuda"]
RunPath = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
Count = Annotated[int, tyro.conf.arg(aliases=["-n"])]
SCORE_BYTES = 4
# A flag that has no --no- form.
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]


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
        Knob(name, hints[name], parameter.default, _sentence(about.get(name, "")))
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "generator"
    ]


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text[:1].upper() + text[1:]


def parse(kind: Any, prog: str, arguments: Sequence[str], **default: Any) -> Any:
    """tyro.cli, with what the user got wrong as the one line of an InputError instead of a box."""
    flags = ["--help", *(f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(kind))]
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in flags and flag.replace("--no-", "--", 1) not in flags:
            near = difflib.get_close_matches(flag, flags, n=1)
            raise InputError(f"unknown option {flag}; {f'did you mean {near[0]}?' if near else f'see {prog} --help'}")
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(kind, prog=prog, args=arguments, config=(tyro.conf.DisallowNone,), **default)
    except SystemExit as stop:
        if not stop.code:
            raise
    # The box is drawn with lines, or where stderr is ASCII with - | + or as a title over a rule: the text between the
    # title and the first inner rule is said.
    text = box.getvalue().strip()
    if not re.match(r"[╭+]", text):
        text = re.sub(r"\A[^\n]*\n\s*-{5,}\s*\n", "", text)
    text = re.sub(r"^[│|╭╰+].*?[─-]{3,}[╮╯+]?$|[│|]", " ", text, flags=re.MULTILINE)
    said = " ".join(re.split(r"[─-]{5,}|Got errors:", text.strip())[0].split()).rstrip(".")
    raise InputError(f"{said}; see {prog} --help")


def taken(verb: str, arguments: Iterable[str], *options: str) -> tuple[list[str], dict[str, str]]:
    """The arguments without these options of a verb, and the value of each that was there.

    Raises:
        InputError: one has no value.
    """
    rest, own, left = [], {}, list(arguments)
    while left:
        flag, equals, value = left.pop(0).partition("=")
        if flag not in options:
            rest.append(flag + equals + value)
        elif equals or left:
            own[flag] = value if equals else left.pop(0)
        else:
            raise InputError(f"{flag} lacks its value; see mfrec {verb} --help")
    return rest, own


def seeded(seed: int) -> torch.Generator:
    """A generator of this seed."""
    if not 0 <= seed < 2**63:
        raise InputError(f"seed {seed} is not a seed; give a whole number from 0 to 2^63 - 1")
    return torch.Generator().manual_seed(seed)


def scores_in(megabytes: int) -> int:
    """How many scores take so much memory."""
    if megabytes < 1:
        raise InputError(f"memory {megabytes} holds nothing; give 1 megabyte or more")
    return megabytes * 2**20 // SCORE_BYTES


def pick_device(name: str) -> torch.device:
    """The device called auto, cpu or cuda."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda is not available to this torch; use --device cpu, or install torch with CUDA")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")

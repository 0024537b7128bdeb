"""Write docs/options.md from the option classes, so that the page and the code cannot differ.

    python docs/make_options.py

A test compares the page with what this program prints.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import typing
from pathlib import Path
from typing import Any

from mfrec.experiments.config import GROUPS
from mfrec.options import Options, Range, type_name
from mfrec.solvers.registry import DEFAULT_SOLVER, SOLVERS

PAGE = Path(__file__).with_name("options.md")
INTRODUCTION = f"""\
# Options

Every option of training, with its type, its default and its meaning. `python docs/make_options.py` writes this page.

- On the command line, `_` becomes `-`: `mfrec train als --rank 32 --valid-fraction 0.1`. Switches have a negative
  form: `--no-biases`. An option with several values takes them one after another: `--rating-range 1 10`.
- In Python, options are keyword arguments: `ExperimentConfig.create("als", rank=32, valid_fraction=0.1)`.
- In a JSON file, the groups are objects: `{{"solver": "als", "model": {{"rank": 32}}}}`. Pass it as `--config FILE`.
  The file `config.json` in every run folder has this form.

Where a solver has a default of its own, it replaces the one in the first five tables; see its section below.
The default solver is `{DEFAULT_SOLVER}`."""


def page() -> str:
    """The text of docs/options.md."""
    paragraphs = [INTRODUCTION]
    for name, kind in GROUPS.items():
        paragraphs += [f"## {name.capitalize()}", summary(kind), table(kind)]
    for name, spec in SOLVERS.items():
        paragraphs += [f"## Solver `{name}`", spec.summary, table(spec.options)]
        if spec.defaults:
            defaults = ", ".join(f"`{option}` {shown(value)}" for option, value in spec.defaults.items())
            paragraphs.append(f"Its own defaults: {defaults}.")
        if spec.learns:
            paragraphs.append(f"Learned from the data, so that they cannot be set: {names(sorted(spec.learns))}.")
        ranges = ", ".join(map(searched, spec.search_space.items()))
        paragraphs.append(f"`mfrec tune {name}` searches {ranges}.")
    return "\n\n".join(paragraphs) + "\n"


def summary(kind: type[Options]) -> str:
    return (inspect.getdoc(kind) or "").splitlines()[0]


def table(kind: type[Options]) -> str:
    """A Markdown table with a row for each option of a class."""
    hints, meanings = typing.get_type_hints(kind, include_extras=True), help_texts(kind)
    rows = [
        f"| `{field.name}` | {allowed(hints[field.name])} | {shown(field.default)} | {meanings[field.name]} |"
        for field in dataclasses.fields(kind)
    ]
    return "\n".join(["| option | type | default | meaning |", "|---|---|---|---|", *rows])


def help_texts(kind: type[Options]) -> dict[str, str]:
    """The string below each field of a class and of its bases, by the field's name."""
    texts = {}
    for base in kind.__mro__[: kind.__mro__.index(Options)]:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(field.target, ast.Name):
                texts[field.target.id] = " ".join(ast.literal_eval(below.value).split())
    return texts


def allowed(hint: Any) -> str:
    """The type of an option in words, with its range."""
    ranges = [limits for part in (hint, *typing.get_args(hint)) for limits in getattr(part, "__metadata__", ())]
    limits = [str(limit) for limit in ranges if isinstance(limit, Range)][:1]
    words = type_name(hint).replace("'", "`").replace("str", "text").replace("bool", "switch")
    return ", ".join([words, *limits]).replace("|", "\\|")


def shown(value: object) -> str:
    if value is None or value == "" or value == ():
        return "–"
    if isinstance(value, tuple | list):
        return f"`{' '.join(map(str, value))}`"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value}`"


def names(options: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in options)


def searched(item: tuple[str, Any]) -> str:
    """An option's search range, such as "`l2` from 0.3 to 3 (log scale)"."""
    name, limits = item
    return f"`{name}` from {limits.low:g} to {limits.high:g}{' (log scale)' if limits.scale == 'log' else ''}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

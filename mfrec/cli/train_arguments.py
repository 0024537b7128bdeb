"""From a command line to a `Train`: over a solver's defaults, a config file, or the options of a run that goes on."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shlex
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro

from mfrec.cli.options import knobs, parse
from mfrec.cli.train import Train
from mfrec.errors import InputError, unknown
from mfrec.experiments.run import Run
from mfrec.solvers.base import DEFAULT, SOLVERS

# Options of one call, which a resumption does not take over from the run; and what it may change besides without
# leaving the path that the run was on.
OF_THE_CALL = {"command", "trial", "device", "run_dir", "name", "config", "resume", "json"}
MAY_CHANGE = OF_THE_CALL | {"epochs", "patience", "log_every"}


def parse_train(arguments: list[str]) -> Train:
    """The options of `mfrec train [SOLVER] …`, over those of a --config, or of the run to --resume."""
    if arguments and arguments[0] in ("-h", "--help"):
        print("usage: mfrec train [SOLVER] [OPTIONS]    (mfrec train SOLVER --help lists its options)\n")
        for name, solver in SOLVERS.items():
            about = (inspect.getdoc(solver) or "").splitlines()[0]
            print(f"  {name:<14}{about}{'  (the default)' if name == DEFAULT else ''}")
        raise SystemExit(0)
    named = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if named is not None and named not in SOLVERS:
        raise unknown("solver", named, SOLVERS)
    rest = arguments if named is None else arguments[1:]
    resumed, configured = (_value(option, rest) for option in ("--resume", "--config"))
    if resumed is not None:
        return _as_typed(_resumed(resumed, named, rest), arguments)
    config = {} if configured is None else _read_config(configured)
    name = named or config.get("solver") or DEFAULT
    if name not in SOLVERS:
        raise unknown(f"solver in {configured}", name, SOLVERS)
    _refuse_learned(name, rest)
    kind = train_options(name)
    given = [] if configured is None else _arguments(configured, config, name, kind)
    options: Train = parse(kind, f"mfrec train {name}", [*given, *rest], default=kind(**SOLVERS[name].defaults))
    return _as_typed(options, arguments)


def _as_typed(options: Train, arguments: list[str]) -> Train:
    """With the command that gave these options, for the record."""
    return dataclasses.replace(options, command=shlex.join(["mfrec", "train", *arguments]))


def _value(option: str, arguments: list[str]) -> str | None:
    found = re.search(rf"(?:^|\0){option}[=\0]([^\0]+)", "\0".join(arguments))
    return None if found is None else found.group(1)


def _read_config(path: str) -> dict[str, Any]:
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no file {path}; give a run's config.json, or one like it") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); mend it, or take a run's config.json") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a JSON object of options; take a run's config.json for an example")
    return config


def _arguments(path: str, config: dict[str, Any], solver: str, kind: Any) -> list[str]:
    """The options of a config as a command line, so that what holds for one holds for the other.

    Left out are those of one call, what the solver learns, and another solver's own where a solver is given by name.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    known = [name for name in names if name not in OF_THE_CALL]
    if config.get("solver") not in (None, solver):
        names += [knob.name for knob in knobs(config["solver"])] if config["solver"] in SOLVERS else []
    arguments = []
    for name, value in config.items():
        if name not in (*names, "format", "solver"):
            raise unknown(f"option in {path}", name, known)
        flag = f"--{name.replace('_', '-')}"
        if name not in known or name in getattr(SOLVERS[solver], "learned", ()) or value is None:
            continue
        if isinstance(value, bool):
            switch = kind.__dataclass_fields__[name].default is False
            arguments += [flag] if value else [] if switch else [flag.replace("--", "--no-", 1)]
        else:
            arguments += [flag, *(str(one) for one in (value if isinstance(value, list) else [value]))]
    return arguments


def _resumed(folder: str, named: str | None, rest: list[str]) -> Train:
    """The options of a run that is to go on, with what may change of them."""
    config = Run.open(folder).config()
    solver = config.get("solver", "")
    if solver not in SOLVERS:
        raise unknown(f"solver in {folder}", solver, SOLVERS)
    if named not in (None, solver):
        raise InputError(f"{folder} was trained by {solver}, not {named}; go on with {solver}, or start a new run")
    kind = train_options(solver)
    names = {field.name for field in dataclasses.fields(kind)}
    missing = names - config.keys()
    if missing:
        raise InputError(f"{folder}/config.json lacks {', '.join(sorted(missing))}; restore it, or start a new run")
    lasting = names - OF_THE_CALL
    before = kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in lasting})
    after: Train = parse(kind, f"mfrec train {solver}", rest, default=before)
    for name in sorted(names - MAY_CHANGE):
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            raise InputError(
                f"{folder} was trained with --{name.replace('_', '-')} {old}, not {new}; start a new run for that"
            )
    return after


def _refuse_learned(solver: str, arguments: list[str]) -> None:
    """What the solver finds out by itself is no option of its."""
    given = {argument.partition("=")[0].removeprefix("--").replace("-", "_") for argument in arguments}
    for name in getattr(SOLVERS[solver], "learned", ()):
        if name in given:
            raise InputError(f"{solver} needs no --{name.replace('_', '-')}: it finds that out by itself; leave it out")


def train_options(solver: str) -> Any:
    """The type of `Train` that has the solver's own knobs as further options."""
    kind = SOLVERS[solver]
    hidden = (tyro.conf.Suppress, tyro.conf.Fixed)
    own: list[tuple[str, Any, Any]] = [
        (name, Annotated[(hint, *hidden)], field(default=getattr(Train, name)))
        for name, hint in get_type_hints(Train).items()
        if name in getattr(kind, "learned", ())
    ]
    own += [
        (knob.name, Annotated[knob.type, tyro.conf.arg(help=knob.help)], field(default=knob.default))
        for knob in knobs(solver)
    ]
    made = dataclasses.make_dataclass(
        f"Train{kind.__name__}", own, bases=(Train,), frozen=True, namespace={"solver": solver}
    )
    made.__doc__ = (inspect.getdoc(kind) or "").splitlines()[0]
    return made

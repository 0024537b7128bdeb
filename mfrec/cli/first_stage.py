"""--plugin, --config, --resume and --device: parsed before all other options, because they add and choose solvers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfrec.errors import InputError


@dataclass(frozen=True)
class FirstStage:
    """The options of the first stage.

    Attributes:
        plugins: modules to import, which may add solvers.
        config: a file of defaults.
        resume: a run, or a study, whose options are the defaults.
        device: the device, which chooses the solver if none is named.
    """

    plugins: tuple[str, ...]
    config: str | None
    resume: str | None
    device: str | None = None


def first_stage(arguments: Sequence[str]) -> FirstStage:
    """Find --plugin, --config, --resume and --device among other options; tyro reports missing values later."""
    options, _ = _first_parser().parse_known_args(arguments)
    return FirstStage(tuple(filter(None, options.plugin)), options.config, options.resume, options.device)


def solver_and_options(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The name of a solver, if there is one, and the other arguments.

    It is the first argument, or follows the options of the first stage, as in `--plugin my_module my_solver --rank 8`.
    """
    for position, argument in enumerate(arguments):
        _, others = _first_parser().parse_known_args(arguments[: position + 1])
        if others and not argument.startswith("-"):
            return argument, [*arguments[:position], *arguments[position + 1 :]]
        if others:
            break
    return None, [*arguments]


def explicit_options(arguments: Sequence[str], names: Iterable[str]) -> tuple[str, ...]:
    """The options with these names that are on the command line, whether or not they have their default value."""
    parser = _parser()
    for name in names:
        flag = name.replace("_", "-")
        parser.add_argument(
            *{f"--{flag}", f"--no-{flag}", f"--{name}"}, dest=name, nargs="?", default=argparse.SUPPRESS
        )
    options, _ = parser.parse_known_args(arguments)
    return tuple(vars(options))


def _parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(add_help=False, allow_abbrev=False)


def _first_parser() -> argparse.ArgumentParser:
    parser = _parser()
    parser.add_argument("--plugin", action="append", nargs="?", default=[])
    parser.add_argument("--config", nargs="?")
    parser.add_argument("--resume", nargs="?")
    parser.add_argument("--device", nargs="?")
    return parser


def read_config(path: str) -> dict[str, Any]:
    """The options in a JSON file, in the groups of an `ExperimentConfig`.

    Raises:
        InputError: it is not a JSON object.
    """
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no file {path}; give a run's config.json, or a file like it") from None
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); correct it, or use a run's config.json") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} must hold a JSON object of options; see a run's config.json for an example")
    return config

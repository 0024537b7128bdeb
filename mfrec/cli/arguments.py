"""From a command line to a command, in two stages.

The first stage finds the options that decide which other options there are: plugins add solvers, and a configuration
file or a run to resume sets the defaults.  The second stage is tyro's, over the dataclasses of the verbs.
"""

from __future__ import annotations

import functools
import inspect
import operator
import shlex
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

from mfrec.cli.cv import CrossValidate
from mfrec.cli.data import Data
from mfrec.cli.evaluate import Evaluate
from mfrec.cli.experiment_options import ExperimentOptions, Listed, refuse_excluded, solver_subcommands
from mfrec.cli.first_stage import explicit_options, first_stage, solver_and_options
from mfrec.cli.predict import Predict
from mfrec.cli.prepare import Prepare
from mfrec.cli.recommend import Recommend
from mfrec.cli.reproduce import Reproduce
from mfrec.cli.runs import Runs
from mfrec.cli.similar import Similar
from mfrec.cli.solvers import Solvers
from mfrec.cli.synthetic import Synthetic
from mfrec.cli.train import Train
from mfrec.cli.tune import Tune
from mfrec.errors import unknown
from mfrec.plugins import import_plugins

Command = Callable[[], int]
EXPERIMENT_VERBS: dict[str, type[ExperimentOptions]] = {"train": Train, "cv": CrossValidate, "tune": Tune}
VERBS: dict[str, type[Command]] = {
    **EXPERIMENT_VERBS,
    "evaluate": Evaluate,
    "predict": Predict,
    "recommend": Recommend,
    "similar": Similar,
    "runs": Runs,
    "data": Data,
    "prepare": Prepare,
    "synthetic": Synthetic,
    "solvers": Solvers,
    "reproduce": Reproduce,
}
HELP = ("--help", "-h")


def parse(arguments: Sequence[str]) -> Command:
    """The command that a command line asks for, ready to be called; exits after help and after an error of usage.

    Raises:
        InputError: the verb or the solver is unknown, a plugin or a file of options cannot be used, or an option
            does not belong to the verb or the solver.
    """
    verb, *options = arguments or HELP[:1]
    if verb not in (*VERBS, *HELP):
        raise unknown("command", verb, VERBS)
    kinds: dict[str, Any] = {name: Listed if name in EXPERIMENT_VERBS else kind for name, kind in VERBS.items()}
    if verb in EXPERIMENT_VERBS:
        kinds[verb], options = _experiment_verb(verb, options)
    else:
        import_plugins(first_stage(options).plugins)
    subcommands = [
        Annotated[kind, tyro.conf.subcommand(name, description=inspect.getdoc(VERBS[name]))]
        for name, kind in kinds.items()
    ]
    union: Any = functools.reduce(operator.or_, subcommands)
    parsed: Any = tyro.cli(
        union,
        prog="mfrec",
        description="Matrix factorization of explicit ratings.",
        args=[verb, *options],
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.DisallowNone),
    )
    command: Command = parsed.command if verb in EXPERIMENT_VERBS else parsed
    return command


def _experiment_verb(verb: str, options: list[str]) -> tuple[Any, list[str]]:
    """The type of a verb with a subcommand for each solver, and its options after the name of the solver.

    Help lists the solvers if none is named.
    """
    kind, stage = EXPERIMENT_VERBS[verb], first_stage(options)
    import_plugins(stage.plugins)
    command_line = shlex.join(["mfrec", verb, *options])
    solver, options = solver_and_options(options)
    config = kind.base_config(stage, solver)
    explicit = explicit_options(options, config.flat())
    refuse_excluded(kind, config.solver, explicit)
    defaults = kind.defaults(config, explicit, command_line)
    if solver is None and not set(HELP).isdisjoint(options):
        return solver_subcommands(kind, defaults, is_chosen=False), [HELP[0]]
    return solver_subcommands(kind, defaults, is_chosen=True), [config.solver, *options]

"""The options of train, cv and tune: the groups of an `ExperimentConfig`, with a subcommand for each solver."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

import tyro

from mfrec.cli.first_stage import FirstStage, read_config
from mfrec.cli.options import Plugins, Switch
from mfrec.errors import OptionError
from mfrec.experiments.config import (
    GROUPS,
    DataConfig,
    ExperimentConfig,
    FitConfig,
    ModelConfig,
    ObjectiveConfig,
    RunConfig,
    config_from,
    learned_option,
)
from mfrec.options import Options
from mfrec.solvers.base import SOLVERS
from mfrec.solvers.registry import DEFAULT_GPU_SOLVER, DEFAULT_SOLVER

E = TypeVar("E", bound="ExperimentOptions")
G = TypeVar("G", bound=Options)


@dataclass(frozen=True)
class OutputConfig(RunConfig):
    """What to save and to log."""

    plugin: Plugins = ()


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions(Options):
    """Base of the verbs that train: an experiment's options, in the groups of the help."""

    # Options of an experiment that the verb refuses, and why.
    excluded: ClassVar[Mapping[str, str]] = {}

    solver_name: Annotated[str, tyro.conf.Suppress]
    # The names of the options on the command line.
    explicit: Annotated[tuple[str, ...], tyro.conf.Suppress]
    command_line: Annotated[str, tyro.conf.Suppress]

    config: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """A JSON file of options, such as the config.json of a run; the command line overrides it."""
    json: Switch = False
    """Print JSON instead of tables."""

    solver: Options
    data: DataConfig
    model: ModelConfig
    objective: ObjectiveConfig
    training: FitConfig
    output: OutputConfig

    @classmethod
    def base_config(cls, stage: FirstStage, solver: str | None) -> ExperimentConfig:
        """The configuration that the command line changes: the defaults of a solver, or those of --config.

        Args:
            solver: the name on the command line, if there is one.

        Raises:
            InputError: the solver is unknown, or the file cannot be used.
        """
        if stage.config is None:
            default = DEFAULT_GPU_SOLVER if stage.device == "cuda" else DEFAULT_SOLVER
            return ExperimentConfig.create(default if solver is None else solver)
        values = read_config(stage.config)
        config = config_from(values, stage.config, solver)
        if "format" in values:
            # The file of a run: a new run gets its own folder and device.
            config = config.updated(name=None, run_dir=RunConfig().run_dir, device=FitConfig().device)
        return config

    @classmethod
    def data_options(cls, data: DataConfig) -> DataConfig:
        """The data options with the defaults of the verb."""
        return data

    @classmethod
    def defaults(cls: type[E], config: ExperimentConfig, explicit: Collection[str] = (), command_line: str = "") -> E:
        """The options with the values of a configuration; options that the solver or the verb lacks are hidden."""
        hidden = {*SOLVERS[config.solver].learns, *cls.excluded}
        return cls(
            solver_name=config.solver,
            explicit=tuple(explicit),
            command_line=command_line,
            solver=_hiding(config.options, hidden),
            data=_hiding(cls.data_options(config.data), hidden),
            model=_hiding(config.model, hidden),
            objective=_hiding(config.objective, hidden),
            training=_hiding(config.fit, hidden),
            output=_hiding(OutputConfig(**vars(config.run)), hidden),
        )

    def experiment(self) -> ExperimentConfig:
        """Check the options, and return them as a configuration.

        Raises:
            InputError: an option is out of range, or options contradict each other.
        """
        self.check()
        groups = {
            "data": self.data,
            "model": self.model,
            "objective": self.objective,
            "fit": self.training,
            "run": self.output,
        }
        config = ExperimentConfig(
            self.solver_name,
            SOLVERS[self.solver_name].options(**vars(self.solver)),
            **{name: GROUPS[name](**vars(group)) for name, group in groups.items()},  # type: ignore[arg-type]
        )
        config.check()
        return config

    def __call__(self) -> int:
        """Run the verb; returns the exit status."""
        raise NotImplementedError


def refuse_excluded(kind: type[ExperimentOptions], solver: str, explicit: Collection[str]) -> None:
    """Refuse options on the command line that the verb does not have, or that the solver learns.

    Raises:
        OptionError: there is one.
    """
    for name in explicit:
        if name in kind.excluded:
            raise OptionError(name, kind.excluded[name])
        if name in SOLVERS[solver].learns:
            raise learned_option(solver, name)


def solver_subcommands(kind: type[ExperimentOptions], options: ExperimentOptions, is_chosen: bool) -> Any:
    """A dataclass for tyro with a subcommand for each solver, whose defaults are the solver's.

    Args:
        options: the defaults of one of the solvers, and of the verb without a solver.
        is_chosen: whether that solver was chosen.  The others are only listed then, without options, so that tyro does
            not look for an unknown option among theirs.
    """
    defaults: dict[str, Any] = {}
    for name in SOLVERS:
        if name == options.solver_name:
            defaults[name] = options
        else:
            defaults[name] = Listed() if is_chosen else kind.defaults(ExperimentConfig.create(name))
    subcommands = tyro.extras.subcommand_type_from_defaults(
        defaults, {name: spec.summary for name, spec in SOLVERS.items()}, prefix_names=False
    )
    made = dataclasses.make_dataclass(kind.__name__, [("command", subcommands, options)], frozen=True)
    made.__doc__ = kind.__doc__
    return made


@dataclass(frozen=True)
class Listed:
    """A subcommand that is only listed, because another one was chosen."""


def _hiding(group: G, names: Collection[str]) -> G:
    """The same options, as an instance of a subclass whose options with these names do not appear on a command line."""
    kind = type(group)
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = [
        (name, Annotated[hints[name], tyro.conf.Suppress], dataclasses.field(default=value))
        for name, value in vars(group).items()
        if name in names
    ]
    if not fields:
        return group
    made = dataclasses.make_dataclass(kind.__name__, fields, bases=(kind,), frozen=True)
    made.__doc__ = kind.__doc__
    return typing.cast(Callable[..., G], made)(**vars(group))

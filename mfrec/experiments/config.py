"""The configuration of an experiment: every option, declared once; nothing here imports torch.

An `ExperimentConfig` has one group of options for each concern, and the solver's name with its own options.  Option
names are unique over all groups, so that `ExperimentConfig.create("als", rank=32, relaxation=0.4)` and
`config.updated(seed=1)` take them flat.  As JSON, in `config.json` of a run, the groups are nested.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from mfrec.errors import InputError, OptionError, unknown
from mfrec.options import Count, CountOrZero, Fraction, NonNegative, Options, Range, option_names, options_from
from mfrec.plugins import import_plugins
from mfrec.solvers.registry import DEFAULT_SOLVER, SOLVERS

EMBEDDED_DATA = "ml-latest-small"
Seed = Annotated[int, Range(0, 2**63, open_high=True)]


@dataclass(frozen=True)
class ReadingConfig(Options):
    """Which ratings to use, and how to read them."""

    data: str = EMBEDDED_DATA
    """A named data set (ml-latest-small, ml-100k, ml-1m, ml-10m, ml-20m, ml-25m), or a folder, zip, file or prepared
    data set."""
    columns: str | None = None
    """Columns of your own CSV, TSV or parquet file: user,item,rating[,timestamp]."""
    rating_range: tuple[float, float] | None = None
    """Lowest and highest possible rating; by default as the format declares, else as found in the data."""
    duplicates: Literal["last", "first", "mean", "error"] = "last"
    """Which rating counts if a user rated an item more than once."""
    test_data: str | None = None
    """A file of test ratings, instead of a split of the data."""
    valid_data: str | None = None
    """A file of validation ratings, instead of a fraction of the training ratings."""

    def reading(self) -> dict[str, Any]:
        """The arguments of `load_dataset`."""
        return {name: getattr(self, name) for name in option_names(ReadingConfig)}


@dataclass(frozen=True)
class DataConfig(ReadingConfig):
    """Which ratings to use, and how to split them."""

    split: str = "random"
    """random, per-user, per-user-time, time, leave-last-out, cold-items, fold-1-of-5, or an official one such as u1."""
    test_fraction: Fraction = 0.1
    """Fraction of the ratings to hold out for the test; official splits have their own."""
    valid_fraction: Fraction | None = None
    """Fraction of the training ratings to hold out for validation; by default 0.05, and 1/9 of the embedded data."""


@dataclass(frozen=True)
class ModelConfig(Options):
    """The model."""

    rank: Count = 64
    """Number of latent factors."""
    biases: bool = True
    """Give users and items a bias."""
    offset: Literal["none", "global", "item"] = "global"
    """What to subtract before training: nothing, the global mean, or each item's damped mean."""
    damping: NonNegative = 5.0
    """Damp each item's mean by this many ratings at the global mean; 0 gives the plain mean."""
    implicit: Literal["none", "users", "items", "both"] = "none"
    """Add features: which items a user rated, which users rated an item, or both (SVD++)."""
    user_features: str = ""
    """Columns of the user table to use as features: age,gender,occupation."""
    item_features: str = ""
    """Columns of the item table to use as features: genres,year."""
    item_ids: bool = True
    """Give each item factors of its own; without it, items are represented by their features only."""
    sessions: bool = False
    """Add a bias to the ratings that a user enters close in time (needs timestamps)."""
    session_gaps: tuple[CountOrZero, ...] = (0, 30, 1800)
    """Seconds without a rating that end a session; each number makes sessions of its own."""
    recent_bias: CountOrZero = 0
    """Shift each user's predictions by the mean error of the latest ratings, with this half-life in ratings; 0 turns it
    off (needs timestamps)."""
    nonnegative: bool = False
    """Keep all factors at 0 or above."""
    init: Literal["scaled-normal", "small-normal", "uniform"] = "scaled-normal"
    """Initial factors: 0.1/√rank · normal, 0.01 · normal, or uniform on [0, 1)."""


@dataclass(frozen=True)
class ObjectiveConfig(Options):
    """The cost to minimize."""

    l2: NonNegative = 1.0
    """λ, the weight of the L2 penalty, before its scaling."""
    bias_l2: NonNegative | None = None
    """λ of the biases; by default l2."""
    l2_scaling: Literal["row", "sqrt", "rating"] = "sqrt"
    """Multiply λ by 1, √n or n for a user or item with n ratings."""
    session_l2: NonNegative = 15.0
    """λ of the session biases, not scaled."""
    loss: str = "squared"
    """Loss: squared, or log-cosh (robust to large errors)."""


@dataclass(frozen=True)
class FitConfig(Options):
    """How long to train, on which device, and from which seed."""

    epochs: Count = 100
    """Maximum number of epochs."""
    patience: Count | None = 8
    """Stop after this many epochs without a better validation metric; None runs all epochs."""
    monitor: str = "rmse"
    """Validation metric for early stopping, the best epoch and tuning: rmse, mae, or one such as ndcg@10."""
    refit: bool = False
    """Train once more on the training and validation ratings, for the best number of epochs."""
    seed: Seed = 0
    """Seed of the split, the initial factors and the solver; same seed and device, same bits."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; auto uses a GPU if there is one and the solver can."""
    partial_tables: bool = False
    """In several processes, let each hold only the users and items that it needs; for gd, optim, als, vb and gibbs."""


@dataclass(frozen=True)
class RunConfig(Options):
    """What to save and to log."""

    run_dir: str | None = "runs"
    """Folder of run folders; None, in Python, saves nothing."""
    name: str | None = None
    """Name of the run folder; by default DATA-SOLVER-N."""
    log_every: CountOrZero = 10
    """Measure the training set every this many epochs; 0 turns TensorBoard off.  Validation is logged every epoch."""
    loggers: tuple[str, ...] = ("tensorboard", "jsonl")
    """Where to log: tensorboard, jsonl (metrics.jsonl in the run folder), or a plugin's logger."""
    plugin: tuple[str, ...] = ()
    """A Python module to import first: it may add solvers, losses, metrics, readers or loggers."""


# Options left out of the hyperparameters: how data is read, where results go, and the device.
NON_HYPERPARAMETERS = frozenset(
    {"run_dir", "name", "log_every", "loggers", "plugin", "device", "columns", "rating_range", "duplicates"}
)

GROUPS: dict[str, type[Options]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "objective": ObjectiveConfig,
    "fit": FitConfig,
    "run": RunConfig,
}


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that decides what an experiment computes and where its results go.

    Attributes:
        solver: a name in `SOLVERS`.
        options: the solver's own options.
        data, model, objective, fit, run: the options that every solver has.

    Examples:
        >>> config = ExperimentConfig.create("als", rank=32, relaxation=0.4)
        >>> config.model.rank, config.options.relaxation, config.objective.l2  # 1.1 is the default of als
        (32, 0.4, 1.1)
        >>> config.updated(seed=1).fit.seed
        1
    """

    solver: str
    options: Options
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @classmethod
    def create(cls, solver: str = DEFAULT_SOLVER, **options: Any) -> ExperimentConfig:
        """The defaults of a solver, with these options changed.

        Raises:
            InputError: the solver is unknown, or `updated` refuses an option.
        """
        spec = SOLVERS[solver]
        defaults = cls(solver, spec.options())
        return defaults._replaced(spec.defaults).updated(**options)

    def updated(self, **options: Any) -> ExperimentConfig:
        """This configuration with some options changed, given by their flat names.

        Raises:
            InputError: an option is unknown, has a value of another type, or is learned by the solver.
        """
        for name in options:
            if name in SOLVERS[self.solver].learns:
                raise learned_option(self.solver, name)
        return self._replaced(options)

    def _replaced(self, options: Mapping[str, Any]) -> ExperimentConfig:
        groups: dict[str, Any] = dict(self.groups())
        for name, value in options.items():
            group = next((key for key, values in groups.items() if hasattr(values, name)), None)
            if group is None:
                raise unknown("option", name, self.flat(), f"the options of {self.solver}")
            groups[group] = options_from(type(groups[group]), {name: value}, "the options", groups[group])
        return dataclasses.replace(self, **groups)

    def groups(self) -> Iterator[tuple[str, Options]]:
        """The groups of options by name, the solver's own as "options"."""
        for name in ("options", *GROUPS):
            yield name, getattr(self, name)

    def flat(self) -> dict[str, Any]:
        """All options by name."""
        return {name: value for _, group in self.groups() for name, value in vars(group).items()}

    def hyperparameters(self) -> dict[str, Any]:
        """The solver and all options by name, except `NON_HYPERPARAMETERS`."""
        return {"solver": self.solver} | {k: v for k, v in self.flat().items() if k not in NON_HYPERPARAMETERS}

    def check(self) -> None:
        """Check every option, before anything is read.

        Raises:
            InputError: an option is out of range, or options contradict each other.
        """
        for _, group in self.groups():
            group.check()
        data, fit = self.data, self.fit
        if data.valid_data is not None and data.test_data is None:
            raise OptionError("valid_data", "needs test_data")
        if data.test_data is not None:
            for name in ("split", "test_fraction"):
                if getattr(data, name) != getattr(DataConfig(), name):
                    raise OptionError(name, "cannot be used with test_data, which is the split; leave one of them out")
        if self.model.recent_bias and not self.model.biases:
            raise OptionError("recent_bias", "needs a model with biases; turn biases on, or leave it out")
        if self.model.recent_bias and vars(self.options).get("likelihood") == "ordinal":
            raise OptionError(
                "recent_bias", "needs a likelihood of ratings; make it gaussian, or leave recent_bias out"
            )
        if fit.refit and not SOLVERS[self.solver].early_stopping:
            raise OptionError("refit", f"cannot be used with {self.solver}, which runs all its epochs; leave it out")

    def to_dict(self) -> dict[str, Any]:
        """The configuration as nested dicts for JSON, the inverse of `from_dict`."""
        return {"solver": self.solver, **{name: group.to_dict() for name, group in self.groups()}}

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], source: str = "the configuration", solver: str | None = None
    ) -> ExperimentConfig:
        """A configuration from nested dicts, such as those of a `config.json`; missing options have their defaults.

        Args:
            source: where the values come from, for messages.
            solver: the solver to configure if not the one in `values`; the other solver's own options are ignored.

        Raises:
            InputError: a solver, a group or an option is unknown, or a value has the wrong type.
        """
        named = values.get("solver", DEFAULT_SOLVER)
        if solver is None and not (isinstance(named, str) and named in SOLVERS):
            raise unknown("solver", named, SOLVERS, source)
        name = named if solver is None else solver
        config = cls.create(name)
        groups: dict[str, Any] = dict(config.groups())
        for key, group in values.items():
            if key in ("solver", "format", "checksum") or (key == "options" and name != named):
                continue
            if key not in groups:
                raise unknown("group of options", key, groups, source)
            if not isinstance(group, Mapping):
                raise InputError(f"{key} in {source} must be an object of options (got {group!r})")
            learned = SOLVERS[name].learns if name != named else frozenset()
            kept = {option: value for option, value in group.items() if option not in learned}
            groups[key] = options_from(type(groups[key]), kept, source, groups[key])
        return dataclasses.replace(config, **groups)


def config_from(values: Mapping[str, Any], source: str, solver: str | None = None) -> ExperimentConfig:
    """The configuration in nested dicts, after the import of its plugins.

    Args:
        source, solver: see `ExperimentConfig.from_dict`.

    Raises:
        InputError: a plugin cannot be imported, or `ExperimentConfig.from_dict` refuses the values.
    """
    run = values.get("run")
    plugins = run.get("plugin") if isinstance(run, Mapping) else None
    if isinstance(plugins, list):  # `from_dict` refuses other types
        import_plugins([name for name in plugins if isinstance(name, str)], f"{source} needs the")
    return ExperimentConfig.from_dict(values, source, solver)


def learned_option(solver: str, option: str) -> InputError:
    """The error, for the caller to raise, for an option that the solver infers from the data."""
    return OptionError(option, f"cannot be set for {solver}, which learns it; leave it out")

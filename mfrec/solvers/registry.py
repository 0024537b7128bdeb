"""The built-in solvers: each one's options, and the row of `SOLVERS` that declares it.

Nothing here imports torch; a solver's own module is imported when the solver is first built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from mfrec.options import FLOAT_MAX, Count, CountOrZero, Fraction, NonNegative, Options, Positive, Range
from mfrec.solvers.base import SOLVERS, SearchRange, SolverSpec

__all__ = [
    "DEFAULT_SOLVER",
    "SOLVERS",
    "ALSOptions",
    "BlockSGDOptions",
    "GibbsOptions",
    "GradientDescentOptions",
    "QuasiNewtonOptions",
    "SGDOptions",
    "TorchOptimizerOptions",
    "VariationalBayesOptions",
]

DEFAULT_SOLVER = "sgd"
# The solver to train with on a GPU if none is named: the default one runs on the CPU.
DEFAULT_GPU_SOLVER = "block-sgd"
# The planned epochs of sgd unless others are asked for.
SGD_EPOCHS = 16


@dataclass(frozen=True)
class SGDOptions(Options):
    """Options of sgd."""

    lr: Positive = 0.09
    """Step size α of the first epoch; it falls to 0 along half a cosine."""
    lr_epochs: Count | None = None
    """Epochs until α is 0 and starts again at lr; by default all epochs of the run."""
    step: Literal["proximal", "plain"] = "proximal"
    """How a gradient becomes a step: proximal (never diverges) or plain."""


@dataclass(frozen=True)
class BlockSGDOptions(Options):
    """Options of block-sgd."""

    lr: Positive = 0.02
    """Step size α of the first epoch."""
    lr_decay: NonNegative = 0.03
    """Epoch t uses lr / (1 + lr_decay · t), t = 0, 1, …; 0 keeps lr constant."""
    step: Literal["plain", "proximal", "adagrad"] = "proximal"
    """How a gradient becomes a step: plain, proximal (never diverges), or adagrad."""
    momentum: Fraction = 0.0
    """Momentum β; 0.9 is usual, 0 turns it off."""
    blocks: tuple[Count, Count] = (4, 4)
    """Numbers of groups that users and items are cut into, or fewer if there are fewer of them; 4 4 makes 16 blocks."""


@dataclass(frozen=True)
class GradientDescentOptions(Options):
    """Options of gd."""

    lr: Positive = 0.0005
    """Step size α; J sums over ratings, so the more ratings a user or item has, the smaller α must be."""


@dataclass(frozen=True)
class TorchOptimizerOptions(Options):
    """Options of optim."""

    optimizer: str = "adam"
    """A class of torch.optim, in any case: adam, adamw, rmsprop, lbfgs, …"""
    lr: Positive = 0.05
    """Learning rate of the optimizer."""


@dataclass(frozen=True)
class QuasiNewtonOptions(Options):
    """Options of quasi-newton."""

    method: Literal["l-bfgs-b", "cg", "tnc"] = "l-bfgs-b"
    """Method of scipy.optimize."""
    iterations: Count = 10
    """Iterations per epoch; for tnc, evaluations of the cost."""


@dataclass(frozen=True)
class ALSOptions(Options):
    """Options of als."""

    solve: Literal["cg", "cholesky"] = "cg"
    """How to solve each row's problem: conjugate gradients, or exactly (feature weights always use cg)."""
    cg_steps: Count = 1
    """Conjugate-gradient steps per half-sweep; each costs half as much as a gradient."""
    relaxation: Annotated[float, Range(0, 1, open_low=True)] = 0.5
    """Each half-sweep moves this fraction η of the way to its minimum; 1 moves all the way."""


@dataclass(frozen=True)
class SessionPriorOptions(Options):
    """Options of the prior of session biases."""

    session_prior: Literal["t", "gaussian"] = "t"
    """Distribution of session biases: t lets a few sessions have large ones."""
    session_freedom: Annotated[float, Range(2, FLOAT_MAX, open_low=True)] = 4.0
    """Degrees of freedom ν of that t distribution."""

    def freedom(self) -> float | None:
        """ν, or None for a Gaussian."""
        return self.session_freedom if self.session_prior == "t" else None


@dataclass(frozen=True)
class VariationalBayesOptions(SessionPriorOptions):
    """Options of vb."""

    cg_steps: Count = 2
    """Conjugate-gradient steps per half-sweep."""
    feature_steps: Count = 8
    """Conjugate-gradient steps per update of feature weights, which are coupled and need more."""


@dataclass(frozen=True)
class GibbsOptions(SessionPriorOptions):
    """Options of gibbs."""

    burn_in: CountOrZero = 20
    """Sweeps to discard while the chain converges."""
    samples: Count = 16
    """Number of samples to keep, evenly spread; predictions average over all sweeps after the burn-in."""
    cg_steps: Count = 3
    """Conjugate-gradient steps per draw of user or item factors."""
    feature_steps: Count = 9
    """Conjugate-gradient steps per draw of feature weights, which are coupled and need more."""
    likelihood: Literal["gaussian", "ordinal"] = "gaussian"
    """Distribution of a rating: Gaussian, or ordinal, which gives each level (such as each star) its own threshold."""
    chains: Count = 1
    """Number of Markov chains, each with all sweeps; predictions average over all of them."""
    homoscedastic: bool = False
    """Use one noise precision for all ratings, instead of a precision scale for each user and item."""


LEARNED = frozenset({"l2", "bias_l2", "l2_scaling", "session_l2"})

SOLVERS["sgd"] = SolverSpec(
    summary="Stochastic gradient descent on one rating after another.",
    options=SGDOptions,
    implementation="mfrec.solvers.sgd:SGD",
    supports=frozenset({"non-negative", "losses", "sessions"}),
    # It runs all its planned epochs, so that the validation set only shows how well.
    defaults={"rank": 128, "l2": 0.9, "epochs": SGD_EPOCHS, "patience": None, "valid_fraction": 0.05},
    search_space={
        "lr": SearchRange(0.02, 0.1, "log"),
        "l2": SearchRange(0.3, 3.0, "log"),
        "rank": SearchRange(16, 128, "log"),
    },
    cpu_only=True,
    partitions=True,
)
SOLVERS["block-sgd"] = SolverSpec(
    summary="Stochastic gradient descent on one block of ratings after another: for features, momentum and GPUs.",
    options=BlockSGDOptions,
    implementation="mfrec.solvers.block_sgd:BlockSGD",
    supports=frozenset({"features", "non-negative", "losses", "sessions"}),
    defaults={"rank": 128, "l2": 0.9, "patience": 5},
    search_space={
        "lr": SearchRange(0.005, 0.08, "log"),
        "lr_decay": SearchRange(0.0, 0.1),
        "l2": SearchRange(0.3, 3.0, "log"),
        "rank": SearchRange(16, 128, "log"),
    },
    partitions=True,
)
SOLVERS["gd"] = SolverSpec(
    summary="Gradient descent on all ratings at once.",
    options=GradientDescentOptions,
    implementation="mfrec.solvers.gradient_descent:GradientDescent",
    supports=frozenset({"features", "non-negative", "losses", "sessions", "partial-tables"}),
    defaults={"rank": 10, "l2": 10.0, "l2_scaling": "row", "epochs": 1000, "patience": 40},
    search_space={
        "lr": SearchRange(1e-4, 2e-3, "log"),
        "l2": SearchRange(1.0, 100.0, "log"),
        "rank": SearchRange(4, 64, "log"),
    },
    partitions=True,
)
SOLVERS["optim"] = SolverSpec(
    summary="Any optimizer of torch.optim, on all ratings at once.",
    options=TorchOptimizerOptions,
    implementation="mfrec.solvers.torch_optimizer:TorchOptimizer",
    supports=frozenset({"features", "non-negative", "losses", "sessions", "partial-tables"}),
    defaults={"epochs": 400, "patience": 40},
    search_space={
        "lr": SearchRange(1e-3, 0.1, "log"),
        "l2": SearchRange(0.1, 10.0, "log"),
        "rank": SearchRange(4, 128, "log"),
    },
    partitions=True,
)
SOLVERS["quasi-newton"] = SolverSpec(
    summary="L-BFGS, nonlinear conjugate gradients or truncated Newton, by scipy.",
    options=QuasiNewtonOptions,
    implementation="mfrec.solvers.quasi_newton:QuasiNewton",
    supports=frozenset({"features", "non-negative", "losses", "sessions"}),
    defaults={"epochs": 60, "patience": 4},
    search_space={"l2": SearchRange(0.1, 10.0, "log"), "rank": SearchRange(4, 128, "log")},
    partitions=True,
)
SOLVERS["als"] = SolverSpec(
    summary="Alternating least squares.",
    options=ALSOptions,
    implementation="mfrec.solvers.als:ALS",
    supports=frozenset({"features", "non-negative", "sessions", "partial-tables"}),
    defaults={"l2": 1.1, "epochs": 40, "patience": 5},
    search_space={
        "l2": SearchRange(0.3, 4.0, "log"),
        "relaxation": SearchRange(0.2, 1.0),
        "rank": SearchRange(8, 128, "log"),
    },
    partitions=True,
)
SOLVERS["vb"] = SolverSpec(
    summary="Variational Bayes: learns its penalties, gives a standard deviation for every prediction.",
    options=VariationalBayesOptions,
    implementation="mfrec.solvers.variational:VariationalBayes",
    supports=frozenset({"features", "sessions", "partial-tables"}),
    defaults={"rank": 14, "epochs": 16, "valid_fraction": 0.0, "l2": 0.0, "log_every": 8},
    search_space={"rank": SearchRange(4, 32, "log")},
    learns=LEARNED,
    early_stopping=False,
    partitions=True,
)
SOLVERS["gibbs"] = SolverSpec(
    summary="Bayesian matrix factorization by Gibbs sampling: the most accurate, with standard deviations.",
    options=GibbsOptions,
    implementation="mfrec.solvers.gibbs:Gibbs",
    supports=frozenset({"features", "sessions", "partial-tables"}),
    defaults={"rank": 32, "epochs": 400, "valid_fraction": 0.0, "l2": 0.0, "log_every": 5},
    search_space={"rank": SearchRange(8, 64, "log")},
    learns=LEARNED,
    early_stopping=False,
    partitions=True,
)

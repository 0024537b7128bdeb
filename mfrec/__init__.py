"""Matrix factorization for explicit ratings: two sparse products, one objective, every solver.

    import mfrec

    model = mfrec.Recommender("vb").fit(frame)            # columns user, item, rating
    model.recommend(user=15, n=10)

    trained = mfrec.load_run("runs/ml-latest-small-sgd-1")    # a run folder of `mfrec train`
    trained.fold_in_users({"Toy Story (1995)": 5, "Fargo (1996)": 4}).recommend(n=10)

The public names are imported when first used: `import mfrec` alone imports neither torch nor pandas.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mfrec.data.dataset import Dataset
    from mfrec.data.loading import load_dataset
    from mfrec.data.ratings import Ratings
    from mfrec.estimator import Recommender
    from mfrec.experiments.config import ExperimentConfig
    from mfrec.experiments.loop import fit
    from mfrec.experiments.run import load_run
    from mfrec.experiments.training import train
    from mfrec.model.factorization import MatrixFactorization
    from mfrec.model.objective import Objective
    from mfrec.solvers.registry import SOLVERS

# torch's OpenMP threads read this when torch is imported.  By default they spin for milliseconds after an operation, on
# cores that a kernel's threads could use: a sweep of als then takes up to twice as long.  Two processes on the same
# cores slow each other down tenfold.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Where each public name is defined.
_MODULES = {
    "Dataset": "mfrec.data.dataset",
    "ExperimentConfig": "mfrec.experiments.config",
    "MatrixFactorization": "mfrec.model.factorization",
    "Objective": "mfrec.model.objective",
    "Ratings": "mfrec.data.ratings",
    "Recommender": "mfrec.estimator",
    "SOLVERS": "mfrec.solvers.registry",
    "fit": "mfrec.experiments.loop",
    "load_dataset": "mfrec.data.loading",
    "load_run": "mfrec.experiments.run",
    "train": "mfrec.experiments.training",
}

__all__ = [
    "SOLVERS",
    "Dataset",
    "ExperimentConfig",
    "MatrixFactorization",
    "Objective",
    "Ratings",
    "Recommender",
    "fit",
    "load_dataset",
    "load_run",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'mfrec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

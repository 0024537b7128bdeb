"""Matrix factorization for explicit ratings: two sparse products, one objective, every solver.

    import mfrec

    model = mfrec.Recommender("vb").fit(frame)            # columns user, item, rating
    model.recommend(user=15, n=10)

    trained = mfrec.load("runs/ml-latest-small-sgd-1")    # what `mfrec train` left
    trained.fold_in_users({"Toy Story (1995)": 5, "Fargo (1996)": 4}).recommend(n=10)

The parts they are made of are in `mfrec.data`, `mfrec.model`, `mfrec.solvers` and `mfrec.experiments`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from mfrec.estimator import Recommender
    from mfrec.inference.trained_model import Trained

__all__ = ["Recommender", "load"]


def load(run: str | Path, device: torch.device | str = "cpu") -> Trained:
    """What a run folder came to: model, posterior, ids and titles, ready to be asked.

    Raises:
        InputError: it is no run folder, is of another version, or something in it is damaged.
    """
    from mfrec.experiments.run import Run

    return Run.open(run).trained(device)


def __getattr__(name: str) -> Any:
    # Imported when asked for: `mfrec` itself must not import torch before its program has said how threads are to wait.
    if name == "Recommender":
        from mfrec.estimator import Recommender

        return Recommender
    raise AttributeError(f"module 'mfrec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Recommender: training and its answers behind the methods of a scikit-learn estimator.

It holds options and delegates: `fit` is `experiments.training.train`, and everything else is the `TrainedModel`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from mfrec.data.dataset import Dataset
from mfrec.data.ids import Id
from mfrec.data.ratings import Ratings
from mfrec.errors import InputError, unknown
from mfrec.evaluation.metrics import rmse
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.training import VALID_FRACTION, train
from mfrec.inference.trained_model import TrainedModel
from mfrec.options import option_names
from mfrec.solvers.registry import DEFAULT_SOLVER

# The constructor's parameters and their defaults; every other parameter is an option of `ExperimentConfig`.
PARAMETERS = {"solver": DEFAULT_SOLVER, "user": "user", "item": "item", "rating": "rating", "rating_range": None}
# All ratings that `fit` gets are for training and validation; nothing is written.
FIXED = {"test_fraction": 0.0, "run_dir": None, "loggers": ()}


class Recommender:
    """Matrix factorization with the interface of a scikit-learn estimator.

    Args:
        solver: a name in `SOLVERS`.
        user, item, rating: the columns of frames.
        rating_range: lowest and highest possible rating; by default those in the data.
        options: options of the model, the objective and the training, such as rank, l2, epochs, patience or seed,
            and the solver's own, such as lr; see `ExperimentConfig`.  Defaults are those of the solver.  Exceptions:
            device is "cpu"; valid_fraction is 0.05, and 0 for vb and gibbs.

    Attributes:
        trained_: after `fit`, the `TrainedModel` that answers everything else: new users, similar items, reasons.
        progress_: after `fit`, its `Progress`: epochs, seconds and the best validation metric.

    Raises:
        InputError: the solver or an option is unknown, or an option has a value of the wrong type.

    Examples:
        >>> users, items = ["ann", "ann", "bob", "bob", "cem"], ["Alien", "Emma", "Alien", "Jaws", "Emma"]
        >>> frame = pd.DataFrame({"user": users, "item": items, "rating": [5, 1, 5, 5, 2]})
        >>> model = Recommender("als", rank=2, l2=1.0, epochs=5, valid_fraction=0.0).fit(frame)
        >>> jaws, emma = model.predict(pd.DataFrame({"user": ["ann", "bob"], "item": ["Jaws", "Emma"]}))
        >>> bool(jaws > emma)
        True
        >>> model.trained_.recommend("ann", candidates=torch.ones(3, dtype=torch.bool))["id"].tolist()
        ['Jaws']
    """

    def __init__(
        self,
        solver: str = DEFAULT_SOLVER,
        *,
        user: str = "user",
        item: str = "item",
        rating: str = "rating",
        rating_range: tuple[float, float] | None = None,
        **options: Any,
    ) -> None:
        self.solver, self.user, self.item, self.rating, self.rating_range = solver, user, item, rating, rating_range
        self.options = options
        self._config()  # raises for unknown options

    def __repr__(self) -> str:
        params = self.get_params().items()
        shown = [f"{name}={value!r}" for name, value in params if name not in PARAMETERS or value != PARAMETERS[name]]
        return f"Recommender({', '.join(shown)})"

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's parameters and the options that were set, by name; `deep` has no effect."""
        return {name: getattr(self, name) for name in PARAMETERS} | self.options

    def set_params(self, **params: Any) -> Recommender:
        """Change parameters and options.

        Raises:
            InputError: one is unknown or has a value of the wrong type; nothing is changed.
        """
        changed = type(self)(**(self.get_params() | params))
        for name in PARAMETERS:
            setattr(self, name, getattr(changed, name))
        self.options = changed.options
        return self

    def fit(self, X: pd.DataFrame | Dataset | Ratings, y: Any = None) -> Recommender:
        """Train on a frame with one row per rating, on ratings, or on a dataset.

        Args:
            y: the ratings, if they are not a column of the frame.

        Raises:
            InputError: X has an unsupported type, an option is out of range, or the frame, the model or the solver
                is refused.
        """
        result = train(self._config(), self._dataset(X, y), loggers=())
        self.trained_, self.progress_ = result.trained_model(), result.progress
        return self

    def predict(self, X: pd.DataFrame) -> npt.NDArray[np.float64]:
        """(n,) predicted ratings of a frame's (user, item) pairs; ids without training ratings are allowed.

        Raises:
            InputError: the recommender is not fitted, or the frame lacks a column or an id.
        """
        predicted = self._fitted().predict_frame(X, user=self.user, item=self.item)
        return predicted["prediction"].to_numpy(np.float64)

    def score(self, X: pd.DataFrame, y: Any = None) -> float:
        """−RMSE of the predictions, so that higher is better; y: the ratings, if they are not a column of the frame."""
        ratings = torch.from_numpy(np.array(X[self.rating] if y is None else y, dtype=np.float64))
        return -rmse(torch.from_numpy(self.predict(X)), ratings)

    def recommend(self, user: Id, n: int = 10, **options: Any) -> pd.DataFrame:
        """The n best items that the user has not rated; options are those of `TrainedModel.recommend`.

        Raises:
            InputError: the recommender is not fitted, or `TrainedModel.recommend` refuses an option.
        """
        return self._fitted().recommend(user, n, **options)

    def _fitted(self) -> TrainedModel:
        trained: TrainedModel | None = getattr(self, "trained_", None)
        if trained is None:
            raise InputError("this Recommender is not fitted; call fit with ratings first")
        return trained

    def _dataset(self, X: pd.DataFrame | Dataset | Ratings, y: Any) -> Dataset:
        if isinstance(X, Dataset):
            return X
        if isinstance(X, Ratings):
            users, items = (pd.DataFrame(index=pd.RangeIndex(n)) for n in (X.n_users, X.n_items))
            user_ids, item_ids = (pd.Index(np.arange(n)) for n in (X.n_users, X.n_items))
            rating_range = self.rating_range or (float(X.values.min()), float(X.values.max()))
            return Dataset("ratings", X, user_ids, item_ids, users, items, rating_range)
        if not isinstance(X, pd.DataFrame):
            raise InputError(f"X must be a DataFrame, Ratings or Dataset (got {type(X).__name__})")
        frame = X if y is None else X.assign(**{self.rating: np.asarray(y)})
        return Dataset.from_frame(frame, self.user, self.item, self.rating, rating_range=self.rating_range)

    def _config(self) -> ExperimentConfig:
        """The configuration of the training; its ranges are checked by `train`.

        Raises:
            InputError: the solver or an option is unknown, or an option has a value of the wrong type.
        """
        config = ExperimentConfig.create(self.solver)
        groups = (config.options, config.model, config.objective, config.fit)
        allowed = [name for group in groups for name in option_names(type(group))] + ["valid_fraction"]
        for name in self.options:
            if name not in allowed:
                raise unknown("option", name, [*PARAMETERS, *allowed], f"the options of {self.solver}")
        # A grid search may try numpy's numbers.
        options = {k: v.item() if isinstance(v, np.generic) else v for k, v in self.options.items()}
        config = config.updated(**{"device": "cpu"} | options | FIXED)
        return config if config.data.valid_fraction is not None else config.updated(valid_fraction=VALID_FRACTION)

    def __sklearn_tags__(self) -> Any:
        from sklearn.base import BaseEstimator  # called by scikit-learn only, so that it is installed

        return BaseEstimator().__sklearn_tags__()

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "trained_")

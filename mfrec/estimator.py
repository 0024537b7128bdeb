"""Recommender: a solver, its model and its fit behind the methods that scikit-learn's users know.

It holds options and delegates: `fit` is `make_solver` and `fit.fit`, all that is asked afterwards `trained.Trained`.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from mfrec.data.dataset import Dataset
from mfrec.data.ids import Id
from mfrec.data.parsing import Scale
from mfrec.data.ratings import Ratings, random_split
from mfrec.errors import InputError, unknown
from mfrec.evaluation.metrics import rmse
from mfrec.experiments.loop import answer, fit, posterior_of
from mfrec.experiments.training import TRAIN, VALID, make_solver
from mfrec.inference.trained_model import Trained
from mfrec.solvers.base import DEFAULT, SOLVERS

# What `make_solver` takes beside the solver's own knobs.
MODEL_OPTIONS = {
    name: parameter.default
    for name, parameter in inspect.signature(make_solver).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name != "generator"
}
USUAL = {"epochs": 100, "patience": 8, "valid_fraction": 0.05}


class Recommender:
    """Matrix factorization in scikit-learn's manner.

    Args:
        solver: a name in `SOLVERS`.
        epochs, patience, valid_fraction: as in `fit.fit`, and the share held out to know when to stop; by default what
            suits the solver, or else 100, 8 and 0.05.
        seed: of the validation part, the start and the solver.
        device: where to compute.
        user, item, rating: the columns of frames.
        scale: lowest and highest possible rating; by default as found.
        options: of `make_solver`, such as rank, l2, implicit or item_features, and the solver's own, such as lr; by
            default what suits the solver.

    Attributes:
        trained_: after `fit`, the `Trained` that answers everything else: new users, similar items, reasons.
        progress_: after `fit`, its `Progress`: epochs, seconds and the best validation RMSE.

    Raises:
        InputError: there is no such solver, or it takes no such option.

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
        solver: str = DEFAULT,
        *,
        epochs: int | None = None,
        patience: int | None = None,
        valid_fraction: float | None = None,
        seed: int = 0,
        device: str = "cpu",
        user: str = "user",
        item: str = "item",
        rating: str = "rating",
        scale: Scale | None = None,
        **options: Any,
    ) -> None:
        self.solver, self.epochs, self.patience, self.valid_fraction = solver, epochs, patience, valid_fraction
        self.seed, self.device, self.user, self.item, self.rating, self.scale = seed, device, user, item, rating, scale
        self.options = options
        self._check()

    def __repr__(self) -> str:
        given = [f"{name}={value!r}" for name, value in self.get_params().items() if value != self._default(name)]
        return f"Recommender({', '.join(given)})"

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """All options by name; `deep` is scikit-learn's, and changes nothing."""
        return {name: getattr(self, name) for name in self._own()} | self.options

    def set_params(self, **params: Any) -> Recommender:
        """Change options.

        Raises:
            InputError: there is no such option; nothing is changed then.
        """
        changed = type(self)(**(self.get_params() | params))
        for name in self._own():
            setattr(self, name, getattr(changed, name))
        self.options = changed.options
        return self

    def fit(self, X: pd.DataFrame | Dataset | Ratings, y: Any = None) -> Recommender:
        """Train on a frame with a row a rating, or on a dataset or ratings as they are.

        Args:
            y: the ratings, where the frame has them not.

        Raises:
            InputError: X is nothing of these, or `Dataset.from_frame`, the model, the solver or the fit refuse it.
        """
        dataset = self._dataset(X, y)
        generator = torch.Generator().manual_seed(self.seed)
        part = torch.full((len(dataset.ratings),), TRAIN, dtype=torch.uint8)
        part[random_split(dataset.ratings, self._suited("valid_fraction"), generator)] = VALID
        ratings, options = dataset.ratings.to(self.device), self._chosen()
        train, valid = ratings.split(part.to(ratings.device) == VALID)
        solver = make_solver(self.solver, dataset, train, generator=generator, **options)
        epochs, patience = self._suited("epochs"), self._suited("patience")
        self.progress_ = fit(solver, valid if len(valid) else None, epochs=epochs, patience=patience)
        known = {
            name: options.get(name, MODEL_OPTIONS[name]) for name in ("implicit", "user_features", "item_features")
        }
        self.trained_ = Trained(
            self.solver,
            answer(solver),
            dataset,
            part,
            solver.objective,
            posterior_of(solver),
            damping=options.get("damping", MODEL_OPTIONS["damping"]),
            **known,
        )
        return self

    def predict(self, X: pd.DataFrame) -> npt.NDArray[np.float64]:
        """(n,) predicted ratings of a frame's pairs, in stars, with unknown ids by the rule of `trained.py`.

        Raises:
            InputError: nothing was fitted, or the frame lacks a column or an id.
        """
        found = self._fitted().predict_frame(X, user=self.user, item=self.item)
        return found["prediction"].to_numpy(np.float64)

    def score(self, X: pd.DataFrame, y: Any = None) -> float:
        """−RMSE of the predictions, in stars, so that more is better; y: the ratings, where the frame has them not."""
        truth = torch.from_numpy(np.array(X[self.rating] if y is None else y, dtype=np.float64))
        return -rmse(torch.from_numpy(self.predict(X)), truth)

    def recommend(self, user: Id, n: int = 10, **options: Any) -> pd.DataFrame:
        """The n best items that the user has not rated, as `Trained.recommend` gives them, which takes the options.

        Raises:
            InputError: nothing was fitted, or as of `Trained.recommend`.
        """
        return self._fitted().recommend(user, n, **options)

    def _fitted(self) -> Trained:
        trained: Trained | None = getattr(self, "trained_", None)
        if trained is None:
            raise InputError("this Recommender has not been fitted; call fit with ratings first")
        return trained

    def _dataset(self, X: pd.DataFrame | Dataset | Ratings, y: Any) -> Dataset:
        if isinstance(X, Dataset):
            return X
        if not isinstance(X, pd.DataFrame | Ratings):
            raise InputError(f"ratings are a frame, Ratings or a Dataset, not a {type(X).__name__}; make them one")
        if isinstance(X, Ratings):
            users, items = (pd.DataFrame(index=pd.RangeIndex(n)) for n in (X.n_users, X.n_items))
            user_ids, item_ids = (pd.Index(np.arange(n)) for n in (X.n_users, X.n_items))
            scale = self.scale or (float(X.values.min()), float(X.values.max()))
            return Dataset("ratings", X, user_ids, item_ids, users, items, scale)
        frame = X if y is None else X.assign(**{self.rating: np.asarray(y)})
        return Dataset.from_frame(frame, self.user, self.item, self.rating, scale=self.scale)

    def _suited(self, name: str) -> Any:
        """What was given, or suits the solver, or else is usual."""
        given = getattr(self, name)
        return getattr(SOLVERS[self.solver], "defaults", {}).get(name, USUAL[name]) if given is None else given

    def _chosen(self) -> dict[str, Any]:
        """What was given, and what suits the solver where nothing was."""
        defaults = getattr(SOLVERS[self.solver], "defaults", {})
        return {name: value for name, value in defaults.items() if name in MODEL_OPTIONS} | self.options

    def _own(self) -> list[str]:
        named = inspect.signature(type(self)).parameters.values()
        return [parameter.name for parameter in named if parameter.kind is not parameter.VAR_KEYWORD]

    def _default(self, name: str) -> Any:
        parameter = inspect.signature(type(self)).parameters.get(name)
        return parameter.default if parameter is not None else inspect.Parameter.empty

    def _check(self) -> None:
        if self.solver not in SOLVERS:
            raise unknown("solver", self.solver, SOLVERS)
        knobs = [name for name in inspect.signature(SOLVERS[self.solver]).parameters if name != "generator"][3:]
        for name in self.options:
            if name in getattr(SOLVERS[self.solver], "learned", ()):
                raise InputError(f"{self.solver} needs no {name}: it finds that out by itself; leave it out")
            if name not in (*MODEL_OPTIONS, *knobs):
                raise unknown(f"option of {self.solver}", name, [*self._own(), *MODEL_OPTIONS, *knobs])

    def __sklearn_tags__(self) -> Any:
        # Asked for by scikit-learn alone, which is then there to answer.
        from sklearn.base import BaseEstimator

        return BaseEstimator().__sklearn_tags__()

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "trained_")

"""Quasi-Newton methods: scipy's optimizers on the flattened tables, with the hand-derived gradient.

All parameters become one vector z in float64, and scipy.optimize.minimize lowers J(z) given ∂J/∂z:

    "l-bfgs-b"   limited-memory BFGS (Byrd, Lu, Nocedal & Zhu 1995)
    "cg"         nonlinear conjugate gradients, Polak–Ribière (one of the two texts trains this way)
    "tnc"        truncated Newton (Nash 1984)
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import scipy.optimize
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError, unknown
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective

# scipy's name, and how it calls the bound on iterations (TNC counts evaluations instead).
METHODS = {"l-bfgs-b": ("L-BFGS-B", "maxiter"), "cg": ("CG", "maxiter"), "tnc": ("TNC", "maxfun")}


class QuasiNewton:
    """Quasi-Newton or conjugate gradients, by scipy.

    In float64.  An epoch is a run of a few iterations, which starts the method anew from the tables as they are: they
    are all its state.

    Args:
        method: l-bfgs-b, cg or tnc.
        iterations: iterations an epoch; evaluations for tnc.

    Raises:
        InputError: the method is unknown, iterations are below 1, or cg is to keep factors non-negative.
    """

    space: ClassVar[dict[str, tuple[float, float, str]]] = {"l2": (0.1, 10.0, "log"), "rank": (4, 128, "log")}
    takes: ClassVar[tuple[str, ...]] = ("features", "non-negative", "losses")
    defaults: ClassVar[dict[str, Any]] = {"epochs": 60, "patience": 4}

    def __init__(
        self,
        model: MatrixFactorization,
        ratings: Ratings,
        objective: Objective,
        *,
        generator: torch.Generator | None = None,
        method: Literal["l-bfgs-b", "cg", "tnc"] = "l-bfgs-b",
        iterations: int = 10,
    ) -> None:
        if method not in METHODS:
            raise unknown("method", method, METHODS)
        if iterations < 1:
            raise InputError(f"iterations {iterations} leave nothing to do; give 1 or more")
        if model.nonnegative and method == "cg":
            raise InputError("method cg knows no bounds, so not non-negative factors; use l-bfgs-b or tnc")
        self.model, self.ratings, self.objective = model, ratings, objective
        self.double_ratings = ratings.to(dtype=torch.float64)
        self.double = copy.deepcopy(model).double()
        self.method, self.iterations = method, iterations

    @torch.no_grad()
    def epoch(self) -> dict[str, float]:
        parameters = list(self.double.parameters())
        for own, given in zip(parameters, self.model.parameters(), strict=True):
            own.copy_(given)

        def cost_and_gradient(z: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
            vector_to_parameters(torch.from_numpy(z).to(self.ratings.device), parameters)
            cost, gradients = self.objective.cost_and_gradients(self.double, self.double_ratings)
            names = (name for name, _ in self.double.named_parameters())
            flat: npt.NDArray[np.float64] = torch.cat([gradients[name].reshape(-1) for name in names]).cpu().numpy()
            return float(cost), flat

        method, bound = METHODS[self.method]
        found = scipy.optimize.minimize(
            cost_and_gradient,
            parameters_to_vector(parameters).cpu().numpy(),
            jac=True,
            method=method,
            bounds=self._bounds(),
            # An epoch ends with its iterations: when to stop is for fit to say, not for scipy's tolerances.
            tol=1e-14,
            options={bound: self.iterations},
        )
        vector_to_parameters(torch.from_numpy(found.x).to(self.ratings.device), parameters)
        for given, own in zip(self.model.parameters(), parameters, strict=True):
            given.copy_(own)
        return {"evaluations": float(found.nfev)}

    def _bounds(self) -> scipy.optimize.Bounds | None:
        """Factors at 0 or above, biases anywhere, where the model is non-negative."""
        if not self.model.nonnegative:
            return None
        low = [np.full(p.numel(), 0.0 if "_factors." in n else -np.inf) for n, p in self.model.named_parameters()]
        return scipy.optimize.Bounds(np.concatenate(low), np.inf)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

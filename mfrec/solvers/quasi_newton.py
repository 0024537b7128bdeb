"""Quasi-Newton methods: scipy's optimizers on the flattened parameters, with the hand-derived gradient.

All parameters become one vector z in float64, and scipy.optimize.minimize lowers J(z) given ∂J/∂z:

    "l-bfgs-b"   limited-memory BFGS (Byrd, Lu, Nocedal & Zhu 1995)
    "cg"         nonlinear conjugate gradients, Polak–Ribière
    "tnc"        truncated Newton (Nash 1984)
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from mfrec.errors import OptionError
from mfrec.model.session_biases import SESSION_BIAS
from mfrec.solvers.base import Solver
from mfrec.solvers.registry import QuasiNewtonOptions

if TYPE_CHECKING:
    import scipy.optimize

# scipy's name of a method, and of its bound on iterations (TNC counts evaluations instead).
METHODS = {"l-bfgs-b": ("L-BFGS-B", "maxiter"), "cg": ("CG", "maxiter"), "tnc": ("TNC", "maxfun")}


class QuasiNewton(Solver):
    """A quasi-Newton or conjugate-gradient method in float64.

    An epoch runs a few iterations, starting the method anew from the model's parameters, which are its only state.

    Raises:
        InputError: method cg is asked for non-negative factors.
    """

    options: QuasiNewtonOptions

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if self.model.nonnegative and self.options.method == "cg":
            raise OptionError(
                "method", "cg does not support bounds, which non-negative factors need; use l-bfgs-b or tnc"
            )
        self.double_ratings = self.ratings.to(dtype=torch.float64)
        self.double = copy.deepcopy(self.model).double()
        # Factors before biases: then the factors' bounds are the head of the vector.
        self.factor_names = [term.factors for term in self.model.all_terms]
        self.names = self.factor_names + [term.bias for term in self.model.all_terms if term.bias is not None]
        self.names += [] if self.model.sessions is None else [SESSION_BIAS]

    @torch.no_grad()
    def epoch(self) -> dict[str, float]:
        import scipy.optimize  # a quarter of a second that the other solvers need not wait for

        parameters = [self.double.get_parameter(name) for name in self.names]
        originals = [self.model.get_parameter(name) for name in self.names]
        for double, original in zip(parameters, originals, strict=True):
            double.copy_(original)

        def cost_and_gradient(z: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
            vector_to_parameters(torch.from_numpy(z).to(self.ratings.device), parameters)
            cost, gradients = self.objective.cost_and_gradients(self.double, self.double_ratings)
            flat: npt.NDArray[np.float64] = (
                torch.cat([gradients[name].reshape(-1) for name in self.names]).cpu().numpy()
            )
            return float(cost), flat

        method, bound = METHODS[self.options.method]
        result = scipy.optimize.minimize(
            cost_and_gradient,
            parameters_to_vector(parameters).cpu().numpy(),
            jac=True,
            method=method,
            bounds=self._bounds(),
            # An epoch ends with its iterations: early stopping decides when to stop, not scipy's tolerances.
            tol=1e-14,
            options={bound: self.options.iterations, **self._inner_steps()},
        )
        vector_to_parameters(torch.from_numpy(result.x).to(self.ratings.device), parameters)
        for original, double in zip(originals, parameters, strict=True):
            original.copy_(double)
        return {"evaluations": float(result.nfev)}

    def _inner_steps(self) -> dict[str, int]:
        """At most half of an epoch's evaluations on the direction of a TNC step, so that an epoch makes one step."""
        return {"maxCGit": max(1, self.options.iterations // 2)} if self.options.method == "tnc" else {}

    def _bounds(self) -> scipy.optimize.Bounds | None:
        """0 for factors and none for biases, if the model is non-negative."""
        if not self.model.nonnegative:
            return None
        import scipy.optimize

        sizes = {name: self.model.get_parameter(name).numel() for name in self.names}
        lower = [np.full(size, 0.0 if name in self.factor_names else -np.inf) for name, size in sizes.items()]
        return scipy.optimize.Bounds(np.concatenate(lower), np.inf)

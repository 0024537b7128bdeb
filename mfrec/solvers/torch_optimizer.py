"""Any optimizer of torch.optim, on all ratings at once, with the hand-derived gradient."""

from __future__ import annotations

import copy
from typing import Any

import torch

from mfrec.errors import unknown
from mfrec.solvers.base import Solver
from mfrec.solvers.registry import TorchOptimizerOptions
from mfrec.sums import torch_threads

# They need sparse gradients, or do not work for every parameter on their own.
EXCLUDED = {"optimizer", "sparseadam", "muon"}


class TorchOptimizer(Solver):
    """A torch optimizer; an epoch is one step.

    Autograd differentiates J, whose backward pass is the hand-derived gradient: a step costs as much as one of `gd`.

    Raises:
        InputError: torch has no such optimizer for dense gradients.
    """

    options: TorchOptimizerOptions

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        classes = {name.lower(): value for name, value in vars(torch.optim).items() if isinstance(value, type)}
        classes = {name: value for name, value in classes.items() if name not in EXCLUDED}
        name = self.options.optimizer.lower()
        if name not in classes:
            raise unknown("optimizer", self.options.optimizer, classes)
        self.optimizer: torch.optim.Optimizer = classes[name](self.model.parameters(), lr=self.options.lr)

    def epoch(self) -> dict[str, float]:
        threads = torch.get_num_threads()

        def closure() -> torch.Tensor:
            with torch_threads(threads):
                self.optimizer.zero_grad()
                cost = self.objective(self.model, self.ratings)
                cost.backward()
            # As a number, a GPU would have to be waited for.
            return cost.detach()

        # L-BFGS sums over all parameters.
        with torch_threads(1 if isinstance(self.optimizer, torch.optim.LBFGS) else threads):
            self.optimizer.step(closure)  # type: ignore[arg-type]
        self.model.project()
        return {"lr": self.options.lr}

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # torch would step with the caller's tensors.
        self.optimizer.load_state_dict(copy.deepcopy(state))

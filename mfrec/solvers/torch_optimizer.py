"""Any optimizer of torch.optim, on all ratings at once, with the hand-derived gradient."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from mfrec.errors import OptionError, unknown
from mfrec.model.entity import entity_of
from mfrec.model.partial_state import TableMap
from mfrec.solvers.base import Solver
from mfrec.solvers.registry import TorchOptimizerOptions
from mfrec.sums import torch_threads

# They need sparse gradients, or do not work for every parameter on their own.
EXCLUDED = {"optimizer", "sparseadam", "muon"}
# They step each number on its own, so that a process with partial tables needs no other rows.
ELEMENTWISE = {
    "adadelta", "adagrad", "adam", "adamax", "adamw", "asgd", "nadam", "radam", "rmsprop", "rprop", "sgd",
}  # fmt: skip


class TorchOptimizer(Solver):
    """A torch optimizer; an epoch is one step.

    Autograd differentiates J, whose backward pass is the hand-derived gradient: a step costs as much as one of `gd`.

    Raises:
        InputError: torch has no such optimizer for dense gradients, or tables are partial and it is not elementwise.
    """

    options: TorchOptimizerOptions

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        classes = {name.lower(): value for name, value in vars(torch.optim).items() if isinstance(value, type)}
        classes = {name: value for name, value in classes.items() if name not in EXCLUDED}
        name = self.options.optimizer.lower()
        if name not in classes:
            raise unknown("optimizer", self.options.optimizer, classes)
        if self.ratings.held_rows is not None and name not in ELEMENTWISE:
            raise OptionError("optimizer", f"must be elementwise with partial tables (got {name}); use adam")
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

    def map_tables(self, state: Mapping[str, Any], change: TableMap) -> dict[str, Any]:
        entities = [entity_of(name) for name, _ in self.model.named_parameters()]

        def changed(parameter: int, value: Any) -> Any:
            entity = entities[parameter]
            return change(entity, value) if entity is not None and torch.is_tensor(value) and value.ndim else value

        states = {
            n: {name: changed(n, value) for name, value in values.items()} for n, values in state["state"].items()
        }
        return {**state, "state": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # torch would step with the caller's tensors.
        self.optimizer.load_state_dict(copy.deepcopy(state))

"""Gradient descent on all ratings at once.

X ← X − α ∂J/∂X,  Θ ← Θ − α ∂J/∂Θ           both from the same X and Θ
"""

from __future__ import annotations

import torch

from mfrec.solvers.base import Solver
from mfrec.solvers.registry import GradientDescentOptions


class GradientDescent(Solver):
    """Gradient descent; an epoch is one step of size α along the negative gradient of J.

    Examples:
        >>> from mfrec.data.ratings import Ratings
        >>> from mfrec.model.factorization import MatrixFactorization
        >>> from mfrec.model.objective import Objective
        >>> from mfrec.solvers.registry import SOLVERS
        >>> ratings = Ratings(torch.tensor([0]), torch.tensor([0]), torch.tensor([5.0]))
        >>> model = MatrixFactorization(n_users=1, n_items=1, rank=1, biases=False, init="zeros")
        >>> _ = torch.nn.init.constant_(model.item_factors.weight, 2.0)
        >>> solver = SOLVERS["gd"](model, ratings, Objective(), lr=0.1)
        >>> solver.epoch()["lr"]
        0.1
        >>> model.user_factors.weight.tolist()  # θ − α e x with θ = 0, x = 2 and e = 0·2 − 5
        [[1.0]]
        >>> model.item_factors.weight.tolist()  # x − α e θ, from the same θ
        [[2.0]]
    """

    options: GradientDescentOptions

    @torch.no_grad()
    def epoch(self) -> dict[str, float]:
        gradients = self.objective.gradients(self.model, self.ratings)
        for name, parameter in self.model.named_parameters():
            parameter.sub_(gradients[name], alpha=self.options.lr)
        self.model.project()
        return {"lr": self.options.lr}

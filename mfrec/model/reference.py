"""The textbook's plain loops for the cost and its gradients: the definition that tests compare the fast form with."""

from __future__ import annotations

import torch

from mfrec.data.ratings import Ratings
from mfrec.model.factorization import MatrixFactorization


def naive_cost_and_gradients(
    model: MatrixFactorization, ratings: Ratings, l2: float
) -> tuple[float, dict[str, list[list[float]]]]:
    """J and its gradients by plain loops: for every movie i, for every user j, if a rating exists.

    The loss is the squared error, λ is per row and the same for all parameters, and weights of ratings are ignored.
    """
    U, V = (factors.tolist() for factors in model.augmented_factors())
    target = model.targets(ratings)
    Y = dict(zip(zip(ratings.items.tolist(), ratings.users.tolist(), strict=True), target.tolist(), strict=True))
    J, dU, dV = 0.0, [[0.0] * len(U[0]) for _ in U], [[0.0] * len(V[0]) for _ in V]
    for i in range(len(V)):
        for j in range(len(U)):
            if (i, j) not in Y:
                continue
            e = sum(a * b for a, b in zip(U[j], V[i], strict=True)) - Y[i, j]
            J += 0.5 * e * e
            for k in range(len(U[j])):
                dU[j][k] += e * V[i][k]
                dV[i][k] += e * U[j][k]
    gradients = {}
    factor_gradients = (torch.tensor(dU, dtype=torch.float64), torch.tensor(dV, dtype=torch.float64))
    for name, columns in model.gradients(*factor_gradients).items():
        parameter = model.get_parameter(name).tolist()
        J += 0.5 * l2 * sum(p * p for row in parameter for p in row)
        pairs = zip(columns.tolist(), parameter, strict=True)
        gradients[name] = [[g + l2 * p for g, p in zip(*rows, strict=True)] for rows in pairs]
    return J, gradients

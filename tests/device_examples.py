"""Training and posteriors that give the same numbers on all devices, and where an epoch may wait for a GPU."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from conftest import features_of
from fake_device import FakeTensor
from posterior_examples import EXAMPLES, OBJECTIVE, a_model, ratings_of, seeded
from session_examples import with_times
from torch import Tensor

from mfrec.data.sessions import Sessions
from mfrec.inference.fold_in import fold_in_items, fold_in_users
from mfrec.inference.top_k import top_k
from mfrec.model.factorization import MatrixFactorization
from mfrec.posteriors.base import Posterior
from mfrec.posteriors.registry import posterior_from_state
from mfrec.solvers.base import Solver
from mfrec.solvers.registry import SOLVERS

NAMES = [name for name, spec in SOLVERS.items() if not spec.cpu_only]
# Enough for vb to learn its noise.
EPOCHS = 7
# The chain's third sweep keeps its first draw.
OPTIONS = {"gibbs": {"burn_in": 2}}
# The lines of an epoch that wait, by how they begin, and how often; all others may not.
WAITS: dict[str, Counter[str]] = {
    "vb": Counter({"variational.py: α, expected, log_weights, *others = parts.tolist()": 1}),
    "gibbs": Counter({"gibbs_chain.py: return float(self._gamma(": 1, "gibbs.py: self.traces.draws.append(": 1}),
}
# Solvers whose control flow runs on the CPU and depends on the numbers: scipy's methods, and the Newton steps of the
# cutpoints; and those that read the columns to solve, or repeat a factorization if it fails.
BY_NUMBERS = {"quasi-newton", "gibbs ordinal", "als cholesky", "als non-negative"}


def features() -> dict[str, Any]:
    F = torch.rand(8, 4, generator=seeded(3), dtype=torch.float64)
    return {
        "user_features": {"a": features_of(torch.where(F > 0.4, F, 0)[:6])},
        "item_features": {"b": features_of(torch.where(F > 0.6, F, 0))},
    }


# Options of the model, and of the solver that the name begins with.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {name: ({}, {}) for name in NAMES}
CASES |= {
    f"{name} {capability}": (model, {})
    for name in NAMES
    for capability, model in (("features", features()), ("non-negative", {"nonnegative": True}), ("sessions", {}))
    if capability in SOLVERS[name].supports
}
CASES |= {
    "block-sgd adagrad": ({}, {"step": "adagrad", "momentum": 0.5}),
    "block-sgd plain": ({"biases": False}, {"step": "plain"}),
    "als cholesky": ({}, {"solve": "cholesky"}),
    "als item offsets": ({"offset": "item"}, {}),
    "gibbs homoscedastic": ({}, {"homoscedastic": True}),
    "gibbs ordinal": ({}, {"likelihood": "ordinal"}),
    "gibbs two chains": ({}, {"chains": 2}),
}


def waits_by_numbers(case: str) -> bool:
    """Whether an epoch of a case waits as often as its numbers demand."""
    return case in BY_NUMBERS or case.split()[0] in BY_NUMBERS


def started(case: str, device: torch.device | None = None, dtype: torch.dtype = torch.float64) -> Solver:
    """A solver before its first epoch."""
    (model_options, options), name = CASES[case], case.split()[0]
    ratings = ratings_of(6, 8)
    if case.endswith("sessions"):
        ratings = with_times(ratings)
        model_options = model_options | {"sessions": Sessions(ratings, (0, 5))}
    model = MatrixFactorization.from_ratings(ratings, 2, generator=seeded(1), **model_options)
    model, ratings = model.to(device, dtype), ratings.to(device, dtype)
    return SOLVERS[name](model, ratings, OBJECTIVE, generator=seeded(2), **OPTIONS.get(name, {}), **options)


def trained(
    case: str, device: torch.device | None = None, dtype: torch.dtype = torch.float64, epochs: int = EPOCHS - 1
) -> Solver:
    """A solver after some epochs."""
    solver = started(case, device, dtype)
    for _ in range(epochs):
        solver.epoch()
    return solver


def on_cpu(value: Tensor) -> Tensor:
    """A tensor of any device, on the CPU."""
    value = value.detach()
    return value.on_cpu if isinstance(value, FakeTensor) else value.cpu()


def state_of(model: MatrixFactorization) -> dict[str, Tensor]:
    """The parameters and buffers, on the CPU."""
    return {name: on_cpu(value) for name, value in model.state_dict().items()}


def answers(posterior: Posterior) -> list[Tensor]:
    """Predictions and lists, and if the posterior has them, standard deviations and the predictions of a sample."""
    model, device = posterior.mean_model(), posterior.model.device
    pairs = torch.cartesian_prod(torch.arange(model.n_users), torch.arange(model.n_items))
    users, items = pairs.T.to(device)
    tensors = [model.predict(users, items, clip=True), *top_k(model, torch.arange(model.n_users), 3)]
    if posterior.has_std:
        tensors += [posterior.std(users, items), posterior.sample(seeded(4)).predict(users, items)]
    return [on_cpu(tensor) for tensor in tensors]


def moved(posterior: Posterior, device: torch.device) -> Posterior:
    """The posterior as a run on another device has it."""
    return posterior_from_state(posterior.state_dict(), copy.deepcopy(posterior.model).to(device), OBJECTIVE)


def folded_answers(kind: str, entity: str, device: torch.device | None = None) -> list[Tensor]:
    """The answers of a posterior after rows were folded in, on a device, by default the CPU."""
    fold_in = fold_in_users if entity == "users" else fold_in_items
    posterior, ratings = EXAMPLES[kind](a_model()), ratings_of(*((3, 8) if entity == "users" else (6, 3)), seed=7)
    # New ratings come from the CPU, wherever the model is.
    return answers(fold_in(posterior if device is None else moved(posterior, device), ratings, generator=seeded(5)))

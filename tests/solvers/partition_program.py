"""What each process of `test_partitioned_solvers.py` does: it trains every case, and saves what came out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from solver_suite import Case, option_cases, planted_ratings
from torch import Tensor

from mfrec.data.features import Features
from mfrec.data.partition import partitioned_splits
from mfrec.data.ratings import Ratings
from mfrec.data.splits import SPLIT_NAMES, split_by_labels
from mfrec.data.synthetic import synthetic
from mfrec.errors import InputError
from mfrec.evaluation.metrics import evaluate
from mfrec.evaluation.monitors import monitor
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.loggers import Logger
from mfrec.experiments.loop import Epoch
from mfrec.experiments.run import Run
from mfrec.experiments.training import train
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.losses import LOSSES
from mfrec.model.objective import Objective
from mfrec.model.partial_state import gathering, map_model_state
from mfrec.posteriors.predictive import predictive_model
from mfrec.processes import Processes
from mfrec.solvers.base import Solver
from mfrec.solvers.registry import SOLVERS

EPOCHS = 3


def kinds(n_rows: int) -> Features:
    """Rows of three kinds, and of none."""
    rows = torch.arange(n_rows)
    rows = rows[rows % 4 > 0]
    return Features.from_entries(rows, rows % 4 - 1, 0.5 + rows % 5 / 10, n_rows, ["1", "2", "3"])


# Named by what differs from the options of the model and of the objective.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "": ({}, {}),
    "item-offset": ({"offset": "item"}, {}),
    "no-biases": ({"biases": False, "offset": "none"}, {}),
    "nonnegative": ({"nonnegative": True}, {}),
    "log-cosh": ({}, {"loss": LOSSES["log-cosh"]}),
    "weights": ({}, {}),
    "features": ({"user_features": {"kind": kinds(120)}, "item_features": {"kind": kinds(80)}}, {}),
}
# Options of the runs that are saved.  The draws of gibbs are enough for their mean to be cut.
SAVED: dict[str, dict[str, Any]] = {
    "als": {"offset": "item"},
    "optim": {},
    "vb": {},
    "gibbs": {"burn_in": 1, "chains": 2},
}


def cases() -> Iterator[tuple[str, Case, str]]:
    """A name, a case, and a variant: every option of each solver, and every variant with its defaults."""
    for case in option_cases(*(name for name, spec in SOLVERS.items() if spec.partitions)):
        if case.options.get("likelihood") != "ordinal":
            yield str(case), case, ""
    for variant in VARIANTS:
        for name, spec in SOLVERS.items():
            needs = {"nonnegative": "non-negative", "log-cosh": "losses", "features": "features"}.get(variant)
            is_refused = (name, variant) == ("block-sgd", "features")
            if spec.partitions and variant and (needs is None or needs in spec.supports) and not is_refused:
                yield f"{name} {variant}", Case(name, {}), variant


def built(case: Case, variant: str, train: Ratings) -> Solver:
    """The solver of a case at the start of training."""
    model_options, objective_options = VARIANTS[variant]
    generator = torch.Generator().manual_seed(1)
    model = MatrixFactorization.from_ratings(train, 3, rating_range=(1, 5), generator=generator, **model_options)
    objective = Objective(0.1, 0.2, "sqrt", **objective_options)
    generator = torch.Generator().manual_seed(2)
    return SOLVERS[case.solver](model, train, objective, generator=generator, **case.options)


def outcome(solver: Solver, train: Ratings, valid: Ratings) -> dict[str, Any]:
    """The parameters after some epochs, and what was measured."""
    solver.plan(EPOCHS)
    for _ in range(EPOCHS):
        values = solver.epoch()
    model = predictive_model(solver.inference(), train)
    measured = {f"valid {name}": value for name, value in evaluate(model, valid, solver.objective).items()}
    measured |= {f"train {name}": value for name, value in evaluate(solver.model, train, solver.objective).items()}
    if train.held_rows is None:
        measured["ndcg"] = monitor("ndcg@5").value(model, train, valid, {})
    parameters = {name: parameter.detach().clone() for name, parameter in solver.model.named_parameters()}
    return {"parameters": parameters, "measured": {**measured, **values}, "rows": len(train)}


def labelled_ratings(is_weighted: bool) -> tuple[Ratings, Tensor]:
    """Ratings, most of them of users and items from the same range, and the split of each.

    So a process does not need all rows.  A user has validation ratings only.
    """
    ratings = planted_ratings()[0].to(dtype=torch.float64)
    if is_weighted:
        ratings.weights = 0.5 + torch.rand(len(ratings), generator=torch.Generator().manual_seed(3)).double()
    ratings = ratings.select((ratings.users // 30 == ratings.items // 20) | (torch.arange(len(ratings)) % 40 == 0))
    return ratings, ((torch.arange(len(ratings)) % 7 == 0) | (ratings.users == 5)).to(torch.uint8)


def trained(processes: Processes | None) -> Mapping[str, dict[str, Any]]:
    """The outcome of every case, in one process or as one of several."""
    torch.set_num_threads(1)
    splits = splits_by_weight(processes)
    outcomes = {}
    for name, case, variant in cases():
        train, valid = splits[variant == "weights"]
        outcomes[name] = outcome(built(case, variant, train), train, valid)
    return outcomes


def splits_by_weight(processes: Processes | None, partial_tables: bool = False) -> list[tuple[Ratings, Ratings]]:
    """Training and validation ratings without weights, and with weights."""
    splits: list[tuple[Ratings, Ratings]] = []
    for is_weighted in (False, True):
        labelled = labelled_ratings(is_weighted)
        if processes is None:
            parts: Mapping[str, Ratings] = split_by_labels(*labelled)
        else:
            parts = partitioned_splits(*labelled, processes, partial_tables=partial_tables)
        splits.append((parts["train"], parts["valid"]))
    return splits


def trained_with_partial_tables(processes: Processes) -> Mapping[str, dict[str, Any]]:
    """The outcome of every case that supports partial tables, with the parameters of all rows in the first process."""
    splits = splits_by_weight(processes, partial_tables=True)
    outcomes: dict[str, dict[str, Any]] = {}
    for name, case, variant in cases():
        if "partial-tables" in SOLVERS[case.solver].supports and variant != "features":
            train, valid = splits[variant == "weights"]
            result = outcome(built(case, variant, train), train, valid)
            complete = map_model_state(result["parameters"], gathering(train))
            outcomes[name] = {**result, "held": train.n_users + train.n_items, "parameters": complete}
    return outcomes


def unsaved(processes: Processes | None) -> dict[str, Any]:
    """A training without a run folder.  The first process alone follows and ends it, and has a logger."""
    is_first = processes is None or processes.index == 0
    dataset = synthetic(40, 30, 500, generator=torch.Generator().manual_seed(0))
    epochs: list[Epoch] = []
    result = train(
        ExperimentConfig.create("als", rank=2, epochs=9, run_dir=None, log_every=1),
        dataset,
        loggers=[Logger()] if is_first else [],
        on_epoch=epochs.append if is_first else None,
        end_early=lambda: is_first and len(epochs) > 2,
        processes=processes,
    )
    assert result.metrics is not None
    followed = [(epoch.number, epoch.n_ratings) for epoch in epochs]
    return {"epochs": followed, **{name: result.metrics[name] for name in SPLIT_NAMES}}


def saved(processes: Processes | None, folder: Path) -> dict[str, dict[str, Any]]:
    """The final metrics of runs that were trained and resumed, by solver; several processes have partial tables."""
    dataset, results = synthetic(400, 300, 2000, generator=torch.Generator().manual_seed(0)), {}
    for solver, options in SAVED.items():
        config = ExperimentConfig.create(solver, rank=2, epochs=2, run_dir=str(folder), name=solver, **options)
        config = config.updated(partial_tables=processes is not None)
        train(config, dataset, loggers=[], processes=processes)
        resumed = train(config.updated(epochs=8), run=Run.open(folder / solver), loggers=[], processes=processes)
        assert resumed.metrics is not None
        results[solver] = resumed.metrics
    return results


def refusal(processes: Processes) -> str:
    """The message about digests that differ in one process."""
    try:
        processes.require_same({"options": bytes(8), "ratings": bytes([processes.index // 2] * 8)})
    except InputError as error:
        return str(error)
    return ""


def run(index: int, count: int, folder: str) -> None:
    """The program of one of several processes, which meet at a file in the folder."""
    meeting = f"file://{Path(folder).resolve()}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=index, world_size=count)
    processes = Processes()
    results = {
        "cases": trained(processes),
        "partial": trained_with_partial_tables(processes),
        "unsaved": unsaved(processes),
        "saved": saved(processes, Path(folder)),
        "refusal": refusal(processes),
    }
    torch.save(results, Path(folder) / f"{index}.pt")
    dist.barrier()
    dist.destroy_process_group()

"""A resumed run ends with the same bits as one that was never stopped, wherever and however it was stopped."""

from __future__ import annotations

import errno
import math
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from training_examples import (
    assert_no_temporary_files,
    assert_same_runs,
    epochs_done,
    resume,
    small_config,
    train_small,
    wait_until,
)

from mfrec.errors import InputError, OptionError
from mfrec.experiments import loop
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.loop import Diverged, Epoch
from mfrec.experiments.run import Run, load_run
from mfrec.experiments.training import train
from mfrec.solvers.registry import SOLVERS

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((solver, {}) for solver in SOLVERS),
    ("block-sgd", {"momentum": 0.5}),
    ("block-sgd", {"step": "adagrad", "lr": 0.1}),
    ("block-sgd", {"step": "plain", "lr": 0.002, "lr_decay": 0.1, "valid_fraction": 0.0}),
    ("sgd", {"step": "plain", "lr": 0.02, "valid_fraction": 0.0}),
    ("sgd", {"monitor": "mae"}),
    ("sgd", {"monitor": "ndcg@3"}),
    ("optim", {"optimizer": "lbfgs", "lr": 0.5}),
    ("optim", {"optimizer": "adamw", "biases": False, "offset": "item"}),
    *((solver, {"implicit": "both", "item_features": "genres,year"}) for solver in ("als", "gibbs", "optim")),
    ("block-sgd", {"implicit": "users", "item_features": "year", "item_ids": False, "momentum": 0.5, "lr": 0.002}),
    ("als", {"nonnegative": True}),
    ("quasi-newton", {"nonnegative": True, "item_features": "year"}),
    ("gibbs", {"burn_in": 2, "samples": 2}),
    *(
        (name, {"sessions": True, "session_gaps": (0, 30)})
        for name, spec in SOLVERS.items()
        if "sessions" in spec.supports
    ),
    ("gibbs", {"sessions": True, "chains": 2, "burn_in": 1}),
]


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 epochs; read it only."""
    return train_small(tiny, tmp_path_factory.mktemp("runs"), "finished")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("solver", "options"),
    VARIANTS,
    ids=lambda v: v if isinstance(v, str) else " ".join(f"{k}={x}" for k, x in v.items()),
)
def test_resume_matches_uninterrupted_run(solver: str, options: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    whole = train_small(tiny, tmp_path, "whole", solver, epochs=7, **options)
    part = train_small(tiny, tmp_path, "part", solver, epochs=3, **options)
    resume(part, epochs=7)
    assert_same_runs(whole, part)


@pytest.mark.parametrize("solver", ["sgd", "als", "vb", "gibbs"])
def test_a_loaded_run_with_sessions_predicts_what_it_had_learned(solver: str, tiny: Path, tmp_path: Path) -> None:
    burn_in = {"burn_in": 1} if solver == "gibbs" else {}
    result = train(small_config(tiny, tmp_path, solver, name="run", sessions=True, session_gaps=(0, 20), **burn_in))
    loaded, posterior, test = load_run(tmp_path / "run"), result.posterior, result.splits["test"]
    expected = posterior.mean_model().predict_observed(test)
    assert torch.equal(loaded.model.predict_observed(test), expected)
    effect = result.solver.model.sessions.effect(test)
    assert 0 < int((effect != 0).sum()) < len(test)
    if posterior.has_std:
        std, saved = (
            each.std(test.users, test.items, timestamps=test.timestamps) for each in (posterior, loaded.posterior)
        )
        assert torch.equal(saved, std)


def test_the_embedded_data_resume_to_the_same_bits(tmp_path: Path) -> None:
    config = ExperimentConfig.create("sgd", run_dir=str(tmp_path), patience=100, seed=3, loggers=(), lr_epochs=6)
    train(config.updated(epochs=6, name="whole"))
    train(config.updated(epochs=3, name="part"))
    resume(tmp_path / "part", epochs=6)
    assert_same_runs(tmp_path / "whole", tmp_path / "part")


def test_a_run_that_stopped_early_continues_with_more_patience(tiny: Path, tmp_path: Path) -> None:
    options = {"lr": 0.2, "l2": 0.0, "epochs": 60}
    whole = train_small(tiny, tmp_path, "whole", patience=60, **options)
    part = train_small(tiny, tmp_path, "part", patience=2, **options)
    assert epochs_done(part) < 60
    with pytest.raises(OptionError, match=r"must be above 2 \(got 2\): .* stopped early") as raised:
        resume(part)
    assert raised.value.option == "patience"
    resume(part, patience=60)
    assert_same_runs(whole, part)


def test_interrupting_after_every_epoch_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    whole = train_small(tiny, tmp_path, "whole", epochs=5)
    part = tmp_path / "part"

    def stopping_after(n: int) -> Any:
        asked = iter([*[False] * n, *[True] * 100])
        return lambda: next(asked)

    train(small_config(tiny, tmp_path, epochs=5, name="part"), stop=stopping_after(1))
    results = []
    while not Run(part).has_metrics():
        run = Run.open(part)
        results.append(train(run.config(), run=run, stop=stopping_after(1)))
    assert [result.interrupted for result in results] == [True, True, True, False]
    assert_same_runs(whole, part)


def test_step_sizes_planned_for_all_epochs_resume_to_the_same_bits_and_start_again_after_them(
    tiny: Path, tmp_path: Path
) -> None:
    whole = train_small(tiny, tmp_path, "whole", epochs=5, lr_epochs=None)
    asked = iter([False, False, True])
    config = small_config(tiny, tmp_path, epochs=5, lr_epochs=None, name="part")
    train(config, stop=lambda: next(asked))
    resume(tmp_path / "part")
    assert_same_runs(whole, tmp_path / "part")
    rates: list[float] = []
    run = Run.open(whole)
    train(run.config().updated(epochs=7), run=run, on_epoch=lambda epoch: rates.append(epoch.solver["lr"]))
    first = ExperimentConfig.create("sgd").options.lr  # type: ignore[attr-defined]
    assert rates == [first, pytest.approx(0.5 * first * (1 + math.cos(math.pi / 5)))]


# What may change.


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("rank", 5),
        ("seed", 1),
        ("l2", 2.0),
        ("lr", 0.5),
        ("split", "time"),
        ("data", "ml-latest-small"),
        ("l2_scaling", "row"),
        ("monitor", "mae"),
        ("refit", True),
        ("biases", False),
        ("name", "another"),
        ("run_dir", "elsewhere"),
    ],
)
def test_a_changed_option_is_refused_by_name(option: str, value: Any, run: Path) -> None:
    before = Run.open(run).config().flat()[option]
    with pytest.raises(OptionError) as raised:
        resume(run, epochs=8, **{option: value})
    assert raised.value.option == option
    for word in (repr(before), repr(value), str(run)):
        assert word in str(raised.value)
    assert "--" not in str(raised.value)
    assert epochs_done(run) == 4
    assert Run.open(run).has_metrics()


def test_another_solver_is_refused_by_both_names(run: Path, tiny: Path) -> None:
    with pytest.raises(InputError, match="was trained by sgd, not optim"):
        train(small_config(tiny, run.parent, "optim"), run=Run.open(run))


def test_options_that_change_nothing_computed_may_change(run: Path) -> None:
    resume(run, epochs=5, patience=50, log_every=2, loggers=("jsonl",), device="cpu")
    config = Run.open(run).config()
    assert (config.fit.epochs, config.fit.patience, config.run.log_every, config.fit.device) == (5, 50, 2, "cpu")
    assert config.run.loggers == ("jsonl",)
    assert (run / "metrics.jsonl").exists()


def test_a_dataset_for_a_resumed_run_is_refused(run: Path) -> None:
    opened = Run.open(run)
    with pytest.raises(InputError, match="has its own data"):
        train(opened.config(), opened.dataset()[0], run=opened)


def test_a_run_with_nothing_left_to_do_says_so(run: Path) -> None:
    with pytest.raises(OptionError, match=r"must be above 4, which .* has done \(got 4\)") as raised:
        resume(run)
    assert raised.value.option == "epochs"
    assert Run.open(run).has_metrics()


def test_a_run_without_a_checkpoint_asks_to_train_again(run: Path) -> None:
    (run / "checkpoint.pt").unlink()
    for use in (resume, load_run):
        with pytest.raises(InputError, match=r"no checkpoint\.pt: training stopped before it saved one; train again"):
            use(run)


def test_a_run_killed_before_its_metrics_is_finished_by_resuming(run: Path) -> None:
    before = Run.open(run).metrics()
    Run.open(run).remove_metrics()
    resume(run)
    assert Run.open(run).metrics() == before


# Kills and full disks.


def train_saving_every_epoch(config: ExperimentConfig) -> None:
    loop.SAVE_SECONDS = loop.SAVE_SHARE = 0.0
    os.fsync = lambda descriptor: None  # as in `conftest.py`
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    train(config)


@pytest.mark.parametrize("seed", range(5))
def test_a_run_killed_at_any_moment_is_readable_and_resumes_to_the_same_bits(
    seed: int, forkserver: Any, tiny: Path, tmp_path: Path
) -> None:
    config = small_config(tiny, tmp_path, name="part", epochs=1_000_000, patience=1_000_000)
    part = tmp_path / "part"
    training = forkserver.Process(target=train_saving_every_epoch, args=(config,))
    training.start()
    try:
        wait_until((part / "checkpoint.pt").exists, training.is_alive, "first checkpoint")
        time.sleep(random.Random(seed).uniform(0, 0.3))
    finally:
        training.kill()
        training.join()
    assert training.exitcode == -signal.SIGKILL
    load_run(part)
    epochs = epochs_done(part) + 2
    resume(part, epochs=epochs)
    assert_same_runs(part, train_small(tiny, tmp_path, "whole", epochs=epochs, patience=1_000_000))


def test_a_full_disk_ends_training_in_a_sentence_and_the_last_checkpoint_stays(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (run / "checkpoint.pt").read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=f"{run}.* cannot be written .No space left"):
            resume(run, epochs=8)
    assert (run / "checkpoint.pt").read_bytes() == before
    assert_no_temporary_files(run)
    resume(run, epochs=8)


def test_a_full_disk_at_the_start_leaves_no_folder(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        train_small(tiny, tmp_path, "run")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_diverges_late_keeps_its_last_good_checkpoint(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    run = train_small(tiny, tmp_path, "run", "gd", lr=0.05, epochs=2)
    with pytest.raises(Diverged, match=r"lr 0\.05"):
        resume(run, epochs=500)
    assert epochs_done(run) >= 2
    assert load_run(run).model.user_factors.weight.isfinite().all()


def test_a_run_copied_elsewhere_needs_neither_its_data_nor_its_first_folder(tiny: Path, tmp_path: Path) -> None:
    whole = train_small(tiny, tmp_path, "whole", epochs=6)
    data = shutil.copytree(tiny, tmp_path / "data" / "tiny")
    first = train_small(data, tmp_path / "first", "run")
    moved = Path(shutil.move(first, tmp_path / "elsewhere"))
    shutil.rmtree(data)
    shutil.rmtree(tmp_path / "first")
    assert len(load_run(moved).recommend(1, 3)) == 3
    resume(moved, epochs=6)
    assert not (tmp_path / "first").exists()
    assert_same_runs(whole, moved)


# Refit.


# The first training takes 7 epochs and its 4th is the best; with sgd 5 and the 2nd.
REFITS = {
    "als": {"l2": 0.01, "rank": 8},
    "sgd": {"lr": 0.1, "rank": 8, "valid_fraction": 0.1, "seed": 2, "monitor": "ndcg@3"},
}


def refit_config(tiny: Path, tmp_path: Path, name: str, solver: str = "als", **options: Any) -> ExperimentConfig:
    overfitting = {"epochs": 30, "patience": 3, **REFITS[solver]}
    return small_config(tiny, tmp_path, solver, name=name, **(overfitting | {"refit": True} | options))


def test_refit_trains_on_train_and_validation_ratings_for_the_best_number_of_epochs(tiny: Path, tmp_path: Path) -> None:
    first = train(refit_config(tiny, tmp_path, "first", refit=False))
    refitted = train(refit_config(tiny, tmp_path, "refitted"))
    best = first.progress.best_epoch
    assert (best, first.progress.epoch) == (4, 7)
    again = train(refit_config(tiny, tmp_path, "again", refit=False, valid_fraction=0.0, epochs=best))
    assert first.metrics is not None
    assert refitted.metrics is not None
    assert again.metrics is not None
    assert refitted.metrics["valid"] == first.metrics["valid"]
    assert refitted.metrics["test"] == again.metrics["test"]
    assert refitted.metrics["train"] == again.metrics["train"]
    assert refitted.metrics["epochs"] == best
    assert refitted.metrics["first_fit"] == {"epochs": first.progress.epoch, "best_epoch": best}
    assert sorted(refitted.splits) == ["test", "train"]
    assert len(refitted.splits["train"]) == len(first.splits["train"]) + len(first.splits["valid"])


def test_the_model_of_a_refitted_run_is_the_refit(tiny: Path, tmp_path: Path) -> None:
    result = train(refit_config(tiny, tmp_path, "run"))
    loaded = load_run(tmp_path / "run")
    test = result.splits["test"]
    assert (loaded.model.predict_observed(test) == result.solver.model.predict_observed(test)).all()
    assert len(loaded.train) == len(result.splits["train"])


@pytest.mark.parametrize(("solver", "first", "refit"), [("als", 7, 4), ("sgd", 5, 2)])
def test_a_refit_starts_again_at_epoch_0(solver: str, first: int, refit: int, tiny: Path, tmp_path: Path) -> None:
    done: list[Epoch] = []
    train(refit_config(tiny, tmp_path, "run", solver), on_epoch=done.append)
    assert [(epoch.number, epoch.epochs, epoch.refit) for epoch in done] == [
        *((number, 30, False) for number in range(first + 1)),
        *((number, refit, True) for number in range(refit + 1)),
    ]


@pytest.mark.parametrize(
    ("solver", "n_epochs"), [*(("als", n) for n in range(1, 14)), *(("sgd", n) for n in range(1, 10))]
)
def test_a_kill_in_either_training_of_a_refit_resumes_to_the_same_bits(
    solver: str, n_epochs: int, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like a kill, an exception ends the training between two checkpoints, here in this call of on_epoch."""
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", 0.0)
    train(refit_config(tiny, tmp_path, "whole", solver))
    done: list[Epoch] = []

    def killing(epoch: Epoch) -> None:
        done.append(epoch)
        if len(done) == n_epochs:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(refit_config(tiny, tmp_path, "part", solver), on_epoch=killing)
    if n_epochs > 1:  # before, there is no checkpoint
        resume(tmp_path / "part")
        assert_same_runs(tmp_path / "whole", tmp_path / "part")


def test_interrupting_a_refit_after_every_epoch_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    train(refit_config(tiny, tmp_path, "whole"))
    part = tmp_path / "part"

    def one_epoch() -> Any:
        asked = iter([False, *[True] * 100])
        return lambda: next(asked)

    train(refit_config(tiny, tmp_path, "part"), stop=one_epoch())
    for _ in range(100):
        if Run(part).has_metrics():
            break
        run = Run.open(part)
        train(run.config(), run=run, stop=one_epoch())
    assert_same_runs(tmp_path / "whole", part)


def test_a_run_killed_between_its_refit_and_its_metrics_is_finished_by_resuming(tiny: Path, tmp_path: Path) -> None:
    train(refit_config(tiny, tmp_path, "run"))
    run = Run.open(tmp_path / "run")
    before = run.metrics()
    run.remove_metrics()
    resume(run.path)
    assert run.metrics() == before


def test_a_refitted_run_has_ended(tiny: Path, tmp_path: Path) -> None:
    train(refit_config(tiny, tmp_path, "run"))
    with pytest.raises(InputError, match="has ended with its refit; start a new run"):
        resume(tmp_path / "run")
    with pytest.raises(OptionError, match="epochs must stay 30"):
        resume(tmp_path / "run", epochs=60)


def test_the_curves_of_a_refitted_run_are_those_of_its_first_training(tiny: Path, tmp_path: Path) -> None:
    curves = []
    for name, refit in (("first", False), ("refitted", True)):
        train(refit_config(tiny, tmp_path, name, refit=refit, loggers=("jsonl",)))
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        curves.append([line for line in lines if "final/" not in line])
    assert curves[0] == curves[1]

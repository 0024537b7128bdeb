"""Nothing of a run is lost: it goes on to the same bits, wherever and however it was stopped."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Mfrec, Train
from torch import Tensor

from mfrec.cli import train as cli_train
from mfrec.errors import InputError
from mfrec.experiments.run import Run, write_atomically
from mfrec.solvers.base import SOLVERS

ROOT = Path(__file__).parents[1]
PATIENCE_SECONDS = 60.0
VARIANTS = [
    *((solver, ()) for solver in SOLVERS),
    ("sgd", ("--momentum", "0.5")),
    ("sgd", ("--step", "adagrad", "--lr", "0.1")),
    ("sgd", ("--step", "plain", "--lr", "0.002", "--lr-decay", "0.1", "--valid-fraction", "0")),
    ("optim", ("--optimizer", "lbfgs", "--lr", "0.5")),
    ("optim", ("--optimizer", "adamw", "--no-biases", "--offset", "item")),
    *((solver, ("--implicit", "both", "--item-features", "genres,year")) for solver in ("als", "gibbs", "optim")),
    ("sgd", ("--implicit", "users", "--item-features", "year", "--no-item-ids", "--momentum", "0.5", "--lr", "0.002")),
    ("als", ("--nonnegative",)),
    ("quasi-newton", ("--nonnegative", "--item-features", "year")),
]


def assert_same_bits(one: Any, other: Any, where: str) -> None:
    """The two states hold the same tensors, numbers and strings; the seconds they took aside."""
    assert type(one) is type(other), where
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one.keys() - {"seconds"}:
            assert_same_bits(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for n, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same_bits(a, b, f"{where}[{n}]")
    else:
        assert one == other, where


def assert_same_runs(one: Path, other: Path) -> None:
    assert_same_bits(*(torch.load(run / "checkpoint.pt", weights_only=True) for run in (one, other)), "checkpoint")
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (one, other)]
    assert_same_bits(*({k: v for k, v in m.items() if k != "fit_seconds"} for m in metrics), "metrics")


def assert_no_leftovers(folder: Path) -> None:
    assert [path.name for path in folder.iterdir() if path.name.startswith(".") or "tmp" in path.name] == []


def epochs_done(run: Path) -> int:
    return Run.open(run).checkpoint()["progress"]["epoch"]


def wait_until(happened: Callable[[], bool], alive: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert alive(), f"the training ended before {what}"
        assert time.monotonic() < deadline, f"no {what} within {PATIENCE_SECONDS:g} s"
        time.sleep(0.01)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, to do with as one likes."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


# Resuming.


@pytest.mark.parametrize(("solver", "options"), VARIANTS, ids=lambda v: v if isinstance(v, str) else " ".join(v))
def test_resuming_is_going_on_to_the_same_bits(
    solver: str, options: tuple[str, ...], train: Train, mfrec: Mfrec, tmp_path: Path
) -> None:
    whole = train(tmp_path, "whole", *options, solver=solver, epochs=7)
    part = train(tmp_path, "part", *options, solver=solver, epochs=3)
    said = mfrec("train", "--resume", part, "--epochs", 7)
    assert said.status == 0, said.err
    assert_same_runs(whole, part)


def test_the_issues_own_two_commands_and_one_end_in_the_same_bits(mfrec: Mfrec, tmp_path: Path) -> None:
    place = ("--patience", 100, "--seed", 3, "--run-dir", tmp_path)
    assert mfrec("train", "sgd", "--epochs", 8, *place, "--name", "whole").status == 0
    assert mfrec("train", "sgd", "--epochs", 4, *place, "--name", "part").status == 0
    assert mfrec("train", "--resume", tmp_path / "part", "--epochs", 8).status == 0
    assert_same_runs(tmp_path / "whole", tmp_path / "part")


def test_a_run_that_stopped_early_goes_on_with_more_patience_to_the_same_bits(
    mfrec: Mfrec, tiny: Path, tmp_path: Path
) -> None:
    options = ("--data", tiny, "--rank", 3, "--lr", 0.2, "--l2", 0, "--epochs", 60, "--run-dir", tmp_path)
    assert mfrec("train", *options, "--patience", 60, "--name", "whole").status == 0
    assert mfrec("train", *options, "--patience", 2, "--name", "part").status == 0
    assert epochs_done(tmp_path / "part") < 60
    again = mfrec("train", "--resume", tmp_path / "part")
    assert again.status == 2
    assert "--patience" in again.err
    assert mfrec("train", "--resume", tmp_path / "part", "--patience", 60).status == 0
    assert_same_runs(tmp_path / "whole", tmp_path / "part")


@pytest.mark.parametrize(
    ("option", "old", "new"),
    [
        ("--rank", "3", "5"),
        ("--seed", "0", "1"),
        ("--l2", "0.9", "2.0"),
        ("--lr", "0.02", "0.5"),
        ("--split", "random", "time"),
        ("--data", "tiny", "ml-latest-small"),
        ("--scaling", "sqrt", "row"),
    ],
)
def test_resuming_refuses_a_changed_option_by_name(option: str, old: str, new: str, run: Path, mfrec: Mfrec) -> None:
    said = mfrec("train", "--resume", run, "--epochs", 8, option, new)
    assert said.status == 2
    for word in (option, old, new, str(run)):
        assert word in said.err
    assert epochs_done(run) == 4


def test_resuming_with_an_option_repeated_as_it_was_is_no_change(run: Path, mfrec: Mfrec) -> None:
    again = ("--rank", 3, "--blocks", 2, 2, "--json")
    said = mfrec("train", "sgd", f"--resume={run}", "--epochs", 5, *again)
    assert (said.status, epochs_done(run)) == (0, 5), said.err


def test_resuming_with_a_flag_repeated_as_it_was_is_no_change(train: Train, mfrec: Mfrec, tmp_path: Path) -> None:
    run = train(tmp_path, "run", "--no-biases")
    said = mfrec("train", "--resume", run, "--epochs", 5, "--no-biases")
    assert said.status == 0, said.err
    changed = mfrec("train", "--resume", run, "--epochs", 9, "--biases")
    assert changed.status == 2
    assert "biases" in changed.err


def test_resuming_under_another_solver_is_refused_by_both_names(run: Path, mfrec: Mfrec) -> None:
    said = mfrec("train", "optim", "--resume", run, "--epochs", 8)
    assert said.status == 2
    assert "sgd" in said.err
    assert "optim" in said.err


def test_resuming_a_run_with_nothing_left_to_do_says_so(run: Path, mfrec: Mfrec) -> None:
    said = mfrec("train", "--resume", run)
    assert said.status == 2
    assert "4 epochs" in said.err
    assert "--epochs" in said.err


def test_a_run_without_a_checkpoint_says_that_it_is_to_be_started_again(run: Path, mfrec: Mfrec) -> None:
    (run / "checkpoint.pt").unlink()
    for command in (("train", "--resume", run), ("evaluate", run), ("recommend", run, "--user", 1)):
        said = mfrec(*command)
        assert said.status == 2
        assert "no checkpoint" in said.err


# Seeds.


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_same_seed_gives_the_same_bits_and_another_gives_others(solver: str, train: Train, tmp_path: Path) -> None:
    one, same, other = (
        train(tmp_path, name, "--seed", seed, solver=solver) for name, seed in (("one", 5), ("same", 5), ("other", 6))
    )
    assert_same_runs(one, same)
    parts = [Run.open(run).dataset()[1] for run in (one, same, other)]
    assert torch.equal(parts[0], parts[1])
    assert not torch.equal(parts[0], parts[2])
    factors = [Run.open(run).checkpoint()["model"]["user_factors.weight"] for run in (one, other)]
    assert not torch.equal(*factors)


# Interruptions.


def test_ctrl_c_finishes_the_epoch_saves_and_says_how_to_resume_to_the_same_bits(
    tiny: Path, train: Train, mfrec: Mfrec, tmp_path: Path
) -> None:
    run = tmp_path / "part"
    size = ("--rank", "3", "--epochs", "1000000", "--patience", "1000000", "--blocks", "2", "2")
    place = ("--data", str(tiny), "--run-dir", str(tmp_path), "--name", "part")
    terminal, its_end = pty.openpty()
    os.set_blocking(terminal, False)
    training = subprocess.Popen(
        [sys.executable, ROOT / "train.py", "sgd", *place, *size], stdout=subprocess.PIPE, stderr=its_end, text=True
    )
    os.close(its_end)
    shown = ""

    def epoch_shown(number: int) -> bool:
        nonlocal shown
        shown += read_now(terminal)
        return any(int(n) >= number for n in re.findall(r"epoch (\d+)/1000000", shown))

    try:
        wait_until(lambda: epoch_shown(5), lambda: training.poll() is None, "fifth epoch on the progress line")
        training.send_signal(signal.SIGINT)
        wait_until(lambda: epoch_shown(10**9) or training.poll() is not None, lambda: True, "end after Ctrl-C")
        shown += read_now(terminal)
    finally:
        training.kill()
        out, _ = training.communicate()
        os.close(terminal)
    assert training.returncode == 130
    assert "Traceback" not in shown
    assert f"--resume {run}" in "".join(shown.split("\r\n"))
    assert out == ""
    for word in ("RMSE valid ", "train ", "cost "):
        assert word in shown
    assert_goes_on_to_the_same_bits(run, train, mfrec)


def read_now(terminal: int) -> str:
    """What a terminal shows since it was last read."""
    text = b""
    while True:
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:  # nothing there, or nobody at the other end any more
            piece = b""
        if not piece:
            return text.decode(errors="replace")
        text += piece


def assert_goes_on_to_the_same_bits(run: Path, train: Train, mfrec: Mfrec) -> None:
    """A run of `train` that was stopped ends, two epochs on, where one that was not does."""
    epochs = epochs_done(run) + 2
    said = mfrec("train", "--resume", run, "--epochs", epochs)
    assert said.status == 0, said.err
    assert_same_runs(run, train(run.parent, "whole", epochs=epochs))


def train_saving_every_epoch(arguments: list[str]) -> None:
    from mfrec.cli import main

    importlib.import_module("mfrec.experiments.loop").SAVE_SECONDS = 0.0
    sys.exit(main(arguments))


@pytest.mark.parametrize("seed", range(5))
def test_a_run_killed_at_any_moment_is_readable_and_goes_on_to_the_same_bits(
    seed: int, workshop: Any, tiny: Path, train: Train, mfrec: Mfrec, tmp_path: Path
) -> None:
    size = ("--rank", "3", "--epochs", "1000000", "--patience", "1000000", "--blocks", "2", "2", "--json")
    place = ("--data", str(tiny), "--run-dir", str(tmp_path), "--name", "part")
    training = workshop.Process(target=train_saving_every_epoch, args=(["train", "sgd", *place, *size],))
    training.start()
    try:
        wait_until((tmp_path / "part" / "checkpoint.pt").exists, training.is_alive, "first checkpoint")
        time.sleep(random.Random(seed).uniform(0, 0.3))
    finally:
        training.kill()
        training.join()
    assert training.exitcode == -signal.SIGKILL
    assert mfrec("evaluate", tmp_path / "part").status == 0
    assert_goes_on_to_the_same_bits(tmp_path / "part", train, mfrec)


def test_sigterm_saves_as_ctrl_c_does(workshop: Any, tiny: Path, train: Train, mfrec: Mfrec, tmp_path: Path) -> None:
    size = ("--rank", "3", "--epochs", "1000000", "--patience", "1000000", "--blocks", "2", "2", "--json")
    place = ("--data", str(tiny), "--run-dir", str(tmp_path), "--name", "part")
    training = workshop.Process(target=train_saving_every_epoch, args=(["train", "sgd", *place, *size],))
    training.start()
    try:
        wait_until((tmp_path / "part" / "checkpoint.pt").exists, training.is_alive, "first checkpoint")
        training.terminate()
        training.join(PATIENCE_SECONDS)
        assert training.exitcode is not None, "SIGTERM did not end the training"
    finally:
        training.kill()
        training.join()
    assert training.exitcode == 130
    assert_no_leftovers(tmp_path / "part")
    assert_goes_on_to_the_same_bits(tmp_path / "part", train, mfrec)


# Writing.


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("crash", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    call: str, crash: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*arguments: object, **options: object) -> None:
        raise crash

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(InputError if isinstance(crash, OSError) else type(crash)):
            write_atomically(path, b"new, and longer")
    assert path.read_bytes() == b"old"
    assert [left.name for left in tmp_path.iterdir()] == ["file"]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_file_gets_the_permissions_that_the_user_gives_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_full_disk_ends_training_in_one_line_and_the_last_checkpoint_stays(
    run: Path, mfrec: Mfrec, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (run / "checkpoint.pt").read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        said = mfrec("train", "--resume", run, "--epochs", 8)
    assert said.status == 2
    assert said.err.count("\n") == 1
    assert "No space left" in said.err
    assert str(run) in said.err
    assert (run / "checkpoint.pt").read_bytes() == before
    assert_no_leftovers(run)
    assert mfrec("train", "--resume", run, "--epochs", 8).status == 0


@pytest.mark.parametrize(
    ("solver", "options"),
    [("gd", ("--lr", "10")), ("sgd", ("--step", "plain", "--lr", "5")), ("optim", ("--optimizer", "sgd", "--lr", "1"))],
)
def test_a_step_that_diverges_names_lr_and_a_smaller_one(
    solver: str, options: tuple[str, ...], tiny: Path, mfrec: Mfrec, tmp_path: Path
) -> None:
    said = mfrec("train", solver, "--data", tiny, "--run-dir", tmp_path, "--epochs", 30, *options)
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    lr, tried = re.search(r"lr (\S+) is too large, try (\S+)", said.err).groups()
    assert float(lr) == float(options[-1])
    assert 0 < float(tried) < float(lr)


def test_a_run_that_diverges_late_keeps_its_last_good_checkpoint(
    train: Train, mfrec: Mfrec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("mfrec.experiments.loop"), "SAVE_SECONDS", 0.0)
    run = train(tmp_path, "run", "--lr", 0.05, solver="gd", epochs=2)
    lost = mfrec("train", "--resume", run, "--epochs", 500)
    assert lost.status == 2
    assert "lr 0.05" in lost.err
    assert epochs_done(run) >= 2
    kept = mfrec("evaluate", run, "--json")
    assert kept.status == 0
    assert json.loads(kept.out)["test"]["rmse"] < 10


# What a run folder is enough for.


def test_a_run_copied_elsewhere_needs_neither_its_data_nor_its_first_place(
    tiny: Path, train: Train, mfrec: Mfrec, tmp_path: Path
) -> None:
    whole = train(tmp_path, "whole", epochs=6)
    data = shutil.copytree(tiny, tmp_path / "data" / "tiny")
    size = ("--rank", 3, "--epochs", 4, "--patience", 100, "--blocks", 2, 2)
    first = tmp_path / "first"
    assert mfrec("train", "--data", data, *size, "--run-dir", first, "--name", "run").status == 0
    moved = Path(shutil.move(first / "run", tmp_path / "elsewhere"))
    shutil.rmtree(data)
    shutil.rmtree(first)
    assert "Film" in mfrec("recommend", moved, "--user", 1).out
    assert mfrec("similar", moved, "--item", "seven samurai (1954)", "--min-ratings", 0).status == 0
    assert mfrec("evaluate", moved).status == 0
    said = mfrec("train", "--resume", moved, "--epochs", 6)
    assert said.status == 0, said.err
    assert str(moved) in said.out
    assert not first.exists()
    assert_same_runs(whole, moved)


def test_weights_only_is_enough_to_load_every_file_of_tensors(trained: Path) -> None:
    for name in ("checkpoint.pt", "dataset.pt"):
        assert torch.load(trained / name, weights_only=True)


def test_the_config_of_a_run_holds_every_option_that_it_was_started_with(trained: Path, tiny: Path) -> None:
    config = json.loads((trained / "config.json").read_text())
    expected = {"solver": "sgd", "data": str(tiny), "rank": 3, "epochs": 4, "seed": 0, "blocks": [2, 2], "lr": 0.02}
    assert {name: config[name] for name in expected} == expected


def test_runs_without_a_name_are_numbered(tiny: Path, mfrec: Mfrec, tmp_path: Path) -> None:
    for _ in range(2):
        assert mfrec("train", "--data", tiny, "--rank", 3, "--epochs", 1, "--run-dir", tmp_path).status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-sgd-1", "tiny-sgd-2"]


# What is left to do.


def test_the_advice_of_a_resumed_run_that_was_interrupted_again_works_as_printed(
    mfrec: Mfrec, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ("--data", tiny, "--rank", 2, "--run-dir", tmp_path, "--name", "run")
    assert mfrec("train", "gd", *place, "--epochs", 3, "--patience", 99).status == 0
    stopping = contextlib.nullcontext(lambda: True)
    with monkeypatch.context() as patch:
        patch.setattr(cli_train, "finish_epoch_on_interrupt", lambda: stopping)
        said = mfrec("train", "--resume", tmp_path / "run", "--epochs", 6)
    assert said.status == 130
    advice = said.err.split("mfrec train ")[1].split()
    assert mfrec("train", *advice).status == 0
    assert Run.open(tmp_path / "run").metrics()["epochs"] == 6
    assert Run.open(tmp_path / "run").config()["epochs"] == 6


def test_a_run_that_died_before_its_metrics_is_finished_by_resuming(mfrec: Mfrec, tiny: Path, tmp_path: Path) -> None:
    place = ("--data", tiny, "--rank", 2, "--run-dir", tmp_path, "--name", "run", "--epochs", 3)
    assert mfrec("train", *place).status == 0
    run = Run.open(tmp_path / "run")
    before = run.metrics()
    run.remove_metrics()
    assert mfrec("train", "--resume", run.path).status == 0
    assert run.metrics() == before
    assert mfrec("train", "--resume", run.path).status == 2

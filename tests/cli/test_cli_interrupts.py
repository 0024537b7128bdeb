"""Ctrl-C finishes the epoch, saves, and says how to resume to the same bits."""

from __future__ import annotations

import importlib
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, TrainRun

from mfrec.experiments import interrupts
from mfrec.experiments.run import Run

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 60.0
ENDLESS = ("--rank", "3", "--epochs", "1000000", "--patience", "1000000", "--lr-epochs", "8")


def wait_until(happened: Callable[[], bool], alive: Callable[[], bool], event: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not happened():
        assert alive(), f"the training ended before: {event}"
        assert time.monotonic() < deadline, f"did not happen within {WAIT_SECONDS:g} s: {event}"
        time.sleep(0.01)


def read_now(terminal: int) -> str:
    """What a terminal shows since it was last read."""
    text = b""
    while True:
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:  # nothing to read, or the other end is closed
            piece = b""
        if not piece:
            return text.decode(errors="replace")
        text += piece


def assert_resumes_to_the_same_bits(run: Path, train_run: TrainRun, cli: Cli) -> None:
    """Two more epochs give the same figures and model as a training that was never stopped."""
    epochs = Run.open(run).checkpoint()["progress"]["epoch"] + 2
    output = cli("train", "--resume", run, "--epochs", epochs)
    assert output.status == 0, output.err
    whole = Run.open(train_run(run.parent, "whole", "--patience", 1000000, epochs=epochs))
    resumed = Run.open(run)
    assert resumed.metrics()["test"] == whole.metrics()["test"]
    models = [run.checkpoint()["model"] for run in (resumed, whole)]
    assert all(bool((models[0][name] == models[1][name]).all()) for name in models[1])


def test_ctrl_c_finishes_the_epoch_saves_and_says_how_to_resume(
    tiny: Path, train_run: TrainRun, cli: Cli, tmp_path: Path
) -> None:
    run = tmp_path / "part"
    place = ("--data", str(tiny), "--run-dir", str(tmp_path), "--name", "part", "--log-every", "10")
    terminal, its_end = pty.openpty()
    os.set_blocking(terminal, False)
    training = subprocess.Popen(
        [sys.executable, ROOT / "train.py", "sgd", *place, *ENDLESS], stdout=subprocess.PIPE, stderr=its_end, text=True
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
    assert "press Ctrl-C again to stop now" in shown
    assert f"--resume {run}" in "".join(shown.split("\r\n"))
    assert out == ""
    for word in ("RMSE valid ", "train ", "cost "):
        assert word in shown
    assert_resumes_to_the_same_bits(run, train_run, cli)


def train_saving_every_epoch(arguments: list[str]) -> None:
    from mfrec.cli.main import main

    importlib.import_module("mfrec.experiments.loop").SAVE_SECONDS = 0.0
    sys.exit(main(arguments))


def test_sigterm_saves_like_ctrl_c(forkserver: Any, tiny: Path, train_run: TrainRun, cli: Cli, tmp_path: Path) -> None:
    place = ("--data", str(tiny), "--run-dir", str(tmp_path), "--name", "part", "--json")
    training = forkserver.Process(target=train_saving_every_epoch, args=(["train", "sgd", *place, *ENDLESS],))
    training.start()
    try:
        wait_until((tmp_path / "part" / "checkpoint.pt").exists, training.is_alive, "first checkpoint")
        training.terminate()
        training.join(WAIT_SECONDS)
        assert training.exitcode is not None, "SIGTERM did not end the training"
    finally:
        training.kill()
        training.join()
    assert training.exitcode == 130
    assert [path.name for path in (tmp_path / "part").iterdir() if path.name.startswith(".")] == []
    assert_resumes_to_the_same_bits(tmp_path / "part", train_run, cli)


def test_the_advice_after_an_interrupted_resume_works_as_printed(
    train_run: TrainRun, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_run(tmp_path, "run", solver="gd", epochs=3)
    with monkeypatch.context() as patch:
        patch.setattr(interrupts.Interrupts, "__call__", lambda self: True)
        output = cli("train", "--resume", run, "--epochs", 6)
    assert output.status == 130
    assert "saved after epoch 3" in output.err
    advice = output.err.split("mfrec train ")[1].split()
    assert cli("train", *advice).status == 0
    assert Run.open(run).metrics()["epochs"] == 6
    assert Run.open(run).config().fit.epochs == 6


@pytest.mark.parametrize("repeated", [("--rank", 3, "--lr-epochs", 8), ("--biases",), ("--lr", "0.09")], ids=str)
def test_resuming_with_an_unchanged_option_repeated_is_no_change(
    repeated: tuple[object, ...], train_run: TrainRun, cli: Cli, tmp_path: Path
) -> None:
    run = train_run(tmp_path, "run")
    output = cli("train", "sgd", f"--resume={run}", "--epochs", 5, *repeated, "--json")
    assert output.status == 0, output.err
    assert Run.open(run).metrics()["epochs"] == 5

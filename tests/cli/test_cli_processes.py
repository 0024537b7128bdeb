"""`torchrun train.py`: several processes make one run, and end together when one of them dies."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from mfrec.__main__ import main
from mfrec.data.splits import SPLIT_NAMES
from mfrec.data.synthetic import synthetic
from mfrec.experiments.run import Run, load_run

PROGRAM = str(Path(__file__).parents[2] / "train.py")
SECONDS = 30  # within which all processes must have ended after one has died
BLOWS = (signal.SIGKILL, signal.SIGSTOP)


@pytest.fixture(scope="module")
def ratings_file(tmp_path_factory) -> Path:
    dataset = synthetic(120, 80, 3000, generator=torch.Generator().manual_seed(0), rounded=True)
    ratings, path = dataset.ratings, tmp_path_factory.mktemp("data") / "ratings.csv"
    rows = zip(ratings.users.tolist(), ratings.items.tolist(), ratings.values.tolist(), strict=True)
    path.write_text("user,item,rating\n" + "".join(f"{user},{item},{value:g}\n" for user, item, value in rows))
    return path


def start(folder: Path, count: int, *arguments: str) -> subprocess.Popen[str]:
    """Start `torchrun train.py …` in a folder."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", "--master-port=0"]
    return subprocess.Popen(
        [*command, "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--", PROGRAM, *arguments],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


@pytest.fixture
def launch(tmp_path) -> Callable[..., subprocess.Popen[str]]:
    """Starts `torchrun train.py …` in a folder of its own."""
    return functools.partial(start, tmp_path)


def measured(path: Path) -> dict[str, float]:
    """The final figures of a run, such as "test rmse"."""
    metrics = Run.open(path).metrics()
    return {f"{split} {name}": value for split in SPLIT_NAMES for name, value in metrics[split].items()}


def files_of(path: Path) -> set[str]:
    """The files of a run; those of events have the time of their creation in their names."""
    return {"events" if file.name.startswith("events") else file.name for file in path.iterdir()}


def epoch_of(path: Path) -> int:
    return int(Run.open(path).checkpoint()["progress"]["epoch"])


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_two_processes_make_the_run_of_one_and_three_resume_it(launch, ratings_file, tmp_path, monkeypatch):
    options = ["als", "--rank", "4", "--data", str(ratings_file), "--monitor", "ndcg@10", "--json"]
    process = launch(2, *options, "--patience", "5", "--epochs", "3", "--name", "together")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert json.loads(output)["epochs"] == 3
    assert "mfrec:" not in errors
    process = launch(3, "--resume", "runs/together", "--epochs", "5", "--json")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors

    monkeypatch.chdir(tmp_path)
    assert main(["train", *options, "--epochs", "5", "--name", "alone"]) == 0
    alone, together = Path("runs/alone"), Path("runs/together")
    assert measured(together) == pytest.approx(measured(alone), rel=1e-5)
    assert files_of(together) == files_of(alone)
    expected = load_run(alone).model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in load_run(together).model.state_dict().items())


def test_an_input_error_is_said_once(launch):
    process = launch(2, "als", "--data", "nowhere.csv")
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert errors.count("mfrec: ") == 1
    assert "nowhere.csv" in errors


class Struck(NamedTuple):
    """A training of two processes; the second got a signal."""

    process: subprocess.Popen[str]
    run: Path
    pid: int
    deadline: float


@pytest.fixture(scope="module")
def struck(ratings_file, tmp_path_factory) -> dict[signal.Signals, Struck]:
    """A training for each blow, all at the same time: most of it is waiting."""
    options = ["--rank", "2", "--data", str(ratings_file), "--name", "run", "--patience", "100000"]
    trainings, struck = {}, {}
    for blow in BLOWS:
        folder = tmp_path_factory.mktemp(blow.name)
        trainings[blow] = start(folder, 2, "gd", *options, "--epochs", "100000"), folder / "runs" / "run"

    def all_struck() -> bool:
        for blow, (process, run) in trainings.items():
            if blow not in struck and (run / "checkpoint.pt").exists() and epoch_of(run) > 0:
                pid = pid_of_second(process.pid)
                os.kill(pid, blow)
                struck[blow] = Struck(process, run, pid, time.monotonic() + SECONDS)
        return len(struck) == len(BLOWS)

    wait_for(all_struck, 120)
    return struck


@pytest.mark.parametrize("blow", BLOWS)
def test_when_a_process_dies_or_stands_still_the_others_name_it_and_end(blow, struck):
    process, run, pid, deadline = struck[blow]
    _, errors = process.communicate(timeout=deadline - time.monotonic())
    assert process.returncode != 0
    messages = [line for line in errors.splitlines() if line.startswith("mfrec: ")]
    assert len(messages) == 1
    assert messages[0].startswith("mfrec: process 1 (")
    assert f"pid {pid}) of 2 does not respond" in messages[0]
    # The checkpoint is whole.
    assert epoch_of(run) > 0
    load_run(run)


def pid_of_second(launcher: int) -> int:
    """The process with index 1 that a launcher started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return next(int(pid) for pid in children if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())


def test_ctrl_c_saves_and_the_run_goes_on_in_one_process(launch, ratings_file, tmp_path, monkeypatch):
    run = tmp_path / "runs" / "run"
    options = ["--rank", "2", "--data", str(ratings_file), "--name", "run", "--patience", "100000"]
    process = launch(2, "gd", *options, "--epochs", "100000")
    wait_for((run / "checkpoint.pt").exists)
    wait_for(lambda: epoch_of(run) > 0)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=SECONDS)
    assert "saved after epoch" in errors
    monkeypatch.chdir(tmp_path)
    done = epoch_of(run)
    assert main(["train", "--resume", "runs/run", "--epochs", str(done + 2)]) == 0
    assert epoch_of(run) == done + 2

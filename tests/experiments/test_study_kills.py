"""A study that is killed at any moment, or shared by processes, ends with the same trials and the same figures."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from study_examples import without_seconds, work
from training_examples import WAIT_SECONDS, small_config

from mfrec.errors import InputError
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.study import Study

TRIALS = 8
# Options that are not searched: those of `small_config`, except the rank.
FIXED = {"blocks", "epochs", "patience"}


def sgd_config(tiny: Path, folder: Path) -> ExperimentConfig:
    default_rank = ExperimentConfig.create("sgd").model.rank
    return small_config(tiny, folder, epochs=40, rank=default_rank, name="study")


def finish(folder: Path) -> dict[str, Any]:
    study = Study.open(folder)
    return without_seconds(study, study.run())


@pytest.fixture(scope="module")
def uninterrupted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    study = Study.create(sgd_config(tiny, tmp_path_factory.mktemp("runs")), FIXED, TRIALS)
    summary = without_seconds(study, study.run())
    assert {trial["state"] for trial in summary["trials"]} == {"done", "pruned"}, "kills could get nothing wrong"
    return summary


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.005)


ASK, TELL, SUGGEST = "optuna:Study.ask", "optuna:Study.tell", "optuna:Trial.suggest_float"
PRUNE, CHECKPOINT = "optuna:Trial.set_user_attr pruned", "mfrec.experiments.run:Run.write_checkpoint"
METRICS, CONFIG = "mfrec.experiments.run:Run.write_metrics", "mfrec.experiments.run:Run.write_config"


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param([ASK], id="the first trial was asked for"),
        pytest.param([ASK] * 7, id="another was, without its options"),
        pytest.param([ASK] * 7 + [SUGGEST], id="it has the first of its options"),
        pytest.param([ASK] * 3 + [CONFIG], id="its folder was made"),
        pytest.param([ASK] * 3 + [CHECKPOINT, "os:fsync"], id="half of a checkpoint was written"),
        pytest.param([ASK] * 7 + ["optuna:Trial.report"] * 2, id="the epoch was reported"),
        pytest.param([PRUNE], id="it was pruned"),
        pytest.param([PRUNE, CHECKPOINT], id="its last checkpoint was written"),
        pytest.param([PRUNE, METRICS], id="its metrics were"),
        pytest.param([PRUNE, TELL], id="the study knows it"),
        pytest.param([TELL] * 8 + [CHECKPOINT], id="the best is being trained"),
        pytest.param([TELL] * 8 + [METRICS], id="the best was trained"),
    ],
)
def test_a_study_killed_after(
    calls: list[str], uninterrupted: dict[str, Any], forkserver: Any, tiny: Path, tmp_path: Path
) -> None:
    arguments = (sgd_config(tiny, tmp_path), tmp_path / "study", FIXED, TRIALS, tuple(calls))
    working = forkserver.Process(target=work, args=arguments)
    working.start()
    working.join(WAIT_SECONDS)
    assert working.exitcode == -signal.SIGKILL
    assert finish(tmp_path / "study") == uninterrupted


@pytest.mark.parametrize("attribute", ["config", "search_space"])
def test_a_study_killed_while_it_was_created_asks_for_another(
    attribute: str, forkserver: Any, tiny: Path, tmp_path: Path
) -> None:
    calls = (f"optuna:Study.set_user_attr {attribute}",)
    arguments = (sgd_config(tiny, tmp_path), tmp_path / "study", FIXED, TRIALS, calls)
    working = forkserver.Process(target=work, args=arguments)
    working.start()
    working.join(WAIT_SECONDS)
    assert working.exitcode == -signal.SIGKILL
    with pytest.raises(InputError, match="was stopped before its first trial; delete it, and start a new study"):
        Study.open(tmp_path / "study")


def test_a_study_killed_twenty_times_loses_nothing(
    uninterrupted: dict[str, Any], forkserver: Any, tiny: Path, tmp_path: Path
) -> None:
    folder, chance = tmp_path / "study", random.Random(0)
    config: ExperimentConfig | None = sgd_config(tiny, tmp_path)
    ended = []
    for _ in range(20):
        working = forkserver.Process(target=work, args=(config, folder, FIXED, TRIALS))
        working.start()
        wait_for(folder / "trial-0")
        time.sleep(chance.uniform(0, 0.4))
        working.kill()
        working.join()
        ended.append(working.exitcode)
        for checkpoint in folder.glob("*/checkpoint.pt"):
            torch.load(checkpoint, weights_only=True)
        config = None
    # The last ones may have finished.
    assert set(ended) <= {-signal.SIGKILL, 0}
    assert ended.count(-signal.SIGKILL) >= 5
    assert finish(folder) == uninterrupted


def test_two_processes_share_a_study_and_do_each_trial_once(forkserver: Any, tiny: Path, tmp_path: Path) -> None:
    folder, workers = tmp_path / "study", []
    for config in (sgd_config(tiny, tmp_path), None):
        workers.append(forkserver.Process(target=work, args=(config, folder, FIXED, TRIALS)))
        workers[-1].start()
        wait_for(folder / "trial-0")
    for worker in workers:
        worker.join(WAIT_SECONDS)
        assert worker.exitcode == 0
    trials = finish(folder)["trials"]
    assert [trial["trial"] for trial in trials] == list(range(8))
    assert len({trial["lr"] for trial in trials}) == 8
    assert len(list(folder.glob("best-*"))) == 1


def test_a_study_waits_for_a_trial_that_another_process_holds(tiny: Path, tmp_path: Path) -> None:
    study = Study.create(sgd_config(tiny, tmp_path), FIXED, 1)
    with study._storage.claim(may_start=True) as trial:
        assert trial is not None
        result = Study.open(study.folder).run()
    assert (result.state, result.waiting_for) == ("waiting", "trial 0")


def test_sigterm_ends_the_epoch_and_the_study_can_be_resumed(
    forkserver: Any, tiny: Path, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    folder = tmp_path / "study"
    working = forkserver.Process(target=work, args=(sgd_config(tiny, tmp_path), folder, FIXED, TRIALS))
    working.start()
    wait_for(folder / "trial-1" / "checkpoint.pt")
    working.terminate()
    working.join(WAIT_SECONDS)
    assert working.exitcode in (130, 0)
    assert finish(folder) == uninterrupted

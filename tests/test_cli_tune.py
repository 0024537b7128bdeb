"""`mfrec tune`: trials that never see the test part, a study that nothing stops for good, and one figure at its end."""

from __future__ import annotations

import functools
import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Mfrec

from mfrec.cli.tune import space_of
from mfrec.experiments.run import Run
from mfrec.experiments.training import PARTS, TEST
from mfrec.solvers.base import SOLVERS

FAST = ("--epochs", 15, "--patience", 100, "--log-every", 0)
PATIENCE_SECONDS = 60.0


def study(mfrec: Mfrec, *arguments: object) -> dict[str, Any]:
    said = mfrec("tune", *arguments, "--json")
    assert said.status == 0, said.err
    found: dict[str, Any] = json.loads(said.out)
    return found


def without_seconds(found: dict[str, Any]) -> dict[str, Any]:
    """What a study found, by trial, but for how long it took and where."""
    trials = sorted(({k: v for k, v in t.items() if k != "seconds"} for t in found["trials"]), key=lambda t: t["trial"])
    return {"trials": trials, **{name: found[name] for name in ("best", "valid_rmse", "test")}}


@pytest.fixture(scope="module")
def tuned(mfrec: Mfrec, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = ("--data", tiny, "--run-dir", tmp_path_factory.mktemp("runs"), "--name", "study")
    return study(mfrec, "als", "--trials", 6, "--rank", 4, *FAST, *place)


def test_each_trial_is_a_run_within_the_space_that_has_not_seen_the_test_part(tuned: dict[str, Any]) -> None:
    assert sorted(trial["trial"] for trial in tuned["trials"]) == list(range(6))
    space = space_of("als", ["--rank"])
    for trial in tuned["trials"]:
        run = Run.open(Path(tuned["study"]) / f"trial-{trial['trial']}")
        assert run.metrics()["test"] is None
        assert run.metrics()["valid"]["rmse"] == trial["valid RMSE"]
        for name, (low, high, _) in space.items():
            assert low <= trial[name] <= high
            assert run.config()[name] == trial[name]
        assert run.config()["rank"] == 4


def test_the_first_trial_has_the_defaults_and_the_best_is_the_best(tuned: dict[str, Any]) -> None:
    first = next(trial for trial in tuned["trials"] if trial["trial"] == 0)
    assert (first["l2"], first["relaxation"]) == (SOLVERS["als"].defaults["l2"], 0.5)
    errors = [trial["valid RMSE"] for trial in tuned["trials"]]
    assert errors == sorted(errors)
    assert tuned["valid_rmse"] == min(errors)


def test_the_best_is_trained_on_all_but_the_test_part_for_as_many_epochs_as_were_best(
    tuned: dict[str, Any], mfrec: Mfrec, tiny: Path, tmp_path: Path
) -> None:
    best, chosen = tuned["trials"][0], Run.open(tuned["run"])
    place = ("--data", tiny, "--run-dir", tmp_path, "--name", "again", "--json")
    epochs = chosen.metrics()["epochs"]
    searched = ("--rank", 4, "--l2", best["l2"], "--relaxation", best["relaxation"], "--epochs", epochs)
    assert mfrec("train", "als", *searched, "--valid-fraction", 0, *place).status == 0
    assert Run.open(tmp_path / "again").metrics()["test"] == tuned["test"]
    assert epochs == Run(Path(tuned["study"]) / f"trial-{best['trial']}").checkpoint()["progress"]["best_epoch"]
    parts = [Run.open(run).dataset()[1] for run in (tuned["run"], Path(tuned["study"]) / "trial-0")]
    assert torch.equal(parts[0] == TEST, parts[1] == TEST)
    assert int((parts[0] == PARTS["valid"]).sum()) == 0


def test_the_same_seed_tries_the_same_and_another_seed_something_else(
    tuned: dict[str, Any], mfrec: Mfrec, tiny: Path, tmp_path: Path
) -> None:
    place = ("--data", tiny, "--run-dir", tmp_path, "--rank", 4, *FAST, "--trials")
    assert without_seconds(study(mfrec, "als", *place, 6)) == without_seconds(tuned)
    other = study(mfrec, "als", *place, 2, "--seed", 1)["trials"]
    assert {trial["l2"] for trial in other}.isdisjoint({trial["l2"] for trial in tuned["trials"][1:]} - {1.1})


def test_a_study_that_goes_on_ends_where_one_that_never_stopped_does(
    tuned: dict[str, Any], mfrec: Mfrec, tiny: Path, tmp_path: Path
) -> None:
    place = ("--data", tiny, "--run-dir", tmp_path, "--name", "part", "--rank", 4, *FAST)
    part = study(mfrec, "als", "--trials", 2, *place)
    assert len(part["trials"]) == 2
    whole = study(mfrec, "--resume", tmp_path / "part", "--trials", 6)
    assert without_seconds(whole) == without_seconds(tuned)
    again = study(mfrec, "--resume", tmp_path / "part")
    assert again == whole


def test_no_trial_is_started_after_the_timeout(mfrec: Mfrec, tiny: Path, tmp_path: Path) -> None:
    place = ("--data", tiny, "--run-dir", tmp_path, *FAST)
    found = study(mfrec, "als", "--trials", 1000, "--timeout", 1.5, *place)
    assert 1 <= len(found["trials"]) < 1000
    assert found["test"]["rmse"] > 0


def test_what_is_printed_are_the_trials_the_best_options_and_the_test_part_once(
    mfrec: Mfrec, tiny: Path, tmp_path: Path
) -> None:
    said = mfrec("tune", "vb", "--trials", 3, "--data", tiny, "--run-dir", tmp_path, "--name", "mine", *FAST)
    assert said.status == 0, said.err
    assert said.out.count("test part") == 1
    assert "best options  --rank " in said.out
    assert f"tensorboard --logdir {tmp_path / 'mine'}" in said.out
    assert "the best 3 of 3 trials" in said.out
    listed = json.loads(mfrec("runs", tmp_path / "mine", "--json").out)
    assert {row["run"] for row in listed} >= {"trial-0", "trial-1", "trial-2"}
    assert sum(row["test RMSE"] is not None for row in listed) == 1


def test_a_trial_that_falls_behind_is_pruned_and_told_so(
    mfrec: Mfrec, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Between steps so small that nothing is learned, and steps that work.
    monkeypatch.setattr(SOLVERS["sgd"], "space", {"lr": (1e-6, 0.1, "log")})
    options = ("--rank", 3, "--epochs", 40, "--patience", 100, "--log-every", 0)
    found = study(mfrec, "sgd", "--trials", 12, *options, "--data", tiny, "--run-dir", tmp_path)
    pruned = [trial for trial in found["trials"] if trial["state"] == "pruned"]
    assert pruned
    for trial in pruned:
        assert 10 <= trial["epochs"] < 40
        assert Run.open(Path(found["study"]) / f"trial-{trial['trial']}").metrics()["valid"] is not None
    assert found["trials"][0]["state"] == "done"


def test_a_trial_that_diverges_is_left_out_and_the_study_goes_on(
    mfrec: Mfrec, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SOLVERS["gd"], "space", {"lr": (10.0, 100.0, "log")})
    said = mfrec("tune", "gd", "--trials", 3, *FAST, "--data", tiny, "--run-dir", tmp_path, "--json")
    assert said.status == 0, said.err
    assert [trial["trial"] for trial in json.loads(said.out)["trials"]] == [0]
    assert said.err.count("diverged: the cost ") == 2


# Kills and company.


def tune_saving_every_epoch(arguments: list[str], calls: tuple[str, ...] = ()) -> None:
    """`mfrec tune`, in a process that is killed when these calls were made, in this order."""
    from mfrec.cli import main

    fit = importlib.import_module("mfrec.experiments.loop")
    fit.SAVE_SECONDS = fit.SAVE_SHARE = 0.0
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    awaited = list(calls)
    for call in set(calls):
        kill_after(call, awaited)
    sys.exit(main(arguments))


def kill_after(call: str, awaited: list[str]) -> None:
    """Strike `call` from the head of `awaited` when it was made; kill this process when none is left.

    Args:
        call: as in "optuna:Study.ask", or "optuna:Trial.set_user_attr pruned" where "pruned" is to be an argument.
    """
    path, _, argument = call.partition(" ")
    module, _, attributes = path.partition(":")
    *owners, name = attributes.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    function = getattr(owner, name)

    def watched(*arguments: Any, **options: Any) -> Any:
        answer = function(*arguments, **options)
        if awaited[0] == call and (not argument or argument in arguments):
            awaited.pop(0)
            if not awaited:
                os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(owner, name, watched)


SGD = ("sgd", "--blocks", "2", "2", "--epochs", "40", "--patience", "100", "--log-every", "0", "--trials", "8")


@pytest.fixture(scope="module")
def never_stopped(mfrec: Mfrec, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = study(mfrec, *SGD, "--data", tiny, "--run-dir", tmp_path_factory.mktemp("runs"))
    assert {trial["state"] for trial in found["trials"]} == {"done", "pruned"}, "nothing for kills to get wrong"
    return found


ASK, TELL, SUGGEST = "optuna:Study.ask", "optuna:Study.tell", "optuna:Trial.suggest_float"
PRUNE, CHECKPOINT = "optuna:Trial.set_user_attr pruned", "mfrec.experiments.run:Run.write_checkpoint"
METRICS = "mfrec.experiments.run:Run.write_metrics"


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param([ASK], id="the first trial was asked for"),
        pytest.param([ASK] * 7, id="another was, without its options"),
        pytest.param([ASK] * 7 + [SUGGEST], id="it has the first of its options"),
        pytest.param([ASK] * 3 + ["mfrec.experiments.run:Run.write_config"], id="its folder was made"),
        pytest.param([ASK] * 3 + [CHECKPOINT, "os:fsync"], id="half of a checkpoint was written"),
        pytest.param([ASK] * 7 + ["optuna:Trial.report"] * 2, id="the epoch was reported"),
        pytest.param([PRUNE], id="it was pruned"),
        pytest.param([PRUNE, CHECKPOINT], id="its last checkpoint was written"),
        pytest.param([PRUNE, METRICS], id="its metrics were"),
        pytest.param([PRUNE, TELL], id="it was told"),
        pytest.param([TELL] * 8 + [CHECKPOINT], id="the best is being trained"),
        pytest.param([TELL] * 8 + [METRICS], id="the best was trained"),
    ],
)
def test_a_study_killed_after(
    calls: list[str], never_stopped: dict[str, Any], workshop: Any, mfrec: Mfrec, tiny: Path, tmp_path: Path
) -> None:
    arguments = ["tune", *SGD, "--data", str(tiny), "--run-dir", str(tmp_path), "--name", "study"]
    working = workshop.Process(target=tune_saving_every_epoch, args=(arguments, tuple(calls)))
    working.start()
    working.join(PATIENCE_SECONDS)
    assert working.exitcode == -signal.SIGKILL
    assert without_seconds(study(mfrec, "--resume", tmp_path / "study")) == without_seconds(never_stopped)


def test_a_study_killed_while_it_was_made_says_to_start_another(
    workshop: Any, mfrec: Mfrec, tiny: Path, tmp_path: Path
) -> None:
    arguments = ["tune", *SGD, "--data", str(tiny), "--run-dir", str(tmp_path), "--name", "study"]
    calls = ("optuna:Study.set_user_attr arguments",)
    working = workshop.Process(target=tune_saving_every_epoch, args=(arguments, calls))
    working.start()
    working.join(PATIENCE_SECONDS)
    assert working.exitcode == -signal.SIGKILL
    said = mfrec("tune", "--resume", tmp_path / "study")
    assert (said.status, said.out) == (2, "")
    assert said.err.count("\n") == 1
    assert "before its first trial" in said.err


def test_a_study_killed_twenty_times_goes_on_and_loses_nothing(
    never_stopped: dict[str, Any], workshop: Any, mfrec: Mfrec, tiny: Path, tmp_path: Path
) -> None:
    folder, chance = tmp_path / "study", random.Random(0)
    arguments = ["tune", *SGD, "--data", str(tiny), "--run-dir", str(tmp_path), "--name", "study"]
    ended = []
    for _ in range(20):
        working = workshop.Process(target=tune_saving_every_epoch, args=(arguments,))
        working.start()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (folder / "trial-0").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.4))
        working.kill()
        working.join()
        ended.append(working.exitcode)
        for run in folder.glob("*/checkpoint.pt"):
            torch.load(run, weights_only=True)
        arguments = ["tune", "--resume", str(folder)]
    # The last may have come to an end of their own.
    assert set(ended) <= {-signal.SIGKILL, 0}
    assert ended.count(-signal.SIGKILL) >= 5
    found = study(mfrec, "--resume", folder)
    assert without_seconds(found) == without_seconds(never_stopped)


def test_two_processes_share_a_study_and_try_each_trial_once(
    workshop: Any, mfrec: Mfrec, tiny: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    first = ["tune", *SGD, "--data", str(tiny), "--run-dir", str(tmp_path), "--name", "study"]
    workers = []
    for arguments in (first, ["tune", "--resume", str(folder)]):
        workers.append(workshop.Process(target=tune_saving_every_epoch, args=(arguments,)))
        workers[-1].start()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (folder / "trial-0").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    for worker in workers:
        worker.join(PATIENCE_SECONDS)
        assert worker.exitcode == 0
    found = study(mfrec, "--resume", folder)
    assert sorted(trial["trial"] for trial in found["trials"]) == list(range(8))
    assert len({trial["lr"] for trial in found["trials"]}) == 8
    assert len(list(folder.glob("best-*"))) == 1


def test_sigterm_ends_the_epoch_and_says_how_to_go_on(
    workshop: Any, mfrec: Mfrec, tiny: Path, tmp_path: Path, never_stopped: dict[str, Any]
) -> None:
    place = ["--data", str(tiny), "--run-dir", str(tmp_path), "--name", "study"]
    working = workshop.Process(target=tune_saving_every_epoch, args=(["tune", *SGD, *place],))
    working.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (tmp_path / "study" / "trial-1" / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    working.terminate()
    working.join(PATIENCE_SECONDS)
    assert working.exitcode in (130, 0)
    assert without_seconds(study(mfrec, "--resume", tmp_path / "study")) == without_seconds(never_stopped)


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("sdg", ["solver", "sdg", "sgd"]),
        ("als --trials 0", ["trials '0'", "whole number"]),
        ("als --trials", ["--trials", "value"]),
        ("als --timeout -3", ["timeout '-3'", "seconds"]),
        ("als --lr 3", ["--lr"]),
        ("als --rank 0", ["rank 0", "1 or more"]),
        ("vb --rank 3", ["nothing to tune of vb", "rank"]),
        ("als --valid-fraction 0", ["valid_fraction 0", "judge"]),
        ("als --data nope", ["nope"]),
        ("als --item-features nope --data TINY", ["nope"]),
        ("--resume nowhere", ["nowhere", "study.db"]),
        ("--resume DAMAGED", ["study.db", "cannot be read"]),
        ("--resume DAMAGED --rank 3", ["--rank", "goes on"]),
    ],
)
def test_a_mistake_is_told_in_a_line_and_leaves_nothing(
    arguments: str, words: list[str], mfrec: Mfrec, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "study.db").write_text("not a database" * 100)
    monkeypatch.chdir(tmp_path)
    said = mfrec("tune", *arguments.replace("TINY", str(tiny)).replace("DAMAGED", str(damaged)).split())
    assert (said.status, said.out) == (2, ""), said
    assert said.err.count("\n") == 1
    for word in words:
        assert word in said.err
    assert not list(tmp_path.glob("runs/*"))


def test_without_optuna_it_says_what_to_install(mfrec: Mfrec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    said = mfrec("tune", "als")
    assert said.status == 2
    assert 'pip install "mfrec[tune]"' in said.err

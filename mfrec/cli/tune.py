"""The verb that tunes: trials on the validation part, then the best of them on train + valid, and the test part once.

A study is a folder: study.db, in which Optuna keeps what was tried and what came of it; a run folder a trial; and the
run of the best.  Any number of processes may work on it at once, and any of them may be killed at any moment: whoever
comes next finds the trials that nobody works on any more, and goes on with them from their checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from mfrec.cli import report
from mfrec.cli.options import taken
from mfrec.cli.train import Train
from mfrec.cli.train_arguments import parse_train
from mfrec.errors import InputError
from mfrec.experiments.loop import Diverged, Epoch
from mfrec.experiments.run import Run
from mfrec.solvers.base import SOLVERS

if TYPE_CHECKING:
    import optuna

TRIALS = 20
# Epochs between the points of a trial's curve that decide whether it goes on, and how many it has for a start.
REPORT_EPOCHS, WARM_UP_EPOCHS = 5, 10
STUDY = "study.db"
SHOWN = 10
USAGE = f"""usage: mfrec tune [SOLVER] [--trials N] [--timeout S] [OPTIONS]
       mfrec tune --resume STUDY [--trials N] [--timeout S]

Search for the options of a solver that are best on the validation part, train with them on the training and validation
parts together, and show how that does on the test part, which no trial has seen.

  --trials N          trials in all, those before --resume included (default: {TRIALS}); the first has the defaults
  --timeout S         start no trial after so many seconds
  --resume STUDY      go on with a study that was stopped or killed; while it runs: work on it too
  OPTIONS             as of mfrec train SOLVER, which lists them by --help; those given are not searched

What is searched of each solver, and where:

"""


@dataclasses.dataclass(frozen=True)
class Tune:
    """Tune a solver: trials that the validation part judges, the best trained again, and its test RMSE."""

    base: Train
    arguments: tuple[str, ...]
    folder: Path | None
    trials: int | None
    timeout: float

    def __call__(self) -> int:
        """Exit status: 0, or 130 where a trial was interrupted."""
        folder = self._create() if self.folder is None else self.folder
        try:
            with _quiet_optuna():
                return self._study(folder)
        except InputError:
            if self.folder is None and not any(folder.glob("*/checkpoint.pt")):
                shutil.rmtree(folder)  # nothing in it was trained
            raise
        except KeyboardInterrupt:
            print(f"interrupted; go on with: mfrec tune --resume {folder}", file=sys.stderr)
            return 130

    def _create(self) -> Path:
        """The folder of a new study, whose first trial has the options as they are."""
        base = self.base
        folder = Run.create(base.run_dir, base.name, f"{Path(base.data).stem}-{base.solver}-tune").path
        with _quiet_optuna():
            study = _open(folder, create=True)
            study.enqueue_trial({name: getattr(base, name) for name in self._space()})
            study.set_user_attr("arguments", list(self.arguments))
            # The last word: a study without it was killed here, and has nothing to go on with.
            study.set_user_attr("trials", TRIALS if self.trials is None else self.trials)
        return folder

    def _study(self, folder: Path) -> int:
        study, started = _open(folder), time.monotonic()
        if self.trials is not None:
            study.set_user_attr("trials", self.trials)
        while True:
            more = time.monotonic() - started < self.timeout
            with _claimed(study, folder, more) as trial:
                if trial is None:
                    break
                if not self._try(study, trial, folder):
                    raise KeyboardInterrupt
        others = [one.number for one in _running(study)]
        if others:
            print(f"another process works on trial {others[0]}, and will train the best of all", file=sys.stderr)
            return 0
        return self._finish(study, folder)

    def _space(self) -> dict[str, tuple[float, float, str]]:
        return space_of(self.base.solver, self.arguments)

    def _try(self, study: optuna.Study, trial: optuna.Trial, folder: Path) -> bool:
        """Train with the trial's options, or go on with it; whether it came to its end."""
        import optuna

        options: dict[str, Any] = {}
        path = folder / f"trial-{trial.number}"
        for index, (name, (low, high, scale)) in enumerate(self._space().items()):
            # A generator for each option of each trial: what a killed process had drawn of a trial is in the study, and
            # the rest is drawn as it would have been.  Two processes do not try the same.
            entropy = np.random.SeedSequence([self.base.seed, trial.number, index])
            study.sampler = optuna.samplers.TPESampler(seed=int(entropy.generate_state(1)[0]))
            if isinstance(low, int) and isinstance(high, int):
                options[name] = trial.suggest_int(name, low, high, log=scale == "log")
            else:
                options[name] = trial.suggest_float(name, low, high, log=scale == "log")
        train = dataclasses.replace(
            self.base, **options, run_dir=str(folder), name=path.name, trial=True, resume=_resumable(path)
        )
        run = Run(path)
        reached = run.checkpoint()["progress"]["epoch"] if train.resume else 0
        reported = study.trials[trial.number].last_step or 0
        # The epoch it is pruned after, noted before that epoch is in a checkpoint: a process that comes after a kill
        # finds it here, or decides it again.
        pruned_after: float = trial.user_attrs.get("pruned", math.inf)

        def on_epoch(news: Epoch) -> None:
            nonlocal reached, pruned_after
            reached = news.number
            if news.valid is None or reached % REPORT_EPOCHS or reached < max(reported, 1):
                return
            if reached > reported:
                trial.report(news.valid["rmse"], reached)
            if trial.should_prune():
                trial.set_user_attr("pruned", reached)
                pruned_after = reached

        try:
            has_ended = train.resume is not None and run.has_metrics()
            metrics = run.metrics() if has_ended else train.train(on_epoch, lambda: reached >= pruned_after).metrics
        except Diverged as error:
            print(f"trial {trial.number} diverged: {error}", file=sys.stderr)
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return True
        if metrics is None:
            return False
        progress = run.checkpoint()["progress"]
        for name, value in {"epochs": progress["epoch"], "best_epoch": progress["best_epoch"]}.items():
            trial.set_user_attr(name, value)
        trial.set_user_attr("seconds", metrics["fit_seconds"])
        value, pruned = metrics["valid"]["rmse"], reached >= pruned_after
        if pruned:
            # A pruned trial's value is the last that it reported.
            trial.set_user_attr("rmse", value)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, value)
        self._say(study, trial.number, value, pruned, options)
        return True

    def _say(self, study: optuna.Study, number: int, value: float, pruned: bool, options: dict[str, float]) -> None:
        if self.base.json:
            return
        chosen = "  ".join(f"{name} {option:.3g}" for name, option in options.items())
        best = "" if pruned or study.best_trial.number != number else "  the best so far"
        print(f"trial {number:<3} valid RMSE {value:.4f}  {chosen}{'  (pruned)' if pruned else best}", flush=True)

    def _finish(self, study: optuna.Study, folder: Path) -> int:
        """Train with the best options on all but the test part, once, and show it beside the trials."""
        import optuna

        done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        if not done:
            raise InputError(f"no trial of {folder} came to an end; go on with mfrec tune --resume {folder}")
        best = study.best_trial
        path = folder / f"best-trial-{best.number}"
        lock = FileLock(folder / ".best.lock", timeout=0)
        try:
            with lock:
                # Without a validation part nothing says when to stop, so that it is after the epochs that were best.
                chosen = dataclasses.replace(
                    self.base,
                    **best.params,
                    run_dir=str(folder),
                    name=path.name,
                    valid_fraction=0.0,
                    epochs=best.user_attrs["best_epoch"] or best.user_attrs["epochs"],
                    resume=_resumable(path),
                )
                if Run(path).has_metrics():
                    metrics = Run(path).metrics()
                else:
                    outcome = chosen.train()
                    if outcome.metrics is None:
                        raise KeyboardInterrupt
                    metrics = outcome.metrics
        except Timeout:
            print(f"another process trains the best of {folder}", file=sys.stderr)
            return 0
        self._show(study, folder, best, metrics)
        return 0

    def _show(self, study: optuna.Study, folder: Path, best: optuna.trial.FrozenTrial, metrics: dict[str, Any]) -> None:
        table = trials_of(study)
        refit = folder / f"best-trial-{best.number}"
        if self.base.json:
            told: dict[str, Any] = {"study": str(folder), "trials": table.to_dict("records")}
            told |= {"best": best.params, "valid_rmse": best.value, "run": str(refit), "test": metrics["test"]}
            print(json.dumps(told, indent=2))
            return
        print()
        shown = table.head(SHOWN).drop(columns="seconds").rename(columns={"valid RMSE": "valid"})
        report.print_frame(f"the best {len(shown)} of {len(table)} trials, with their validation RMSE", shown)
        options = " ".join(f"--{name.replace('_', '-')} {value:.4g}" for name, value in best.params.items())
        print(f"best options  {options}")
        if metrics["test"] is not None:
            test = metrics["test"]
            epochs = f"{metrics['epochs']} epochs on the training and validation parts"
            print(f"test part     RMSE {test['rmse']:.4f}, MAE {test['mae']:.4f}, after {epochs}")
        print(f"run folder    {refit}")
        print(f"curves        tensorboard --logdir {folder}")


def trials_of(study: optuna.Study) -> pd.DataFrame:
    """A row a trial that came to an end, the best first: its state, RMSE, epochs, seconds and options."""
    rows = [
        {
            "trial": trial.number,
            "state": "pruned" if "pruned" in trial.user_attrs else "done",
            "valid RMSE": trial.user_attrs.get("rmse", trial.value),
            **trial.params,
            "epochs": trial.user_attrs["epochs"],
            "seconds": trial.user_attrs["seconds"],
        }
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished() and "epochs" in trial.user_attrs
    ]
    return pd.DataFrame(rows).sort_values("valid RMSE", kind="stable", ignore_index=True)


def space_of(solver: str, arguments: Iterable[str] = ()) -> dict[str, tuple[float, float, str]]:
    """What to search of a solver: its `space`, without the options that are given.

    Raises:
        InputError: it is nothing.
    """
    space: dict[str, tuple[float, float, str]] = getattr(SOLVERS[solver], "space", {})
    given = {one.partition("=")[0].removeprefix("--").replace("-", "_") for one in arguments}
    searched = {name: among for name, among in space.items() if name not in given}
    if not searched:
        way_out = f"leave one of {', '.join(space)} out" if space else "declare its `space`, as the other solvers do"
        raise InputError(f"there is nothing to tune of {solver}; {way_out}")
    return searched


def parse_tune(arguments: list[str]) -> Callable[[], int]:
    """The options of `mfrec tune [SOLVER] …`: its own, and those of a training.

    Raises:
        InputError: one of them cannot be, or Optuna is not installed.
    """
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE + "\n".join(f"  {name:<14}{_described(name)}" for name in SOLVERS))
        raise SystemExit(0)
    rest, own = taken("tune", arguments, "--trials", "--timeout", "--resume")
    _require_optuna()
    trials = _whole("trials", own["--trials"]) if "--trials" in own else None
    timeout = _seconds(own["--timeout"]) if "--timeout" in own else math.inf
    folder = None
    as_json = "--json" in rest
    rest = [one for one in rest if one != "--json"]
    if "--resume" in own:
        if rest:
            raise InputError(f"{rest[0]} has no place in a study that goes on, whose options are what they were")
        folder = Path(own["--resume"])
        with _quiet_optuna():
            study = _open(folder).user_attrs
        if "trials" not in study:
            raise InputError(f"{folder} was stopped before its first trial; remove it, and start a new study")
        rest = list(study["arguments"])
    base = parse_train(rest)
    if not any(one.startswith("--valid-fraction") for one in rest) and not base.valid_fraction:
        base = dataclasses.replace(base, valid_fraction=None)  # what needs none to stop is judged by one all the same
    if base.valid_fraction == 0.0:
        raise InputError("valid_fraction 0 leaves nothing to judge trials by; give more, or leave it out")
    base.check()
    space_of(base.solver, rest)
    base = dataclasses.replace(base, json=as_json, command=shlex.join(["mfrec", "tune", *arguments]))
    return Tune(base, tuple(rest), folder, trials, timeout)


def _described(solver: str) -> str:
    space = getattr(SOLVERS[solver], "space", {})
    return ", ".join(f"{name} {low:g}–{high:g}" for name, (low, high, _) in space.items()) or "nothing"


def _whole(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{name} {text!r} cannot be; give a whole number from 1, such as {TRIALS}")
    return int(text)


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if float(text) > 0:
            return float(text)
    raise InputError(f"timeout {text!r} is no number of seconds; give more than 0, such as 600")


def _require_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise InputError('mfrec tune needs Optuna; install it with: pip install "mfrec[tune]"') from None


@contextlib.contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Optuna's own progress is left out, and its notices that a step was reported before, as after a kill."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="optuna")
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _open(folder: Path, *, create: bool = False) -> optuna.Study:
    """The study of a folder.

    Raises:
        InputError: there is none, or it is damaged.
    """
    import optuna

    path = folder / STUDY
    if not create and not path.is_file():
        raise InputError(f"{folder} is no study: it has no {STUDY}; give a folder that mfrec tune printed")
    # The worst quarter at each point: of two steps the smaller one is behind at first, and may yet be the better.
    pruner = optuna.pruners.PercentilePruner(
        75.0, n_startup_trials=5, n_warmup_steps=WARM_UP_EPOCHS, interval_steps=REPORT_EPOCHS
    )
    try:
        # Other processes may write at the same time; SQLite lets one after the other.
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})
        return optuna.create_study(
            storage=storage, pruner=pruner, direction="minimize", study_name="mfrec", load_if_exists=True
        )
    except Exception as error:  # whatever SQLAlchemy and Optuna meet in a file that is none of theirs
        raise InputError(f"{path} cannot be read ({type(error).__name__}); restore it, or start a new study") from error


@contextlib.contextmanager
def _claimed(study: optuna.Study, folder: Path, more: bool) -> Iterator[optuna.Trial | None]:
    """A trial that is this process's alone for as long: one that a killed process left, or else a new one; or None.

    Args:
        more: whether new ones may be started.
    """
    import optuna

    with contextlib.ExitStack() as stack:
        trial = None
        with FileLock(folder / ".study.lock"):
            for left in _running(study):
                # The lock of a process goes with it, so that one that can be had is nobody's.
                with contextlib.suppress(Timeout):
                    stack.enter_context(FileLock(_lock(folder, left.number), timeout=0))
                    trial = optuna.trial.Trial(study, left._trial_id)
                    break
            begun = [one for one in study.get_trials(deepcopy=False) if one.state != optuna.trial.TrialState.WAITING]
            if trial is None and more and len(begun) < study.user_attrs["trials"]:
                trial = study.ask()
                stack.enter_context(FileLock(_lock(folder, trial.number), timeout=0))
        yield trial


def _running(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    import optuna

    return study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))


def _lock(folder: Path, number: int) -> Path:
    return folder / f".trial-{number}.lock"


def _resumable(path: Path) -> str | None:
    """The run in this folder, if it got as far as a checkpoint; what got less far is removed, to be made again."""
    if (path / "checkpoint.pt").exists():
        return str(path)
    if path.exists():
        shutil.rmtree(path)
    return None

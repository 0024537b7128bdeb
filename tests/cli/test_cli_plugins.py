"""`--plugin`: a user's module adds a solver, a loss, a metric, a reader and a logger, for every verb."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from cli_checks import SMALL, answer, assert_refused, assert_usage_error
from conftest import Cli, write_csv

from mfrec.data.readers import READERS
from mfrec.evaluation.metrics import METRICS
from mfrec.experiments.loggers import LOGGERS
from mfrec.experiments.run import Run
from mfrec.model.losses import LOSSES
from mfrec.solvers.registry import SOLVERS

TABLES = (SOLVERS, LOSSES, METRICS, READERS, LOGGERS)
MODULE = "workshop_plugin"
SOURCE = '''
"""A solver, a loss, a metric, a reader and a logger, each in its table."""
import io
from dataclasses import dataclass

import pandas as pd
import torch

from mfrec.data.raw_tables import RawTables
from mfrec.data.readers import READERS, Reader
from mfrec.evaluation.metrics import METRICS, Metric
from mfrec.experiments.loggers import LOGGERS, Logger
from mfrec.model.losses import LOSSES
from mfrec.options import Fraction, Options
from mfrec.solvers.base import SearchRange, Solver, SolverSpec
from mfrec.solvers.registry import SOLVERS


@dataclass(frozen=True)
class HalfStepOptions(Options):
    """Options of halfstep."""

    share: Fraction = 0.5
    """Fraction of the factors to keep in an epoch."""
    quiet_word: str = "none"
    """A word without an effect."""


class HalfStep(Solver):
    def epoch(self):
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(self.options.share)
        return {}


SOLVERS["halfstep"] = SolverSpec(
    summary="Shrink everything by a fraction.",
    options=HalfStepOptions,
    implementation=HalfStep,
    supports=frozenset({"losses"}),
    defaults={"epochs": 3, "l2_scaling": "row"},
    search_space={"share": SearchRange(0.1, 0.9)},
)
LOSSES["absolute"] = lambda predictions, targets: ((predictions - targets).abs(), (predictions - targets).sign())
METRICS["worst"] = Metric(
    "worst error", lambda predictions, ratings: float((predictions - ratings).abs().max()), format=".2f"
)


def read_semicolons(source, columns):
    return RawTables(pd.read_csv(io.BytesIO(source.read("stars.semi")), sep=";", names=["user", "item", "rating"]))


READERS["semicolons"] = Reader("stars.semi", lambda source: "stars.semi" in source.members, read_semicolons)


class LinesLogger(Logger):
    def __init__(self, folder, resumed_at=None):
        self.path = folder / "lines.txt"

    def scalars(self, values, epoch):
        with self.path.open("a") as file:
            file.write(f"{epoch} {sorted(values)}\\n")


LOGGERS["lines"] = LinesLogger
'''


@pytest.fixture
def forget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """The working directory has the plugin; calling the fixture brings the tables back to a new process's."""
    tables, path = [dict(table) for table in TABLES], list(sys.path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / f"{MODULE}.py").write_text(SOURCE)

    def restore() -> None:
        sys.modules.pop(MODULE, None)
        sys.path[:] = path
        for table, rows in zip(TABLES, tables, strict=True):
            for name in set(table) - set(rows):
                del table[name]

    yield restore
    restore()


@pytest.fixture
def semicolons(tmp_path: Path, tiny: Path) -> Path:
    """A folder with the tiny data in the plugin's format."""
    folder = tmp_path / "semicolons"
    folder.mkdir()
    lines = (tiny / "ratings.csv").read_text().splitlines()[1:]
    (folder / "stars.semi").write_text("".join(";".join(line.split(",")[:3]) + "\n" for line in lines))
    return folder


def test_a_plugin_s_solver_has_a_subcommand_with_its_options(
    cli: Cli, forget: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    for arguments in (("--plugin", MODULE, "--help"), ("--help", "--plugin", MODULE)):
        assert re.search(r"• halfstep +Shrink everything by a fraction\.", cli("train", *arguments).out)
        forget()
    for verb in ("train", "cv", "tune"):
        shown = " ".join(cli(verb, "halfstep", "--plugin", MODULE, "--help").out.replace("│", " ").split())
        for part in ("--share FLOAT", "Fraction of the factors to keep in an epoch. (default: 0.5)", "(default: none)"):
            assert part in shown
    assert "--share FLOAT" in cli("train", "--plugin", MODULE, "halfstep", "--help").out
    forget()
    assert_refused(cli("train", "halfstep"), "unknown solver 'halfstep'")
    assert_refused(cli("train", "halfsetp", "--plugin", MODULE), "unknown solver 'halfsetp'; did you mean 'halfstep'?")
    refused = cli("train", "als", "--plugin", MODULE, "--loss", "absolute")
    assert_refused(refused, "als does not support losses other than the squared error", "halfstep")


def test_a_run_is_trained_with_everything_that_a_plugin_adds_and_remembers_it(
    cli: Cli, forget: Callable[[], None], semicolons: Path, tmp_path: Path
) -> None:
    place = ("--data", semicolons, "--rank", 2, "--run-dir", tmp_path / "runs", "--name", "run", "--json")
    options = ("--plugin", MODULE, "--share", 0.25, "--loss", "absolute", "--loggers", "lines", "--monitor", "worst")
    metrics = answer(cli("train", "halfstep", *place, *options, "--log-every", 1))
    run = tmp_path / "runs" / "run"
    for split in ("train", "valid", "test"):
        assert 0 < metrics[split]["worst"] < 5
    assert metrics["epochs"] == 3
    assert "worst/valid" in (run / "lines.txt").read_text()
    config = Run.open(run).config()
    assert (config.run.plugin, config.options.share, config.objective.l2_scaling) == ((MODULE,), 0.25, "row")
    forget()
    evaluated = answer(cli("evaluate", run, "--json"))
    assert evaluated["test"] == metrics["test"]
    assert "worst error" in cli("evaluate", run).out
    forget()
    assert len(answer(cli("recommend", run, "--user", 1, "--min-ratings", 0, "--json"))) == 10
    forget()
    assert len(answer(cli("similar", run, "--item", 1, "--min-ratings", 0, "-n", 3, "--json"))) == 3
    forget()
    pairs = write_csv(tmp_path / "pairs.csv", [("user", "item"), (1, 7)])
    assert len(pd.read_csv(io.StringIO(cli("predict", run, pairs).out))) == 1
    forget()
    assert answer(cli("train", "--resume", run, "--epochs", 5, "--json"))["epochs"] == 5
    assert max(int(line.split()[0]) for line in (run / "lines.txt").read_text().splitlines()) == 5
    forget()
    (row,) = answer(cli("runs", tmp_path / "runs", "--json"))
    assert (row["solver"], row["test worst error"]) == (
        "halfstep",
        pytest.approx(Run.open(run).metrics()["test"]["worst"]),
    )


def test_a_run_whose_plugin_is_missing_says_so_in_one_sentence(
    cli: Cli, forget: Callable[[], None], tiny: Path, tmp_path: Path
) -> None:
    place = ("--data", tiny, *SMALL, "--run-dir", tmp_path / "runs", "--name", "run")
    assert cli("train", "halfstep", "--plugin", MODULE, *place).status == 0
    forget()
    (tmp_path / f"{MODULE}.py").unlink()
    run = tmp_path / "runs" / "run"
    for question in (("evaluate", run), ("recommend", run, "--user", 1), ("train", "--resume", run)):
        assert_refused(cli(*question), run, MODULE, "cannot be found")


@pytest.mark.parametrize("verb", ["cv", "tune"])
def test_folds_and_trials_use_a_plugin(
    verb: str, cli: Cli, forget: Callable[[], None], semicolons: Path, tmp_path: Path
) -> None:
    place = ("--data", semicolons, "--rank", 2, "--run-dir", tmp_path / "runs", "--name", "all", "--log-every", 0)
    size = ("--folds", 2) if verb == "cv" else ("--trials", 2)
    result = answer(cli(verb, "--plugin", MODULE, "halfstep", *place, *size, "--monitor", "worst", "--json"))
    forget()
    if verb == "cv":
        assert [fold["worst"] > 0 for fold in result["folds"]] == [True, True]
        assert set(result["worst"]) == {"mean", "std"}
    else:
        assert {"share", "valid worst error"} <= set(result["trials"][0])
        again = answer(cli("tune", "--resume", tmp_path / "runs" / "all", "--trials", 3, "--json"))
        assert len(again["trials"]) == 3
    assert {row["solver"] for row in answer(cli("runs", tmp_path / "runs", "--json"))} == {"halfstep"}


def test_verbs_that_do_not_train_take_plugins_too(
    cli: Cli, forget: Callable[[], None], trained_run: Path, semicolons: Path, tmp_path: Path
) -> None:
    assert "halfstep" in {row["solver"] for row in answer(cli("solvers", "--plugin", MODULE, "--json"))}
    forget()
    assert answer(cli("evaluate", trained_run, "--plugin", MODULE, "--json"))["test"]["worst"] > 0
    forget()
    assert answer(cli("data", semicolons, "--plugin", MODULE, "--json"))["n_ratings"] == 600
    forget()
    assert_refused(cli("data", semicolons), semicolons)
    pairs = write_csv(tmp_path / "pairs.csv", [("user", "item"), (1, 7)])
    for question in (
        ("recommend", trained_run, "--user", 1),
        ("similar", trained_run, "--item", 8),
        ("predict", trained_run, pairs),
    ):
        assert cli(*question, "--plugin", MODULE).status == 0
        assert "halfstep" in SOLVERS
        forget()


@pytest.mark.parametrize(
    "command", ["train", "cv", "tune", "solvers", "data x", "evaluate x", "recommend x", "similar x", "predict x y"]
)
def test_a_plugin_that_cannot_be_imported_is_refused(
    command: str, cli: Cli, forget: Callable[[], None], tmp_path: Path
) -> None:
    (tmp_path / "broken_plugin.py").write_text("1 / 0\n")
    verb = command.split()
    assert_refused(cli(*verb, "--plugin", "nowhere_to_be_found"), "plugin 'nowhere_to_be_found'", "cannot be found")
    assert_refused(cli(*verb, "--plugin", "json", "--plugin=broken_plugin"), "broken_plugin", "ZeroDivisionError")
    assert_usage_error(cli(*verb, "--plugin"), "--plugin")


def test_several_plugins_are_remembered(cli: Cli, forget: Callable[[], None], tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "other_plugin.py").write_text("")
    place = ("--data", tiny, *SMALL, "--run-dir", tmp_path / "runs", "--name", "run")
    assert cli("train", "--plugin", MODULE, *place, "--plugin", "other_plugin").status == 0
    config = json.loads((tmp_path / "runs" / "run" / "config.json").read_text())
    assert config["run"]["plugin"] == [MODULE, "other_plugin"]

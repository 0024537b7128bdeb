"""`mfrec train`: what it prints, what it leaves, and what it refuses."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from cli_checks import SMALL, answer, assert_refused, in_a_process, loads_strictly, ratings_text
from conftest import Cli, Output, TrainRun, write_csv

from mfrec.data.splits import SPLIT_NAMES
from mfrec.experiments import building
from mfrec.experiments.run import Run
from mfrec.solvers.registry import DEFAULT_SOLVER, SOLVERS


@pytest.fixture(scope="module")
def printed(cli: Cli, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Output]:
    """The folder of runs and the output of a training whose output is for people."""
    folder = tmp_path_factory.mktemp("runs")
    return folder, cli("train", "--data", tiny, "--rank", 3, "--epochs", 3, "--run-dir", folder, "--name", "shown")


# What it prints.


def test_training_prints_the_metrics_of_the_test_split_beside_those_of_baselines(printed: tuple[Path, Output]) -> None:
    folder, output = printed
    assert (output.status, output.err) == (0, "")
    table = output.out[output.out.index("test split") :]
    test = json.loads((folder / "shown" / "metrics.json").read_text())["test"]
    errors = {}
    for name in ("global mean", "item mean", "biases only", f"{DEFAULT_SOLVER}, rank 3"):
        row = re.search(rf"^ +{name} +(\d\.\d{{4}}) +(\d\.\d{{4}}) *$", table, re.MULTILINE)
        assert row, name
        errors[name] = row.groups()
    assert errors[f"{DEFAULT_SOLVER}, rank 3"] == (f"{test['rmse']:.4f}", f"{test['mae']:.4f}")
    assert len(set(errors.values())) == 4


def test_training_prints_a_user_s_recommendations_and_similar_items_as_the_verbs_give_them(
    printed: tuple[Path, Output], cli: Cli
) -> None:
    folder, output = printed
    run = folder / "shown"
    (user,) = re.findall(r"^recommended to user (\d+)$", output.out, re.MULTILINE)
    assert f"user {user} rated highest, of " in output.out
    recommended = answer(cli("recommend", run, "--user", user, "--json"))
    table = output.out[output.out.index("recommended to user") : output.out.index("similar to")]
    assert len(recommended) == 10
    for row in recommended:
        # The whole line, so that neither a genre nor another title can satisfy it.
        title = re.escape(row["title"][:20])
        assert re.search(rf"^ +{row['predicted']:.2f} +{row['id']} +{title}", table, re.MULTILINE), row
    (title,) = re.findall(r"^similar to (.+)$", output.out, re.MULTILINE)
    similar = answer(cli("similar", run, "--item", title, "-n", 5, "--json"))
    table = output.out[output.out.index("similar to") : output.out.index("run folder")]
    for row in similar:
        title = re.escape(row["title"][:20])
        assert re.search(rf"^ +{row['cosine']:.3f} +{row['id']} +{title}", table, re.MULTILINE), row


def test_training_prints_where_its_run_and_its_curves_are(printed: tuple[Path, Output]) -> None:
    folder, output = printed
    assert re.search(rf"^run folder +{folder / 'shown'}$", output.out, re.MULTILINE)
    assert re.search(rf"^curves +tensorboard --logdir {folder}$", output.out, re.MULTILINE)
    assert re.match(rf"{DEFAULT_SOLVER} on tiny: 3 epochs, best after [123], \d+\.\d s$", output.out.splitlines()[0])


def test_the_json_of_training_is_the_metrics_with_the_run_and_alone_on_stdout(
    tiny: Path, cli: Cli, tmp_path: Path
) -> None:
    printed = answer(cli("train", "--data", tiny, *SMALL, "--run-dir", tmp_path, "--name", "run", "--json"))
    assert printed.pop("run") == str(tmp_path / "run")
    assert printed == Run.open(tmp_path / "run").metrics()


def test_train_py_is_mfrec_train_and_silent_on_stderr_without_a_terminal(tiny: Path, tmp_path: Path) -> None:
    output = in_a_process("--data", tiny, *SMALL, "--run-dir", tmp_path / "new" / "runs", "--json")
    assert (output.status, output.err) == (0, "")
    assert loads_strictly(output.out)["run"] == str(tmp_path / "new" / "runs" / f"tiny-{DEFAULT_SOLVER}-1")


def test_gibbs_prints_and_saves_how_well_its_chains_have_converged(tiny: Path, cli: Cli, tmp_path: Path) -> None:
    size = ("--data", tiny, "--rank", 2, "--epochs", 14, "--burn-in", 4, "--chains", 2, "--log-every", 0)
    output = cli("train", "gibbs", *size, "--run-dir", tmp_path, "--name", "run")
    diagnostics = Run.open(tmp_path / "run").metrics()["diagnostics"]
    scale, n = diagnostics["r_hat"], diagnostics["effective_samples"]
    assert scale > 0.5
    assert 1 <= n <= 20
    assert f"convergence: R-hat {scale:.2f} (largest), effective samples {n:.0f} (smallest)\n" in output.out


# What it leaves.


def test_training_leaves_the_metrics_of_every_split(printed: tuple[Path, Output]) -> None:
    metrics = loads_strictly((printed[0] / "shown" / "metrics.json").read_text())
    stated = {"solver": DEFAULT_SOLVER, "dataset": "tiny", "split": "random", "seed": 0, "rank": 3, "epochs": 3}
    stated |= {"n_users": 40, "n_items": 30, "n_ratings": 600, "monitor": "rmse"}
    assert {key: metrics[key] for key in stated} == stated
    for split in SPLIT_NAMES:
        assert list(metrics[split]) == ["rmse", "mae", "cost"]
        assert 0 < metrics[split]["mae"] <= metrics[split]["rmse"] < 4


def test_training_leaves_config_events_and_checkpoint(printed: tuple[Path, Output]) -> None:
    names = {path.name.split(".out.")[0] for path in (printed[0] / "shown").iterdir()}
    projection = {"projector_config.pbtxt", "item_factors.tsv", "item_factors_labels.tsv"}
    saved = {"config.json", "dataset", "split_labels.pt", "checkpoint.pt", "metrics.json"}
    assert names == {*saved, "metrics.jsonl", "events", *projection}


def test_training_without_tensorboard_leaves_no_events_and_the_same_model(
    train_run: TrainRun, trained_run: Path, tmp_path: Path
) -> None:
    saved = {"config.json", "dataset", "split_labels.pt", "checkpoint.pt", "metrics.json", "metrics.jsonl"}
    assert {path.name for path in trained_run.iterdir()} == saved
    logged = train_run(tmp_path, "logged", "--log-every", 1)
    assert Run.open(logged).metrics() | {"fit_seconds": 0} == Run.open(trained_run).metrics() | {"fit_seconds": 0}


def test_loggers_can_be_chosen_and_left_out(train_run: TrainRun, tmp_path: Path) -> None:
    saved = {"config.json", "dataset", "split_labels.pt", "checkpoint.pt", "metrics.json"}
    none = train_run(tmp_path, "none", "--loggers")
    assert {path.name for path in none.iterdir()} == saved
    lines = train_run(tmp_path, "lines", "--log-every", 1, "--loggers", "jsonl")
    assert {path.name for path in lines.iterdir()} == {*saved, "metrics.jsonl"}


def test_the_embedded_data_without_options_beats_biases_only(cli: Cli, tmp_path: Path) -> None:
    output = cli("train", "--run-dir", tmp_path)
    errors = {name: float(rmse) for name, rmse in re.findall(r"(biases only|sgd, rank \d+) +(\d\.\d+)", output.out)}
    (model,) = errors.keys() - {"biases only"}
    assert errors[model] < errors["biases only"] - 0.01
    assert Run.open(tmp_path / "ml-latest-small-sgd-1").metrics()["n_ratings"] == 100_004


# Options.


@pytest.mark.parametrize("solver", [name for name, spec in SOLVERS.items() if not spec.learns])
def test_every_solver_lowers_the_cost(solver: str, tiny: Path, cli: Cli, tmp_path: Path) -> None:
    options = ("--data", tiny, "--rank", 3, "--patience", 50, "--valid-fraction", 0, "--log-every", 0)
    costs = [
        answer(cli("train", solver, *options, "--epochs", epochs, "--run-dir", tmp_path, "--json"))["train"]["cost"]
        for epochs in (1, 20)
    ]
    assert costs[1] < costs[0]


@pytest.mark.parametrize(
    "options",
    [
        ("--sessions",),
        ("als", "--sessions", "--session-gaps", 60, "--session-l2", 2),
        ("vb", "--sessions", "--session-prior", "gaussian"),
        ("gibbs", "--sessions", "--session-freedom", 6, "--chains", 2, "--burn-in", 0),
        ("--split", "per-user"),
        ("--split", "time"),
        ("--split", "per-user-time", "--recent-bias", 5),
        ("--split", "leave-last-out"),
        ("--split", "cold-items"),
        ("--split", "fold-2-of-3"),
        ("--test-fraction", 0),
        ("--valid-fraction", 0),
        ("--no-biases", "--offset", "none"),
        ("--offset", "item", "--damping", 0),
        ("--init", "uniform"),
        ("--l2-scaling", "rating", "--bias-l2", 0),
        ("--device", "cpu"),
        ("--rating-range", 0, 6),
        ("--lr_epochs", 2),
        ("--step", "plain"),
        ("block-sgd", "--blocks", 1, 1),
        ("block-sgd", "--blocks", 99, 99),
        ("block-sgd", "--lr_decay", 0.1),
        ("--lr=0.01",),
        ("--no-nonnegative", "--biases"),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_every_option_works(options: tuple[object, ...], tiny: Path, cli: Cli, tmp_path: Path) -> None:
    solver = () if str(options[0]).startswith("-") else options[:1]
    place = ("--data", tiny, *SMALL, "--run-dir", tmp_path, "--json")
    metrics = answer(cli("train", *solver, *place, *options[len(solver) :]))
    assert math.isfinite(metrics["train"]["rmse"])


@pytest.mark.parametrize("split", ["test", "valid"])
def test_a_split_that_was_not_held_out_is_null(split: str, tiny: Path, cli: Cli, tmp_path: Path) -> None:
    output = cli("train", "--data", tiny, *SMALL, "--run-dir", tmp_path, f"--{split}-fraction", 0)
    assert output.status == 0, output.err
    assert ("test split" in output.out) == (split != "test")
    (run,) = tmp_path.iterdir()
    assert Run.open(run).metrics()[split] is None
    assert cli("evaluate", run).status == 0


def test_a_run_that_stopped_early_says_which_epoch_was_best(tiny: Path, cli: Cli, tmp_path: Path) -> None:
    output = cli("train", "--data", tiny, "--rank", 8, "--epochs", 300, "--patience", 2, "--run-dir", tmp_path)
    epochs, best = re.match(r"sgd on tiny: (\d+) epochs, best after (\d+), ", output.out).groups()
    assert int(epochs) == int(best) + 2


def test_a_monitored_metric_decides_the_best_epoch(tiny: Path, cli: Cli, tmp_path: Path) -> None:
    best = {}
    for monitor in ("rmse", "mae", "ndcg@5"):
        name = ("--name", monitor.replace("@", "-"))
        options = (
            "--rank",
            6,
            "--epochs",
            40,
            "--patience",
            40,
            "--valid-fraction",
            0.2,
            "--lr",
            0.05,
            "--log-every",
            0,
        )
        metrics = answer(
            cli("train", "--data", tiny, *options, "--monitor", monitor, "--run-dir", tmp_path, *name, "--json")
        )
        assert metrics["monitor"] == monitor
        assert monitor in metrics["valid"]
        best[monitor] = Run.open(tmp_path / name[1]).checkpoint()["progress"]["best_epoch"]
    assert len(set(best.values())) > 1, best
    for monitor, words in (("ndcg@0", "at least 1"), ("ndgc@5", "did you mean 'ndcg@5'?"), ("cost", "choose from")):
        assert_refused(cli("train", "--data", tiny, *SMALL, "--monitor", monitor, "--run-dir", tmp_path), words)


def test_refit_trains_again_with_the_validation_ratings_for_the_best_epochs(
    tiny: Path, cli: Cli, tmp_path: Path
) -> None:
    options = ("--data", tiny, "--rank", 3, "--epochs", 30, "--patience", 3, "--log-every", 0, "--run-dir", tmp_path)
    plain, refit = (answer(cli("train", *options, *more, "--json")) for more in ((), ("--refit",)))
    assert refit["valid"] == plain["valid"]
    assert refit["test"] != plain["test"]
    best = refit["first_fit"]["best_epoch"]
    assert refit["epochs"] == best
    run = Run.open(refit["run"])
    assert not bool((run.trained_model().split_labels == SPLIT_NAMES["valid"]).any())
    for solver, words in (("vb", "--refit cannot be used with vb"), ("sgd", "--refit needs validation ratings")):
        valid = () if solver == "vb" else ("--valid-fraction", 0)
        assert_refused(cli("train", solver, *options, *valid, "--refit"), words)


def test_test_data_and_valid_data_are_splits_of_one_s_own(tiny: Path, cli: Cli, tmp_path: Path) -> None:
    frame = pd.read_csv(tiny / "ratings.csv")
    rows = frame.sample(frac=1, random_state=0)
    parts = {"train": rows[:400], "valid": rows[400:480], "test": rows[480:]}
    new = pd.DataFrame({"userId": [777, 1], "movieId": [1, 888], "rating": [4.0, 2.0], "timestamp": [1, 2]})
    parts["test"] = pd.concat([parts["test"], new])
    for name, part in parts.items():
        part.to_csv(tmp_path / f"{name}.csv", index=False)
    files = ("--data", tmp_path / "train.csv", "--test-data", tmp_path / "test.csv")
    output = cli(
        "train", "als", *files, "--valid-data", tmp_path / "valid.csv", *SMALL, "--run-dir", tmp_path / "runs",
        "--name", "run", "--json",
    )  # fmt: skip
    metrics = answer(output)
    assert metrics["n_ratings"] == 602
    dataset, labels = Run.open(tmp_path / "runs" / "run").dataset()
    sizes = {name: int((labels == label).sum()) for name, label in SPLIT_NAMES.items()}
    assert sizes == {"train": 400, "valid": 80, "test": 122}
    assert {777, "777"} & set(dataset.user_ids.tolist())
    assert {888, "888"} & set(dataset.item_ids.tolist())
    assert math.isfinite(metrics["test"]["rmse"])
    without = answer(cli("train", "als", *files, *SMALL, "--run-dir", tmp_path / "runs", "--name", "drawn", "--json"))
    labels = Run.open(tmp_path / "runs" / "drawn").dataset()[1]
    assert int((labels == SPLIT_NAMES["test"]).sum()) == 122
    assert int((labels == SPLIT_NAMES["valid"]).sum()) == 20
    assert without["n_ratings"] == 522
    for options, words in (
        (("--data", tiny, "--valid-data", tmp_path / "valid.csv"), "--valid-data needs"),
        (("--data", tiny, "--test-data", "nowhere.csv"), "nowhere.csv"),
    ):
        assert_refused(cli("train", *options, *SMALL, "--run-dir", tmp_path / "none"), words)
    assert not (tmp_path / "none").exists()


def test_an_endless_training_ends_by_patience_without_a_traceback(tiny: Path, cli: Cli, tmp_path: Path) -> None:
    options = ("--data", tiny, "--rank", 2, "--patience", 2, "--log-every", 0, "--run-dir", tmp_path)
    output = cli("train", *options, "--epochs", 2**31 - 1)
    assert (output.status, output.err) == (0, "")
    refused = cli("train", *options, "--epochs", "99999999999999999999")
    assert_refused(refused, "--epochs must be at most 2147483647 (got 99999999999999999999)")


# What it refuses.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--rank 0", ["--rank must be at least 1 (got 0)"]),
        ("--rank -3", ["--rank must be at least 1 (got -3)"]),
        ("--l2 -1", ["--l2 must be at least 0", "(got -1)"]),
        ("--l2 nan", ["--l2", "(got nan)"]),
        ("--bias-l2 -1", ["--bias-l2 must be at least 0", "(got -1)"]),
        ("--lr -1", ["--lr must be positive", "(got -1)"]),
        ("--lr 0", ["--lr must be positive", "(got 0)"]),
        ("--lr nan", ["--lr", "(got nan)"]),
        ("--lr inf", ["--lr", "(got inf)"]),
        ("--lr-decay -1", ["--lr-decay must be at least 0", "(got -1)"]),
        ("--momentum 1.5", ["--momentum must be in [0, 1) (got 1.5)"]),
        ("--momentum -0.1", ["--momentum must be in [0, 1) (got -0.1)"]),
        ("--blocks 0 4", ["--blocks must be at least 1 (got 0)"]),
        ("--damping -1 --offset item", ["--damping must be at least 0", "(got -1)"]),
        ("--epochs 0", ["--epochs must be at least 1 (got 0)"]),
        ("--patience 0", ["--patience must be at least 1 (got 0)"]),
        ("--log-every -1", ["--log-every must be at least 0 (got -1)"]),
        ("--test-fraction 1.5", ["--test-fraction must be in [0, 1) (got 1.5)"]),
        ("--test-fraction -0.1", ["--test-fraction must be in [0, 1) (got -0.1)"]),
        ("--valid-fraction 1", ["--valid-fraction must be in [0, 1) (got 1)"]),
        ("--valid-fraction nan", ["--valid-fraction must be in [0, 1) (got nan)"]),
        ("--seed -99999999999999999999", ["--seed must be in [0, ", "(got -99999999999999999999)"]),
        ("--split u1", ["no official split 'u1'", "choose from random, per-user"]),
        ("--split fold-4-of-3", ["4", "3"]),
        ("--rating-range 5 1", ["5", "1"]),
        ("--rating-range 2 3", ["2", "3"]),
        ("--columns who,what", ["who,what"]),
        ("--columns who,what,stars", ["who", "userId"]),
        ("--session-gaps -1", ["--session-gaps must be at least 0 (got -1)"]),
        ("--sessions --session-gaps 30 30", ["--session-gaps must be different numbers of seconds", "(got 30 30)"]),
        ("--sessions --session-gaps", ["--session-gaps must be different numbers of seconds", "(got none)"]),
        ("--session-l2 -1", ["--session-l2 must be at least 0", "(got -1)"]),
        ("--name a/b", ["--name", "a/b"]),
        ("--name ..", ["--name", ".."]),
        ("--name=", ["--name", "''"]),
    ],
)
def test_an_impossible_option_is_refused_by_its_flag_and_value_and_leaves_nothing(
    arguments: str, words: list[str], cli: Cli, tiny: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    solver = "block-sgd" if arguments.startswith(("--lr-decay", "--momentum", "--blocks")) else "sgd"
    assert_refused(cli("train", solver, "--data", tiny, *SMALL, "--run-dir", runs, *arguments.split()), *words)
    assert not runs.exists() or list(runs.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this torch has a GPU")
@pytest.mark.parametrize("command", ["train --data TINY", "evaluate RUN"])
def test_a_missing_gpu_is_refused(command: str, cli: Cli, tiny: Path, trained_run: Path) -> None:
    arguments = command.replace("TINY", str(tiny)).replace("RUN", str(trained_run)).split()
    assert_refused(cli(*arguments, "--device", "cuda"), "--device cuda is not available; use cpu")


@pytest.mark.parametrize("split", ["time", "per-user-time", "leave-last-out"])
def test_a_split_by_time_needs_timestamps(split: str, cli: Cli, tiny: Path, tmp_path: Path) -> None:
    rows = [tuple(line.split(",")[:3]) for line in (tiny / "ratings.csv").read_text().splitlines()]
    data = write_csv(tmp_path / "timeless.csv", rows)
    assert_refused(cli("train", "--data", data, "--split", split), "timestamps", "random")


@pytest.mark.parametrize("solver", ["gibbs", "als"])
def test_sessions_need_timestamps(solver: str, cli: Cli, tiny: Path, tmp_path: Path) -> None:
    rows = [tuple(line.split(",")[:3]) for line in (tiny / "ratings.csv").read_text().splitlines()]
    data, runs = write_csv(tmp_path / "timeless.csv", rows), tmp_path / "runs"
    refused = cli("train", solver, "--data", data, *SMALL, "--run-dir", runs, "--sessions")
    assert_refused(refused, "--sessions needs timestamps, which these ratings lack; leave it out")
    assert not runs.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("als --item-features genre", ["column", "'genre'", "did you mean 'genres'?"]),
        ("gibbs --item-features genres,yaer", ["column", "'yaer'", "did you mean 'year'?"]),
        ("als --user-features age", ["'age'"]),
        ("als --no-item-ids", ["feature"]),
        ("als --no-item-ids --implicit users", ["feature"]),
        ("als --nonnegative --item-features year", ["non-negative", "feature"]),
        ("sgd --item-features year", ["sgd does not support features", "gibbs"]),
        ("vb --nonnegative", ["vb does not support non-negative factors", "als"]),
        ("gibbs --nonnegative", ["gibbs does not support non-negative factors", "als"]),
        ("als --loss log-cosh", ["als does not support losses other than the squared error", "sgd"]),
        ("quasi-newton --method cg --nonnegative", ["cg", "l-bfgs-b"]),
    ],
)
def test_impossible_features_and_factors_are_refused_and_leave_nothing(
    arguments: str, words: list[str], cli: Cli, tiny: Path, tmp_path: Path
) -> None:
    solver, *options = arguments.split()
    runs = tmp_path / "runs"
    assert_refused(cli("train", solver, "--data", tiny, *SMALL, "--run-dir", runs, *options), *words)
    assert not runs.exists() or list(runs.iterdir()) == []


# Features and constraints.


@pytest.mark.parametrize(
    ("options", "others"),
    [
        (("--implicit", "users"), ("--implicit", "items")),
        (("--implicit", "both"), ()),
        (("--item-features", "year"), ("--item-features", "genres,year")),
        (("--item-features", "year", "--no-item-ids"), ("--item-features", "year")),
        (("--nonnegative",), ()),
    ],
    ids=lambda options: " ".join(options),
)
def test_options_of_the_model_change_its_predictions(
    options: tuple[str, ...], others: tuple[str, ...], train_run: TrainRun, tmp_path: Path
) -> None:
    errors = [
        Run.open(train_run(tmp_path, name, *chosen, solver="als")).metrics()["test"]["rmse"]
        for name, chosen in (("first", options), ("second", others))
    ]
    assert errors[0] != errors[1]


def test_nonnegative_training_leaves_factors_at_or_above_zero(train_run: TrainRun, tmp_path: Path) -> None:
    run = train_run(tmp_path, "run", "--nonnegative", solver="quasi-newton", epochs=6)
    state = Run.open(run).checkpoint()["model"]
    factors = torch.cat([state["users.factors.weight"], state["items.factors.weight"]])
    assert bool((factors >= 0).all())
    assert bool((factors == 0).any())
    assert bool((state["users.bias.weight"] < 0).any())


def test_user_and_item_columns_are_features(cli: Cli, tmp_path: Path) -> None:
    ratings = [f"{1 + n % 7}::{1 + n // 7}::{1 + n * n % 5}" for n in range(42)]
    users = [f"{j}::{'MF'[j % 2]}::{(18, 25, 35)[j % 3]}::{j % 4}::12345" for j in range(1, 8)]
    movies = [f"{i}::Film {i} ({1990 + i})::{('Drama', 'War|Drama', 'War')[i % 3]}" for i in range(1, 7)]
    folder = tmp_path / "small"
    folder.mkdir()
    for name, lines in (("ratings.dat", ratings), ("users.dat", users), ("movies.dat", movies)):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="latin-1")
    columns = ("--user-features", "age,gender,occupation", "--item-features", "genres")
    options = ("--data", folder, *SMALL, *columns, "--run-dir", tmp_path, "--name", "run", "--json")
    trained = answer(cli("train", "als", *options))
    trained_model = Run.open(tmp_path / "run").trained_model()
    blocks = [entity.features for entity in trained_model.model.entities]
    assert [block.features.n_features for entity in blocks for block in entity.values()] == [3 + 2 + 4, 2]
    assert answer(cli("evaluate", tmp_path / "run", "--json"))["test"] == trained["test"]
    refused = cli("train", "als", "--data", folder, *SMALL, "--user-features", "gendre", "--run-dir", tmp_path)
    assert_refused(refused, "'gendre'", "did you mean 'gender'?")


# Run folders.


def content(run: Path) -> dict[Path, bytes]:
    """The files of a run; not the stamp of those that were verified, which reading may write."""
    return {path: path.read_bytes() for path in run.rglob("[!.]*") if path.is_file()}


def test_an_existing_run_is_not_overwritten(trained_run: Path, cli: Cli, tiny: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "copy"))
    before = content(run)
    refused = cli("train", "--data", tiny, *SMALL, "--run-dir", run.parent, "--name", run.name)
    assert_refused(refused, run, "exists")
    assert content(run) == before


def test_a_run_dir_that_is_a_file_is_refused_by_its_path(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert_refused(cli("train", "--data", tiny, *SMALL, "--run-dir", folder), tmp_path / "file", "--run-dir")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_run_dir_is_refused_by_its_path(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert_refused(cli("train", "--data", tiny, *SMALL, "--run-dir", tmp_path), tmp_path, "--run-dir")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC], ids=lambda n: errno.errorcode[n])
def test_a_folder_that_cannot_be_made_is_refused_by_its_path(
    number: int, cli: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object, *arguments: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    refused = cli("train", "--data", tiny, *SMALL, "--run-dir", tmp_path / "runs")
    assert_refused(refused, tmp_path / "runs", os.strerror(number), "--run-dir")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_reported_with_the_file_that_did_not_fit(
    call: str, cli: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    refused = cli("train", "--data", tiny, *SMALL, "--run-dir", tmp_path)
    assert_refused(refused, tmp_path, "No space left")


def test_repeated_ratings_are_counted_on_stderr_and_the_last_counts(tmp_path: Path) -> None:
    path = tmp_path / "twice.csv"
    path.write_bytes(ratings_text(*(f"{u},{i},{3 + (u + i) % 2}" for u in range(9) for i in range(9)), "1,1,5"))
    output = in_a_process("--data", path, *SMALL, "--run-dir", tmp_path, "--json")
    assert output.status == 0, output.err
    assert loads_strictly(output.out)["n_ratings"] == 81
    assert output.err.count("\n") == 1
    assert re.search(r"\b1 of 82\b", output.err)


# Resuming.


def test_a_resumed_run_takes_its_own_options_and_ends_as_if_it_had_never_stopped(
    train_run: TrainRun, cli: Cli, tmp_path: Path
) -> None:
    options = ("--lr", 0.03, "--offset", "item")
    part, whole = train_run(tmp_path, "part", *options, epochs=3), train_run(tmp_path, "whole", *options, epochs=7)
    metrics = answer(cli("train", "--resume", part, "--epochs", 7, "--json"))
    assert metrics["run"] == str(part)
    expected = Run.open(whole).metrics()
    for split in SPLIT_NAMES:
        assert metrics[split] == expected[split]
    assert Run.open(part).config().options.lr == 0.03
    assert_refused(cli("train", "--resume", part), "--epochs must be above 7", "(got 7)")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rank", 5), ["--rank must stay 3", "(got 5)"]),
        (("--no-biases",), ["--biases must stay True", "(got False)"]),
        (("--seed", 1), ["--seed must stay 0", "(got 1)"]),
        (("--lr", 0.5), ["--lr must stay 0.09", "(got 0.5)"]),
        (("--config", "config.json"), ["--config cannot be used with --resume"]),
    ],
    ids=str,
)
def test_an_option_that_a_resumed_run_must_keep_is_refused(
    arguments: tuple[object, ...], words: list[str], trained_run: Path, cli: Cli, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "copy"))
    before = content(run)
    assert_refused(cli("train", "--resume", run, "--epochs", 9, *arguments), *words)
    assert content(run) == before


def test_a_run_is_resumed_with_its_own_solver(trained_run: Path, cli: Cli, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "copy"))
    assert_refused(cli("train", "als", "--resume", run, "--epochs", 9), "trained by sgd, not als; resume it with sgd")
    assert cli("train", "sgd", "--resume", run, "--epochs", 9).status == 0


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried …")],
    ids=repr,
)
def test_too_little_memory_is_reported_in_a_sentence(
    error: Exception, cli: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(building.MatrixFactorization, "from_ratings", fail)
    refused = cli("train", "--data", tiny, *SMALL, "--run-dir", tmp_path / "runs")
    assert_refused(refused, "not enough memory; lower --rank or --number, or use less data")
    assert not (tmp_path / "runs").exists()
    error.args = ("a defect",)
    if isinstance(error, RuntimeError):
        with pytest.raises(RuntimeError, match="a defect"):
            cli("train", "--data", tiny, *SMALL, "--run-dir", tmp_path / "runs")

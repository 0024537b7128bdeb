"""The command line, as somebody who uses it finds it."""

from __future__ import annotations

import errno
import inspect
import json
import math
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import Mfrec, Said, Train, write_csv

from mfrec.cli import VERBS
from mfrec.experiments.run import Run
from mfrec.model.objective import LOSSES
from mfrec.solvers.base import DEFAULT, SOLVERS

ROOT = Path(__file__).parents[1]
SMALL = ("--rank", 3, "--epochs", 2, "--log-every", 0)
COMMANDS = [
    *(("train", solver) for solver in SOLVERS),
    *((verb,) for verb in VERBS if verb not in ("train", "cv", "tune")),
]
HEADER = ("userId", "movieId", "rating")


def assert_refused(said: Said, *words: object) -> None:
    """Status 2, nothing on stdout, and one line on stderr that holds these words."""
    assert (said.status, said.out) == (2, ""), said
    assert said.err.startswith("mfrec: "), said.err
    assert said.err.count("\n") == 1, said.err
    assert said.err.endswith("\n")
    assert "Traceback" not in said.err
    assert not re.search(r"[-─]{3}|[│╭╮╰╯]", said.err), said.err
    for word in words:
        assert str(word) in said.err, said.err


def loads_strictly(text: str) -> Any:
    """JSON as other languages read it: without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def in_a_shell(*arguments: object, **environment: str) -> Said:
    """`python train.py ARGUMENTS …` in a process of its own."""
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
        check=False,
    )
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, to do with as one likes."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


@pytest.fixture(scope="module")
def printed(mfrec: Mfrec, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """The folder of runs and the output of a training whose output is for people."""
    folder = tmp_path_factory.mktemp("runs")
    return folder, mfrec("train", "--data", tiny, "--rank", 3, "--epochs", 3, "--run-dir", folder, "--name", "shown")


# Training.


def test_training_prints_baselines_recommendations_similar_items_and_where_to_look(
    printed: tuple[Path, Said],
) -> None:
    folder, said = printed
    assert said.status == 0
    rows = ("global mean", "item mean", "biases only", "sgd, rank 3")
    places = [re.search(rf"{row} +\d\.\d{{4}} +\d\.\d{{4}}", said.out) for row in rows]
    assert all(places)
    assert re.search(r"user \d+ rated highest", said.out)
    assert re.search(r"recommended to user \d+", said.out)
    assert "Film" in said.out
    assert "similar to " in said.out
    assert str(folder / "shown") in said.out
    assert f"tensorboard --logdir {folder}" in said.out


def test_training_leaves_the_stated_metrics(printed: tuple[Path, Said], tiny: Path) -> None:
    metrics = loads_strictly((printed[0] / "shown" / "metrics.json").read_text())
    stated = {"solver": DEFAULT, "dataset": "tiny", "split": "random", "seed": 0, "rank": 3, "epochs": 3}
    stated |= {"n_users": 40, "n_items": 30, "n_ratings": 600}
    assert list(metrics) == [*stated, "fit_seconds", "train", "valid", "test"]
    assert {key: metrics[key] for key in stated} == stated
    for part in ("train", "valid", "test"):
        assert list(metrics[part]) == ["rmse", "mae", "cost"]
        assert 0 < metrics[part]["mae"] <= metrics[part]["rmse"] < 4


def test_training_leaves_config_events_and_checkpoint(printed: tuple[Path, Said]) -> None:
    names = {path.name.split(".out.")[0] for path in (printed[0] / "shown").iterdir()}
    projection = {"projector_config.pbtxt", "item_factors.tsv", "item_metadata.tsv"}
    assert names == {"config.json", "dataset.pt", "checkpoint.pt", "metrics.json", "events", *projection}


def test_training_without_curves_leaves_nothing_for_tensorboard_and_the_same_model(
    train: Train, trained: Path, tmp_path: Path
) -> None:
    assert {path.name for path in trained.iterdir()} == {"config.json", "dataset.pt", "checkpoint.pt", "metrics.json"}
    told = train(tmp_path, "told", "--log-every", 1)
    assert Run.open(told).metrics() | {"fit_seconds": 0} == Run.open(trained).metrics() | {"fit_seconds": 0}


def test_the_json_of_training_is_alone_on_stdout_and_is_the_metrics_with_the_run(
    tiny: Path, mfrec: Mfrec, tmp_path: Path
) -> None:
    said = mfrec("train", "--data", tiny, *SMALL, "--run-dir", tmp_path, "--name", "run", "--json")
    answer = loads_strictly(said.out)
    assert answer.pop("run") == str(tmp_path / "run")
    assert answer == json.loads((tmp_path / "run" / "metrics.json").read_text())


@pytest.mark.parametrize("solver", [name for name, kind in SOLVERS.items() if not hasattr(kind, "learned")])
def test_every_solver_trains_and_lowers_the_cost(solver: str, tiny: Path, mfrec: Mfrec, tmp_path: Path) -> None:
    costs = []
    for epochs in (1, 20):
        said = mfrec(
            "train", solver, "--data", tiny, "--rank", 3, "--epochs", epochs, "--patience", 50,
            "--valid-fraction", 0, "--run-dir", tmp_path, "--json",
        )  # fmt: skip
        assert said.status == 0, said.err
        costs.append(loads_strictly(said.out)["train"]["cost"])
    assert costs[1] < costs[0]


@pytest.mark.parametrize("solver", ["vb", "gibbs"])
@pytest.mark.parametrize("option", ["--l2=3", "--bias-l2", "--scaling"])
def test_what_a_solver_learns_is_no_option_of_its(solver: str, option: str, mfrec: Mfrec) -> None:
    flag = option.partition("=")[0]
    said = mfrec("train", solver, option, "1")
    assert said == (2, "", f"mfrec: {solver} needs no {flag}: it finds that out by itself; leave it out\n")


def test_solvers_lists_every_solver_with_what_it_needs_and_takes(mfrec: Mfrec) -> None:
    rows = {row["solver"]: row for row in loads_strictly(mfrec("solvers", "--json").out)}
    assert list(rows) == list(SOLVERS)
    assert rows["gibbs"]["to tune"] == rows["vb"]["to tune"] == "nothing"
    assert rows["sgd"]["takes"] == "features, non-negative, losses"
    assert "RMSE" not in rows["sgd"]
    table = mfrec("solvers").out
    assert all(re.search(rf"^  {name} ", table, re.MULTILINE) for name in SOLVERS)


def test_solvers_measured_on_the_embedded_data_have_the_figures_that_train_gives(
    mfrec: Mfrec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in SOLVERS if name != "als"]:
        monkeypatch.delitem(SOLVERS, name)
    (row,) = loads_strictly(mfrec("solvers", "--measure", "--json").out)
    said = mfrec("train", "als", "--run-dir", tmp_path, "--json")
    assert row["RMSE"] == loads_strictly(said.out)["test"]["rmse"]
    assert row["seconds"] > 0


def test_train_py_is_mfrec_train_with_nothing_on_stderr_where_nobody_watches(tiny: Path, tmp_path: Path) -> None:
    said = in_a_shell("--data", tiny, *SMALL, "--run-dir", tmp_path / "new" / "runs", "--json")
    assert (said.status, said.err) == (0, "")
    assert loads_strictly(said.out)["run"] == str(tmp_path / "new" / "runs" / f"tiny-{DEFAULT}-1")


def test_bare_training_of_the_embedded_data_beats_biases_only(mfrec: Mfrec, tmp_path: Path) -> None:
    said = mfrec("train", "--run-dir", tmp_path)
    errors = {name: float(rmse) for name, rmse in re.findall(r"(biases only|sgd, rank \d+) +(\d\.\d+)", said.out)}
    (model,) = errors.keys() - {"biases only"}
    assert errors[model] < errors["biases only"] - 0.01
    metrics = json.loads((tmp_path / "ml-latest-small-sgd-1" / "metrics.json").read_text())
    assert metrics["n_ratings"] == 100_004


@pytest.mark.parametrize(
    "options",
    [
        ("--split", "per-user"),
        ("--split", "time"),
        ("--split", "leave-last-out"),
        ("--test-fraction", 0),
        ("--valid-fraction", 0),
        ("--no-biases", "--offset", "none"),
        ("--offset", "item", "--damping", 0),
        ("--init", "uniform"),
        ("--scaling", "rating", "--bias-l2", 0),
        ("--device", "cpu"),
        ("--rating-scale", 0, 6),
        ("--blocks", 1, 1),
        ("--blocks", 99, 99),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_every_option_works(options: tuple[object, ...], tiny: Path, mfrec: Mfrec, tmp_path: Path) -> None:
    said = mfrec("train", "--data", tiny, *SMALL, "--run-dir", tmp_path, *options)
    assert said.status == 0, said.err
    metrics = loads_strictly(next(tmp_path.glob("*/metrics.json")).read_text())
    assert math.isfinite(metrics["train"]["rmse"])


@pytest.mark.parametrize("part", ["test", "valid"])
def test_a_part_that_was_not_held_out_is_null(part: str, tiny: Path, mfrec: Mfrec, tmp_path: Path) -> None:
    said = mfrec("train", "--data", tiny, *SMALL, "--run-dir", tmp_path, f"--{part}-fraction", 0)
    assert said.status == 0, said.err
    assert loads_strictly(next(tmp_path.glob("*/metrics.json")).read_text())[part] is None
    assert mfrec("evaluate", next(tmp_path.iterdir())).status == 0


# Asking.


def test_evaluate_repeats_the_metrics_of_training(trained: Path, mfrec: Mfrec) -> None:
    trainings = json.loads((trained / "metrics.json").read_text())
    answer = loads_strictly(mfrec("evaluate", trained, "--json").out)
    assert answer == {"run": str(trained), **{part: trainings[part] for part in ("train", "valid", "test")}}
    shown = mfrec("evaluate", trained).out
    for part in ("train", "valid", "test"):
        assert re.search(rf"{part} +{trainings[part]['rmse']:.4f} +{trainings[part]['mae']:.4f}", shown)


FEATURES = ("--implicit", "both", "--item-features", "genres,year")


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        *((solver, FEATURES) for solver in SOLVERS if solver not in ("sgd", "vb")),
        ("sgd", (*FEATURES, "--lr", 0.002)),
        *((solver, (*FEATURES, "--no-item-ids")) for solver in ("als", "gibbs", "quasi-newton")),
        ("als", ("--item-features", "year", "--no-item-ids", "--no-biases")),
        ("als", ("--nonnegative",)),
        ("gd", ("--nonnegative", *FEATURES)),
        ("gibbs", ("--burn-in", 2)),
        ("sgd", ("--loss", "log-cosh")),
        ("vb", ()),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(map(str, value)),
)
def test_evaluate_and_recommend_make_the_model_of_the_run_again(
    solver: str, options: tuple[object, ...], tiny: Path, train: Train, mfrec: Mfrec, tmp_path: Path
) -> None:
    burn_in = ("--burn-in", 2) if solver == "gibbs" else ()
    run = train(tmp_path, "run", *burn_in, *options, solver=solver, epochs=6)
    metrics = json.loads((run / "metrics.json").read_text())
    answer = loads_strictly(mfrec("evaluate", run, "--json").out)
    measured = {part: metrics[part] for part in ("train", "valid", "test") if metrics[part] is not None}
    assert answer == {"run": str(run), **measured}
    assert f"{metrics['test']['rmse']:.4f}" in mfrec("evaluate", run).out
    assert ("coverage_90" in metrics["test"]) == (solver in ("vb", "gibbs"))
    assert "coverage_90" not in metrics["train"]
    for question in (("recommend", run, "--user", 1), ("similar", run, "--item", 8, "--min-ratings", 0)):
        said = mfrec(*question)
        assert said.status == 0, said.err
        assert "Film" in said.out


@pytest.mark.parametrize(
    ("options", "unlike"),
    [
        (("--implicit", "users"), ("--implicit", "items")),
        (("--implicit", "both"), ()),
        (("--item-features", "year"), ("--item-features", "genres,year")),
        (("--item-features", "year", "--no-item-ids"), ("--item-features", "year")),
        (("--nonnegative",), ()),
    ],
    ids=lambda options: " ".join(options),
)
def test_what_is_asked_of_the_factors_changes_what_is_predicted(
    options: tuple[str, ...], unlike: tuple[str, ...], train: Train, tmp_path: Path
) -> None:
    errors = [
        json.loads((train(tmp_path, name, *given, solver="als") / "metrics.json").read_text())["test"]["rmse"]
        for name, given in (("one", options), ("other", unlike))
    ]
    assert errors[0] != errors[1]


def test_nonnegative_training_leaves_factors_at_or_above_zero(train: Train, tmp_path: Path) -> None:
    run = train(tmp_path, "run", "--nonnegative", solver="quasi-newton", epochs=6)
    state = Run.open(run).checkpoint()["model"]
    factors = torch.cat([state["user_factors.weight"], state["item_factors.weight"]])
    assert bool((factors >= 0).all())
    assert bool((factors == 0).any())
    assert bool((state["user_bias.weight"] < 0).any())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("als --item-features genre", ["column", "'genre'", "did you mean 'genres'?"]),
        ("gibbs --item-features genres,yaer", ["column", "'yaer'", "did you mean 'year'?"]),
        ("als --user-features age", ["tiny knows nothing of its users", "'age'", "leave it out"]),
        ("als --no-item-ids", ["items without ids of their own need features", "genres"]),
        ("als --no-item-ids --implicit users", ["items without ids of their own need features"]),
        ("als --implicit user", ["--implicit", "user", "users"]),
        ("als --implict users", ["--implict", "--implicit"]),
        ("als --nonnegative --item-features year", ["als", "not the weights of features", "gd or sgd"]),
        ("vb --item-features year", ["vb takes no features", "gibbs"]),
        ("vb --nonnegative", ["vb", "not non-negative"]),
        ("gibbs --nonnegative", ["gibbs", "not non-negative"]),
        ("quasi-newton --method cg --nonnegative", ["method cg", "l-bfgs-b"]),
    ],
)
def test_features_and_factors_that_cannot_be_are_refused_and_leave_nothing(
    arguments: str, words: list[str], mfrec: Mfrec, tiny: Path, tmp_path: Path
) -> None:
    solver, *options = arguments.split()
    runs = tmp_path / "runs"
    assert_refused(mfrec("train", solver, "--data", tiny, *SMALL, "--run-dir", runs, *options), *words)
    assert not runs.exists() or list(runs.iterdir()) == []


def test_features_of_users_and_of_columns_of_any_name_train(mfrec: Mfrec, tmp_path: Path) -> None:
    ratings = [f"{1 + n % 7}::{1 + n // 7}::{1 + n * n % 5}" for n in range(42)]
    users = [f"{j}::{'MF'[j % 2]}::{(18, 25, 35)[j % 3]}::{j % 4}::12345" for j in range(1, 8)]
    movies = [f"{i}::Film {i} ({1990 + i})::{('Drama', 'War|Drama', 'War')[i % 3]}" for i in range(1, 7)]
    folder = tmp_path / "small"
    folder.mkdir()
    for name, lines in (("ratings.dat", ratings), ("users.dat", users), ("movies.dat", movies)):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="latin-1")
    columns = ("--user-features", "age,gender,occupation", "--item-features", "genres")
    said = mfrec("train", "als", "--data", folder, *SMALL, *columns, "--run-dir", tmp_path, "--name", "run", "--json")
    assert said.status == 0, said.err
    state = Run.open(tmp_path / "run").checkpoint()["model"]
    assert len(state["user_feature_factors.side.weight"]) == 3 + 2 + 4
    assert len(state["item_feature_factors.side.weight"]) == 2
    assert loads_strictly(mfrec("evaluate", tmp_path / "run", "--json").out)["test"] == loads_strictly(said.out)["test"]
    said = mfrec("train", "als", "--data", folder, *SMALL, "--user-features", "gendre", "--run-dir", tmp_path)
    assert_refused(said, "column of the users", "'gendre'", "did you mean 'gender'?")


def test_recommend_leaves_out_everything_that_the_user_rated(trained: Path, mfrec: Mfrec) -> None:
    dataset, _ = Run.open(trained).dataset()
    user = dataset.user_index("5")
    seen = {int(dataset.item_ids[i]) for i in dataset.ratings.items[dataset.ratings.users == user].tolist()}
    answer = loads_strictly(mfrec("recommend", trained, "--user", 5, "-n", 1000, "--json").out)
    assert {row["id"] for row in answer} == set(range(1, 31)) - seen
    predicted = [row["predicted"] for row in answer]
    assert predicted == sorted(predicted, reverse=True)
    assert all(1 <= value <= 5 for value in predicted)


def test_recommend_gives_as_many_as_asked_for(trained: Path, mfrec: Mfrec) -> None:
    answers = [
        loads_strictly(mfrec("recommend", trained, "--user", 5, *count, "--json").out)
        for count in ((), ("-n", 3), ("--number", 3))
    ]
    assert [len(answer) for answer in answers] == [10, 3, 3]
    assert answers[0][:3] == answers[1] == answers[2]


def test_recommend_shows_titles_under_what_the_user_rated_highest(trained: Path, mfrec: Mfrec) -> None:
    shown = mfrec("recommend", trained, "--user", 5, "-n", 3).out
    liked, recommended = shown.index("user 5 rated highest"), shown.index("recommended to user 5")
    assert liked < recommended
    answer = loads_strictly(mfrec("recommend", trained, "--user", 5, "-n", 3, "--json").out)
    for row in answer:
        assert row["title"] in shown[recommended:]


def test_similar_finds_an_item_by_id_and_by_title_in_any_case(trained: Path, mfrec: Mfrec) -> None:
    answers = [
        loads_strictly(mfrec("similar", trained, "--item", item, "-n", 4, "--min-ratings", 0, "--json").out)
        for item in ("8", "Seven Samurai (1954)", "seven samurai (1954)")
    ]
    assert answers[0] == answers[1] == answers[2]
    assert len(answers[0]) == 4
    assert 8 not in {row["id"] for row in answers[0]}
    cosines = [row["cosine"] for row in answers[0]]
    assert cosines == sorted(cosines, reverse=True)
    assert all(-1 <= cosine <= 1 for cosine in cosines)


def test_titles_with_quotes_commas_and_accents_come_through(trained: Path, mfrec: Mfrec) -> None:
    title = 'Amélie, or "Fate" (2001)'
    assert f"similar to {title}" in mfrec("similar", trained, "--item", "7", "--min-ratings", 0).out
    assert mfrec("similar", trained, "--item", title, "--min-ratings", 0).status == 0
    answer = loads_strictly(mfrec("similar", trained, "--item", 8, "-n", 99, "--min-ratings", 0, "--json").out)
    assert {row["id"]: row["title"] for row in answer}[7] == title


def test_similar_leaves_out_items_with_few_ratings(trained: Path, mfrec: Mfrec) -> None:
    counts = Run.open(trained).dataset()[0].ratings.by_item.counts
    floor = int(counts.median())
    answer = loads_strictly(mfrec("similar", trained, "--item", 8, "-n", 99, "--min-ratings", floor, "--json").out)
    assert len(answer) == int((counts >= floor).sum()) - int(counts[7] >= floor)


def test_a_title_typed_roughly_gets_the_near_ones_suggested(trained: Path, mfrec: Mfrec) -> None:
    for typed in ("seven samurai", "Sevn Samurai (1954)"):
        assert_refused(mfrec("similar", trained, "--item", typed), typed, "Seven Samurai (1954)")


def test_data_shows_counts_density_histogram_and_the_most_rated_titles_of_the_embedded_set(mfrec: Mfrec) -> None:
    answer = loads_strictly(mfrec("data", "ml-latest-small", "--json").out)
    assert (answer["n_users"], answer["n_items"], answer["n_ratings"]) == (671, 9066, 100_004)
    assert answer["density"] == pytest.approx(100_004 / (671 * 9066))
    assert sum(answer["rating_histogram"].values()) == 100_004
    assert answer["most_rated"][0]["title"] == "Forrest Gump (1994)"
    shown = mfrec("data", "ml-latest-small").out
    for word in ("671", "9,066", "100,004", "Forrest Gump (1994)", "3.5", "341"):
        assert word in shown


def test_data_reads_a_path_with_columns_of_any_name(mfrec: Mfrec, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "mine.csv", [("who", "what", "stars"), ("ann", "tea", 4), ("bob", "tea", 5)])
    answer = loads_strictly(mfrec("data", path, "--columns", "who,what,stars", "--json").out)
    assert (answer["dataset"], answer["n_users"], answer["n_items"], answer["n_ratings"]) == ("mine", 2, 1, 2)


def test_ids_that_are_words_work_in_every_command(mfrec: Mfrec, tmp_path: Path) -> None:
    pairs = [(f"user {u}", f"d'été {i}", 1 + (u * i) % 5) for u in range(12) for i in range(9) if (u + i) % 4]
    data = write_csv(tmp_path / "words.csv", [HEADER, *pairs])
    assert mfrec("train", "--data", data, *SMALL, "--run-dir", tmp_path, "--name", "run").status == 0
    rows = loads_strictly(mfrec("recommend", tmp_path / "run", "--user", "user 3", "--json").out)
    assert {row["id"] for row in rows} == {f"d'été {i}" for i in (1, 5)}
    assert mfrec("similar", tmp_path / "run", "--item", "d'été 3", "--min-ratings", 0).status == 0


# Help.


def options_of(mfrec: Mfrec, monkeypatch: pytest.MonkeyPatch, *command: str) -> dict[str, str]:
    """The help of each option of a command, by its longest flag."""
    monkeypatch.setenv("COLUMNS", "300")
    said = mfrec(*command, "--help")
    assert (said.status, said.err) == (0, "")
    options: dict[str, str] = {}
    for line in said.out.splitlines():
        text = line.strip("│ ")
        if re.match("--?[a-z]", text):
            flags, _, rest = text.partition("  ")
            flag = max(re.findall(r"--?[a-z][\w-]*", flags), key=len).replace("--no-", "--")
            options[flag] = rest.strip()
        elif options:
            options[flag] += text
    return options


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_option_has_a_help_text(command: tuple[str, ...], mfrec: Mfrec, monkeypatch: pytest.MonkeyPatch) -> None:
    options = options_of(mfrec, monkeypatch, *command)
    assert {"--help", "--json"} <= set(options)
    for option, text in options.items():
        assert len(re.sub(r"\((default|required).*", "", text)) > 3, f"{option}: {text!r}"


def test_the_options_of_a_solver_appear_under_it_alone(mfrec: Mfrec, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {solver: set(options_of(mfrec, monkeypatch, "train", solver)) for solver in ("sgd", "gd", "optim")}
    common = set.intersection(*options.values())
    assert {"--lr", "--rank", "--data", "--resume", "--json"} <= common
    assert options["gd"] == common
    assert options["optim"] - common == {"--optimizer"}
    assert options["sgd"] - common == {"--step", "--momentum", "--blocks", "--lr-decay"}


def test_the_solver_s_own_defaults_stand_in_its_help(mfrec: Mfrec, monkeypatch: pytest.MonkeyPatch) -> None:
    for solver, kind in SOLVERS.items():
        options = options_of(mfrec, monkeypatch, "train", solver)
        for name, value in kind.defaults.items():
            if name in getattr(kind, "learned", ()):
                assert f"--{name}" not in options
                continue
            assert f"(default: {value})" in options[f"--{name.replace('_', '-')}"]


def test_the_help_of_train_lists_every_solver_and_that_of_mfrec_every_command(mfrec: Mfrec) -> None:
    listed, commands = mfrec("train", "--help"), mfrec("--help")
    assert listed.status == commands.status == 0
    for solver in SOLVERS:
        assert re.search(rf"^  {solver} +\S", listed.out, re.MULTILINE)
    for verb in VERBS:
        assert re.search(rf"^  {verb} +\S", commands.out, re.MULTILINE)


def test_mfrec_alone_prints_its_help(mfrec: Mfrec) -> None:
    assert mfrec() == mfrec("--help")


class HalfStep:
    """Shrink everything by a share.

    Args:
        share: what is left of the factors after an epoch.
        shy_way: a word that changes nothing.
    """

    defaults: ClassVar[dict[str, Any]] = {"epochs": 3, "scaling": "row"}

    def __init__(
        self,
        model: torch.nn.Module,
        ratings: object,
        objective: object,
        *,
        generator: torch.Generator | None = None,
        share: float = 0.5,
        shy_way: str = "none",
    ) -> None:
        self.model, self.ratings, self.objective, self.share = model, ratings, objective, share

    def epoch(self) -> dict[str, float]:
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(self.share)
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def test_a_new_row_of_solvers_is_a_new_command_with_its_knobs_as_options(
    mfrec: Mfrec, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOLVERS, "halfstep", HalfStep)
    options = options_of(mfrec, monkeypatch, "train", "halfstep")
    assert "What is left of the factors" in options["--share"]
    assert "(default: none)" in options["--shy-way"]
    assert "(default: 3)" in options["--epochs"]
    assert "Shrink everything by a share." in mfrec("train", "--help").out
    place = ("--data", tiny, "--rank", 2, "--run-dir", tmp_path, "--name", "run")
    said = mfrec("train", "halfstep", *place, "--share", 0.25, "--valid-fraction", 0)
    assert said.status == 0, said.err
    run = Run.open(tmp_path / "run")
    assert run.config() | {"solver": "halfstep", "share": 0.25, "scaling": "row"} == run.config()
    assert float(run.trained().model.user_factors.weight.detach().abs().max()) < 0.1 * 4 * 0.25**3
    assert mfrec("train", "--resume", tmp_path / "run", "--epochs", 5).status == 0
    assert mfrec("evaluate", tmp_path / "run").status == 0
    assert_refused(mfrec("train", "halfsetp"), "halfsetp", "halfstep")


def test_a_new_row_of_losses_is_a_loss_to_train_evaluate_and_go_on_with(
    train: Train, mfrec: Mfrec, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOSSES, "absolute", lambda p, t: ((p - t).abs(), (p - t).sign()))
    run = train(tmp_path, "run", "--loss", "absolute")
    assert Run.open(run).metrics()["train"] != Run.open(trained).metrics()["train"]
    assert mfrec("train", "--resume", run, "--epochs", 5).status == 0
    assert mfrec("evaluate", run).status == 0
    pairs = write_csv(tmp_path / "pairs.csv", [HEADER[:2], (1, 7), (999, 7)])
    assert mfrec("predict", run, pairs, "--output", tmp_path / "predicted.csv").status == 0
    assert_refused(mfrec("recommend", run, "--rate", "Seven Samurai (1954)=5"), "least squares, not other losses")
    monkeypatch.delitem(LOSSES, "absolute")
    assert_refused(mfrec("evaluate", run), f"loss of {run}", "absolute", "squared")


def test_similar_takes_an_item_or_a_user_and_not_both_or_neither(mfrec: Mfrec, trained: Path) -> None:
    users = loads_strictly(mfrec("similar", trained, "--user", 1, "--min-ratings", 0, "-n", 3, "--json").out)
    assert len(users) == 3
    assert all(set(user) == {"cosine", "id", "ratings"} for user in users)
    assert "similar to user 1" in mfrec("similar", trained, "--user", 1, "--min-ratings", 0).out
    for options in ((), ("--user", 1, "--item", 8)):
        assert_refused(mfrec("similar", trained, *options), "give one of --item, --user and --all")


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("trian", ["trian", "train"]),
        ("train sdg", ["solver", "sdg", "sgd"]),
        ("train sgd --rnak 3", ["--rnak", "--rank"]),
        ("train sgd --data ml-latest-smal", ["ml-latest-smal", "ml-latest-small"]),
        ("data ml-10k", ["ml-10k", "ml-100k"]),
        ("train sgd --split randm", ["split", "randm", "random"]),
        ("train sgd --step implict", ["step", "implict", "implicit"]),
        ("train optim --optimizer adma", ["optimizer", "adma", "adam"]),
        ("train gd --loss log-cosch", ["loss", "log-cosch", "log-cosh"]),
        ("train gd --scaling rows", ["--scaling", "rows", "row"]),
        ("train sgd --momentun 0.5", ["--momentun", "--momentum"]),
        ("recommend RUN --usr 5", ["--usr", "--user"]),
    ],
)
def test_a_typo_gets_the_near_name_suggested(
    arguments: str, words: list[str], mfrec: Mfrec, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(mfrec(*arguments.replace("RUN", str(trained)).split()), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--rank 0", ["rank 0", "1 or more"]),
        ("--rank -3", ["rank -3", "1 or more"]),
        ("--rank many", ["--rank", "many"]),
        ("--rank", ["--rank"]),
        ("--l2 -1", ["l2 -1", "0 or more"]),
        ("--l2 nan", ["l2 nan"]),
        ("--bias-l2 -1", ["bias_l2 -1", "0 or more"]),
        ("--lr -1", ["lr -1", "positive"]),
        ("--lr 0", ["lr 0", "positive"]),
        ("--lr nan", ["lr nan"]),
        ("--lr inf", ["lr inf"]),
        ("--lr-decay -1", ["lr_decay -1"]),
        ("--momentum 1.5", ["momentum 1.5", "[0, 1)"]),
        ("--momentum -0.1", ["momentum -0.1", "[0, 1)"]),
        ("--blocks 0 4", ["blocks 0", "1 or more"]),
        ("--damping -1 --offset item", ["damping -1"]),
        ("--epochs 0", ["epochs 0", "1 or more"]),
        ("--patience 0", ["patience 0", "1 or more"]),
        ("--log-every -1", ["log_every -1", "1 or more"]),
        ("--test-fraction 1.5", ["fraction 1.5", "[0, 1)"]),
        ("--test-fraction -0.1", ["fraction -0.1", "[0, 1)"]),
        ("--valid-fraction 1", ["fraction 1", "[0, 1)"]),
        ("--valid-fraction nan", ["fraction nan", "[0, 1)"]),
        ("--split u1", ["tiny", "u1", "random"]),
        ("--seed x", ["--seed", "x"]),
        ("--seed -99999999999999999999", ["seed", "-99999999999999999999"]),
        ("--device tpu", ["--device", "tpu", "cpu"]),
        ("--rating-scale 5 1", ["5", "1"]),
        ("--rating-scale 2 3", ["2", "3"]),
        ("--duplicates never", ["--duplicates", "never", "last"]),
        ("--columns who,what", ["who,what"]),
        ("--columns who,what,stars", ["who", "userId"]),
        ("--name a/b", ["a/b"]),
        ("--name ..", [".."]),
        ("--name=", ["''"]),
        ("--optimizer adam", ["--optimizer"]),
        ("more", ["more"]),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_its_name_and_value_and_leaves_nothing(
    arguments: str, words: list[str], mfrec: Mfrec, tiny: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    assert_refused(mfrec("train", "sgd", "--data", tiny, *SMALL, "--run-dir", runs, *arguments.split()), *words)
    assert not runs.exists() or list(runs.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this torch has a GPU")
@pytest.mark.parametrize("command", ["train --data TINY", "evaluate RUN"])
def test_a_gpu_that_is_not_there_is_refused(command: str, mfrec: Mfrec, tiny: Path, trained: Path) -> None:
    arguments = command.replace("TINY", str(tiny)).replace("RUN", str(trained)).split()
    assert_refused(mfrec(*arguments, "--device", "cuda"), "cuda", "--device cpu")


@pytest.mark.parametrize("split", ["time", "leave-last-out"])
def test_a_split_by_time_of_ratings_without_timestamps_is_refused(
    split: str, mfrec: Mfrec, tiny: Path, tmp_path: Path
) -> None:
    rows = [tuple(line.split(",")[:3]) for line in (tiny / "ratings.csv").read_text().splitlines()]
    data = write_csv(tmp_path / "timeless.csv", rows)
    assert_refused(mfrec("train", "--data", data, "--split", split), "timestamps", "random")


def a_zip(path: Path, **members: str) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path.read_bytes()


def ratings_text(*rows: str) -> bytes:
    return "\n".join((",".join(HEADER), *rows, "")).encode()


BAD_FILES: dict[str, tuple[Callable[[Path], bytes], list[str]]] = {
    "empty": (lambda path: b"", ["empty"]),
    "header only": (lambda path: ratings_text(), ["no ratings"]),
    "missing column": (lambda path: b"userId,movieId\n1,2\n", ["userId, movieId", "rating"]),
    "text in a rating": (lambda path: ratings_text("1,2,4", "1,3,good"), ["line 3", "good", "number"]),
    "NaN": (lambda path: ratings_text("1,2,nan"), ["line 2", "nan"]),
    "infinite": (lambda path: ratings_text("1,2,inf"), ["line 2", "inf"]),
    "no user": (lambda path: ratings_text("1,2,3", ",3,3"), ["line 3", "user"]),
    "off the scale": (lambda path: ratings_text("1,2,7"), ["7", "0.5", "5"]),
    "binary": (lambda path: bytes(range(256)) * 8, ["binary"]),
    "truncated zip": (lambda path: a_zip(path, **{"ratings.csv": ratings_text("1,2,3").decode()})[:60], ["zip"]),
    "corrupt zip": (
        lambda path: a_zip(path, **{"ratings.csv": "userId,movieId,rating\n1,2,3\n"}).replace(b"1,2,3", b"9,9,9"),
        ["ratings.csv", "zip"],
    ),
    "zip that leaves its folder": (lambda path: a_zip(path, **{"../ratings.csv": "x"}), ["../ratings.csv", "outside"]),
    "zip without ratings": (lambda path: a_zip(path, a="x", b="y"), ["ratings.csv"]),
}


@pytest.mark.parametrize("kind", BAD_FILES)
@pytest.mark.parametrize("command", ["train --data", "data"])
def test_a_file_that_holds_no_ratings_is_refused_by_its_path(
    command: str, kind: str, mfrec: Mfrec, tmp_path: Path
) -> None:
    make, words = BAD_FILES[kind]
    path = tmp_path / "given"
    path.write_bytes(make(path))
    named = path if "scale" not in kind else ""
    assert_refused(mfrec(*command.split(), path), named, *words)


def test_a_folder_without_ratings_and_a_path_that_is_not_there_are_refused(mfrec: Mfrec, tmp_path: Path) -> None:
    assert_refused(mfrec("data", tmp_path), tmp_path, "ratings.csv")
    assert_refused(mfrec("train", "--data", tmp_path / "nothing.csv"), tmp_path / "nothing.csv", "path")


def test_ratings_repeated_are_counted_and_refused_if_asked(mfrec: Mfrec, tmp_path: Path) -> None:
    path = tmp_path / "twice.csv"
    path.write_bytes(ratings_text("1,2,3", "1,2,5", "1,2,4", "2,2,1"))
    assert_refused(mfrec("data", path, "--duplicates", "error"), "2 of 4", "last")
    kept = {
        way: loads_strictly(mfrec("data", path, "--duplicates", way, "--json").out)["rating_histogram"]
        for way in ("last", "first", "mean")
    }
    assert kept == {"last": {"1": 1, "4": 1}, "first": {"1": 1, "3": 1}, "mean": {"1": 1, "4": 1}}


def test_ratings_repeated_are_told_of_on_stderr_and_the_last_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "twice.csv"
    path.write_bytes(ratings_text(*(f"{u},{i},{3 + (u + i) % 2}" for u in range(9) for i in range(9)), "1,1,5"))
    said = in_a_shell("--data", path, *SMALL, "--run-dir", tmp_path, "--json")
    assert said.status == 0, said.err
    assert loads_strictly(said.out)["n_ratings"] == 81
    assert said.err.count("\n") == 1
    assert re.search(r"\b1 of 82\b", said.err)


# Data at the edge.


@pytest.mark.parametrize(
    "rows",
    [
        ["1,2,3"],
        [f"1,{i},{1 + i % 5}" for i in range(30)],
        [f"{u},1,{1 + u % 5}" for u in range(30)],
        [f"{u},{i},4" for u in range(9) for i in range(9)],
        [f"{u},{u},{1 + u % 5}" for u in range(30)],
    ],
    ids=["one rating", "one user", "one item", "all ratings the same", "nothing shared"],
)
@pytest.mark.parametrize("solver", SOLVERS)
def test_data_at_the_edge_trains_and_predicts(solver: str, rows: list[str], mfrec: Mfrec, tmp_path: Path) -> None:
    path, run = tmp_path / "edge.csv", tmp_path / "run"
    path.write_bytes(ratings_text(*rows))
    user, item, _ = rows[0].split(",")
    said = mfrec("train", solver, "--data", path, "--epochs", 30, "--run-dir", tmp_path, "--name", "run")
    assert said.status == 0, said.err
    metrics = loads_strictly((run / "metrics.json").read_text())
    assert 0 <= metrics["train"]["rmse"] < 3
    for command in (("evaluate", run), ("recommend", run, "--user", user), ("similar", run, "--item", item)):
        asked = mfrec(*command)
        assert asked.status == 0, asked.err
        assert "nan" not in asked.out


def test_users_and_items_only_in_the_test_part_get_finite_predictions(mfrec: Mfrec, tmp_path: Path) -> None:
    path, run = tmp_path / "sparse.csv", tmp_path / "run"
    path.write_bytes(ratings_text(*(f"{n},{1000 + n},{1 + n % 5}" for n in range(40))))
    said = mfrec("train", "--data", path, *SMALL, "--test-fraction", 0.5, "--run-dir", tmp_path, "--name", "run")
    assert said.status == 0, said.err
    dataset, part = Run.open(run).dataset()
    alone = int(dataset.ratings.users[part == 2][0])
    rows = loads_strictly(
        mfrec("recommend", run, "--user", dataset.user_ids[alone], "-n", 99, "--min-ratings", 0, "--json").out
    )
    assert len(rows) == 39
    assert all(math.isfinite(row["predicted"]) for row in rows)
    assert math.isfinite(loads_strictly(mfrec("evaluate", run, "--json").out)["test"]["rmse"])


# Run folders.

ASKING = [("evaluate",), ("recommend", "--user", 1), ("similar", "--item", 8), ("train", "--resume")]


def ask(mfrec: Mfrec, question: tuple[object, ...], run: Path) -> Said:
    verb, *options = question
    return mfrec(verb, *options, run, "--epochs", 9) if verb == "train" else mfrec(verb, run, *options)


def name_of(question: tuple[object, ...]) -> str:
    return " ".join(map(str, question))


@pytest.mark.parametrize("question", ASKING, ids=name_of)
def test_a_run_folder_that_is_not_one_is_refused(question: tuple[object, ...], mfrec: Mfrec, tmp_path: Path) -> None:
    a_file = tmp_path / "file"
    a_file.touch()
    for path in (tmp_path, tmp_path / "nothing", a_file, a_file / "below"):
        assert_refused(ask(mfrec, question, path), path, "run folder")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "truncated checkpoint": ("checkpoint.pt", lambda run: cut(run / "checkpoint.pt")),
    "empty checkpoint": ("checkpoint.pt", lambda run: (run / "checkpoint.pt").write_bytes(b"")),
    "checkpoint of noise": ("checkpoint.pt", lambda run: (run / "checkpoint.pt").write_bytes(os.urandom(999))),
    "checkpoint of something else": ("checkpoint.pt", lambda run: torch.save({"a": 1}, run / "checkpoint.pt")),
    "checkpoint of a list": ("checkpoint.pt", lambda run: torch.save([1], run / "checkpoint.pt")),
    "dataset for a checkpoint": (
        "checkpoint.pt", lambda run: shutil.copy(run / "dataset.pt", run / "checkpoint.pt"),
    ),
    "truncated dataset": ("dataset.pt", lambda run: cut(run / "dataset.pt")),
    "checkpoint for a dataset": ("dataset.pt", lambda run: shutil.copy(run / "checkpoint.pt", run / "dataset.pt")),
    "no dataset": ("dataset.pt", lambda run: (run / "dataset.pt").unlink()),
    "config that is no JSON": ("config.json", lambda run: cut(run / "config.json")),
    "config that is a list": ("config.json", lambda run: (run / "config.json").write_text("[]")),
    "config of noise": ("config.json", lambda run: (run / "config.json").write_bytes(b"\xff\xfe\x00")),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("question", ASKING, ids=name_of)
def test_a_damaged_run_is_refused_by_the_file_that_is_at_fault(
    question: tuple[object, ...], damage: str, run: Path, mfrec: Mfrec
) -> None:
    file, do = DAMAGES[damage]
    do(run)
    assert_refused(ask(mfrec, question, run), run, file)


@pytest.mark.parametrize("question", [ASKING[0], ASKING[3]], ids=name_of)
def test_a_config_that_lacks_an_option_is_refused_by_its_path(
    question: tuple[object, ...], run: Path, mfrec: Mfrec
) -> None:
    config = json.loads((run / "config.json").read_text())
    for name in ("l2", "solver"):
        (run / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key != name}))
        assert_refused(ask(mfrec, question, run), run, name)


@pytest.mark.parametrize("other", [("--rank", 5), ("--no-biases",), ("--offset", "item")], ids=name_of)
def test_a_checkpoint_of_another_model_is_refused_on_resuming(
    other: tuple[object, ...], run: Path, mfrec: Mfrec, tiny: Path, tmp_path: Path
) -> None:
    options = other if "--rank" in other else ("--rank", 3, *other)
    place = ("--data", tiny, "--run-dir", tmp_path, "--name", "other")
    assert mfrec("train", *place, "--epochs", 2, "--blocks", 2, 2, *options).status == 0
    shutil.copy(tmp_path / "other" / "checkpoint.pt", run / "checkpoint.pt")
    assert_refused(mfrec("train", "--resume", run, "--epochs", 9), run / "checkpoint.pt", "config.json")


@pytest.mark.parametrize("question", ASKING, ids=name_of)
def test_a_checkpoint_of_other_data_is_refused(
    question: tuple[object, ...], run: Path, mfrec: Mfrec, tmp_path: Path
) -> None:
    path = tmp_path / "other.csv"
    path.write_bytes(ratings_text(*(f"{u},{i},{1 + (u * i) % 5}" for u in range(9) for i in range(7))))
    assert mfrec("train", "--data", path, *SMALL, "--run-dir", tmp_path, "--name", "other").status == 0
    shutil.copy(tmp_path / "other" / "checkpoint.pt", run / "checkpoint.pt")
    assert_refused(ask(mfrec, question, run), run / "checkpoint.pt")


def test_the_name_of_a_run_that_exists_is_refused_and_the_run_stays(run: Path, mfrec: Mfrec, tiny: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    said = mfrec("train", "--data", tiny, *SMALL, "--run-dir", run.parent, "--name", run.name)
    assert_refused(said, run, "--name", f"--resume {run}")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_folder_of_runs_that_is_a_file_is_refused_by_its_path(mfrec: Mfrec, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert_refused(mfrec("train", "--data", tiny, *SMALL, "--run-dir", folder), tmp_path / "file", "--run-dir")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes where nobody may")
def test_a_folder_of_runs_that_is_read_only_is_refused_by_its_path(mfrec: Mfrec, tiny: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert_refused(mfrec("train", "--data", tiny, *SMALL, "--run-dir", tmp_path), tmp_path, "--run-dir")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC], ids=lambda n: errno.errorcode[n])
def test_a_disk_that_takes_no_folder_is_refused_by_the_path(
    number: int, mfrec: Mfrec, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object, *arguments: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    said = mfrec("train", "--data", tiny, *SMALL, "--run-dir", tmp_path / "runs")
    assert_refused(said, tmp_path / "runs", os.strerror(number), "--run-dir")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_is_full_is_refused_by_the_file_that_did_not_fit(
    call: str, mfrec: Mfrec, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    said = mfrec("train", "--data", tiny, *SMALL, "--run-dir", tmp_path)
    assert_refused(said, tmp_path, "No space left")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("recommend RUN --user 999", ["user", "999", "40 users"]),
        ("recommend RUN --user 5 -n 0", ["0", "1 or more"]),
        ("recommend RUN --user 5 -n -2", ["-2", "1 or more"]),
        ("similar RUN --item 999", ["item", "999", "30 items"]),
        ("similar RUN --item 8 -n 0", ["0", "1 or more"]),
        ("similar RUN", ["--item"]),
        ("evaluate", ["RUN"]),
        ("data", ["NAME_OR_PATH"]),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(
    arguments: str, words: list[str], mfrec: Mfrec, trained: Path
) -> None:
    assert_refused(mfrec(*arguments.replace("RUN", str(trained)).split()), *words)


def test_a_terminal_that_knows_ascii_alone_gets_help_and_answers_and_not_a_traceback(
    mfrec: Mfrec, trained: Path
) -> None:
    for command in (("train", "gd", "--help"), ("similar", trained, "--item", 8, "-n", 99, "--min-ratings", 0)):
        said = mfrec(*command, encoding="ascii")
        assert (said.status, said.err) == (0, "")
        assert "--lr" in said.out or "Am?lie" in said.out
    assert_refused(mfrec("train", "sgd", "--rnak", 3, encoding="ascii"), "--rnak", "did you mean --rank?")


def test_a_mistake_is_named_on_a_terminal_that_can_draw_no_boxes() -> None:
    assert_refused(in_a_shell("--init", "Uniform", LC_ALL="C", PYTHONIOENCODING="ascii"), "'Uniform'")


def test_a_mistake_in_a_shell_is_status_2_and_one_line(tmp_path: Path) -> None:
    assert_refused(in_a_shell("sgd", "--rank", 0, "--run-dir", tmp_path), "rank 0", "1 or more")


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_tables_keep_every_number_and_id_however_narrow_the_terminal_and_long_the_title(
    columns: int, trained: Path, mfrec: Mfrec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    question = ("similar", trained, "--item", 8, "-n", 99, "--min-ratings", 0)
    rows, shown = loads_strictly(mfrec(*question, "--json").out), mfrec(*question).out
    assert max(map(len, shown.splitlines())) <= columns
    for word in ("cosine", "title", "genres", "Strangelove", "Drama"):
        assert word in shown
    for row in rows:
        assert re.search(rf"{row['cosine']:.3f} +{row['id']} +\w", shown)


def test_output_that_nobody_reads_to_its_end_is_no_error(trained: Path) -> None:
    code = "import sys; from mfrec.cli import main; sys.exit(main(sys.argv[1:]))"
    asking = subprocess.Popen(
        [sys.executable, "-c", code, "recommend", str(trained), "--user", "5"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    asking.stdout.close()
    asking.stdout = None
    assert asking.communicate(timeout=120)[1] == ""


def test_the_one_line_summary_of_every_command_is_a_sentence() -> None:
    for kind in (*VERBS.values(), *SOLVERS.values()):
        assert (inspect.getdoc(kind) or "").splitlines()[0].endswith(".")

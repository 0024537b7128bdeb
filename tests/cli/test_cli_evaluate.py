"""`mfrec evaluate`: the metrics of training again, errors by group, and ranking metrics."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from cli_checks import answer, assert_refused
from conftest import Cli, TrainRun, write_csv

from mfrec.data.splits import SPLIT_NAMES
from mfrec.experiments.run import Run
from mfrec.solvers.registry import SOLVERS

FEATURES = ("--implicit", "both", "--item-features", "genres,year")
RANKING_METRICS = ("precision", "recall", "ndcg", "map", "mrr", "hit rate")


def test_evaluate_repeats_the_metrics_of_training(trained_run: Path, cli: Cli) -> None:
    metrics = Run.open(trained_run).metrics()
    repeated = answer(cli("evaluate", trained_run, "--json"))
    assert repeated == {"run": str(trained_run), **{split: metrics[split] for split in SPLIT_NAMES}}
    shown = cli("evaluate", trained_run).out
    for split in SPLIT_NAMES:
        assert re.search(
            rf"^ +{split} +{metrics[split]['rmse']:.4f} +{metrics[split]['mae']:.4f} *$", shown, re.MULTILINE
        )


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        *((solver, FEATURES) for solver in SOLVERS if solver not in ("sgd", "block-sgd", "vb")),
        ("block-sgd", (*FEATURES, "--lr", 0.002)),
        *((solver, (*FEATURES, "--no-item-ids")) for solver in ("als", "gibbs", "quasi-newton")),
        ("als", ("--item-features", "year", "--no-item-ids", "--no-biases")),
        ("als", ("--nonnegative",)),
        ("gd", ("--nonnegative", *FEATURES)),
        ("gibbs", ("--burn-in", 2)),
        ("sgd", ("--loss", "log-cosh")),
        ("vb", ()),
        ("vb", ("--split", "per-user-time", "--recent-bias", 3)),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(map(str, value)),
)
def test_the_verbs_that_answer_rebuild_the_model_of_the_run(
    solver: str, options: tuple[object, ...], train_run: TrainRun, cli: Cli, tmp_path: Path
) -> None:
    burn_in = ("--burn-in", 2) if solver == "gibbs" else ()
    run = train_run(tmp_path, "run", *burn_in, *options, solver=solver, epochs=6)
    metrics = Run.open(run).metrics()
    measured = {split: metrics[split] for split in SPLIT_NAMES if metrics[split] is not None}
    assert answer(cli("evaluate", run, "--json")) == {"run": str(run), **measured}
    assert f"{metrics['test']['rmse']:.4f}" in cli("evaluate", run).out
    is_bayesian = solver in ("vb", "gibbs")
    assert ("coverage_90" in metrics["test"]) == is_bayesian
    assert ("test: 90 % intervals contain" in cli("evaluate", run).out) == is_bayesian
    assert "coverage_90" not in metrics["train"]
    recommended = answer(cli("recommend", run, "--user", 1, "--json"))
    assert all(("std" in row) == is_bayesian and math.isfinite(row["predicted"]) for row in recommended)
    assert len(answer(cli("similar", run, "--item", 8, "--min-ratings", 0, "-n", 3, "--json"))) == 3


def test_ranking_metrics_have_intervals_and_say_who_was_left_out(trained_run: Path, cli: Cli) -> None:
    output = cli("evaluate", trained_run, "--ranking", 5)
    assert output.status == 0, output.err
    table = output.out[output.out.index("top 5 of all items, test split") :]
    assert re.search(r"metric +@5 +95 % interval", table)
    ranking = answer(cli("evaluate", trained_run, "--ranking", 5, "--json"))["ranking"]
    for name in RANKING_METRICS:
        mean = ranking["means"][name.replace(" ", "_")]
        assert re.search(rf"^ +{name} +{mean:.4f} +\d\.\d{{4}}–\d\.\d{{4}}", table, re.MULTILINE), name
    assert "relevant items are rated" in table
    assert f"without the {ranking['n_left_out']:,} users with none" in table
    ranking_at_3 = answer(cli("evaluate", trained_run, "--ranking", 5, "--threshold", 3, "--json"))["ranking"]
    assert ranking_at_3["threshold"] == 3
    assert ranking_at_3["n_left_out"] < ranking["n_left_out"]
    for name, (low, high) in ranking_at_3["intervals_95"].items():
        assert low <= ranking_at_3["means"][name] <= high


@pytest.fixture(scope="module")
def bayesian_run(train_run: TrainRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of vb on the tiny data; read it only."""
    return train_run(tmp_path_factory.mktemp("runs"), "vb", solver="vb", epochs=12)


def test_probabilities_have_scores_calibration_and_coverage(bayesian_run: Path, cli: Cli) -> None:
    output = cli("evaluate", bayesian_run, "--probabilities")
    assert output.status == 0, output.err
    measured = answer(cli("evaluate", bayesian_run, "--probabilities", "--json"))["probabilities"]
    assert (measured["n_ratings"], measured["n_between_levels"]) == (60, 0)
    assert measured["log_likelihood"] > measured["training_shares"]["log_likelihood"]
    assert measured["ranked_probability_score"] < measured["training_shares"]["ranked_probability_score"]
    shown = [" ".join(line.split()) for line in output.out.splitlines()]
    assert f"vb {measured['log_likelihood']:.4f} {measured['ranked_probability_score']:.4f}" in shown
    assert [row["level"] for row in measured["levels"]] == [1, 2, 3, 4, 5]
    for row in measured["levels"]:
        assert row["difference"] == pytest.approx(row["predicted"] - row["observed"])
        error, by_chance = row["calibration_error"], row["calibration_error_by_chance"]
        numbers = [row["predicted"], row["observed"], row["difference"], error, by_chance]
        formats = [".2%", ".2%", "+.2%", ".2%", ".2%"]
        assert f"{row['level']:g} {' '.join(map(format, numbers, formats))}" in shown
    assert [row["interval"] for row in measured["coverage"]] == [0.5, 0.8, 0.9, 0.95]
    for row in measured["coverage"]:
        assert f"{row['interval']:.0%} {row['inside']:.1%} {row['inside'] - row['interval']:+.1%}" in shown
    assert sum(measured["pit_histogram"]) == pytest.approx(1)
    assert "test: 90 % intervals contain" in output.out


def test_continuous_ratings_have_coverage_only(cli: Cli, tmp_path: Path) -> None:
    rows = [(u, i, 1 + (17 * u * i + 3 * u + i) % 97 / 24) for u in range(20) for i in range(15) if (u + i) % 3]
    data = write_csv(tmp_path / "ratings.csv", [("user", "item", "rating"), *rows])
    place = ("--data", data, "--run-dir", tmp_path, "--name", "run", "--log-every", 0)
    assert cli("train", "vb", *place, "--rank", 2, "--epochs", 3).status == 0
    output = cli("evaluate", tmp_path / "run", "--probabilities")
    assert "too many distinct values" in output.out
    assert "coverage of central intervals" in output.out
    measured = answer(cli("evaluate", tmp_path / "run", "--probabilities", "--json"))["probabilities"]
    assert list(measured) == ["n_ratings", "coverage", "pit_histogram"]


def test_probabilities_of_a_point_estimate_are_refused(trained_run: Path, cli: Cli) -> None:
    words = ("--probabilities needs standard deviations", "a point estimate", "train a Bayesian solver")
    assert_refused(cli("evaluate", trained_run, "--probabilities"), *words)


def test_the_seed_decides_the_intervals(trained_run: Path, cli: Cli) -> None:
    intervals = [
        answer(cli("evaluate", trained_run, "--ranking", 5, "--seed", seed, "--json"))["ranking"]["intervals_95"]
        for seed in (1, 1, 2)
    ]
    assert intervals[0] == intervals[1] != intervals[2]


@pytest.mark.parametrize("by", ["user", "item", "rating", "popularity", "cold_start"])
def test_errors_by_group_add_up_to_the_error_of_the_split(by: str, trained_run: Path, cli: Cli) -> None:
    measured = answer(cli("evaluate", trained_run, "--by", by, "--json"))
    groups = measured[f"test_by_{by}"]
    assert all(by in group for group in groups)
    squares = sum(group["n_ratings"] * (group["rmse"] or 0) ** 2 for group in groups)
    n_ratings = sum(group["n_ratings"] for group in groups)
    assert n_ratings == 60
    assert (squares / n_ratings) ** 0.5 == pytest.approx(measured["test"]["rmse"], abs=1e-4)
    output = cli("evaluate", trained_run, "--by", by)
    assert f"test split by {by}" in output.out
    if by in ("user", "item"):
        errors = [group["rmse"] for group in groups]
        assert errors == sorted(errors, reverse=True)
        assert f"10 of {len(groups)}, the largest RMSE first; --json prints all" in output.out


def test_a_run_without_held_out_ratings_cannot_be_measured_by_group(
    train_run: TrainRun, cli: Cli, tmp_path: Path
) -> None:
    run = train_run(tmp_path, "run", "--test-fraction", 0, "--valid-fraction", 0)
    for option in (("--by", "user"), ("--ranking", 5), ("--probabilities",)):
        assert_refused(cli("evaluate", run, *option), "no held-out ratings", "--test-fraction above 0")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--threshold", 4), "--threshold needs --ranking"),
        (("--min-ratings", 4), "--min-ratings needs --ranking"),
        (("--ranking", 0), "--ranking must be at least 1 (got 0)"),
        (("--ranking", 5, "--threshold", 9), "9 or more"),
        (("--ranking", 5, "--threshold", "nan"), "nan"),
        (("--ranking", 5, "--min-ratings", 9999), "--min-ratings leaves no items"),
        (("--seed", -1), "--seed must be in [0, "),
    ],
    ids=str,
)
def test_an_impossible_measurement_is_refused(
    options: tuple[object, ...], words: str, trained_run: Path, cli: Cli
) -> None:
    assert_refused(cli("evaluate", trained_run, *options), words)

"""`--config`: the options of a run, or of a file like its config.json, start another run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_checks import SMALL, answer, assert_refused
from conftest import Cli, TrainRun

from mfrec.experiments.run import Run


def user_factors(run: Path) -> torch.Tensor:
    return Run.open(run).trained_model().model.user_factors.weight.detach()


@pytest.mark.parametrize(("solver", "options"), [
    ("sgd", ("--l2", 1.5, "--no-biases", "--offset", "item")),
    ("als", ("--nonnegative", "--relaxation", 0.8)),
    ("vb", ("--cg-steps", 3)),
    ("gibbs", ("--homoscedastic", "--burn-in", 1, "--implicit", "both", "--item-features", "genres,year")),
])  # fmt: skip
def test_a_run_s_config_starts_a_run_with_the_same_bits(
    solver: str, options: tuple[object, ...], train_run: TrainRun, cli: Cli, tmp_path: Path
) -> None:
    first = train_run(tmp_path, "first", *options, solver=solver)
    config = first / "config.json"
    output = cli("train", "--config", config, "--run-dir", tmp_path, "--name", "second", "--json")
    assert output.status == 0, output.err
    assert torch.equal(user_factors(first), user_factors(tmp_path / "second"))
    again, before = (Run.open(tmp_path / name).config() for name in ("second", "first"))
    assert again == before.updated(name="second")


def test_a_run_s_config_does_not_reuse_its_place_or_its_device(
    train_run: TrainRun, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = train_run(tmp_path / "elsewhere", "first", "--device", "cpu") / "config.json"
    monkeypatch.chdir(tmp_path)
    assert answer(cli("train", "--config", config, "--json"))["run"] == "runs/tiny-sgd-1"
    assert json.loads((tmp_path / "runs" / "tiny-sgd-1" / "config.json").read_text())["fit"]["device"] == "auto"


def test_the_command_line_overrides_the_config_and_its_solver(train_run: TrainRun, cli: Cli, tmp_path: Path) -> None:
    config = train_run(tmp_path, "first", "--no-biases") / "config.json"
    for solver, name, options in (("sgd", "a", ("--rank", 2, "--biases")), ("als", "b", ()), ("vb", "c", ())):
        output = cli("train", solver, "--config", config, *options, "--run-dir", tmp_path, "--name", name, "--json")
        assert output.status == 0, output.err
    model = Run.open(tmp_path / "a").config().model
    assert (model.rank, model.biases) == (2, True)
    for solver, name in (("als", "b"), ("vb", "c")):
        config = Run.open(tmp_path / name).config()
        assert (config.solver, config.model.rank, config.fit.epochs, config.model.biases) == (solver, 3, 4, False)


def test_a_few_options_are_enough(tiny: Path, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    groups = {"data": {"data": str(tiny), "rating_range": [0.5, 5]}, "model": {"rank": 2}, "fit": {"epochs": 2}}
    path.write_text(json.dumps({"solver": "als", **groups}))
    assert cli("train", "--config", path, "--run-dir", tmp_path, "--name", "run").status == 0
    config = Run.open(tmp_path / "run").config()
    assert (config.solver, config.model.rank, config.data.rating_range) == ("als", 2, (0.5, 5.0))


@pytest.mark.parametrize("verb", ["train", "cv", "tune"])
@pytest.mark.parametrize(("content", "words"), [
    ('{"model": {"rnk": 3}}', ["unknown option 'rnk' in mine.json; did you mean 'rank'"]),
    ('{"modle": {"rank": 3}}', ["unknown group of options 'modle' in mine.json; did you mean 'model'"]),
    ('{"solver": "alss"}', ["unknown solver 'alss' in mine.json; did you mean 'als'"]),
    ('{"model": {"rank": "three"}}', ["rank in mine.json must be int", "(got 'three')"]),
    ('{"model": {"rank": true}}', ["rank in mine.json must be int", "(got True)"]),
    ('{"model": 3}', ["model in mine.json must be an object"]),
    ('{"model": {"rank": 0}}', ["--rank must be at least 1 (got 0)"]),
    ('{"solver": []}', ["mine.json"]),
    ('{"run": {"plugin": "x"}}', ["plugin in mine.json must be a list"]),
    ('{"run": {"plugin": ["nowhere_to_be_found"]}}', ["nowhere_to_be_found"]),
    ("{", ["mine.json cannot be read as JSON"]),
    ("[" * 100_000, ["mine.json cannot be read as JSON"]),
    ("[1]", ["mine.json must hold a JSON object"]),
    (None, ["there is no file mine.json"]),
])  # fmt: skip
def test_an_impossible_config_is_refused(
    verb: str, content: str | None, words: list[str], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("mine.json").write_text(content)
    assert_refused(cli(verb, "--config", "mine.json"), *words)
    assert not Path("runs").exists()


def test_a_config_may_be_for_a_solver_of_a_plugin(
    cli: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config_plugin.py").write_text(
        "from mfrec.solvers.registry import SOLVERS\nSOLVERS['twin-of-als'] = SOLVERS['als']\n"
    )
    config = {"solver": "twin-of-als", "run": {"plugin": ["config_plugin"]}, "data": {"data": str(tiny)}}
    Path("mine.json").write_text(json.dumps(config))
    try:
        assert answer(cli("train", "--config", "mine.json", *SMALL, "--json"))["solver"] == "twin-of-als"
    finally:
        from mfrec.solvers.registry import SOLVERS

        SOLVERS.pop("twin-of-als", None)

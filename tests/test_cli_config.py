"""`mfrec train --config`: what a run was started with starts another, as the same command line would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import Mfrec, Train

from mfrec.experiments.run import Run


def weights(run: Path) -> torch.Tensor:
    return Run.open(run).trained().model.user_factors.weight.detach()


@pytest.mark.parametrize(("solver", "options"), [
    ("sgd", ("--l2", 1.5, "--no-biases", "--offset", "item")),
    ("als", ("--nonnegative", "--relaxation", 0.8)),
    ("vb", ("--cg-steps", 3)),
    ("gibbs", ("--same-noise", "--burn-in", 1, "--implicit", "both", "--item-features", "genres,year")),
])  # fmt: skip
def test_a_run_s_config_starts_a_run_of_the_same_bits(
    solver: str, options: tuple[object, ...], train: Train, mfrec: Mfrec, tmp_path: Path
) -> None:
    first = train(tmp_path, "first", *options, solver=solver)
    said = mfrec("train", "--config", first / "config.json", "--run-dir", tmp_path, "--name", "second", "--json")
    assert said.status == 0, said.err
    assert torch.equal(weights(first), weights(tmp_path / "second"))
    config, before = (Run.open(tmp_path / name).config() for name in ("second", "first"))
    of_the_call = ("name", "config", "command")
    assert {k: v for k, v in config.items() if k not in of_the_call} == {
        k: v for k, v in before.items() if k not in of_the_call
    }


def test_a_flag_overrides_the_config_and_a_solver_by_name_its_solver(
    train: Train, mfrec: Mfrec, tmp_path: Path
) -> None:
    config = train(tmp_path, "first") / "config.json"
    for named, name, flags in (("sgd", "a", ("--rank", 2)), ("als", "b", ())):
        said = mfrec("train", named, "--config", config, *flags, "--run-dir", tmp_path, "--name", name, "--json")
        assert said.status == 0, said.err
    assert Run.open(tmp_path / "a").config()["rank"] == 2
    other = Run.open(tmp_path / "b").config()
    assert (other["solver"], other["rank"], other["epochs"]) == ("als", 3, 4)


def test_a_few_options_are_config_enough(tiny: Path, mfrec: Mfrec, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"solver": "als", "data": str(tiny), "rank": 2, "epochs": 2, "rating_scale": [0.5, 5]}))
    assert mfrec("train", "--config", path, "--run-dir", tmp_path, "--name", "run").status == 0
    assert Run.open(tmp_path / "run").config()["rating_scale"] == [0.5, 5.0]


@pytest.mark.parametrize(("content", "words"), [
    ('{"rnk": 3}', "unknown option in mine.json 'rnk'; did you mean 'rank'"),
    ('{"solver": "alss"}', "unknown solver in mine.json 'alss'; did you mean 'als'"),
    ('{"rank": "three"}', "three"),
    ('{"rank": 0}', "rank 0 leaves no factors"),
    ("{", "mine.json cannot be read as JSON"),
    ("[1]", "mine.json is not a JSON object"),
    (None, "there is no file mine.json"),
])  # fmt: skip
def test_a_config_that_cannot_be_is_refused(
    content: str | None, words: str, mfrec: Mfrec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("mine.json").write_text(content)
    said = mfrec("train", "--config", "mine.json")
    assert (said.status, said.out) == (2, "")
    assert words in said.err
    assert said.err.count("\n") == 1
    assert not Path("runs").exists()

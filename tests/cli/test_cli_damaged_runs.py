"""A folder that is not a run, a damaged run, and files of another run: refused by the file at fault."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_checks import SMALL, assert_refused, ratings_text
from conftest import Cli, Output, TrainRun, write_csv

ASKING = [("evaluate",), ("recommend", "--user", 1), ("similar", "--item", 8), ("train", "--resume")]


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, to be damaged."""
    return Path(shutil.copytree(trained_run, tmp_path / "copy"))


def ask(cli: Cli, question: tuple[object, ...], run: Path) -> Output:
    verb, *options = question
    return cli(verb, *options, run, "--epochs", 9) if verb == "train" else cli(verb, run, *options)


def name_of(question: tuple[object, ...]) -> str:
    return " ".join(map(str, question))


@pytest.mark.parametrize("question", ASKING, ids=name_of)
def test_a_folder_that_is_not_a_run_is_refused(question: tuple[object, ...], cli: Cli, tmp_path: Path) -> None:
    a_file = tmp_path / "file"
    a_file.touch()
    for path in (tmp_path, tmp_path / "nothing", a_file, a_file / "below"):
        assert_refused(ask(cli, question, path), path, "run folder")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Flip one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch hostile",)


LABELS = "split_labels.pt"
DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "truncated checkpoint": ("checkpoint.pt", lambda run: cut(run / "checkpoint.pt")),
    "checkpoint with a flipped bit": ("checkpoint.pt", lambda run: flip(run / "checkpoint.pt")),
    "empty checkpoint": ("checkpoint.pt", lambda run: (run / "checkpoint.pt").write_bytes(b"")),
    "checkpoint of noise": ("checkpoint.pt", lambda run: (run / "checkpoint.pt").write_bytes(os.urandom(999))),
    "checkpoint of something else": ("checkpoint.pt", lambda run: torch.save({"a": 1}, run / "checkpoint.pt")),
    "checkpoint of a list": ("checkpoint.pt", lambda run: torch.save([1], run / "checkpoint.pt")),
    "hostile checkpoint": ("checkpoint.pt", lambda run: torch.save({"a": Hostile()}, run / "checkpoint.pt")),
    "labels for a checkpoint": ("checkpoint.pt", lambda run: shutil.copy(run / LABELS, run / "checkpoint.pt")),
    "no checkpoint": ("checkpoint", lambda run: (run / "checkpoint.pt").unlink()),
    "truncated labels": (LABELS, lambda run: cut(run / LABELS)),
    "checkpoint for labels": (LABELS, lambda run: shutil.copy(run / "checkpoint.pt", run / LABELS)),
    "truncated ratings": ("items.npy", lambda run: cut(run / "dataset" / "items.npy")),
    "ratings with a flipped bit": ("values.npy", lambda run: flip(run / "dataset" / "values.npy")),
    "dataset without a header": ("prepared.json", lambda run: (run / "dataset" / "prepared.json").unlink()),
    "header with a flipped bit": ("prepared.json", lambda run: flip(run / "dataset" / "prepared.json")),
    "no dataset": ("prepared.json", lambda run: shutil.rmtree(run / "dataset")),
    "truncated config": ("config.json", lambda run: cut(run / "config.json")),
    "config with a flipped bit": ("config.json", lambda run: flip(run / "config.json")),
    "config that is a list": ("config.json", lambda run: (run / "config.json").write_text("[]")),
    "config of noise": ("config.json", lambda run: (run / "config.json").write_bytes(b"\xff\xfe\x00")),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("question", ASKING, ids=name_of)
def test_a_damaged_run_is_refused_by_the_file_at_fault(
    question: tuple[object, ...], damage: str, run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    file, do = DAMAGES[damage]
    do(run)
    refused = ask(cli, question, run)
    assert_refused(refused, run, file)
    assert "weights_only" not in refused.err
    assert not (tmp_path / "hostile").exists()


@pytest.mark.parametrize("question", ASKING, ids=name_of)
def test_an_edited_config_is_refused(question: tuple[object, ...], run: Path, cli: Cli) -> None:
    config = json.loads((run / "config.json").read_text())
    config["model"]["rank"] = 7
    (run / "config.json").write_text(json.dumps(config, indent=2))
    assert_refused(ask(cli, question, run), run / "config.json")


@pytest.mark.parametrize("options", [("--rank", 5), ("--no-biases",), ("--offset", "item")], ids=name_of)
def test_a_checkpoint_of_another_model_is_refused_on_resuming(
    options: tuple[object, ...], run: Path, cli: Cli, tiny: Path, tmp_path: Path
) -> None:
    rank = () if "--rank" in options else ("--rank", 3)
    place = ("--data", tiny, "--run-dir", tmp_path, "--name", "other", "--log-every", 0)
    assert cli("train", *place, "--epochs", 2, *rank, *options).status == 0
    shutil.copy(tmp_path / "other" / "checkpoint.pt", run / "checkpoint.pt")
    assert_refused(cli("train", "--resume", run, "--epochs", 9), run / "checkpoint.pt")


@pytest.mark.parametrize("question", ASKING, ids=name_of)
def test_a_checkpoint_of_other_data_is_refused(
    question: tuple[object, ...], run: Path, cli: Cli, tmp_path: Path
) -> None:
    path = tmp_path / "other.csv"
    path.write_bytes(ratings_text(*(f"{u},{i},{1 + (u * i) % 5}" for u in range(9) for i in range(7))))
    assert cli("train", "--data", path, *SMALL, "--run-dir", tmp_path, "--name", "other").status == 0
    shutil.copy(tmp_path / "other" / "checkpoint.pt", run / "checkpoint.pt")
    assert_refused(ask(cli, question, run), run, "checkpoint.pt")


def test_a_run_of_another_version_is_refused_by_every_verb(run: Path, cli: Cli, tmp_path: Path) -> None:
    pairs = write_csv(tmp_path / "pairs.csv", [("user", "item"), (1, 8)])
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"format": 2}))
    for verb in (("recommend",), ("evaluate",), ("similar", "--item", 1), ("predict", pairs)):
        assert_refused(cli(verb[0], run, *verb[1:]), "another version of mfrec")


def test_output_that_nobody_reads_to_its_end_is_not_an_error(trained_run: Path) -> None:
    asking = subprocess.Popen(
        [sys.executable, "-m", "mfrec", "recommend", str(trained_run), "--user", "5"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    asking.stdout.close()
    asking.stdout = None
    assert asking.communicate(timeout=120)[1] == ""
    assert asking.returncode == 141


def test_a_run_stopped_before_its_first_metrics_can_answer_and_be_resumed(
    train_run: TrainRun, cli: Cli, tmp_path: Path
) -> None:
    run = train_run(tmp_path, "killed")
    (run / "metrics.json").unlink()
    assert cli("evaluate", run).status == 0
    assert cli("train", "--resume", run, "--epochs", 9).status == 0

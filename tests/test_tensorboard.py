"""What TensorBoard shows of runs, read back over HTTP from a real server."""

from __future__ import annotations

import contextlib
import html
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Mfrec, Train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mfrec.runs import Run
from mfrec.tensorboard import open_writer

PATIENCE_SECONDS = 60.0
EPOCHS = 11
EVERY = ("--log-every", 1)
PARAMETERS = ("user_factors", "item_factors", "user_bias", "item_bias")
CURVES = ("cost/train", "cost/valid", "rmse/train", "rmse/valid", "mae/train", "mae/valid")
RUNS = ("whole", "resumed", "killed")


class Server:
    """A TensorBoard server on a free port of this machine."""

    def __init__(self, folder: Path, its_log: Path) -> None:
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1"]
        self.its_log = its_log
        with its_log.open("w") as log:
            self.process = subprocess.Popen([*command, "--port", "0", "--reload_interval", "1"], stderr=log, stdout=log)
        # Loopback, whatever proxy the environment names.
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def wait_for_address(self) -> None:
        self.address = self.wait(lambda: re.search(r"http://127\.0\.0\.1:\d+", self.its_log.read_text()))[0]

    def get(self, plugin: str, post: dict[str, Any] | None = None, **query: str) -> Any:
        url = f"{self.address}/data/plugin/{plugin}?{urllib.parse.urlencode(query)}"
        data = None if post is None else json.dumps(post).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with self.opener.open(request, timeout=PATIENCE_SECONDS) as answer:
            return json.load(answer)

    def curve(self, run: str, tag: str) -> list[tuple[int, float]]:
        return [(step, value) for _, step, value in self.get("scalars/scalars", run=run, tag=tag)]

    def wait(self, look: Callable[[], Any]) -> Any:
        """What `look` sees once it sees something."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (seen := look()):
            assert self.process.poll() is None, self.its_log.read_text()
            assert time.monotonic() < deadline, self.its_log.read_text()
            time.sleep(0.1)
        return seen


@pytest.fixture(scope="module")
def runs(train: Train, mfrec: Mfrec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three runs of the same options: never stopped, resumed, and killed before its last checkpoint."""
    folder = tmp_path_factory.mktemp("tensorboard")
    train(folder, "whole", *EVERY, epochs=EPOCHS)
    resumed, killed = train(folder, "resumed", *EVERY, epochs=4), train(folder, "killed", *EVERY, epochs=4)
    shutil.copy(killed / "checkpoint.pt", folder / "after 4")
    wait_for_another_second()
    assert mfrec("train", "--resume", killed, "--epochs", 7).status == 0
    shutil.move(folder / "after 4", killed / "checkpoint.pt")  # as if epochs 5 to 7 had been lost
    wait_for_another_second()
    for run in (resumed, killed):
        assert mfrec("train", "--resume", run, "--epochs", EPOCHS).status == 0
    return folder


def wait_for_another_second() -> None:
    """TensorBoard reads event files in the order of their names, which tell the second that they are from."""
    time.sleep(1.05)


@pytest.fixture(scope="module")
def server(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(runs, tmp_path_factory.mktemp("server") / "log")
    try:
        server.wait_for_address()
        server.wait(lambda: all("final/rmse_test" in tags for tags in list_tags(server, "scalars").values()))
        yield server
    finally:
        server.process.terminate()
        try:
            server.process.wait(10)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()


def list_tags(server: Server, plugin: str) -> dict[str, Any]:
    """The tags of each run; of nothing, while the server has not yet read all runs."""
    tags = server.get(f"{plugin}/tags")
    return tags if set(RUNS) <= set(tags) else {"": ()}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("tag", CURVES)
def test_every_curve_has_one_point_an_epoch_without_gap_or_doubled_point(server: Server, run: str, tag: str) -> None:
    assert [step for step, _ in server.curve(run, tag)] == list(range(EPOCHS + 1))


@pytest.mark.parametrize("run", RUNS[1:])
@pytest.mark.parametrize("tag", [*CURVES, "lr", "gradient_norm/user_factors"])
def test_a_run_that_was_resumed_shows_the_curve_of_one_that_never_stopped(server: Server, run: str, tag: str) -> None:
    assert server.curve(run, tag) == server.curve("whole", tag)


def test_a_server_without_fast_loading_shows_no_doubled_points_either(runs: Path) -> None:
    events = EventAccumulator(str(runs / "killed")).Reload()
    for tag in CURVES:
        assert [event.step for event in events.Scalars(tag)] == list(range(EPOCHS + 1))


def test_a_run_killed_before_its_second_checkpoint_starts_its_curves_anew(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "run", "run")
    for first, epochs in ((None, 6), (0, 9)):
        with contextlib.closing(open_writer(run.path, first)) as writer:
            for epoch in range(epochs):
                writer.add_scalar("rmse/valid", 1.0, epoch)
        time.sleep(1.1)  # the second's file is named by the second
    events = EventAccumulator(str(run.path)).Reload()
    assert [event.step for event in events.Scalars("rmse/valid")] == list(range(9))


def test_the_learning_rate_has_a_point_for_every_epoch_done(server: Server) -> None:
    assert [step for step, _ in server.curve("whole", "lr")] == list(range(1, EPOCHS + 1))


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_gradient_norms_are_logged_at_the_start_and_every_few_epochs(server: Server, parameter: str) -> None:
    steps, norms = zip(*server.curve("whole", f"gradient_norm/{parameter}"), strict=True)
    assert steps == (0, 10)
    assert min(norms) > 0


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("parameter", PARAMETERS)
def test_parameters_have_histograms(server: Server, run: str, parameter: str) -> None:
    found = server.get("histograms/histograms", run=run, tag=f"parameters/{parameter}")
    assert [step for _, step, _ in found] == list(range(EPOCHS + 1))


@pytest.mark.parametrize("run", RUNS)
def test_the_config_stands_as_text_with_every_option(server: Server, runs: Path, run: str) -> None:
    tag = next(tag for tag in server.get("text/tags")[run] if tag.startswith("config"))
    shown = html.unescape(server.get("text/text", run=run, tag=tag)[-1]["text"])
    config = json.loads((runs / run / "config.json").read_text())
    assert json.loads(shown[shown.index("{") : shown.rindex("}") + 1]) == config


def test_curves_and_metrics_agree_on_the_best_epoch(server: Server, runs: Path) -> None:
    measured = json.loads((runs / "whole" / "metrics.json").read_text())
    best = min(value for step, value in server.curve("whole", "rmse/valid") if step)
    assert best == pytest.approx(measured["valid"]["rmse"], rel=1e-6)


def test_every_run_has_its_row_of_hparams_with_its_final_metrics(server: Server, runs: Path) -> None:
    experiment = server.get("hparams/experiment", post={"experimentName": ""})
    options = {info["name"] for info in experiment["hparamInfos"]}
    assert {"solver", "rank", "lr", "l2", "seed"} <= options
    metrics = {info["name"]["tag"] for info in experiment["metricInfos"]}
    assert {f"final/{metric}_{part}" for metric in ("rmse", "mae", "cost") for part in ("train", "valid", "test")} <= (
        metrics
    )
    asked = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
        "colParams": [],
        "startIndex": 0,
        "sliceSize": 100,
    }
    rows = server.get("hparams/session_groups", post=asked)["sessionGroups"]
    assert sorted(row["sessions"][0]["name"] for row in rows) == sorted(RUNS)
    for row in rows:
        assert row["hparams"]["rank"] == 3
        final = {value["name"]["tag"]: value["value"] for value in row["metricValues"]}
        measured = json.loads((runs / row["sessions"][0]["name"] / "metrics.json").read_text())
        assert final["final/rmse_test"] == pytest.approx(measured["test"]["rmse"], rel=1e-6)

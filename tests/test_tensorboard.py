"""What TensorBoard shows of runs, read back over HTTP from a real server."""

from __future__ import annotations

import contextlib
import html
import io
import json
import os
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

import numpy as np
import pytest
import torch
from conftest import Mfrec, Train
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mfrec.experiments.run import Run
from mfrec.experiments.tensorboard import open_writer

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


@contextlib.contextmanager
def serving(runs: Path, its_log: Path) -> Iterator[Server]:
    """A server that has found its address, until it is no longer needed."""
    server = Server(runs, its_log)
    try:
        server.wait_for_address()
        yield server
    finally:
        server.process.terminate()
        try:
            server.process.wait(10)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()


@pytest.fixture(scope="module")
def server(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(runs, tmp_path_factory.mktemp("server") / "log") as server:
        server.wait(lambda: all("final/rmse_test" in tags for tags in list_tags(server, "scalars").values()))
        yield server


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


PICTURES = {"predicted_against_actual", "calibration", "error_by_popularity", "spectrum"}


@pytest.mark.parametrize(
    ("solver", "pictures"),
    [("als", PICTURES), ("vb", PICTURES | {"coverage"}), ("gibbs", PICTURES | {"coverage", "trace"})],
)
def test_a_run_has_its_pictures_and_they_are_not_blank(
    solver: str, pictures: set[str], train: Train, tmp_path: Path
) -> None:
    burn_in = ("--burn-in", 2) if solver == "gibbs" else ()
    events = EventAccumulator(str(train(tmp_path, "run", *EVERY, *burn_in, solver=solver, epochs=6))).Reload()
    assert set(events.Tags()["images"]) == {f"pictures/{name}" for name in pictures}
    for tag in events.Tags()["images"]:
        pixels = np.asarray(Image.open(io.BytesIO(events.Images(tag)[-1].encoded_image_string)))
        assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 20, tag


def test_the_training_part_s_curves_have_a_point_every_log_every_epochs_and_the_validation_part_s_all(
    train: Train, tmp_path: Path
) -> None:
    events = EventAccumulator(str(train(tmp_path, "run", "--log-every", 3, epochs=8))).Reload()
    assert [event.step for event in events.Scalars("rmse/train")] == [0, 3, 6, 8]
    assert [event.step for event in events.Scalars("rmse/valid")] == list(range(9))
    assert [event.step for event in events.Scalars("lr")] == list(range(1, 9))


def test_custom_scalars_have_train_and_valid_in_one_chart(server: Server) -> None:
    layout = server.get("custom_scalars/layout")
    charts = {chart["title"]: chart["multiline"]["tag"] for part in layout["category"] for chart in part["chart"]}
    assert charts["RMSE, stars"] == ["rmse/train", "rmse/valid"]
    known = set(server.get("scalars/tags")["whole"])
    for tags in charts.values():
        assert any(re.fullmatch(tag, one) for tag in tags for one in known), tags


def test_the_projector_has_every_item_s_factors_beside_its_title_year_and_genres(server: Server, runs: Path) -> None:
    config = server.get("projector/info", run="whole")["embeddings"][0]
    url = f"{server.address}/data/plugin/projector/metadata?run=whole&name={config['tensorName']}"
    header, *rows = server.opener.open(url).read().decode().splitlines()
    assert header.split("\t") == ["title", "n_ratings", "id", "year", "genres"]
    items = Run.open(runs / "whole").trained().train.item_counts
    assert [int(row.split("\t")[1]) for row in rows] == sorted(items.tolist(), reverse=True)
    assert any(row.startswith('Amélie, or "Fate" (2001)\t') for row in rows)
    assert config["tensorShape"] == [len(rows), 3]


def test_texts_tell_the_command_that_was_typed_the_versions_and_the_device(server: Server) -> None:
    def shown(run: str, tag: str) -> str:
        return html.unescape(server.get("text/text", run=run, tag=f"{tag}/text_summary")[-1]["text"])

    assert "mfrec train sgd --data " in shown("whole", "command")
    assert "mfrec train --resume " in shown("resumed", "command")
    for word in ("torch", torch.__version__, "mfrec", "cpu", "threads"):
        assert word in shown("whole", "environment")


# The pages themselves, in a browser.

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
# All text of a page, what its components hide in shadow trees and frames included.
PAGE_TEXT = """
const found = [];
const walk = node => {
  if (node.tagName === 'STYLE' || node.tagName === 'SCRIPT') return;
  if (node.nodeType === Node.TEXT_NODE && node.textContent.trim()) found.push(node.textContent.trim());
  if (node.shadowRoot) walk(node.shadowRoot);
  if (node.contentDocument) walk(node.contentDocument);
  node.childNodes.forEach(walk);
};
walk(document.body);
return found.join(' ');
"""
# How many of the page's pictures have been drawn.
PICTURES_SHOWN = """
const count = node => (node.tagName === 'IMG' && node.naturalWidth > 300 ? 1 : 0)
  + [...(node.shadowRoot ? node.shadowRoot.childNodes : []), ...node.childNodes].reduce((n, one) => n + count(one), 0);
return count(document.body);
"""


@pytest.fixture(scope="module")
def page(mfrec: Mfrec, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    """A browser at a page of the TensorBoard of two real runs."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("there is no Chromium with its driver here (Debian's packages chromium and chromium-driver)")
    folder = tmp_path_factory.mktemp("pages")
    for solver in ("sgd", "als"):
        place = ("--run-dir", folder / "runs", "--name", solver)
        assert mfrec("train", solver, *place, "--log-every", 1, "--json").status == 0
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update",
                 "disable-quic", "disable-sync", "no-first-run", "no-proxy-server", "enable-unsafe-swiftshader",
                 "window-size=1500,1160", f"user-data-dir={folder / 'profile'}"):  # fmt: skip
        options.add_argument(f"--{flag}")
    with serving(folder / "runs", folder / "log") as server:
        browser = webdriver.Chrome(options, Service(DRIVER))
        try:

            def opened(name: str) -> Any:
                browser.get("about:blank")  # so that the same page is loaded anew
                browser.get(f"{server.address}/{name}")
                return browser

            opened.server = server  # type: ignore[attr-defined]
            yield opened
        finally:
            browser.quit()


def at_rest(browser: Any) -> bool:
    """Whether nothing on the page has moved for a second."""
    before = browser.get_screenshot_as_png()
    time.sleep(1)
    return before == browser.get_screenshot_as_png()


def assert_page_shows(page: Callable[[str], Any], name: str, *words: str) -> Any:
    browser = page(name)
    try:
        page.server.wait(lambda: all(word in browser.execute_script(PAGE_TEXT) for word in words))  # type: ignore[attr-defined]
    except AssertionError:
        missing = [word for word in words if word not in browser.execute_script(PAGE_TEXT)]
        raise AssertionError(f"the page {name} does not show {missing}") from None
    return browser


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("scalars", ["rmse", "cost", "gradient_norm", "final", "sgd", "als"]),
        ("custom_scalars", ["training and validation", "RMSE, stars", "gradient norms"]),
        ("histograms", ["parameters/item_factors"]),
        ("hparams", ["sgd", "als", "rank", "final/rmse_test"]),
        ("text", ["environment", "mfrec train sgd"]),
        ("projector", ["Points: 5000", "Dimension: 128", "item_factors"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_page_shows_the_runs_in_a_browser(page: Callable[[str], Any], name: str, words: list[str]) -> None:
    assert_page_shows(page, f"#{name}", *words)


def test_curves_and_pictures_are_on_one_page_of_which_the_readme_shows_a_screenshot(
    page: Callable[[str], Any], tmp_path: Path
) -> None:
    filtered = "?tagFilter=cost/train|rmse/|mae/valid|pictures/pre&smoothing=0#timeseries"
    browser = assert_page_shows(page, filtered, "Tags matching filter", "/predicted_against_actual")
    page.server.wait(lambda: browser.execute_script(PICTURES_SHOWN) >= 2)  # type: ignore[attr-defined]
    next(one for one in browser.find_elements(By.TAG_NAME, "button") if "Settings" in one.text).click()
    # SCREENSHOTS=benchmarks pytest tests/test_tensorboard.py makes the README's anew.
    screenshot = Path(os.environ.get("SCREENSHOTS", tmp_path)) / "tensorboard.png"
    page.server.wait(lambda: at_rest(browser))  # type: ignore[attr-defined]
    assert browser.save_screenshot(str(screenshot))
    assert len(np.unique(np.asarray(Image.open(screenshot))[..., :3].reshape(-1, 3), axis=0)) > 500

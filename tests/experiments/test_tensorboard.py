"""TensorBoard shows runs as they were logged: read back over HTTP from a real server, and in a browser."""

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
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mfrec.evaluation.metrics import METRICS, Metric
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.run import Run
from mfrec.experiments.tensorboard import TensorBoardLogger, layout
from mfrec.experiments.training import train

PATIENCE_SECONDS = 60.0
EPOCHS = 11
PARAMETERS = ("users.factors", "items.factors", "users.bias", "items.bias")
CURVES = ("cost/train", "cost/valid", "rmse/train", "rmse/valid", "mae/train", "mae/valid")
RUNS = ("whole", "resumed", "killed")


class Server:
    """A TensorBoard server on a free port of this machine."""

    def __init__(self, folder: Path, log_file: Path) -> None:
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1"]
        self.log_file = log_file
        with log_file.open("w") as log:
            self.process = subprocess.Popen([*command, "--port", "0", "--reload_interval", "1"], stderr=log, stdout=log)
        # Loopback, even if the environment names a proxy.
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def wait_for_address(self) -> None:
        self.address = self.wait(lambda: re.search(r"http://127\.0\.0\.1:\d+", self.log_file.read_text()))[0]

    def get(self, plugin: str, post: dict[str, Any] | None = None, **query: str) -> Any:
        url = f"{self.address}/data/plugin/{plugin}?{urllib.parse.urlencode(query)}"
        data = None if post is None else json.dumps(post).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with self.opener.open(request, timeout=PATIENCE_SECONDS) as response:
            return json.load(response)

    def curve(self, run: str, tag: str) -> list[tuple[int, float]]:
        return [(step, value) for _, step, value in self.get("scalars/scalars", run=run, tag=tag)]

    def wait(self, check: Callable[[], Any]) -> Any:
        """Wait until `check` returns something true; return that."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (result := check()):
            assert self.process.poll() is None, self.log_file.read_text()
            assert time.monotonic() < deadline, self.log_file.read_text()
            time.sleep(0.1)
        return result


def train_run(folder: Path, name: str, data: Path, solver: str = "sgd", **options: Any) -> Path:
    """A run folder with TensorBoard's files."""
    common: dict[str, Any] = {"rank": 3, "patience": 100, "log_every": 1, "device": "cpu", "loggers": ("tensorboard",)}
    place = {"data": str(data), "run_dir": str(folder), "name": name}
    # Step sizes that do not depend on the number of epochs.
    schedule = {"lr_epochs": 8} if solver == "sgd" else {}
    config = ExperimentConfig.create(solver, **common | place | schedule | options)
    train(config, command=f"mfrec train {solver} --data {data}")
    return folder / name


def resume_run(folder: Path, epochs: int) -> None:
    run = Run.open(folder)
    train(run.config().updated(epochs=epochs), run=run, command=f"mfrec train --resume {folder}")


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three runs of the same options: never stopped, resumed, and killed before its last checkpoint."""
    folder = tmp_path_factory.mktemp("tensorboard")
    train_run(folder, "whole", tiny, epochs=EPOCHS)
    resumed, killed = (train_run(folder, name, tiny, epochs=4) for name in ("resumed", "killed"))
    after_4 = Path(shutil.copytree(killed, tmp_path_factory.mktemp("killed") / "after 4"))
    wait_for_another_second()
    resume_run(killed, 7)
    # As if the checkpoints of epochs 5 to 7 had been lost.
    shutil.copytree(after_4, killed, ignore=shutil.ignore_patterns("events*", "dataset"), dirs_exist_ok=True)
    wait_for_another_second()
    for run in (resumed, killed):
        resume_run(run, EPOCHS)
    return folder


def wait_for_another_second() -> None:
    """TensorBoard reads event files in the order of their names, which begin with the second of their creation."""
    time.sleep(1.05)


@contextlib.contextmanager
def serving(runs: Path, log_file: Path) -> Iterator[Server]:
    """A server with an address, stopped afterwards."""
    server = Server(runs, log_file)
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
    """The tags of each run, or no tags while the server has not read all runs."""
    tags = server.get(f"{plugin}/tags")
    return tags if set(RUNS) <= set(tags) else {"": ()}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("tag", CURVES)
def test_every_curve_has_one_point_an_epoch_without_gaps_or_duplicates(server: Server, run: str, tag: str) -> None:
    assert [step for step, _ in server.curve(run, tag)] == list(range(EPOCHS + 1))


@pytest.mark.parametrize("run", RUNS[1:])
@pytest.mark.parametrize("tag", [*CURVES, "lr", "gradient_norm/users.factors"])
def test_a_resumed_run_shows_the_curve_of_one_that_never_stopped(server: Server, run: str, tag: str) -> None:
    assert server.curve(run, tag) == server.curve("whole", tag)


def test_a_server_without_fast_loading_shows_no_duplicates_either(runs: Path) -> None:
    events = EventAccumulator(str(runs / "killed")).Reload()
    for tag in CURVES:
        assert [event.step for event in events.Scalars(tag)] == list(range(EPOCHS + 1))


def test_a_run_killed_before_its_second_checkpoint_starts_its_curves_anew(tmp_path: Path) -> None:
    for resumed_at, epochs in ((None, 6), (0, 9)):
        with contextlib.closing(TensorBoardLogger(tmp_path, resumed_at)) as logger:
            for epoch in range(epochs):
                logger.scalars({"rmse/valid": 1.0}, epoch)
        wait_for_another_second()
    events = EventAccumulator(str(tmp_path)).Reload()
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
    histograms = server.get("histograms/histograms", run=run, tag=f"parameters/{parameter}")
    assert [step for _, step, _ in histograms] == list(range(EPOCHS + 1))


@pytest.mark.parametrize("run", RUNS)
def test_the_configuration_is_a_text_with_every_option(server: Server, runs: Path, run: str) -> None:
    tag = next(tag for tag in server.get("text/tags")[run] if tag.startswith("config"))
    shown = html.unescape(server.get("text/text", run=run, tag=tag)[-1]["text"])
    config = json.loads(shown[shown.index("{") : shown.rindex("}") + 1])
    assert config == json.loads(json.dumps(Run.open(runs / run).config().to_dict()))


def test_curves_and_metrics_agree_on_the_best_epoch(server: Server, runs: Path) -> None:
    measured = json.loads((runs / "whole" / "metrics.json").read_text())
    best = min(value for step, value in server.curve("whole", "rmse/valid") if step)
    assert best == pytest.approx(measured["valid"]["rmse"], rel=1e-6)


def test_every_run_has_one_row_in_the_hparams_table_with_its_final_metrics(server: Server, runs: Path) -> None:
    experiment = server.get("hparams/experiment", post={"experimentName": ""})
    options = {info["name"] for info in experiment["hparamInfos"]}
    assert {"solver", "rank", "lr", "l2", "seed"} <= options
    metrics = {info["name"]["tag"] for info in experiment["metricInfos"]}
    final_tags = {f"final/{name}_{split}" for name in [*METRICS, "cost"] for split in ("train", "valid", "test")}
    assert final_tags <= metrics
    query = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
        "colParams": [],
        "startIndex": 0,
        "sliceSize": 100,
    }
    rows = server.get("hparams/session_groups", post=query)["sessionGroups"]
    assert sorted(row["sessions"][0]["name"] for row in rows) == sorted(RUNS)
    for row in rows:
        assert row["hparams"]["rank"] == 3
        final = {value["name"]["tag"]: value["value"] for value in row["metricValues"]}
        measured = json.loads((runs / row["sessions"][0]["name"] / "metrics.json").read_text())
        assert final["final/rmse_test"] == pytest.approx(measured["test"]["rmse"], rel=1e-6)


FIGURES = {"predicted_against_actual", "calibration", "error_by_popularity", "spectrum"}
BAYESIAN = FIGURES | {"coverage", "reliability"}


@pytest.mark.parametrize(
    ("solver", "figures"),
    [("als", FIGURES), ("vb", BAYESIAN), ("gibbs", BAYESIAN | {"trace"})],
)
def test_a_run_has_its_figures_and_they_are_not_blank(
    solver: str, figures: set[str], tiny: Path, tmp_path: Path
) -> None:
    burn_in = {"burn_in": 2} if solver == "gibbs" else {}
    events = EventAccumulator(str(train_run(tmp_path, "run", tiny, solver, epochs=6, **burn_in))).Reload()
    assert set(events.Tags()["images"]) == {f"figures/{name}" for name in figures}
    for tag in events.Tags()["images"]:
        pixels = np.asarray(Image.open(io.BytesIO(events.Images(tag)[-1].encoded_image_string)))
        assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 20, tag


def test_a_logger_without_figures_logs_neither_images_nor_a_projection(tiny: Path, tmp_path: Path) -> None:
    config = ExperimentConfig.create("als", data=str(tiny), run_dir=str(tmp_path), name="run", rank=2, epochs=2)
    train(config, loggers=lambda folder, resumed_at: [TensorBoardLogger(folder, resumed_at, figures=False)])
    tags = EventAccumulator(str(tmp_path / "run")).Reload().Tags()
    assert tags["images"] == []
    assert "final/rmse_test" in tags["scalars"]
    assert not (tmp_path / "run" / "projector_config.pbtxt").exists()


def test_training_is_measured_every_log_every_epochs_and_validation_every_epoch(tiny: Path, tmp_path: Path) -> None:
    events = EventAccumulator(str(train_run(tmp_path, "run", tiny, log_every=3, epochs=8))).Reload()
    assert [event.step for event in events.Scalars("rmse/train")] == [0, 3, 6, 8]
    assert [event.step for event in events.Scalars("rmse/valid")] == list(range(9))
    assert [event.step for event in events.Scalars("lr")] == list(range(1, 9))


def test_custom_scalars_have_training_and_validation_in_one_chart(server: Server) -> None:
    layout = server.get("custom_scalars/layout")
    charts = {
        chart["title"]: chart["multiline"]["tag"] for category in layout["category"] for chart in category["chart"]
    }
    assert charts["RMSE"] == ["rmse/train", "rmse/valid"]
    logged = set(server.get("scalars/tags")["whole"])
    for patterns in charts.values():
        assert any(re.fullmatch(pattern, tag) for pattern in patterns for tag in logged), patterns


def test_a_metric_added_to_the_table_has_a_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "bias", Metric("mean error", lambda predictions, ratings: 0.0))
    assert layout()["training and validation"]["mean error"] == ["Multiline", ["bias/train", "bias/valid"]]


def test_the_projector_has_every_item_s_factors_with_its_title_year_and_genres(server: Server, runs: Path) -> None:
    config = server.get("projector/info", run="whole")["embeddings"][0]
    url = f"{server.address}/data/plugin/projector/metadata?run=whole&name={config['tensorName']}"
    header, *rows = server.opener.open(url).read().decode().splitlines()
    assert header.split("\t") == ["title", "n_ratings", "id", "year", "genres"]
    counts = Run.open(runs / "whole").trained_model().train.item_counts
    assert [int(row.split("\t")[1]) for row in rows] == sorted(counts.tolist(), reverse=True)
    assert any(row.startswith('Amélie, or "Fate" (2001)\t') for row in rows)
    assert config["tensorShape"] == [len(rows), 3]


def test_texts_have_the_command_the_versions_and_the_device(server: Server) -> None:
    def shown(run: str, tag: str) -> str:
        return html.unescape(server.get("text/text", run=run, tag=f"{tag}/text_summary")[-1]["text"])

    assert "mfrec train sgd --data " in shown("whole", "command")
    assert "mfrec train --resume " in shown("resumed", "command")
    for word in ("torch", torch.__version__, "mfrec", "cpu", "threads"):
        assert word in shown("whole", "environment")


# The pages themselves, in a browser.

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
# All text of a page, including shadow trees and frames.
PAGE_TEXT = """
const texts = [];
const walk = node => {
  if (node.tagName === 'STYLE' || node.tagName === 'SCRIPT') return;
  if (node.nodeType === Node.TEXT_NODE && node.textContent.trim()) texts.push(node.textContent.trim());
  if (node.shadowRoot) walk(node.shadowRoot);
  if (node.contentDocument) walk(node.contentDocument);
  node.childNodes.forEach(walk);
};
walk(document.body);
return texts.join(' ');
"""
# The number of images on the page that have been drawn.
IMAGES_SHOWN = """
const count = node => (node.tagName === 'IMG' && node.naturalWidth > 300 ? 1 : 0)
  + [...(node.shadowRoot ? node.shadowRoot.childNodes : []), ...node.childNodes]
    .reduce((n, child) => n + count(child), 0);
return count(document.body);
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    """A browser on a page of TensorBoard with two real runs."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("Chromium and its driver are not installed (Debian's packages chromium and chromium-driver)")
    folder = tmp_path_factory.mktemp("pages")
    for solver in ("sgd", "als"):
        config = ExperimentConfig.create(solver, run_dir=str(folder / "runs"), name=solver, log_every=1)
        train(config, command=f"mfrec train {solver}")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update",
                 "disable-quic", "disable-sync", "no-first-run", "no-proxy-server", "enable-unsafe-swiftshader",
                 "window-size=1500,1160", f"user-data-dir={folder / 'profile'}"):  # fmt: skip
        options.add_argument(f"--{flag}")
    with serving(folder / "runs", folder / "log") as server:
        browser = webdriver.Chrome(options, Service(DRIVER))
        try:

            def open_page(name: str) -> Any:
                browser.get("about:blank")  # so that the same page is loaded again
                browser.get(f"{server.address}/{name}")
                return browser

            open_page.server = server  # type: ignore[attr-defined]
            yield open_page
        finally:
            browser.quit()


def at_rest(browser: Any) -> bool:
    """Whether the page has not changed for a second."""
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
        ("custom_scalars", ["training and validation", "RMSE", "gradient norms"]),
        ("histograms", ["parameters/items.factors"]),
        ("hparams", ["sgd", "als", "rank", "final/rmse_test"]),
        ("text", ["environment", "mfrec train sgd"]),
        ("projector", ["Points: 5000", "Dimension: 128", "item_factors"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_page_shows_the_runs_in_a_browser(page: Callable[[str], Any], name: str, words: list[str]) -> None:
    assert_page_shows(page, f"#{name}", *words)


def test_curves_and_figures_are_on_the_page_of_the_readme_s_screenshot(
    page: Callable[[str], Any], tmp_path: Path
) -> None:
    filtered = "?tagFilter=cost/train|rmse/|mae/valid|figures/pre&smoothing=0#timeseries"
    browser = assert_page_shows(page, filtered, "Tags matching filter", "/predicted_against_actual")
    page.server.wait(lambda: browser.execute_script(IMAGES_SHOWN) >= 2)  # type: ignore[attr-defined]
    next(button for button in browser.find_elements(By.TAG_NAME, "button") if "Settings" in button.text).click()
    # SCREENSHOTS=benchmarks pytest tests/experiments/test_tensorboard.py makes the README's again.
    screenshot = Path(os.environ.get("SCREENSHOTS", tmp_path)) / "tensorboard.png"
    page.server.wait(lambda: at_rest(browser))  # type: ignore[attr-defined]
    assert browser.save_screenshot(str(screenshot))
    assert len(np.unique(np.asarray(Image.open(screenshot))[..., :3].reshape(-1, 3), axis=0)) > 500

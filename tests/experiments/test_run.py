"""A run folder is read as it was written, or refused in a sentence."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_examples import resume, small_config, train_small

from mfrec.data.dataset import Dataset
from mfrec.data.files import read_tensors, write_json, write_tensors
from mfrec.data.loading import load_dataset
from mfrec.data.prepared import open_prepared, write_prepared
from mfrec.errors import InputError
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.run import FORMAT, Run, load_run
from mfrec.experiments.training import train
from mfrec.model.losses import LOSSES
from mfrec.solvers.base import SOLVERS

TENSORS = ("split_labels.pt", "checkpoint.pt")
MAPPED = ("dataset/items.npy", "dataset/item_order.npy", "dataset/items.arrow")
FILES = ("config.json", "dataset/prepared.json", *MAPPED, *TENSORS, "metrics.json")


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 epochs; read it only."""
    return train_small(tiny, tmp_path_factory.mktemp("runs"), "finished")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def read_everything(path: Path) -> None:
    run = Run.open(path)
    run.config()
    run.metrics()
    load_run(path)


def assert_refused(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as raised:
        read_everything(path)
    message = str(raised.value)
    for word in words:
        assert word in message
    assert "\n" not in message
    assert "--" not in message


def same_data(a: Dataset, b: Dataset) -> bool:
    tensors = ((x.ratings.users, x.ratings.items, x.ratings.values) for x in (a, b))
    is_same = all(itertools.starmap(torch.equal, zip(*tensors, strict=True)))
    return is_same and a.rating_range == b.rating_range and a.items.equals(b.items) and a.user_ids.equals(b.user_ids)


# What it holds.


def test_the_configuration_comes_back_equal(tiny: Path, tmp_path: Path) -> None:
    config = small_config(tiny, tmp_path, name="run", rating_range=(1, 5), bias_l2=0.5, loggers=("jsonl",))
    train(config)
    assert Run.open(tmp_path / "run").config() == config


def test_config_json_is_the_nested_options_of_this_format(finished: Path, tiny: Path) -> None:
    values = json.loads((finished / "config.json").read_text())
    assert list(values)[:3] == ["checksum", "format", "solver"]
    assert (values["format"], values["solver"]) == (FORMAT, "sgd")
    assert values["data"]["data"] == str(tiny)
    assert values["options"]["lr_epochs"] == 8
    assert values["fit"]["epochs"] == 4


def test_config_json_is_a_configuration_for_a_new_run(finished: Path) -> None:
    """Also after an edit: the checksum protects the run, not a copy of its options."""
    values = json.loads((finished / "config.json").read_text())
    values["model"]["rank"] = 7
    config = ExperimentConfig.from_dict(values)
    assert config.model.rank == 7
    assert config.options == Run.open(finished).config().options


def test_torch_loads_every_file_of_tensors_with_weights_only(finished: Path) -> None:
    for name in TENSORS:
        assert torch.load(finished / name, weights_only=True)


def test_a_checkpoint_holds_model_solver_posterior_and_progress(finished: Path) -> None:
    state = Run.open(finished).checkpoint()
    assert list(state) == ["model", "solver", "posterior", "progress", "first_fit"]
    assert state["posterior"]["kind"] == "point-estimate"


def test_a_posterior_adds_little_to_a_checkpoint(tiny: Path, tmp_path: Path) -> None:
    """The draws are in the solver's state and in the posterior's, but once in the file."""
    run = train_small(tiny, tmp_path, "run", "gibbs", epochs=12, burn_in=2, rank=24)
    state = Run.open(run).checkpoint()
    size = (run / "checkpoint.pt").stat().st_size
    write_tensors(tmp_path / "without.pt", {key: value for key, value in state.items() if key != "posterior"})
    assert size < 1.2 * (tmp_path / "without.pt").stat().st_size


def test_the_loaded_model_has_the_best_parameters_not_the_last(tiny: Path, tmp_path: Path) -> None:
    result = train(small_config(tiny, tmp_path, "als", name="run", l2=0.01, rank=8, epochs=30, patience=3))
    assert result.progress.best_epoch < result.progress.epoch
    factors = load_run(tmp_path / "run").model.user_factors.weight
    assert torch.equal(factors, result.solver.model.user_factors.weight)
    assert not torch.equal(factors, Run.open(tmp_path / "run").checkpoint()["model"]["users.factors.weight"])


def test_an_interrupted_run_can_be_loaded(tiny: Path, tmp_path: Path) -> None:
    for solver in SOLVERS:
        asked = iter([False, True])
        train(small_config(tiny, tmp_path, solver, name=solver), stop=lambda asked=asked: next(asked))
        assert load_run(tmp_path / solver).model.rank == 3


# Damage.


@settings(max_examples=150, derandomize=True)
@given(data=st.data(), name=st.sampled_from(FILES))
def test_flipped_bytes_in_any_file_are_detected(finished: Path, data: st.DataObject, name: str) -> None:
    damaged = finished.parent / "damaged"
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(finished, damaged)
    content = bytearray((damaged / name).read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3, unique=True)):
        content[position] ^= data.draw(st.integers(1, 255))
    (damaged / name).write_bytes(content)
    assert_refused(damaged, str(damaged / name), "damaged")


@pytest.mark.parametrize("name", FILES)
def test_a_run_with_a_damaged_file_is_not_resumed(name: str, run: Path) -> None:
    content = bytearray((run / name).read_bytes())
    content[len(content) // 2] ^= 1
    (run / name).write_bytes(content)
    if name == "metrics.json":  # resuming replaces it
        return
    with pytest.raises(InputError, match=f"{run / name} was damaged"):
        resume(run, epochs=6)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_missing_file_is_named(name: str, run: Path) -> None:
    (run / name).unlink()
    assert_refused(run, str(run), "train again" if name != "metrics.json" else "has not ended; resume it")


def test_a_hand_edited_configuration_is_refused(run: Path) -> None:
    path = run / "config.json"
    path.write_text(path.read_text().replace('"rank": 3', '"rank": 4'))
    assert_refused(run, str(path), "edited", "restore it from a copy, or train again")


def test_the_checkpoint_of_another_run_is_refused(run: Path, tiny: Path, tmp_path: Path) -> None:
    larger = train_small(tiny, tmp_path, "larger", rank=5)
    shutil.copy(larger / "checkpoint.pt", run / "checkpoint.pt")
    with pytest.raises(InputError, match="does not fit its run"):
        resume(run, epochs=6)


def test_a_dataset_of_another_size_is_refused(run: Path, tmp_path: Path) -> None:
    from mfrec.data.synthetic import synthetic

    dataset = synthetic(n_users=20, n_items=10, n_ratings=100, generator=torch.Generator().manual_seed(0))
    shutil.rmtree(run / "dataset")
    Run(run).write_dataset(dataset, torch.zeros(100))
    assert_refused(run, "checkpoint.pt and dataset of", "differ in size")


def test_split_labels_of_another_dataset_are_refused(run: Path, tiny: Path, tmp_path: Path) -> None:
    fewer = train_small(tiny, tmp_path, "fewer", rating_range=(0, 9))
    shutil.copy(fewer / "split_labels.pt", run / "split_labels.pt")
    assert_refused(run, str(run / "split_labels.pt"), "another dataset", "train again")


def test_a_run_on_a_prepared_dataset_costs_no_space_for_it(tiny: Path, tmp_path: Path) -> None:
    write_prepared(load_dataset(tiny), tmp_path / "prepared")
    train(small_config(tiny, tmp_path, name="run"), open_prepared(tmp_path / "prepared"))
    for name in MAPPED:
        assert (tmp_path / "prepared" / Path(name).name).samefile(tmp_path / "run" / name)


def test_a_copied_run_is_complete_without_the_folder_of_its_dataset(tiny: Path, tmp_path: Path) -> None:
    write_prepared(load_dataset(tiny), tmp_path / "prepared")
    train(small_config(tiny, tmp_path, name="run"), open_prepared(tmp_path / "prepared"))
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    shutil.rmtree(tmp_path / "prepared")
    shutil.rmtree(tmp_path / "run")
    assert same_data(Run.open(tmp_path / "copy").dataset()[0], load_dataset(tiny))
    assert load_run(tmp_path / "copy").recommend(1, n=1) is not None


def test_a_run_on_a_dataset_that_was_replaced_meanwhile_keeps_the_data_of_its_training(
    tiny: Path, tmp_path: Path
) -> None:
    write_prepared(load_dataset(tiny), tmp_path / "prepared")
    dataset = open_prepared(tmp_path / "prepared")
    shutil.rmtree(tmp_path / "prepared")
    write_prepared(load_dataset(tiny, rating_range=(0, 9)), tmp_path / "prepared")
    train(small_config(tiny, tmp_path, name="run"), dataset)
    assert same_data(Run.open(tmp_path / "run").dataset()[0], load_dataset(tiny))


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize(
    "state",
    [
        {},
        {"dataset": None, "split_labels": None},
        {"dataset": "sha256:0", "split_labels": torch.zeros(600)},
        {"model": {}, "solver": {}, "posterior": {}, "progress": {}, "first_fit": None},
        {"model": 1, "solver": 2, "posterior": 3, "progress": {"best_model": {"a": 1}}, "first_fit": None},
    ],
)
def test_a_good_checksum_around_other_content_is_refused(name: str, state: dict[str, Any], run: Path) -> None:
    write_tensors(run / name, state)
    assert_refused(run, name, "train again")


def test_a_folder_of_another_version_is_named_as_that(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"format": 4, "solver": "sgd"}')
    assert_refused(tmp_path, "another version")


def test_another_folder_is_not_a_run(tmp_path: Path) -> None:
    assert_refused(tmp_path, str(tmp_path), "not a run folder: it has no config.json")
    assert_refused(tmp_path / "nowhere", "not a run folder: it does not exist")


def test_an_unknown_option_of_a_run_is_named(run: Path) -> None:
    values = json.loads((run / "config.json").read_text())
    del values["checksum"]
    values["model"]["rnk"] = 3
    write_json(run / "config.json", values)
    assert_refused(run, "rnk", "did you mean 'rank'")


# Plugins.

PLUGIN = """
import torch
from mfrec.model.losses import LOSSES, Loss
from mfrec.solvers.base import SOLVERS, SolverSpec
from mfrec.solvers.registry import ALSOptions, SOLVERS as _

SOLVERS["mine"] = SolverSpec(
    summary="Alternating least squares by another name.",
    options=ALSOptions,
    implementation="mfrec.solvers.als:ALS",
    supports=frozenset(),
)
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that adds a solver; gone from Python's tables afterwards."""
    path = tmp_path / "plugins" / "plugin_of_a_test.py"
    path.parent.mkdir()
    path.write_text(PLUGIN)
    monkeypatch.syspath_prepend(path.parent)
    yield path
    forget_plugin()


def forget_plugin() -> None:
    sys.modules.pop("plugin_of_a_test", None)
    if "mine" in SOLVERS:
        del SOLVERS["mine"]


def train_with_plugin(tiny: Path, tmp_path: Path) -> Path:
    from mfrec.plugins import import_plugins

    import_plugins(["plugin_of_a_test"])
    return train_small(tiny, tmp_path, "run", "mine", plugin=("plugin_of_a_test",))


def test_a_run_imports_its_plugins_when_it_is_opened(plugin: Path, tiny: Path, tmp_path: Path) -> None:
    run = train_with_plugin(tiny, tmp_path)
    forget_plugin()
    assert load_run(run).solver == "mine"
    forget_plugin()
    assert resume(run, epochs=5).metrics is not None


def test_a_missing_plugin_is_named_in_a_sentence(plugin: Path, tiny: Path, tmp_path: Path) -> None:
    run = train_with_plugin(tiny, tmp_path)
    forget_plugin()
    plugin.unlink()
    assert_refused(run, str(run), "plugin_of_a_test", "cannot be found")


def test_a_plugin_that_no_longer_adds_the_solver_is_noticed(plugin: Path, tiny: Path, tmp_path: Path) -> None:
    run = train_with_plugin(tiny, tmp_path)
    forget_plugin()
    plugin.write_text("")
    assert_refused(run, "unknown solver", "mine")


def test_a_resumed_run_keeps_its_plugins_and_may_get_more(plugin: Path, tiny: Path, tmp_path: Path) -> None:
    run = train_with_plugin(tiny, tmp_path)
    resume(run, epochs=5, plugin=("json",))
    assert Run.open(run).config().run.plugin == ("plugin_of_a_test", "json")


def test_a_loss_that_is_gone_is_named(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(LOSSES, "mine", LOSSES["log-cosh"])
        run = train_small(tiny, tmp_path, "run", loss="mine")
        load_run(run)
    assert_refused(run, "unknown loss 'mine'")


def test_reading_tensors_does_not_follow_a_training_that_replaces_them(run: Path) -> None:
    """The bytes that were verified are the bytes that are loaded."""
    before = read_tensors(run / "checkpoint.pt")
    load, replaced = torch.load, []

    def replacing(file: Any, **options: Any) -> Any:
        write_tensors(run / "checkpoint.pt", {"replaced": 1})
        replaced.append(True)
        return load(file, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", replacing)
        state = read_tensors(run / "checkpoint.pt")
    assert replaced
    assert state.keys() == before.keys()

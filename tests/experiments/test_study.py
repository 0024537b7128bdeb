"""Trials never see the test ratings, and the best options are trained on all others and tested once."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from study_examples import without_seconds
from training_examples import small_config

from mfrec.data.loading import load_dataset
from mfrec.data.splits import TEST, VALID
from mfrec.errors import InputError, OptionError
from mfrec.experiments.config import ExperimentConfig
from mfrec.experiments.loggers import LOGGERS, Logger
from mfrec.experiments.run import Run
from mfrec.experiments.study import Study, StudyResult, search_space
from mfrec.experiments.training import train
from mfrec.experiments.trial import TrialResult
from mfrec.solvers.base import SOLVERS, SearchRange, SolverSpec
from mfrec.solvers.registry import ALSOptions

ALS: dict[str, Any] = {"rank": 4, "epochs": 15}


def replace_search_space(monkeypatch: pytest.MonkeyPatch, solver: str, **ranges: SearchRange) -> None:
    monkeypatch.setitem(SOLVERS, solver, dataclasses.replace(SOLVERS[solver], search_space=ranges))


@pytest.fixture(scope="module")
def tuned(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, StudyResult]:
    study = Study.create(small_config(tiny, tmp_path_factory.mktemp("runs"), "als", name="study", **ALS), {"rank"}, 6)
    return study, study.run()


# Trials.


def test_each_trial_is_a_run_within_the_search_space(tuned: tuple[Study, StudyResult]) -> None:
    study, result = tuned
    assert sorted(result.trials["trial"]) == list(range(6))
    assert study.search_space == {name: SOLVERS["als"].search_space[name] for name in ("l2", "relaxation")}
    for trial in result.trials.to_dict("records"):
        run = Run.open(study.folder / f"trial-{trial['trial']}")
        assert run.metrics()["valid"]["rmse"] == trial["valid RMSE"]
        options = run.config().flat()
        for name, (low, high, _) in study.search_space.items():
            assert low <= trial[name] <= high
            assert options[name] == trial[name]
        assert options["rank"] == 4


def test_no_trial_has_the_test_ratings(tuned: tuple[Study, StudyResult]) -> None:
    study, result = tuned
    assert result.run is not None
    complete, labels = result.run.dataset()
    for number in range(6):
        run = Run.open(study.folder / f"trial-{number}")
        dataset, trial_labels = run.dataset()
        assert run.metrics()["test"] is None
        assert not bool((trial_labels == TEST).any())
        assert torch.equal(dataset.ratings.values, complete.ratings.values[labels != TEST])
        assert (dataset.ratings.n_users, dataset.ratings.n_items) == (40, 30)


def test_the_first_trial_has_the_defaults_and_the_best_is_the_best(tuned: tuple[Study, StudyResult]) -> None:
    _, result = tuned
    first = result.trials.set_index("trial").loc[0]
    assert (first["l2"], first["relaxation"]) == (SOLVERS["als"].defaults["l2"], 0.5)
    assert result.trials["valid RMSE"].is_monotonic_increasing
    assert result.best_value == result.trials["valid RMSE"][0]
    assert result.best_options == {name: result.trials[name][0] for name in ("l2", "relaxation")}


def test_the_best_is_trained_on_all_but_the_test_ratings_for_the_best_number_of_epochs(
    tuned: tuple[Study, StudyResult], tiny: Path
) -> None:
    study, result = tuned
    assert result.run is not None
    assert result.metrics is not None
    best = Run(study.folder / f"trial-{result.trials['trial'][0]}")
    epochs = result.metrics["epochs"]
    assert epochs == best.checkpoint()["progress"]["best_epoch"]
    again = train(
        small_config(tiny, None, "als", **(ALS | {"epochs": epochs}), valid_fraction=0.0, **result.best_options)
    )
    assert again.metrics is not None
    assert again.metrics["test"] == result.metrics["test"]
    assert not bool((result.run.dataset()[1] == VALID).any())


def test_the_runs_of_the_best_can_be_repeated_from_its_configuration(tuned: tuple[Study, StudyResult]) -> None:
    _, result = tuned
    assert result.run is not None
    assert result.metrics is not None
    again = train(result.run.config().updated(run_dir=None)).metrics
    assert again is not None
    assert again["test"] == result.metrics["test"]


def test_the_same_seed_tries_the_same_and_another_seed_something_else(
    tuned: tuple[Study, StudyResult], tiny: Path, tmp_path: Path
) -> None:
    same = Study.create(small_config(tiny, tmp_path, "als", **ALS), {"rank"}, 6)
    assert without_seconds(same, same.run()) == without_seconds(*tuned)
    another = Study.create(small_config(tiny, tmp_path, "als", seed=1, **ALS), {"rank"}, 2).run()
    assert set(another.trials["l2"]).isdisjoint(set(tuned[1].trials["l2"]) - {1.1})


def test_a_resumed_study_matches_one_that_never_stopped(
    tuned: tuple[Study, StudyResult], tiny: Path, tmp_path: Path
) -> None:
    part = Study.create(small_config(tiny, tmp_path, "als", name="part", **ALS), {"rank"}, 2).run()
    assert len(part.trials) == 2
    study = Study.open(tmp_path / "part")
    whole = study.run(trials=6)
    assert without_seconds(study, whole) == without_seconds(*tuned)
    again = Study.open(tmp_path / "part").run()
    assert again.trials.equals(whole.trials)
    assert again.metrics == whole.metrics


def test_a_study_keeps_its_configuration_as_json(tuned: tuple[Study, StudyResult]) -> None:
    study, _ = tuned
    opened = Study.open(study.folder)
    assert opened.config == study.config
    assert opened.search_space == study.search_space


def test_a_study_moved_elsewhere_continues_there(tiny: Path, tmp_path: Path) -> None:
    done: list[TrialResult] = []
    study = Study.create(small_config(tiny, tmp_path, "als", name="first", **ALS), {"rank"}, 3)
    study.run(on_trial=done.append, stop=lambda: len(done) == 1)
    study.folder.rename(tmp_path / "moved")
    result = Study.open(tmp_path / "moved").run()
    assert result.state == "done"
    assert result.run is not None
    assert result.run.path.parent == tmp_path / "moved"
    assert not (tmp_path / "first").exists()


def test_every_trial_is_reported(tiny: Path, tmp_path: Path) -> None:
    done: list[TrialResult] = []
    result = Study.create(small_config(tiny, tmp_path, "als", **ALS), {"rank"}, 4).run(on_trial=done.append)
    assert [trial.number for trial in done] == [0, 1, 2, 3]
    assert done[0].is_best
    best = [trial for trial in done if trial.is_best][-1]
    assert (best.value, best.options) == (result.best_value, result.best_options)
    assert {trial.state for trial in done} == {"done"}


def test_no_trial_is_started_after_the_timeout(tiny: Path, tmp_path: Path) -> None:
    result = Study.create(small_config(tiny, tmp_path, "als", epochs=15), trials=1000).run(timeout=1.5)
    assert 1 <= len(result.trials) < 1000
    assert result.state == "done"


def test_a_solver_that_needs_no_validation_is_compared_by_one_all_the_same(tiny: Path, tmp_path: Path) -> None:
    study = Study.create(small_config(tiny, tmp_path, "vb", epochs=5), trials=2)
    assert SOLVERS["vb"].defaults["valid_fraction"] == 0.0
    result = study.run()
    assert result.trials["valid RMSE"].notna().all()
    assert result.trials["rank"].dtype.kind == "i"


def test_a_pruned_trial_is_marked_and_has_figures(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Between steps so small that nothing is learned, and steps that work.
    replace_search_space(monkeypatch, "sgd", lr=SearchRange(1e-6, 0.1, "log"))
    study = Study.create(small_config(tiny, tmp_path, epochs=40), trials=12)
    result = study.run()
    pruned = result.trials[result.trials["state"] == "pruned"]
    assert len(pruned)
    assert pruned["epochs"].between(10, 39).all()
    for trial in pruned.to_dict("records"):
        assert Run.open(study.folder / f"trial-{trial['trial']}").metrics()["valid"]["rmse"] == trial["valid RMSE"]
    assert result.trials.set_index("trial")["state"][0] == "done"


def test_a_trial_that_diverges_is_left_out_and_the_study_continues(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_search_space(monkeypatch, "gd", lr=SearchRange(10.0, 100.0, "log"))
    done: list[TrialResult] = []
    result = Study.create(small_config(tiny, tmp_path, "gd", epochs=15), trials=3).run(on_trial=done.append)
    assert result.trials["trial"].tolist() == [0]
    assert [trial.state for trial in done] == ["done", "diverged", "diverged"]
    assert "cost" in done[1].problem
    assert done[1].value is None


# The monitored metric.


def test_a_study_tunes_by_the_monitored_metric(tiny: Path, tmp_path: Path) -> None:
    result = Study.create(small_config(tiny, tmp_path, "als", monitor="mae", **ALS), {"rank"}, 4).run()
    assert result.trials["valid MAE"].is_monotonic_increasing
    assert result.best_value == result.trials["valid MAE"].min()


def test_a_higher_value_is_better_if_the_metric_says_so(tiny: Path, tmp_path: Path) -> None:
    config = small_config(tiny, tmp_path, "als", monitor="ndcg@3", valid_fraction=0.3, **ALS)
    result = Study.create(config, {"rank"}, 4).run()
    assert result.trials["valid NDCG@3"].is_monotonic_decreasing
    assert result.best_value == result.trials["valid NDCG@3"].max()


# Data and loggers.


def test_a_split_that_comes_with_the_data_is_kept(tiny: Path, tmp_path: Path) -> None:
    labels = (torch.arange(600) % 3).to(torch.uint8)
    dataset = dataclasses.replace(load_dataset(str(tiny)), split_labels=labels)
    study = Study.create(small_config(tiny, tmp_path, "als", **ALS), {"rank"}, 2, dataset)
    result = study.run()
    assert result.run is not None
    assert torch.equal(result.run.dataset()[1], torch.where(labels == VALID, 0, labels))
    assert len(Run.open(study.folder / "trial-0").dataset()[1]) == 400


def test_figures_are_drawn_of_the_best_only(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    class Drawing(Logger):
        wants_figures = True

        def __init__(self, folder: Path, resumed_at: int | None) -> None:
            self.folder = folder

        def figures(self, figures: Any, epoch: int) -> None:
            drawn.append(self.folder.name)

    monkeypatch.setitem(LOGGERS, "drawing", Drawing)
    config = small_config(tiny, tmp_path, "als", loggers=("drawing",), log_every=1, **ALS)
    result = Study.create(config, {"rank"}, 2).run()
    assert result.run is not None
    assert drawn == [result.run.path.name]


# Search spaces.


def test_fixed_options_are_not_searched() -> None:
    assert search_space("als", {"rank", "epochs"}) == {
        name: limits for name, limits in SOLVERS["als"].search_space.items() if name != "rank"
    }


def test_a_solver_of_a_plugin_is_tuned_by_its_own_declaration(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SolverSpec(
        "Mine.", ALSOptions, "mfrec.solvers.als:ALS", frozenset(), search_space={"l2": SearchRange(0.5, 2.0, "log")}
    )
    monkeypatch.setitem(SOLVERS, "mine", spec)
    result = Study.create(small_config(tiny, tmp_path, "mine", epochs=3), trials=3).run()
    assert result.trials["l2"].between(0.5, 2.0).all()


# Mistakes.


@pytest.mark.parametrize(
    ("solver", "options", "fixed", "words"),
    [
        ("als", {"rank": 0}, set(), "rank must be at least 1"),
        ("als", {"epochs": 10**20}, set(), "epochs must be .*got 1000"),
        ("als", {"valid_fraction": 0.0}, {"valid_fraction"}, "valid_fraction must be above 0"),
        ("vb", {}, {"rank"}, "every option that tune can search for vb is fixed; leave out one of rank"),
        ("als", {"data": "nope"}, set(), "nope"),
        ("als", {"item_features": "nope"}, set(), "nope"),
        ("als", {"monitor": "rsme"}, set(), "did you mean 'rmse'"),
        ("als", {"loggers": ("none",)}, set(), "unknown logger 'none'"),
    ],
)
def test_a_mistake_is_a_sentence_and_leaves_nothing(
    solver: str, options: dict[str, Any], fixed: set[str], words: str, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words) as raised:
        Study.create(small_config(tiny, tmp_path / "runs", solver, **options), fixed).run()
    assert "--" not in str(raised.value)
    assert not list(tmp_path.glob("runs/*"))


def test_a_number_of_trials_below_1_is_refused(tiny: Path, tmp_path: Path, tuned: tuple[Study, StudyResult]) -> None:
    with pytest.raises(OptionError, match=r"trials must be at least 1 \(got 0\)"):
        Study.create(small_config(tiny, tmp_path, "als"), trials=0)
    with pytest.raises(OptionError, match="trials must be at least 1"):
        Study.open(tuned[0].folder).run(trials=0)
    assert tuned[0].folder.exists()


def test_a_study_needs_a_folder(tiny: Path) -> None:
    with pytest.raises(OptionError, match="run_dir must be a folder"):
        Study.create(small_config(tiny, None, "als"))


def test_another_folder_is_not_a_study(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=f"{folder} is not a study: it has no study.db"):
            Study.open(folder)


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("not a database" * 100)
    with pytest.raises(InputError, match=r"study\.db cannot be read .*; restore it from a copy, or start a new study"):
        Study.open(tmp_path)


def test_a_study_without_a_finished_trial_says_so(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_search_space(monkeypatch, "gd", lr=SearchRange(10.0, 100.0, "log"))
    config = small_config(tiny, tmp_path, "gd", lr=10.0, epochs=15)
    with pytest.raises(InputError, match=r"no trial of .* came to an end"):
        Study.create(config, trials=2).run()


def test_without_optuna_it_says_what_to_install(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r'pip install "mfrec\[tune\]"'):
        Study.create(small_config(tiny, tmp_path, "als"))
    assert list(tmp_path.iterdir()) == []


def test_the_largest_numbers_are_numbers(tiny: Path, tmp_path: Path) -> None:
    config: ExperimentConfig = small_config(tiny, tmp_path, "als", name="study", epochs=2**31 - 1, patience=2**31 - 1)
    study = Study.create(config, trials=10**15)
    done: list[int] = []
    result = study.run(on_epoch=lambda epoch: done.append(epoch.number), stop=lambda: len(done) > 3, timeout=math.inf)
    assert result.state == "interrupted"
    assert Study.open(study.folder).config.fit.epochs == 2**31 - 1

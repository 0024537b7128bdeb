"""The loop stops at the right epoch, with the right model."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.evaluation.metrics import METRICS, Metric, evaluate
from mfrec.experiments import loop
from mfrec.experiments.loggers import Logger
from mfrec.experiments.loop import Diverged, Epoch, Progress, fit, uses_early_stopping
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.solvers.base import Solver
from mfrec.solvers.registry import SOLVERS

STARS = 3.0


class Scripted(Solver):
    """Predicts ratings that are all STARS, with the error that its script has for the epoch."""

    def __init__(self, model: MatrixFactorization, ratings: Ratings, objective: Objective, script: list[float]) -> None:
        super().__init__(model, ratings, objective, None, torch.Generator())
        self.script, self.epochs = script, 0
        self._err_by(1.0)

    def epoch(self) -> dict[str, float]:
        self.epochs += 1
        self._err_by(self.script[self.epochs - 1])
        return {"lr": 0.5}

    def _err_by(self, error: float) -> None:
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.zero_()
            self.model.user_bias.weight.fill_(error)

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs = state["epochs"]


class Recorder(Logger):
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.points: dict[str, list[tuple[int, float]]] = {}
        self.histogram_epochs: list[int] = []

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        for tag, value in values.items():
            self.points.setdefault(tag, []).append((epoch, value))

    def histograms(self, model: MatrixFactorization, epoch: int) -> None:
        self.histogram_epochs.append(epoch)


@pytest.fixture
def ratings() -> Ratings:
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(3))
    return Ratings(pairs[:, 0], pairs[:, 1], torch.full((12,), STARS))


@pytest.fixture
def model(ratings: Ratings) -> MatrixFactorization:
    return MatrixFactorization.from_ratings(ratings, 2)


def scripted_fit(
    model: MatrixFactorization, ratings: Ratings, script: list[float], *, validate: bool = True, **options: Any
) -> Progress:
    options = {"epochs": len(script), "patience": 2} | options
    return fit(Scripted(model, ratings, Objective(), script), ratings if validate else None, **options)


def assert_error(model: MatrixFactorization, ratings: Ratings, error: float) -> None:
    torch.testing.assert_close(evaluate(model, ratings, Objective())["rmse"], error)


def test_fit_stops_once_patience_is_used_up(model: MatrixFactorization, ratings: Ratings) -> None:
    progress = scripted_fit(model, ratings, [0.9, 0.5, 0.7, 0.6, 0.1], patience=2)
    assert (progress.epoch, progress.best_epoch) == (4, 2)


def test_more_patience_survives_a_hump(model: MatrixFactorization, ratings: Ratings) -> None:
    progress = scripted_fit(model, ratings, [0.9, 0.5, 0.7, 0.6, 0.1], patience=3)
    assert (progress.epoch, progress.best_epoch) == (5, 5)


def test_an_equal_validation_rmse_is_no_improvement(model: MatrixFactorization, ratings: Ratings) -> None:
    progress = scripted_fit(model, ratings, [0.5, 0.5, 0.5, 0.5], patience=2)
    assert (progress.epoch, progress.best_epoch) == (3, 1)


@pytest.mark.parametrize("script", [[0.9, 0.5, 0.7, 0.6], [0.9, 0.5, 0.6]], ids=["stopped early", "out of epochs"])
def test_the_model_of_the_best_epoch_is_restored(
    model: MatrixFactorization, ratings: Ratings, script: list[float]
) -> None:
    progress = scripted_fit(model, ratings, script, patience=2)
    assert progress.best_value == evaluate(model, ratings, Objective())["rmse"]
    assert_error(model, ratings, 0.5)


def test_without_validation_the_last_model_stays_and_all_epochs_are_done(
    model: MatrixFactorization, ratings: Ratings
) -> None:
    progress = scripted_fit(model, ratings, [0.9, 0.5, 0.7, 0.7, 0.8], validate=False, patience=1)
    assert (progress.epoch, progress.best_model) == (5, {})
    assert_error(model, ratings, 0.8)


def test_every_epoch_is_logged_from_the_start(model: MatrixFactorization, ratings: Ratings) -> None:
    recorder = Recorder()
    scripted_fit(model, ratings, [0.9, 0.5], loggers=[recorder])
    curves = [f"{metric}/{split}" for metric in (*METRICS, "cost") for split in ("train", "valid")]
    norms = [f"gradient_norm/{name.removesuffix('.weight')}" for name, _ in model.named_parameters()]
    assert sorted(recorder.points) == sorted([*curves, "lr", *norms])
    for tag in curves:
        assert [step for step, _ in recorder.points[tag]] == [0, 1, 2]
    assert recorder.points["lr"] == [(1, 0.5), (2, 0.5)]
    for tag in ("rmse/valid", "mae/train"):
        torch.testing.assert_close([value for _, value in recorder.points[tag]], [1.0, 0.9, 0.5])
    assert recorder.histogram_epochs == [0, 1, 2]


def test_every_logger_gets_the_same(model: MatrixFactorization, ratings: Ratings) -> None:
    a, b = Recorder(), Recorder()
    scripted_fit(model, ratings, [0.9, 0.5], loggers=[a, b])
    assert a.points == b.points


def test_a_metric_of_a_plugin_is_logged_too(
    model: MatrixFactorization, ratings: Ratings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METRICS, "worst", Metric("worst", lambda p, r: float((p - r).abs().max())))
    recorder = Recorder()
    scripted_fit(model, ratings, [0.5], loggers=[recorder])
    torch.testing.assert_close(recorder.points["worst/valid"], [(0, 1.0), (1, 0.5)])


def test_the_training_set_is_evaluated_every_log_every_epochs_and_at_the_end(
    model: MatrixFactorization, ratings: Ratings
) -> None:
    results: list[Epoch] = []
    scripted_fit(model, ratings, [0.9] * 5, patience=9, log_every=2, on_epoch=results.append)
    assert [result.number for result in results if result.train is not None] == [0, 2, 4, 5]
    assert all(result.valid is not None for result in results)


def test_without_listeners_the_training_set_is_evaluated_at_both_ends_only(
    model: MatrixFactorization, ratings: Ratings, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[list[str]] = []
    original = loop.evaluate_monitored

    def recorded(model: Any, objective: Any, splits: Any, *arguments: Any) -> Any:
        evaluated.append([*splits])
        return original(model, objective, splits, *arguments)

    monkeypatch.setattr(loop, "evaluate_monitored", recorded)
    scripted_fit(model, ratings, [0.9] * 3, patience=9)
    assert evaluated == [["train", "valid"], ["valid"], ["valid"], ["train", "valid"]]


def test_every_epoch_is_reported_with_both_splits_and_the_solvers_values(
    model: MatrixFactorization, ratings: Ratings
) -> None:
    results: list[Epoch] = []
    scripted_fit(model, ratings, [0.9, 0.5], on_epoch=results.append)
    assert [(result.number, result.epochs, result.n_ratings) for result in results] == [
        (0, 2, 12),
        (1, 2, 12),
        (2, 2, 12),
    ]
    assert results[2].solver == {"lr": 0.5}
    assert results[2].train.keys() == (results[2].valid or {}).keys() == {*METRICS, "cost"}


# The monitored metric.


def test_mae_can_be_monitored(ratings: Ratings) -> None:
    """MAE prefers the small errors of the second epoch, RMSE the constant ones of the first."""
    model = MatrixFactorization.from_ratings(ratings, 2)

    class Uneven(Scripted):
        def _err_by(self, error: float) -> None:
            super()._err_by(0.0)
            with torch.no_grad():
                errors = torch.full((4, 1), 0.6) if error == 1.0 else torch.tensor([[1.9], [0.1], [0.1], [0.1]])
                self.model.user_bias.weight.copy_(errors)

    def best(monitor: str) -> Progress:
        return fit(Uneven(model, ratings, Objective(), [1.0, 0.5]), ratings, epochs=2, monitor=monitor)

    assert best("rmse").best_epoch == 1
    progress = best("mae")
    assert progress.best_epoch == 2
    torch.testing.assert_close(progress.best_value, 0.55)


def test_a_higher_value_is_better_if_the_metric_says_so(
    model: MatrixFactorization, ratings: Ratings, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = Metric("closeness", lambda p, r: -float((p - r).abs().mean()), higher_is_better=True)
    monkeypatch.setitem(METRICS, "closeness", metric)
    progress = scripted_fit(model, ratings, [0.9, 0.5, 0.7, 0.6, 0.1], patience=2, monitor="closeness")
    assert (progress.epoch, progress.best_epoch) == (4, 2)
    torch.testing.assert_close(progress.best_value, -0.5)
    assert_error(model, ratings, 0.5)


def test_a_ranking_metric_can_be_monitored_and_is_logged(tiny_split: tuple[Ratings, Ratings]) -> None:
    train, valid = tiny_split
    model = MatrixFactorization.from_ratings(train, 2, rating_range=(1.0, 5.0))
    solver = SOLVERS["als"](model, train, Objective())
    recorder = Recorder()
    progress = fit(solver, valid, epochs=4, patience=9, monitor="ndcg@3", loggers=[recorder])
    values = [value for _, value in recorder.points["ndcg@3/valid"][1:]]
    assert progress.best_value == max(values)
    assert progress.best_epoch == 1 + values.index(max(values))


def test_an_undefined_metric_is_never_the_best(
    model: MatrixFactorization, ratings: Ratings, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([1.0, 1.0, math.nan, math.nan, 0.8, 0.8, math.nan, math.nan])
    monkeypatch.setitem(METRICS, "odd", Metric("odd", lambda p, r: next(values)))
    progress = scripted_fit(model, ratings, [0.9, 0.8, 0.7], patience=9, monitor="odd", log_every=1, on_epoch=print)
    assert (progress.best_epoch, progress.best_value) == (2, 0.8)


def test_an_unknown_metric_is_refused_before_anything_is_done(model: MatrixFactorization, ratings: Ratings) -> None:
    saved: list[object] = []
    with pytest.raises(InputError, match="did you mean 'rmse'"):
        scripted_fit(model, ratings, [0.9], monitor="rsme", save=saved.append)
    assert saved == []


def test_solvers_declare_whether_they_stop_early(model: MatrixFactorization, ratings: Ratings) -> None:
    assert uses_early_stopping(Scripted(model, ratings, Objective(), []))
    without = {name for name, spec in SOLVERS.items() if not uses_early_stopping(spec(model, ratings, Objective()))}
    assert without == {"vb", "gibbs"}


# Costs and checkpoints.


def test_the_cost_of_the_validation_set_has_no_penalty(ratings: Ratings) -> None:
    model, results = MatrixFactorization.from_ratings(ratings, 2), []
    fit(Scripted(model, ratings, Objective(l2=7.0), [0.5]), ratings, epochs=1, on_epoch=results.append)
    half_squares, penalty = 0.5 * 12 * 0.5**2, 0.5 * 7 * 4 * 0.5**2
    torch.testing.assert_close(results[1].valid["cost"], half_squares)
    torch.testing.assert_close(results[1].train["cost"], half_squares + penalty)


def test_stop_ends_the_fit_after_the_current_epoch_and_saves(model: MatrixFactorization, ratings: Ratings) -> None:
    saved: list[dict[str, Any]] = []
    asked = iter([False, False, True])
    progress = scripted_fit(model, ratings, [0.9, 0.8, 0.7], stop=lambda: next(asked), save=saved.append)
    assert progress.epoch == saved[-1]["progress"]["epoch"] == saved[-1]["solver"]["epochs"] == 2


def test_the_last_checkpoint_holds_the_last_model_and_the_best_one(
    model: MatrixFactorization, ratings: Ratings
) -> None:
    saved: list[dict[str, Any]] = []
    scripted_fit(model, ratings, [0.9, 0.5, 0.7], save=lambda state: saved.append(copy.deepcopy(state)))
    bias = "users.bias.weight"
    torch.testing.assert_close(saved[-1]["model"][bias], torch.full((4, 1), 0.7))
    torch.testing.assert_close(saved[-1]["progress"]["best_model"][bias], torch.full((4, 1), 0.5))


def test_a_long_fit_is_saved_on_the_way(
    model: MatrixFactorization, ratings: Ratings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", 0.0)
    saved: list[int] = []
    scripted_fit(model, ratings, [0.9, 0.8, 0.7], save=lambda state: saved.append(state["progress"]["epoch"]))
    assert saved[:4] == [0, 1, 2, 3]


@pytest.mark.parametrize("error", [math.nan, math.inf, 1e4], ids=["NaN", "infinite", "exploded"])
def test_a_diverging_cost_names_lr_and_a_smaller_one_and_is_not_saved(
    model: MatrixFactorization, ratings: Ratings, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", 0.0)
    saved: list[int] = []
    with pytest.raises(Diverged, match=r"epoch 3: .*lr 0\.5 .*0\.1") as raised:
        scripted_fit(
            model, ratings, [0.9, 0.8, error, 0.7], save=lambda state: saved.append(state["progress"]["epoch"])
        )
    assert isinstance(raised.value, InputError)
    assert saved == [0, 1, 2]


@pytest.mark.parametrize(
    ("solver", "advice"), [(None, "raise l2, or choose another solver"), ("gibbs", "choose another solver")]
)
def test_a_solver_without_lr_that_diverges_gets_another_advice(
    model: MatrixFactorization, ratings: Ratings, solver: str | None, advice: str
) -> None:
    class WithoutLr(Scripted):
        def epoch(self) -> dict[str, float]:
            super().epoch()
            return {}

    diverging = WithoutLr(model, ratings, Objective(), [math.nan])
    diverging.spec = None if solver is None else SOLVERS[solver]
    with pytest.raises(Diverged, match=rf"went from [\d.]+ to nan in epoch 1: {advice}$"):
        fit(diverging, epochs=1)


def test_a_cost_that_is_not_finite_before_the_first_epoch_is_refused(
    model: MatrixFactorization, ratings: Ratings
) -> None:
    solver = Scripted(model, ratings, Objective(), [])
    solver._err_by(math.nan)
    with pytest.raises(Diverged, match=r"^the training cost must be finite \(got nan\); lower l2"):
        fit(solver, epochs=1)


def test_a_cost_that_rises_for_a_while_has_not_diverged(model: MatrixFactorization, ratings: Ratings) -> None:
    assert scripted_fit(model, ratings, [0.5, 0.9, 0.8], patience=9).epoch == 3


def test_noise_about_a_perfect_fit_has_not_diverged(model: MatrixFactorization, ratings: Ratings) -> None:
    assert scripted_fit(model, ratings, [1e-6, 1e-5, 1e-4], patience=9).epoch == 3


def test_a_resumed_fit_matches_an_uninterrupted_one(tiny_split: tuple[Ratings, Ratings]) -> None:
    def started() -> Solver:
        generator = torch.Generator().manual_seed(3)
        model = MatrixFactorization.from_ratings(train, 2, generator=generator)
        return SOLVERS["block-sgd"](model, train, Objective(1.0), generator=generator, blocks=(2, 2), momentum=0.5)

    train, valid = tiny_split
    whole, part, resumed = started(), started(), started()
    saved: list[dict[str, Any]] = []
    ended = fit(whole, valid, epochs=6)
    fit(part, valid, epochs=4, save=saved.append)
    resumed.model.load_state_dict(saved[-1]["model"])
    resumed.load_state_dict(saved[-1]["solver"])
    progress = Progress(**saved[-1]["progress"])
    fit(resumed, valid, epochs=6, progress=progress)
    assert (progress.epoch, progress.best_epoch, progress.best_value) == (6, ended.best_epoch, ended.best_value)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


@pytest.fixture
def tiny_split() -> tuple[Ratings, Ratings]:
    generator = torch.Generator().manual_seed(0)
    stars = (3 + torch.randn(20, 2, generator=generator) @ torch.randn(2, 15, generator=generator)).clamp(1, 5)
    ratings = Ratings.from_dense(stars.T)
    return ratings.split(torch.rand(300, generator=generator) < 0.2)

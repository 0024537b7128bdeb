"""The loop stops where it should, with the model that it should."""

from __future__ import annotations

import copy
import importlib
import math
from typing import Any, ClassVar

import pytest
import torch

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.evaluation.metrics import evaluate
from mfrec.experiments.loop import Diverged, Epoch, Progress, fit
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.solvers.descent import SGD

STARS = 3.0
PARAMETERS = ("user_factors", "item_factors", "user_bias", "item_bias")
fit_module = importlib.import_module("mfrec.experiments.loop")


class Scripted:
    """Predicts every rating, all of which are STARS, with the error that its script has for the epoch."""

    defaults: ClassVar[dict[str, Any]] = {}

    def __init__(self, model: MatrixFactorization, ratings: Ratings, objective: Objective, script: list[float]) -> None:
        self.model, self.ratings, self.objective, self.script, self.epochs = model, ratings, objective, script, 0
        self._err_by(1.0)

    def epoch(self) -> dict[str, float]:
        self.epochs += 1
        self._err_by(self.script[self.epochs - 1])
        return {"lr": 0.5}

    def _err_by(self, error: float) -> None:
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.zero_()
            self.model.get_parameter("user_bias.weight").fill_(error)

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs = state["epochs"]


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


def test_fit_with_more_patience_gets_over_a_hump(model: MatrixFactorization, ratings: Ratings) -> None:
    progress = scripted_fit(model, ratings, [0.9, 0.5, 0.7, 0.6, 0.1], patience=3)
    assert (progress.epoch, progress.best_epoch) == (5, 5)


def test_an_equal_validation_rmse_is_no_improvement(model: MatrixFactorization, ratings: Ratings) -> None:
    progress = scripted_fit(model, ratings, [0.5, 0.5, 0.5, 0.5], patience=2)
    assert (progress.epoch, progress.best_epoch) == (3, 1)


@pytest.mark.parametrize("script", [[0.9, 0.5, 0.7, 0.6], [0.9, 0.5, 0.6]], ids=["stopped early", "out of epochs"])
def test_the_best_validated_model_comes_back(model: MatrixFactorization, ratings: Ratings, script: list[float]) -> None:
    progress = scripted_fit(model, ratings, script, patience=2)
    assert progress.best_rmse == evaluate(model, ratings, Objective())["rmse"]
    assert_error(model, ratings, 0.5)


def test_without_validation_the_last_model_stays_and_all_epochs_are_done(
    model: MatrixFactorization, ratings: Ratings
) -> None:
    progress = scripted_fit(model, ratings, [0.9, 0.5, 0.7, 0.7, 0.8], validate=False, patience=1)
    assert (progress.epoch, progress.best_model) == (5, {})
    assert_error(model, ratings, 0.8)


def test_any_callable_logs_every_epoch_from_the_start(model: MatrixFactorization, ratings: Ratings) -> None:
    points: dict[str, list[tuple[int, float]]] = {}
    scripted_fit(
        model, ratings, [0.9, 0.5], log=lambda tag, value, step: points.setdefault(tag, []).append((step, value))
    )
    curves = ["cost/train", "cost/valid", "mae/train", "mae/valid", "rmse/train", "rmse/valid"]
    assert sorted(points) == sorted([*curves, "lr", *(f"gradient_norm/{name}" for name in PARAMETERS)])
    for tag in curves:
        assert [step for step, _ in points[tag]] == [0, 1, 2]
    assert points["lr"] == [(1, 0.5), (2, 0.5)]
    for tag in ("rmse/valid", "mae/train"):
        torch.testing.assert_close([value for _, value in points[tag]], [1.0, 0.9, 0.5])


def test_every_epoch_is_reported_with_both_parts_and_the_solvers_values(
    model: MatrixFactorization, ratings: Ratings
) -> None:
    news: list[Epoch] = []
    scripted_fit(model, ratings, [0.9, 0.5], on_epoch=news.append)
    assert [one.number for one in news] == [0, 1, 2]
    assert news[2].solver == {"lr": 0.5}
    assert news[2].train.keys() == (news[2].valid or {}).keys() == {"rmse", "mae", "cost"}


def test_the_cost_of_the_validation_part_has_no_penalty(ratings: Ratings) -> None:
    model, news = MatrixFactorization.from_ratings(ratings, 2), []
    fit(Scripted(model, ratings, Objective(l2=7.0), [0.5]), ratings, epochs=1, on_epoch=news.append)
    half_squares, penalty = 0.5 * 12 * 0.5**2, 0.5 * 7 * 4 * 0.5**2
    torch.testing.assert_close(news[1].valid["cost"], half_squares)
    torch.testing.assert_close(news[1].train["cost"], half_squares + penalty)


def test_a_stop_asked_for_ends_the_fit_after_the_epoch_under_way_and_saves(
    model: MatrixFactorization, ratings: Ratings
) -> None:
    saved: list[dict[str, Any]] = []
    asked = iter([False, False, True])
    progress = scripted_fit(model, ratings, [0.9, 0.8, 0.7], stop=lambda: next(asked), save=saved.append)
    assert progress.epoch == saved[-1]["progress"]["epoch"] == saved[-1]["solver"]["epochs"] == 2


def test_what_is_saved_at_the_end_is_the_last_model_beside_the_best_one(
    model: MatrixFactorization, ratings: Ratings
) -> None:
    saved: list[dict[str, Any]] = []
    scripted_fit(model, ratings, [0.9, 0.5, 0.7], save=lambda state: saved.append(copy.deepcopy(state)))
    bias = "user_bias.weight"
    torch.testing.assert_close(saved[-1]["model"][bias], torch.full((4, 1), 0.7))
    torch.testing.assert_close(saved[-1]["progress"]["best_model"][bias], torch.full((4, 1), 0.5))


def test_a_long_fit_is_saved_on_its_way(
    model: MatrixFactorization, ratings: Ratings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(fit_module, "SAVE_SHARE", 0.0)
    saved: list[int] = []
    scripted_fit(model, ratings, [0.9, 0.8, 0.7], save=lambda state: saved.append(state["progress"]["epoch"]))
    assert saved[:4] == [0, 1, 2, 3]


@pytest.mark.parametrize("error", [math.nan, math.inf, 1e4], ids=["NaN", "infinite", "exploded"])
def test_a_cost_that_diverges_names_lr_and_a_smaller_one_and_saves_nothing_of_it(
    model: MatrixFactorization, ratings: Ratings, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(fit_module, "SAVE_SHARE", 0.0)
    saved: list[int] = []
    with pytest.raises(Diverged, match=r"epoch 3: .*lr 0\.5 .*0\.1") as raised:
        scripted_fit(
            model, ratings, [0.9, 0.8, error, 0.7], save=lambda state: saved.append(state["progress"]["epoch"])
        )
    assert isinstance(raised.value, InputError)
    assert saved == [0, 1, 2]


def test_a_cost_that_rises_for_a_while_has_not_diverged(model: MatrixFactorization, ratings: Ratings) -> None:
    assert scripted_fit(model, ratings, [0.5, 0.9, 0.8], patience=9).epoch == 3


def test_noise_about_a_perfect_fit_has_not_diverged(model: MatrixFactorization, ratings: Ratings) -> None:
    assert scripted_fit(model, ratings, [1e-6, 1e-5, 1e-4], patience=9).epoch == 3


def test_a_fit_that_goes_on_ends_where_one_that_never_stopped_does(tiny_split: tuple[Ratings, Ratings]) -> None:
    def started() -> SGD:
        generator = torch.Generator().manual_seed(3)
        model = MatrixFactorization.from_ratings(train, 2, generator=generator)
        return SGD(model, train, Objective(1.0), generator=generator, blocks=(2, 2), momentum=0.5)

    train, valid = tiny_split
    whole, part, resumed = started(), started(), started()
    saved: list[dict[str, Any]] = []
    ended = fit(whole, valid, epochs=6)
    fit(part, valid, epochs=4, save=saved.append)
    resumed.model.load_state_dict(saved[-1]["model"])
    resumed.load_state_dict(saved[-1]["solver"])
    progress = Progress(**saved[-1]["progress"])
    fit(resumed, valid, epochs=6, progress=progress)
    assert (progress.epoch, progress.best_epoch, progress.best_rmse) == (6, ended.best_epoch, ended.best_rmse)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


@pytest.fixture
def tiny_split() -> tuple[Ratings, Ratings]:
    generator = torch.Generator().manual_seed(0)
    stars = (3 + torch.randn(20, 2, generator=generator) @ torch.randn(2, 15, generator=generator)).clamp(1, 5)
    ratings = Ratings.from_dense(stars.T)
    return ratings.split(torch.rand(300, generator=generator) < 0.2)

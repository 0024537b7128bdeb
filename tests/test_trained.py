"""Trained: the same answers for those who were in training and those who come later."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Train

import mfrec
from mfrec.data.loading import new_items, new_users
from mfrec.errors import InputError
from mfrec.experiments.run import Run
from mfrec.experiments.training import TRAIN
from mfrec.inference.recommend import candidate_items
from mfrec.inference.trained_model import Trained

SOLVERS = ("als", "vb", "gibbs")


@pytest.fixture(scope="module")
def of(train: Train, tmp_path_factory: pytest.TempPathFactory):
    """What a solver trained on the tiny data came to, by its name; read it only."""
    folder, found = tmp_path_factory.mktemp("runs"), {}

    def call(name: str, *options: object) -> Trained:
        key = "-".join(map(str, (name, *options)))
        if key not in found:
            more = ("--burn-in", 2) if name == "gibbs" else ()
            found[key] = mfrec.load(train(folder, key, *options, *more, solver=name, epochs=12))
        return found[key]

    return call


@pytest.fixture
def mfrec_cli(request):
    """The command line, beside the package of the same name."""
    return request.getfixturevalue("mfrec")


def ratings_of(trained: Trained, user: int) -> pd.DataFrame:
    """What was trained on of a user, by ids."""
    own = trained.train.select(trained.train.users == user)
    return pd.DataFrame({"item": trained.dataset.item_ids[own.items.numpy()], "rating": own.values.numpy()})


def test_load_gives_what_the_run_holds(trained: Path):
    loaded, run = mfrec.load(trained), Run.open(trained)
    dataset, part = run.dataset()
    assert loaded.solver == run.config()["solver"]
    assert torch.equal(loaded.part, part)
    assert loaded.dataset.item_ids.equals(dataset.item_ids)
    assert loaded.posterior is None
    assert len(loaded.train) == int((part == TRAIN).sum())


@pytest.mark.parametrize("solver", SOLVERS)
def test_someone_with_a_user_s_ratings_is_predicted_as_that_user_is(solver, of):
    trained = of(solver)
    twin = trained.fold_in_users(ratings_of(trained, 3))
    items = torch.arange(trained.model.n_items)
    mine = trained.model.predict(torch.full_like(items, 3), items)
    theirs = twin.model.predict(torch.zeros_like(items), items)
    # A sampled user is another draw of it, and an als of twelve sweeps has not ended yet.
    assert float((mine - theirs).abs().mean()) < (0.15 if solver == "gibbs" else 0.05)
    assert float((theirs - theirs.mean()).abs().mean()) > 0.2


@pytest.mark.parametrize("solver", SOLVERS)
def test_who_was_folded_in_can_be_asked_all_that_others_can(solver, of):
    trained = of(solver)
    new = trained.fold_in_users({"Film 1 (1981)": 5, 2: 1, "3": 4})
    found = new.recommend(n=4, candidates=candidate_items(trained.dataset, 1), reasons=2)
    assert len(found) == 4
    assert not {1, 2, 3} & set(found["id"])
    assert ("deviation" in found) == (trained.posterior is not None)
    for reasons in found["because"]:
        assert {reason.title for reason in reasons} <= {"Film 1 (1981)", "Film 2 (1982)", "Film 3 (1983)"}
        assert all(reason.share > 0 for reason in reasons)
    pairs = new.predict_frame(pd.DataFrame({"user": ["you"] * 4, "item": found["id"]}))
    assert pairs["prediction"].to_numpy() == pytest.approx(found["predicted"].to_numpy(), abs=1e-5)


def test_many_are_folded_in_at_once_as_each_alone(of):
    trained = of("als")
    one, two = ratings_of(trained, 3), ratings_of(trained, 5)
    frame = pd.concat([one.assign(user="a"), two.assign(user="b")])
    both = trained.fold_in_users(frame)
    assert both.dataset.user_ids.tolist() == ["a", "b"]
    for row, own in enumerate((one, two)):
        alone = trained.fold_in_users(own).model.user_factors.weight[0]
        torch.testing.assert_close(both.model.user_factors.weight[row], alone)


def test_folding_in_again_starts_from_what_was_trained(of):
    trained = of("als")
    own = ratings_of(trained, 3)
    again = trained.fold_in_users({1: 5}).fold_in_users(own)
    assert again.origin is trained
    assert torch.equal(again.model.user_factors.weight, trained.fold_in_users(own).model.user_factors.weight)


@pytest.mark.parametrize("solver", SOLVERS)
def test_new_items_are_predicted_from_ratings_or_from_their_year_alone(solver, of):
    options = ("--item-features", "year") if solver != "vb" else ()
    trained = of(solver, *options)
    by = pd.DataFrame({"user": trained.dataset.user_ids[:6], "item": 901, "rating": [5.0, 5, 5, 4, 5, 5]})
    table = pd.DataFrame({"item": [901, 902], "title": ["Liked (1999)", "Unseen (1999)"], "year": [1999, 1999]})
    new = trained.fold_in_items(by, table)
    assert new.dataset.item_ids.tolist() == [901, 902]
    users = torch.arange(6)
    liked, unseen = (new.model.predict(users, torch.full_like(users, item)) for item in (0, 1))
    assert float(liked.mean()) > float(unseen.mean()) + 0.2
    assert torch.isfinite(unseen).all()


def test_per_item_offsets_of_new_items_are_their_damped_means(of):
    trained = of("als", "--offset", "item")
    by = pd.DataFrame({"user": trained.dataset.user_ids[:2], "item": 901, "rating": [5.0, 4.0]})
    new = trained.fold_in_items(by, pd.DataFrame({"item": [902]}))
    mean = float(trained.train.values.double().mean())
    assert new.model.offset.tolist() == pytest.approx([(9 + 5 * mean) / 7, mean], abs=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_without_a_rating_titles_are_ranked_by_their_damped_means(solver, of):
    trained = of(solver)
    found = trained.fold_in_users({}).recommend(n=30, candidates=candidate_items(trained.dataset, 0))
    counts, sums = (trained.train.item_counts.double(), torch.zeros(30, dtype=torch.float64))
    sums.index_add_(0, trained.train.items.long(), trained.train.values.double())
    mean = float(trained.train.values.double().mean())
    means = (sums + 5 * mean) / (counts + 5)
    expected = means[torch.from_numpy(trained.dataset.item_ids.get_indexer(found["id"]))]
    assert found["predicted"].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert found["predicted"].is_monotonic_decreasing
    assert "mean rating" in found.attrs["ranked by"]
    assert "predicted" in trained.recommend(trained.dataset.user_ids[0], 3).attrs["ranked by"]


def test_unknown_ids_are_rows_without_ratings_and_are_counted(of, caplog):
    trained = of("als")
    known_user, known_item = trained.dataset.user_ids[0], trained.dataset.item_ids[0]
    pairs = pd.DataFrame({
        "note": list("abcd"), "user": [known_user, 888, known_user, 888], "item": [known_item, known_item, 999, 999],
    })  # fmt: skip
    with caplog.at_level(logging.WARNING):
        found = trained.predict_frame(pairs)
    model = trained.model
    mu, b_user, b_item = (
        float(t.detach().flatten()[0]) for t in (model.offset, model.user_bias.weight, model.item_bias.weight)
    )
    zero = torch.tensor([0])
    known = float(model.predict(zero, zero, clip=True)[0])
    assert found["prediction"].tolist() == pytest.approx([known, mu + b_item, mu + b_user, mu], abs=1e-5)
    assert found[["note", "user", "item"]].equals(pairs)
    assert "1 user id (888) is not in this model of 40 users" in caplog.text
    assert "1 item id (999) is not in this model of 30 items" in caplog.text
    assert "pairs predicted 1 by the item's bias, 1 by the user's bias, 1 by the mean rating" in caplog.text
    with pytest.raises(InputError, match="888"):
        trained.predict_frame(pairs, unknown="error")


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_unknown_item_is_the_bias_of_a_newcomer_as_of_a_user(solver, of):
    trained = of(solver)
    high, low = (trained.fold_in_users(dict.fromkeys(range(1, 15), stars)) for stars in (5, 1))
    ours, theirs = (
        float(new.predict_frame(pd.DataFrame({"user": ["you"], "item": [999]}))["prediction"].iloc[0])
        for new in (high, low)
    )
    assert ours > theirs


def test_ids_are_found_as_numbers_and_as_text(of):
    trained = of("als")
    user, item = trained.dataset.user_ids[3], trained.dataset.item_ids[4]
    numbers = trained.predict_frame(pd.DataFrame({"user": [user], "item": [item]}), unknown="error")
    texts = trained.predict_frame(pd.DataFrame({"user": [str(user)], "item": [str(item)]}), unknown="error")
    assert numbers["prediction"].tolist() == texts["prediction"].tolist()


@pytest.mark.parametrize("solver", ["vb", "gibbs"])
def test_deviations_are_wider_where_less_is_known(solver, of):
    trained = of(solver)
    user, item = trained.dataset.user_ids[0], trained.dataset.item_ids[0]
    pairs = pd.DataFrame({"user": [user, 888], "item": [item, item]})
    known, stranger = trained.predict_frame(pairs)["deviation"]
    assert stranger > known


@pytest.mark.parametrize("solver", ["vb", "gibbs"])
def test_exploring_by_the_upper_end_ranks_by_mean_and_deviation(solver, of):
    trained = of(solver)
    every = torch.ones(30, dtype=torch.bool)
    found = trained.recommend(trained.dataset.user_ids[2], 99, candidates=every, explore="upper")
    items = torch.from_numpy(trained.dataset.item_ids.get_indexer(found["id"]))
    users = torch.full_like(items, 2)
    upper = trained.model.predict(users, items) + 1.6448536 * trained.posterior.deviation(users, items, noise=False)
    assert upper.diff().max() <= 1e-5
    assert len(found) == 30 - int(trained.dataset.ratings.user_counts[2])


@pytest.mark.parametrize("solver", ["vb", "gibbs"])
def test_thompson_sampling_draws_a_ranking_and_the_same_seed_draws_the_same(solver, of):
    trained, user, every = of(solver), 5, torch.ones(30, dtype=torch.bool)

    def ranking(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        frame = trained.recommend(user, 20, candidates=every, explore="thompson", generator=generator)
        return frame["id"].tolist()

    assert ranking(1) == ranking(1)
    assert len({tuple(ranking(seed)) for seed in range(6)}) > 2


def test_exploring_without_a_posterior_is_refused(of):
    with pytest.raises(InputError, match="als does not know how sure it is"):
        of("als").recommend(1, explore="thompson")


def test_blocks_of_all_users_are_what_each_is_recommended(of):
    trained, every = of("als"), torch.ones(30, dtype=torch.bool)
    frames = [frame for _, frame in trained.recommend_blocks(5, candidates=every, scores_held=97)]
    table = pd.concat(frames)
    assert len(frames) > 3
    for user in (1, 20, 40):
        alone = trained.recommend(user, 5, candidates=every)
        mine = table[table["user"] == user]
        assert mine["item"].tolist() == alone["id"].tolist()
        assert mine["rank"].tolist() == [1, 2, 3, 4, 5]
        assert mine["predicted"].to_numpy() == pytest.approx(alone["predicted"].to_numpy(), abs=1e-5)


def test_new_items_are_recommended_to_trained_users(of):
    trained = of("als")
    by = pd.DataFrame({"user": trained.dataset.user_ids[[0, 1, 0]], "item": ["a", "a", "b"], "rating": [5.0, 4, 1]})
    new = trained.fold_in_items(by)
    every = torch.ones(2, dtype=torch.bool)
    assert new.recommend(trained.dataset.user_ids[5], candidates=every)["id"].tolist() == ["a", "b"]
    assert new.recommend(trained.dataset.user_ids[1], candidates=every)["id"].tolist() == ["b"]
    table = pd.concat([frame for _, frame in new.recommend_blocks(2, candidates=every)])
    assert len(table) == 40 * 2 - 3
    with pytest.raises(InputError, match="reasons are for items that were in training"):
        new.recommend(1, reasons=1)
    with pytest.raises(InputError, match="give a bool for each of 2 items"):
        new.recommend(1, candidates=torch.ones(30, dtype=torch.bool))


def test_similar_items_of_newcomers_are_those_of_the_run(of):
    trained = of("als")
    ours, theirs = (pd.concat([f for _, f in t.similar_blocks(3)]) for t in (trained, trained.fold_in_users({1: 5})))
    assert ours.equals(theirs)


def test_missing_ids_are_refused(of):
    trained = of("als")
    with pytest.raises(InputError, match="1 of 2 pairs have no user"):
        trained.predict_frame(pd.DataFrame({"user": [1, None], "item": [1, 2]}))
    with pytest.raises(InputError, match="1 of 2 ratings have no item"):
        trained.fold_in_users(pd.DataFrame({"item": [1, None], "rating": [4, 4]}))


def test_blocks_of_similar_items_leave_the_item_itself_out(of):
    trained = of("als")
    table = pd.concat([frame for _, frame in trained.similar_blocks(3, min_ratings=0, scores_held=31)])
    assert (table["item"] != table["similar"]).all()
    assert len(table) == 30 * 3
    assert set(table["rank"]) == {1, 2, 3}


def test_candidates_are_of_the_genres_and_years_asked_for_and_not_excluded(of):
    dataset = of("als").dataset
    assert candidate_items(dataset, 0).all()
    years = dataset.items["year"]
    chosen = candidate_items(dataset, 0, years=(1990, 1999))
    assert chosen.tolist() == [bool(1990 <= year <= 1999) for year in years]
    assert candidate_items(dataset, 0, genres=["film-noir"]).all()
    assert int((~candidate_items(dataset, 0, exclude=["Film 1 (1981)", 2])).sum()) == 2
    counts = dataset.ratings.item_counts
    assert torch.equal(candidate_items(dataset, 20), counts >= 20)
    for message, options in (
        ("unknown genre 'dramma'; did you mean 'Drama'", {"genres": ["dramma"]}),
        ("years 1999 to 1990 run backwards", {"years": (1999, 1990)}),
        ("did you mean 'Film 1 \\(1981\\)'", {"exclude": ["film 1 "]}),
    ):
        with pytest.raises(InputError, match=message):
            candidate_items(dataset, 0, **options)


def test_newcomers_share_the_other_side_and_bring_their_own(of):
    dataset = of("als").dataset
    frame = pd.DataFrame({"user": ["x", "x", "y"], "item": [1, "Film 2 (1982)", "3"], "rating": [1, 2, 3]})
    users = new_users(dataset, frame, pd.DataFrame({"user": ["z", "x"], "age": [30, 20]}))
    assert users.user_ids.tolist() == ["x", "y", "z"]
    assert users.item_ids is dataset.item_ids
    assert users.ratings.user_counts.tolist() == [2, 1, 0]
    assert users.users["age"].tolist()[0] == 20
    again = new_users(dataset, pd.concat([frame, frame.assign(rating=5)]))
    assert again.ratings.values.tolist() == [5, 5, 5]
    items = new_items(dataset, pd.DataFrame({"user": dataset.user_ids[:2], "item": ["n", "n"], "rating": [4, 5]}))
    assert items.ratings.item_counts.tolist() == [2]
    assert items.ratings.n_users == 40


@pytest.mark.parametrize(("message", "ratings"), [
    ("off the scale", {1: 7}),
    ("did you mean 'Film 1 \\(1981\\)'", {"Film 1": 4}),
    ("item id 777 is not in this dataset", {777: 4}),
    ("is not a finite number", {1: float("nan")}),
    ("no column 'rating'", pd.DataFrame({"item": [1]})),
])  # fmt: skip
def test_ratings_of_newcomers_that_cannot_be_are_refused(message, ratings, of):
    with pytest.raises(InputError, match=message):
        of("als").fold_in_users(ratings)


def test_a_known_user_or_item_is_needed_by_name(of):
    with pytest.raises(InputError, match="there are 40 users; name one"):
        of("als").recommend()
    frame = pd.DataFrame({"user": [777], "item": ["n"], "rating": [4]})
    with pytest.raises(InputError, match="user id 777 is not in this dataset"):
        of("als").fold_in_items(frame)


def test_features_known_of_someone_new_change_what_they_are_recommended(train: Train, mfrec_cli, tmp_path: Path):
    folder = tmp_path / "data"
    folder.mkdir()
    generator = np.random.default_rng(0)
    lines = [f"{user}\t{item}\t{5 if (user % 2) == (item % 2) else 1}\t9" for user in range(1, 31)
             for item in generator.permutation(range(1, 21))[:10]]  # fmt: skip
    (folder / "u.data").write_text("\n".join(lines))
    (folder / "u.user").write_text("\n".join(f"{u}|30|{'F' if u % 2 else 'M'}|writer|1" for u in range(1, 31)))
    run = train(tmp_path, "run", "--data", folder, "--user-features", "gender", solver="als", epochs=20)
    trained, every = mfrec.load(run), torch.ones(20, dtype=torch.bool)

    def odd(gender: str) -> float:
        new = trained.fold_in_users({}, pd.DataFrame({"gender": [gender]}))
        assert new.recommend(n=3, candidates=every).attrs["ranked by"] == "predicted rating"
        scores = new.model.predict(torch.zeros(20, dtype=torch.long), torch.arange(20))
        return float(scores[::2].mean() - scores[1::2].mean())

    said = mfrec_cli("recommend", run, "--about", "gender=Q")
    assert (said.status, "unknown gender 'Q'; choose from F, M" in said.err) == (2, True)
    assert mfrec_cli("recommend", run, "--about", "gender=F", "--min-ratings", 0).status == 0
    assert odd("F") > 0.3
    assert odd("M") < -0.3

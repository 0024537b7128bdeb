"""The verbs that recommend and compare: recommend, similar."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import torch
import tyro

from mfrec.cli import report
from mfrec.cli.options import Count, Device, RunPath, Switch, pick_device, scores_in, seeded
from mfrec.cli.output import TableWriter, print_json, write_blocks
from mfrec.data.ids import Id
from mfrec.data.pairs import read_table
from mfrec.data.parsing import checked_text, text_encoding
from mfrec.errors import InputError, unknown
from mfrec.experiments.run import Run
from mfrec.inference.recommend import candidate_items, similar_items, similar_users
from mfrec.inference.trained_model import Trained

Several = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
# How many of a user's own ratings speak for a recommendation in --why.
REASONS = 3


@dataclasses.dataclass(frozen=True)
class Recommend:
    """Recommend items to a user of the run, to someone new by their ratings, or to all users.

    Without --user, --ratings, --rate and --all: to someone of whom no rating is known.
    """

    run: RunPath
    """Run folder."""
    user: str | None = None
    """Id of a user in the run."""
    rate: Several = ()
    """A rating of someone new, as "Toy Story (1995)=5", by title or id; give it again for each."""
    ratings: str | None = None
    """A table of ratings of someone new, or of many: columns item and rating, and user for many."""
    about: Several = ()
    """What is known of someone new, as gender=F, in a run trained with --user-features; give it again for each."""
    all: Switch = False
    """Recommend to every user, into the --output file."""
    number: Count = 10
    """How many items."""
    min_ratings: int = 5
    """Leave out items with fewer ratings: a film with a single 5-star rating has nothing else to be judged by."""
    genres: str = ""
    """Only items of one of these genres: Drama,Comedy."""
    years: tuple[int, int] | None = None
    """Only items from the first to the last of two years."""
    exclude: Several = ()
    """An item not to recommend, by id or title, or a text file with one a line; give it again for each."""
    why: Switch = False
    """Show which of the user's own ratings speak most for each item."""
    explore: Literal["none", "upper", "thompson"] = "none"
    """Rank by the upper end of what may be expected, or by a draw of it, rather than by the prediction."""
    seed: int = 0
    """Seeds draws from the posterior."""
    output: str | None = None
    """A .csv or .parquet file to write recommendations to."""
    memory: int = 256
    """Megabytes of scores held at a time by --all."""
    device: Device = "auto"
    """Where to compute."""
    json: Switch = False
    """Print JSON instead of tables."""

    def __call__(self) -> int:
        asked = {"--user": self.user, "--rate": self.rate, "--ratings": self.ratings, "--all": self.all}
        given = [name for name, value in asked.items() if value]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} ask for different users; give one of them")
        if self.about and given in (["--user"], ["--all"]):
            raise InputError(f"--about is of someone new, and {given[0]} of users that the run knows; give one of them")
        if self.output is not None and (self.json or self.why):
            raise InputError("--json and --why are for the terminal, and --output for a file; give one of them")
        generator, writer = seeded(self.seed), None if self.output is None else TableWriter(Path(self.output))
        trained = Run.open(self.run).trained(pick_device(self.device))
        if self.user is None and not self.all:
            trained = self._folded(trained, generator)
        candidates = candidate_items(
            trained.origin.dataset,
            self.min_ratings,
            genres=[genre for genre in self.genres.split(",") if genre.strip()],
            years=self.years,
            exclude=_items(self.exclude),
        )
        n_users = len(trained.dataset.user_ids)
        if self.all or (self.user is None and n_users > 1):
            if writer is None:
                raise InputError(f"recommendations to {n_users:,} users need a file; name one by --output")
            blocks = trained.recommend_blocks(
                self.number,
                candidates=candidates,
                explore=self.explore,
                scores_held=scores_in(self.memory),
                generator=generator,
            )
            write_blocks(writer, blocks, n_users, "recommendations", "users")
            return 0
        found = trained.recommend(
            self.user,
            self.number,
            candidates=candidates,
            explore=self.explore,
            reasons=REASONS if self.why else 0,
            generator=generator,
        )
        if writer is not None:
            name = trained.dataset.user_ids[trained.user_index(self.user)]
            columns = found.rename(columns={"id": "item"}).drop(columns=["title", "year", "genres"], errors="ignore")
            columns.insert(0, "user", name)
            columns.insert(1, "rank", range(1, len(found) + 1))
            write_blocks(writer, [(1, columns)], 1, "recommendations", "users")
        elif self.json:
            print_json(found)
        else:
            report.print_recommendations(trained.dataset, trained.user_index(self.user), found)
        return 0

    def _folded(self, trained: Trained, generator: torch.Generator) -> Trained:
        ratings: pd.DataFrame | dict[Id, float] = dict(_rating(text) for text in self.rate)
        if self.ratings is not None:
            ratings = read_table(self.ratings, ("item", "rating"), ("user",))
            if self.about and "user" in ratings:
                raise InputError(f"--about is of one person, and {self.ratings} of many; leave out one of them")
        about = dict(_pair(text, "about", "gender=F") for text in self.about)
        if len(about) < len(self.about):
            raise InputError(f"--about tells the same twice ({', '.join(self.about)}); tell each once")
        known = [name.strip() for name in trained.user_features.split(",") if name.strip()]
        for name, value in about.items():
            if name not in known:
                told = f"takes {', '.join(known)}" if known else "was trained without --user-features"
                raise InputError(f"about {name} tells nothing to this run, which {told}")
            texts = {text for text in trained.dataset.users[name] if isinstance(text, str)}
            if texts and value not in texts:
                raise unknown(name, value, sorted(texts))
        return trained.fold_in_users(ratings, pd.DataFrame([about]) if about else None, generator=generator)


def _rating(text: str) -> tuple[Id, float]:
    item, stars = _pair(text, "rate", '"Toy Story (1995)=5"')
    try:
        return item, float(stars)
    except ValueError:
        raise InputError(f'rate {text!r} ends in {stars!r}, which is no number; write "TITLE=STARS"') from None


def _pair(text: str, option: str, example: str) -> tuple[str, str]:
    # Titles have = in them more often than ratings have.
    name, equals, value = text.rpartition("=")
    if not equals or not name.strip():
        raise InputError(f"{option} {text!r} is not NAME=VALUE; write it as {example}")
    return name.strip(), value.strip()


def _items(given: Iterable[str]) -> list[Id]:
    """Ids and titles as given, with those of files in their place."""
    found: list[Id] = []
    for one in given:
        path = Path(one)
        if len(one) < 255 and path.is_file():
            data = checked_text(one, path.read_bytes())
            found += [line.strip() for line in data.decode(text_encoding(data)).splitlines() if line.strip()]
        else:
            found.append(one)
    return found


@dataclasses.dataclass(frozen=True)
class Similar:
    """Find the items, or the users, most similar to one, by the cosine of their factors."""

    run: RunPath
    """Run folder."""
    item: str | None = None
    """Id or title of the item to compare."""
    user: str | None = None
    """Id of the user to compare, instead of an item."""
    all: Switch = False
    """Compare every item, into the --output file."""
    number: Count = 10
    """How many."""
    min_ratings: int = 20
    """Leave out those with fewer ratings: little is known of where their factors point."""
    output: str | None = None
    """A .csv or .parquet file for --all."""
    memory: int = 256
    """Megabytes of scores held at a time by --all."""
    json: Switch = False
    """Print JSON instead of a table."""

    def __call__(self) -> int:
        if self.output is not None and not self.all:
            raise InputError("--output is for --all, and others are printed; leave it out, or take --json")
        writer = None if self.output is None else TableWriter(Path(self.output))
        trained = Run.open(self.run).trained()
        model, dataset = trained.model, trained.dataset
        if [self.item is not None, self.user is not None, self.all].count(True) != 1:
            raise InputError("similar compares one item, one user or all items; give one of --item, --user and --all")
        if self.all:
            if writer is None:
                raise InputError("all items need a file for those similar to them; name one by --output")
            blocks = trained.similar_blocks(
                self.number, min_ratings=self.min_ratings, scores_held=scores_in(self.memory)
            )
            write_blocks(writer, blocks, len(dataset.item_ids), "similar items", "items")
            return 0
        if self.item is not None:
            item = dataset.item_index(self.item)
            name, found = dataset.title(item), similar_items(dataset, model, item, self.number, self.min_ratings)
        else:
            assert self.user is not None
            user = dataset.user_index(self.user)
            name, found = f"user {self.user}", similar_users(dataset, model, user, self.number, self.min_ratings)
        if self.json:
            print_json(found)
        else:
            report.print_items(f"similar to {name}", found)
        return 0

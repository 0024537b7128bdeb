"""`mfrec recommend`: recommendations for a user of the run, for a new user, or for all users."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from mfrec.cli.options import Device, Number, Plugins, RunPath, Several, Switch
from mfrec.errors import InputError
from mfrec.experiments.config import Seed
from mfrec.options import Count, CountOrZero, Options

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mfrec.cli.output import TableWriter
    from mfrec.inference.trained_model import TrainedModel

# How many ratings to show as reasons for a recommendation.
REASONS = 3


@dataclass(frozen=True, kw_only=True)
class Recommend(Options):
    """Recommend items to a user of the run, to all users, or to a new user, by default one without ratings."""

    run: RunPath
    user: str | None = None
    """Id of a user of the run."""
    rate: Annotated[Several, tyro.conf.arg(metavar="ITEM=RATING")] = ()
    """A rating of a new user, by title or id, such as "Toy Story (1995)=5"."""
    ratings: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """A table of ratings of a new user, or of several: columns item and rating, and user for several."""
    about: Annotated[Several, tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """A feature of a new user, such as gender=F, of a run trained with --user-features."""
    all: Switch = False
    """Recommend to every user, and write the --output file."""
    number: Number = 10
    """Number of items."""
    min_ratings: CountOrZero = 5
    """Leave out items with fewer ratings, whose predictions are uncertain."""
    genres: str = ""
    """Only items of one of these genres: Drama,Comedy."""
    years: Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="FIRST LAST")] = None
    """Only items from the first to the last of two years."""
    exclude: Annotated[Several, tyro.conf.arg(metavar="ITEM")] = ()
    """An item not to recommend, by id or title, or a text file with one a line."""
    why: Switch = False
    """Show which of the user's ratings contribute most to each recommendation."""
    explore: Literal["none", "upper", "thompson"] = "none"
    """Rank by the 95 % quantile, or by one draw, of the expected rating instead of by the prediction."""
    seed: Seed = 0
    """Seed of the draws from the posterior."""
    output: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """A .csv or .parquet file to write recommendations to."""
    memory: Count = 256
    """Megabytes of scores to hold at a time, for --all."""
    device: Device = "auto"
    """Device to compute on; auto uses a GPU if there is one."""
    json: Switch = False
    """Print JSON instead of tables."""
    plugin: Plugins = ()

    def check(self) -> None:
        """Check every option.

        Raises:
            InputError: an option is out of range, or options contradict each other.
        """
        super().check()
        sources = {"--user": self.user, "--rate": self.rate, "--ratings": self.ratings, "--all": self.all}
        chosen = [name for name, value in sources.items() if value]
        if len(chosen) > 1:
            raise InputError(f"{' and '.join(chosen)} choose different users; give one of them")
        if self.about and chosen in (["--user"], ["--all"]):
            raise InputError(f"--about describes a new user; do not combine it with {chosen[0]}")
        if self.output is not None and (self.json or self.why):
            raise InputError(
                f"{'--json' if self.json else '--why'} prints and --output writes a file; give one of them"
            )

    def __call__(self) -> int:
        self.check()

        import torch

        from mfrec.cli.new_user import folded
        from mfrec.cli.output import TableWriter
        from mfrec.experiments.building import choose_device
        from mfrec.experiments.run import load_run
        from mfrec.inference.recommend import candidate_items

        device, writer = choose_device(self.device), None if self.output is None else TableWriter(Path(self.output))
        generator = torch.Generator().manual_seed(self.seed)
        trained = load_run(self.run, device)
        if self.user is None and not self.all:
            trained = folded(trained, self.rate, self.ratings, self.about, generator)
        candidates = candidate_items(
            trained.origin.dataset,
            self.min_ratings,
            genres=[genre for genre in self.genres.split(",") if genre.strip()],
            years=self.years,
            exclude=items_in(self.exclude),
        )
        if self.all or (self.user is None and len(trained.dataset.user_ids) > 1):
            return self._recommend_to_many(trained, candidates, generator, writer)
        return self._recommend_to_one(trained, candidates, generator, writer)

    def _recommend_to_many(
        self, trained: TrainedModel, candidates: Tensor, generator: torch.Generator, writer: TableWriter | None
    ) -> int:
        from mfrec.cli.output import scores_in, write_blocks

        n_users = len(trained.dataset.user_ids)
        if writer is None:
            raise InputError(f"recommendations to {n_users:,} users need --output, and are written to that file")
        blocks = trained.recommend_blocks(
            self.number,
            candidates=candidates,
            explore=self.explore,
            scores_held=scores_in(self.memory),
            generator=generator,
        )
        write_blocks(writer, blocks, n_users, "recommendations", "users")
        return 0

    def _recommend_to_one(
        self, trained: TrainedModel, candidates: Tensor, generator: torch.Generator, writer: TableWriter | None
    ) -> int:
        from mfrec.cli import report
        from mfrec.cli.output import print_json, write_blocks

        recommended = trained.recommend(
            self.user,
            self.number,
            candidates=candidates,
            explore=self.explore,
            reasons=REASONS if self.why else 0,
            generator=generator,
        )
        user = trained.user_index(self.user)
        if writer is not None:
            frame = recommended.rename(columns={"id": "item"}).drop(
                columns=["title", "year", "genres"], errors="ignore"
            )
            frame.insert(0, "user", trained.dataset.user_ids[user])
            frame.insert(1, "rank", range(1, len(frame) + 1))
            write_blocks(writer, [(1, frame)], 1, "recommendations", "users")
        elif self.json:
            print_json(recommended)
        else:
            report.print_recommendations(trained.dataset, user, recommended)
        return 0


def items_in(values: tuple[str, ...]) -> list[str]:
    """Ids and titles; the name of a text file stands for its lines."""
    from mfrec.data.text import checked_text

    items: list[str] = []
    for value in values:
        # No file system has longer names.
        if len(value) < 255 and Path(value).is_file():
            lines = checked_text(value, Path(value).read_bytes()).decode().splitlines()
            items += [line.strip() for line in lines if line.strip()]
        else:
            items.append(value)
    return items

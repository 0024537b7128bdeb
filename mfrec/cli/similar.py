"""`mfrec similar`: the items or users whose factors point the same way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mfrec.cli.options import Number, Plugins, RunPath, Switch
from mfrec.errors import InputError
from mfrec.options import Count, CountOrZero, Options

if TYPE_CHECKING:
    import pandas as pd

    from mfrec.inference.trained_model import TrainedModel


@dataclass(frozen=True, kw_only=True)
class Similar(Options):
    """Find the items, or the users, most similar to a given one, by the cosine of their factors."""

    run: RunPath
    item: str | None = None
    """Id or title of the item to compare."""
    user: str | None = None
    """Id of the user to compare, instead of an item."""
    all: Switch = False
    """Compare every item, and write the --output file."""
    number: Number = 10
    """Number of similar items or users."""
    min_ratings: CountOrZero = 20
    """Leave out those with fewer ratings, whose factors are uncertain."""
    output: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """A .csv or .parquet file for --all."""
    memory: Count = 256
    """Megabytes of scores to hold at a time, for --all."""
    json: Switch = False
    """Print JSON instead of a table."""
    plugin: Plugins = ()

    def __call__(self) -> int:
        self.check()

        from mfrec.cli import report
        from mfrec.cli.output import TableWriter, print_json, scores_in, write_blocks
        from mfrec.experiments.run import load_run

        if [self.item is not None, self.user is not None, self.all].count(True) != 1:
            raise InputError("similar compares an item, a user or all items; give one of --item, --user and --all")
        if self.all != (self.output is not None):
            raise InputError("--all needs --output, and writes a file" if self.all else "--output needs --all")
        writer = None if self.output is None else TableWriter(Path(self.output))
        trained = load_run(self.run)
        if writer is not None:
            blocks = trained.similar_blocks(
                self.number, min_ratings=self.min_ratings, scores_held=scores_in(self.memory)
            )
            write_blocks(writer, blocks, len(trained.dataset.item_ids), "similar items", "items")
            return 0
        name, similar = self._similar(trained)
        if self.json:
            print_json(similar)
        else:
            report.print_items(f"similar to {name}", similar)
        return 0

    def _similar(self, trained: TrainedModel) -> tuple[str, pd.DataFrame]:
        """The name of the item or user, and those similar to it."""
        from mfrec.inference.recommend import similar_items, similar_users

        model, dataset = trained.model, trained.dataset
        if self.item is not None:
            item = dataset.item_index(self.item)
            return dataset.title(item), similar_items(dataset, model, item, self.number, self.min_ratings)
        assert self.user is not None
        user = dataset.user_index(self.user)
        return f"user {self.user}", similar_users(dataset, model, user, self.number, self.min_ratings)

"""`mfrec synthetic`: a file of ratings that are drawn from known factors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from mfrec.cli.options import Switch
from mfrec.experiments.config import Seed
from mfrec.options import Count, CountOrZero, NonNegative, Options

# Rows that are written at a time.
BLOCK_ROWS = 2**22


@dataclass(frozen=True, kw_only=True)
class Synthetic(Options):
    """Write synthetic ratings: skewed, from known factors and biases."""

    output: Annotated[str, tyro.conf.arg(metavar="FILE")]
    """A .parquet or .csv file."""
    users: Count = 6_040
    """Number of users."""
    items: Count = 3_706
    """Number of items."""
    ratings: Count = 1_000_209
    """Number of ratings, of distinct pairs."""
    rank: CountOrZero = 8
    """Number of factors."""
    noise: NonNegative = 0.3
    """Standard deviation of the noise, in stars: the lowest RMSE that a model can have."""
    seed: Seed = 0
    """Seed of all draws."""
    json: Switch = False
    """Print JSON instead of a sentence."""

    def __call__(self) -> int:
        self.check()

        from pathlib import Path

        import pandas as pd
        import torch

        from mfrec.cli.output import TableWriter, fill
        from mfrec.data.synthetic import synthetic

        writer = TableWriter(Path(self.output))
        generator = torch.Generator().manual_seed(self.seed)
        dataset = synthetic(self.users, self.items, self.ratings, self.rank, self.noise, generator=generator)
        columns = {"user": dataset.ratings.users, "item": dataset.ratings.items, "rating": dataset.ratings.values}
        blocks = (
            pd.DataFrame({name: column[first : first + BLOCK_ROWS].numpy() for name, column in columns.items()})
            for first in range(0, self.ratings, BLOCK_ROWS)
        )
        fill(writer, ((len(block), block) for block in blocks), self.ratings, "ratings")
        if self.json:
            print(json.dumps(self.to_dict(), indent=2))
            return 0
        print(f"{self.ratings:,} ratings of {self.users:,} users × {self.items:,} items in {self.output}")
        return 0

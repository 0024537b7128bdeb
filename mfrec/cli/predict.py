"""`mfrec predict`: predicted ratings for a table of users and items."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mfrec.cli.options import Device, Plugins, RunPath, Switch
from mfrec.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Add predicted ratings to a table of users and items."""

    run: RunPath
    pairs: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PAIRS")]
    """A CSV, TSV or parquet table with columns user and item (or userId and movieId); other columns are kept.  A run
    with session biases reads a column timestamp (seconds since 1970), if there is one."""
    output: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """A .csv or .parquet file to write; by default CSV is printed."""
    probabilities: Switch = False
    """Add a column for each possible rating with its probability, such as p_4; needs a Bayesian solver."""
    unknown: Literal["mean", "error"] = "mean"
    """Unknown ids: treat them as having no ratings, or refuse them."""
    device: Device = "auto"
    """Device to compute on; auto uses a GPU if there is one."""
    json: Switch = False
    """Print JSON instead of CSV."""
    plugin: Plugins = ()

    def __call__(self) -> int:
        from mfrec.cli.output import TableWriter, print_json, write_blocks
        from mfrec.data.pairs import read_table
        from mfrec.experiments.building import choose_device
        from mfrec.experiments.run import load_run

        if self.json and self.output is not None:
            raise InputError("--json prints and --output writes a file; give one of them")
        device, writer = choose_device(self.device), None if self.output is None else TableWriter(Path(self.output))
        pairs = read_table(self.pairs, ("user", "item"))
        trained = load_run(self.run, device)
        predictions = trained.predict_frame(pairs, unknown=self.unknown, probabilities=self.probabilities)
        if writer is not None:
            write_blocks(writer, [(len(predictions), predictions)], len(predictions), "predictions", "pairs")
        elif self.json:
            print_json(predictions)
        else:
            predictions.to_csv(sys.stdout, index=False)
        return 0

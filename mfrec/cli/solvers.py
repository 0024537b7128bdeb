"""`mfrec solvers`: the solvers, their strengths, and their results on the embedded data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mfrec.cli.options import Plugins, Switch
from mfrec.cli.tables import print_rows
from mfrec.solvers.base import SOLVERS


@dataclass(frozen=True, kw_only=True)
class Solvers:
    """Compare the solvers: summaries, options to tune, and supported models."""

    measure: Switch = False
    """Train each with its defaults on the embedded data, and show its test metrics and time: half a minute in all."""
    json: Switch = False
    """Print JSON instead of a table."""
    plugin: Plugins = ()

    def __call__(self) -> int:
        rows = [self._row(name) for name in SOLVERS]
        if self.json:
            print(json.dumps(rows, indent=2))
        elif self.measure:
            from mfrec.cli.report import metric_formats

            print_rows("solvers, with their test metrics on the embedded data for seed 0", rows, metric_formats())
        else:
            print_rows("solvers", rows)
            print("mfrec solvers --measure trains each on the embedded data and adds its test metrics and seconds")
        return 0

    def _row(self, name: str) -> dict[str, Any]:
        spec = SOLVERS[name]
        # Every solver's rank is worth tuning.
        tuned = [option.replace("_", "-") for option in spec.search_space if option != "rank"]
        row: dict[str, Any] = {
            "solver": name,
            "summary": spec.summary.rstrip("."),
            "to tune": ", ".join(tuned) or "rank only",
            "supports": ", ".join(sorted(spec.supports)) or "-",
        }
        return row | measured(name) if self.measure else row


def measured(solver: str) -> dict[str, float]:
    """The test metrics and the seconds of a solver with its defaults on the embedded data."""
    from mfrec.evaluation.metrics import METRICS
    from mfrec.experiments.config import ExperimentConfig
    from mfrec.experiments.training import train

    result = train(ExperimentConfig.create(solver, run_dir=None))
    assert result.metrics is not None, "nothing but an exception ends it early"
    test = result.metrics["test"]
    return {metric.label: test[name] for name, metric in METRICS.items()} | {"seconds": result.metrics["fit_seconds"]}

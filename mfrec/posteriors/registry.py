"""The kinds of posteriors, and how to read one back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mfrec.errors import unknown
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.posteriors.base import Posterior
from mfrec.posteriors.mean_field import MeanFieldPosterior
from mfrec.posteriors.ordinal_samples import OrdinalSamples
from mfrec.posteriors.point_estimate import PointEstimate
from mfrec.posteriors.samples import PosteriorSamples

# The kind, as `state_dict()` has it, of each class.
POSTERIORS: dict[str, type[Posterior]] = {
    PointEstimate.kind: PointEstimate,
    PosteriorSamples.kind: PosteriorSamples,
    MeanFieldPosterior.kind: MeanFieldPosterior,
    OrdinalSamples.kind: OrdinalSamples,
}


def posterior_from_state(state: Mapping[str, Any], model: MatrixFactorization, objective: Objective) -> Posterior:
    """The posterior that returned this `state_dict()`.

    Args:
        model: the model as the solver left it.
        objective: the objective of the training.

    Raises:
        InputError: there is no such kind of posterior; the plugin that adds it may be missing.
    """
    if state["kind"] not in POSTERIORS:
        raise unknown("kind of posterior", state["kind"], POSTERIORS)
    return POSTERIORS[state["kind"]].from_state(state, model, objective)

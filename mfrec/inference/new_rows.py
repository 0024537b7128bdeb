"""New rows: ratings, features and offsets of users or items that were not in training, beside what was trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.model.factorization import SIDES, USER, MatrixFactorization
from mfrec.model.features import Features
from mfrec.model.objective import Objective
from mfrec.model.ridge import sides_of
from mfrec.posteriors.posterior import MeanField, Posterior, Samples

# What says how a row follows from its ratings: what was minimized, or the posterior.
Law = Objective | Posterior


class NewRows:
    """New rows of a side: their ratings and features, beside a trained model.

    Args:
        side: USER or ITEM, of which the new rows are.
        ratings: new users × the model's items, or the model's users × new items.
        law: the objective, or the posterior, that the model was trained by.
        features: the new rows' blocks, by the names of those that the model was trained with.
        offset: (n_rows,) of new items, where each item of the model has an offset of its own.

    Raises:
        InputError: the law has no draws or is none, or ratings, features or offsets do not fit the model.
    """

    def __init__(
        self,
        side: int,
        model: MatrixFactorization,
        ratings: Ratings,
        law: Law,
        features: Mapping[str, Features],
        offset: Tensor | None = None,
    ) -> None:
        if not isinstance(law, Objective | MeanField | Samples) or (isinstance(law, Samples) and not law.draws):
            known = "draws" if isinstance(law, Samples) else f"{type(law).__name__}"
            raise InputError(f"rows cannot be folded in by {known}; give an objective, or a posterior with draws")
        self.side = side
        self.trained = trained = model if isinstance(law, Objective) else law.model
        self.device, self.dtype = trained.scale.device, trained.scale.dtype
        name, other_name = SIDES[side], SIDES[1 - side]
        sizes, trained_sizes = (ratings.n_users, ratings.n_items), (trained.n_users, trained.n_items)
        self.n_rows, given, size = sizes[side], sizes[1 - side], trained_sizes[1 - side]
        if given != size:
            raise InputError(
                f"ratings of {given:,} {other_name}s do not fit a model of {size:,}; give them by its indices"
            )
        self.ratings = ratings.to(self.device, self.dtype)
        known_blocks = dict(trained.get_submodule(f"{name}_features").named_children())
        for block in known_blocks.keys() ^ features.keys():
            needed = "needs" if block in known_blocks else "has no"
            raise InputError(f"this model {needed} {name} features {block!r}; give those it was trained with")
        self.features = {}
        for block, old in known_blocks.items():
            assert isinstance(old, Features)
            new, due = features[block], (self.n_rows, old.n_features)
            if (new.n_rows, new.n_features) != due:
                raise InputError(
                    f"the {name} features {block!r} are {new.n_rows:,} × {new.n_features:,}; give {due[0]:,} × "
                    f"{due[1]:,}, a row for each new one and the features that the model was trained with"
                )
            self.features[block] = new.to(self.device, self.dtype)
        self.offset = self._checked_offset(offset)
        self.free = trained.free_columns()[side]
        self.columns = self.free[0].nonzero()[:, 0]
        if isinstance(law, Samples):
            self.own = bool(torch.isfinite(own_prior(law, law.draws[0], side)[0]).all())
        else:
            self.own = side == USER or trained.item_ids
        # Patterns, targets and penalties are the same whatever the tables are.
        nothing = [self.free.new_zeros(n, self.free.shape[1]) for n in (self.n_rows, size)]
        self.plain = self.model(*nothing)
        self.view = sides_of(self.plain, self.ratings)[side]

    def _checked_offset(self, offset: Tensor | None) -> Tensor | None:
        own: Tensor | None = self.trained.offset
        if own is None or not own.ndim or self.side == USER:
            return own
        if offset is None or offset.shape != (self.n_rows,):
            given = "none" if offset is None else f"{offset.numel():,}"
            raise InputError(
                f"each item of this model has an offset of its own; give {self.n_rows:,} for the new ones, not {given}"
            )
        return offset.to(own)

    def feature_tables(self, parameters: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """W̃ of each block of features, (n_features, k), by name; of the model's parameters or of others."""
        terms = [term for term in self.trained.terms(self.side) if term.features is not None]
        return {name: self.trained.table(term, parameters) for name, term in zip(self.features, terms, strict=True)}

    def tables(self, parameters: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """(base, X̃): what features and the constant 1 make of the new rows, (n_rows, k), and the fixed side."""
        base = (1 - self.free).expand(self.n_rows, -1)
        for name, weights in self.feature_tables(parameters).items():
            base = base + self.features[name](weights)
        return base, self.trained.side_table(1 - self.side, parameters)

    def model(self, rows: Tensor, other: Tensor) -> MatrixFactorization:
        """The model without features of these new rows, (n_rows, k), and the other side's, (n, k)."""
        users, items = (rows, other) if self.side == USER else (other, rows)
        trained = self.trained
        return trained.from_tables(
            users,
            items,
            biases=trained.biases,
            offset=self.offset,
            scale=trained.scale,
            nonnegative=trained.nonnegative,
        )

    def pair(self, new: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Something of the new rows and of the fixed side, the users' first."""
        return (new, other) if self.side == USER else (other, new)


def own_prior(law: Samples, draw: Mapping[str, Any], side: int) -> list[Tensor]:
    """λ and m, (k,) each, of a side's own rows; where these have only features, a prior that keeps them at 0."""
    for term, prior in zip(law.model.all_terms, draw["priors"], strict=True):
        if term.side == side and term.features is None:
            found: list[Tensor] = prior
            return found
    zero = torch.zeros_like(law.model.free_columns()[side][0])
    return [torch.full_like(zero, torch.inf), zero]

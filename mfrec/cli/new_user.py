"""New users of `mfrec recommend`: their ratings and features, as options or in a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from mfrec.data.pairs import read_table
from mfrec.errors import InputError, OptionError, unknown

if TYPE_CHECKING:
    import torch

    from mfrec.data.ids import Id
    from mfrec.inference.trained_model import TrainedModel


def folded(
    trained: TrainedModel, rate: Sequence[str], ratings: str | None, about: Sequence[str], generator: torch.Generator
) -> TrainedModel:
    """The trained model with the new users in place of its own.

    Args:
        rate: ratings of a new user, as "ITEM=RATING".
        ratings: a file with ratings of new users.
        about: features of a new user, as "NAME=VALUE".

    Raises:
        InputError: a rating, the file or a feature cannot be used.
    """
    table: pd.DataFrame | dict[Id, float] = dict(_rating(text) for text in rate)
    if ratings is not None:
        times = ("timestamp",) if trained.reads_timestamps else ()
        table = read_table(ratings, ("item", "rating"), ("user", *times))
        if about and "user" in table:
            raise InputError(f"--about describes a single new user, but {ratings} has a column user; give one of them")
    features = _features(trained, about)
    return trained.fold_in_users(table, pd.DataFrame([features]) if features else None, generator=generator)


def _features(trained: TrainedModel, about: Sequence[str]) -> dict[str, str]:
    features = dict(_pair(text, "about", "gender=F") for text in about)
    if len(features) < len(about):
        raise OptionError("about", f"must give each feature once (got {', '.join(about)})")
    names = [name.strip() for name in trained.user_features.split(",") if name.strip()]
    for name, value in features.items():
        if not names:
            raise OptionError("about", f"needs a run trained with --user-features (got {name})")
        if name not in names:
            raise unknown("user feature", name, names)
        texts = {text for text in trained.dataset.users[name] if isinstance(text, str)}
        if texts and value not in texts:
            raise unknown(name, value, sorted(texts))
    return features


def _rating(text: str) -> tuple[Id, float]:
    item, rating = _pair(text, "rate", '"Toy Story (1995)=5"')
    try:
        return item, float(rating)
    except ValueError:
        raise OptionError("rate", f'must end in a number, such as "Toy Story (1995)=5" (got {text!r})') from None


def _pair(text: str, option: str, example: str) -> tuple[str, str]:
    # A title may contain =, a rating never does.
    name, equals, value = text.rpartition("=")
    if not equals or not name.strip():
        raise OptionError(option, f"must be NAME=VALUE, such as {example} (got {text!r})")
    return name.strip(), value.strip()

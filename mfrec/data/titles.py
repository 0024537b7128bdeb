"""Titles: years and genres in the text of item tables."""

from __future__ import annotations

import pandas as pd


def split_genres(text: str) -> tuple[str, ...]:
    """The genres in text, separated by |; () for "(no genres listed)" and for empty text.

    Examples:
        >>> split_genres("Action|Comedy")
        ('Action', 'Comedy')
    """
    return () if text in ("", "(no genres listed)") else tuple(text.split("|"))


def title_years(titles: pd.Series) -> pd.Series:
    """The year at the end of each title, nullable Int64: 1995 for "Toy Story (1995)", missing if there is none."""
    years = titles.astype("object").str.extract(r"\(([0-9]{4})\)\s*$", expand=False)
    return pd.to_numeric(years).astype("Int64")

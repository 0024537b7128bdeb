"""The README begins with two commands, is short, and agrees with the code and with the results page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mfrec.solvers.registry import DEFAULT_SOLVER, SOLVERS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
MAX_LINES = 200


def section(title: str) -> str:
    return README.partition(f"## {title}\n")[2].partition("\n## ")[0]


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def rows(text: str) -> list[list[str]]:
    """The cells of a Markdown table, without its header."""
    return [cells(line) for line in text.splitlines() if line.startswith("|")][2:]


def test_its_first_lines_are_the_two_commands():
    commands = [line.strip() for line in README.splitlines() if line.startswith("    ")][:2]
    assert commands == ["pip install -e . && python train.py", 'pip install -e ".[test]" && pytest']


def test_it_is_short():
    assert len(README.splitlines()) <= MAX_LINES


def test_its_table_of_solvers_is_that_of_the_declarations():
    table = {row[0]: row for row in rows(section("Which solver?"))}
    names = {re.search(r"`([\w-]+)`", cell)[1]: cell for cell in table}
    assert set(names) == {name for name, spec in SOLVERS.items() if str(spec.implementation).startswith("mfrec.")}
    assert [name for name, cell in names.items() if "default" in cell] == [DEFAULT_SOLVER]
    for name, cell in names.items():
        supports = {"features": "features", "non-negative factors": "non-negative", "losses": "losses"}
        shown = {supports[word] for word in table[cell][3].split(", ") if word != "–"}
        # The text below the table says that all solvers support sessions.
        assert shown | {"sessions"} == SOLVERS[name].supports - {"partial-tables"}, name
        tuned = {{"λ": "l2", "its decay": "lr_decay"}.get(word, word) for word in table[cell][2].split(", ")}
        assert tuned == set(SOLVERS[name].search_space), name


def test_the_guide_names_the_solvers_that_support_partial_tables():
    guide = " ".join((ROOT / "docs" / "guide.md").read_text(encoding="utf-8").split())
    listed = re.search(r"With `--partial-tables`, for ((?:`[\w-]+`(?:, | and )?)+)", guide)
    names = [name for name, spec in SOLVERS.items() if "partial-tables" in spec.supports]
    assert sorted(re.findall(r"[\w-]+", listed[1].replace(" and ", ", "))) == sorted(names)


def test_its_figures_are_those_of_the_results_page():
    figures = re.findall(r"\d+\.\d+|\d+ s\b|\d+× ?", "".join(" ".join(row[1:3]) for row in rows(section("Results"))))
    assert len(figures) > 10
    assert [figure for figure in figures if figure.removesuffix(" s") not in RESULTS] == []


def test_its_ratios_are_those_of_its_figures():
    def number(cell: str, unit: str) -> float | None:
        match = re.search(rf"([\d.]+) {unit}\b", cell)
        return float(match[1]) if match else None

    mfrec = ""
    for _, ours, peer, ratio in rows(section("Results")):
        mfrec = ours or mfrec
        unit = "ms" if " ms" in peer else "s"
        if peer and (theirs := number(peer, unit)):
            # The last digit of the figures, and ratios that are medians over rounds, differ by a few percent.
            assert float(ratio.strip("×")) == pytest.approx(theirs / (number(mfrec, unit) or 0), rel=0.06)

"""Figures of benchmarks: measured in turns, printed as Markdown tables, and kept as records to compare later runs with.

A record is `benchmarks/records/NAME-DATE.json`: the machine, versions, threads, seed and options of a run, and each
figure with its unit and spread.  A figure is compared with the last record that has the same options: the last of the
same machine and, if its unit does not depend on the machine, the last of any.  The units of errors, of bytes per rating
and of ratios to a yardstick in the same run do not.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
import torch

from mfrec.experiments.ledger import spread

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
RECORDS = Path(__file__).with_name("records")
MACHINE_UNITS = ("s", "ms", "µs", "users/s", "M ratings/s")

T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """A measured number.

    Attributes:
        value: the number.
        unit: its unit; × is that of a ratio to a yardstick in the same run.
        spread: standard deviation of repeated measurements, or None.
        text: the number as a table shows it.
    """

    value: float
    unit: str
    spread: float | None = None
    text: str = field(default="", compare=False)

    @property
    def is_portable(self) -> bool:
        """Whether the figure can be compared with that of another machine."""
        return self.unit not in MACHINE_UNITS

    @classmethod
    def mean(cls, values: Sequence[float], digits: int, unit: str) -> Figure:
        """The mean ± standard deviation."""
        value, std = spread(values)
        text = f"{value:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")
        return cls(value, unit, std, text)

    @classmethod
    def median(cls, values: Sequence[float], unit: str) -> Figure:
        """The median, shown with three significant digits; a ratio with its sign ×."""
        value = statistics.median(values)
        return cls(value, unit, spread(values)[1], significant(value) + (unit if unit == "×" else ""))


def significant(value: float, digits: int = 3) -> str:
    """A number with some significant digits, at least all of its integer part.

    Examples:
        >>> [significant(value) for value in (0.001234, 45.67, 8686.2, 0.0)]
        ['0.00123', '45.7', '8,686', '0.00']
    """
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


class Report:
    """Prints Markdown tables, and keeps their figures.

    Attributes:
        figures: by name: title of the table, first cell of the row, and head of the column.
    """

    def __init__(self) -> None:
        self.figures: dict[str, Figure] = {}
        self._title = ""
        self._columns: tuple[str, ...] = ()

    def table(self, title: str, *columns: str, n_texts: int = 1) -> None:
        """Begin a table, whose first columns are texts."""
        self._title, self._columns = title, columns
        print(f"\n{title}\n")
        print_row(*columns)
        print_row(*["---"] * n_texts, *["---:"] * (len(columns) - n_texts))

    def row(self, label: str, *cells: Figure | str) -> None:
        """Print a row, and keep its figures."""
        print_row(label, *(cell if isinstance(cell, str) else cell.text for cell in cells))
        for column, cell in zip(self._columns[1:], cells, strict=True):
            if isinstance(cell, Figure):
                self.figures[" / ".join(filter(None, (self._title, label.replace("`", ""), column)))] = cell


def print_row(*cells: str) -> None:
    """Print a row of a Markdown table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def seconds(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """The seconds of a call."""
    began = clock()
    call()
    return clock() - began


def in_turns(
    ways: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each way in each round, after a round to warm up.

    The ways take turns, so that a disturbance of the machine affects all of them.
    """
    measured = [{name: seconds(way, clock) for name, way in ways.items()} for _ in range(rounds + 1)][1:]
    return {name: [times[name] for times in measured] for name in ways}


def in_new_process(call: Callable[..., T], *arguments: Any) -> T:
    """The result of a call in a process that ends with it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


@dataclass(frozen=True)
class Record:
    """The figures of a run, and what they depend on.

    Attributes:
        name: the benchmark.
        date: when the run ended, as "2026-01-31T12.30".
        machine: the processor, its cores and the memory.
        versions: of Python, the libraries, and mfrec's commit; a + says that files differ from it.
        threads: threads that torch and the kernels use.
        seed: seed or seeds of the run.
        options: all options of the run.
        figures: by name.
    """

    name: str
    date: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    threads: int
    seed: int | list[int]
    options: dict[str, Any]
    figures: dict[str, Figure]

    @classmethod
    def now(cls, name: str, options: Mapping[str, Any], figures: Mapping[str, Figure]) -> Record:
        """The record of a run that ends now, on this machine."""
        plain = json.loads(json.dumps(options, default=lambda path: Path(path).name))
        seed = plain.get("seeds", plain.get("seed", 0))
        date = datetime.now().strftime("%Y-%m-%dT%H.%M")
        return cls(name, date, machine(), versions(), torch.get_num_threads(), seed, plain, dict(figures))

    @classmethod
    def read(cls, path: Path) -> Record:
        """The record in a file."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**values | {"figures": {name: Figure(**figure) for name, figure in values["figures"].items()}})

    @property
    def path(self) -> Path:
        """The record's file, within its folder."""
        return Path(f"{self.name}-{self.date}.json")

    def write(self, folder: Path = RECORDS) -> Path:
        """Write the record to a folder, and return the path of the file."""
        values = asdict(self)
        for figure in values["figures"].values():
            del figure["text"]
            figure |= {key: float(f"{figure[key]:.5g}") for key in ("value", "spread") if figure[key] is not None}
        folder.mkdir(exist_ok=True)
        (folder / self.path).write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return folder / self.path

    def earlier(self, folder: Path = RECORDS) -> list[Record]:
        """The records of the same benchmark with the same options, without this one, the last first."""
        records = [Record.read(path) for path in sorted(folder.glob(f"{self.name}-*.json"), reverse=True)]
        return [record for record in records if record.options == self.options and record.date != self.date]


def compared(record: Record, folder: Path = RECORDS) -> Iterator[tuple[str, Figure, Figure | None, Figure | None]]:
    """Each figure's name, the figure, and that of the last record of this machine, and of the last of any machine."""
    earlier = record.earlier(folder)
    here = [past for past in earlier if past.machine == record.machine]
    for name, figure in record.figures.items():
        last_here, last = (
            next((past.figures[name] for past in records if name in past.figures), None) for records in (here, earlier)
        )
        yield name, figure, last_here, last if figure.is_portable else None


def print_comparison(record: Record, folder: Path = RECORDS) -> None:
    """Print the ratios of a record's figures to those of earlier records, if there are any."""
    rows = [row for row in compared(record, folder) if row[2] or row[3]]
    if not rows:
        print(f"\nno earlier record of {record.name} with these options")
        return
    print(f"\n{record.name}: ratios to the last records\n")
    print_row("figure", "this run", "ratio to the last of this machine", "of any machine")
    print_row("---", "---:", "---:", "---:")
    for name, figure, *last in rows:
        ratios = (f"{figure.value / past.value:.2f}" if past and past.value else "" for past in last)
        print_row(name, f"{figure.value:.4g} {figure.unit}", *ratios)


def machine() -> dict[str, str | int]:
    """This machine: its processor, cores and GiB of memory."""
    model = platform.processor() or platform.machine()
    cpus = Path("/proc/cpuinfo")
    if cpus.exists():
        lines = cpus.read_text(encoding="utf-8").splitlines()
        model = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), model)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"processor": model, "cores": os.cpu_count() or 1, "memory_gib": round(memory / 2**30)}


def versions() -> dict[str, str]:
    """Versions of everything that decides the speed."""
    commit = _git("rev-parse", "--short", "HEAD") or "unknown"
    changes = "+" if _git("status", "--porcelain", "--untracked-files=no") else ""
    libraries = {"torch": torch.__version__, "numpy": np.__version__, "numba": numba.__version__}
    return {"python": platform.python_version(), **libraries, "mfrec": commit + changes}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()

"""Five thousand damaged inputs in one process: every one is used or refused in a sentence, and none crashes.

The examples are the same on every run.  Set HYPOTHESIS_SEED to a number for others.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, Output
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import mfrec
from mfrec.data.loading import load_dataset
from mfrec.errors import InputError
from mfrec.experiments.config import GROUPS, ExperimentConfig
from mfrec.experiments.run import Run
from mfrec.solvers.registry import SOLVERS

SEED = os.environ.get("HYPOTHESIS_SEED")
# Numbers that parsers, float32, int64 and file formats stumble over.
NUMBERS = ["nan", "inf", "-inf", "1e3091955569", "-1e-3091955569", "1e400", "1e-320", "1e308", "-0", "0x10", "1_000"]
NUMBERS += ["99999999999999999999", "-99999999999999999999", "9223372036854775807", "2147483648", "0", "-1", "0.3", "3"]
TEXTS = ["", " ", "None", "True", "\ufeff", "\x00", "\u0661", "é", "\U0001f600", "a" * 300, "..", "/", "NaN", "\udcff"]
WORDS = st.sampled_from(NUMBERS + TEXTS) | st.text(max_size=6)


def fuzz(n_examples: int) -> Any:
    """Settings for a fixed number of examples."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    fixed = settings(max_examples=n_examples, derandomize=SEED is None, database=None, suppress_health_check=checks)
    return (lambda test: seed(int(SEED))(fixed(test))) if SEED is not None else fixed


def assert_answered(output: Output) -> None:
    """Exit status 0 or 2, and no traceback."""
    assert output.status in (0, 2), output
    assert "Traceback" not in output.out + output.err
    assert (output.status == 2) == (output.out == ""), output


# Files of ratings.

CELLS = st.sampled_from(["1", "2", "3.5", "5", "2001-01-01", "Toy Story (1995)", *NUMBERS, *TEXTS]) | st.text(
    max_size=4
)
DELIMITERS = st.sampled_from([",", "\t", "::", ";", ", ", "|"])
HEADERS = st.sampled_from(["userId,movieId,rating,timestamp", "user,item,rating", "rating", "", "user\titem\trating"])
SUFFIXES = st.sampled_from([".csv", ".tsv", ".dat", ".data", ".parquet", ".zip", ""])


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """A file like one of ratings, with cells of any kind in rows of any length, in any encoding."""
    delimiter, header = draw(DELIMITERS), draw(HEADERS)
    width = draw(st.integers(1, 5))
    rows = draw(st.lists(st.lists(CELLS, min_size=width, max_size=width + 1), max_size=5))
    ending = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    text = ending.join([header, *(delimiter.join(row) for row in rows), ""])
    return text.encode(draw(st.sampled_from(["utf-8", "utf-16", "latin-1"])), "replace")


@st.composite
def edited(draw: st.DrawFn, content: bytes) -> bytes:
    """A file with a few bytes replaced, removed or inserted."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(result)))
        token = draw(
            st.sampled_from(NUMBERS + TEXTS).map(lambda text: text.encode("utf-8", "replace")) | st.binary(max_size=3)
        )
        result[at : at + draw(st.sampled_from([0, 0, 1, 5, 1000]))] = token
    return bytes(result)


VALID = b"userId,movieId,rating,timestamp\n" + b"".join(
    b"%d,%d,%d.5,%d\n" % (user, item, 1 + (user * item) % 4, 10**9 + user)
    for user in range(1, 7)
    for item in range(1, 5)
)
FILES = st.one_of(tables(), edited(VALID), st.binary(max_size=80))


@fuzz(1700)
@given(content=FILES, suffix=SUFFIXES)
def test_any_bytes_are_ratings_or_are_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"fuzzed{suffix}"
    path.write_bytes(content)
    try:
        dataset = load_dataset(path)
    except InputError:
        return
    finally:
        path.unlink()
    low, high = dataset.rating_range
    assert bool(((low <= dataset.ratings.values) & (dataset.ratings.values <= high)).all())


@fuzz(200)
@given(content=FILES, suffix=SUFFIXES)
def test_any_bytes_as_data_end_with_status_0_or_2(content: bytes, suffix: str, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / f"fuzzed{suffix}"
    path.write_bytes(content)
    assert_answered(cli("data", path, "--json"))


# Options.


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """A configuration with a few values of any kind."""
    values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WORDS, st.lists(st.integers(), max_size=3))
    solver = draw(st.sampled_from(list(SOLVERS)))
    kinds = {"options": SOLVERS[solver].options, **GROUPS}
    result: dict[str, Any] = {"solver": solver}
    for _ in range(draw(st.integers(1, 4))):
        group = draw(st.sampled_from(list(kinds)))
        name = draw(st.sampled_from([field for field in kinds[group].__dataclass_fields__ if field != "plugin"]))
        result.setdefault(group, {})[name] = draw(values)
    return result


@fuzz(1500)
@given(values=configurations())
def test_any_values_are_a_configuration_or_are_refused(values: dict[str, Any]) -> None:
    try:
        config = ExperimentConfig.from_dict(values)
        config.check()
    except InputError:
        return
    assert ExperimentConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


TRAIN_OPTIONS = ["rank", "l2", "bias-l2", "damping", "lr", "lr-decay", "momentum", "seed", "log-every", "test-fraction"]
TRAIN_OPTIONS += ["valid-fraction", "split", "loss", "columns", "user-features", "item-features", "monitor", "step"]
TRAIN_OPTIONS += ["epochs", "patience", "name", "test-data", "device", "init", "offset", "implicit", "duplicates"]
# Valid numbers that would train for hours.
HOURS = {"9223372036854775807", "2147483648", "1_000"}


@fuzz(120)
@given(solver=st.sampled_from(list(SOLVERS)), option=st.sampled_from(TRAIN_OPTIONS), value=WORDS)
def test_any_value_of_an_option_of_train_ends_with_status_0_or_2(
    solver: str, option: str, value: str, cli: Cli, tmp_path: Path
) -> None:
    data = tmp_path / "data.csv"
    data.write_bytes(VALID)
    small = ("--rank", 2, "--epochs", 2, "--patience", 1, "--loggers", "--run-dir", tmp_path / "runs", "--json")
    if value not in HOURS:
        assert_answered(cli("train", solver, "--data", data, *small, f"--{option}={value}"))
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)


ANSWER_OPTIONS = {
    "recommend": ["user", "rate", "ratings", "about", "number", "min-ratings", "genres", "exclude", "explore", "seed"],
    "evaluate": ["by", "ranking", "threshold", "min-ratings", "probabilities", "seed", "device"],
    "similar": ["item", "user", "number", "min-ratings", "memory"],
    "runs": ["json"],
}


@fuzz(330)
@given(verb=st.sampled_from(list(ANSWER_OPTIONS)), chosen=st.data(), value=WORDS)
def test_any_value_of_an_option_that_asks_ends_with_status_0_or_2(
    verb: str, chosen: st.DataObject, value: str, cli: Cli, trained_run: Path
) -> None:
    option = chosen.draw(st.sampled_from(ANSWER_OPTIONS[verb]))
    assert_answered(cli(verb, trained_run, f"--{option}={value}", "--json"))


# Files of a run.

DATASET_FILES = ("prepared.json", "crow.npy", "items.npy", "values.npy", "item_users.npy", "user_ids.npy")
RUN_FILES = (
    "config.json",
    *(f"dataset/{name}" for name in DATASET_FILES),
    "split_labels.pt",
    "checkpoint.pt",
    "metrics.json",
)


@pytest.fixture(scope="module")
def small_run(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 24 ratings, to be damaged."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "data.csv").write_bytes(VALID)
    options = ("--rank", 2, "--epochs", 2, "--loggers", "--run-dir", folder, "--name", "run", "--json")
    output = cli("train", "als", "--data", folder / "data.csv", *options)
    assert output.status == 0, output.err
    return folder / "run"


def damage(content: bytes, chance: random.Random) -> bytes:
    """The content with a bit flipped, a byte replaced, some removed, or some inserted."""
    at = chance.randrange(len(content))
    way = chance.randrange(4)
    if way == 0:
        return content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]
    if way == 1:
        return content[:at] + bytes([(content[at] + chance.randrange(1, 256)) % 256]) + content[at + 1 :]
    if way == 2:
        return content[:at] + content[at + chance.choice((1, 2, 100)) :]
    return content[:at] + chance.randbytes(chance.choice((1, 2, 100))) + content[at:]


def test_no_damaged_file_of_a_run_is_believed(small_run: Path) -> None:
    chance = random.Random(0 if SEED is None else int(SEED))
    for n in range(1000):
        path = small_run / RUN_FILES[n % len(RUN_FILES)]
        content = path.read_bytes()
        damaged = damage(content, chance)
        if damaged == content:
            continue
        path.write_bytes(damaged)
        try:
            with pytest.raises(InputError) as refused:
                Run.open(small_run).metrics() if path.name == "metrics.json" else mfrec.load_run(small_run)
            assert path.name in str(refused.value)
            assert "weights_only" not in str(refused.value)
        finally:
            path.write_bytes(content)
    assert mfrec.load_run(small_run).recommend(1, n=1) is not None


def test_a_damaged_run_ends_every_verb_with_status_2_and_one_line(small_run: Path, cli: Cli, tmp_path: Path) -> None:
    chance = random.Random(1 if SEED is None else int(SEED))
    questions = (("evaluate",), ("recommend", "--user", 1), ("similar", "--item", 1), ("train", "--resume"))
    for n in range(150):
        path = small_run / RUN_FILES[n % (len(RUN_FILES) - 1)]
        content = path.read_bytes()
        path.write_bytes(damage(content, chance))
        verb, *options = questions[n % len(questions)]
        arguments = (verb, *options, small_run, "--epochs", 9) if verb == "train" else (verb, small_run, *options)
        try:
            output = cli(*arguments)
        finally:
            path.write_bytes(content)
        assert (output.status, output.out) == (2, ""), (n, output)
        assert output.err.startswith("mfrec: ")
        assert output.err.count("\n") == 1, output.err
